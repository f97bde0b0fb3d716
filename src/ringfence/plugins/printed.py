"""Printed: what a plugin's worker prints, by lines and by how much, and the end of its stderr."""

from collections.abc import Callable
from typing import Final, final

from ringfence.plugins.errors import OutputExceeded

__all__ = ["Printed"]

# Of stderr, for errors.
_TAIL: Final = 8 * 1024
# Bytes that a plugin may print while none of its calls is under way, beyond what a call may.
_IDLE: Final = 1024 * 1024
# A line that is longer comes in pieces.
_MAX_LINE: Final = 4096


@final
class Printed:
    """The output of one worker. Its methods are called by one thread at a time."""

    def __init__(self, plugin: str, limit: int | None, say: Callable[[str, str], object]) -> None:
        """Count against `limit` bytes for each call, and hand lines on by ``say(stream, text)``."""
        self._plugin = plugin
        self._limit = limit
        self._say = say
        self._tail = b""
        self._rest = {"stdout": b"", "stderr": b""}
        # How much, during which call (0: none).
        self._count, self._call = 0, 0

    def take(self, stream: str, data: bytes, call: int) -> OutputExceeded | None:
        """Take what came on a stream while `call` was the oldest under way; return the error if it is too much."""
        if stream == "stderr":
            self._tail = (self._tail + data)[-_TAIL:]
        if call != self._call:
            self._count, self._call = 0, call
        self._count += len(data)
        if self._limit is not None and self._count > self._limit + (0 if call else _IDLE):
            text = f"plugin {self._plugin!r} printed {self._count} bytes during one call, limit {self._limit}"
            error = OutputExceeded(text, self._limit, self._count)
            error.plugin = self._plugin
            return error
        *lines, rest = (self._rest[stream] + data).split(b"\n")
        while len(rest) > _MAX_LINE:
            lines.append(rest[:_MAX_LINE])
            rest = rest[_MAX_LINE:]
        self._rest[stream] = rest
        for line in lines:
            self._pass_on(stream, line)
        return None

    def finish(self) -> None:
        """Nothing more comes: what has no end of line is a line all the same."""
        for stream, rest in self._rest.items():
            if rest:
                self._rest[stream] = b""
                self._pass_on(stream, rest)

    @property
    def stderr(self) -> str:
        """The end of what came on stderr."""
        return self._tail.decode("utf-8", "backslashreplace")

    def _pass_on(self, stream: str, line: bytes) -> None:
        # A long line is cut here, where every piece of it has come.
        for start in range(0, max(len(line), 1), _MAX_LINE):
            self._say(stream, line[start : start + _MAX_LINE].decode("utf-8", "backslashreplace"))
