"""From a failure record, or a death, to the exception that the caller sees."""

import builtins
import errno
import pickle
import signal
import traceback
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence import errors as root
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.pool import errors, outcome
from ringfence.pool.outcome import (
    EXCEEDED,
    crash,
    exception_from,
    is_cpu_limit,
    killed_for_memory,
    limit_behind,
    violation,
)
from ringfence.pool.terms import TOLD
from ringfence.sandbox.errors import CapabilityDenied, EnforcementError
from ringfence.sandbox.limits import Limits
from ringfence.worker import failure


def record(**changes: Any) -> dict[str, Any]:
    """Return a record of a ValueError, changed as asked."""
    made: dict[str, Any] = {
        "kind": "exception",
        "module": "builtins",
        "type": "ValueError",
        "message": "bad",
        "args": ["bad"],
        "traceback": "Traceback ...",
        "notes": [],
    }
    return {**made, **changes}


def travelled(error: BaseException, **options: Any) -> BaseException:
    """Return what arrives when a worker fails with `error`."""
    codec = Codec()
    return exception_from(codec.unpack(codec.pack(failure.record(error, codec, **options))))


BUILTINS = [
    cls
    for cls in vars(builtins).values()
    if isinstance(cls, type) and issubclass(cls, BaseException) and not issubclass(cls, BaseExceptionGroup)
]
ARGUMENTS: dict[type, tuple[Any, ...]] = {
    UnicodeDecodeError: ("utf-8", b"\xff", 0, 1, "why"),
    UnicodeEncodeError: ("ascii", "ä", 0, 1, "why"),
    UnicodeTranslateError: ("ä", 0, 1, "why"),
}


ENDINGS = (StopIteration, StopAsyncIteration, KeyboardInterrupt, GeneratorExit)


@pytest.mark.parametrize("cls", [cls for cls in BUILTINS if cls not in ENDINGS], ids=lambda cls: cls.__name__)
def test_every_builtin_exception_is_rebuilt(cls: type[BaseException]) -> None:
    """Same class, same args, and the remote traceback as its cause."""
    args = ARGUMENTS.get(cls, ("only the message",) if issubclass(cls, SyntaxError) else ("one", 2))
    made = cls(*args)
    arrived = travelled(made)
    assert type(arrived) is type(made)
    assert arrived.args == made.args
    assert type(arrived.__cause__) is _RemoteTraceback


@pytest.mark.parametrize("cls", ENDINGS)
def test_what_would_end_more_than_the_task_arrives_as_remote_error(cls: type[BaseException]) -> None:
    """A loop, a generator or the program of the caller; a trusted task may end the program, as with CPython's pool."""
    made = failure.record(cls("why"), Codec())
    arrived = exception_from(made)
    assert type(arrived) is errors.RemoteError
    assert (arrived.type_name, arrived.message) == (cls.__name__, "why")
    of_trusted = errors.RemoteError if issubclass(cls, Exception) else cls
    assert type(exception_from(made, trusted=True)) is of_trusted
    group = failure.record(BaseExceptionGroup("g", [cls("why")]), Codec())
    arrived = exception_from(group)
    assert isinstance(arrived, BaseExceptionGroup)
    assert type(arrived.exceptions[0]) is errors.RemoteError


def test_os_errors_keep_their_parts() -> None:
    """errno decides the class again; both file names are there."""
    arrived = travelled(OSError(errno.EEXIST, "there", "/a", None, "/b"))
    assert isinstance(arrived, FileExistsError)
    assert (arrived.filename, arrived.filename2) == ("/a", "/b")


class Own(Exception):
    """A class of ours."""


class Lookalike(Exception):
    """A class that says it is another."""


Lookalike.__module__ = "builtins"
Lookalike.__qualname__ = "ValueError"


