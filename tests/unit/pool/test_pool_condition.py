"""A condition that ^C cannot leave locked, and what is built on one."""

import ast
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ringfence
from ringfence import locks
from ringfence.locks import Lock, RLock
from ringfence.pool.condition import Condition, Event, Promise, Thread

_ROOT = Path(ringfence.__file__).parent
# One is waited for only so long, and let go of by whoever owns it; no caller's thread takes the other.
_TAKEN_WITHOUT_WITH = {"transitions.py", "broker_lookup.py", "locks.py"}


def _steps(function: Callable[[], object]) -> list[str]:
    """The names of Python's functions that are entered while `function` runs."""
    names: list[str] = []

    def note(frame: object, event: str, argument: object) -> None:
        code = frame.f_code  # type: ignore[attr-defined]
        if event == "call" and code.co_filename != locks.__file__:  # those are sure of themselves
            names.append(code.co_name)

    sys.setprofile(note)
    try:
        function()
    except TimeoutError:
        pass
    finally:
        sys.setprofile(None)
    return names


def _taken_when_interrupted(lock: Any) -> bool:
    """Let a signal come while `lock` is taken and let go; whether it is taken after that."""
    try:
        # Again after a while: a finalizer may swallow the first.
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.05)
        _take_and_let_go(lock)
    except KeyboardInterrupt:
        return bool(lock._is_owned())
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    pytest.fail("no signal came")


def _take_and_let_go(lock: Any) -> None:
    while True:
        with lock:
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("make", [Condition, RLock])
def test_ctrl_c_leaves_no_lock_taken(make: Callable[[], object]) -> None:
    """Wherever it comes. Of threading's, conditions stay locked, and from Python 3.14 on locks as well."""
    before = signal.signal(signal.SIGVTALRM, signal.default_int_handler)
    try:
        assert not any(_taken_when_interrupted(make()) for _ in range(20))
    finally:
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("make", [Lock, RLock, Condition])
def test_a_lock_excludes_others(make: Callable[[], Any]) -> None:
    """Who has one is alone with it, until he lets go; an error in the body lets go."""
    lock, order = make(), []

    def take() -> None:
        with lock:
            order.append("other")

    thread = threading.Thread(target=take)
    with pytest.raises(LookupError), lock:
        thread.start()
        thread.join(0.02)
        order.append("first")
        raise LookupError
    thread.join(30)
    assert order == ["first", "other"]


def test_ctrl_c_between_letting_go_and_waiting() -> None:
    """It is ^C for who waits, and no error of a lock that `with` has not."""
    condition = Condition()
    let_go = condition._release_save  # type: ignore[attr-defined]

    def interrupted() -> None:
        let_go()
        raise KeyboardInterrupt

    condition._release_save = interrupted  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt), condition:
        condition.wait(1)
    assert condition.acquire(blocking=False)
    condition.release()
    assert not condition._is_owned()  # type: ignore[attr-defined]


def test_it_is_a_condition() -> None:
    """Who waits is woken, and has the lock again."""
    condition, come = Condition(), []

    def bring() -> None:
        with condition:
            come.append(1)
            condition.notify_all()

    with condition:
        thread = threading.Thread(target=bring)
        thread.start()
        assert condition.wait_for(lambda: come, 30)
        assert condition._is_owned()  # type: ignore[attr-defined]
    thread.join()


@pytest.mark.parametrize(
    "function",
    [
        lambda: Thread(target=int).start(),
        lambda: Event().set(),
        lambda: Event().wait(0),
        lambda: Event().clear(),
        lambda: Promise[int]().set_result(1),
        lambda: Promise[int]().set_exception(ValueError()),
        lambda: Promise[int]().set_running_or_notify_cancel(),
        lambda: Promise[int]().cancel(),
        lambda: Promise[int]().result(0),
        lambda: Promise[int]().exception(0),
    ],
    ids=["start", "set", "wait", "clear", "set_result", "set_exception", "set_running", "cancel", "result",
         "exception"],
)  # fmt: skip
def test_what_is_built_on_it_takes_its_lock_in_one_step(function: Callable[[], object]) -> None:
    """A thread's start, an event, a future that is none of a pool's: the plain ones enter a function that takes it."""
    steps = _steps(function)
    assert len(steps) > 1
    assert not {"__enter__", "__exit__"} & set(steps)


def test_a_promise_is_a_future() -> None:
    """It has a result, or an exception, for whoever waits in whatever thread."""
    promise: Promise[int] = Promise()
    thread = threading.Thread(target=promise.set_result, args=(3,))
    thread.start()
    assert promise.result(30) == 3
    thread.join()
    failed: Promise[int] = Promise()
    failed.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        failed.result()


_UNSAFE = {
    "threading.Thread", "threading.Event", "threading.Semaphore", "threading.BoundedSemaphore", "threading.Barrier",
    "Future", "futures.Future", "queue.Queue",
}  # fmt: skip


def _unsafe(path: Path) -> list[str]:
    """What is made in a module that ^C can leave locked: a Condition without a lock that is entered in its place..."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        own = name == "threading.Condition" and (not node.args or isinstance(node.args[0], ast.Call))
        own |= name in {"threading.Lock", "threading.RLock"} and path.name not in _TAKEN_WITHOUT_WITH
        if own or name in _UNSAFE:
            found.append(f"{path.relative_to(_ROOT)}:{node.lineno}: {name}")
    return found


def test_none_that_can_be_left_locked_is_made() -> None:
    """Neither by pools nor by the plugin runtime, where a caller in the main thread may wait for it."""
    modules = [*(_ROOT / "pool").glob("*.py"), *(_ROOT / "plugins").glob("*.py")]
    assert len(modules) > 100
    assert not [each for path in modules for each in _unsafe(path)]
