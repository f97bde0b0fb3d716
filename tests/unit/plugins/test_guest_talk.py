"""Who reads, runs and waits in a guest: calls, their answers, host calls, and the end."""

import os
import random
import time
from typing import Any

import pytest
from guest_peer import Peer, settings

from ringfence.ipc import guest_messages as g

_SOURCE = """
    import threading, time
    from ringfence.guest import HostError, host

    started, go = threading.Semaphore(0), threading.Semaphore(0)
    seen = []

    def echo(*args, **kwargs): return [list(args), kwargs]
    def thread(): return threading.current_thread().name
    def wait():
        started.release(); go.acquire(); return threading.current_thread().name
    def begun(): started.acquire(); started.release()
    def release(count):
        for _ in range(count): started.acquire()
        for _ in range(count): go.release()
    def ask(name, *args, **kwargs): return host.call(name, *args, **kwargs)
    def add(a, b): return host.math.add(a, b=b)
    def caught(name):
        try: return host.call(name)
        except Exception as error: return [type(error).__name__, str(error), getattr(error, "remote_type", None)]
    def from_thread():
        thread = threading.Thread(target=lambda: seen.append(host.add(1, 2)))
        thread.start(); thread.join(); return seen
    async def later(x):
        import asyncio
        await asyncio.sleep(0)
        return x + 1
    async def gathered():
        import asyncio
        return await asyncio.gather(later(1), later(2))
    def at_exit():
        import atexit
        atexit.register(lambda: print("bye"))
    def deep(n):
        return host.add(n, 0) if n == 0 else deep(n - 1)
    def loops_deeper():
        from ringfence.guest import log
        log.info("deeper")
        return loops_deeper()
"""


@pytest.fixture
def peer() -> Any:
    """Return a guest with four threads."""
    with Peer(settings(_SOURCE)) as made:
        assert made.loaded[0] == g.LOADED, made.loaded
        yield made


def _reply(peer: Peer, value: Any) -> list[Any]:
    """Answer the next host call and return it."""
    asked = peer.hear(g.HOST_CALL)
    peer.send([g.HOST_RESULT, asked[1], value])
    return asked


def test_a_call_is_answered_with_its_result(peer: Peer) -> None:
    """Positional and keyword arguments arrive, and what is returned comes back."""
    assert peer.hello[1:] == [g.PROTOCOL_VERSION, {"runtime": "python", "version": peer.hello[2]["version"]}]
    assert peer.call("echo", 1, [b"x", None], key={"a": 2.5}) == [[1, [b"x", None]], {"key": {"a": 2.5}}]


def test_who_looks_for_the_next_call_hears_what_comes_late_too() -> None:
    """A guest that may look for a moment before it sleeps answers calls at once, late ones, and several together."""
    with Peer(settings(_SOURCE, may_look=True)) as peer:
        for pause in (0, 0, 0, 0.02, 0, 0.02):
            time.sleep(pause)
            assert peer.call("thread") == "MainThread"
        numbers = [peer.start("echo", index) for index in range(8)]
        assert [peer.answer(number)[2] for number in numbers] == [[[index], {}] for index in range(8)]


def test_lone_calls_run_in_the_main_thread(peer: Peer) -> None:
    """Libraries that remember their thread see one only."""
    assert {peer.call("thread") for _ in range(50)} == {"MainThread"}


def test_calls_overlap(peer: Peer) -> None:
    """Four calls are under way at once, where a fifth lets them go on; the rest waits its turn."""
    waiting = [peer.start("wait") for _ in range(3)]
    peer.call("release", 3)
    assert len({peer.answer(number)[2] for number in waiting}) == 3
    assert peer.call("thread") == "MainThread"


def test_somebody_reads_when_all_that_wait_have_found_a_thread() -> None:
    """Also where the main thread wakes so late that another has queued two calls, and then wakes that one for one."""
    late = """
    from ringfence.worker.guest_talk import _Bell

    at_once, ticks = _Bell.wait, []
    def late(bell, seconds=-1):
        main = threading.current_thread() is threading.main_thread()
        ticks.append(seconds)
        at_once(bell, seconds if main or ticks.count(seconds) != 2 else 0.4)
        if main:
            time.sleep(0.2)
    _Bell.wait = late
    """
    with Peer(settings(_SOURCE + late)) as peer:
        time.sleep(0.1)  # until the main thread sleeps
        waiting = [peer.start("wait") for _ in range(2)]
        time.sleep(0.5)  # until both have begun
        peer.call("release", 2)
        assert len({peer.answer(number)[2] for number in waiting}) == 2


