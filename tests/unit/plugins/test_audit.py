"""AuditLog and JsonlSink: nothing is lost silently, and nothing breaks who is watched."""

import gc
import json
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from ringfence.plugins.audit import AuditEvent, AuditLevel, AuditLog
from ringfence.plugins.errors import PluginIOError
from ringfence.plugins.jsonl import JsonlSink
from ringfence.sandbox.errors import CapabilityDenied


def event(operation: str = "open", *, allowed: bool = True, **more: object) -> AuditEvent:
    """Return an event."""
    fields: dict[str, object] = {"plugin": "example", "target": "/data", "capability": "fs:read"}
    return AuditEvent(operation=operation, allowed=allowed, **(fields | more))  # type: ignore[arg-type]


def test_events_are_kept_counted_and_passed_on() -> None:
    """Each has a time; sinks see what the log keeps; both ends of the count are there."""
    log = AuditLog(clock=lambda: 1.5)
    seen: list[AuditEvent] = []
    log.add_sink(seen.append)
    log.record(event())
    log.record(event("write", allowed=False, capability="fs:write", at=2.5))
    log.record(event(plugin="other"))
    mine = [(e.operation, e.allowed, e.at) for e in log.events("example")]
    assert mine == [("open", True, 1.5), ("write", False, 2.5)]
    assert seen == log.events() and (log.uses, log.denials, log.failures) == (2, 1, 0)
    assert [e.plugin for e in log.events(allowed=False)] == ["example"]


def test_a_refusal_says_who_what_and_why() -> None:
    """A CapabilityDenied becomes an event with operation, target and text."""
    log = AuditLog(AuditLevel.DENIED)
    log.denied("example", CapabilityDenied("fs:write", "open", "/etc/x", needs="fs:write=/etc/x"))
    (found,) = log.events()
    assert (found.plugin, found.capability, found.operation, found.target) == (
        "example", "fs:write=/etc/x", "open", "/etc/x",
    )  # fmt: skip
    assert not found.allowed and "has nothing of the kind" in found.detail
    log.denied("example", CapabilityDenied("crypto"))
    assert log.events()[-1].operation == ""


@pytest.mark.parametrize(
    ("level", "recorded"),
    [(AuditLevel.DENIED, ["no"]), (AuditLevel.USES, ["no", "use"]), (AuditLevel.EVERYTHING, ["no", "use", "call"])],
)
def test_levels(level: AuditLevel, recorded: list[str]) -> None:
    """Refusals always; uses of capabilities; everything that passes the host."""
    log = AuditLog(level)
    log.record(event("no", allowed=False, capability=None))
    log.record(event("use"))
    log.record(event("call", capability=None))
    assert [e.operation for e in log.events()] == recorded


def test_events_are_bounded() -> None:
    """A plugin that chooses a huge target makes no huge event, and the log keeps only the last ones."""
    log = AuditLog(keep=3)
    for number in range(5):
        log.record(event(str(number), target="x" * 10**6, detail="y" * 10**6, plugin="p" * 1000))
    assert [e.operation for e in log.events()] == ["2", "3", "4"] and log.uses == 5
    (last,) = log.events()[-1:]
    assert last.target is not None and len(last.target) == len(last.detail) == 1024 and last.target.endswith("…")
    assert len(last.plugin) == 128


