"""The work whose time is compared inside and outside: pyperformance's, and our own that mostly makes system calls.

Runs in a worker and in a bare interpreter alike: the standard library is all it imports.
"""

import argparse
import os
import selectors
import socket
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any


def measure(name: str, text: str | None, passes: int, folder: str | None) -> float:
    """Return the CPU seconds of one pass, the least of several.

    Args:
        name: one of OWN; or of pyperformance's, whose program is then `text`.
        text: the program, or None.
        passes: how many times it is looked at; what is short runs several times for each look.
        folder: where files are made; by default where tempfile makes them.
    """
    if folder is not None:
        tempfile.tempdir = folder
    if text is None:
        return _least(OWN[name], passes)
    found: list[float] = []

    class Runner:
        """As much of pyperf.Runner as these programs use; measures in this process."""

        def __init__(self, **_: Any) -> None:
            self.argparser = argparse.ArgumentParser()
            self.metadata: dict[str, str] = {}

        def parse_args(self) -> argparse.Namespace:
            return self.argparser.parse_args([])

        def bench_func(self, _: str, function: Callable[..., Any], *args: Any, **__: Any) -> None:
            found.append(_least(lambda: function(*args), passes))

        def bench_time_func(self, _: str, function: Callable[..., Any], *args: Any, **__: Any) -> None:
            found.append(_least(lambda: function(1, *args), passes))

    pyperf = types.ModuleType("pyperf")
    vars(pyperf).update(Runner=Runner, perf_counter=time.perf_counter, python_implementation=lambda: "cpython")
    sys.modules["pyperf"] = pyperf
    exec(compile(text, f"<{name}>", "exec"), {"__name__": "__main__"})
    [seconds] = found
    return seconds


def _least(function: Callable[[], Any], passes: int) -> float:
    clock = time.process_time
    start = clock()
    function()
    first = clock() - start
    loops = max(1, int(0.03 / first)) if first > 0 else 1000
    best = first if passes == 1 else 1e9
    for _ in range(passes - 1):
        start = clock()
        for _ in range(loops):
            function()
        best = min(best, (clock() - start) / loops)
    return best


def _files() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in range(50):
            path = os.path.join(folder, str(number))
            with open(path, "wb", buffering=0) as out:
                out.write(b"x" * 4096)
            with open(path, "rb", buffering=0) as file:
                file.read(4096)
            os.stat(path)


def _tree() -> None:
    for home, _, names in os.walk(os.path.dirname(argparse.__file__) + "/email"):
        for name in names:
            os.stat(os.path.join(home, name))
    for name in ("asyncio", "encodings", "json"):
        for entry in os.scandir(os.path.join(os.path.dirname(argparse.__file__), name)):
            entry.stat()


def _sources() -> None:
    home = os.path.join(os.path.dirname(argparse.__file__), "asyncio")
    for name in os.listdir(home):
        if name.endswith(".py"):
            with open(os.path.join(home, name), "rb", buffering=0) as file:
                while file.read(4096):
                    pass


def _pipe() -> None:
    reader, writer = os.pipe()
    try:
        for _ in range(2_000):
            os.write(writer, b"x" * 512)
            os.read(reader, 512)
    finally:
        os.close(reader)
        os.close(writer)


def _sockets() -> None:
    near, far = socket.socketpair()
    with near, far, selectors.DefaultSelector() as selector:
        selector.register(far, selectors.EVENT_READ)
        for _ in range(1_000):
            near.send(b"x" * 64)
            selector.select()
            far.recv(64)


OWN: dict[str, Callable[[], Any]] = {
    "files": _files,
    "tree": _tree,
    "sources": _sources,
    "pipe": _pipe,
    "sockets": _sockets,
}
