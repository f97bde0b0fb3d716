"""From what a program touched to the fewest grants and the least limits that it needs, each with its reason: pure."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, final

from ringfence.records import dataclass, field
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant
from ringfence.sandbox.errors import PolicyError

__all__ = ["Lesson", "Reason", "Surroundings", "Touch", "Usage", "learn", "limits_for"]

# So many different files of one folder stand for the folder.
_MANY: Final = 4
_MIB: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Touch:
    """One thing that the program touched.

    `kind` and `what` as `ringfence.worker.recording` writes them; `existed`: whether a path was there before; `where`:
    the line of the program that did it; `relative`: whether it named the path from the current folder.
    """

    kind: str
    what: str
    existed: bool = True
    where: str = ""
    relative: bool = False
    changed: bool = False


@final
@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the program ran.

    Attributes:
        temporary: the folder for temporary files; what is made there the worker has a folder of its own for.
        home: the user's home, which is never granted whole.
        folder: the plugin's own folder, which unscoped fs:read brings; None for a script.
        imports: files of modules that are sent to the worker, and need no grant.
        accepts: whether a policy can hold a worker to this grant.
    """

    temporary: str
    home: str
    folder: str | None = None
    imports: frozenset[str] = frozenset()
    accepts: Callable[[str], bool] = lambda grant: True


@final
@dataclass(frozen=True, slots=True)
class Reason:
    """A grant, what it is for, the line that needed it first, and a warning where it gives much away."""

    grant: str
    why: str
    where: str = ""
    warning: str = ""


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """What a run has used: bytes, seconds, counts."""

    memory: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    processes: int = 1
    open_files: int = 3
    file_size: int = 0


@final
@dataclass(frozen=True, slots=True)
class Lesson:
    """What a program needs: grants, each once and none within another, and what no grant can give."""

    grants: tuple[Reason, ...] = ()
    beyond: tuple[str, ...] = field(default=())

    def with_more(self, more: Iterable[Reason]) -> "Lesson":
        """Return this and further grants."""
        return Lesson(_without_covered([*self.grants, *more]), self.beyond)


def learn(touches: Sequence[Touch], around: Surroundings) -> Lesson:
    """Return what a program needs that has touched all this."""
    made = {touch.what for touch in touches if touch.kind in ("make", "write") and not touch.existed}
    found = [*_files(touches, around, made), *_network(touches, around), *_rest(touches)]
    return Lesson(_without_covered(found), _beyond(touches))


def limits_for(usage: Usage) -> dict[str, str]:
    """Return limits with head-room: twice what was used, rounded up, and never so little that nothing would run."""
    return {
        "memory": f"{max(64, 16 * math.ceil(2 * usage.memory / (16 * _MIB)))}MiB",
        "cpu": f"{max(1, math.ceil(2 * usage.cpu))}s",
        "wall": f"{max(5, math.ceil(2 * usage.wall))}s",
        "processes": str(max(4, 2 * usage.processes)),
        "open_files": str(max(64, 2 * usage.open_files)),
        "file_size": f"{max(1, math.ceil(2 * usage.file_size / _MIB))}MiB",
    }


# --- files --------------------------------------------------------------------------------------------------


