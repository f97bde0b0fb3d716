"""The lifecycle of a plugin over steps that record what they are asked."""

import contextvars
import itertools
import threading

import pytest
from _lifecycle_fakes import FakeSteps, in_thread, lifecycle_in, raising
from interrupted import interrupted_at

from ringfence.plugins import transitions
from ringfence.plugins.errors import (
    ExecutionFailed,
    InitializationFailed,
    InvalidState,
    PluginCrashed,
    PluginUnloaded,
    PoolTimeout,
    ReentrantCall,
    ReloadFailed,
)
from ringfence.plugins.events import LifecycleEvent
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.lifecycle import PluginLifecycle
from ringfence.plugins.states import ACCEPTS, LifecycleState, Operation

S, O = LifecycleState, Operation  # noqa: E741


@pytest.fixture(name="steps")
def _steps() -> FakeSteps:
    return FakeSteps()


@pytest.fixture(name="plugin")
def _plugin(steps: FakeSteps) -> PluginLifecycle:
    return PluginLifecycle(steps, drain_timeout=5.0)


def test_a_whole_life(steps: FakeSteps, plugin: PluginLifecycle) -> None:
    """The seed's example: exports and hooks run in their own transition, and each emits one event, in order."""
    log: list[str] = []
    plugin.set_hooks(
        LifecycleHooks()
        .on_init(lambda n: log.append(f"Initializing {n}"))
        .on_start(lambda n: log.append(f"Starting {n}"))
        .on_stop(lambda n: log.append(f"Stopping {n}"))
        .on_cleanup(lambda n: log.append(f"Cleaning up {n}"))
    )
    assert plugin.state is S.CREATED
    for operation, state, did in (
        ("init", S.INITIALIZED, ["open", "init"]),
        ("start", S.RUNNING, ["start"]),
        ("stop", S.STOPPED, ["stop"]),
        ("cleanup", S.UNLOADED, ["cleanup", "close"]),
    ):
        getattr(plugin, operation)()
        assert plugin.state is state
        assert steps.did == did
        steps.did.clear()
    assert log == ["Initializing example", "Starting example", "Stopping example", "Cleaning up example"]
    assert steps.kinds() == ["created", "initialized", "started", "stopped", "unloaded"]
    times = [event.at for event in steps.seen]
    assert times == sorted(set(times))


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("operation", list(O))
def test_every_cell_of_the_matrix(state: LifecycleState, operation: Operation) -> None:
    """Each of the 48 either leads where the table says, or raises and changes nothing."""
    steps = FakeSteps()
    made = lifecycle_in(state, steps)

    def act() -> None:
        if operation is O.CALL:
            with made.lease():
                pass
        else:
            getattr(made, operation.value)()

    after = ACCEPTS.get((state, operation))
    if after is not None:
        act()
        assert made.state is after
        return
    with pytest.raises(PluginUnloaded if state is S.UNLOADED else InvalidState) as caught:
        act()
    assert made.state is state
    assert steps.did == []
    assert steps.seen == []
    if isinstance(caught.value, InvalidState):
        assert caught.value.actual == state.label
        assert caught.value.expected
        assert "'example'" in str(caught.value)


def test_an_init_that_raises_fails_the_plugin_with_its_traceback(steps: FakeSteps, plugin: PluginLifecycle) -> None:
    """FAILED, InitializationFailed with the plugin's own traceback, the worker gone; a restart mends it."""
    steps.planted["init"] = raising(ExecutionFailed("example", "init", "ValueError", "bad", "File plugin.py, line 3"))
    told: list[BaseException] = []
    plugin.add_hooks(LifecycleHooks().on_error(lambda _n, error: told.append(error)))
    with pytest.raises(InitializationFailed, match=r"line 3") as caught:
        plugin.init()
    assert plugin.state is S.FAILED
    assert plugin.failure is caught.value
    assert told == [caught.value]
    assert steps.did == ["open", "init", "close"]
    assert steps.kinds() == ["created", "error"]
    with pytest.raises(InvalidState) as refused:
        plugin.lease()
    assert refused.value.__cause__ is caught.value
    steps.planted.clear()
    plugin.restart()
    assert plugin.state is S.RUNNING
    assert plugin.failure is None


@pytest.mark.parametrize("phase", ["init", "start"])
def test_an_error_of_a_hook_before_running_fails_the_transition(steps: FakeSteps, phase: str) -> None:
    """on_init and on_start hooks have a veto: the plugin's own export is not run then."""
    made = PluginLifecycle(steps)
    getattr(steps.hooks, f"on_{phase}")(lambda _n: 1 / 0)
    with pytest.raises(InitializationFailed, match=f"on_{phase} hook raised ZeroDivisionError"):
        made.bring_up()
    assert made.state is S.FAILED
    assert phase not in steps.did


