"""What ``ringfence learn`` is to run: a script, a module, a console script or a plugin's function."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["NotFound", "Program", "plugin_program", "program"]

# How a program begins that is no text.
_ELF: Final = b"\x7fELF"
# Of a standard input that is no terminal, which every run gets from its beginning.
_MOST_INPUT: Final = 256 << 20


class NotFound(Exception):
    """There is no such program, or it is none that Python runs."""


class Program(NamedTuple):
    """A program: how it is called here, what kind it is, and what it is started with.

    `mode` is "script", "module" or "plugin"; `target` a file or a module's name; `folder` the head of its `sys.path`;
    `call` a plugin's function, or None, and its arguments; `manifest` the plugin's.
    """

    name: str
    mode: str
    target: str
    argv: list[str]
    folder: str
    call: tuple[str | None, list[Any]] = (None, [])
    manifest: Path | None = None

    @contextmanager
    def stdin(self) -> Iterator[int | None]:
        """Yield a descriptor of what is on standard input, for several runs; None at a terminal, which is asked."""
        if os.isatty(0):
            yield None
            return
        # In memory: there may be no folder for temporary files.
        with open(os.memfd_create("stdin"), "wb", buffering=0) as copy:
            left = _MOST_INPUT
            while left > 0 and (data := os.read(0, min(left, 1 << 20))):
                copy.write(data)
                left -= len(data)
            yield copy.fileno()


def program(command: list[str]) -> Program:
    """Return the program that a command line means. Raises NotFound."""
    if os.path.basename(command[0]).startswith("python") and len(command) > 1 and shutil.which(command[0]):
        command = command[1:]
    if command[0] == "-m" and len(command) > 1:
        return Program(f"-m {command[1]}", "module", command[1], command[1:], os.getcwd())
    if os.path.isfile(command[0]) and _first_line(command[0])[:4] != _ELF:
        path = os.path.abspath(command[0])
        return Program(command[0], "script", path, command, os.path.dirname(os.path.realpath(path)))
    # What is installed beside this interpreter before what a shell would find.
    beside = os.path.dirname(sys.executable)
    found = shutil.which(command[0], path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath))))
    if found is None:
        raise NotFound(f"there is no {command[0]!r}")
    first = _first_line(found)
    if not first.startswith(b"#!") or b"python" not in first:
        raise NotFound(f"{command[0]!r} is no Python program: what it touches cannot be heard")
    return Program(command[0], "script", found, [found, *command[1:]], os.path.dirname(found))


def _first_line(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.readline(256)
    except OSError as error:
        raise NotFound(f"cannot read {path!r}: {error.strerror}") from None


def plugin_program(folder: Path, command: list[str]) -> Program:
    """Return how a plugin is loaded, and one of its functions called. Raises NotFound."""
    from ringfence.cli.plugin_values import value_of
    from ringfence.errors import RingfenceError
    from ringfence.plugins.manifest import Manifest

    path = folder / "plugin.toml" if folder.is_dir() else folder
    try:
        manifest = Manifest.from_file(path)
    except (RingfenceError, OSError) as error:
        raise NotFound(str(error)) from None
    function = command[0] if command else None
    arguments = [value_of(text) for text in command[1:]]
    home = os.path.abspath(path.parent)
    main = os.path.splitext(os.path.basename(manifest.entry_point() or "plugin.py"))[0]
    return Program(manifest.name, "plugin", main, [sys.argv[0]], home, (function, arguments), path)
