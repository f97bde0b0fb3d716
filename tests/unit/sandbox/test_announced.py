"""What is remembered of announced operations, and which of them an error came from."""

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringfence.sandbox.announced import install_audit_hook, recent_events
from ringfence.sandbox.denials import Event, Refusals
from ringfence.sandbox.origins import innermost, is_of

_NOWHERE = "/nonexistent/x"


def _refusals() -> Refusals:
    return Refusals(["fs:read=/data"], own=("/own",), readable=("/lib/python",))


def _failed(call: Callable[[], Any], number: int = errno.EACCES) -> OSError:
    """Let the real call fail as it does here, then make its errno that of a refusal."""
    try:
        call()
    except OSError as error:
        error.errno = number
        return error
    raise AssertionError("the call should fail")


def _raise(path: str) -> None:
    raise PermissionError(errno.EACCES, "as I say", path)


@pytest.fixture(autouse=True)
def remembering() -> None:
    """Announcements are remembered, once more as from now."""
    install_audit_hook()


def test_each_thread_remembers_what_names_no_path() -> None:
    """Another thread's connections come after one's own, however new they are."""

    def fork_elsewhere() -> None:
        with pytest.raises(ProcessLookupError):
            os.kill(2**22 + 1, 0)

    with pytest.raises(ProcessLookupError):
        os.kill(2**22 + 2, 0)
    thread = threading.Thread(target=fork_elsewhere)
    thread.start()
    thread.join()
    kills = [event.args[0] for event in recent_events() if event.name == "os.kill"]
    assert kills.index(2**22 + 2) < kills.index(2**22 + 1)


def test_what_is_remembered_is_bounded_and_holds_no_socket() -> None:
    """The memory is small and keeps no connection open."""
    one, two = socket.socketpair()
    with one, two, pytest.raises(OSError):
        one.connect("/nonexistent")
    for _ in range(100):
        with pytest.raises(OSError):
            open("/nonexistent/again").close()
    events = [event for event in recent_events() if event.name == "open"]
    assert len(events) == 64 and events[0].args[0] == "/nonexistent/again"
    assert not any(isinstance(a, socket.socket) for event in recent_events() for a in event.args)


def test_remembering_an_open_announces_nothing_itself() -> None:
    """A look at a frame would be announced three times over, which takes longer than all else that is done here."""
    heard: list[str] = []
    is_over = False

    def hear(name: str, _: tuple[Any, ...]) -> None:
        if not is_over:
            heard.append(name)

    sys.addaudithook(hear)
    os.close(os.open("/", os.O_RDONLY))
    is_over = True
    assert heard == ["open"]


@pytest.mark.parametrize(
    ("call", "event"),
    [
        (lambda: open(_NOWHERE).close(), Event("open", (_NOWHERE, "r", 0))),
        (lambda: open(Path(_NOWHERE)).close(), Event("open", (_NOWHERE, "r", 0))),
        (lambda: os.unlink(_NOWHERE), Event("os.remove", (_NOWHERE, -1))),
        (lambda: os.replace(_NOWHERE, "/y"), Event("os.rename", (_NOWHERE, "/y", -1, -1))),
        (lambda called=open: called(_NOWHERE).close(), Event("open", (_NOWHERE, "r", 0))),
        (lambda called=os.unlink: called(_NOWHERE), Event("os.remove", (_NOWHERE, -1))),
        (lambda: os.listdir(2**20), Event("os.listdir", (None,))),  # as in a folder that may not be listed
    ],
)
def test_an_error_that_names_the_path_is_of_the_operation(call: Callable[[], Any], event: Event) -> None:
    """Also where its function goes by another name; without a path only by the function's own name."""
    error = _failed(call)
    if not isinstance(error.filename, str | Path):
        error.filename = None
    assert is_of(error, innermost(error), event)


@pytest.mark.parametrize(
    ("call", "event"),
    [
        (lambda: open(_NOWHERE).close(), Event("open", ("/nonexistent/y", "r", 0))),
        (lambda: open(_NOWHERE).close(), Event("os.remove", (_NOWHERE, -1))),
        (lambda: os.stat(_NOWHERE), Event("open", (_NOWHERE, "w", 0))),
        (lambda: os.chdir(_NOWHERE), Event("open", (_NOWHERE, "w", 0))),
        (lambda: os.truncate(_NOWHERE, 0), Event("open", (_NOWHERE, "r", 0))),
        (lambda: _raise(_NOWHERE), Event("open", (_NOWHERE, "w", 0))),
        (lambda: os.read(-1, 1), Event("os.listdir", (None,))),
        (lambda called=os.read: called(-1, 1), Event("open", (3, None, 0))),
    ],
)
def test_an_error_of_something_else_is_not(call: Callable[[], Any], event: Event) -> None:
    """Another path, another function, or a `raise` of the author's own."""
    error = _failed(call)
    assert not is_of(error, innermost(error), event)


def test_clean_up_does_not_take_the_blame() -> None:
    """What is done to the same path on the way out is announced later; what failed is still what is explained."""

    def write() -> None:
        try:
            open(_NOWHERE, "w").close()
        except OSError:
            for clean_up in (lambda: os.remove(_NOWHERE), lambda: open(_NOWHERE).close()):
                with pytest.raises(OSError):
                    clean_up()
            raise

    denied = Refusals(["fs:read=/nonexistent"], own=("/own",)).explain(_failed(write))
    assert denied is not None and (denied.operation, denied.needs) == ("open", f"fs:write={_NOWHERE}")


def test_of_what_was_done_to_a_path_the_last_is_explained() -> None:
    """A function that goes by another name may be any of them."""

    def attempt(function: Callable[[str], Any]) -> None:
        function(_NOWHERE)

    for last, first in ((open, os.remove), (os.remove, open)):
        _failed(lambda first=first: attempt(first))  # type: ignore[misc]
        denied = _refusals().explain(_failed(lambda last=last: attempt(last)))  # type: ignore[misc]
        assert denied is not None and str(denied.operation).rpartition(".")[2] == last.__name__


def test_what_is_forgotten_is_explained_by_the_error_alone() -> None:
    """A hundred threads may have opened files before an executor's first error is looked at."""
    error = _failed(lambda: open(_NOWHERE).close())
    for _ in range(100):
        os.close(os.open("/", os.O_RDONLY))
    assert not any(event.name == "open" and event.args[0] == _NOWHERE for event in recent_events())
    assert f"open('{_NOWHERE}') needs fs:read={_NOWHERE}" in str(_refusals().explain(error))
