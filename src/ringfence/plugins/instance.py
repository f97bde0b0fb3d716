"""The instance: what holds an application's extensions from their creation in six steps to their teardown.

After each step there is a barrier: no extension is attached before all exist, and none is initialised before all are
attached. Whatever goes wrong then, every extension that was attached is torn down, once, in the reverse order.
"""

import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self, TypeVar, cast, final
from uuid import UUID

from ringfence.locks import Lock
from ringfence.plugins.application import ApplicationInfo, InstanceCreateInfo
from ringfence.plugins.catalog import CATALOG, PluginCatalog
from ringfence.plugins.errors import InvalidConfig, PluginStateError
from ringfence.plugins.events import EventBus
from ringfence.plugins.extension_stack import ExtensionStack
from ringfence.plugins.identity import UuidSource, UuidStore, check_uuid
from ringfence.plugins.log_message import InstanceStateEXT, discard, hyinfo, hywarn
from ringfence.plugins.opaque import OpaqueList
from ringfence.plugins.states import LifecycleState

__all__ = ["InstanceContext", "InstanceRef", "UnconsumedConfigWarning", "create_instance"]

T = TypeVar("T")


class UnconsumedConfigWarning(InvalidConfig, UserWarning):
    """Configuration that no enabled extension took: `types` are its types' names. A warning; strictly, an error."""

    def __init__(self, types: Iterable[str]) -> None:
        super().__init__(tuple(types))
        self.types: tuple[str, ...] = self.args[0]

    def __str__(self) -> str:
        return (
            f"no extension took this configuration: {', '.join(self.types)}; enable the extension that it is for, or "
            "drop it (a second object of one type is nobody's)"
        )


@final
class InstanceRef(weakref.ref["InstanceContext"]):
    """The weak reference that extensions are given: it also returns None once the instance is closed."""

    __slots__ = ()

    def __call__(self) -> "InstanceContext | None":
        """Return the instance, or None when it is gone or closed."""
        instance = super().__call__()
        return None if instance is None or instance.closed else instance


