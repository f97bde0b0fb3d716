"""Objects by value with dill, and enums, which dill cannot."""

import enum
import io
import sys
import types
from typing import Any

import dill

from ringfence.ipc.enums import make_enum

__all__ = ["dumps_by_value"]


class _Pickler(dill.Pickler):  # type: ignore[misc]  # dill has no types
    """dill's pickler, with a table of its own: dill's is shared by the whole process."""

    dispatch = dict(dill.Pickler.dispatch)


def _save_enum(pickler: Any, cls: type[enum.Enum]) -> None:
    module = sys.modules.get(cls.__module__)
    found: object = module
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is cls and cls.__module__ != "__main__":
        pickler.save_global(cls)
        return
    members = {name: member.value for name, member in cls.__members__.items()}
    methods = {
        name: value
        for name, value in vars(cls).items()
        if isinstance(value, types.FunctionType | property | staticmethod | classmethod)
        and not (name.startswith("_") and name in vars(enum.Enum) and name != "_missing_")
    }
    state = (cls.__name__, cls.__qualname__, cls.__module__, cls.__bases__, members, methods)
    pickler.save_reduce(make_enum, state, obj=cls)


for _metaclass in {type(cls) for cls in (enum.Enum, enum.IntEnum, enum.StrEnum, enum.Flag, enum.IntFlag)}:
    _Pickler.dispatch[_metaclass] = _save_enum


def dumps_by_value(value: object) -> bytes:
    """Return `value` pickled; what only exists in this process goes by value. Raises whatever dill raises."""
    out = io.BytesIO()
    # recurse: only the globals that a function uses, not all of its module's.
    _Pickler(out, protocol=5, byref=False, recurse=True).dump(value)
    return out.getvalue()