def test_errors_on_the_way_down_are_raised_together_at_the_end(steps: FakeSteps) -> None:
    """Hooks, stop and cleanup all fail; each step is done all the same, and nothing is kept quiet."""
    made = lifecycle_in(S.RUNNING, steps)
    steps.hooks.on_stop(lambda _n: 1 / 0).on_cleanup(lambda _n: [][0])
    steps.planted["stop"] = raising(ExecutionFailed("example", "stop", "ValueError", "no"))
    steps.planted["cleanup"] = raising(ExecutionFailed("example", "cleanup", "KeyError", "no"))
    with pytest.raises(ExceptionGroup) as caught:
        made.unload()
    assert [type(error) for error in caught.value.exceptions] == [
        ZeroDivisionError,
        ExecutionFailed,
        IndexError,
        ExecutionFailed,
    ]
    assert made.state is S.UNLOADED
    assert steps.did == ["stop", "cleanup", "close"]
    assert steps.kinds() == ["stopped", "unloaded"]


def test_a_worker_that_dies_in_stop_is_not_asked_to_clean_up(steps: FakeSteps) -> None:
    """Its death is the one error that is reported."""
    made = lifecycle_in(S.RUNNING, steps)
    steps.planted["stop"] = raising(PluginCrashed("example", "signal 9", None, 9))
    with pytest.raises(ExceptionGroup) as caught:
        made.unload()
    assert len(caught.value.exceptions) == 1
    assert steps.did == ["stop", "close"]


def test_of_two_overlapping_stops_one_wins(steps: FakeSteps) -> None:
    """The other gets InvalidState, and hooks and export run once."""
    made = lifecycle_in(S.RUNNING, steps)
    hooked: list[str] = []
    steps.hooks.on_stop(hooked.append)
    inside, go_on = threading.Event(), threading.Event()
    steps.planted["stop"] = lambda: (inside.set(), go_on.wait(20))
    with in_thread(made.stop) as first:
        assert inside.wait(20)
        with in_thread(made.stop) as second:
            go_on.set()
    assert first == []
    assert [type(error) for error in second] == [InvalidState]
    assert hooked == ["example"]
    assert steps.did == ["stop"]
    assert steps.kinds() == ["stopped"]


def test_stop_waits_for_calls_and_refuses_new_ones(steps: FakeSteps) -> None:
    """A call in flight ends before `stop` is run; one that comes meanwhile is refused at once."""
    made = lifecycle_in(S.RUNNING, steps)
    stopping = threading.Event()
    steps.hooks.on_stop(lambda _n: stopping.set())
    lease = made.lease()
    with in_thread(made.stop) as raised:
        assert stopping.wait(20)
        with pytest.raises(InvalidState, match="Stopping"):
            made.lease()
        assert "stop" not in steps.did
        lease.release()
        lease.release()
    assert raised == []
    assert steps.did == ["stop"]
    assert made.calls_in_flight == 0


def test_calls_that_do_not_end_are_killed(steps: FakeSteps) -> None:
    """After the drain timeout the worker is ended, and the error says so; no export can run then."""
    made = PluginLifecycle(steps, drain_timeout=0.01)
    made.bring_up()
    steps.did.clear()
    lease = made.lease()
    with pytest.raises(ExceptionGroup) as caught:
        made.stop()
    assert isinstance(caught.value.exceptions[0], PoolTimeout)
    assert made.state is S.STOPPED
    assert steps.did == ["close"]
    lease.release()
    made.cleanup()
    assert steps.did == ["close"]


def test_a_transition_inside_a_call_of_the_plugin_would_wait_for_itself(steps: FakeSteps) -> None:
    """ReentrantCall, also from another thread that runs in a copy of the call's context."""
    made = lifecycle_in(S.RUNNING, steps)
    with made.lease():
        with pytest.raises(ReentrantCall):
            made.unload()
        context = contextvars.copy_context()
        with in_thread(lambda: context.run(made.reload)) as raised:
            pass
        assert isinstance(raised[0], ReentrantCall)
    made.unload()


