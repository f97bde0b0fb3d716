"""Runs a trusted program in this process, and writes down what it touches, line by line as it does.

Started by ``ringfence learn``, in a fresh interpreter: ``main(fd, settings)``. It hears what Python announces (audit
events), replaces nothing of the program's but the class of `os.environ`, and asks what a name resolved to. What C
libraries do by themselves is not heard: the locked-in run that follows finds that out.
"""

import json
import os
import runpy
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import source_from_cache
from types import FrameType
from typing import Any, Final

from ringfence.worker import tracebacks

__all__ = ["main"]

# A line of this many bytes is written in one piece, whoever else writes (PIPE_BUF of pipe(7)).
_LONGEST_LINE: Final = 4096
# Different things that are written down; a program that touches more is not understood by listing them.
_MOST: Final = 20_000

_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Whose reading of source files is for tracebacks, and which find no file, no harm done.
_FOR_TRACEBACKS: Final = (f"{os.sep}linecache.py", f"{os.sep}tokenize.py", f"{os.sep}inspect.py")
# Which looks for installed packages along sys.path.
_METADATA: Final = f"{os.sep}importlib{os.sep}metadata{os.sep}"
_IMPORT_SYSTEM: Final = ("<frozen importlib._bootstrap_external>", "<frozen zipimport>")
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "env"})


class _Thread(threading.local):
    def __init__(self) -> None:
        self.busy = False


class _Recorder:
    """Turns events into lines, each thing once."""

    def __init__(self, fd: int, libraries: list[str]) -> None:
        self._fd = fd
        self._libraries = tuple(path.rstrip("/") + "/" for path in libraries)
        self._known: set[tuple[str, str, bool]] = set()
        self._thread = _Thread()
        self._hearers: Mapping[str, Callable[..., None]] = {
            "open": self._open,
            **dict.fromkeys(("os.listdir", "os.scandir"), self._list),
            "os.mkdir": lambda path, *_: self._path("make", path),
            "os.remove": lambda path, *_: self._path("delete", path),
            "os.rmdir": lambda path, *_: self._path("delete", path),
            "os.rename": self._rename,
            "os.truncate": lambda path, *_: self._path("write", path),
            "os.symlink": lambda _, path, *__: self._path("link", path),
            "os.link": lambda _, path, *__: self._path("link", path),
            **dict.fromkeys(
                ("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"),
                lambda path, *_: self._path("meta", path),
            ),
            "sqlite3.connect": self._database,
            "ctypes.dlopen": lambda name, *_: self._path("read", name) if name and "/" in str(name) else None,
            "socket.connect": self._connect,
            "socket.bind": self._bind,
            "socket.sendto": lambda _, address: self._datagram(address),
            "socket.getaddrinfo": lambda host, *_: self._look_up(host),
            "socket.gethostbyname": lambda host, *_: self._look_up(host),
            "subprocess.Popen": lambda program, args=None, *_: self._start(program, args),
            "os.exec": lambda program, *_: self._start(program),
            "os.posix_spawn": lambda program, *_: self._start(program),
            "os.system": lambda *_: self.note("shell", ""),
            "os.fork": lambda *_: self.note("fork", ""),
            "os.forkpty": lambda *_: self.note("terminal", ""),
        }

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Take one audit event."""
        hearer = self._hearers.get(event)
        if hearer is None or self._thread.busy:
            return
        self._thread.busy = True
        try:
            hearer(*args)
        except Exception:  # noqa: BLE001  # an error here would become the program's
            pass
        finally:
            self._thread.busy = False

    def note(self, kind: str, what: str, existed: bool = True, **more: Any) -> None:
        """Write one thing down, if it is new."""
        key = (kind, what, existed)
        if key in self._known or len(self._known) >= _MOST:
            return
        self._known.add(key)
        line = json.dumps({"kind": kind, "what": what, "existed": existed, "where": self._where(), **more})
        data = line.encode("utf-8", "surrogatepass") + b"\n"
        if len(data) <= _LONGEST_LINE:
            os.write(self._fd, data)

    def _where(self) -> str:
        """Return the line of the program's own that is at work: the innermost that is no library's."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name != __file__ and not name.startswith("<") and not name.startswith(self._libraries):
                return f"{os.path.basename(name)}:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    def _path(self, kind: str, path: Any, **more: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.fsdecode(path)
        full = os.path.abspath(name)
        if kind == "import" and full.endswith(".pyc"):
            full = source_from_cache(full)  # what the worker, which has no such cache, reads instead
        if f"{full}/".startswith((*self._libraries, "/dev/")):
            return
        self.note(kind, full, os.path.lexists(full), relative=not os.path.isabs(name), **more)

    def _open(self, path: Any, mode: Any, flags: Any) -> None:
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        writes = writes or (isinstance(flags, int) and bool(flags & _WRITING))
        both = (isinstance(mode, str) and "+" in mode) or (isinstance(flags, int) and flags & 3 == os.O_RDWR)
        if writes:
            self._path("write", path)
        if (both or not writes) and (reader := self._reader()) is not None:
            self._path(reader, path)

    def _list(self, path: Any = None, *_: Any) -> None:
        if self._reader() == "read":
            self._path("list", "." if path is None else path)

    def _reader(self) -> str | None:
        frame: FrameType | None = sys._getframe(3)
        for _ in range(6):
            if frame is None:
                break
            name = frame.f_code.co_filename
            if name in _IMPORT_SYSTEM:
                return "import"
            if name.endswith(_FOR_TRACEBACKS) or _METADATA in name:
                return None
            frame = frame.f_back
        return "read"

    def _rename(self, source: Any, target: Any, *_: Any) -> None:
        self._path("delete", source)
        self._path("write", target)

    def _database(self, database: Any, *_: Any) -> None:
        name = os.fsdecode(database) if isinstance(database, str | bytes | os.PathLike) else ""
        if name in ("", ":memory:") or name.startswith("file:"):
            return
        try:
            state = os.stat(name)
            before = [state.st_mtime_ns, state.st_size]
        except OSError:
            before = []
        self._path("database", name, before=before)

    def _connect(self, sock: Any, address: Any) -> None:
        if isinstance(address, tuple) and len(address) >= 2:
            if int(sock.type) & 0xF == 1:
                self.note("connect", f"{address[0]}|{address[1]}")
            else:
                self._datagram(address)
        elif isinstance(address, str | bytes):
            self.note("unix", os.fsdecode(address))

    def _bind(self, sock: Any, address: Any) -> None:
        if isinstance(address, tuple) and len(address) >= 2 and int(sock.type) & 0xF == 1:
            self.note("listen", str(address[1]))

    def _datagram(self, address: Any) -> None:
        self.note("udp", str(address[0]) if isinstance(address, tuple) else "")

    def _look_up(self, host: Any) -> None:
        if host:
            self.note("lookup", host.decode("ascii", "replace") if isinstance(host, bytes) else str(host))

    def _start(self, program: Any, args: Any = None) -> None:
        if program is None and args:
            program = args if isinstance(args, str | bytes) else args[0]
        name = os.fsdecode(program)
        found = name if "/" in name else shutil.which(name)
        if os.path.basename(name) in _SHELLS:
            self.note("shell", name)
        elif found is not None:
            self.note("program", os.path.abspath(found))

    def names(self) -> None:
        """Write down what names resolve to, so that a connection is known by its name."""
        import socket

        resolve = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
            found = resolve(host, *args, **kwargs)
            for entry in found:
                if host and entry[4][0] != host:
                    self.note("name", f"{entry[4][0]}|{host if isinstance(host, str) else host.decode()}")
            return found

        socket.getaddrinfo = getaddrinfo

    def environment(self) -> None:
        """Write down which variables are read; a library of Python's own that looks at one does not count."""
        note, libraries = self.note, tuple(path for path in self._libraries if "-packages/" not in path)
        usual = type(os.environ)

        class Environ(usual):  # type: ignore[misc, valid-type]  # whatever class it has
            """os.environ, heard."""

            def __getitem__(self, key: str) -> str:
                value: str = usual.__getitem__(self, key)
                frame: FrameType | None = sys._getframe(1)
                while frame is not None and frame.f_code.co_filename.endswith(("os.py", "_collections_abc.py>")):
                    frame = frame.f_back
                while frame is not None and frame.f_code.co_filename == "<frozen _collections_abc>":
                    frame = frame.f_back
                name = "" if frame is None else frame.f_code.co_filename
                if not name.startswith(libraries) and not name.startswith("<frozen"):
                    note("env", key)
                return value

        os.environ.__class__ = Environ


