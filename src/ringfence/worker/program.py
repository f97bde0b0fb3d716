"""Runs a plugin that is a program of its own: starts it with the host's socket, waits, and says how it ended.

The program is a child of the locked-in worker, under the same sandbox. It speaks the protocol of
docs/reference/plugin-protocol.md on descriptor 3: the host's own frames, or lines of JSON that are translated here.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final, Literal

from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed, ProtocolError
from ringfence.ipc.limits import MAX_FRAME
from ringfence.worker.json_wire import JsonWire, Unsayable, WireError
from ringfence.worker.threads import Thread

__all__ = ["PROGRAM_FD", "run_program"]

PROGRAM_FD: Final = 3

# A line is one frame in other words, and no longer than a frame may be.
_MAX_LINE: Final = MAX_FRAME
_READ_SIZE: Final = 64 * 1024
# What a program finds when nobody says otherwise; what it may start is the sandbox's affair.
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
# Python ignores these, and a child would inherit that: a program expects to die of a broken pipe.
_RESET: Final = (signal.SIGPIPE, signal.SIGXFSZ)
# Seconds for what a program wrote before it ended; a child of its that lives on must not hold us.
_LAST_WORDS: Final = 2.0
# Seconds in which a thread of ours has begun, unless there was no memory for it.
_BEGINNING: Final = 10.0


def run_program(
    fd: int,
    argv: list[str],
    folder: str | None,
    environment: dict[str, str],
    wire: Literal["msgpack", "json"] = "msgpack",
) -> dict[str, Any]:
    """Run a program that serves the host's socket, and return how it ended.

    Args:
        fd: the socket to the host; it is closed here.
        argv: the program's absolute path and its arguments.
        folder: where to start it, or None to stay in the worker's private folder.
        environment: variables on top of the worker's own.
        wire: what it speaks on descriptor 3: the host's frames, or lines of JSON.

    Returns:
        "exit_code" (None when a signal ended it), "signal" (or None), "violation" (why it was ended for what it
        wrote, or None).

    Raises:
        OSError: it cannot be started: it is not there, not executable, or not allowed.
    """
    with Channel(fd, blocking=True) as channel:
        if folder is not None:
            os.chdir(folder)
        if wire == "json":
            return _translated(channel, argv, environment)
        pid = _start(argv, fd, environment)
    # Ours is closed: the program's end is the only one left, and the host sees when it is gone.
    return _ended(pid)


def _start(argv: list[str], fd: int, environment: dict[str, str]) -> int:
    """Start the program with `fd` as descriptor 3, and no other above 2; return its pid."""
    variables = {"PATH": _PATH, **os.environ, **environment}
    variables |= {"RINGFENCE_FD": str(PROGRAM_FD), "RINGFENCE_PROTOCOL": str(g.PROTOCOL_VERSION)}
    # All of ours are closed on exec (PEP 446; those that arrive over a socket too). dup2 onto itself clears that flag.
    actions = [(os.POSIX_SPAWN_DUP2, fd, PROGRAM_FD)]
    return os.posix_spawn(argv[0], argv, variables, file_actions=actions, setsigdef=_RESET, setsigmask=())


def _ended(pid: int) -> dict[str, Any]:
    """Wait for the program and describe its end."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"exit_code": code if code >= 0 else None, "signal": -code if code < 0 else None, "violation": None}


# JSON


def _translated(channel: Channel, argv: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a program that speaks JSON, and translate both ways until it ends."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near:
        with far:
            pid = _start(argv, far.fileno(), environment)
        relay = _Relay(channel, near, pid)
        relay.start()
        ended = _ended(pid)
        ended["violation"] = relay.finish()
        return ended


class _Relay:
    """Two threads: one passes what the host says on to the program, the other what the program says to the host.

    Nothing is kept between them but the line or frame on its way: whoever writes faster than the other side reads
    waits in its own write.
    """

    def __init__(self, channel: Channel, program: socket.socket, pid: int) -> None:
        self._channel = channel
        self._program = program
        self._pid = pid
        self._codec = Codec()
        self._wire = JsonWire()
        # Both threads answer the host: the one that reads from it, when a call cannot be passed on.
        self._sending = threading.Lock()
        self._violation: str | None = None
        self._down = Thread(target=self._pass_down)
        self._up = Thread(target=self._pass_up)

    def start(self) -> None:
        """Begin. Raises MemoryError: there is none for a thread."""
        self._down.start()
        self._up.start()
        if not (self._down.has_begun(_BEGINNING) and self._up.has_begun(_BEGINNING)):
            self._end_program()
            raise MemoryError("no memory for a thread that speaks for the program")

    def finish(self) -> str | None:
        """Pass on what is left, let go of both sides, and return what the program did wrong, if it did."""
        self._up.join(_LAST_WORDS)
        # Wakes the threads that still read.
        self._hang_up()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(self._channel.fileno())) as host:
            _shut(host)
        self._down.join(_LAST_WORDS)
        return self._violation

    def _pass_down(self) -> None:
        try:
            while True:
                message = self._codec.unpack(self._channel.recv())
                try:
                    line = self._wire.line(message)
                except Unsayable as error:
                    self._refuse(message, str(error))
                else:
                    self._program.sendall(line)
        except (ChannelClosed, OSError):
            self._hang_up()

    def _refuse(self, message: list[Any], reason: str) -> None:
        """Answer the host in the program's place: what it sent has no form in JSON."""
        record = {
            "kind": "exception", "module": "builtins", "type": "TypeError", "args": [reason], "message": reason,
            "traceback": "", "notes": ["the plugin speaks JSON, which has only plain values"],
        }  # fmt: skip
        if message[0] == g.CALL:
            self._send([g.ERROR, message[1], record])
        elif message[0] == g.LOAD:
            self._send([g.LOAD_FAILED, record])
        else:  # the answer to a call of the program's
            self._program.sendall(self._wire.line([g.HOST_ERROR, message[1], record]))

    def _pass_up(self) -> None:
        try:
            for line in _lines(self._program):
                message = self._wire.message(line)
                self._send(message)
                if message[0] == g.BYE:
                    self._hang_up()  # nothing more is said; a program that waits for the end gets it
        except (ChannelClosed, OSError):  # the host is gone
            self._end_program()
        except (WireError, ProtocolError) as error:
            self._violation = str(error)
            self._end_program()

    def _send(self, message: list[Any]) -> None:
        body = self._codec.pack(message)
        with self._sending:
            self._channel.send(body)

    def _end_program(self) -> None:
        self._hang_up()
        try:
            os.kill(self._pid, signal.SIGKILL)
        except OSError:
            pass  # gone, or signals are not ours to send here: then the host, which hears no more of it, ends us

    def _hang_up(self) -> None:
        _shut(self._program)


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other side is gone


def _lines(source: socket.socket) -> Iterator[bytes]:
    """Yield the lines that are not empty; raises WireError for one that is too long, or has no end.

    Pieces are joined once per line: the cost is linear however they come.
    """
    parts: list[bytes] = []
    size = 0
    while data := source.recv(_READ_SIZE):
        first, *later = data.split(b"\n")
        parts.append(first)
        size += len(first)
        if size > _MAX_LINE:
            raise WireError(f"a line of more than {_MAX_LINE} bytes")
        if later:
            yield from filter(bytes.strip, [b"".join(parts), *later[:-1]])
            parts = [later[-1]]
            size = len(later[-1])
    if b"".join(parts).strip():
        raise WireError("the last line has no end")
