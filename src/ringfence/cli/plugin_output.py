"""What the plugin commands print: a document or lines, errors as one or the other, foreign text made harmless."""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ringfence.cli.ending import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "NotStarted",
    "console",
    "error_document",
    "escaped",
    "note",
    "placed",
    "print_json",
    "report",
    "safe_lines",
    "show",
    "table",
]

_FAILED: Final = 1
_TIMED_OUT: Final = 124
_NOT_STARTED: Final = 125

_PLACED: Final = re.compile(r"line (\d+): (.*)", re.DOTALL)
# Where nobody's terminal folds the lines: wide enough for paths.
_PIPE_WIDTH: Final = 200
# Lines of one message. A plugin's traceback has a few dozen; a hostile one may have a million.
_MOST_LINES: Final = 200


class NotStarted(Exception):
    """A plugin that was to be started did not come up; `error` says why."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def print_json(document: object) -> None:
    """Print one document on stdout. ASCII only, so that nothing in it can move a cursor."""
    print(json.dumps(document, indent=2, allow_nan=False))


def safe_lines(text: str) -> Iterator[str]:
    """Yield a foreign text's lines, each as a terminal may show it, up to a number of them."""
    lines = text.rstrip("\n").split("\n")
    for line in lines[:_MOST_LINES]:
        yield visible(line.replace("\t", "    "))
    if len(lines) > _MOST_LINES:
        yield f"… and {len(lines) - _MOST_LINES} more lines"


def escaped(text: str) -> str:
    """Return all of a foreign text with what could move a terminal's cursor spelt out, but for line breaks and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def note(text: str) -> None:
    """Say something on stderr: each line is made harmless; nobody listening is no error."""
    try:
        for line in safe_lines(text):
            print(line, file=sys.stderr, flush=True)
    except (OSError, AttributeError):
        pass


def console() -> "Console":
    """Return stdout for rich: colours at a terminal only, and not with NO_COLOR."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=False, emoji=False, markup=False)
    return made if made.is_terminal else Console(highlight=False, emoji=False, markup=False, width=_PIPE_WIDTH)


def show(text: str, style: str | None = None) -> None:
    """Print foreign text on stdout, line by line, harmless, in a style where there are colours."""
    out = console()
    for line in safe_lines(text):
        out.print(line, style=style, soft_wrap=True)


def table(*columns: str, title: str | None = None) -> "Table":
    """Return an empty table; the last column may fold, the others stay whole."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        made.add_column(column, no_wrap=position < len(columns) - 1, overflow="fold")
    return made


# Errors


def report(error: Exception, *, as_json: bool) -> int:
    """Tell of an error, as an object on stdout or as text on stderr; return the exit code it means."""
    code = _code_of(error)
    if isinstance(error, NotStarted):
        error = error.error
    if as_json:
        print_json(error_document(error))
        return code
    trace = getattr(error, "traceback", "") or _refused_at(error)
    if trace:
        note(trace)  # the plugin's own, as its author knows it
    note(f"ringfence: {_message(error)}")
    hint = _hint(error)
    if hint:
        note(f"  {hint}")
    return code


def _refused_at(error: Exception) -> str:
    """Return the plugin's traceback of a refusal, which has it as its cause; empty for any other error."""
    from ringfence.sandbox.errors import CapabilityDenied

    return str(error.__cause__ or "").strip('\n"') if isinstance(error, CapabilityDenied) else ""


def error_document(error: Exception) -> dict[str, Any]:
    """Return what `--json` prints for an error: its type, its category, a message, and what else it knows."""
    from ringfence.errors import PluginError

    category = str(error.category) if isinstance(error, PluginError) else _category(error)
    said: dict[str, Any] = {"type": type(error).__name__, "category": category, "message": _message(error)}
    for name in ("plugin", "path", "line", "column", "function", "remote_type", "traceback"):
        value = getattr(error, name, None)
        if isinstance(value, str | int) and value != "":
            said[name] = value
    if problems := getattr(error, "problems", None):
        said["problems"] = [{"line": line, "message": text} for line, text in map(placed, problems)]
    if hint := _hint(error):
        said["hint"] = hint
    return {"error": said}


def placed(problem: str) -> tuple[int | None, str]:
    """Part a manifest's problem into its line, if it says one, and the rest."""
    match = _PLACED.fullmatch(problem)
    return (int(match[1]), match[2]) if match else (None, problem)


def _category(error: Exception) -> str:
    from ringfence.sandbox.errors import PolicyError

    if isinstance(error, OSError):
        return "io"
    return "validation" if isinstance(error, PolicyError) else "usage" if hasattr(error, "format_message") else "state"


def _message(error: Exception) -> str:
    if hasattr(error, "format_message"):  # click's, whose str() lacks the option's name
        return str(error.format_message())
    if isinstance(error, ExceptionGroup):
        return "\n".join([error.message, *(f"  - {_message(each)}" for each in _flat(error))])
    # What an OSError of the system says of itself: "[Errno 2] No such file or directory: 'x'".
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    if getattr(error, "traceback", ""):
        text = text.partition("\n")[0]  # the rest is the plugin's traceback, which is told apart
    return "\n".join([text or type(error).__name__, *getattr(error, "__notes__", ())])


def _flat(group: "ExceptionGroup[Exception]") -> Iterable[Exception]:
    for each in group.exceptions:
        yield from _flat(each) if isinstance(each, ExceptionGroup) else (each,)


def _hint(error: Exception) -> str | None:
    from ringfence.plugins.errors import ApprovalRequired, IncompatibleProfile, MissingCapability

    match error:
        case ApprovalRequired():
            return f"approve it with --yes, or for one time with {_allows(error.capabilities)}"
        case IncompatibleProfile() | MissingCapability():
            return f"grant it with {_allows([error.capability])}"
    return None


def _allows(capabilities: Iterable[str]) -> str:
    import shlex

    return " ".join(f"--allow {shlex.quote(visible(each))}" for each in capabilities)


def _code_of(error: Exception) -> int:
    from ringfence.plugins.errors import CallTimeout
    from ringfence.pool.errors import BrokenPool
    from ringfence.sandbox.errors import EnforcementError, UnsupportedError

    if isinstance(error, NotStarted | BrokenPool | EnforcementError | UnsupportedError):
        return _NOT_STARTED
    return _TIMED_OUT if isinstance(error, CallTimeout) else _FAILED
