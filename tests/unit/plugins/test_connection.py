"""A connection believes its guest nothing: what breaks the protocol costs the guest, and nobody waits for ever."""

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import interrupted_at
from waiting import wait_until

from ringfence.errors import PluginError
from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.plugins import asides, connection
from ringfence.plugins.connection import Connection
from ringfence.plugins.errors import (
    CallTimeout,
    ExecutionFailed,
    OutputExceeded,
    PluginCrashed,
    ProtocolMismatch,
    ValueConversionError,
)
from ringfence.plugins.switchboard import Switchboard
from ringfence.plugins.threads import Threads
from ringfence.pool.errors import WorkerCrashed
from ringfence.pool.future import PoolFuture

FAILURE = {
    "kind": "exception", "module": "builtins", "type": "ValueError", "bases": ["ValueError"], "args": ["bad"],
    "message": "bad", "traceback": "Traceback", "notes": [],
}  # fmt: skip


class FakeSession:
    """A session whose worker is this test: it is gone as soon as it is killed."""

    may_look = True

    def __init__(self) -> None:
        near, far = socket.socketpair()
        self.fd = near.detach()
        self.far = far
        self.ended = PoolFuture()
        self.on_output: Any = None
        self.killed: list[BaseException | None] = []
        self.under_way: set[int] = set()
        self._is_gone = False

    def begin(self, work: int) -> None:
        """As Session."""
        self.under_way.add(work)

    def end(self, work: int) -> None:
        """As Session."""
        self.under_way.discard(work)

    def kill(self, error: BaseException | None = None) -> None:
        """As Session: the worker's end is told by `ended`."""
        self.killed.append(error)
        self.gone(error or WorkerCrashed("killed", None, 9))

    def gone(self, error: BaseException | None) -> None:
        """The worker ends."""
        with contextlib.suppress(OSError):
            self.far.close()
        if not self._is_gone:
            self._is_gone = True
            threading.Thread(target=self.ended.resolve, args=(None, error)).start()


