"""Refusals that arrive as something else: errors of C libraries, which keep the errno to themselves, by their texts."""

import os
import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from ringfence.sandbox.capabilities import Capability, Grant
from ringfence.sandbox.operations import Event, Need, path_of, text_of

__all__ = ["compile_patterns", "named_path", "unmask"]


# Patterns are compiled where they are first used, and kept by `re`: to compile all of them takes a millisecond, which
# every zygote's start would wait for.


class _Disguise(NamedTuple):
    r"""One kind of error: whose it is, what it says, and what was needed, given the match and the thread's operations.

    `operation` is what its author wrote; \1 in it is what matched. `needs` may find that nothing was needed: the error
    is then an ordinary one.
    """

    module: str
    kind: str
    text: str
    operation: str
    needs: Callable[[re.Match[str], Iterable[Event]], list[Need]]


def unmask(error: BaseException, events: Iterable[Event]) -> tuple[str, list[Need]] | None:
    """Return the operation behind an error that is in the table and what it needed; None for every other error."""
    known = tuple(events)
    kinds = {(cls.__module__, cls.__name__) for cls in type(error).__mro__}
    text = _text(error)
    for disguise in _DISGUISES:
        if (disguise.module, disguise.kind) in kinds and (match := re.search(disguise.text, text)) is not None:
            return match.expand(disguise.operation), disguise.needs(match, known)
    return None


def named_path(error: BaseException) -> str | None:
    """Return the absolute path that an error's text names as one that could not be opened, or None."""
    text = _text(error)
    match = re.search(_PATH, text) if re.search(_COMPLAINT, text) else None
    return None if match is None else match[1] or match[2]


def compile_patterns() -> None:
    """Compile every pattern, for processes to be forked."""
    for pattern in (_COMPLAINT, _PATH, *(disguise.text for disguise in _DISGUISES)):
        re.compile(pattern)


# What libraries in C say of a file that they could not open.
_COMPLAINT: Final = (
    r"(?i)permission denied|operation not permitted|no such file|"
    r"(failed|unable|cannot|can't|could ?n[o']t) (to )?(be )?(open|load|read|find|access|stat|map|create)"
)
_PATH: Final = r"""['"](/[^'"\0\n]{1,4096})['"]|(?<![\w./:])(/[\w.+@%~-]+(?:/[\w.+@%~-]+)*)"""
_LONGEST: Final = 64 * 1024


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_LONGEST]
    except Exception:  # noqa: BLE001  # __str__ of foreign code
        return ""


def _last(events: Iterable[Event], name: str) -> object:
    return next((event.args[0] for event in events if event.name == name and event.args), None)


def _database(events: Iterable[Event]) -> str | None:
    """Return the path of the database that was opened last; None for one in memory or by a URI."""
    name = text_of(_last(events, "sqlite3.connect"))
    return None if not name or name == ":memory:" or name.startswith("file:") else name


def _opens_database(_match: re.Match[str], events: Iterable[Event]) -> list[Need]:
    name = _database(events)
    path = path_of(name)
    if name is None or path is None:
        return []
    if not os.path.isabs(name):
        return [Need(Grant(Capability.FS_WRITE, path), name)]  # in the worker's own folder, where nothing is yet
    note = "to change it, its folder takes fs:write: SQLite keeps a journal there"
    # One that is there is opened; one that is not is made.
    return [Need(Grant(Capability.FS_READ, path), name, note=note), Need(Grant(Capability.FS_WRITE, path), name)]


def _changes_database(_match: re.Match[str], events: Iterable[Event]) -> list[Need]:
    name = _database(events)
    path = path_of(name)
    if name is None or path is None:
        return []
    folder = path.rpartition("/")[0] or "/"
    return [Need(Grant(Capability.FS_WRITE, folder), name)]


def _loads(match: re.Match[str], _events: Iterable[Event]) -> list[Need]:
    path = path_of(match[1])
    return [] if path is None else [Need(Grant(Capability.FS_READ, path), match[1])]