def _files(touches: Sequence[Touch], around: Surroundings, made: set[str]) -> list[Reason]:
    reads: dict[str, Reason] = {}
    writes: dict[str, Reason] = {}
    deletes: dict[str, Reason] = {}
    listed: set[str] = set()
    bare: list[Reason] = []
    for touch in touches:
        path = touch.what
        if touch.kind not in _FILE_KINDS:
            continue
        if touch.kind == "import" and around.folder is not None and _within(path, around.folder):
            continue  # a plugin's code is sent to its worker
        if path in around.imports and (touch.kind == "import" or not touch.where):
            continue  # the program's own code, which is sent to the worker
        if not touch.existed and path not in made and touch.kind in ("read", "list", "import", "delete"):
            continue  # it was not there, and will not be
        if touch.kind == "import":
            path = os.path.dirname(path)  # an import lists the folder that it finds a module in
        ground = _ground(path, made)  # the nearest folder that was there before, or the path itself
        if ground == around.temporary and (path != ground or touch.kind == "write"):
            bare.append(Reason("fs:write", "temporary files, in a folder of its own", touch.where))
        elif touch.kind in ("read", "import", "list"):
            if touch.kind == "list" and touch.existed:
                listed.add(path)
            reads.setdefault(ground, Reason("", _WHY[touch.kind].format(_short(path)), touch.where))
        elif touch.kind == "delete":
            deletes.setdefault(os.path.dirname(ground) if ground == path else ground,
                               Reason("", f"removes {_short(path)}", touch.where))
        elif touch.kind == "database":
            reads.setdefault(ground, Reason("", f"opens the database {_short(path)}", touch.where))
            if touch.changed:
                folder = os.path.dirname(ground) if ground == path else ground
                # sqlite opens the folder, to have its journal's name written to the disk.
                reads.setdefault(folder, Reason("", f"opens the folder of the database {_short(path)}", touch.where))
                writes.setdefault(folder, Reason("", f"changes the database {_short(path)}", touch.where))
                deletes.setdefault(folder, Reason("", f"removes the journal of {_short(path)}", touch.where))
        elif touch.kind in ("write", "make"):
            what = f"writes {_short(path)}" if touch.kind == "write" else f"makes the folder {_short(path)}"
            writes.setdefault(ground, Reason("", what, touch.where))
    home = around.folder
    if home is not None:
        inside = [path for path in reads if _within(path, home)]
        bare += [Reason("fs:read", reads[path].why, reads[path].where) for path in inside[:1]]
        reads = {path: reason for path, reason in reads.items() if path not in inside}
    found = list(bare)
    for name, paths in (("fs:read", reads), ("fs:write", writes), ("fs:delete", deletes)):
        folded = _fold(paths, listed if name == "fs:read" else set(), around)
        found += [_scoped(name, path, reason, around) for path, reason in folded.items()]
    changed = [touch for touch in touches if touch.kind == "meta" and touch.existed and touch.what not in made]
    covered = Capabilities(reason.grant for reason in found)
    for touch in changed:
        if not covered.has(f"fs:write={touch.what}"):
            found.append(Reason("fs:metadata", f"changes the mode or times of {_short(touch.what)}", touch.where))
            break
    return found


_FILE_KINDS: Final = frozenset({"read", "import", "list", "delete", "database", "write", "make"})
_WHY: Final[Mapping[str, str]] = {
    "read": "reads {}", "import": "imports {}", "list": "lists {}",
}  # fmt: skip


def _ground(path: str, made: set[str]) -> str:
    """Return the path itself where it was there before, else the nearest folder above that was."""
    while path in made and path != "/":
        path = os.path.dirname(path)
    return path


def _fold(paths: dict[str, Reason], listed: set[str], around: Surroundings) -> dict[str, Reason]:
    """Let a folder stand for many files of it, and for those of a folder that was listed; twice, for trees."""
    for _ in range(2):
        by_folder: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            by_folder[os.path.dirname(path)].append(path)
        for folder, inside in by_folder.items():
            if (len(inside) >= _MANY and not _is_wide(folder, around)) or folder in listed:
                first = paths[inside[0]]
                for path in inside:
                    del paths[path]
                why = first.why if len(inside) == 1 else f"{first.why} and {len(inside) - 1} more there"
                paths.setdefault(folder, Reason("", why, first.where))
    return paths


def _is_wide(folder: str, around: Surroundings) -> bool:
    """Whether a folder holds too much to be granted for the sake of some files in it."""
    return folder.count("/") < 2 or folder in (around.home, around.temporary) or _within(around.home, folder)


def _scoped(name: str, path: str, reason: Reason, around: Surroundings) -> Reason:
    warning = ""
    if _is_wide(path, around) and os.path.basename(path) not in ("",) and path in (around.home, around.temporary):
        warning = f"{path} holds much else: let it use a folder of its own"
    elif path.count("/") < 2 and name != "fs:read":
        warning = f"{path} belongs to the system: let it use a folder of its own"
    elif name == "fs:delete":
        warning = "it may remove whatever is there"
    return Reason(f"{name}={path}", reason.why, reason.where, warning)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _short(path: str) -> str:
    return os.path.basename(path) or path


# --- the network --------------------------------------------------------------------------------------------