@pytest.mark.parametrize("operation", ["init", "start", "stop", "cleanup", "unload", "restart", "reload", "bring_up"])
@pytest.mark.parametrize("phase", ["init", "start", "stop", "cleanup"])
def test_a_hook_that_calls_back_gets_an_error_and_no_deadlock(phase: str, operation: str) -> None:
    """A transition cannot begin inside another of the same plugin."""
    steps = FakeSteps()
    made = PluginLifecycle(steps)
    raised: list[BaseException] = []

    def hook(_name: str) -> None:
        try:
            getattr(made, operation)()
        except BaseException as error:
            raised.append(error)

    getattr(steps.hooks, f"on_{phase}")(hook)
    made.bring_up()
    made.unload()
    if operation == "bring_up" and phase == "stop":
        assert raised == []  # it is RUNNING still: nothing to do
    else:
        assert isinstance(raised[0], InvalidState)
    assert made.state is S.UNLOADED


def test_a_subscriber_may_ask_for_the_next_transition(steps: FakeSteps, plugin: PluginLifecycle) -> None:
    """Events arrive when the transition is over, so `Error` can be answered with a restart."""
    plugin.bring_up()

    def again(event: LifecycleEvent) -> None:
        if isinstance(event, LifecycleEvent.Error):
            plugin.restart()

    steps.events.subscribe(again)
    steps.seen.clear()
    assert plugin.fail(PluginCrashed("example", "signal 11", None, 11))
    assert plugin.state is S.RUNNING
    assert steps.kinds() == ["error", "initialized", "started"]


def test_unload_of_a_failed_plugin_runs_no_code_of_it(steps: FakeSteps) -> None:
    """Its worker is gone; the host's on_cleanup hooks still release what on_init took."""
    made = lifecycle_in(S.FAILED, steps)
    cleaned: list[str] = []
    steps.hooks.on_cleanup(cleaned.append)
    made.unload()
    assert steps.did == ["close"]
    assert cleaned == ["example"]


def test_unload_of_a_plugin_that_never_ran_calls_nothing(steps: FakeSteps, plugin: PluginLifecycle) -> None:
    """CREATED has no worker, and owes nobody a cleanup."""
    steps.hooks.on_cleanup(lambda _n: pytest.fail("nothing to clean up"))
    plugin.unload()
    assert steps.did == []
    assert steps.kinds() == ["created", "unloaded"]


def test_init_when_stopped_begins_again_with_a_fresh_worker(steps: FakeSteps) -> None:
    """What was stopped is cleaned up first; the plugin does not hear of it twice."""
    made = lifecycle_in(S.STOPPED, steps)
    made.init()
    assert steps.did == ["cleanup", "close", "open", "init"]
    assert made.state is S.INITIALIZED


def test_restart_of_a_running_plugin_stops_it_first(steps: FakeSteps) -> None:
    """Each state that it goes through emits its event."""
    made = lifecycle_in(S.RUNNING, steps)
    made.restart()
    assert steps.did == ["stop", "cleanup", "close", "open", "init", "start"]
    assert steps.kinds() == ["stopped", "initialized", "started"]


def test_a_restart_that_nobody_asked_for_runs_no_hooks(steps: FakeSteps) -> None:
    """After a crash the plugin comes back without user code in the host."""
    made = lifecycle_in(S.FAILED, steps)
    for phase in ("init", "start", "stop", "cleanup"):
        getattr(steps.hooks, f"on_{phase}")(lambda _n: pytest.fail("no hook"))
    made.restart(hooks=False)
    assert made.state is S.RUNNING


def test_a_restart_finishes_although_the_old_worker_complains(steps: FakeSteps) -> None:
    """The plugin is RUNNING again, and what `stop` raised is raised afterwards."""
    made = lifecycle_in(S.RUNNING, steps)
    steps.planted["stop"] = raising(ExecutionFailed("example", "stop", "ValueError", "no"))
    with pytest.raises(ExceptionGroup):
        made.restart()
    assert made.state is S.RUNNING


def test_reload_counts_and_keeps_the_state(steps: FakeSteps) -> None:
    """One Reloaded event with its number, for each reload."""
    made = lifecycle_in(S.RUNNING, steps)
    made.reload()
    made.reload()
    assert made.reload_count == 2
    assert made.last_reload is not None
    assert steps.did == ["replace", "replace"]
    assert [(e.event_name(), getattr(e, "count", None)) for e in steps.seen] == [("reloaded", 1), ("reloaded", 2)]


def test_a_reload_that_fails_leaves_the_old_version(steps: FakeSteps) -> None:
    """RUNNING still, ReloadFailed with the cause, one error event."""
    made = lifecycle_in(S.RUNNING, steps)
    steps.planted["replace"] = raising(SyntaxError("bad"))
    with pytest.raises(ReloadFailed, match="bad") as caught:
        made.reload()
    assert isinstance(caught.value.__cause__, SyntaxError)
    assert made.state is S.RUNNING
    assert made.reload_count == 0
    assert steps.kinds() == ["error"]
    with made.lease():
        pass


