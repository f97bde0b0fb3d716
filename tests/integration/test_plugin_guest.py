"""A guest in a worker that is locked in: all that it does is allowed there, and what is not is explained."""

import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_peer import settings
from waiting import wait_until

from ringfence import Pool
from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.guest_messages import Dialogue
from ringfence.pool.session import Session
from ringfence.worker.guest import serve

_SOURCE = """
    import ctypes, logging, os, socket, subprocess, sys, threading, time
    from ringfence.guest import host, log

    def echo(value): return value
    def sleep(seconds): time.sleep(seconds); return threading.current_thread().name
    def ask(value): return host.double(value)
    async def later(value):
        import asyncio
        await asyncio.sleep(0.001)
        return value
    def thread():
        found = []
        one = threading.Thread(target=lambda: found.append(host.double(21))); one.start(); one.join()
        return found[0]
    def says(): print("printed"); log.info("logged"); logging.warning("warned")
    def forever():
        while True: pass
    def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
    def hang(): os.write(2, b"hanging"); threading.Event().wait()
    def crash(): ctypes.string_at(0)
    def attempt(name, path):
        try:
            ATTEMPTS[name](path)
        except OSError as error:
            return type(error).__name__
        return "done"
    def uncaught(name, path): ATTEMPTS[name](path)
    ATTEMPTS = {
        "read": lambda path: open(path).read(),
        "write": lambda path: open(path, "w"),
        "list": lambda path: os.listdir(path),
        "remove": lambda path: os.remove(path),
        "connect": lambda path: socket.create_connection(("127.0.0.1", 9)),
        "run": lambda path: subprocess.run(["true"]),
        "fork": lambda path: os.fork(),
        "kill": lambda path: os.kill(os.getppid(), 0),
    }
"""