def test_more_calls_than_threads_wait() -> None:
    """With one thread calls run one after the other, all of them in the main thread."""
    with Peer(settings(_SOURCE, threads=1)) as peer:
        numbers = [peer.start("thread") for _ in range(20)]
        assert [peer.answer(number)[2] for number in numbers] == ["MainThread"] * 20
        first = peer.start("ask", "add", 1, 2)
        second = peer.start("thread")
        assert _reply(peer, 3)[2:] == [first, "add", [1, 2], {}]
        assert peer.answer(first)[2] == 3
        assert peer.answer(second)[2] == "MainThread"


def test_a_full_house_takes_the_next_call_when_one_is_through(peer: Peer) -> None:
    """Eight calls over four threads, each of which needs its host."""
    numbers = [peer.start("ask", "slow", index) for index in range(8)]
    for _ in numbers:
        asked = peer.hear(g.HOST_CALL)
        peer.send([g.HOST_RESULT, asked[1], asked[4][0] * 10])
    assert [peer.answer(number)[2] for number in numbers] == [index * 10 for index in range(8)]


def test_coroutines_run_to_their_end(peer: Peer) -> None:
    """An `async def` export is called like any other."""
    assert peer.call("later", 1) == 2
    assert peer.call("gathered") == [2, 3]


def test_host_calls_carry_their_call(peer: Peer) -> None:
    """The host sees which call asks, what and with which arguments, and its value is returned."""
    number = peer.start("add", 1, 2)
    assert _reply(peer, 3)[2:] == [number, "math.add", [1], {"b": 2}]
    assert peer.answer(number)[2] == 3


def test_a_host_call_from_a_thread_of_the_plugins_own_belongs_to_no_call(peer: Peer) -> None:
    """It is 0 there."""
    number = peer.start("from_thread")
    assert _reply(peer, 3)[2] == 0
    assert peer.answer(number)[2] == [3]


def test_other_calls_run_while_one_waits_for_its_host(peer: Peer) -> None:
    """The thread that waits reads, and hands calls on."""
    first = peer.start("ask", "add", 1, 2)
    asked = peer.hear(g.HOST_CALL)
    for _ in range(5):
        assert peer.call("echo") == [[], {}]
    second = peer.start("ask", "add", 3, 4)
    again = peer.hear(g.HOST_CALL)
    assert again[2] == second
    peer.send([g.HOST_RESULT, again[1], 7])
    assert peer.answer(second)[2] == 7
    peer.send([g.HOST_RESULT, asked[1], 3])
    assert peer.answer(first)[2] == 3


_RECORD = {"kind": "exception", "module": "builtins", "bases": [], "args": None, "traceback": "", "notes": []}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({**_RECORD, "type": "KeyError", "message": "'x'", "args": ["x"]}, ["KeyError", "'x'", None]),
        ({**_RECORD, "type": "ValueError", "message": "no"}, ["ValueError", "no", None]),
        (
            {**_RECORD, "module": "ringfence.plugins", "type": "ReentrantCall", "message": "again"},
            ["HostError", "ReentrantCall: again", "ReentrantCall"],
        ),
        ({**_RECORD, "type": "SystemExit", "message": "3"}, ["HostError", "SystemExit: 3", "SystemExit"]),
        ({**_RECORD, "type": "eval", "message": "3"}, ["HostError", "eval: 3", "eval"]),
        (
            {
                **_RECORD,
                "kind": "denied",
                "type": "CapabilityDenied",
                "message": "needs metrics",
                "denied": ["metrics", "add", None, "metrics"],
            },
            ["CapabilityDenied", "needs metrics", None],
        ),
    ],
)
def test_errors_of_the_host_are_exceptions_again(peer: Peer, record: dict[str, Any], expected: list[Any]) -> None:
    """Builtin exceptions and CapabilityDenied are themselves, all others HostError."""
    number = peer.start("caught", "f")
    asked = peer.hear(g.HOST_CALL)
    peer.send([g.HOST_ERROR, asked[1], record])
    assert peer.answer(number)[2] == expected


