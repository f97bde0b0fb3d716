"""A session has a worker to itself and a socket of its own; limits hold for the work under way, not for its life."""

import os
import signal
import socket
import time
from collections.abc import Iterator

import pool_tasks
import pytest
from waiting import wait_until

from ringfence import CpuExceeded, Limits, MemoryExceeded, Pool, WorkerCrashed
from ringfence.pool.session import Session


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool for sessions, which ends them with the test however that went."""
    with Pool(1, isolation="session") as made:
        yield made
        made.kill_workers()


class Talk:
    """Our end of a session that `pool_tasks.converse` serves."""

    def __init__(self, pool: Pool, **options: object) -> None:
        self.printed: list[tuple[str, bytes]] = []
        self.session: Session = pool.open_session(
            pool_tasks.converse, "hello", on_output=lambda name, data: self.printed.append((name, data))
        )
        self._socket = socket.socket(fileno=self.session.fd)
        self._socket.setblocking(True)
        self._socket.settimeout(20)

    def tell(self, text: bytes) -> None:
        """Send `text`."""
        self._socket.sendall(text)

    def say(self, text: bytes) -> bytes:
        """Send `text` and return the answer."""
        self.tell(text)
        return self._socket.recv(100)

    def has_said_all(self) -> bool:
        """Whether what "leave" prints, and nothing else, has come."""
        return self.printed == [("stdout", b"last line\n")]

    def close(self) -> None:
        """Close our end."""
        self._socket.close()


def test_both_sides_talk_until_one_has_enough(pool: Pool) -> None:
    """What one end sends the other gets; when ours closes, the function returns and that is the session's result."""
    talk = Talk(pool)
    assert talk.say(b"abc") == b"ABC"
    worker = talk.session.worker
    assert worker is not None
    assert os.path.exists(f"/proc/{worker[0]}")
    assert worker[1].weaker_than(["seccomp", "landlock"]) == ()  # type: ignore[list-item]
    talk.close()
    assert talk.session.ended.result(10) == "hello"


def test_output_arrives_while_the_session_goes_on(pool: Pool) -> None:
    """What the worker prints reaches `on_output` as it comes, by stream."""
    talk = Talk(pool)
    assert talk.say(b"print") == b"PRINT"
    wait_until(lambda: (b"".join(data for name, data in talk.printed if name == "stdout")) == b"printed\n")
    talk.close()
    talk.session.ended.result(10)


def test_what_it_printed_last_is_not_lost(pool: Pool) -> None:
    """Though it is the thread that waits who reads the result, before anybody has looked at the output."""
    for _ in range(20):
        talk = Talk(pool)
        talk.tell(b"leave")
        assert talk.session.ended.result(10) == "hello"
        wait_until(talk.has_said_all)  # another thread may be about to tell it
        talk.close()


def test_a_crash_says_how_and_the_next_session_works(pool: Pool) -> None:
    """The future carries exit code and last words; a fresh worker takes the next session."""
    talk = Talk(pool)
    assert talk.say(b"crash") == b""
    error = talk.session.ended.exception(10)
    assert isinstance(error, WorkerCrashed)
    assert error.exit_code == 3
    assert "last words" in error.stderr
    talk.close()
    again = Talk(pool)
    assert again.say(b"abc") == b"ABC"
    again.close()
    again.session.ended.result(10)


def test_kill_ends_it_with_the_error_that_was_given(pool: Pool) -> None:
    """`kill` is certain, and says what we say."""
    talk = Talk(pool)
    assert talk.say(b"abc") == b"ABC"
    reason = ValueError("enough")
    talk.session.kill(reason)
    assert talk.session.ended.exception(10) is reason
    talk.close()


def test_one_worker_serves_one_session_at_a_time(pool: Pool) -> None:
    """With one worker a second session waits for the first to end, and takes no part of its worker."""
    first, second = Talk(pool), Talk(pool)
    assert first.say(b"abc") == b"ABC"
    assert second.session.worker is None
    first.close()
    assert second.say(b"abc") == b"ABC"
    second.close()
    second.session.ended.result(10)


def test_memory_is_watched_while_idle_and_at_work() -> None:
    """Memory over the limit ends the session, which says so."""
    with Pool(1, isolation="session", limits=Limits(memory="32MiB")) as pool:
        talk = Talk(pool)
        talk._socket.sendall(b"hoard")
        error = talk.session.ended.exception(20)
        assert isinstance(error, MemoryExceeded), error
        talk.close()


def test_cpu_counts_for_one_piece_of_work_alone() -> None:
    """Many short pieces of work may use more CPU time than the limit; one long piece may not."""
    with Pool(1, isolation="session", limits=Limits(cpu=0.5)) as pool:
        talk = Talk(pool)
        for number in range(1, 9):
            talk.session.begin(number)
            assert talk.say(b"spin") == b"SPIN"  # 0.1 s each
            talk.session.end(number)
            time.sleep(0.02)
        talk.session.begin(99)
        talk._socket.sendall(b"spin for ever")
        assert isinstance(talk.session.ended.exception(20), CpuExceeded)
        talk.close()


def test_a_worker_killed_from_outside_ends_the_session(pool: Pool) -> None:
    """SIGKILL from anywhere is told with its signal."""
    talk = Talk(pool)
    assert talk.say(b"abc") == b"ABC"
    worker = talk.session.worker
    assert worker is not None
    os.kill(worker[0], signal.SIGKILL)
    error = talk.session.ended.exception(10)
    assert isinstance(error, WorkerCrashed)
    assert error.signal == signal.SIGKILL
    talk.close()


def test_session_pools_take_sessions_only(pool: Pool) -> None:
    """The two kinds of work are not mixed up."""
    with pytest.raises(ValueError, match="open_session"):
        pool.submit(len, "abc")
    with Pool(1) as plain, pytest.raises(ValueError, match="isolation='session'"):
        plain.open_session(pool_tasks.converse, "hello")


def test_shutdown_kills_nothing_that_ends_by_itself(pool: Pool) -> None:
    """`shutdown` waits for open sessions; `kill_workers` does not."""
    talk = Talk(pool)
    assert talk.say(b"abc") == b"ABC"
    pool.kill_workers()
    assert talk.session.ended.exception(10) is not None
    talk.close()
