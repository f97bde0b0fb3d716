"""The table of states and operations."""

import pytest

from ringfence.plugins.errors import InvalidState, PluginUnloaded
from ringfence.plugins.states import (
    ACCEPTS,
    Crashed,
    LifecycleState,
    Operation,
    PluginStatus,
    Running,
    Terminated,
    accepted_in,
    require,
)

S, O = LifecycleState, Operation  # noqa: E741


def test_the_states_have_the_documented_names() -> None:
    """Six of them; ERROR is another name of FAILED; they are text."""
    assert [state.value for state in S] == ["created", "initialized", "running", "stopped", "failed", "unloaded"]
    assert S.ERROR is S.FAILED
    assert S.RUNNING == "running"
    assert S.RUNNING.label == "Running"


@pytest.mark.parametrize(
    ("state", "accepted"),
    [
        (S.CREATED, {O.INIT, O.UNLOAD}),
        (S.INITIALIZED, {O.START, O.RELOAD, O.UNLOAD}),
        (S.RUNNING, {O.CALL, O.STOP, O.RELOAD, O.UNLOAD, O.RESTART}),
        (S.STOPPED, {O.INIT, O.CLEANUP, O.RELOAD, O.UNLOAD, O.RESTART}),
        (S.FAILED, {O.RELOAD, O.UNLOAD, O.RESTART}),
        (S.UNLOADED, set()),
    ],
)
def test_each_state_accepts_what_is_documented(state: S, accepted: set[O]) -> None:
    """And nothing else."""
    assert {operation for operation in O if (state, operation) in ACCEPTS} == accepted


def test_every_state_but_the_last_can_be_left_for_the_last() -> None:
    """Whatever has happened to a plugin, it can be unloaded, and only unload and cleanup end there."""
    assert accepted_in(O.UNLOAD) == tuple(state for state in S if state is not S.UNLOADED)
    assert {operation for (_, operation), after in ACCEPTS.items() if after is S.UNLOADED} == {O.UNLOAD, O.CLEANUP}


def test_refusals_name_both_states() -> None:
    """expected (several, if several would do), actual, and the plugin; PluginUnloaded at the end."""
    assert require(S.RUNNING, O.STOP, "p") is S.STOPPED
    with pytest.raises(InvalidState) as caught:
        require(S.STOPPED, O.CALL, "p")
    assert (caught.value.expected, caught.value.actual) == ("Running", "Stopped")
    assert "call of plugin 'p'" in str(caught.value)
    with pytest.raises(InvalidState, match="Created or Stopped"):
        require(S.RUNNING, O.INIT)
    for operation in O:
        with pytest.raises(PluginUnloaded):
            require(S.UNLOADED, operation, "p")


def test_statuses_are_for_match() -> None:
    """With the classes' names or as attributes of PluginStatus."""

    def say(status: PluginStatus) -> str:
        match status:
            case PluginStatus.Running(pid):
                return f"running {pid}"
            case Crashed(exit_code=None, signal=signal):
                return f"signal {signal}"
            case Crashed(exit_code):
                return f"exit {exit_code}"
            case Terminated():
                return "gone"
        return "?"

    assert [say(s) for s in (Running(7), Crashed(signal=11), Crashed(3), Terminated())] == [
        "running 7",
        "signal 11",
        "exit 3",
        "gone",
    ]
    with pytest.raises(AttributeError):
        Running(7).pid = 8  # type: ignore[misc]
