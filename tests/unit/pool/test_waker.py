"""What wakes a pool's thread is closed when nobody can write to it any more, not before."""

import os

import pool_tasks as tasks
import pytest

from ringfence import Pool
from ringfence.pool.waker import Waker


def _leads_to(fd: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return None


def test_a_waker_is_open_as_long_as_anybody_has_it() -> None:
    """Closed at once with the last: no collector is needed."""
    waker = Waker()
    fd, other = waker.fd, waker
    del waker
    os.eventfd_write(other.fd, 1)
    assert os.eventfd_read(fd) == 1
    del other
    assert _leads_to(fd) is None


def test_who_is_about_to_wake_a_pool_that_ends_writes_to_nothing_else() -> None:
    """Between its look at the pool and its write the pool may end, and another file be opened under that number."""
    with Pool(1, profile="trusted") as pool:
        assert pool.submit(tasks.square, 2).result(30) == 4
        waker = pool._supervisor._waker
        assert waker is not None
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    assert _leads_to(waker.fd) == "anon_inode:[eventfd]"
    os.eventfd_write(waker.fd, 1)
    fd = waker.fd
    del waker
    assert _leads_to(fd) is None
    assert pool._supervisor._waker is None
    for each in opened:
        os.close(each)


def test_who_keeps_ctrl_c_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """^C comes while a pool's thread is woken, and somebody keeps the exception with its traceback."""

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with Pool(1) as pool:
        fd = pool._supervisor._woken
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as kept:
            patch.setattr(os, "eventfd_write", interrupt)
            pool._supervisor._wake()
        assert _leads_to(fd) == "anon_inode:[eventfd]"
    assert kept.tb is not None
    assert _leads_to(fd) != "anon_inode:[eventfd]"
