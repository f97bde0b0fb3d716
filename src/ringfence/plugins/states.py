"""The states of a plugin, what each of them accepts, and what has become of the plugin's worker."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

from ringfence.plugins.errors import InvalidState, PluginUnloaded

__all__ = [
    "ACCEPTS",
    "Crashed",
    "LifecycleState",
    "Operation",
    "PluginStatus",
    "Running",
    "Terminated",
    "accepted_in",
    "require",
]


class LifecycleState(StrEnum):
    """How far a plugin has come."""

    CREATED = "created"
    """Checked and ready; none of its code has run."""
    INITIALIZED = "initialized"
    """Its worker is up, its module was executed and its `init` returned."""
    RUNNING = "running"
    """Its `start` returned: the only state in which it can be called."""
    STOPPED = "stopped"
    """Its calls have ended and its `stop` was run, its `cleanup` not yet."""
    FAILED = "failed"
    """A step raised, or the worker died: there is no worker now."""
    UNLOADED = "unloaded"
    """Its `cleanup` was run, its worker is gone. Final."""

    ERROR = FAILED

    @property
    def label(self) -> str:
        """The name as errors show it: ``Running``."""
        return self.value.capitalize()


class Operation(StrEnum):
    """What can be asked of a plugin."""

    INIT = "init"
    START = "start"
    STOP = "stop"
    CLEANUP = "cleanup"
    CALL = "call"
    RELOAD = "reload"
    UNLOAD = "unload"
    RESTART = "restart"


_S = LifecycleState
_O = Operation

# `(state, operation) -> state after it`. What is not here is refused: InvalidState, or PluginUnloaded once UNLOADED.
ACCEPTS: Final[Mapping[tuple[LifecycleState, Operation], LifecycleState]] = {
    # Nothing has run: there is nothing to stop, to clean up or to replace. (New bytes are read by the `init`.)
    (_S.CREATED, _O.INIT): _S.INITIALIZED,
    (_S.CREATED, _O.UNLOAD): _S.UNLOADED,
    # It was never started, so `stop` would have nothing to undo; `unload` runs the `cleanup` that its `init` needs.
    # To restart is to bring back what ran, and this has not run yet: `start` is what is meant.
    (_S.INITIALIZED, _O.START): _S.RUNNING,
    (_S.INITIALIZED, _O.RELOAD): _S.INITIALIZED,
    (_S.INITIALIZED, _O.UNLOAD): _S.UNLOADED,
    # `cleanup` waits for `stop`, since calls may be in flight; `unload` does both. A second `init` or `start` is a
    # mistake of the caller, never silently nothing. `restart`: a plugin that answers with errors is still RUNNING.
    (_S.RUNNING, _O.CALL): _S.RUNNING,
    (_S.RUNNING, _O.STOP): _S.STOPPED,
    (_S.RUNNING, _O.RELOAD): _S.RUNNING,
    (_S.RUNNING, _O.UNLOAD): _S.UNLOADED,
    (_S.RUNNING, _O.RESTART): _S.RUNNING,
    # `init` begins again with a fresh worker, and `start` does not skip it: a started plugin was always initialised.
    # After `cleanup` nothing of the plugin is left: that is UNLOADED.
    (_S.STOPPED, _O.INIT): _S.INITIALIZED,
    (_S.STOPPED, _O.CLEANUP): _S.UNLOADED,
    (_S.STOPPED, _O.RELOAD): _S.STOPPED,
    (_S.STOPPED, _O.UNLOAD): _S.UNLOADED,
    (_S.STOPPED, _O.RESTART): _S.RUNNING,
    # No worker, so nothing to stop or to clean up in it. `init` alone would hide that the failure was seen: it takes a
    # `restart`, or a `reload` when the code was mended; both go all the way.
    (_S.FAILED, _O.RELOAD): _S.RUNNING,
    (_S.FAILED, _O.UNLOAD): _S.UNLOADED,
    (_S.FAILED, _O.RESTART): _S.RUNNING,
}


def accepted_in(operation: Operation) -> tuple[LifecycleState, ...]:
    """Return the states that accept `operation`, in the order of a plugin's life."""
    return tuple(state for state in LifecycleState if (state, operation) in ACCEPTS)


def require(state: LifecycleState, operation: Operation, plugin: str | None = None) -> LifecycleState:
    """Return the state that `operation` leads to from `state`.

    Raises:
        PluginUnloaded: the plugin was unloaded, after which it accepts nothing.
        InvalidState: it does not accept the operation now; the error names the states that do, and this one.
    """
    after = ACCEPTS.get((state, operation))
    if after is not None:
        return after
    if state is LifecycleState.UNLOADED:
        raise PluginUnloaded(plugin or "?")
    raise refusal(state.label, operation, plugin)


def refusal(actual: str, operation: Operation, plugin: str | None) -> InvalidState:
    """Return the error for an operation that is not accepted while the plugin is `actual`."""
    expected = " or ".join(state.label for state in accepted_in(operation))
    return InvalidState(expected, actual, plugin, operation.value)


class PluginStatus:
    """What is the matter with a plugin's worker: `Running`, `Crashed` or `Terminated`, for ``match``."""

    Running: ClassVar[type["Running"]]
    Crashed: ClassVar[type["Crashed"]]
    Terminated: ClassVar[type["Terminated"]]


@dataclass(frozen=True, slots=True)
class Running(PluginStatus):
    """The worker is up."""

    pid: int


@dataclass(frozen=True, slots=True)
class Crashed(PluginStatus):
    """The worker died. `exit_code` or `signal` says how; the other is None."""

    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Terminated(PluginStatus):
    """There is no worker: it was ended in good order, or none was started yet."""


PluginStatus.Running, PluginStatus.Crashed, PluginStatus.Terminated = Running, Crashed, Terminated