def _network(touches: Sequence[Touch], around: Surroundings) -> list[Reason]:
    names = dict(touch.what.split("|", 1) for touch in touches if touch.kind == "name")
    found: list[Reason] = []
    connected: set[str] = set()
    any_port = any(touch.kind == "listen" and touch.what == "0" for touch in touches)
    for touch in touches:
        if touch.kind == "connect":
            address, _, port = touch.what.rpartition("|")
            host = names.get(address, address)
            connected.add(host)
            if any_port and address in _LOOPBACK and int(port) >= _EPHEMERAL:
                why = "connects to itself, at a port that is another one each time"
                found.append(Reason("net:request", why, touch.where, "any host, any port"))
                continue
            shown = f"[{host}]" if ":" in host else host
            exact = f"net:request={shown}:{port}"
            why = f"connects to {shown}:{port}"
            if around.accepts(exact):
                found.append(Reason(exact, why, touch.where))
            else:
                # An address of this link only, or a name that is none: no grant says it, but for its port.
                warning = "any host at that port: no grant can name this one"
                found.append(Reason(f"net:request=:{port}", why, touch.where, warning))
                if address in names:
                    found.append(Reason("net:dns", f"looks up {host}", touch.where, _DNS))
        elif touch.kind == "listen":
            found.append(Reason(f"net:listen={touch.what}", f"listens on port {touch.what}", touch.where,
                                "others may connect to it"))
    looked_up = [touch for touch in touches if touch.kind == "lookup" and not _is_number(touch.what)]
    alone = [touch for touch in looked_up if touch.what not in connected and touch.what != "localhost"]
    found += [Reason("net:dns", f"looks up {touch.what}", touch.where, _DNS) for touch in alone[:1]]
    sent = [touch for touch in touches if touch.kind == "udp"]
    found += [Reason("net:dns", f"sends datagrams to {touch.what}", touch.where, _DNS) for touch in sent[:1]]
    return found


_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
# The least port that the kernel gives to whoever asks for any (net.ipv4.ip_local_port_range).
_EPHEMERAL: Final = 32768
_DNS: Final = "datagrams can carry anything anywhere"


def _is_number(host: str) -> bool:
    return all(letter in "0123456789abcdef.:%" for letter in host) and any(c in host for c in ".:")


# --- everything else ----------------------------------------------------------------------------------------


def _rest(touches: Sequence[Touch]) -> list[Reason]:
    found: list[Reason] = []
    for touch in touches:
        if touch.kind == "env":
            found.append(Reason(f"env:read={touch.what}", f"reads {touch.what}", touch.where))
        elif touch.kind == "program":
            found.append(Reason(f"process:exec={touch.what}", f"starts {_short(touch.what)}", touch.where, _PROGRAMS))
        elif touch.kind == "shell":
            found.append(Reason("process:exec", "starts a shell, which starts programs", touch.where, _PROGRAMS))
        elif touch.kind == "fork":
            found.append(Reason("process:exec", "forks", touch.where, _PROGRAMS))
    return [reason for reason in found if _is_grant(reason.grant)]


_PROGRAMS: Final = "what those programs touch was not recorded"


def _is_grant(text: str) -> bool:
    try:
        Grant.parse(text)
    except PolicyError:
        return False
    return True


def _beyond(touches: Sequence[Touch]) -> tuple[str, ...]:
    said = {
        "link": "it makes links, which no capability allows", "unix": "it connects to a socket of this host, as above",
        "terminal": "it opens a terminal, which no capability allows",
    }  # fmt: skip
    said["unix"] = "it connects to a socket file of this host, which no capability allows"
    return tuple(dict.fromkeys(f"{touch.where}: {said[touch.kind]}" for touch in touches if touch.kind in said))


def _without_covered(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Return each grant once, in order, without those that another one covers."""
    first: dict[Grant, Reason] = {}
    for reason in reasons:
        first.setdefault(Grant.parse(reason.grant), reason)
    kept = []
    for grant, reason in first.items():
        others = [other for other in first if other != grant]
        # A scope brings the private folder as well, yet whoever asks for both means both.
        bare = grant.scope is None and grant.capability in _FILE_SYSTEM
        if bare or not any(other.covers(grant) for other in others):
            kept.append((grant, reason))
    return tuple(reason for _, reason in sorted(kept, key=lambda pair: pair[0]))


_FILE_SYSTEM: Final = frozenset({Capability.FS_READ, Capability.FS_WRITE, Capability.FS_DELETE})
