"""Events and the bus that carries them."""

import threading

import pytest

from ringfence.plugins.events import (
    Created,
    Error,
    EventBus,
    Initialized,
    LifecycleEvent,
    Reloaded,
    Started,
    Stopped,
    Unloaded,
)


@pytest.fixture(name="bus")
def _bus() -> EventBus:
    return EventBus()


def test_events_say_what_happened_to_whom_and_when() -> None:
    """Name, time and kind, by attribute and by method; each kind is also found on the base."""
    event = Reloaded("p", 5.0, count=3)
    assert (event.plugin_name(), event.timestamp(), event.event_name()) == ("p", 5.0, "reloaded")
    kinds = (Created, Initialized, Started, Stopped, Reloaded, Unloaded, Error)
    for kind in kinds:
        assert getattr(LifecycleEvent, kind.__name__) is kind
        assert kind("p").event_name() == kind.__name__.lower()
    match event:
        case LifecycleEvent.Reloaded(name, count=count):
            assert (name, count) == ("p", 3)
        case _:
            pytest.fail("no match")


def test_times_increase_whatever_the_clock_does() -> None:
    """A clock that stands still or goes back."""
    now = [50.0]
    bus = EventBus(clock=lambda: now[0])
    first, second = bus.emit(Started("a")), bus.emit(Started("b"))
    now[0] = 10.0
    third = bus.emit(Started("c"))
    assert 50.0 == first.at < second.at < third.at
    now[0] = 60.0
    assert bus.emit(Started("d")).at == 60.0


def test_every_subscriber_hears_until_it_unsubscribes(bus: EventBus) -> None:
    """The same function may subscribe twice; each subscription ends alone, and may end twice."""
    seen: list[LifecycleEvent] = []
    first, second = bus.subscribe(seen.append), bus.subscribe(seen.append)
    bus.emit(Started("a"))
    first()
    first()
    bus.emit(Stopped("a"))
    second()
    bus.emit(Unloaded("a"))
    assert [event.event_name() for event in seen] == ["started", "started", "stopped"]


def test_a_subscriber_that_raises_hurts_nobody(bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    """The next one hears the event, the emitter goes on, and the log has the error."""
    seen: list[LifecycleEvent] = []
    bus.subscribe(lambda _event: 1 / 0)
    bus.subscribe(seen.append)
    bus.emit(Started("a"))
    assert len(seen) == 1
    assert "ZeroDivisionError" in caplog.text


def test_what_a_subscriber_emits_comes_after_what_it_was_told(bus: EventBus) -> None:
    """All hear the events in one order."""
    orders: list[list[str]] = [[], []]

    def first(event: LifecycleEvent) -> None:
        orders[0].append(event.event_name())
        if isinstance(event, Started):
            bus.emit(Stopped("a"))

    bus.subscribe(first)
    bus.subscribe(lambda event: orders[1].append(event.event_name()))
    bus.emit(Started("a"))
    assert orders == [["started", "stopped"]] * 2


def test_posting_runs_nobody(bus: EventBus) -> None:
    """What was posted is delivered with the next delivery."""
    seen: list[LifecycleEvent] = []
    bus.subscribe(seen.append)
    posted = bus.post(Started("a"))
    assert seen == []
    bus.deliver()
    assert seen == [posted]


def test_an_interrupt_in_a_subscriber_leaves_the_bus_working(bus: EventBus) -> None:
    """Ctrl-C goes up; later events are still delivered."""

    def interrupt(event: LifecycleEvent) -> None:
        if isinstance(event, Started):
            raise KeyboardInterrupt

    seen: list[LifecycleEvent] = []
    bus.subscribe(interrupt)
    bus.subscribe(seen.append)
    with pytest.raises(KeyboardInterrupt):
        bus.emit(Started("a"))
    bus.emit(Stopped("a"))
    assert [event.event_name() for event in seen] == ["stopped"]


def test_a_subscriber_must_be_callable(bus: EventBus) -> None:
    """Found out when it subscribes."""
    with pytest.raises(TypeError, match="cannot be called"):
        bus.subscribe(3)  # type: ignore[arg-type]


def test_many_threads_lose_no_event_and_share_one_order(bus: EventBus) -> None:
    """Each event once, in the order of its time, for every subscriber, never two at once."""
    seen: list[LifecycleEvent] = []
    inside = 0

    def subscriber(event: LifecycleEvent) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        seen.append(event)
        inside -= 1

    bus.subscribe(subscriber)

    def work(name: str) -> None:
        for _ in range(200):
            bus.emit(Started(name))

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 1200
    times = [event.at for event in seen]
    assert times == sorted(set(times))