def test_a_failed_plugin_is_reloaded_by_starting_it(steps: FakeSteps) -> None:
    """There is no old version to go on with."""
    made = lifecycle_in(S.FAILED, steps)
    made.reload()
    assert made.state is S.RUNNING
    assert steps.did == ["close", "open", "init", "start"]
    assert steps.kinds() == ["reloaded"]


def test_calls_go_on_during_a_reload_and_the_old_ones_are_waited_for(steps: FakeSteps) -> None:
    """`drain_previous` waits for calls from before the switch, and for none from after it."""
    made = lifecycle_in(S.RUNNING, steps)
    old = made.lease()
    replacing, waiting = threading.Event(), threading.Event()
    drained: list[bool] = []

    def replace() -> None:
        replacing.set()
        waiting.wait(20)
        drained.append(made.drain_previous())

    steps.planted["replace"] = replace
    with in_thread(made.reload) as raised:
        assert replacing.wait(20)
        during = made.lease()  # before the switch: the old version's too
        waiting.set()
        old.release()
        during.release()
    assert raised == []
    assert drained == [True]


def test_drain_previous_gives_up_after_its_time(steps: FakeSteps) -> None:
    """Whoever replaces the worker learns that it has to kill calls."""
    made = lifecycle_in(S.RUNNING, steps)
    lease = made.lease()
    assert made.drain_previous(0.0) is False
    new = made.lease()
    lease.release()
    assert made.drain_previous(0.0) is False  # the second generation's
    new.release()
    assert made.drain_previous(0.0) is True


def test_a_death_during_a_transition_counts_at_its_end(steps: FakeSteps, plugin: PluginLifecycle) -> None:
    """The worker died just after `start` had returned: FAILED, not RUNNING without a worker."""
    crash = PluginCrashed("example", "gone")
    steps.planted["start"] = lambda: plugin.fail(crash)
    plugin.bring_up()
    assert plugin.state is S.FAILED
    assert plugin.failure is crash
    assert steps.kinds() == ["created", "initialized", "started", "error"]


def test_the_death_of_a_worker_that_was_replaced_is_no_news(steps: FakeSteps) -> None:
    """It was reported during the reload, or too late: the plugin has another worker now."""
    made = lifecycle_in(S.RUNNING, steps)
    steps.planted["replace"] = lambda: made.fail(PluginCrashed("example", "the old one"))
    made.reload()
    assert made.state is S.RUNNING
    assert not made.fail(PluginCrashed("example", "the old one"), current=lambda: False)
    steps.planted["replace"] = lambda: made.fail(PluginCrashed("example", "the new one"), current=lambda: True)
    made.reload()
    assert made.state is S.FAILED


def test_the_death_of_the_old_worker_matters_when_the_reload_failed(steps: FakeSteps) -> None:
    """Nothing is left to go on with."""
    made = lifecycle_in(S.RUNNING, steps)

    def replace() -> None:
        made.fail(PluginCrashed("example", "the old one"))
        raise ReloadFailed("example", "and the new one too")

    steps.planted["replace"] = replace
    with pytest.raises(ReloadFailed):
        made.reload()
    assert made.state is S.FAILED


def test_a_worker_that_is_ended_on_purpose_does_not_fail_the_plugin(steps: FakeSteps) -> None:
    """Its end may be reported as a death while it is closed."""
    made = lifecycle_in(S.RUNNING, steps)
    steps.planted["close"] = lambda: made.fail(PluginCrashed("example", "killed"))
    made.restart()
    assert made.state is S.RUNNING
    made.unload()
    assert made.state is S.UNLOADED
    assert not made.fail(PluginCrashed("example", "late"))


def test_a_call_can_wait_for_a_restart(steps: FakeSteps) -> None:
    """While the plugin is on its way to RUNNING a call with patience gets its turn."""
    made = lifecycle_in(S.FAILED, steps)
    opening, go_on = threading.Event(), threading.Event()
    steps.planted["open"] = lambda: (opening.set(), go_on.wait(20))
    with in_thread(made.restart) as raised:
        assert opening.wait(20)
        with pytest.raises(InvalidState):
            made.lease()
        go_on.set()
        with made.lease(wait=20):
            assert made.calls_in_flight == 1
    assert raised == []


