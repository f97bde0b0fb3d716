"""Who keeps the nursery, when another one is started, and a process that is held by a descriptor."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ringfence.ipc.errors import ChannelClosed
from ringfence.pool import nursery
from ringfence.pool.process import ByPidfd


class _Pretended:
    """Stands where a started nursery does, and takes down what is asked of it."""

    made: list["_Pretended"]

    def __init__(self) -> None:
        self.made.append(self)
        self.traits = nursery._traits()
        self.ended: list[bool] = []
        self.asked = 0
        self.trouble: BaseException | None = None

    def ask(self, channel: int, stderr: int) -> int:
        if self.trouble is not None:
            raise self.trouble
        self.asked += 1
        return self.asked

    def answer(self, number: int, deadline: float) -> Any:
        if self.trouble is not None:
            raise self.trouble
        return object()

    def end(self, *, kill: bool = False) -> None:
        self.ended.append(kill)

    def forget(self) -> None:
        self.ended.append(False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[_Pretended]:
    """Every nursery that was started in this test, none of them real."""
    found: list[_Pretended] = []
    monkeypatch.setattr(_Pretended, "made", found, raising=False)
    monkeypatch.setattr(nursery, "_Nursery", _Pretended)
    monkeypatch.setattr(nursery, "_home", nursery._Home())
    return found


def test_it_starts_with_the_first_request_and_ends_with_its_last_user(made: list[_Pretended]) -> None:
    """A hold alone starts nothing; zygotes and holds keep what runs; the last one ends it, once."""
    hold = nursery.hold()
    assert not made
    first = nursery.ask(0, start=True)
    second = nursery.ask(0, start=True)
    assert first is not None
    assert second is not None
    assert len(made) == 1
    first.release()
    first.release()
    second.release()
    assert made[0].ended == []
    hold.release()
    hold.release()
    assert made[0].ended == [False]


def test_a_hold_may_start_it_at_once(made: list[_Pretended]) -> None:
    """What is to be used soon gets ready meanwhile; a second hold starts no second one."""
    with nursery.hold(start=True), nursery.hold(start=True):
        assert len(made) == 1
    assert made[0].ended == [False]


def test_one_that_cannot_be_started_is_no_error(made: list[_Pretended], monkeypatch: pytest.MonkeyPatch) -> None:
    """Short of processes or descriptors: whoever asks is sent away, and three times are enough."""
    attempts = []

    def fail() -> None:
        attempts.append(1)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(nursery, "_Nursery", fail)
    with nursery.hold(start=True):
        for _ in range(5):
            assert nursery.ask(0, start=True) is None
    assert len(attempts) == 3
    assert nursery._home._users == 0


def test_a_zygote_keeps_it_without_a_hold(made: list[_Pretended]) -> None:
    """Pools need no runtime around them."""
    birth = nursery.ask(0, start=True)
    assert birth is not None
    birth.wait()
    assert made[0].ended == []
    birth.release()
    assert made[0].ended == [False]


def test_a_hold_is_a_context(made: list[_Pretended]) -> None:
    """`with hold():` lets go at its end."""
    with nursery.hold():
        birth = nursery.ask(0, start=True)
        assert birth is not None
        birth.release()
        assert made[0].ended == []
    assert made[0].ended == [False]


def test_who_only_uses_one_that_runs_starts_none(made: list[_Pretended]) -> None:
    """Without `start` a request is refused until somebody else has started one."""
    assert nursery.ask(0, start=False) is None
    assert not made
    with nursery.hold():
        for start in (True, False):
            birth = nursery.ask(0, start=start)
            assert birth is not None
            birth.release()
    assert len(made) == 1


def test_three_failures_in_a_row_are_enough(made: list[_Pretended]) -> None:
    """What never works is not tried for ever; one success in between starts the count again."""
    for _ in range(2):
        birth = nursery.ask(0, start=True)
        assert birth is not None
        made[-1].trouble = ChannelClosed("gone")
        with pytest.raises(nursery.NurseryLost, match="gone"):
            birth.wait()
        birth.release()
    birth = nursery.ask(0, start=True)
    assert birth is not None
    birth.wait()
    for _ in range(3):
        if made[-1].ended:
            again = nursery.ask(0, start=True)
            assert again is not None
            again.release()
        made[-1].trouble = ChannelClosed("gone")
        assert nursery.ask(0, start=True) is None
    assert nursery.ask(0, start=True) is None
    assert len(made) == 5
    assert [one.ended for one in made] == [[True]] * 5
    birth.release()


def test_two_who_meet_the_same_trouble_count_it_once(made: list[_Pretended]) -> None:
    """The one that was started meanwhile is not ended for it."""
    first, second = nursery.ask(0, start=True), nursery.ask(0, start=True)
    assert first is not None
    assert second is not None
    made[0].trouble = ChannelClosed("gone")
    with pytest.raises(nursery.NurseryLost):
        first.wait()
    third = nursery.ask(0, start=True)
    assert third is not None
    with pytest.raises(nursery.NurseryLost):
        second.wait()
    assert made[0].ended == [True]
    assert made[1].ended == []
    for birth in (first, second, third):
        birth.release()
    assert made[1].ended == [False]


def test_what_the_host_has_changed_since_is_not_inherited_from_before(made: list[_Pretended]) -> None:
    """With other limits than the nursery was started with, a zygote has to be exec'd."""
    with nursery.hold():
        birth = nursery.ask(0, start=True)
        assert birth is not None
        birth.release()
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        other = 4096 if soft != 4096 and hard in (resource.RLIM_INFINITY, *range(4096, hard + 1)) else 0
        if other == soft:
            pytest.skip("this limit cannot be changed here")
        resource.setrlimit(resource.RLIMIT_CORE, (other, hard))
        try:
            assert nursery.ask(0, start=True) is None
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
        assert nursery._home._users == 1


