"""Whatever happens to the nursery costs time alone: its zygotes go on, and the next one is exec'd."""

import gc
import logging
import os
import signal
import weakref
from collections.abc import Iterator

import pool_tasks as tasks
import pytest
from waiting import descendants, is_alive, wait_until, wait_until_gone

from ringfence import Pool
from ringfence.pool import nursery
from ringfence.pool.zygote import Zygote

pytestmark = pytest.mark.as_user

_IMPORT = "import sys; sys.path[:] = sys.argv[2:]; "


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[nursery._Home]:
    """A fresh count of failures for each test; in the end, nobody uses anything."""
    made = nursery._Home()
    monkeypatch.setattr(nursery, "_home", made)
    yield made
    assert made._users == 0
    assert made._nursery is None


def running(home: nursery._Home) -> int:
    """Return the pid of the nursery."""
    assert home._nursery is not None
    return home._nursery.process.pid


def works(pool: Pool) -> bool:
    """Say whether a pool for sessions starts one."""
    session = pool.open_session(tasks.converse, "farewell")
    os.close(session.fd)
    return session.ended.result(60) == "farewell"


def test_its_zygotes_go_on_without_it(home: nursery._Home) -> None:
    """Pools that came from it start workers, and end well; the next pool has a new nursery."""
    with Pool(1, isolation="session") as first, Pool(1, isolation="session") as second:
        assert works(first)
        old = running(home)
        os.kill(old, signal.SIGKILL)
        wait_until_gone([old])
        assert works(first)
        assert works(second)
        with Pool(1, isolation="session") as third:  # meets the trouble
            assert works(third)
        with Pool(1, isolation="session") as fourth:
            assert works(fourth)
            assert running(home) != old