class FakeHost:
    """A host that notes what it is told."""

    name = "p"

    def __init__(self) -> None:
        self.own = Threads(4, "host")
        self.logs: list[tuple[int, str, str]] = []
        self.metrics: list[tuple[str, str, float]] = []
        self.denied: list[tuple[str, str, str, str]] = []

    def threads(self, depth: int) -> Threads:
        """The same threads at every depth."""
        return self.own

    def host_call(self, inside: str, function: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Echo, or fail."""
        if function == "fail":
            raise KeyError("no")
        if function == "odd":
            return object()
        return [inside, function, args, kwargs]

    def on_log(self, level: int, logger: str, message: str, origin: Mapping[str, Any]) -> None:
        """Note it."""
        self.logs.append((level, logger, message))

    def on_metric(self, kind: str, name: str, value: float, tags: Mapping[str, Any]) -> None:
        """Note it."""
        self.metrics.append((kind, name, value))

    def on_denied(self, capability: str, operation: str, target: str, needs: str) -> None:
        """Note it."""
        self.denied.append((capability, operation, target, needs))


class Talk:
    """A connection, its host, and the guest's end, played by the test."""

    def __init__(self, **options: Any) -> None:
        self.board = Switchboard()
        self.session = FakeSession()
        self.host = FakeHost()
        self.connection = Connection(self.board, self.session, self.host, **options)  # type: ignore[arg-type]
        self.guest = Channel(os.dup(self.session.far.fileno()), blocking=True)
        self.codec = Codec()

    def say(self, *message: Any) -> None:
        """Say a message as the guest; that the host has hung up is no error."""
        with contextlib.suppress(Exception):
            self.guest.send(self.codec.pack(list(message)))

    def hear(self) -> list[Any]:
        """Return the next message of the host."""
        found: list[Any] = self.codec.unpack(self.guest.recv())
        return found

    def serve(self) -> None:
        """Greet and load."""
        loading = self.connection.load({"name": "p"})
        self.say(g.HELLO, g.PROTOCOL_VERSION, {})
        self.say(g.LOADED, {"functions": {}})
        assert loading.result(10) == {"functions": {}}
        assert self.hear()[0] == g.LOAD

    def close(self) -> None:
        """End everything."""
        self.session.gone(None)
        self.connection.ended.result(10)
        self.guest.close()
        self.board.close()
        self.host.own.close()
        self.host.own.join()


@pytest.fixture
def talk() -> Iterator[Talk]:
    """A guest that has loaded its plugin."""
    made = Talk(output=1000)
    made.serve()
    yield made
    made.close()


def test_answers_go_to_their_calls_in_any_order(talk: Talk) -> None:
    """Calls overlap."""
    first, second = (talk.connection.call("f", [n], {}, 10) for n in (1, 2))
    calls = [talk.hear(), talk.hear()]
    assert [call[3] for call in calls] == [[1], [2]]
    talk.say(g.RESULT, calls[1][1], "two")
    talk.say(g.ERROR, calls[0][1], FAILURE)
    assert second.result(10) == "two"
    with pytest.raises(ExecutionFailed, match="ValueError: bad"):
        first.result(10)
    wait_until(lambda: not talk.session.under_way)


@pytest.mark.parametrize(
    "message",
    [
        [g.RESULT, 1 << 40, None],
        [g.RESULT, -1, None],
        [g.RESULT, 1],
        [g.RESULT, "1", None],
        [g.ERROR, 1, {"kind": "exception"}],
        [g.LOADED, {}],
        [g.HELLO, 1, {}],
        [g.CALL, 1, "f", [], {}],
        [999, 1],
        ["text"],
        [],
        7,
        {"tag": 23},
        [g.LOG, 1, "logger", 5, {}],
        [g.HOST_CALL, 1, 0, "f", [], {1: 2}],
        [g.METRIC, "counter", "n", 1, {}],
    ],
    ids=str,
)
def test_what_the_protocol_does_not_allow_ends_the_guest(talk: Talk, message: Any) -> None:
    """Its worker is killed, and the call that waits fails."""
    waiting = talk.connection.call("f", [], {}, 30)
    number = talk.hear()[1]
    if isinstance(message, list) and message[:2] == [g.ERROR, 1]:
        message = [g.ERROR, number, message[2]]
    with contextlib.suppress(Exception):
        talk.guest.send(talk.codec.pack(message))
    with pytest.raises(PluginCrashed, match="protocol"):
        waiting.result(10)
    assert talk.session.killed


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xff\xff\xff", struct.pack("<I", 0), b"\x00\x00\x00\x01\xc1", os.urandom(64), b"GET / HTTP/1.1\r\n\r\n"],
    ids=["huge", "empty", "no msgpack", "noise", "http"],
)
def test_bytes_that_are_no_frame_end_the_guest(talk: Talk, raw: bytes) -> None:
    """Or the call's time does, where they promise a frame that never comes."""
    waiting = talk.connection.call("f", [], {}, 1.0)
    talk.hear()
    talk.session.far.sendall(raw)
    with pytest.raises((PluginCrashed, CallTimeout)):
        waiting.result(10)
    assert talk.session.killed


def test_one_answer_is_enough(talk: Talk) -> None:
    """A second one is dropped where it may have crossed a cancellation, and never resolves another call."""
    one = talk.connection.call("f", [], {}, 10)
    number = talk.hear()[1]
    talk.say(g.RESULT, number, "first")
    assert one.result(10) == "first"
    two = talk.connection.call("f", [], {}, 10)
    other = talk.hear()[1]
    talk.say(g.RESULT, number, "again")
    talk.say(g.RESULT, other, "second")
    assert two.result(10) == "second"


