"""The extensions of one instance, in order: made, attached, initialised, and torn down from the last to the first."""

import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, final
from uuid import UUID

from ringfence.plugins.catalog import PluginCatalog, PluginEntry
from ringfence.plugins.errors import CompatibilityCheckFailed, DuplicatedKey, InstanceCreateError, PluginNotFound
from ringfence.plugins.events import Created, Error, EventBus, Initialized, LifecycleEvent, Started, Unloaded
from ringfence.plugins.extension import DynPluginEXT
from ringfence.plugins.log_message import InstanceStateEXT, hyerror, hyinfo, hywarn
from ringfence.plugins.opaque import OpaqueList
from ringfence.plugins.states import LifecycleState

if TYPE_CHECKING:
    from ringfence.plugins.instance import InstanceContext

__all__ = ["ExtensionStack", "Held", "SlowInitializeWarning"]


class SlowInitializeWarning(UserWarning):
    """The `initialize` of an extension took longer than the instance's `init_budget`."""


@final
@dataclass(slots=True)
class Held:
    """An extension and how far it has come."""

    entry: PluginEntry
    plugin: DynPluginEXT
    # Set before attach_to is called: from then on there is something to tear down.
    attached: bool = False
    state: LifecycleState = LifecycleState.CREATED


@final
class ExtensionStack:
    """Extensions by UUID, in the order they were made. It knows no instance: an extension may know both."""

    def __init__(self, state: InstanceStateEXT, events: EventBus) -> None:
        self._state = state
        self._events = events
        self._held: dict[UUID, Held] = {}
        self.init_times: dict[str, float] = {}

    def held(self) -> tuple[Held, ...]:
        """Return those that are not torn down, first made first."""
        return tuple(self._held.values())

    def get(self, uuid: UUID) -> Held | None:
        """Return the one with this UUID, or None."""
        return self._held.get(uuid)

    def make(self, names: Iterable[str], ext_list: OpaqueList, catalog: PluginCatalog) -> None:
        """Make the extensions of these names, in order.

        Raises PluginNotFound, DuplicatedKey and CompatibilityCheckFailed for a name that cannot be enabled, and
        InstanceCreateError for what an import or a `new` raised.
        """
        entries: dict[UUID, PluginEntry] = {}
        # All are found before one is made: a wrong name costs nothing.
        for name in names:
            entry = _found(name, catalog)
            if (twin := entries.get(entry.uuid)) is not None:
                raise DuplicatedKey("extension uuid", str(entry.uuid), f"{twin.name} and {entry.name} are both enabled")
            entries[entry.uuid] = entry
        for uuid, entry in entries.items():
            with self._step(entry, "new"):
                self._held[uuid] = Held(entry, entry.load(ext_list))
            self._events.emit(Created(entry.name))

    def attach(self, instance: "weakref.ref[InstanceContext]") -> None:
        """Attach all. Raises InstanceCreateError for what an attach_to raised."""
        for one in self.held():
            with self._step(one.entry, "attach_to"):
                one.attached = True
                one.plugin.attach_to(instance)

    def initialize(self, budget: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """Initialise all, and warn of each that takes more than `budget` seconds.

        Raises InstanceCreateError for what an initialize raised.
        """
        for one in self.held():
            began = clock()
            with self._step(one.entry, "initialize"):
                one.plugin.initialize()
            took = self.init_times[one.entry.name] = clock() - began
            self._to(one, LifecycleState.INITIALIZED, Initialized(one.entry.name))
            hyinfo(self._state, "extension {} initialized in {:.1f} ms", one.entry.name, took * 1000)
            if took > budget:
                text = (
                    f"extension {one.entry.name} took {took:.2f} s to initialize, the budget is {budget:g} s; defer "
                    "what is not needed at once"
                )
                hywarn(self._state, "{}", text)
                warnings.warn(text, SlowInitializeWarning, stacklevel=4)

    def run(self) -> None:
        """Say of all that they run."""
        for one in self.held():
            self._to(one, LifecycleState.RUNNING, Started(one.entry.name))

    def live_plugins(self) -> list[str]:
        """Return the names of the plugins that the extensions run."""
        found: list[str] = []
        for one in self.held():
            live: Any = getattr(one.plugin, "live_plugins", None)
            if callable(live):
                try:
                    found += live()
                except Exception as error:  # noqa: BLE001  # a list for a warning must not stop a teardown
                    hyerror(self._state, "extension {} cannot say which plugins live: {!r}", one.entry.name, error)
        return found

    def tear_down(self) -> list[BaseException]:
        """Tear down what was attached, each once and whatever the others do; return what they raised."""
        errors: list[BaseException] = []
        # Plugins use what extensions offer, so they go while every extension is still there.
        for one in reversed(self.held()):
            before: Any = getattr(one.plugin, "before_teardown", None)
            if one.attached and callable(before):
                self._collect(errors, one, "before_teardown", before)
        while self._held:
            _, one = self._held.popitem()
            if one.attached:
                self._collect(errors, one, "teardown", one.plugin.teardown)
                hyinfo(self._state, "extension {} torn down", one.entry.name)
                self._to(one, LifecycleState.UNLOADED, Unloaded(one.entry.name))
        return errors

    def _collect(self, errors: list[BaseException], one: Held, step: str, hook: Callable[[], object]) -> None:
        try:
            hook()
        except BaseException as error:  # noqa: BLE001  # Ctrl-C too: the others are torn down first, then it goes on
            error.add_note(f"in {step} of the extension {one.entry.name}")
            errors.append(error)
            hyerror(self._state, "{} of extension {} failed: {!r}", step, one.entry.name, error)
            self._events.emit(Error(one.entry.name, message=f"{step}: {error!r}"))

    def _to(self, one: Held, state: LifecycleState, event: LifecycleEvent) -> None:
        one.state = state
        self._events.emit(event)

    def _step(self, entry: PluginEntry, name: str) -> "_Step":
        return _Step(self, entry, name)

    def failed(self, entry: PluginEntry, message: str) -> None:
        """Say that a step of this extension failed."""
        one = self._held.get(entry.uuid)
        if one is not None:
            one.state = LifecycleState.FAILED
        self._events.emit(Error(entry.name, message=message))


class _Step:
    """Runs one step of one extension: what that raises becomes an InstanceCreateError that names both."""

    __slots__ = ("_entry", "_name", "_stack")

    def __init__(self, stack: ExtensionStack, entry: PluginEntry, name: str) -> None:
        self._stack, self._entry, self._name = stack, entry, name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # CompatibilityCheckFailed says all of it itself. What is no Exception (Ctrl-C) goes on as it is.
        if isinstance(error, Exception) and not isinstance(error, CompatibilityCheckFailed):
            self._stack.failed(self._entry, f"{self._name}: {_text(error)}")
            raise InstanceCreateError(self._entry.name, self._name, _text(error)) from error


def _found(name: str, catalog: PluginCatalog) -> PluginEntry:
    try:
        return catalog.get(name)
    except (PluginNotFound, DuplicatedKey):
        raise
    except Exception as error:
        raise InstanceCreateError(name, "import", _text(error)) from error


def _text(error: Exception) -> str:
    return f"{type(error).__qualname__}: {error}"
