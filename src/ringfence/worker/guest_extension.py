"""Runs a `@define_plugin` class inside a plugin's worker: new, attach_to, initialize, and teardown at the end.

The same class, in its host's own process, is given the instance. Here it is given as much of one as its host lets it
have: the host's functions and the log.
"""

import weakref
from collections.abc import Callable
from importlib import import_module
from types import CoroutineType, ModuleType
from typing import Any

from ringfence.worker.guest_host import Host
from ringfence.worker.guest_log import send_record
from ringfence.worker.guest_state import active

__all__ = ["Extension", "InstanceProxy", "InstanceRef"]


class InstanceProxy:
    """What an extension sees of the instance when it runs in a worker.

    Attributes:
        host: the host's functions, as `ringfence.guest.host`; each is subject to the plugin's capabilities.
        log: the host's log, as `ringfence.guest.log`.
        ext: what `hyinfo` and its like bring messages to, here as in an instance.
        closed: whether the extension was torn down.
        extensions: the names of the extensions that can be had from here: its own.
    """

    def __init__(self, name: str, extension: object) -> None:
        self.host = Host()
        # By name: that module is for plugins, and imports the worker's, not the other way round.
        self.log = import_module("ringfence.guest").log
        self.ext = import_module("ringfence.plugins.log_message").InstanceStateEXT()
        self.ext.log_callback = _send
        self.closed = False
        self.extensions = (name,)
        self._extension = extension

    def get_plugin_ext(self, cls: type) -> Any:
        """Return the extension of this class: itself, since the others live elsewhere; None for any other."""
        return self._extension if type(self._extension) is cls else None

    def __repr__(self) -> str:
        return f"<the instance that {self.extensions[0]} belongs to, as seen from its worker>"


class InstanceRef(weakref.ref[InstanceProxy]):
    """A weak reference to the proxy, which is None as soon as the extension was torn down."""

    def __call__(self) -> InstanceProxy | None:
        """Return the proxy, or None."""
        proxy = super().__call__()
        return None if proxy is None or proxy.closed else proxy


class Extension:
    """One extension, from its class in the plugin's main module to its teardown."""

    def __init__(self, module: ModuleType, name: str) -> None:
        """Find the class that `@define_plugin` has entered as `name`, make one, attach and initialise it.

        Raises LookupError if the module has no such class, and what `new`, `attach_to` and `initialize` raise; if one
        of the last two does, it has been torn down.
        """
        cls = _find(module, name)
        if cls is None:
            raise LookupError(f"the module {module.__name__!r} defines no extension called {name!r}")
        extension = cls.new(import_module("ringfence.ext").OpaqueList())
        self._extension: Any = extension
        self._proxy = InstanceProxy(name, extension)
        try:
            self._call("attach_to", InstanceRef(self._proxy))
            self._call("initialize")
        except BaseException as error:
            try:
                self.tear_down()
            except Exception as other:  # noqa: BLE001  # the first error is the one to tell
                error.add_note(f"teardown raised {type(other).__name__} besides")
            raise

    def cleanup_after(self, own: Callable[[], object] | None) -> Callable[[], None]:
        """Return what the plugin does when it is to clean up: its own `cleanup`, if it has one, then the teardown."""

        def cleanup() -> None:
            try:
                value = own() if own is not None else None
                if type(value) is CoroutineType:
                    import_module("asyncio").run(value)
            finally:
                self.tear_down()

        return cleanup

    def tear_down(self) -> None:
        """Undo it; once. Raises what `teardown` raises."""
        extension, self._extension = self._extension, None
        if extension is not None:
            try:
                hook = getattr(extension, "teardown", None)
                if hook is not None:
                    hook()
            finally:
                self._proxy.closed = True

    def _call(self, name: str, *args: object) -> None:
        # A hook that the class does not define does nothing, as in an instance.
        hook = getattr(self._extension, name, None)
        if hook is not None:
            hook(*args)


def _send(message: Any) -> None:
    """Send a LogMessageEXT to the host, which knows the rest of the instance."""
    guest = active()
    if guest is not None:
        place = {
            "module": message.module.rpartition(".")[2],
            "file": message.file,
            "line": message.line,
            "thread": message.thread_name,
        }
        send_record(guest, int(message.level), message.module, message.message, place)


def _find(module: ModuleType, name: str) -> Any:
    for value in list(vars(module).values()):
        if issubclass(type(value), type) and value.__dict__.get("NAME") == name and hasattr(value, "new"):
            return value
    return None