def _tell(_: type[BaseException], error: BaseException, __: object) -> None:
    """Print an error as python does, without the frames that stand between us and the program."""
    tracebacks.clean(error, __file__.__eq__, _ABOVE.__contains__)
    sys.__excepthook__(type(error), error, error.__traceback__)


_ABOVE: Final = frozenset({__file__, "<string>", "<frozen runpy>"})


def main(fd: int, settings: dict[str, Any]) -> None:
    """Run a program as settings say, writing to `fd` what it touches. Leaves as the program leaves.

    `settings`: "mode" is "script", "module" or "plugin", "target" its file or name, "argv" its `sys.argv`, "folder"
    the head of its `sys.path`, "libraries" the folders that count as the interpreter's, "call" a plugin's function and
    arguments.
    """
    recorder = _Recorder(fd, settings["libraries"])
    sys.argv[:] = settings["argv"]
    sys.excepthook = _tell
    sys.dont_write_bytecode = True
    sys.path[0:1] = [settings["folder"]]
    recorder.names()
    recorder.environment()
    sys.addaudithook(recorder.hear)
    if settings["mode"] == "script":
        runpy.run_path(settings["target"], run_name="__main__")
    elif settings["mode"] == "module":
        runpy.run_module(settings["target"], run_name="__main__", alter_sys=True)
    else:
        module = import_module(settings["target"])
        function, args = settings["call"]
        if function:
            found = getattr(module, function)(*args)
            if hasattr(found, "__await__"):
                import_module("asyncio").run(found)