def _other_umask() -> Callable[[], object]:
    before = os.umask(0o077)
    os.umask(before ^ 0o011)
    return lambda: os.umask(before)


def _blocked_signal() -> Callable[[], object]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    return lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("change", [_other_umask, _blocked_signal])
def test_traits_are_what_a_child_inherits(change: Callable[[], Callable[[], object]]) -> None:
    """They differ while something inherited differs, and are the same again after."""
    before = nursery._traits()
    undo = change()
    try:
        assert nursery._traits() != before
    finally:
        undo()
    assert nursery._traits() == before


def test_threads_start_one_nursery(made: list[_Pretended]) -> None:
    """However many ask at once; and however they let go, it ends once."""
    births: list[nursery.Birth | None] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        births.append(nursery.ask(0, start=True))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    for birth in births:
        assert birth is not None
        birth.release()
    assert made[0].ended == [False]


def test_a_forked_child_forgets(made: list[_Pretended]) -> None:
    """What it inherits counts nothing there: it may release it, and starts its own."""
    hold = nursery.hold()
    birth = nursery.ask(0, start=True)
    assert birth is not None
    nursery._home.forget()  # as os.register_at_fork has it done
    birth.release()
    hold.release()
    assert nursery._home._users == 0
    own = nursery.ask(0, start=True)
    assert own is not None
    own.release()
    assert [one.ended for one in made] == [[False], [False]]


# A process by its descriptor


@pytest.fixture
def sleeper() -> Any:
    """A child that would sleep for ever."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_wait_says_when_the_time_is_over(sleeper: "subprocess.Popen[bytes]") -> None:
    """As Popen does it; the descriptor stays."""
    held = ByPidfd(sleeper.pid, os.pidfd_open(sleeper.pid))
    with pytest.raises(subprocess.TimeoutExpired):
        held.wait(timeout=0.01)
    held.kill()
    held.wait(timeout=20)
    held.wait()
    held.kill()
    # It was our child, so we have reaped it, and know how it ended.
    assert held.returncode == -signal.SIGKILL


def test_whose_child_it_is_not_does_not_know_how_it_ended() -> None:
    """A grandchild: its end is seen, its exit code is not."""
    program = "import os, time; pid = os.fork() or time.sleep(600); print(pid, flush=True); os.waitpid(pid, 0)"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        held = ByPidfd(pid, os.pidfd_open(pid))
        held.kill()
        held.wait(timeout=20)
        assert held.returncode is None


def test_forget_lets_go_without_a_signal(sleeper: "subprocess.Popen[bytes]") -> None:
    """In a forked child of ours nothing is killed."""
    held = ByPidfd(sleeper.pid, os.pidfd_open(sleeper.pid))
    held.forget()
    held.forget()
    held.kill()
    assert sleeper.poll() is None


def test_one_that_is_lost_is_ended_though_ctrl_c_comes(
    made: list[_Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While that is logged: nobody would know the process any more, nor its socket."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    home = nursery._home
    lost = home.start()
    home.lost(lost, ChannelClosed("it is gone"))
    monkeypatch.setattr(nursery._log, "warning", interrupted)
    with pytest.raises(KeyboardInterrupt):
        home.settle()
    assert made[0].ended == [True]
    assert home.start() is not lost
