"""Tells whether an error came from an operation that was announced."""

from collections.abc import Mapping
from types import CodeType
from typing import Final

from ringfence.sandbox.callees import called_by, is_raised_in_python
from ringfence.sandbox.operations import NAMED, Event, text_of
from ringfence.sandbox.unannounced import is_unannounced

__all__ = ["innermost", "is_of"]

# The functions in C behind the operations whose errors name their paths.
_FUNCTIONS: Final[Mapping[str, str]] = {
    **{name.rpartition(".")[2]: name for name in NAMED},
    "open_code": "open", "unlink": "os.remove", "replace": "os.rename", "lchmod": "os.chmod", "fchmod": "os.chmod",
    "lchown": "os.chown", "fchown": "os.chown",
}  # fmt: skip


def innermost(error: BaseException) -> tuple[CodeType | None, int]:
    """Return the instruction that raised."""
    trace = error.__traceback__
    if trace is None:
        return None, -1
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code, trace.tb_lasti


def is_of(error: OSError, place: tuple[CodeType | None, int], event: Event) -> bool:
    """Whether `error`, raised at `place`, came from an announced operation.

    The very instruction that raised has announced it; where only the operation's arguments are known, the error names
    its path, and nothing else is called there.
    """
    if event.code is None:
        return event.name in NAMED and _names_path(error, event) and _calls(place, event.name, error.filename is None)
    if event.code is not place[0]:
        return False
    # Popen announces itself from Python and fails some lines below, in the same function.
    if event.instruction != place[1] and event.name != "subprocess.Popen":
        return False
    if error.filename is None or event.name == "subprocess.Popen":
        return True
    return any(text_of(error.filename) == text_of(argument) for argument in event.args)


def _names_path(error: OSError, event: Event) -> bool:
    name = text_of(error.filename)
    return any(text_of(path) == name for path in event.args[: NAMED[event.name]])


def _calls(place: tuple[CodeType | None, int], operation: str, is_sure: bool) -> bool:
    """Whether the instruction may call this operation's function, or with `is_sure` does so by its name."""
    code, instruction = place
    if code is None or is_raised_in_python(code, instruction):
        return False
    if not is_sure and not any(_is_another(name, operation) for name in code.co_names):
        return True
    # Under another name than its own, as a variable's or an argument's, it may be any function.
    called = called_by(code, instruction) or ""
    return _FUNCTIONS.get(called) == operation if is_sure else not _is_another(called, operation)


def _is_another(name: str, operation: str) -> bool:
    """Whether a function of this name is known to be another operation's."""
    known = _FUNCTIONS.get(name)
    return is_unannounced(name) if known is None else known != operation