def test_a_call_from_within_the_restart_does_not_wait_for_it(steps: FakeSteps) -> None:
    """`init` asks its host for a call of the same plugin: refused, whatever patience."""
    made = lifecycle_in(S.FAILED, steps)
    raised: list[BaseException] = []

    def init() -> None:
        try:
            made.lease(wait=60)
        except InvalidState as error:
            raised.append(error)

    steps.planted["init"] = init
    made.restart()
    assert len(raised) == 1


def test_an_interrupt_in_a_step_leaves_no_half_way_state(steps: FakeSteps) -> None:
    """Ctrl-C goes up to the caller, and the plugin is FAILED with its worker closed; it can still be unloaded."""
    made = lifecycle_in(S.RUNNING, steps)
    steps.planted["stop"] = raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        made.stop()
    assert made.state is S.FAILED
    assert steps.did == ["stop", "close"]
    made.unload()


@pytest.mark.parametrize("operation", ["init", "bring_up"])
def test_an_interrupt_at_any_moment_lets_others_have_their_turn(operation: str) -> None:
    """Also between the lock and what it guards: who comes next is not told that a transition is under way."""
    for moment in itertools.count(1):
        made = PluginLifecycle(FakeSteps(), patience=2.0)
        try:
            with interrupted_at(moment, transitions):
                getattr(made, operation)()
        except KeyboardInterrupt:
            with in_thread(made.unload) as raised:
                pass
            assert (raised, made.state) == ([], S.UNLOADED), moment
        else:
            break
    assert moment > 15


def test_a_transition_waits_for_another_only_so_long(steps: FakeSteps) -> None:
    """A plugin that hangs in `stop` blocks nobody else for ever."""
    made = PluginLifecycle(steps, patience=0.01)
    made.bring_up()
    inside, go_on = threading.Event(), threading.Event()
    steps.planted["stop"] = lambda: (inside.set(), go_on.wait(20))
    with in_thread(made.stop) as raised:
        assert inside.wait(20)
        with pytest.raises(InvalidState, match="Stopping"):
            made.unload()
        go_on.set()
    assert raised == []


def test_the_context_manager_brings_up_and_unloads(steps: FakeSteps) -> None:
    """init and start at the beginning, stop and cleanup at the end, also when unloaded in between."""
    with PluginLifecycle(steps) as made:
        assert made.state is S.RUNNING
    assert made.state is S.UNLOADED
    assert steps.did == ["open", "init", "start", "stop", "cleanup", "close"]
    with PluginLifecycle(FakeSteps()) as made:
        made.unload()


def test_bring_up_does_what_is_missing() -> None:
    """From CREATED, INITIALIZED and STOPPED to RUNNING; nothing when it is RUNNING; an error when it is FAILED."""
    for state in (S.CREATED, S.INITIALIZED, S.STOPPED):
        made = lifecycle_in(state, FakeSteps())
        assert made.bring_up() is True
        assert made.state is S.RUNNING
        assert made.bring_up() is False
    with pytest.raises(InvalidState):
        lifecycle_in(S.FAILED, FakeSteps()).bring_up()
    with pytest.raises(PluginUnloaded):
        lifecycle_in(S.UNLOADED, FakeSteps()).bring_up()


def test_a_handle_has_one_lifecycle(steps: FakeSteps, plugin: PluginLifecycle) -> None:
    """PluginLifecycle(handle) is the handle's own, in the state it is in."""

    class Handle:
        lifecycle = plugin

    plugin.bring_up()
    assert PluginLifecycle(Handle()) is plugin  # type: ignore[arg-type]
    assert plugin.state is S.RUNNING


def test_many_threads_find_a_state_that_the_table_allows() -> None:
    """Whatever is asked by whom and when: only the documented errors, and one event for each transition."""
    steps = FakeSteps()
    made = PluginLifecycle(steps)
    wrong: list[BaseException] = []

    def worker(first: int) -> None:
        operations = ["bring_up", "stop", "reload", "restart", "init", "start"]
        for turn in range(60):
            try:
                getattr(made, operations[(first + turn) % len(operations)])()
            except InvalidState:
                pass
            except BaseException as error:
                wrong.append(error)
            try:
                with made.lease():
                    assert "open" in steps.did
            except InvalidState:
                pass

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    made.unload()
    assert steps.did.count("open") == steps.did.count("close")
    kinds = steps.kinds()
    assert kinds.count("initialized") == steps.did.count("init")
    assert kinds.count("started") == steps.did.count("start")
    assert kinds.count("stopped") == steps.did.count("stop")
    assert kinds.count("unloaded") == 1
    times = [event.at for event in steps.seen]
    assert times == sorted(set(times))
