"""Asks a throw-away, locked-in worker what a source holds, and checks its answer.

Parsing hostile source can exhaust memory, take minutes or end a process. Here it costs at most a worker that has seen
nothing else: each source gets a fresh one. Several questions may share a pool (`inspection_pool`) for speed.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

from ringfence.plugins.errors import CompilationError, IpcError
from ringfence.plugins.signatures import Function, read_functions
from ringfence.pool.errors import LimitExceeded, ProtocolViolation, WorkerCrashed
from ringfence.pool.executor import Pool
from ringfence.sandbox.limits import Limits
from ringfence.worker.inspection import examine

__all__ = ["MAX_SOURCE", "Diagnostic", "Inspection", "inspect_source", "inspection_pool"]

MAX_SOURCE: Final = 4 * 1024 * 1024
"""Bytes of one module's source. The longest modules of CPython's own library have a fifth of a MiB."""

# A syntax tree takes about a hundred bytes for one of its source; so does the compiler's.
_MEMORY: Final = "768MiB"
_SECONDS: Final = 20.0
# The code of MAX_SOURCE, a description, and no more.
_MAX_ANSWER: Final = "32MiB"

_MAX_TEXT: Final = 4000
_MAX_LIST: Final = 2000

Severity = Literal["error", "warning"]


@final
@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is wrong, or may be, with a source: `line` and `column` from 1, None where not known."""

    severity: Severity
    message: str
    path: str
    line: int | None = None
    column: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        return f"{place}: {self.severity}: {self.message}"

    def to_error(self) -> CompilationError:
        """Return it as the exception that compiling raises for it."""
        return CompilationError(self.message, self.path, self.line, self.column, self.text)


@final
@dataclass(frozen=True, slots=True)
class Inspection:
    """What a source holds. With an error among `problems` there is nothing else.

    `functions` are those of the module's top level, `exported` is its `__all__` (None without a plain one), `bound` all
    names that the top level defines or imports (with "*" for those nobody can tell), `imports` the modules that it
    imports anywhere, `used` the dotted names that it uses of them and of the builtins.
    """

    problems: tuple[Diagnostic, ...] = ()
    code: bytes | None = None
    functions: Mapping[str, Function] = field(default_factory=dict)
    exported: tuple[str, ...] | None = None
    bound: frozenset[str] = frozenset()
    imports: tuple[str, ...] = ()
    used: frozenset[str] = frozenset()
    lines: int = 0
    classes: int = 0

    @property
    def error(self) -> Diagnostic | None:
        """The reason that it does not compile, if it does not."""
        return next((problem for problem in self.problems if problem.severity == "error"), None)

    @property
    def public(self) -> tuple[str, ...]:
        """The functions to export when nobody says which: `__all__`, or all whose names have no underscore first."""
        if self.exported is not None:
            return self.exported
        return tuple(name for name in self.functions if not name.startswith("_"))


def inspection_pool() -> Pool:
    """Return a pool for `inspect_source`, to be shared by several calls; the caller shuts it down."""
    return Pool(
        1,
        profile="untrusted",
        limits=Limits(memory=_MEMORY, output="64KiB"),
        timeout=_SECONDS,
        isolation="call",  # what one source has done to its worker must not answer for the next
        max_buffer=_MAX_ANSWER,
    )


def inspect_source(
    source: bytes | str,
    filename: str,
    *,
    pool: Pool | None = None,
    optimize: int | None = None,
    flags: int = 0,
    target: tuple[int, int] | None = None,
    lines: bool = True,
) -> Inspection:
    """Return what a module's source holds, and with `optimize` its code.

    Args:
        source: the file's bytes (an encoding cookie counts) or text.
        filename: what errors and tracebacks show.
        pool: a pool of `inspection_pool`; by default one is made for this call.
        optimize: as for `compile`; None compiles nothing.
        flags: of `__future__` features.
        target: the version of Python whose syntax it must keep to.
        lines: whether the code knows its line numbers.

    Raises:
        IpcError: the worker answered what no worker answers. A source that ends its worker is an error among the
            problems, as one that does not compile is.
    """
    size = len(source) if isinstance(source, bytes) else len(source.encode("utf-8", "surrogatepass"))
    if size > MAX_SOURCE:
        return _failed(filename, f"the source is {size} bytes, more than {MAX_SOURCE}")
    options: dict[str, Any] = {"optimize": optimize, "flags": flags, "target": target and list(target), "lines": lines}
    try:
        with nullcontext(pool) if pool is not None else inspection_pool() as asked:
            answer: object = asked.submit(examine, source, filename, options).result()
    except ProtocolViolation as error:
        raise IpcError(f"{filename}: {error}") from error
    except (WorkerCrashed, LimitExceeded, MemoryError) as error:
        return _failed(filename, f"the compiler did not survive it: {str(error).partition(chr(10))[0]}")
    return _read(answer, filename)


def _failed(filename: str, message: str) -> Inspection:
    return Inspection(problems=(Diagnostic("error", message, filename),))


def _read(answer: Any, filename: str) -> Inspection:
    """Check a worker's answer, piece by piece; raises IpcError."""
    if type(answer) is not dict or type(answer.get("problems")) is not list:
        raise IpcError(f"{filename}: the worker described no source")
    problems = tuple(_problem(each, filename) for each in answer["problems"][:_MAX_LIST])
    if any(problem.severity == "error" for problem in problems):
        return Inspection(problems=problems)
    code, exported = answer.get("code"), answer.get("exported")
    if code is not None and (type(code) is not bytes or not code):
        raise IpcError(f"{filename}: the worker made no code")
    return Inspection(
        problems=problems,
        code=code,
        functions=read_functions(answer.get("functions")),
        exported=None if exported is None else _names(exported, filename),
        bound=frozenset(_names(answer.get("bound"), filename)),
        imports=_names(answer.get("imports"), filename),
        used=frozenset(_names(answer.get("used"), filename)),
        lines=_count(answer.get("lines"), filename),
        classes=_count(answer.get("classes"), filename),
    )


def _problem(data: object, filename: str) -> Diagnostic:
    match data:
        case ["error" | "warning" as severity, str(message), int() | None as line, int() | None as column, text]:
            places = (number is None or 0 < number < 1 << 31 for number in (line, column))
            if all(places) and (text is None or type(text) is str):
                shown = None if text is None else text[:_MAX_TEXT]
                return Diagnostic(severity, message[:_MAX_TEXT], filename, line, column, shown)
    raise IpcError(f"{filename}: the worker reported what is no problem")


def _names(data: object, filename: str) -> tuple[str, ...]:
    """Return a list of dotted names; those that are none (a string in `__all__` may be anything) are left out."""
    if type(data) is not list or len(data) > _MAX_LIST or not all(type(each) is str for each in data):
        raise IpcError(f"{filename}: the worker's list of names is none")
    return tuple(each for each in data if len(each) <= 255 and each.replace(".", "_").replace("*", "_").isidentifier())


def _count(data: object, filename: str) -> int:
    if type(data) is not int or not 0 <= data < 1 << 31:
        raise IpcError(f"{filename}: the worker counted no number")
    return data
