"""What a plugin's exception becomes on its way to the host: a record with a kind, and only the plugin's own frames."""

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from ringfence.ipc.codec import Codec
from ringfence.sandbox.denials import Refusals
from ringfence.worker import failure, tracebacks
from ringfence.worker.guest_state import Call
from ringfence.worker.reached import Baseline, find_limit

__all__ = ["OURS", "LimitReached", "failed", "is_ours"]

# Frames of these files are not the plugin's: ours, and the import system's.
OURS: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_IMPORT_SYSTEM: Final = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
# What stands between us and a coroutine of the plugin's.
_LOOP: Final = f"{os.sep}asyncio{os.sep}"
_LOOP_FILES: Final = tuple(_LOOP + name for name in ("runners.py", "base_events.py", "events.py"))

# Loaded by the guest before its plugin.
_BASELINE: Final = Baseline()


class LimitReached(BaseException):
    """A call has used up what it may; not an Exception, so that `except Exception` lets it pass.

    Raised in the middle of the plugin's code. That code may catch it and go on: then it is raised again, the call
    has failed all the same, and the time limit, which the host keeps, ends it.
    """

    def __init__(self, kind: str, limit: int, measured: int) -> None:
        super().__init__(f"{_WORDS[kind]}: {measured}, the limit is {limit}")
        self.kind, self.limit, self.measured = kind, limit, measured


_WORDS: Final = {
    "instructions": "lines executed in one call",
    "fs_ops": "file operations in one call",
    "net_ops": "network operations in one call",
    "written": "bytes written to disks in one task",
}


def is_ours(filename: str) -> bool:
    """Return whether frames of this file are left out of tracebacks."""
    return filename.startswith(OURS) or filename in _IMPORT_SYSTEM


def failed(
    error: BaseException,
    codec: Codec,
    call: Call | None = None,
    *,
    refusals: Refusals | None = None,
    limits: Mapping[str, int | None] | None = None,
    kind: str = "exception",
) -> dict[str, Any]:
    """Return `error` as a failure record, with "limit" and "measured" where a limit of the call was reached.

    `call` is the call that it ended, `refusals` explains what the sandbox refused, `limits` are those that an exception
    may stand for, `kind` is what it is unless something else is found. Raises nothing, however hostile the exception
    is.
    """
    try:
        return _described(error, codec, call, refusals, limits or {}, kind)
    except BaseException:  # noqa: BLE001  # the plugin's class has had its say in how it is described
        # The one attribute of a class that no metaclass gets hold of.
        name = type.__dict__["__name__"].__get__(type(error))
        return {
            "kind": kind, "module": "?", "type": name[:256], "bases": [], "args": None, "traceback": "", "notes": [],
            "message": "an exception that raises when it is described",
        }  # fmt: skip


def _described(
    error: BaseException,
    codec: Codec,
    call: Call | None,
    refusals: Refusals | None,
    limits: Mapping[str, int | None],
    kind: str,
) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if call is not None and call.over is not None:
        kind, more["limit"], more["measured"] = call.over
        if not isinstance(error, LimitReached):  # the plugin has caught that one
            reached = LimitReached(*call.over).with_traceback(error.__traceback__)
            reached.__cause__ = error
            error = reached
    elif kind == "unserializable":
        # Of the result, which no line of the plugin's is to blame for: where it is says the message.
        error.__cause__ = error.__context__ = error.__traceback__ = None
    elif refusals is not None and (denied := refusals.explain(error)) is not None:
        if denied is not error:
            denied.__cause__ = error
            denied = denied.with_traceback(error.__traceback__)
        kind, error = "denied", denied
    else:
        if (found := find_limit(error, limits, _BASELINE)) is not None:
            kind, more["measured"] = found
            more["limit"] = limits.get("processes" if kind == "threads" else kind)
        if refusals is not None and (hint := refusals.hint(error)) is not None:
            failure.add_note(error, hint)
    tracebacks.clean(error, is_ours, _is_above)
    return {**failure.record(error, codec, kind=kind), **more}


def _is_above(filename: str) -> bool:
    """Return whether a frame of this file, above the plugin's first, is of no use to its author."""
    return is_ours(filename) or (filename.endswith(_LOOP_FILES) and filename.startswith(sys.base_prefix))