def test_a_sink_that_fails_harms_nobody_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Other sinks get the event, the caller sees nothing, failures are counted, and said once until it works again."""
    log = AuditLog()
    broken = [True]
    seen: list[AuditEvent] = []

    def sink(event: AuditEvent) -> None:
        if broken[0]:
            raise OSError("disk is full")

    log.add_sink(sink)
    log.add_sink(seen.append)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            log.record(event())
        assert log.failures == 3 and len(seen) == 3 and len(caplog.records) == 1
        assert "disk is full" in caplog.text
        broken[0] = False
        log.record(event())
        broken[0] = True
        log.record(event())
    assert log.failures == 4 and len(caplog.records) == 2


def test_sinks_come_and_go() -> None:
    """A sink that was removed is not called; what cannot be called is refused."""
    log = AuditLog()
    seen: list[AuditEvent] = []
    remove = log.add_sink(seen.append)
    log.record(event())
    remove()
    remove()
    log.record(event())
    assert len(seen) == 1
    with pytest.raises(TypeError):
        log.add_sink("file")  # type: ignore[arg-type]


def test_a_sink_may_ask_the_log_that_calls_it() -> None:
    """No lock is held while a sink runs."""
    log = AuditLog()
    counts: list[int] = []
    log.add_sink(lambda event: counts.append(len(log.events())))
    log.record(event())
    assert counts == [1]


def test_lines_of_json(tmp_path: Path) -> None:
    """One event, one line, in a private file; line ends in a target do not make two."""
    path = tmp_path / "audit.jsonl"
    with JsonlSink(path) as sink:
        sink(event(target="a\nb\u2028\ud800", detail='"'))
        sink(event("write", allowed=False))
    lines = path.read_bytes().splitlines()
    assert len(lines) == 2
    first = json.loads(lines[0])
    assert first == {
        "plugin": "example",
        "capability": "fs:read",
        "operation": "open",
        "target": "a\nb\u2028\ud800",
        "allowed": True,
        "detail": '"',
        "at": 0.0,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with JsonlSink(path) as sink:
        sink(event())
    assert len(path.read_bytes().splitlines()) == 3


def test_a_file_that_is_rotated_away_is_left(tmp_path: Path) -> None:
    """After a rename, or a removal, events go to the file that has the name."""
    path = tmp_path / "audit.jsonl"
    with JsonlSink(path) as sink:
        sink(event("one"))
        path.rename(tmp_path / "audit.jsonl.1")
        sink(event("two"))
        path.unlink()
        sink(event("three"))
    rotated = (tmp_path / "audit.jsonl.1").read_bytes()
    assert b"one" in rotated and b"two" not in rotated
    assert b"three" in path.read_bytes() and len(path.read_bytes().splitlines()) == 1


def test_threads_share_a_sink(tmp_path: Path) -> None:
    """Lines of many threads and two sinks on one file are whole."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog()
    with JsonlSink(path) as one, JsonlSink(path) as two:
        log.add_sink(one)
        log.add_sink(two)

        def work() -> None:
            for _ in range(50):
                log.record(event(target="x" * 900))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 400 and all(json.loads(line)["plugin"] == "example" for line in lines)
    assert log.failures == 0 and log.uses == 200


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    """No such folder, a link, a folder, a pipe: an error when the sink is made, not a log that is not written."""
    (tmp_path / "target").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path / "none" / "x", tmp_path / "link", tmp_path, tmp_path / "pipe"):
        with pytest.raises(PluginIOError):
            JsonlSink(bad)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(PluginIOError, match="no ordinary file"):
            JsonlSink(tmp_path / "pipe")
    finally:
        os.close(reader)


def test_a_full_disk_tears_one_line_not_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that went in half is an error, and the next one starts on a line of its own."""
    path = tmp_path / "audit.jsonl"
    real = os.write
    with JsonlSink(path) as sink:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: real(fd, data[:10]))
            with pytest.raises(PluginIOError, match="disk is full"):
                sink(event())
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: os.stat("/none/such"))
            with pytest.raises(PluginIOError, match="No such file"):
                sink(event())
        sink(event("next"))
    torn, whole = path.read_bytes().splitlines()
    assert len(torn) == 10 and json.loads(whole)["operation"] == "next"


def test_a_closed_sink_fails_and_a_dropped_one_leaks_nothing(tmp_path: Path) -> None:
    """close() may be repeated; forgetting it costs no descriptor."""
    sink = JsonlSink(tmp_path / "a.jsonl")
    sink.close()
    sink.close()
    with pytest.raises(PluginIOError, match="was closed"):
        sink(event())
    dropped = JsonlSink(tmp_path / "b.jsonl")
    assert "b.jsonl" in repr(dropped)
    del dropped
    gc.collect()


def test_the_folder_of_a_rotated_file_may_go(tmp_path: Path) -> None:
    """A log that can no longer be written counts failures; the descriptor is let go."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = AuditLog()
    with JsonlSink(folder / "a.jsonl") as sink:
        log.add_sink(sink)
        (folder / "a.jsonl").unlink()
        folder.rmdir()
        log.record(event())
        log.record(event())
        assert log.failures == 2
        folder.mkdir()
        log.record(event())
    assert log.failures == 2 and len((folder / "a.jsonl").read_bytes().splitlines()) == 1
