"""The host's side of a guest, for tests: a process that serves, and a channel to it whose every message is checked."""

import os
import select
import socket
import subprocess
import sys
import textwrap
import time
from types import TracebackType
from typing import Any

from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.guest_messages import Dialogue
from ringfence.ipc.types import TypeRegistry

_PROGRAM = "import sys; from ringfence.worker.guest import serve; serve(int(sys.argv[1]))"
_PATIENCE = 20.0


def settings(source: str | bytes = "", **more: Any) -> dict[str, Any]:
    """Return LOAD's settings for a plugin of one module."""
    text = textwrap.dedent(source).encode() if isinstance(source, str) else source
    return {
        "name": "example",
        "version": "1.2.3",
        "folder": None,
        "main": "plugin",
        "modules": [["plugin", text, "/plugins/example/plugin.py", False]],
        "bytecode": None,
        "exports": None,
        "threads": 4,
        "limits": {},
        "capabilities": [],
        "private_root": False,
        "host_functions": [],
        "extension": None,
        "config": {},
        **more,
    }


class Peer:
    """A guest and its host. `others` keeps what was heard besides what was waited for."""

    def __init__(self, load: dict[str, Any] | None = None, *, program: str = _PROGRAM) -> None:
        near, far = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(far.fileno())],
            pass_fds=(far.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"},
        )
        far.close()
        self.channel = Channel(near.detach())
        self.codec = Codec(TypeRegistry())
        self.dialogue = Dialogue()
        self.others: list[list[Any]] = []
        self.hello = self.hear(g.HELLO)
        self._last = 0
        if load is not None:
            self.send([g.LOAD, load])
            self.loaded = self.hear(g.LOADED, g.LOAD_FAILED)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()
        self.process.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.process.wait()

    def send(self, message: list[Any]) -> None:
        """Send a message as it is."""
        self.channel.send(self.codec.pack(message))

    def hear(self, *tags: int) -> list[Any]:
        """Return the next message with one of these tags (none: any)."""
        while True:
            message = self.dialogue.hear(self.codec.unpack(self.channel.recv(time.monotonic() + _PATIENCE)))
            if not tags or message[0] in tags:
                return message
            self.others.append(message)

    def start(self, function: str, *args: Any, **kwargs: Any) -> int:
        """Send a CALL and return its id."""
        self._last += 1
        self.send([g.CALL, self._last, function, list(args), kwargs])
        return self._last

    def answer(self, number: int) -> list[Any]:
        """Return the answer to call `number`, RESULT or ERROR; other answers are kept."""
        for message in self.others:
            if message[0] in (g.RESULT, g.ERROR) and message[1] == number:
                self.others.remove(message)
                return message
        while (message := self.hear(g.RESULT, g.ERROR))[1] != number:
            self.others.append(message)
        return message

    def ask(self, function: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call, and return the answer."""
        return self.answer(self.start(function, *args, **kwargs))

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call, and return the result."""
        message = self.ask(function, *args, **kwargs)
        assert message[0] == g.RESULT, message
        return message[2]

    def fail(self, function: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Call, and return the failure record."""
        message = self.ask(function, *args, **kwargs)
        assert message[0] == g.ERROR, message
        record: dict[str, Any] = message[2]
        return record

    def heard(self, tag: int) -> list[list[Any]]:
        """Return what was heard so far of one kind."""
        return [message for message in self.others if message[0] == tag]

    def stop(self) -> tuple[str, str]:
        """Say STOP, wait for BYE and the process's end; return its stdout and stderr."""
        self.send([g.STOP])
        self.hear(g.BYE)
        out, err = self.process.communicate(timeout=_PATIENCE)
        assert self.process.returncode == 0, err.decode()
        return out.decode(), err.decode()

    def stderr_until(self, text: str) -> str:
        """Return what the guest has written to stderr, as soon as `text` is in it."""
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        found = ""
        end = time.monotonic() + _PATIENCE
        while text not in found and time.monotonic() < end and select.select([fd], [], [], 1)[0] is not None:
            if select.select([fd], [], [], 0.1)[0]:
                data = os.read(fd, 65536)
                if not data:
                    break
                found += data.decode()
        return found
