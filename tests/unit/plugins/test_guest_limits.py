"""Limits of single calls in a guest: reached by runaways, never by innocents, and each call begins anew."""

from typing import Any

import pytest
from guest_peer import Peer, settings

from ringfence.ipc import guest_messages as g

_SOURCE = """
    import threading
    def deep(n): return 0 if n <= 1 else 1 + deep(n - 1)
    def swallowed(n):
        try: return deep(n)
        except RecursionError: return "swallowed"
    async def deep_later(n): return deep(n)
    def forever():
        while True: pass
    def stubborn():
        n = 0
        while True:
            try:
                while True: n += 1
            except BaseException: len("x")
    def hidden():
        try: lines(10**9)
        except BaseException: return "nothing happened"
    def cleans_up():
        try: lines(10**9)
        finally: print("cleaned up")
    def lines(n):
        x = 0
        for i in range(n):
            x += i
        return x
    def one_line(n): return len([i for i in range(n)])
    def in_thread(n):
        thread = threading.Thread(target=lines, args=(n,)); thread.start(); thread.join()
    async def later(): return 1
    def files(n):
        for _ in range(n):
            try: open("/etc/hostname").close()
            except OSError: pass
    def imports():
        import wave, colorsys, chunk_that_is_not_there
    def files_in_thread(n):
        thread = threading.Thread(target=files, args=(n,)); thread.start(); thread.join()
    def names(n):
        import socket
        for _ in range(n):
            try: socket.getaddrinfo("127.0.0.1", 1)
            except OSError: pass
    def descriptors(n):
        import os
        for _ in range(n):
            a, b = os.pipe(); open(a).close(); open(b, "w").close()
"""


def _peer(**limits: int) -> Peer:
    return Peer(settings(_SOURCE, limits=limits))


def _reached(record: dict[str, Any]) -> tuple[str, int]:
    assert record["measured"] > record["limit"]
    return record["kind"], record["limit"]


def test_depth_is_counted_from_the_calls_own_frame() -> None:
    """What the limit says is always there, in whatever thread; far beyond it is RecursionError."""
    with _peer(call_depth=100) as peer:
        assert peer.call("deep", 100) == 99
        assert _reached(peer.fail("deep", 200)) == ("call_depth", 100)
        numbers = [peer.start("deep", 100) for _ in range(8)]
        assert [peer.answer(number)[2] for number in numbers] == [99] * 8
        assert peer.call("deep_later", 100) == 99
        assert peer.call("swallowed", 10_000) == "swallowed"
        assert peer.call("deep", 100) == 99


def test_asking_and_logging_take_nothing_from_the_plugins_depth() -> None:
    """At the last frame that the limit allows the host can be asked."""
    source = """
        from ringfence.guest import host, log
        def deep(n):
            if n: return deep(n - 1)
            log.info("%d", n)
            return host.value()
    """
    with Peer(settings(source, limits={"call_depth": 20})) as peer:
        number = peer.start("deep", 19)
        asked = peer.hear(g.HOST_CALL)
        peer.send([g.HOST_RESULT, asked[1], 5])
        assert peer.answer(number)[2] == 5


def test_a_depth_beyond_the_interpreters_own_is_possible() -> None:
    """1,000 is only its default."""
    with _peer(call_depth=5000) as peer:
        assert peer.call("deep", 4900) == 4899


def test_without_a_limit_depth_is_an_ordinary_error() -> None:
    """A RecursionError like any other."""
    with _peer() as peer:
        record = peer.fail("deep", 5000)
        assert (record["kind"], record["type"], "limit" in record) == ("exception", "RecursionError", False)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("forever", ()),
        ("stubborn", ()),
        ("hidden", ()),
        ("lines", (100_000,)),
        ("one_line", (100_000,)),
        ("in_thread", (100_000,)),
    ],
)
def test_runaway_code_is_stopped(function: str, args: tuple[Any, ...]) -> None:
    """Also a loop on one line, code that catches everything, and a thread; the next call begins at zero."""
    with _peer(instructions=10_000) as peer:
        record = peer.fail(function, *args)
        assert _reached(record) == ("instructions", 10_000)
        assert "10000" in record["message"]
        assert peer.call("lines", 1000) == 499_500
        assert peer.call("later") == 1


def test_cleaning_up_is_possible() -> None:
    """A `finally` has some lines left."""
    with _peer(instructions=10_000) as peer:
        assert _reached(peer.fail("cleans_up")) == ("instructions", 10_000)
        assert peer.stop()[0] == "cleaned up\n"


def test_many_small_calls_reach_nothing() -> None:
    """A limit is for one call."""
    with _peer(instructions=10_000, call_depth=50, fs_ops=5, net_ops=5) as peer:
        for _ in range(200):
            peer.call("lines", 100)
        for _ in range(3):
            peer.call("files", 5)
            peer.call("names", 5)


@pytest.mark.parametrize(
    ("function", "kind"), [("files", "fs_ops"), ("files_in_thread", "fs_ops"), ("names", "net_ops")]
)
def test_operations_are_counted(function: str, kind: str) -> None:
    """As many as the limit says, and not one more; in threads of the plugin's too."""
    with _peer(**{kind: 10}) as peer:
        assert peer.call(function, 10) is None
        record = peer.fail(function, 11)
        assert (record["kind"], record["limit"], record["measured"]) == (kind, 10, 11)
        assert peer.call(function, 10) is None


def test_imports_and_descriptors_are_no_file_operations() -> None:
    """A plugin does not know how many files a library has."""
    with _peer(fs_ops=5) as peer:
        assert peer.fail("imports")["type"] == "ModuleNotFoundError"
        assert peer.call("descriptors", 50) is None