def test_other_classes_become_remote_errors() -> None:
    """With the name, the message, the plain args."""
    arrived = travelled(Own("a", 1))
    assert isinstance(arrived, errors.RemoteError)
    assert arrived.type_name.endswith("Own")
    assert arrived.remote_args == ["a", 1]


def test_a_lookalike_is_at_most_what_it_claims() -> None:
    """A worker that lies about a class gets a builtin exception built by us, from plain arguments."""
    arrived = travelled(Lookalike("x"))
    assert type(arrived) is ValueError


def test_constructors_that_refuse_the_arguments_cost_nothing() -> None:
    """A UnicodeDecodeError of one argument cannot be built: RemoteError instead."""
    arrived = exception_from(record(type="UnicodeDecodeError", args=["only one"]))
    assert isinstance(arrived, errors.RemoteError)


def test_arguments_that_are_not_plain_become_remote_errors() -> None:
    """An exception that carries an object arrives with its text."""
    arrived = travelled(ValueError(object()))
    assert isinstance(arrived, errors.RemoteError | ValueError)
    assert "object object" in str(arrived)


def test_groups_nest() -> None:
    """Members of members are rebuilt too."""
    inner = ExceptionGroup("inner", [KeyError("k"), Own("o")])
    arrived = travelled(ExceptionGroup("outer", [ValueError("v"), inner]))
    assert isinstance(arrived, ExceptionGroup)
    assert arrived.message == "outer"
    first, second = arrived.exceptions
    assert isinstance(first, ValueError)
    assert isinstance(second, ExceptionGroup)
    assert isinstance(second.exceptions[0], KeyError)
    assert isinstance(second.exceptions[1], errors.RemoteError)


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("unserializable", errors.ResultNotSerializable),
        ("unreadable", errors.TaskUnreadable),
        ("initializer", errors.InitializerFailed),
        ("start", EnforcementError),
        ("memory", errors.MemoryExceeded),
    ],
)
def test_each_kind_has_its_class(kind: str, cls: type[BaseException]) -> None:
    """Whose failure it was decides the class."""
    arrived = exception_from(record(kind=kind), memory=1 << 20)
    assert type(arrived) is cls


@pytest.mark.parametrize("kind", sorted(EXCEEDED))
def test_a_limit_that_a_worker_reports_has_its_class(kind: str) -> None:
    """With the pool's own limit, the worker's measure as far as it is a number, and a text that says both."""
    cls, field, _ = EXCEEDED[kind]
    arrived = exception_from(record(kind=kind, measured=4711), limits=Limits(**{field: 999}))
    assert type(arrived) is cls
    assert (arrived.limit, arrived.measured) == (999, 4711)
    assert "999" in str(arrived)
    assert pickle.loads(pickle.dumps(arrived)).measured == 4711
    for odd in ("many", -1, 10**400, True, None):
        arrived = exception_from(record(kind=kind, measured=odd), limits=Limits(**{field: 999}))
        assert (type(arrived), arrived.measured) == (cls, None)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", sorted(EXCEEDED))
def test_a_worker_cannot_reach_a_limit_that_is_not_set(kind: str) -> None:
    """It has made that up: its task failed with the exception that it names."""
    assert type(exception_from(record(kind=kind, measured=1), limits=Limits())) is ValueError
    assert type(exception_from(record(kind=kind, measured=1))) is ValueError


def test_a_denial_is_rebuilt() -> None:
    """CapabilityDenied keeps capability, operation and target."""
    from ringfence.sandbox.capabilities import Capability

    arrived = travelled(CapabilityDenied(Capability.FS_READ, "open", "/etc/x"), kind="denied")
    assert isinstance(arrived, CapabilityDenied)
    assert arrived.capability == Capability.FS_READ
    assert (arrived.operation, arrived.target) == ("open", "/etc/x")


