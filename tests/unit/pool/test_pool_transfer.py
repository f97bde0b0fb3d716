"""What travels in memfds, on our side: counted, and given back whatever happens."""

import fcntl
import gc
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ringfence.ipc import buffers, parcel
from ringfence.ipc import messages as m
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.large import restore_kept
from ringfence.pool import kept, transfer
from ringfence.pool.filling import Filling
from ringfence.pool.kept import Kept
from ringfence.pool.serialise import Shipment
from ringfence.pool.transfer import Parcel

MIB = 1 << 20
MADV_REMOVE = 9  # of madvise(2); Python has no name for it everywhere


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    """What a test lets go of is not counted any more."""
    before = (kept._total, kept._count)
    yield
    assert (kept._total, kept._count) == before


def pieces_of(view: memoryview) -> list[bytes]:
    """Return the pieces of a parcel as they stand there."""
    return [bytes(piece) for piece in parcel.unpack(view)]


def test_a_parcel_keeps_what_nobody_can_change_and_copies_the_rest() -> None:
    """bytes are not copied when a task is handed in; what its caller could change then is."""
    fixed, changing = bytes(range(256)) * 1000, bytearray(5 * MIB)
    load = Parcel(Shipment(None, b"pickle", (), (memoryview(fixed), memoryview(changing))))
    assert any(piece.obj is fixed for _, piece in load._pieces)
    changing[:] = b"x" * len(changing)
    fd = load.open()
    try:
        view = buffers.map_sealed(fd, load.size)
        assert pieces_of(view) == [b"pickle", fixed, bytes(5 * MIB)]
        assert [type(piece) for piece in parcel.unpack(view)] == [memoryview, bytes, memoryview]
    finally:
        os.close(fd)


def test_a_shorter_parcel_in_the_same_memory_is_itself() -> None:
    """What was there before is not read again."""
    held = Kept.make(2 * MIB, None, writable=False)
    assert held is not None
    for size in (2 * MIB - 200, 10, MIB):
        load = Parcel(Shipment(None, b"p", (), (memoryview(b"%d" % (size % 10) * size),)))
        load.copy_to(held.view(load.size))
        assert pieces_of(held.view(load.size)) == [b"p", b"%d" % (size % 10) * size]
    held.close()
    held.close()


def test_what_workers_keep_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size of each, by the worker's memory, by the number and the sum in this process."""
    assert Kept.make(kept._LARGEST + 1, None, writable=True) is None
    assert Kept.make(100 * MIB, 256 * MIB, writable=True) is None
    monkeypatch.setattr(kept, "_MOST_MEMFDS", kept._count + 2)
    monkeypatch.setattr(kept, "_MOST", kept._total + 3 * MIB)
    first, second = Kept.make(MIB, None, writable=True), Kept.make(MIB, None, writable=True)
    assert first is not None
    assert second is not None
    assert Kept.make(1000, None, writable=True) is None
    first.close()
    assert Kept.make(3 * MIB, None, writable=True) is None
    third = Kept.make(2 * MIB, None, writable=True)
    assert third is not None
    second.close()
    third.close()


def test_one_that_cannot_be_made_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else others would get none in the end."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "no")

    monkeypatch.setattr(buffers, "create_kept", fail)
    with pytest.raises(OSError, match="no"):
        Kept.make(MIB, None, writable=True)


def test_what_is_let_go_of_while_it_is_read_is_read_to_its_end() -> None:
    """The worker may end meanwhile."""
    held = Kept.make(MIB, None, writable=True)
    assert held is not None
    view = held.view(1000)
    view[:] = b"x" * 1000
    before = len(os.listdir("/proc/self/fd"))
    held.close()
    assert bytes(view) == b"x" * 1000
    del view
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_forked_child_can_keep_too() -> None:
    """A thread of the parent's may hold the lock at the fork, and is not there to release it."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with kept._lock:
            taken.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(30)
    pid = os.fork()
    if not pid:
        signal.alarm(30)
        os._exit(0 if Kept.make(MIB, None, writable=True) else 1)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("error", [OSError(28, "no"), MemoryError(), KeyboardInterrupt()])
def test_whoever_waits_for_arguments_hears_of_it(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they cannot be copied, the worker is told that there are none; it would wait for ever."""
    sent: list[tuple[list[Any], Sequence[int]]] = []
    load = Parcel(Shipment(None, b"p", (), (memoryview(b"x" * 1000),)))
    filling = Filling(7, load, None, lambda message, fds: sent.append((message, fds)))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(buffers, "create_sealed_from", fail)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            filling.run()
    else:
        filling.run()
    assert sent == [([m.BUFFER, 7, 0], ())]