def test_arguments_that_cannot_travel_are_the_plugins_error(peer: Peer) -> None:
    """A file, say: the host is not even asked."""
    with Peer(settings("from ringfence.guest import host\ndef f(): return host.add(open)")) as other:
        assert other.fail("f")["type"] == "NotSerializable"


def test_a_module_may_ask_its_host_while_it_is_loaded() -> None:
    """HOST_CALL comes before LOADED."""
    with Peer() as peer:
        peer.send([g.LOAD, settings("from ringfence.guest import host\nVALUE = host.value()\ndef get(): return VALUE")])
        asked = peer.hear(g.HOST_CALL)
        assert asked[2] == 0
        peer.send([g.HOST_RESULT, asked[1], 42])
        assert peer.hear(g.LOADED)[1]["functions"] == {"get": "()"}
        assert peer.call("get") == 42


def test_stop_lets_calls_end_and_runs_exit_functions(peer: Peer) -> None:
    """What runs is answered, also if it needs the host for that; then BYE, and nothing after it."""
    peer.call("at_exit")
    first = peer.start("ask", "add", 1, 2)
    asked = peer.hear(g.HOST_CALL)
    peer.send([g.STOP])
    peer.send([g.HOST_RESULT, asked[1], 3])
    assert peer.answer(first)[2] == 3
    assert peer.hear() == [g.BYE]
    out, err = peer.process.communicate(timeout=20)
    assert (peer.process.returncode, out, err) == (0, b"bye\n", b"")


def test_stop_while_idle_ends_at_once(peer: Peer) -> None:
    """Whoever reads: the main thread or another."""
    assert peer.stop() == ("", "")


def test_stop_while_another_thread_reads(peer: Peer) -> None:
    """The last call's end is the guest's end, though a thread of it sits in a read."""
    waiting = [peer.start("wait") for _ in range(2)]
    numbers = [peer.start("release", 2)]
    peer.send([g.STOP])
    for number in waiting + numbers:
        assert peer.answer(number)[0] == g.RESULT
    peer.hear(g.BYE)
    assert peer.process.wait(20) == 0


def test_a_host_that_is_gone_ends_the_guest(peer: Peer) -> None:
    """Closing the socket is enough."""
    peer.call("echo")
    peer.channel.close()
    assert peer.process.wait(20) == 0


def test_a_host_that_goes_before_it_loads_ends_the_guest() -> None:
    """Also between HELLO and LOAD."""
    with Peer() as peer:
        peer.channel.close()
        assert peer.process.wait(20) == 0


def test_a_cancelled_call_leaves_its_stack_on_stderr(peer: Peer) -> None:
    """The thread that was cancelled comes last, with the plugin's lines and none of ours; the call goes on."""
    number = peer.start("wait")
    peer.call("begun")
    peer.send([g.CANCEL, number])
    text = peer.stderr_until("--- end of stacks ---")
    assert f"Thread MainThread (call {number}, wait, cancelled), most recent call last:" in text
    assert 'File "/plugins/example/plugin.py", line 11, in wait' in text
    assert "started.release(); go.acquire()" in text
    assert os.sep + "ringfence" + os.sep not in text
    peer.call("release", 1)
    assert peer.answer(number)[2] == "MainThread"


def test_a_cancelled_call_that_has_not_begun_never_does() -> None:
    """It is answered all the same: every call is."""
    with Peer(settings(_SOURCE, threads=1)) as peer:
        first, second = peer.start("ask", "add"), peer.start("thread")
        asked = peer.hear(g.HOST_CALL)
        peer.send([g.CANCEL, second])
        assert peer.answer(second)[2]["kind"] == "cancelled"
        peer.send([g.HOST_RESULT, asked[1], 1])
        assert peer.answer(first)[2] == 1


def test_a_module_that_hangs_while_it_is_loaded_leaves_its_stack() -> None:
    """Call 0 is the loading."""
    with Peer() as peer:
        peer.send([g.LOAD, settings("import time\nprint('here', flush=True); time.sleep(60)")])
        assert peer.process.stdout is not None
        assert peer.process.stdout.read(4) == b"here"
        peer.send([g.CANCEL, 0])
        text = peer.stderr_until("--- end of stacks ---")
        assert "line 2, in <module>" in text
        assert "time.sleep(60)" in text