@pytest.mark.parametrize(
    "broken",
    [
        {},
        record(kind=5),
        record(message=None),
        record(notes="text"),
        {key: value for key, value in record().items() if key != "traceback"},
        record(kind="denied"),
        record(kind="denied", denied=["fs:read"]),
        record(kind="denied", denied=["no:such", "open", None, "x"]),
        record(kind="denied", denied=[1, 2, 3, 4]),
        record(kind="denied", denied=["fs:read", "open", 10**5000, "x"]),
        record(message="x" * (1 << 20)),
    ],
)
def test_a_record_of_another_form_is_the_workers_fault(broken: dict[str, Any]) -> None:
    """RemoteProtocolError, never a KeyError of ours."""
    with pytest.raises(RemoteProtocolError):
        exception_from(broken)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("UnicodeDecodeError", ["utf-8", b"abc", -(2**44), 1 - 2**44, "x"]),
        ("UnicodeDecodeError", ["utf-8", b"abc", 2, 4, "x"]),
        ("UnicodeDecodeError", ["utf-8", b"abc", 2, 1, "x"]),
        ("UnicodeDecodeError", ["utf-8", "abc", 0, 1, "x"]),
        ("UnicodeEncodeError", ["utf-8", "abc", 2**44, 1 + 2**44, "x"]),
        ("UnicodeTranslateError", ["abc", -5, -4, "x"]),
        ("SyntaxError", ["m", ("f", 1, 1, "x", 1, 3 * 10**9)]),
        ("SyntaxError", ["m", ["f", 1, -(2**31), "x"]]),
        ("IndentationError", ["m", ("f", 1)]),
        ("OSError", [[], "text"]),
        ("KeyError", [10**5000]),
        ("ValueError", [{"deep": [(10**5000,)]}]),
        ("ValueError", ["x" * (2 << 20)]),
    ],
)
def test_dangerous_arguments_are_not_believed(name: str, args: list[Any]) -> None:
    """What shows, formats or logs an exception must not crash, nor raise, nor fill the memory."""
    error = exception_from(record(type=name, args=args))
    assert isinstance(error, errors.RemoteError)
    assert len("".join(traceback.format_exception(error))) + len(repr(error)) < 3 << 20


def test_syntax_errors_keep_their_place() -> None:
    """Where an honest one points to, it still does."""
    with pytest.raises(SyntaxError) as caught:
        compile("a =\n", "f.py", "exec")
    arrived = travelled(caught.value)
    assert type(arrived) is SyntaxError
    assert (arrived.filename, arrived.lineno, arrived.text) == ("f.py", 1, caught.value.text)


def test_groups_are_bounded() -> None:
    """An honest worker leaves out what is too much; more than that is the worker's fault."""
    deep: Exception = ValueError("v")
    for _ in range(60):
        deep = ExceptionGroup("deep", [deep])
    wide = ExceptionGroup("wide", [ExceptionGroup("inner", [ValueError(n) for n in range(40)]) for _ in range(40)])
    assert isinstance(travelled(deep), ExceptionGroup)
    assert isinstance(travelled(wide), ExceptionGroup)
    group = record(type="ExceptionGroup", group=[record()] * 300)
    with pytest.raises(RemoteProtocolError, match="too many"):
        exception_from(group)
    for _ in range(20):
        group = record(type="ExceptionGroup", group=[group])
    with pytest.raises(RemoteProtocolError, match="too many"):
        exception_from(group)


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["exception", "unserializable", "denied", "memory", "start", "odd"]) | values,
            "module": st.sampled_from(["builtins", "socket"]) | st.text(max_size=5),
            "type": st.sampled_from([cls.__name__ for cls in BUILTINS] + ["ExceptionGroup", "gaierror"]),
            "message": st.text(max_size=8),
            "traceback": st.text(max_size=8),
            "notes": st.lists(values, max_size=3),
        },
        optional={"args": values, "filename": values, "filename2": values, "group": values, "denied": values},
    )
)
def test_any_record_makes_an_exception_or_is_refused(made: dict[str, Any]) -> None:
    """A hostile record cannot make the supervisor raise anything but RemoteProtocolError."""
    try:
        error = exception_from(made)
    except RemoteProtocolError:
        return
    assert isinstance(error, BaseException)


