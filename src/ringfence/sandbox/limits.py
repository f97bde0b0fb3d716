"""How much a worker may use, as frozen data."""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final, final

from ringfence.records import dataclass, field, fields_of
from ringfence.sandbox.amounts import parse_count, parse_duration, parse_size, read_number
from ringfence.sandbox.errors import PolicyError

__all__ = ["Limits"]

class _Given(Enum):
    """The default of a field that the caller said nothing about; `None` says "unlimited"."""

    NOT = "not given"


_NOT_GIVEN: Final = _Given.NOT
_Amount = int | float | str | None | _Given


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one field is read: its kind, the least that makes sense, and why."""

    kind: str
    least: float
    reason: str


_RULES: Final[Mapping[str, _Rule]] = {
    "memory": _Rule("size", 2**20, "less than 1 MiB above the worker's baseline runs nothing"),
    "cpu": _Rule("time", 0.001, "the kernel's clock ticks are that coarse"),
    "wall": _Rule("time", 0.001, "starting a task takes that long"),
    "open_files": _Rule("count", 16, "the worker's own pipes and an import need that many"),
    "processes": _Rule("count", 1, "the worker itself is one"),
    "file_size": _Rule("size", 0, ""),
    "output": _Rule("size", 0, ""),
    "call_depth": _Rule("count", 20, "the worker's own frames and an import need that many"),
    "instructions": _Rule("count", 1, "nothing runs in none"),
    "fs_ops": _Rule("count", 0, ""),
    "net_ops": _Rule("count", 0, ""),
    "written": _Rule("size", 0, ""),
    "cpu_share": _Rule("share", 0.05, "a worker that gets less does not answer in time"),
}
_ALIASES: Final[Mapping[str, str]] = {
    "max_memory": "memory",
    "memory_bytes": "memory",
    "max_call_depth": "call_depth",
    "max_stack_depth": "call_depth",
    "stack_depth": "call_depth",
    "max_instructions": "instructions",
    "max_processes": "processes",
    "max_file_size": "file_size",
    "max_open_files": "open_files",
    "max_output": "output",
    "output_bytes": "output",
    "cpu_time": "cpu",
    "wall_time": "wall",
    "timeout": "wall",
    "stack": "call_depth",
    "tasks": "processes",
    "max_tasks": "processes",
    "max_output_size": "output",
    "output_size": "output",
    "max_fs_ops": "fs_ops",
    "max_net_ops": "net_ops",
    "max_written": "written",
    "bytes_written": "written",
    "max_bytes_written": "written",
    "max_cpu_share": "cpu_share",
}


def _read(name: str, value: _Amount) -> int | float | None:
    """Check one field; `None` stays `None`."""
    rule = _RULES[name]
    if value is None or isinstance(value, _Given):
        return None
    what = f"limits.{name}"
    amount: int | float
    if rule.kind == "time":
        amount = parse_duration(value, what=what)
    elif rule.kind == "size":
        amount = parse_size(value, what=what)
    elif rule.kind == "share":
        amount = float(read_number(value, what, "a number of processors, such as 0.5"))
    else:
        amount = parse_count(value, what=what)
    if amount < rule.least:
        hint = f"; did you mean '{amount}MiB'?" if name == "memory" and isinstance(value, int | float) else ""
        raise PolicyError(f"{what}: {value!r} is below {rule.least}: {rule.reason}{hint}")
    return amount


@final
@dataclass(frozen=True, slots=True, init=False)
class Limits:
    """Ceilings for one worker or one task; `None` is unlimited.

    Sizes are bytes or text (``"256MiB"``), times are seconds or text (``"1.5s"``). A field that was given,
    even as `None`, overrides another's in `merge`; one that was not given does not.

    Attributes:
        memory: bytes above what the worker uses before it runs anything. (A bare CPython worker is already
            about 10 MB, so an absolute 16 MB would leave nothing.)
        cpu: CPU seconds of one task, all its threads together.
        wall: seconds of one task by the clock.
        open_files: file descriptors of the worker, its own few included.
        processes: processes and threads together, the worker included.
        file_size: bytes in any one file the worker writes; 0 allows none.
        output: bytes of captured stdout and of stderr kept per task; more is dropped, and said so.
        call_depth: Python frames; the worker's recursion limit. Code can raise it again: a guard, not a
            boundary.
        instructions: Python instructions of one task, by counting jumps and lines: opt-in, because counting
            costs far more than the code counted. A guard, as the next two.
        fs_ops: how often one task may open, list or change files.
        net_ops: how many connections one task may make, and names look up.
        written: bytes that one task may write to disks, over all files. What goes into memory counts as memory.
        cpu_share: processors that the worker and what it started may keep busy, such as 0.5: it is slowed down to
            that, which is no error.

    The spellings of compatible hosts (``max_memory``, ``memory_bytes``, ``max_call_depth``, ``max_stack_depth``,
    ``max_instructions``, ``timeout``, ``tasks`` and so on) name the same fields. A measured amount breaks a limit
    when it is more than the limit, never when it is the same.

    Raises:
        PolicyError: a value makes no sense, or one field is given under two names.
        TypeError: there is no such limit.
    """

    memory: int | None
    cpu: float | None
    wall: float | None
    open_files: int | None
    processes: int | None
    file_size: int | None
    output: int | None
    call_depth: int | None
    instructions: int | None
    fs_ops: int | None
    net_ops: int | None
    written: int | None
    cpu_share: float | None
    given: frozenset[str] = field(compare=False, repr=False)

    def __init__(
        self,
        *,
        memory: _Amount = _NOT_GIVEN,
        cpu: _Amount = _NOT_GIVEN,
        wall: _Amount = _NOT_GIVEN,
        open_files: _Amount = _NOT_GIVEN,
        processes: _Amount = _NOT_GIVEN,
        file_size: _Amount = _NOT_GIVEN,
        output: _Amount = _NOT_GIVEN,
        call_depth: _Amount = _NOT_GIVEN,
        instructions: _Amount = _NOT_GIVEN,
        fs_ops: _Amount = _NOT_GIVEN,
        net_ops: _Amount = _NOT_GIVEN,
        written: _Amount = _NOT_GIVEN,
        cpu_share: _Amount = _NOT_GIVEN,
        **other_spellings: _Amount,
    ) -> None:
        values = {
            "memory": memory,
            "cpu": cpu,
            "wall": wall,
            "open_files": open_files,
            "processes": processes,
            "file_size": file_size,
            "output": output,
            "call_depth": call_depth,
            "instructions": instructions,
            "fs_ops": fs_ops,
            "net_ops": net_ops,
            "written": written,
            "cpu_share": cpu_share,
        }
        for spelling, value in other_spellings.items():
            if spelling not in _ALIASES:
                raise TypeError(f"unknown limit {spelling!r}; the limits are {', '.join(_RULES)}")
            if values[_ALIASES[spelling]] is not _NOT_GIVEN:
                raise PolicyError(f"limits.{_ALIASES[spelling]} is given twice, once as {spelling!r}; keep one")
            values[_ALIASES[spelling]] = value
        for name, value in values.items():
            object.__setattr__(self, name, _read(name, value))
        given = frozenset(name for name, value in values.items() if value is not _NOT_GIVEN)
        object.__setattr__(self, "given", given)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str = "limits") -> "Limits":
        """Read limits by name from a table, such as one of a TOML file.

        The names are the attributes' and the other spellings in use: ``max_memory``, ``memory_bytes``,
        ``max_call_depth``, ``max_stack_depth``, ``max_instructions`` and so on.

        Raises:
            PolicyError: a name is unknown or given twice, or a value makes no sense; `source` is in the
                message.
        """
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = _ALIASES.get(key, key)
            if name not in _RULES:
                raise PolicyError(f"{source}: unknown limit {key!r}; the limits are {', '.join(_RULES)}")
            if name in found:
                raise PolicyError(
                    f"{source}: {key!r} and another spelling of {name!r} are both given; keep one"
                )
            found[name] = value
        try:
            return cls(**found)
        except PolicyError as error:
            raise PolicyError(f"{source}: {error}") from None

    @classmethod
    def default(cls) -> "Limits":
        """Return limits for small work.

        30 s, 64 MiB and 1 MiB of output come from the plugin hosts this package is compatible with; their 10
        million instructions are left out (counting is opt-in). 1000 frames is CPython's own recursion limit
        too; 256 files and 64 processes and threads are room for any ordinary program, and stop a fork bomb.
        """
        return cls(
            memory="64MiB",
            wall=30,
            open_files=256,
            processes=64,
            output="1MiB",
            call_depth=1000,
        )

    @classmethod
    def plugin_defaults(cls) -> "Limits":
        """Return the compatible hosts' limits for a plugin, all eight: they count instructions, which is slow.

        `with_instructions(None)` leaves that one out.
        """
        return cls(
            memory="64MiB",
            wall=30,
            processes=16,
            output="1MiB",
            call_depth=1000,
            instructions=10_000_000,
            fs_ops=100,
            net_ops=10,
        )

    @classmethod
    def strict(cls) -> "Limits":
        """Return limits for a plugin that should do very little: no files, no network, little of everything else.

        5 s, 16 MiB, 1 million instructions, 100 frames, 64 KiB of output and 4 processes and threads are those of the
        same hosts.
        """
        return cls(
            memory="16MiB",
            cpu=5,
            wall=5,
            open_files=64,
            processes=4,
            file_size=0,
            output="64KiB",
            call_depth=100,
            instructions=1_000_000,
            fs_ops=0,
            net_ops=0,
        )

    @classmethod
    def unlimited(cls) -> "Limits":
        """Return limits that limit nothing, and say so for every field."""
        return cls(**dict.fromkeys(_RULES))

    def merge(self, override: "Limits") -> "Limits":
        """Return these limits with every field that `override` was given, `None` included, in its place."""
        values = {name: getattr(self, name) for name in self.given}
        values.update((name, getattr(override, name)) for name in override.given)
        return Limits(**values)

    def with_(self, **changes: _Amount) -> "Limits":
        """Return a copy with these limits in place of its own; every spelling is read, `None` lifts a limit."""
        return self.merge(Limits(**changes))

    def with_memory(self, memory: int | str | None) -> "Limits":
        """Return a copy with another limit of memory, in bytes or as text such as ``"64MiB"``."""
        return self.with_(memory=memory)

    def with_memory_mb(self, mebibytes: int) -> "Limits":
        """Return a copy with another limit of memory, in units of 1024 * 1024 bytes, as compatible hosts count."""
        return self.with_(memory=mebibytes * 2**20)

    def with_timeout(self, timeout: float | str | None) -> "Limits":
        """Return a copy with another limit of time by the clock, in seconds or as text."""
        return self.with_(wall=timeout)

    def no_timeout(self) -> "Limits":
        """Return a copy without a limit of time by the clock."""
        return self.with_(wall=None)

    def with_cpu(self, cpu: float | str | None) -> "Limits":
        """Return a copy with another limit of CPU seconds."""
        return self.with_(cpu=cpu)

    def with_instructions(self, instructions: int | None) -> "Limits":
        """Return a copy with another limit of Python instructions."""
        return self.with_(instructions=instructions)

    def with_call_depth(self, frames: int | None) -> "Limits":
        """Return a copy with another limit of Python frames."""
        return self.with_(call_depth=frames)

    with_stack_depth = with_call_depth

    def with_output(self, output: int | str | None) -> "Limits":
        """Return a copy with another limit of captured output, in bytes or as text."""
        return self.with_(output=output)

    def with_fs_ops(self, operations: int | None) -> "Limits":
        """Return a copy with another limit of file operations."""
        return self.with_(fs_ops=operations)

    def with_net_ops(self, operations: int | None) -> "Limits":
        """Return a copy with another limit of connections."""
        return self.with_(net_ops=operations)

    def with_written(self, written: int | str | None) -> "Limits":
        """Return a copy with another limit of bytes written to disks, in bytes or as text."""
        return self.with_(written=written)

    def with_cpu_share(self, processors: float | None) -> "Limits":
        """Return a copy with another share of the machine's processors: 0.5 is half of one."""
        return self.with_(cpu_share=processors)

    def with_processes(self, processes: int | None) -> "Limits":
        """Return a copy with another limit of processes and threads."""
        return self.with_(processes=processes)

    with_tasks = with_processes

    def only(self, names: Iterable[str]) -> "Limits":
        """Return the limits of these names alone; the others count as not given."""
        wanted = set(names)
        return Limits(**{name: getattr(self, name) for name in self.given & wanted})

    def narrow(self, other: "Limits") -> "Limits":
        """Return the tighter of the two, field by field."""
        values: dict[str, Any] = {}
        for name in self.given | other.given:
            set_ones = [v for v in (getattr(self, name), getattr(other, name)) if v is not None]
            values[name] = min(set_ones, default=None)
        return Limits(**values)

    def to_mapping(self) -> dict[str, int | float]:
        """Return the limits that are set, by name: plain numbers, bytes and seconds."""
        return {
            name: value
            for name in fields_of(self)
            if name != "given" and (value := getattr(self, name)) is not None
        }

    @property
    def max_memory(self) -> int | None:
        """The same as `memory`."""
        return self.memory

    memory_bytes = max_memory

    @property
    def max_call_depth(self) -> int | None:
        """The same as `call_depth`."""
        return self.call_depth

    max_stack_depth = max_call_depth

    @property
    def max_instructions(self) -> int | None:
        """The same as `instructions`."""
        return self.instructions

    @property
    def timeout(self) -> float | None:
        """The same as `wall`."""
        return self.wall

    @property
    def tasks(self) -> int | None:
        """The same as `processes`."""
        return self.processes

    def __repr__(self) -> str:
        return f"Limits({', '.join(f'{name}={value!r}' for name, value in self.to_mapping().items())})"