def test_a_time_out_asks_for_the_stack_and_then_kills(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """CANCEL first; an answer after that is too late."""
    monkeypatch.setattr(connection, "_LAST_WORDS", 1.0)
    waiting = talk.connection.call("slow", [], {}, 0.1)
    number = talk.hear()[1]
    assert talk.hear() == [g.CANCEL, number]
    talk.session.on_output("stderr", b"--- stacks ---\n  File main.py, line 3, in slow\n--- end of stacks ---\n")
    with pytest.raises(CallTimeout) as caught:
        waiting.result(10)
    assert "line 3, in slow" in "".join(caught.value.__notes__)
    assert talk.session.killed


def answer_and_expire(talk: Talk, *messages: list[Any]) -> None:
    """Say all that as the guest, and let a call's time be up, before the host has heard any of it."""

    def together() -> None:
        for message in messages:
            talk.say(*message)
        talk.connection._check_deadlines()

    talk.board.soon(together)


def test_an_answer_in_the_last_moment_counts(talk: Talk) -> None:
    """It is in the socket when the call's time is up, behind a record that it has to be looked for twice."""
    waiting = talk.connection.call("f", [], {}, 30)
    number = talk.hear()[1]
    talk.connection._calls[number].deadline = 0.0
    answer_and_expire(talk, [g.LOG, 2, "logger", "x" * 90_000, {}], [g.RESULT, number, "just"])
    assert waiting.result(10) == "just"
    assert not talk.session.killed


def test_an_answer_in_the_last_moment_counts_whoever_is_to_hear_it(talk: Talk) -> None:
    """The caller who waits by himself has been woken by it, and had no turn yet."""
    connection = talk.connection
    future = connection.call("f", [], {}, 30)
    number = talk.hear()[1]
    call = connection._calls[number]
    assert connection._take_over()
    call.deadline = 0.0
    talk.say(g.RESULT, number, "just")
    talk.board.soon(connection._check_deadlines)
    wait_until(lambda: connection._owes_check)
    talk.board.at(time.monotonic(), talk.board.close)  # what was to be done before it has been done
    talk.board._thread.join()  # type: ignore[union-attr]
    assert not future.done()
    assert not call.expired
    connection._hear()
    connection._give_back()
    assert future.result(10) == "just"


def test_a_guest_that_says_other_things_is_late_all_the_same(talk: Talk) -> None:
    """However much it says."""
    waiting = talk.connection.call("f", [], {}, 30)
    number = talk.hear()[1]
    talk.connection._calls[number].deadline = 0.0
    answer_and_expire(talk, *[[g.LOG, 2, "logger", "x" * 60_000, {}]] * 3)
    assert talk.hear() == [g.CANCEL, number]
    with pytest.raises(CallTimeout):
        waiting.result(10)
    assert talk.session.killed


def test_an_answer_that_takes_long_to_read_came_in_time(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call's time is up while it is read, in a thread of its own."""
    connection, take = talk.connection, talk.connection._take

    def take_long(body: bytes) -> None:
        connection._calls[number].deadline = 0.0
        connection._board.soon(connection._check_deadlines)
        wait_until(lambda: connection._owes_check)
        take(body)

    monkeypatch.setattr(connection, "_take", take_long)
    waiting = connection.call("f", [], {}, 30)
    number = talk.hear()[1]
    talk.say(g.RESULT, number, bytes(1 << 20))
    assert waiting.result(10) == bytes(1 << 20)
    assert not talk.session.killed


def test_a_call_that_never_began_costs_no_worker(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest says so when it is cancelled, and lives on."""
    monkeypatch.setattr(connection, "_LAST_WORDS", 10.0)
    waiting = talk.connection.call("late", [], {}, 0.1)
    number = talk.hear()[1]
    assert talk.hear() == [g.CANCEL, number]
    talk.say(g.ERROR, number, {**FAILURE, "kind": "cancelled"})
    with pytest.raises(CallTimeout):
        waiting.result(10)
    assert not talk.session.killed
    after = talk.connection.call("f", [], {}, 10)
    talk.say(g.RESULT, talk.hear()[1], 1)
    assert after.result(10) == 1


def test_all_that_wait_are_told_when_the_worker_dies(talk: Talk) -> None:
    """With how it died."""
    waiting = [talk.connection.call("f", [], {}, 30) for _ in range(5)]
    talk.session.gone(WorkerCrashed("worker 5 exited with code 3", 3))
    for future in waiting:
        error = future.exception(10)
        assert isinstance(error, PluginCrashed)
        assert error.exit_code == 3
    with pytest.raises(PluginCrashed):
        talk.connection.call("f", [], {}, 1).result(10)


def test_answers_sent_before_death_count(talk: Talk) -> None:
    """What was said was said."""
    waiting = talk.connection.call("f", [], {}, 30)
    talk.say(g.RESULT, talk.hear()[1], "last words")
    talk.session.gone(WorkerCrashed("gone", 1))
    assert waiting.result(10) == "last words"


def test_arguments_that_cannot_cross_are_named_and_nothing_is_sent(talk: Talk) -> None:
    """The guest does not hear of it."""
    with pytest.raises(ValueConversionError, match="argument 2"):
        talk.connection.call("f", [1, object()], {}, 10)
    with pytest.raises(ValueConversionError, match="key"):
        talk.connection.call("f", [], {"key": {"a": lambda: 1}}, 10)
    assert not talk.session.under_way


def test_host_functions_answer_by_number_and_leak_no_traceback(talk: Talk) -> None:
    """Also when they fail, or return what cannot cross."""
    talk.say(g.HOST_CALL, 5, 0, "echo", [1], {"a": 2})
    assert talk.hear() == [g.HOST_RESULT, 5, ["", "echo", [1], {"a": 2}]]
    for name in ("fail", "odd"):
        talk.say(g.HOST_CALL, 6, 0, name, [], {})
        answer = talk.hear()
        assert answer[:2] == [g.HOST_ERROR, 6]
        assert answer[2]["traceback"] == ""
        assert __file__ not in str(answer)


def test_a_flood_of_host_calls_ends_the_guest() -> None:
    """So many at once are nobody's need; the host's threads are bounded anyway."""
    talk = Talk()
    talk.serve()
    gate = threading.Event()
    talk.host.host_call = lambda *_: gate.wait(10)  # type: ignore[method-assign,assignment,return-value]
    for number in range(1, 2000):
        talk.say(g.HOST_CALL, number, 0, "wait", [], {})
        if talk.session.killed:
            break
    wait_until(lambda: talk.session.killed)
    gate.set()
    talk.close()


def test_while_a_large_frame_is_read_the_switchboard_hears_others() -> None:
    """Reading one may take seconds, if it is hostile: it is read in a thread of its own, and in its order."""
    reading, go_on, other = threading.Event(), threading.Event(), threading.Event()
    talk = Talk()
    talk.serve()
    plain = talk.connection._dialogue.read

    class Slow:
        def read(self, body: bytes, codec: Codec) -> list[Any]:
            if len(body) > 1_000_000:
                reading.set()
                assert go_on.wait(20)
            return plain(body, codec)

    talk.connection._dialogue = Slow()  # type: ignore[assignment]
    calls = [talk.connection.call("f", [], {}, 30) for _ in range(3)]
    numbers = [talk.hear()[1] for _ in calls]
    talk.say(g.RESULT, numbers[0], b"x" * 2_000_000)
    assert reading.wait(20)
    talk.board.soon(other.set)
    assert other.wait(20)  # it has time for others
    talk.say(g.LOG, 2, "later", "x", {})
    talk.say(g.RESULT, numbers[1], "small")
    assert not any(call.done() for call in calls)
    go_on.set()
    assert (len(calls[0].result(20)), calls[1].result(20)) == (2_000_000, "small")
    talk.say(g.RESULT, numbers[2], "last")  # and hears this one again
    assert calls[2].result(20) == "last"
    talk.close()


def test_what_a_guest_said_before_it_died_counts_also_where_it_is_large() -> None:
    """It may be gone before its answer has been read."""
    talk = Talk()
    talk.serve()
    call = talk.connection.call("f", [], {}, 30)
    number = talk.hear()[1]
    talk.say(g.RESULT, number, b"x" * 2_000_000)
    talk.session.gone(None)
    assert len(call.result(20)) == 2_000_000
    talk.close()


class Clock:
    """What counts records second by second has this one for its clock: it stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """As time's."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """However long a loaded machine takes for a flood, it comes within a second."""
    made = Clock()
    monkeypatch.setattr(asides, "time", made)
    return made


@pytest.mark.usefixtures("clock")
def test_a_flood_of_records_is_cut_and_said_to_be(talk: Talk) -> None:
    """The host's log is not the plugin's to fill."""
    for _ in range(8000):
        talk.say(g.LOG, 2, "noise", "x", {})
    talk.say(g.METRIC, "counter", "n", 1.0, {})
    call = talk.connection.call("f", [], {}, 10)
    talk.say(g.RESULT, talk.hear()[1], None)
    call.result(10)
    assert len(talk.host.logs) == 5000


@pytest.mark.usefixtures("clock")
def test_logs_are_bounded_by_their_length_too(talk: Talk) -> None:
    """Few long records fill a disk as well as many short ones."""
    for _ in range(300):
        talk.say(g.LOG, 2, "x", "a" * 100_000, {})
    talk.say(g.DENIED, "fs:read", "open", "the last", "fs:read")
    wait_until(lambda: talk.host.denied, what="what came after the flood")
    assert max(len(text) for _, _, text in talk.host.logs) == 65536
    assert sum(len(text) for _, _, text in talk.host.logs) < 300 * 65536


def test_a_flood_of_refusals_is_cut(talk: Talk, clock: Clock) -> None:
    """The audit log of a host is not the plugin's to fill; what it logs takes nothing from what it reports."""
    for _ in range(5000):
        talk.say(g.LOG, 2, "x", "text", {})
    for _ in range(20_000):
        talk.say(g.DENIED, "fs:read", "open", "/etc", "fs:read")
    talk.say(g.LOG, 2, "x", "last", {})
    heard = talk.connection.call("f", [], {}, 60)
    talk.say(g.RESULT, talk.hear()[1], None)
    heard.result(60)
    clock.now += 1.0
    talk.say(g.DENIED, "fs:read", "open", "/last", "fs:read")
    wait_until(lambda: talk.host.denied and talk.host.denied[-1][2] == "/last", what="the last of them")
    assert len(talk.host.denied) == 1000 + 2
    assert any("were dropped" in needs for *_, needs in talk.host.denied)


def test_what_a_guest_asks_at_once_is_bounded(talk: Talk) -> None:
    """Few long calls of the host hold as much memory as many short ones."""
    gate = threading.Event()
    talk.host.host_call = lambda *_: gate.wait(60)  # type: ignore[method-assign,assignment,return-value]
    head = bytes([0x96, g.HOST_CALL])
    for number in range(1, 6):
        size = 60 << 20
        tail = bytes([0, 0xA5]) + b"sleep" + bytes([0x91, 0xC6]) + size.to_bytes(4, "big")
        body = len(head) + 1 + len(tail) + size + 1
        with contextlib.suppress(OSError):
            talk.session.far.sendall(struct.pack(">I", body) + head + bytes([number]) + tail)
            for _ in range(60):
                talk.session.far.sendall(bytes(1 << 20))
            talk.session.far.sendall(b"\x80")
    error = talk.connection.ended.result(60)
    gate.set()
    assert "bytes at once" in str(error)


def test_calls_wait_until_their_guest_reads(talk: Talk) -> None:
    """A guest that reads nothing does not have its host keep answers without end; one that reads gets them all."""
    talk.host.host_call = lambda *_: bytes(8 << 20)  # type: ignore[method-assign,assignment,return-value]
    for number in range(1, 41):
        talk.say(g.HOST_CALL, number, 0, "large", [8 << 20], {})
    wait_until(lambda: talk.connection._asks._parked, 60, "the calls that wait")
    # What was waiting, and one for each thread that was past the look at it.
    assert talk.connection._channel.unsent < (64 + 8 * 5) << 20
    answers = {talk.hear()[1] for _ in range(40)}
    assert answers == set(range(1, 41))


def test_output_beyond_the_limit_of_a_call_ends_the_worker(talk: Talk) -> None:
    """Bytes of both streams during one call; between calls there is some room for what was buffered."""
    talk.session.on_output("stdout", b"x" * 5000)
    assert not talk.session.killed
    waiting = talk.connection.call("print", [], {}, 10)
    talk.hear()
    talk.session.on_output("stdout", b"line\n" * 100)
    talk.session.on_output("stderr", b"y" * 600)
    with pytest.raises(OutputExceeded) as caught:
        waiting.result(10)
    assert caught.value.limit == 1000
    assert (2, "stdout", "line") in talk.host.logs


def test_long_and_binary_lines_are_passed_on_in_pieces(talk: Talk) -> None:
    """As text whatever the bytes are, cut to a bearable length."""
    talk.session.on_output("stderr", b"\xff\x1b[31m" + b"a" * 10000 + b"\n")
    assert all(len(message) <= 4096 * 4 for _, _, message in talk.host.logs)
    assert "\\xff" in talk.host.logs[0][2]


def test_another_version_of_the_protocol_is_said_to_be_one() -> None:
    """Before anything is loaded."""
    talk = Talk()
    loading = talk.connection.load({})
    talk.say(g.HELLO, 99, {})
    with pytest.raises(ProtocolMismatch, match="99"):
        loading.result(10)
    talk.close()


def test_stop_waits_for_the_guest_and_then_kills_it(talk: Talk) -> None:
    """One that does not leave is ended; `ended` says so."""
    stopping = threading.Thread(target=talk.connection.stop, args=(0.1,))
    stopping.start()
    assert talk.hear() == [g.STOP]
    stopping.join(10)
    assert talk.session.killed
    assert isinstance(talk.connection.ended.result(10), PluginCrashed)


def test_leaving_in_good_order_is_no_crash(talk: Talk) -> None:
    """BYE, and the worker's function returns."""
    stopping = threading.Thread(target=talk.connection.stop, args=(10,))
    stopping.start()
    assert talk.hear() == [g.STOP]
    talk.say(g.BYE)
    talk.session.gone(None)
    stopping.join(10)
    assert talk.connection.ended.result(10) is None


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(0, 40) | _values, max_size=7), max_size=6))
def test_no_message_whatever_leaves_a_call_waiting(messages: list[list[Any]]) -> None:
    """Each call ends with its answer or with a PluginError, and the connection with its guest."""
    talk = Talk()
    talk.serve()
    waiting = talk.connection.call("f", [], {}, 30)
    number = talk.hear()[1]
    for message in messages:
        talk.say(*message)
    talk.say(g.RESULT, number, "answer")
    try:
        waiting.result(10)
    except PluginError:
        pass
    talk.close()