@final
class InstanceContext:
    """An application's running extensions; `create_instance` makes one.

    Close it, or use it in a `with` statement. One that is dropped, or left to the end of the program, is closed then
    and reported with a ResourceWarning. An instance belongs to the process that made it; a fork's copy does nothing.
    """

    # For an object whose __init__ did not get far: there is nothing to close.
    _open = False

    def __init__(
        self,
        info: InstanceCreateInfo,
        stack: ExtensionStack,
        ext_list: OpaqueList,
        state: InstanceStateEXT,
        events: EventBus,
    ) -> None:
        """Hold extensions that were made; for create_instance."""
        self._info = info
        self._stack = stack
        self._ext_list = ext_list
        self._uuids = UuidSource(info.node_id)
        self._lock = Lock()
        self._pid = os.getpid()
        self._closed = False
        # What extensions may hook into, and what happens to them.
        self.ext = state
        self.events = events
        # Whoever changes it to False is the one to tear down.
        self._open = True

    @property
    def application_info(self) -> ApplicationInfo:
        """Which application this is an instance of."""
        return self._info.application_info

    @property
    def node_id(self) -> int:
        """The number that this instance's UUIDs end in."""
        return self._info.node_id

    @property
    def extensions(self) -> tuple[str, ...]:
        """The names of the extensions that are not torn down, in the order of their creation."""
        return tuple(one.entry.name for one in self._stack.held())

    @property
    def states(self) -> Mapping[str, LifecycleState]:
        """How far each of these extensions has come."""
        return {one.entry.name: one.state for one in self._stack.held()}

    @property
    def init_times(self) -> Mapping[str, float]:
        """How many seconds the `initialize` of each extension took."""
        return MappingProxyType(self._stack.init_times)

    @property
    def unconsumed(self) -> tuple[object, ...]:
        """The configuration objects that no extension has taken, in order."""
        return self._ext_list.remaining()

    @property
    def closed(self) -> bool:
        """Whether every extension is torn down."""
        return self._closed

    def get_plugin_ext(self, cls: type[T]) -> T | None:
        """Return the extension of this class, or the object of this class that an extension provides; None without one.

        An extension provides the object in its attribute `provides`, as the plugin runtime's does with its
        PluginRuntime.
        """
        uuid = getattr(cls, "UUID", None)
        if isinstance(uuid, UUID):
            one = self._stack.get(uuid)
            # By UUID, for the class may be from before its module was imported again.
            return None if one is None else cast("T", one.plugin)
        for one in self._stack.held():
            provided = getattr(one.plugin, "provides", None)
            if isinstance(provided, cls):
                return provided
        return None

    def generate_uuid(self) -> UUID:
        """Return a UUID of version 6 that ends in the node id; later ones are greater."""
        return self._uuids()

    def close(self) -> None:
        """Stop the plugins, then tear down every extension, last created first. Closing again does nothing.

        Raises what teardowns raised, after all of them ran, as an ExceptionGroup (of one error or more), each with a
        note that names the extension.
        """
        if self._claim():
            _raise_all(self._tear_down())

    def __enter__(self) -> Self:
        if not self._open:
            raise PluginStateError("this instance is closed; create another one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._claim():
            return
        errors = self._tear_down()
        if error is None:
            _raise_all(errors)
        else:
            # What went wrong first is what the caller should see, and Ctrl-C must stay Ctrl-C.
            _add_notes(error, errors)

    def __del__(self) -> None:
        self._abandon()

    def __repr__(self) -> str:
        app = self._info.application_info
        state = "closed" if self._closed else ", ".join(self.extensions) or "no extensions"
        return f"<InstanceContext of {app.application_name} {app.application_version}: {state}>"

    def _start(self, clock: Callable[[], float]) -> None:
        """Steps 3 to 5, the error of any of which undoes all of it."""
        try:
            self._stack.attach(InstanceRef(self))
            self._stack.initialize(self._info.init_budget, clock)
            if left := self.unconsumed:
                unconsumed = UnconsumedConfigWarning(_name_of(type(item)) for item in left)
                if self._info.strict:
                    raise unconsumed
                warnings.warn(unconsumed, stacklevel=3)
            self._stack.run()
            app = self._info.application_info
            hyinfo(
                self.ext,
                "instance of {} {} on {} {} created with {}",
                app.application_name,
                app.application_version,
                app.engine_name,
                app.engine_version,
                ", ".join(self.extensions) or "no extensions",
            )
            _close_at_exit(self)
        except BaseException as error:
            if self._claim():
                _add_notes(error, self._tear_down())
            raise

    def _claim(self) -> bool:
        """Return True to the one caller that is to tear down."""
        with self._lock:
            claimed, self._open = self._open and os.getpid() == self._pid, False
            return claimed

    def _tear_down(self) -> list[BaseException]:
        if live := self._stack.live_plugins():
            hywarn(self.ext, "closing with live plugins: {}", ", ".join(live))
        errors = self._stack.tear_down()
        self.ext.log_callback = discard
        self._closed = True
        return errors

    def _abandon(self) -> None:
        """Close, and say that nobody did."""
        if not (self._open and self._claim()):
            return
        text = f"unclosed {self!r}"
        if live := self._stack.live_plugins():
            text += f" with live plugins: {', '.join(live)}"
        errors = self._tear_down()
        try:
            warnings.warn(text, ResourceWarning, stacklevel=2)
        finally:
            _raise_all(errors)


def create_instance(
    create_info: InstanceCreateInfo,
    *,
    catalog: PluginCatalog = CATALOG,
    uuids: UuidStore | None = None,
    events: EventBus | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> InstanceContext:
    """Make the enabled extensions and the instance that holds them; return it once all are initialised.

    `uuids` remembers the extensions' UUIDs from one run to the next. `events` hears what happens to them.

    Raises TypeError when `create_info` is no InstanceCreateInfo; PluginNotFound, DuplicatedKey or
    CompatibilityCheckFailed for a name that cannot be enabled; InstanceCreateError when an extension's import, `new`,
    `attach_to` or `initialize` raised: the error itself is the `__cause__`, and its text part of the message. By then
    every extension that was attached is torn down; what that raised is in the error's notes.
    """
    if not isinstance(create_info, InstanceCreateInfo):
        raise TypeError(f"create_instance takes an InstanceCreateInfo, not {type(create_info).__qualname__}")
    ext = create_info.ext
    ext_list = ext if isinstance(ext, OpaqueList) else OpaqueList(ext)
    bus = EventBus() if events is None else events
    state = InstanceStateEXT()
    stack = ExtensionStack(state, bus)
    stack.make(create_info.enabled_extensions, ext_list, catalog)
    if uuids is not None:
        for one in stack.held():
            if (changed := check_uuid(one.entry.name, one.entry.uuid, uuids)) is not None:
                if create_info.strict:
                    raise changed
                warnings.warn(changed, stacklevel=2)
    instance = InstanceContext(create_info, stack, ext_list, state, bus)
    instance._start(clock)
    return instance


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _add_notes(error: BaseException, others: Iterable[BaseException]) -> None:
    for other in others:
        error.add_note(f"while closing: {other!r} ({'; '.join(getattr(other, '__notes__', ()))})")


def _raise_all(errors: list[BaseException]) -> None:
    """Raise the errors as one group; a KeyboardInterrupt or SystemExit among them alone, the others in its notes."""
    for error in errors:
        if not isinstance(error, Exception):
            _add_notes(error, [other for other in errors if other is not error])
            raise error
    if errors:
        # With the errors in the text: an error in __del__ is shown without its parts.
        text = "; ".join(f"{error!r} {'; '.join(error.__notes__)}" for error in errors)
        raise ExceptionGroup(
            f"extensions failed while their instance was closed: {text}", cast("list[Exception]", errors)
        )


# Instances that nobody closed yet; the end of the program does.
_unclosed: Final["weakref.WeakSet[InstanceContext]"] = weakref.WeakSet()
# Whether we are registered for the end of the program: before, and after, the pool was imported.
_registered: Final[set[bool]] = set()


def _close_at_exit(instance: InstanceContext) -> None:
    """See to it that the instance is closed before the pool ends the plugins that it runs.

    The last to register is the first to be called, and a pool registers when it is first imported, which may be for our
    second instance: so we do, too, when it is there. atexit would be too late: by then, threads were waited for.
    """
    _unclosed.add(instance)
    if (pool := "ringfence.pool.executor" in sys.modules) not in _registered:
        _registered.add(pool)
        try:
            threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # as concurrent.futures does
        except RuntimeError:  # the program is ending already: __del__ is left
            pass


def _close_all() -> None:
    for instance in list(_unclosed):
        try:
            instance._abandon()
        except BaseException:  # noqa: BLE001  # shown, as at any end of a program; the others, and the pool, come next
            sys.excepthook(*sys.exc_info())