@pytest.mark.parametrize("keeps", [True, False])
def test_an_interrupt_in_the_thread_that_copies_is_not_the_tasks(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes through; the worker has its arguments, and the task no other outcome for it."""
    sent: list[tuple[list[Any], int]] = []
    load = Parcel(Shipment(None, b"p", (), (memoryview(b"x" * 1000),)))
    held = Kept.make(load.size, None, writable=False) if keeps else None
    real, interrupts = transfer.copy_into, [KeyboardInterrupt()]
    create = buffers.create_sealed_from

    def interrupted(*args: Any) -> Any:
        if interrupts:
            raise interrupts.pop()
        return (real if keeps else create)(*args)

    monkeypatch.setattr(*((transfer, "copy_into") if keeps else (buffers, "create_sealed_from")), interrupted)
    filling = Filling(7, load, held, lambda message, fds: sent.append((message, len(fds))))
    with pytest.raises(KeyboardInterrupt):
        filling.run()
    assert sent == [([m.BUFFER, 7, load.size, *([held.capacity] if held else [])], 1)]
    if held is not None:
        assert pieces_of(held.view(load.size)) == [b"p", b"x" * 1000]
        held.close()


def test_the_descriptor_goes_along_once() -> None:
    """The first time a worker gets the memfd and its whole size; then it has it."""
    sent: list[tuple[list[Any], int]] = []
    load = Parcel(Shipment(None, b"p", (), (memoryview(b"x" * 1000),)))
    held = Kept.make(load.size, None, writable=False)
    assert held is not None
    before = len(os.listdir("/proc/self/fd"))
    for task in (1, 2):
        Filling(task, load, held, lambda message, fds: sent.append((message, len(fds)))).run()
    assert sent == [([m.BUFFER, 1, load.size, held.capacity], 1), ([m.BUFFER, 2, load.size], 0)]
    assert len(os.listdir("/proc/self/fd")) == before - 1
    held.close()


def test_what_is_written_to_has_its_pages() -> None:
    """A write to a mapping that finds no memory would kill this process; asked for before, it is an error."""
    blocks: list[int] = []
    load = Parcel(Shipment(None, b"p", (), (memoryview(b"x" * 1000),)))
    held = Kept.make(MIB, None, writable=False)
    assert held is not None
    Filling(1, load, held, lambda _, fds: blocks.extend(os.fstat(fd).st_blocks for fd in fds)).run()
    assert blocks[0] * 512 >= held.capacity
    held.close()


def test_what_is_read_has_its_pages_and_keeps_them() -> None:
    """Once its worker has mapped it: then a hole can neither be there nor be made, nor can more be mapped for that."""
    held = Kept.make(MIB, None, writable=True)
    assert held is not None
    fd = held.take_fd()
    theirs = buffers.map_kept(fd, held.capacity, writable=True)
    theirs[:10] = b"x" * 10
    assert os.fstat(fd).st_blocks * 512 < held.capacity
    held.settle()
    assert os.fstat(fd).st_blocks * 512 >= held.capacity
    theirs[10:20] = b"y" * 10
    assert bytes(held.view(20)) == b"x" * 10 + b"y" * 10
    with pytest.raises(PermissionError):
        theirs.madvise(MADV_REMOVE, 0, 4096)
    held.settle()
    held.close()
    os.close(fd)


def test_what_a_dead_worker_wrote_is_read_without_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of its may have the memory still, where no pid namespace ends that with it."""
    held = Kept.make(MIB, None, writable=True)
    assert held is not None
    fd, capacity = held.take_fd(), held.capacity
    theirs = buffers.map_kept(fd, capacity, writable=True)
    theirs[:5] = b"right"
    lease = transfer.Lease(1, MIB, held)
    held.close()  # its worker is gone
    theirs.madvise(MADV_REMOVE, 4096, 4096)

    def read(*arguments: Any) -> Any:
        assert os.fstat(fd).st_blocks * 512 >= capacity
        with pytest.raises(PermissionError):
            theirs.madvise(MADV_REMOVE, 0, 4096)
        return restore_kept(*arguments)

    monkeypatch.setattr(transfer, "restore_kept", read)
    assert lease.redeem({"form": "bytes", "size": MIB}, Codec()) == b"right" + bytes(MIB - 5)
    os.close(fd)


def test_a_descriptor_that_nobody_can_use_any_more_is_closed() -> None:
    """That with which a result would have been settled: when neither its worker nor a result is left."""
    gc.collect()  # not what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    held = Kept.make(MIB, None, writable=True)
    assert held is not None
    lease = transfer.Lease(1, MIB, held)
    held.close()
    del held
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the mapping has one, too
    lease.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_that_its_worker_has_sealed_is_not_read() -> None:
    """It could make holes there for ever."""
    held = Kept.make(MIB, None, writable=True)
    assert held is not None
    fd = held.take_fd()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    with pytest.raises(RemoteProtocolError, match="sealed"):
        held.settle()
    held.close()
    os.close(fd)


def test_a_shortage_of_memory_is_told_and_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next result may be read again, and its pages are asked for again."""
    held = Kept.make(MIB, None, writable=True)
    assert held is not None
    real = os.posix_fallocate

    def fail(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="no space"):
        held.settle()
    monkeypatch.setattr(os, "posix_fallocate", real)
    held.settle()
    fd = held.take_fd()
    assert os.fstat(fd).st_blocks * 512 >= held.capacity
    os.close(fd)
    held.close()