class _Guest:
    """Our end of a guest in a session."""

    def __init__(self, pool: Pool, **more: Any) -> None:
        self.stderr = b""
        self.session: Session = pool.open_session(serve, on_output=self._keep)
        self._channel = Channel(self.session.fd)
        self._codec = Codec()
        self._dialogue = Dialogue()
        self._last = 0
        self.others: list[list[Any]] = []
        self.hear(g.HELLO)
        self.send([g.LOAD, settings(textwrap.dedent(_SOURCE), **more)])
        assert self.hear(g.LOADED, g.LOAD_FAILED)[0] == g.LOADED

    def _keep(self, name: str, data: bytes) -> None:
        if name == "stderr":
            self.stderr += data

    def send(self, message: list[Any]) -> None:
        """Send a message as it is."""
        self._channel.send(self._codec.pack(message))

    def hear(self, *tags: int) -> list[Any]:
        """Return the next message with one of these tags; answer host calls, keep the rest."""
        while True:
            message = self._dialogue.hear(self._codec.unpack(self._channel.recv(time.monotonic() + 20)))
            if message[0] == g.HOST_CALL:
                self.send([g.HOST_RESULT, message[1], 2 * message[4][0]])
            elif message[0] in tags:
                return message
            else:
                self.others.append(message)

    def start(self, function: str, *args: Any) -> int:
        """Send a CALL and return its id."""
        self._last += 1
        self.send([g.CALL, self._last, function, list(args), {}])
        return self._last

    def call(self, function: str, *args: Any) -> Any:
        """Return the result of a call, or its failure record."""
        self.start(function, *args)
        return self.hear(g.RESULT, g.ERROR)[2]

    def denied(self) -> list[list[str]]:
        """Return what was reported as denied since the last time."""
        found = [message[1:] for message in self.others if message[0] == g.DENIED]
        self.others.clear()
        return found

    def kill(self) -> None:
        """End the session by force."""
        self.session.kill(RuntimeError("the test has seen enough"))
        self._channel.close()

    def stop(self) -> None:
        """End the session by the book."""
        self.send([g.STOP])
        self.hear(g.BYE)
        self._channel.close()
        self.session.ended.result(20)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool for sessions without any grant."""
    with Pool(1, isolation="session") as made:
        yield made
        made.kill_workers()


def test_a_guest_needs_no_grant(pool: Pool) -> None:
    """Threads, host calls, coroutines, logging, limits: nothing of it is refused to a worker that may do nothing."""
    guest = _Guest(pool, limits={"instructions": 200_000, "call_depth": 100})
    assert guest.call("echo", [1, "two", b"three"]) == [1, "two", b"three"]
    assert guest.call("ask", 4) == 8
    assert guest.call("thread") == 42
    assert guest.call("later", 5) == 5
    guest.call("says")
    assert [message[3] for message in guest.others if message[0] == g.LOG] == ["logged", "warned"]
    numbers = {guest.start("sleep", 0.05) for _ in range(4)}
    answers = [guest.hear(g.RESULT) for _ in numbers]
    assert {message[1] for message in answers} == numbers
    assert len({message[2] for message in answers}) == 4
    assert guest.call("forever")["kind"] == "instructions"
    assert guest.call("deep", 500)["kind"] == "call_depth"
    assert guest.denied() == []
    guest.stop()
    assert guest.stderr == b""


def test_what_is_refused_is_explained_and_reported(pool: Pool, tmp_path: Path) -> None:
    """Caught by the plugin or not; and the target is what it was."""
    target = tmp_path / "target"
    target.write_text("untouched")
    path = os.path.realpath(target)
    guest = _Guest(pool)
    expected = {
        "read": ("fs:read", "open"),
        "write": ("fs:write", "open"),
        "remove": ("fs:delete", "os.remove"),
        "connect": ("net:request", "socket.socket"),
        "run": ("process:exec", "subprocess.Popen"),
        "fork": ("process:exec", "os.fork"),
        "kill": ("process:exec", "os.kill"),
    }
    for name, (capability, operation) in expected.items():
        assert guest.call("attempt", name, path) != "done", name
        assert [capability, operation] in [found[:2] for found in guest.denied()], name
    record = guest.call("uncaught", "write", path)
    assert (record["kind"], record["denied"][:3]) == ("denied", ["fs:write", "open", path])
    assert "needs fs:write=" in record["message"]
    assert target.read_text() == "untouched"
    guest.stop()


def test_what_is_granted_works_and_is_not_reported(tmp_path: Path) -> None:
    """The same plugin, with a grant for the folder."""
    (tmp_path / "target").write_text("text")
    (tmp_path / "target").chmod(0o666)
    tmp_path.chmod(0o777)  # as root, workers are a user of their own
    path = str(tmp_path / "target")
    grants = [f"fs:read={tmp_path}", f"fs:write={tmp_path}"]
    with Pool(1, isolation="session", capabilities=grants) as pool:
        guest = _Guest(pool, capabilities=grants)
        for name in ("read", "write"):
            assert guest.call("attempt", name, path) == "done"
        assert guest.call("attempt", "list", str(tmp_path)) == "done"
        assert guest.denied() == []
        guest.stop()


def test_a_call_that_hangs_leaves_its_stack(pool: Pool) -> None:
    """What the host shows when it kills the worker for its time limit."""
    guest = _Guest(pool)
    call = guest.start("hang")
    wait_until(lambda: b"hanging" in guest.stderr)
    guest.send([g.CANCEL, call])
    wait_until(lambda: b"end of stacks" in guest.stderr)
    assert b'def hang(): os.write(2, b"hanging"); threading.Event().wait()' in guest.stderr
    guest.kill()


def test_a_crash_leaves_its_stack(pool: Pool) -> None:
    """faulthandler works behind the lock-in."""
    guest = _Guest(pool)
    guest.start("crash")
    error = guest.session.ended.exception(20)
    # Python 3.14 adds the stack of C: of so much, the error keeps the end.
    wait_until(lambda: b"Segmentation fault" in guest.stderr)
    assert "in crash" in str(getattr(error, "stderr", ""))
    guest.kill()
