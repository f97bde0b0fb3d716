"""What a guest reports of refused operations, logs and metrics."""

import os
from pathlib import Path
from typing import Any

from guest_peer import Peer, settings

from ringfence.ipc import guest_messages as g
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.denials import Event, Refusals

_SOURCE = """
    import logging, os, socket, subprocess, sys, threading
    from ringfence.guest import context, log, metrics

    def read(path):
        with open(path) as file: return file.read()
    def quietly(path, times=1):
        for _ in range(times):
            try: open(path)
            except OSError: pass
    def missing(path):
        try: open(path, "w")
        except Exception: pass
    def connect():
        try: socket.create_connection(("192.0.2.1", 9), timeout=0.001)
        except OSError: pass
    def pair():
        a, b = socket.socketpair(); a.close(); b.close()
    async def later(): return 1
    def imports():
        import wave, sqlite3, xml.dom.minidom
        return sorted(sys.path)
    def fails(): raise ValueError("with a traceback")
    def kill_me_not(): os.kill(os.getpid(), 0)
    def in_thread(path):
        thread = threading.Thread(target=quietly, args=(path,)); thread.start(); thread.join()
    def count(): metrics.counter("jobs", 2, kind="x"); metrics.gauge("load", 0.5); metrics.histogram("ms", 3)
    def bad_metric(): metrics.gauge("x", "much")
    def says():
        log.trace("t"); log.debug("d"); log.info("i %d", 1); log.warn("w"); log.error("e")
        logger = logging.getLogger("my.part")
        logger.debug("D"); logger.info("I %s", "x"); logger.warning("W"); logger.error("E"); logger.critical("C")
        logger.log(5, "T")
    def says_traceback():
        try: 1 / 0
        except ZeroDivisionError: logging.exception("oh")
    class Loud:
        def __str__(self): logging.error("again"); return "loud"
    class Bad:
        def __str__(self): raise SystemExit
    def recursion(): logging.info("%s", Loud()); log.info("%s", Loud())
    def misfit(): logging.info("%d", "x"); log.info("%d", "x"); log.info("50%")
    def much(): log.info("x" * 10**6); logging.getLogger("n" * 10**4).info("y" * 10**6)
    def prints(): print("out"); print("err", file=sys.stderr)
"""


def _peer(*capabilities: str, **more: Any) -> Peer:
    return Peer(settings(_SOURCE, capabilities=list(capabilities), **more))


def test_a_refusal_is_reported_though_it_is_swallowed(tmp_path: Path) -> None:
    """Once for each attempt, with the grant that it would have taken; and when the attempt fails anyhow."""
    path = str(tmp_path / "x")
    with _peer() as peer:
        peer.call("quietly", path, 3)
        assert peer.heard(g.DENIED) == [[g.DENIED, "fs:read", "open", path, f"fs:read={path}"]] * 3
        peer.others.clear()
        peer.call("missing", "/nowhere/y")
        assert peer.heard(g.DENIED) == [[g.DENIED, "fs:write", "open", "/nowhere/y", "fs:write=/nowhere/y"]]
        peer.others.clear()
        peer.call("in_thread", path)
        assert len(peer.heard(g.DENIED)) == 1


def test_what_is_granted_is_not_reported(tmp_path: Path) -> None:
    """By scope, by the plugin's folder, or because it is the worker's own."""
    (tmp_path / "data").write_text("text")
    for grants, more in (([f"fs:read={tmp_path}"], {}), (["fs:read"], {"folder": str(tmp_path)})):
        with _peer(*grants, **more) as peer:
            assert peer.call("read", str(tmp_path / "data")) == "text"
            assert peer.heard(g.DENIED) == []
    with _peer() as peer:
        peer.call("quietly", os.getcwd() + "/pyproject.toml")
        assert peer.heard(g.DENIED) == []


def test_ordinary_life_is_not_reported() -> None:
    """Imports, event loops, socket pairs, tracebacks, looking at oneself."""
    with _peer() as peer:
        for name in ("imports", "later", "pair", "kill_me_not"):
            peer.call(name)
        peer.fail("fails")
        peer.fail("read", 12345)
        assert peer.heard(g.DENIED) == []


def test_the_network_is_reported_step_by_step() -> None:
    """The socket; a connection, where there is one."""
    with _peer() as peer:
        peer.call("connect")
        assert peer.heard(g.DENIED)[0] == [g.DENIED, "net:request", "socket.socket", "AF_INET", "net:request"]


