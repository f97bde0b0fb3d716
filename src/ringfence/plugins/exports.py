"""Exports: a plugin's functions as attributes, so that a call reads like one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from ringfence.plugins.errors import FunctionNotFound

if TYPE_CHECKING:
    from ringfence.plugins.handle import PluginHandle

__all__ = ["Exports"]


@final
class Exports:
    """``handle.exports.process("x")`` is ``handle.call("process", ["x"])``, once the arguments have the declared types.

    `ringfence plugin inspect --stub` writes a stub for type checkers.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: "PluginHandle") -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Callable[..., Any]:
        handle = self._handle
        if not handle.has_export(name):
            # An AttributeError too, so that hasattr() and copying work.
            raise _NoSuchExport(name, handle.name, handle.export_names)

        declared = handle.functions.get(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if declared is not None:
                declared.check(args, kwargs)
            return handle.call(name, args, kwargs)

        call.__name__ = call.__qualname__ = name
        call.__doc__ = declared.doc if declared is not None else None
        return call

    def __dir__(self) -> list[str]:
        return list(self._handle.export_names)

    def __repr__(self) -> str:
        return f"<exports of {self._handle.name}: {', '.join(self._handle.export_names)}>"


class _NoSuchExport(FunctionNotFound, AttributeError):
    """A plugin does not export this."""