def test_crashes_say_how_it_ended() -> None:
    """Exit codes and signals by name; a death without a status is told as such."""
    assert crash(3, "", 7).exit_code == 3
    killed = crash(-signal.SIGSEGV, "last words", 7)
    assert (killed.exit_code, killed.signal, killed.pid) == (None, signal.SIGSEGV, 7)
    assert "SIGSEGV" in str(killed)
    assert "last words" in str(killed)
    assert "SIGSYS" in str(crash(-signal.SIGSYS, "", 7))
    assert crash(-63, "", 7).signal == 63
    assert "zygote" in str(crash(None, "", 7))


def test_a_violation_is_a_crash() -> None:
    """Whoever catches crashes catches it."""
    assert isinstance(violation(RemoteProtocolError("x"), "", 1), errors.WorkerCrashed)


def test_the_cpu_limit_of_the_kernel_is_told_from_other_kills() -> None:
    """SIGXCPU or SIGKILL after the time is used up; SIGKILL before it is somebody's kill."""
    assert is_cpu_limit(-signal.SIGXCPU, 2.1, 2.0)
    assert is_cpu_limit(-signal.SIGKILL, 2.1, 2.0)
    assert not is_cpu_limit(-signal.SIGKILL, 0.5, 2.0)
    assert not is_cpu_limit(0, 2.1, 2.0)


PUBLIC = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_every_error_is_a_ringfence_error_and_survives_pickling(cls: type[Exception]) -> None:
    """One `except RingfenceError` catches all; each can be sent on."""
    assert issubclass(cls, root.RingfenceError)
    made = cls("name", "text") if cls is errors.RemoteError else cls("text")
    copy = pickle.loads(pickle.dumps(made))
    assert type(copy) is cls
    assert str(copy) == str(made)


def test_the_families_of_the_standard_library() -> None:
    """What old code catches, it still catches."""
    assert issubclass(errors.WorkerCrashed, BrokenProcessPool)
    assert issubclass(errors.BrokenPool, BrokenProcessPool)
    assert issubclass(errors.TaskTimeout, TimeoutError)
    assert issubclass(errors.MemoryExceeded, MemoryError)
    assert issubclass(errors.ResultNotSerializable, pickle.PicklingError)
    assert issubclass(errors.PoolClosed, RuntimeError)
    assert issubclass(CapabilityDenied, PermissionError)


def test_a_limit_may_stand_behind_a_death() -> None:
    """The kernel's signals for CPU time and file size, where there is such a limit; else it was a crash."""
    limits = Limits(cpu=2, file_size=100)
    error = limit_behind(-signal.SIGXFSZ, 0.0, limits)
    assert isinstance(error, errors.FileSizeExceeded)
    assert (error.limit, error.measured) == (100, 101)
    error = limit_behind(-signal.SIGKILL, 2.5, limits)
    assert isinstance(error, errors.CpuExceeded)
    assert (error.limit, error.measured) == (2, 2.5)
    assert limit_behind(-signal.SIGKILL, 1.0, limits) is None
    assert limit_behind(-signal.SIGXFSZ, 9.0, Limits()) is None


def test_what_the_kernel_killed_for_memory_has_a_measure() -> None:
    """memory.peak, where there is one."""
    error = killed_for_memory(64 << 20, 97 << 20)
    assert (error.limit, error.measured) == (64 << 20, 97 << 20)
    assert "97 MiB of memory, limit 64 MiB" in str(error)
    assert killed_for_memory(None, None).measured is None


def test_workers_are_told_every_limit_that_they_report() -> None:
    """The table of what they may report names no other."""
    assert {field for _, field, _ in outcome.EXCEEDED.values()} == set(TOLD)