def test_killed_before_it_answers(
    home: nursery._Home, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zygote is exec'd instead, and the log says so."""
    monkeypatch.setattr(nursery, "_PROGRAM", "import time; time.sleep(60)")
    with caplog.at_level(logging.WARNING, "ringfence.pool"):
        zygote = Zygote(inherit=False, nursing="start")
        os.kill(running(home), signal.SIGKILL)
        pid = zygote.settle().pid
    assert is_alive(pid)
    assert "no zygote comes from the nursery" in caplog.text
    zygote.end()


def test_what_the_log_says_of_it_keeps_nobody(
    home: nursery._Home, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error's traceback leads to who has asked: whoever keeps the record does not keep that."""
    monkeypatch.setattr(nursery, "_PROGRAM", "raise SystemExit(9)")
    zygote = Zygote(inherit=False, nursing="start")
    zygote.settle()
    zygote.end()
    asked = weakref.ref(zygote)
    del zygote
    gc.collect()
    assert "no zygote comes from the nursery" in caplog.text
    assert asked() is None


def test_killed_before_it_answers_and_nobody_asks_again(home: nursery._Home) -> None:
    """Giving up a zygote that never came hangs nowhere."""
    zygote = Zygote(inherit=False, nursing="start")
    os.kill(running(home), signal.SIGKILL)
    zygote.abandon()


def test_an_answer_that_came_before_its_end_and_was_not_fetched(home: nursery._Home) -> None:
    """A zygote whose owner had not come for it ends with the nursery, and its owner execs another."""
    first, second = (Zygote(inherit=False, nursing="start") for _ in range(2))
    second.settle()  # which reads the answer to the first, too
    assert home._nursery is not None
    answer = home._nursery._answers[1]
    assert answer is not None
    home.lost(home._nursery, OSError("somebody else's trouble"))
    home.settle()
    assert first.settle() is not answer
    assert is_alive(first.pid)
    first.end()
    second.end()
    wait_until_gone([answer.pid])  # type: ignore[union-attr]


def test_given_up_before_it_answers(home: nursery._Home) -> None:
    """A zygote that nobody wants any more ends, and the nursery with it."""
    zygote = Zygote(inherit=False, nursing="start")
    pid = running(home)
    zygote.abandon()
    assert not is_alive(pid)


@pytest.mark.parametrize("wanted", [True, False], ids=["wanted", "given up"])
def test_one_that_does_not_answer_is_waited_for_only_so_long(
    home: nursery._Home, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """Stopped, it is killed, and the pool has an exec'd zygote."""
    with nursery.hold(), Pool(1, isolation="session") as first:
        assert works(first)
        old = running(home)
        os.kill(old, signal.SIGSTOP)
        monkeypatch.setattr(nursery, "_PATIENCE", 0.3)
        if wanted:
            with Pool(1, isolation="session") as second:
                assert works(second)
        else:
            Zygote(inherit=False, nursing="start").abandon()
        assert not is_alive(old)
        assert works(first)


def test_a_stopped_one_does_not_hold_up_the_end(home: nursery._Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last user kills what does not leave."""
    monkeypatch.setattr(nursery, "_END_GRACE", 0.2)
    with nursery.hold():
        with Pool(1, isolation="session") as pool:
            assert works(pool)
        old = running(home)
        os.kill(old, signal.SIGSTOP)
    assert not is_alive(old)


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(9)",
        "import os, sys; os.write(int(sys.argv[1]), b'no frame at all' * 10)",
        _IMPORT + "from ringfence.ipc import messages as m; m.PROTOCOL_VERSION = 99; "
        "from ringfence.worker.nursery import main; main(int(sys.argv[1]))",
        _IMPORT + "from ringfence.ipc import messages as m; m.FORKED = m.SPAWNED; "
        "from ringfence.worker.nursery import main; main(int(sys.argv[1]))",
    ],
    ids=["does not start", "speaks no frames", "speaks another version", "says what it may not"],
)
def test_one_that_is_broken_is_not_started_for_ever(
    home: nursery._Home, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Every pool works; after a few attempts nobody tries again."""
    monkeypatch.setattr(nursery, "_PROGRAM", program)
    started = []
    original = nursery.start_interpreter

    def start(*args: object, **kwargs: object) -> object:
        started.append(1)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nursery, "start_interpreter", start)
    for _ in range(5):
        zygote = Zygote(inherit=False, nursing="start")
        assert is_alive(zygote.settle().pid)
        zygote.end()
    assert len(started) == 3


def test_one_that_cannot_fork_stays(home: nursery._Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short of processes for a moment: this zygote is exec'd, and the nursery is asked again for the next."""
    program = """
import os, sys
sys.path[:] = sys.argv[2:]
from ringfence.worker import nursery
fork, calls = os.fork, []
def refuse():
    calls.append(1)
    if len(calls) == 1:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = refuse
nursery.main(int(sys.argv[1]))
"""
    monkeypatch.setattr(nursery, "_PROGRAM", program)
    with nursery.hold():
        first = Zygote(inherit=False, nursing="start")
        first.settle()
        pid = running(home)
        second = Zygote(inherit=False, nursing="start")
        second.settle()
        assert first._birth is None
        assert second._birth is not None
        assert running(home) == pid
        first.end()
        second.end()


def test_its_zygote_is_killed(home: nursery._Home) -> None:
    """The pool notices, execs another, and goes on; the nursery has reaped the dead one."""
    with Pool(1, isolation="session") as pool:
        assert works(pool)
        zygote = pool._supervisor._crew._zygote
        assert zygote is not None
        pid = zygote.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the zygote's burial")
        assert works(pool)
        assert is_alive(running(home)) if home._nursery is not None else home._users == 0


def test_no_descriptor_is_left_to_hold_a_zygote_by(home: nursery._Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nursery that has run out of descriptors says so, keeps no child that nobody could wait for, and goes on."""
    program = """
import os, sys
sys.path[:] = sys.argv[2:]
from ringfence.worker import nursery
real = os.pidfd_open
def refuse(pid):
    os.pidfd_open = real
    raise OSError(24, "Too many open files")
os.pidfd_open = refuse
nursery.main(int(sys.argv[1]))
"""
    monkeypatch.setattr(nursery, "_PROGRAM", program)
    with nursery.hold():
        first = Zygote(inherit=False, nursing="start")
        first.settle()
        assert first._birth is None
        assert descendants(running(home)) == set()
        first.end()
