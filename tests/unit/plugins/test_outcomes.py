"""What a guest reported, and how a worker died, become the error that says so; what is no report is refused."""

import signal
from typing import Any

import pytest

from ringfence.errors import PluginError
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.plugins import outcomes
from ringfence.plugins.errors import (
    Cancelled,
    CapabilityDenied,
    CompilationError,
    ExecutionFailed,
    FsOpsExceeded,
    FunctionNotFound,
    InstructionsExceeded,
    MemoryExceeded,
    NetOpsExceeded,
    PluginCrashed,
    StackDepthExceeded,
    ValueConversionError,
)
from ringfence.pool.errors import BrokenPool, ProtocolViolation, WorkerCrashed


def record(kind: str = "exception", **changes: Any) -> dict[str, Any]:
    """Return what an honest guest sends of a ValueError, with changes."""
    made = {
        "kind": kind, "module": "builtins", "type": "ValueError", "bases": ["ValueError"], "args": ["bad", 3],
        "message": "('bad', 3)", "traceback": "Traceback ...\n  main.py, line 7\n", "notes": ["a note"],
    }  # fmt: skip
    return {**made, **changes}


def test_an_exception_is_told_with_its_class_traceback_and_notes() -> None:
    """And the exception itself, built again, is the cause."""
    error = outcomes.call_error(record(), "p", "f")
    assert isinstance(error, ExecutionFailed)
    assert (error.plugin, error.function, error.remote_type) == ("p", "f", "ValueError")
    assert "main.py, line 7" in str(error)
    assert error.notes == ("a note",)
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.args == ("bad", 3)


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("call_depth", StackDepthExceeded),
        ("instructions", InstructionsExceeded),
        ("fs_ops", FsOpsExceeded),
        ("net_ops", NetOpsExceeded),
    ],
)
def test_each_limit_has_its_own_class_with_limit_and_measure(kind: str, cls: type[Any]) -> None:
    """The numbers are the guest's, as far as they are numbers."""
    error = outcomes.call_error(record(kind, limit=10, measured=11), "p", "f")
    assert type(error) is cls
    assert (error.limit, error.actual) == (10, 11)
    assert "p.f" in str(error)
    odd = outcomes.call_error(record(kind, limit="ten", measured=10**400), "p", "f")
    assert (odd.limit, odd.actual) == (None, None)  # type: ignore[attr-defined]


def test_the_other_kinds_have_theirs() -> None:
    """Memory, a result that cannot cross, a function that is not there, a call that never began, a refusal."""
    memory = outcomes.call_error(record("memory", type="MemoryError"), "p", "f", 1 << 20)
    assert isinstance(memory, MemoryExceeded)
    assert isinstance(outcomes.call_error(record("unserializable"), "p", "f"), ValueConversionError)
    assert isinstance(outcomes.call_error(record("missing"), "p", "f"), FunctionNotFound)
    assert isinstance(outcomes.call_error(record("cancelled"), "p", "f"), Cancelled)
    denied = record("denied", denied=["fs:read", "open", "/etc/passwd", "fs:read=/etc/passwd"], message="needs fs:read")
    error = outcomes.call_error(denied, "p", "f")
    assert isinstance(error, CapabilityDenied)
    assert (error.capability, error.operation, error.target) == ("fs:read", "open", "/etc/passwd")
    assert error.plugin == "p"


def test_a_module_that_does_not_compile_says_where() -> None:
    """Line, column and text come from the SyntaxError, if they are what they should be."""
    sent = record(
        "compile", type="SyntaxError", bases=["SyntaxError"], message="invalid syntax",
        args=["invalid syntax", ["main.py", 3, 5, "def (", 3, 6]],
    )  # fmt: skip
    error = outcomes.load_error(sent, "p")
    assert isinstance(error, CompilationError)
    assert (error.path, error.line, error.column) == ("main.py", 3, 5)
    assert error.plugin == "p"
    assert isinstance(outcomes.load_error(record(), "p"), ExecutionFailed)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"kind": "exception"}, record(message=5), record(notes="text"), record(traceback="x" * 10**6)],
    ids=["empty", "kind alone", "no text", "notes", "long"],
)
def test_what_is_no_record_is_refused(wrong: dict[str, Any]) -> None:
    """The connection then ends the worker."""
    with pytest.raises(RemoteProtocolError):
        outcomes.call_error(wrong, "p", "f")


def test_a_crash_is_told_with_signal_last_words_and_stack() -> None:
    """faulthandler's stack is found at the end of stderr."""
    stderr = "noise\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  File\n"
    crash = WorkerCrashed("worker 5 was ended by signal SIGSEGV", None, signal.SIGSEGV, stderr, 5)
    error = outcomes.death(crash, "p", "")
    assert isinstance(error, PluginCrashed)
    assert (error.exit_code, error.signal) == (None, signal.SIGSEGV)
    assert error.stack.startswith("Current thread") or error.stack.startswith("Fatal Python error")
    assert "noise" not in error.stack
    assert error.__cause__ is crash


def test_every_way_to_end_is_a_plugin_error() -> None:
    """Whatever the pool says, callers get one root to catch."""
    for error in (
        WorkerCrashed("gone", 3),
        ProtocolViolation("forged"),
        BrokenPool("no worker can be started"),
        ValueError("unforeseen"),
        None,
        MemoryExceeded("too much", 1, 2),
    ):
        made = outcomes.death(error, "p", "tail")
        assert isinstance(made, PluginError)
        assert made.plugin == "p"
    forged = outcomes.death(ProtocolViolation("forged"), "p", "")
    assert isinstance(forged, PluginCrashed)
    assert forged.signal == 9


def test_a_programs_end_is_told_by_its_exit_code() -> None:
    """Not by the code of the process that started it."""
    error = outcomes.death(None, "p", "", {"exit_code": 4, "signal": None, "violation": None})
    assert isinstance(error, PluginCrashed)
    assert error.exit_code == 4