def _maps(match: re.Match[str], _events: Iterable[Event]) -> list[Need]:
    note = "nothing is run from where this worker may write; put it where it may only read"
    return [Need(Grant(Capability.NATIVE_JIT), match[1], never=True, note=note)]


def _makes_temporary(_match: re.Match[str], _events: Iterable[Event]) -> list[Need]:
    return [Need(Grant(Capability.FS_WRITE), None)]


def _asks_for(path: str) -> Callable[[re.Match[str], Iterable[Event]], list[Need]]:
    def needs(match: re.Match[str], _events: Iterable[Event]) -> list[Need]:
        # A worker runs as a user of its own, which is in nobody's list.
        return [] if match[2] == str(os.getuid()) else [Need(Grant(Capability.FS_READ, path), None)]

    return needs


def _runs_what_it_writes(match: re.Match[str], _events: Iterable[Event]) -> list[Need]:
    note = "it asks for memory that is both written and run: an executable stack, or text relocations"
    return [Need(Grant(Capability.NATIVE_JIT), match[1], note=note)]


# Said of a shared object whose own pages, or every thread's stack, would have to be writable and executable at once.
_WRITTEN_AND_RUN: Final = (
    r"^([^:\n]+): cannot (?:enable executable stack|change memory protections|restore segment prot).*not permitted"
)
_DISGUISES: Final = (
    _Disguise(
        "sqlite3", "OperationalError", r"unable to open database", "sqlite3.connect", _opens_database
    ),
    _Disguise(
        "sqlite3", "OperationalError", r"readonly database|disk I/O error", "sqlite3.connect",
        _changes_database,
    ),
    _Disguise(
        "builtins", "OSError", r"^(/[^:\n]+): (?:cannot open shared object|failed to map|cannot read)"
        r"(?!.*from shared object: Operation not permitted)",
        "ctypes.CDLL", _loads,
    ),
    _Disguise(
        "builtins", "ImportError", r"^(/[^:\n]+): (?:cannot open shared object|cannot read)", "import",
        _loads,
    ),
    _Disguise(
        "builtins", "OSError", r"^(/[^:\n]+): failed to map segment.*not permitted", "ctypes.CDLL", _maps
    ),
    _Disguise(
        "builtins", "ImportError", r"^(/[^:\n]+): failed to map segment.*not permitted", "import", _maps
    ),
    _Disguise("builtins", "OSError", _WRITTEN_AND_RUN, "ctypes.CDLL", _runs_what_it_writes),
    _Disguise("builtins", "ImportError", _WRITTEN_AND_RUN, "import", _runs_what_it_writes),
    _Disguise(
        "builtins", "FileNotFoundError", r"No usable temporary directory found", "tempfile",
        _makes_temporary,
    ),
    _Disguise(
        "builtins", "KeyError", r"(getpw(?:uid|nam))\(\): \w+ not found: '?(\w+)", r"pwd.\1",
        _asks_for("/etc/passwd"),
    ),
    _Disguise(
        "builtins", "KeyError", r"(getgr(?:gid|nam))\(\): \w+ not found: '?(\w+)", r"grp.\1",
        _asks_for("/etc/group"),
    ),
    # cffi's; ctypes says nothing at all.
    _Disguise(
        "builtins", "MemoryError", r"^Cannot allocate write\+execute memory for ffi\.callback", "ffi.callback",
        lambda _match, _events: [Need(Grant(Capability.NATIVE_JIT), None)],
    ),
    _Disguise(
        "builtins", "ValueError", r"^not allowed to raise maximum limit", "resource.setrlimit",
        lambda _match, _events: [Need(
            Grant(Capability.PROCESS_EXEC), None, never=True,
            note="a worker does not change its own ceilings; pass `Limits` to whoever starts it",
        )],
    ),
)  # fmt: skip
