"""How a plugin that is a program is started, and which grants that takes: read from its file, which is never run here.

A program needs to be executed, and so does what the kernel needs for it: a script's interpreter (and, through
`/usr/bin/env`, the one that is meant), a binary's dynamic loader where it is no usual one. The folders of shared
libraries are readable in every worker. Nothing more comes of this: what the program opens is its manifest's affair.
"""

import os
import signal as signals
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from ringfence.plugins.errors import InvalidManifest
from ringfence.sandbox.capabilities import Capability, Grant
from ringfence.sandbox.runtime_paths import RuntimePaths

__all__ = ["Program", "ProgramEnd", "describe_end", "describe_program", "program_grants"]

# The kernel reads so much of a file to see what it is (BINPRM_BUF_SIZE).
_HEAD: Final = 256
# As the kernel: an interpreter may be a script itself, but not for ever.
_MAX_SCRIPTS: Final = 4
_SEARCH: Final = ("/usr/local/bin", "/usr/bin", "/bin")
# They write machine code while they run. Without the grant they abort with their own message, or need to be told to
# interpret only.
_JITS: Final = frozenset({"node", "nodejs", "deno", "bun", "luajit", "java", "pypy", "pypy3", "dotnet"})
_NO_JIT: Final = frozenset({"--jitless", "-Xint", "-joff"})

_PT_INTERP: Final = 3
_MAX_SEGMENTS: Final = 256


@final
@dataclass(frozen=True, slots=True)
class Program:
    """How to start a program: the command, which begins with an absolute path, and the grants it takes."""

    argv: tuple[str, ...]
    grants: tuple[Grant, ...]

    @property
    def interpreter(self) -> str | None:
        """What runs it, when it is a script."""
        return self.argv[0] if len(self.argv) > 1 else None


@final
@dataclass(frozen=True, slots=True)
class ProgramEnd:
    """How a program ended: in words, and its exit code or signal (the other is None)."""

    message: str
    exit_code: int | None = None
    signal: int | None = None


def describe_end(result: object) -> ProgramEnd:
    """Return what a session of ringfence.worker.program said of its program's end.

    It comes out of a worker: what is no such answer is said to be none, and texts are cut to length.
    """
    said = result if type(result) is dict else {}
    code, number, violation = said.get("exit_code"), said.get("signal"), said.get("violation")
    code = code if type(code) is int and 0 <= code <= 255 else None
    number = number if type(number) is int and 0 < number <= 64 and code is None else None
    if type(violation) is str:
        shown = violation[:500] if violation.isprintable() else ascii(violation[:500])
        return ProgramEnd(f"it broke the protocol and was killed: {shown}", code, number)
    if code is not None:
        return ProgramEnd(f"it ended with exit code {code}", code)
    if number is not None:
        name = signals.Signals(number).name if number in set(signals.Signals) else f"signal {number}"
        return ProgramEnd(f"it was ended by {name}", None, number)
    return ProgramEnd("it ended, and nobody knows how")