@pytest.mark.parametrize("tag", [g.LOG, g.METRIC, g.DENIED], ids=lambda tag: g.NAMES[tag])
def test_what_is_said_in_passing_is_small(talk: Talk, tag: int) -> None:
    """A large frame of it is not even read: reading takes time that every other plugin waits for."""
    fields = {
        g.LOG: [2, "logger", "x" * (1 << 20), {}],
        g.METRIC: ["counter", "n", 1.0, {"tag": "x" * (1 << 20)}],
        g.DENIED: ["fs:read", "open", "x" * (1 << 20), ""],
    }[tag]
    talk.say(tag, *fields)
    wait_until(lambda: talk.session.killed)
    assert not talk.host.logs


def test_results_may_be_large(talk: Talk) -> None:
    """What was asked for is."""
    waiting = talk.connection.call("f", [], {}, 10)
    talk.say(g.RESULT, talk.hear()[1], "x" * (3 << 20))
    assert len(waiting.result(10)) == 3 << 20


def test_an_interrupt_at_any_moment_leaves_nobody_without_an_answer() -> None:
    """A caller who reads by himself: the others are heard afterwards, or the guest is killed and they are told."""
    for moment in itertools.count(1):
        talk = Talk()
        talk.serve()
        first = talk.connection.call("f", [1], {}, 20)
        number, waits_no_more = talk.hear()[1], threading.Event()
        with ThreadPoolExecutor(1) as other:
            try:
                answering = other.submit(_answer, talk, number, waits_no_more)
                try:
                    with interrupted_at(moment, connection):
                        assert first.result(10) == "first"
                    break
                except KeyboardInterrupt:
                    waits_no_more.set()
                    answering.result(10)
                if not talk.session.killed:
                    second = talk.connection.call("f", [2], {}, 20)
                    talk.say(g.RESULT, talk.hear()[1], "second")
                    assert other.submit(second.result, 10).result() == "second", moment
                first.exception(10)
            finally:
                waits_no_more.set()
                talk.close()
    assert moment > 20


def _answer(talk: Talk, number: int, waits_no_more: threading.Event) -> None:
    """Answer a call once its caller hears the guest by himself, or waits no more."""
    wait_until(lambda: talk.connection._watcher or waits_no_more.is_set())
    talk.say(g.RESULT, number, "first")
