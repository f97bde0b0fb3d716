"""What functions of the host know of the call they serve."""

import logging
from collections.abc import Mapping

import pytest

from ringfence.plugins.context import DefaultHostContext, ExecutionContext, HostContext, NoopHostContext
from ringfence.plugins.errors import CallTimeout, CapabilityDenied, FsOpsExceeded, NetOpsExceeded, OutputExceeded
from ringfence.sandbox.capabilities import Capabilities


def test_capabilities_are_asked_for_by_any_name() -> None:
    """A refusal names the plugin; without capabilities nothing is granted."""
    context = ExecutionContext(Capabilities(["time:read"]), plugin="p")
    assert context.has_capability("sys:time")
    context.require_capability("time:read")
    with pytest.raises(CapabilityDenied) as caught:
        context.require_capability("fs:read", "open", "/x")
    assert caught.value.plugin == "p"
    assert not ExecutionContext().has_capability("time:read")


def test_each_limit_allows_as_much_as_it_says_and_no_more() -> None:
    """Limits are crossed above, not at, the number; the error has both."""
    context = ExecutionContext(max_output=10, max_fs_ops=1, max_net_ops=0)
    context.record_output(10)
    context.record_fs_op()
    with pytest.raises(OutputExceeded) as output:
        context.record_output(1)
    assert (output.value.limit, output.value.actual) == (10, 11)
    with pytest.raises(FsOpsExceeded):
        context.record_fs_op()
    with pytest.raises(NetOpsExceeded):
        context.record_net_op()
    free = ExecutionContext()
    for _ in range(1000):
        free.record_fs_op()
        free.record_net_op()
        free.record_output(10**9)


def test_time_by_the_injected_clock() -> None:
    """elapsed, and CallTimeout once it is above the timeout."""
    now = [100.0]
    context = ExecutionContext(timeout=5, clock=lambda: now[0])
    now[0] = 105.0
    assert context.elapsed() == 5
    context.check_timeout()
    now[0] = 105.5
    with pytest.raises(CallTimeout) as caught:
        context.check_timeout()
    assert (caught.value.limit, caught.value.actual) == (5, 5.5)
    context.reset()
    context.check_timeout()


def test_a_cancel_is_of_one_context_and_ends_with_a_reset() -> None:
    """Neither sticky nor shared; the host may cancel too."""
    one, other = ExecutionContext(), ExecutionContext()
    one.cancel()
    assert (one.is_cancelled, other.is_cancelled) == (True, False)
    one.set_custom("key", 1)
    assert one.get_custom("key") == 1
    one.reset()
    assert one.is_cancelled is False
    assert one.get_custom("key", "gone") == "gone"
    assert ExecutionContext(host=DefaultHostContext(cancelled=lambda: True)).is_cancelled


def test_contexts_are_numbered() -> None:
    """From 1 up, unless a number is given."""
    first, second = ExecutionContext(), ExecutionContext()
    assert second.engine_id > first.engine_id >= 1
    assert ExecutionContext(engine_id=7).engine_id == 7


def test_the_default_context_logs_and_hands_metrics_on(caplog: pytest.LogCaptureFixture) -> None:
    """Levels 0 to 4 become those of logging, and those outside the nearest; text is never a format."""
    metrics: list[tuple[str, str, float, Mapping[str, str]]] = []
    host = DefaultHostContext(metric=lambda *given: metrics.append(given))
    with caplog.at_level(1, "ringfence.plugins"):
        for say in (host.trace, host.debug, host.info, host.warn, host.error):
            say("100 %s")
        host.log(99, "loud")
        host.log(-1, "faint")
    assert [r.levelno for r in caplog.records] == [5, 10, 20, 30, 40, 40, 5]
    assert caplog.records[0].getMessage() == "100 %s"
    host.counter("c")
    host.gauge("g", 2, {"a": "b"})
    host.histogram("h", 3)
    assert metrics == [("counter", "c", 1.0, {}), ("gauge", "g", 2, {"a": "b"}), ("histogram", "h", 3, {})]
    assert host.should_cancel() is False
    with caplog.at_level(logging.DEBUG, "ringfence.plugins"):
        DefaultHostContext().counter("seen")
    assert "seen" in caplog.text


def test_the_other_contexts_do_what_they_say() -> None:
    """Noop does nothing; one of your own needs three methods."""
    noop = NoopHostContext()
    noop.error("x")
    noop.counter("x")
    assert noop.should_cancel() is False

    class Mine(HostContext):
        def __init__(self) -> None:
            self.seen: list[object] = []

        def log(self, level: int, message: str) -> None:
            self.seen.append((level, message))

        def record_metric(
            self, name: str, value: float, tags: Mapping[str, str] | None = None, *, kind: str = "gauge"
        ) -> None:
            self.seen.append((kind, name, value))

        def should_cancel(self) -> bool:
            return True

    mine = Mine()
    mine.warn("w")
    mine.counter("n", 2)
    assert mine.seen == [(3, "w"), ("counter", "n", 2)]
    assert ExecutionContext(host=mine).is_cancelled
