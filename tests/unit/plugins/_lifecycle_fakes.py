"""Steps of a plugin that has no worker, and lifecycles over them in every state."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ringfence.plugins.errors import PluginCrashed
from ringfence.plugins.events import EventBus, LifecycleEvent
from ringfence.plugins.hooks import LifecycleHooks
from ringfence.plugins.lifecycle import PluginLifecycle
from ringfence.plugins.states import LifecycleState

S = LifecycleState


class FakeSteps:
    """Steps that write down what they are asked, and do what a test plants."""

    def __init__(self, name: str = "example") -> None:
        self.name = name
        self.events = EventBus()
        self.hooks = LifecycleHooks()
        self.did: list[str] = []
        self.planted: dict[str, Callable[[], object]] = {}
        self.seen: list[LifecycleEvent] = []
        self.events.subscribe(self.seen.append)

    def _do(self, what: str) -> None:
        self.did.append(what)
        if what in self.planted:
            self.planted[what]()

    def open(self) -> None:
        self._do("open")

    def run_export(self, name: str) -> None:
        self._do(name)

    def close(self) -> None:
        self._do("close")

    def replace(self) -> None:
        self._do("replace")

    def kinds(self) -> list[str]:
        return [event.event_name() for event in self.seen]


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


_WAY: dict[LifecycleState, tuple[str, ...]] = {
    S.CREATED: (),
    S.INITIALIZED: ("init",),
    S.RUNNING: ("init", "start"),
    S.STOPPED: ("init", "start", "stop"),
    S.UNLOADED: ("unload",),
}


def lifecycle_in(state: LifecycleState, steps: FakeSteps) -> PluginLifecycle:
    made = PluginLifecycle(steps)
    if state is S.FAILED:
        made.bring_up()
        made.fail(PluginCrashed(steps.name, "gone"))
    else:
        for operation in _WAY[state]:
            getattr(made, operation)()
    assert made.state is state
    steps.did.clear()
    steps.seen.clear()
    return made


@contextmanager
def in_thread(function: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Run `function` beside the block; yield what it raised, which is there after the block."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(20)
        assert not thread.is_alive()