def test_a_million_refusals_are_not_a_million_messages(tmp_path: Path) -> None:
    """Some hundred, and a line that counts the rest; the next call begins anew."""
    with _peer() as peer:
        peer.call("quietly", str(tmp_path / "x"), 1000)
        assert len(peer.heard(g.DENIED)) == 256
        assert [message[3] for message in peer.heard(g.LOG)] == [
            "744 more refused operations were not reported one by one"
        ]
        peer.call("quietly", str(tmp_path / "x"), 2)
        assert len(peer.heard(g.DENIED)) == 258


def test_an_announcement_is_judged_by_the_grants_alone() -> None:
    """Whatever came of it; nothing is said of what cannot be told, or is of no interest."""
    refusals = Refusals(["fs:read=/data"], own=("/own",), readable=("/lib",))
    denied = refusals.judge(Event("open", ("/etc/x", "r", 0)))
    assert denied is not None and denied.needs == "fs:read=/etc/x"
    for event in (
        Event("open", ("/data/x", "r", 0)),
        Event("open", ("/lib/x", "r", 0)),
        Event("open", ("/own/x", "r", 0)),
        Event("open", (3, "w", 0)),
        Event("open", ("relative", None, os.O_RDWR)),
        Event("import", ("os",)),
    ):
        assert refusals.judge(event) is None
    everything = (*Capabilities.all(), "fs:read=/", "fs:write=/", "fs:delete=/")
    assert Refusals(everything).judge(Event("open", ("/etc/x", "w", 0))) is None


def test_log_messages_carry_level_and_place() -> None:
    """Of `ringfence.guest.log` and of `logging`, with the line that logs."""
    with _peer() as peer:
        peer.call("says")
        logs = peer.heard(g.LOG)
        assert [(message[1], message[2], message[3]) for message in logs] == [
            (0, "plugin", "t"),
            (1, "plugin", "d"),
            (2, "plugin", "i 1"),
            (3, "plugin", "w"),
            (4, "plugin", "e"),
            (1, "my.part", "D"),
            (2, "my.part", "I x"),
            (3, "my.part", "W"),
            (4, "my.part", "E"),
            (4, "my.part", "C"),
        ]
        line = _SOURCE.splitlines().index(
            '        log.trace("t"); log.debug("d"); log.info("i %d", 1); log.warn("w"); log.error("e")'
        )
        place = {"module": "plugin", "file": "/plugins/example/plugin.py", "line": line + 1, "thread": "MainThread"}
        assert logs[0][4] == place
        assert logs[5][4] == {**place, "line": line + 3}


def test_log_messages_carry_tracebacks() -> None:
    """logging.exception() is understood."""
    with _peer() as peer:
        peer.call("says_traceback")
        assert "ZeroDivisionError" in peer.heard(g.LOG)[0][3]


def test_logging_is_never_the_plugins_error() -> None:
    """Logging within logging is left out, what does not format is told of, what is too long is cut."""
    with _peer() as peer:
        peer.call("recursion")
        assert [message[3] for message in peer.heard(g.LOG)] == ["loud", "loud"]
        peer.others.clear()
        peer.call("misfit")
        texts = [message[3] for message in peer.heard(g.LOG)]
        assert "TypeError" in texts[0] and "TypeError" in texts[1] and texts[2] == "50%"
        peer.others.clear()
        peer.call("much")
        assert all(len(message[3]) < 20_000 and len(message[2]) < 1000 for message in peer.heard(g.LOG))


def test_what_is_printed_is_printed() -> None:
    """It is in the pipe before the call's answer."""
    with _peer() as peer:
        peer.call("prints")
        assert peer.stop() == ("out\n", "err\n")


def test_metrics_take_their_capability() -> None:
    """With it they are sent, without it they are refused and reported."""
    with _peer("metrics") as peer:
        peer.call("count")
        assert peer.heard(g.METRIC) == [
            [g.METRIC, "counter", "jobs", 2.0, {"kind": "x"}],
            [g.METRIC, "gauge", "load", 0.5, {}],
            [g.METRIC, "histogram", "ms", 3.0, {}],
        ]
        assert peer.fail("bad_metric")["type"] == "ValueError"
    with _peer() as peer:
        record = peer.fail("count")
        assert (record["kind"], record["denied"]) == ("denied", ["metrics", "metrics.counter", "jobs", "metrics"])
        assert peer.heard(g.DENIED) == [[g.DENIED, "metrics", "metrics.counter", "jobs", "metrics"]]
