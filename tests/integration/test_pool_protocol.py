"""A worker that lies: whatever it writes to its channel costs it its life and one task, nothing else."""

import logging
import os
import pickle

import pool_tasks as tasks
import pytest

from ringfence import Pool, ProtocolViolation, WorkerCrashed
from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.framing import encode_frame

pytestmark = pytest.mark.as_user


def packed(*message: object) -> bytes:
    """Return a well-formed frame with this message."""
    return encode_frame(Codec().pack(list(message)))


class Exploit:
    """Runs code wherever it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/ringfence-was-exploited",)


FORGERIES = {
    "a result of a task it was not given": packed(m.RESULT, 10**9, "forged"),
    "an error of a task it was not given": packed(m.ERROR, 10**9, {}),
    "an error without a record": packed(m.ERROR, 10**9, "text"),
    "an unknown tag": packed(99),
    "a tag of the supervisor's": packed(m.STOP),
    "a tag of the zygote's": packed(m.SPAWNED, 1, 1),
    "READY again": packed(m.READY, 1, []),
    "STARTED again": packed(m.STARTED),
    "no list": encode_frame(b"\xc0"),
    "an empty list": packed(),
    "a float for a tag": packed(1.5, 2),
    "too few fields": packed(m.RESULT, 1),
    "too many fields": packed(m.RESULT, 1, 2, 3, 4, 5),
    "garbage": encode_frame(b"\xc1\xc1\xc1"),
    "trailing garbage": encode_frame(Codec().pack([m.SYNCED]) + b"\x00"),
    "nested too deep": encode_frame(b"\x91" * 5000 + b"\xc0"),
    "a frame that is too large": (200 << 20).to_bytes(4, "big") + b"x" * 100,
    "a frame of nothing": (0).to_bytes(4, "big"),
    "a list that claims to be endless": encode_frame(b"\xdd\xff\xff\xff\xff"),
    "SYNCED unasked": packed(m.SYNCED),
    "LEASED without a lease": packed(m.LEASED, 1, {"form": "bytes", "size": 10}),
    "a lease of nothing": packed(m.NEED_LEASE, 1, 0),
    "a lease of less than nothing": packed(m.NEED_LEASE, 1, -5),
    "arguments it has already": packed(m.NEED_BUFFER, 1),
    "a pickle": packed(m.PICKLED, 1, pickle.dumps(Exploit())),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_frame_ends_its_worker_and_its_task_alone(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """ProtocolViolation, which is a WorkerCrashed; every other task of the pool still has its own result."""
    caplog.set_level(logging.CRITICAL, "ringfence.pool")
    with Pool(2) as pool:
        others = [pool.submit(tasks.square, n) for n in range(20)]
        forged = pool.submit(tasks.forge, FORGERIES[name])
        others += [pool.submit(tasks.square, n) for n in range(20, 40)]
        error = forged.exception(30)
        assert isinstance(error, ProtocolViolation), name
        assert isinstance(error, WorkerCrashed)
        assert [future.result(30) for future in others] == [n * n for n in range(40)]
        assert pool.submit(tasks.square, 3).result(30) == 9
    assert not os.path.exists("/tmp/ringfence-was-exploited")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param((m.PICKLED, pickle.dumps(Exploit())), id="a pickle"),
        pytest.param((m.LEASED, {"form": "bytes", "size": 100}), id="a lease it was not given"),
        pytest.param((m.ERROR, {"kind": "exception"}), id="a failure without fields"),
        pytest.param((m.ERROR, {**dict.fromkeys(("kind", "module", "type", "message", "traceback"), 5)}), id="types"),
        pytest.param((m.NEED_LEASE, -1), id="a negative lease"),
        pytest.param((m.NEED_BUFFER,), id="arguments it has"),
    ],
)
def test_a_lie_about_its_own_task_is_no_better(
    fields: tuple[object, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that knows its task's id gains nothing by it."""
    caplog.set_level(logging.CRITICAL, "ringfence.pool")

    def lie() -> None:
        import sys

        frame = sys._getframe()
        while "task" not in frame.f_locals or type(frame.f_locals["task"]) is not int:
            frame = frame.f_back  # type: ignore[assignment]
        number = frame.f_locals["task"]
        from ringfence.ipc.codec import Codec

        body = Codec().pack([fields[0], number, *fields[1:]])
        tasks.forge(len(body).to_bytes(4, "big") + body)

    with Pool(1) as pool:
        assert isinstance(pool.submit(lie).exception(30), ProtocolViolation)
        assert pool.submit(tasks.square, 3).result(30) == 9
    assert not os.path.exists("/tmp/ringfence-was-exploited")


def test_a_worker_may_lie_about_its_own_result() -> None:
    """A well-formed answer to its own task is that task's result: it could have returned it."""

    def lie() -> str:
        import sys

        frame = sys._getframe()
        while "task" not in frame.f_locals or type(frame.f_locals["task"]) is not int:
            frame = frame.f_back  # type: ignore[assignment]
        from ringfence.ipc.codec import Codec

        body = Codec().pack([m_result, frame.f_locals["task"], "forged"])
        os.write(tasks.channel_fd(), len(body).to_bytes(4, "big") + body)
        return "never seen"

    m_result = m.RESULT
    with Pool(1) as pool:
        assert pool.submit(lie).result(30) == "forged"
        # Its honest answer comes too, to a task that is answered already: that ends it, perhaps with the next task.
        assert pool.options(retries=1).submit(tasks.square, 3).result(30) == 9


def test_a_frame_cut_in_the_middle_ends_one_task() -> None:
    """Half a frame and then the end of the stream: the task fails, the pool goes on."""
    with Pool(1) as pool:
        error = pool.submit(tasks.half_a_frame).exception(30)
        assert isinstance(error, WorkerCrashed)
        assert pool.submit(tasks.square, 3).result(30) == 9


def test_a_worker_that_closes_its_channel_is_ended() -> None:
    """It cannot answer any more; its task fails and the pool goes on."""
    with Pool(1) as pool:
        assert isinstance(pool.submit(tasks.closes_its_channel).exception(30), WorkerCrashed)
        assert pool.submit(tasks.square, 3).result(30) == 9


def test_a_frame_that_never_ends_keeps_nothing() -> None:
    """A header that promises 60 MiB and then silence is ended by the timeout, like any task that hangs."""
    with Pool(1) as pool:
        data = (60 << 20).to_bytes(4, "big") + b"x"
        assert pool.options(timeout=0.3).submit(tasks.forge, data).exception(30) is not None
        assert pool.submit(tasks.square, 3).result(30) == 9