def program_grants(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> list[Grant]:
    """Return the grants that starting the program at `path` takes; see `describe_program`."""
    return list(describe_program(path, folder).grants)


def describe_program(
    path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None, *, search: Iterable[str] | None = None
) -> Program:
    """Return how to start the program at `path`, and the grants that takes.

    A script is started through its interpreter, as the kernel does it, so that `/usr/bin/env` needs no grant and no
    PATH in the worker.

    Args:
        path: the program, an executable file.
        folder: the plugin's folder, which the program may then read.
        search: folders where `#!/usr/bin/env NAME` looks; by default the usual ones, then those of PATH.

    Raises:
        InvalidManifest: there is no such file, it is not executable, or is neither a binary of Linux nor a script.
    """
    real = os.path.abspath(path)
    folders = tuple(search) if search is not None else (*_SEARCH, *os.environ.get("PATH", "").split(os.pathsep))
    grants = [Grant(Capability.PROCESS_EXEC, real)]
    argv = [real]
    for _ in range(_MAX_SCRIPTS + 1):
        head = _head(argv[0])
        if not head.startswith(b"#!"):
            break
        argv = [*_interpreter(argv[0], head, folders), *argv]
        grants.append(Grant(Capability.PROCESS_EXEC, argv[0]))
    else:
        raise InvalidManifest(f"{real}: its interpreter is a script, whose interpreter is a script, and so on")
    if not head.startswith(b"\x7fELF"):
        raise InvalidManifest(f"{argv[0]}: neither a binary of this system nor a script that begins with #!")
    loader = _loader(argv[0])
    if loader is not None and loader not in RuntimePaths(read=()).loaders:
        grants.append(Grant(Capability.PROCESS_EXEC, loader))
    if os.path.basename(argv[0]) in _JITS and not _NO_JIT & set(argv[1:]):
        grants.append(Grant(Capability.NATIVE_JIT))
    if folder is not None:
        grants.append(Grant(Capability.FS_READ, os.path.abspath(folder)))
    return Program(tuple(argv), tuple(dict.fromkeys(grants)))


def _head(path: str) -> bytes:
    try:
        if not os.path.isfile(path):
            raise InvalidManifest(f"{path}: there is no such program")
        if not os.access(path, os.X_OK):
            raise InvalidManifest(f"{path}: it is not executable; run chmod +x on it")
        with Path(path).open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise InvalidManifest(f"{path}: it cannot be read: {error.strerror}") from error


def _interpreter(path: str, head: bytes, search: tuple[str, ...]) -> list[str]:
    """Return the command in a script's first line: the interpreter and perhaps arguments."""
    line, newline, _ = head[2:].partition(b"\n")
    if not newline and len(head) == _HEAD:
        raise InvalidManifest(f"{path}: its first line is longer than the {_HEAD} bytes that the kernel reads")
    try:
        words = line.decode("utf-8").strip().split(None, 1)
    except UnicodeDecodeError:
        words = []
    if not words or not words[0].startswith("/") or "\0" in line.decode("utf-8", "replace"):
        raise InvalidManifest(f"{path}: its first line names no interpreter by an absolute path")
    if os.path.basename(words[0]) != "env" or len(words) == 1:
        return words  # the kernel passes the rest as one argument
    wanted = words[1].removeprefix("-S").split()
    if not wanted or wanted[0].startswith("-") or "=" in wanted[0]:
        raise InvalidManifest(f"{path}: of env's options only -S is understood in its first line")
    if len(wanted) > 1 and not words[1].startswith("-S"):
        wanted = [words[1]]  # as env would look for it, in vain
    return [_found(path, wanted[0], search), *wanted[1:]]


def _found(path: str, name: str, search: tuple[str, ...]) -> str:
    if name.startswith("/"):
        return name
    for folder in search:
        candidate = os.path.join(folder, name)
        if folder.startswith("/") and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise InvalidManifest(f"{path}: its interpreter {name!r} is in none of the usual folders, nor in PATH")


def _loader(path: str) -> str | None:
    """Return the dynamic loader that a binary names, or None for one that needs none. Raises InvalidManifest."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[4] != 2 or head[5] != 1:
                raise InvalidManifest(f"{path}: a binary of another kind than 64 bits, lowest byte first")
            (start,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            if size < 56 or count > _MAX_SEGMENTS:
                raise InvalidManifest(f"{path}: a damaged binary")
            file.seek(start)
            table = file.read(size * count)
            for position in range(0, len(table) - 55, size):
                kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", table, position)
                if kind == _PT_INTERP:
                    file.seek(min(offset, 1 << 62))
                    loader = file.read(min(length, 4096)).rstrip(b"\0")
                    return os.fsdecode(loader) if loader.startswith(b"/") and b"\0" not in loader else None
    except OSError as error:
        raise InvalidManifest(f"{path}: it cannot be read: {error.strerror}") from error
    return None
