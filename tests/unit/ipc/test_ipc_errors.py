"""Errors of the wire say whose fault it was and survive pickling."""

import pickle
import subprocess
import sys

import pytest

import ringfence.ipc
from ringfence.errors import RingfenceError
from ringfence.ipc import errors


def test_nobody_raises_a_protocol_error_without_a_culprit() -> None:
    """ProtocolError itself refuses to be made."""
    with pytest.raises(TypeError, match="whose fault"):
        errors.ProtocolError("somebody did something")


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_a_ringfence_error(name: str) -> None:
    """One `except RingfenceError` catches all of them."""
    assert issubclass(getattr(errors, name), RingfenceError)


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalProtocolError("a"),
        errors.RemoteProtocolError("b"),
        errors.FrameTooLarge(10, 5),
        errors.NotSerializable("result[3]['a']", "threading.Lock", "no"),
        errors.UnregisteredType("m:C"),
        errors.ChannelClosed("c"),
        errors.DeadlineExceeded("d"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: Exception) -> None:
    """An error arrives in another process with its type, its text and its attributes."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.NotSerializable, TypeError),
        (errors.ChannelClosed, EOFError),
        (errors.DeadlineExceeded, TimeoutError),
    ],
)
def test_errors_are_the_builtin_that_callers_expect(error: type, builtin: type) -> None:
    """Code that knows only Python's own errors catches ours."""
    assert issubclass(error, builtin)


@pytest.mark.parametrize("name", ringfence.ipc.__all__)
def test_each_public_name_is_there(name: str) -> None:
    """Whatever __all__ promises can be had from the package."""
    assert getattr(ringfence.ipc, name).__name__ == name


def test_unknown_names_are_refused() -> None:
    """A name that the package does not have is an AttributeError."""
    with pytest.raises(AttributeError, match="nonsense"):
        ringfence.ipc.nonsense  # noqa: B018  # the access is the test


def test_workers_pay_for_nothing_that_they_do_not_use() -> None:
    """Channel and codec import none of the modules that only some values need."""
    script = (
        "import sys; from ringfence.ipc import channel, codec; "
        "print(*{'numpy', 'decimal', 'datetime', 'uuid', 'pathlib', 'fractions', 'multiprocess', 'dill', 'asyncio'}"
        " & set(sys.modules))"
    )
    # -S: the site module of a virtual environment imports what it likes.
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {script}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # msgpack itself imports datetime.
    assert set(found.stdout.split()) <= {"datetime"}