_STILLBORN = """
import sys, threading

def fail():
    raise MemoryError  # where the interpreter finds no memory, before the first line of Thread's own

def stillborn(bootstrap, *args, **kwargs):
    for name, start in plain.items():
        setattr(threading, name, start)
    return start(fail, *args, **kwargs)

plain = {
    name: getattr(threading, name)
    for name in ("_start_joinable_thread", "_start_new_thread") if hasattr(threading, name)
}
from ringfence.worker import guest, guest_talk
guest_talk._STILLBORN = 0.0
for name in plain:
    setattr(threading, name, stillborn)
guest.serve(int(sys.argv[1]))
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_a_thread_without_memory_is_not_waited_for(threads: int) -> None:
    """It never says that it has begun (python/cpython#140746); the plugin is loaded, and somebody reads."""
    with Peer(settings(_SOURCE, threads=threads), program=_STILLBORN) as peer:
        assert peer.loaded[0] == g.LOADED, peer.loaded
        waiting = peer.start("wait")
        peer.send([g.CANCEL, waiting])
        assert f"(call {waiting}, wait, cancelled)" in peer.stderr_until("--- end of stacks ---")
        if threads > 1:
            peer.call("release", 1)
            assert peer.answer(waiting)[0] == g.RESULT
            peer.stop()


def test_recursion_without_end_never_breaks_a_message(peer: Peer) -> None:
    """Logging and asking raise RecursionError before they write, not while."""
    record = peer.fail("loops_deeper")
    assert (record["kind"], record["type"]) == ("exception", "RecursionError")
    assert peer.call("echo") == [[], {}]
    for depth in range(880, 990, 5):
        number = peer.start("deep", depth)
        while (message := peer.hear())[0] not in (g.RESULT, g.ERROR):
            if message[0] == g.HOST_CALL:
                peer.send([g.HOST_RESULT, message[1], 5])
        assert message[1] == number
    assert peer.call("echo") == [[], {}]


def test_a_child_does_not_speak_for_its_parent() -> None:
    """After fork() the conversation is the parent's alone."""
    source = """
        import os
        def f():
            pid = os.fork()
            if pid: os.waitpid(pid, 0)
            return pid > 0
        def g(): return "still here"
    """
    with Peer(settings(source)) as peer:
        assert peer.call("f") is True
        assert peer.call("g") == "still here"


def test_finalizers_may_log_in_the_middle_of_a_write() -> None:
    """The thread that writes is not asked to wait for itself."""
    source = """
        import signal
        from ringfence.guest import log
        def f():
            signal.signal(signal.SIGALRM, lambda *_: log.info("tick"))
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            for n in range(300): log.info("%d", n)
            signal.setitimer(signal.ITIMER_REAL, 0)
            return 1
    """
    with Peer(settings(source)) as peer:
        assert peer.call("f") == 1
        texts = [message[3] for message in peer.heard(g.LOG)]
        assert [text for text in texts if text != "tick"] == [str(n) for n in range(300)]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_call_is_answered_once(threads: int) -> None:
    """Whatever overlaps with what: short calls and long ones, host calls, cancellations, a thread of the plugin's."""
    source = """
        import threading, time
        from ringfence.guest import host
        def f(wait, asks, n):
            for _ in range(asks): assert host.g(n) == n
            time.sleep(wait)
            return n
        def ask_on():
            def loop():
                for n in range(50): assert host.g(n) == n
            threading.Thread(target=loop).start()
    """
    rng = random.Random(threads)
    with Peer(settings(source, threads=threads)) as peer:
        waiting: dict[int, int | None] = {peer.start("ask_on"): None}
        sent, most = 0, 400
        while waiting or sent < most:
            while sent < most and len(waiting) < rng.choice((1, 2, 5, 20)):
                waiting[peer.start("f", rng.choice((0, 0, 0.0005, 0.002)), rng.choice((0, 0, 2)), sent)] = sent
                if rng.random() < 0.02:
                    peer.send([g.CANCEL, max(waiting)])
                sent += 1
            message = peer.hear()
            if message[0] == g.HOST_CALL:
                peer.send([g.HOST_RESULT, message[1], message[4][0]])
            else:
                expected = waiting.pop(message[1])
                assert message[2] == expected or message[2]["kind"] == "cancelled"
        peer.send([g.STOP])
        while (message := peer.hear())[0] != g.BYE:
            peer.send([g.HOST_RESULT, message[1], message[4][0]])
        peer.process.communicate(timeout=20)
        assert peer.process.returncode == 0
