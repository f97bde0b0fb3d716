"""Memory that is passed by descriptor: nothing changes under the reader, nothing stays open."""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator

import pytest

from ringfence.ipc import buffers
from ringfence.ipc.errors import RemoteProtocolError

DATA = os.urandom(100_000)

pytestmark = pytest.mark.skipif(not buffers.available(), reason="no memfds that can be sealed")


@pytest.fixture(autouse=True)
def no_fd_is_leaked() -> Iterator[None]:
    """Every test leaves as many descriptors open as it found."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def sealed() -> Iterator[int]:
    """A sealed memfd with DATA."""
    fd = buffers.create_sealed(DATA)
    yield fd
    os.close(fd)


@pytest.fixture
def lease() -> Iterator[int]:
    """A lease of the size of DATA."""
    fd = buffers.create_lease(len(DATA))
    yield fd
    os.close(fd)


def test_a_sealed_buffer_is_read_as_it_was_written(sealed: int) -> None:
    """The view has the bytes and cannot be written."""
    view = buffers.map_sealed(sealed, len(DATA))
    assert view == DATA
    assert view.readonly


def test_a_sealed_buffer_never_changes_again(sealed: int) -> None:
    """Neither its maker nor anybody else can write, map for writing, resize or unseal it."""
    with pytest.raises(PermissionError):
        os.pwrite(sealed, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(sealed, len(DATA))
    for size in (0, 1_000_000):
        with pytest.raises(PermissionError):
            os.ftruncate(sealed, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)


def test_a_view_outlives_the_descriptor() -> None:
    """The descriptor may be closed as soon as the buffer is mapped."""
    fd = buffers.create_sealed(DATA)
    view = buffers.map_sealed(fd, len(DATA))
    os.close(fd)
    assert view == DATA
    del view


def test_pieces_lie_where_they_were_put() -> None:
    """A buffer can be made of pieces at their offsets, with zeros between."""
    fd = buffers.create_sealed_from(20, [(8, b"abc"), (0, memoryview(b"xy")), (16, bytearray(b"z"))])
    assert buffers.map_sealed(fd, 20) == b"xy".ljust(8, b"\0") + b"abc".ljust(8, b"\0") + b"z\0\0\0"
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1, len(DATA) + 1, 2**62])
def test_another_size_than_announced_is_refused(sealed: int, lease: int, size: int) -> None:
    """The announced size must be the size."""
    with pytest.raises(RemoteProtocolError):
        buffers.map_sealed(sealed, size)
    with pytest.raises(RemoteProtocolError):
        buffers.claim_lease(lease, size)


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE])
def test_a_buffer_that_can_change_is_refused(missing: int) -> None:
    """A memfd that lacks one of the seals is not mapped."""
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x")
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals & ~missing)
    with pytest.raises(RemoteProtocolError, match="change"):
        buffers.map_sealed(fd, 1)
    os.close(fd)


def test_what_is_no_memfd_is_refused() -> None:
    """A file or a pipe in place of a memfd is the peer's fault."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as file:
        for fd in (reader, file.fileno()):
            with pytest.raises(RemoteProtocolError):
                buffers.map_sealed(fd, 1)
    os.close(reader)
    os.close(writer)


def test_a_lease_cannot_grow(lease: int) -> None:
    """Its borrower gets the memory that was counted."""
    with pytest.raises(PermissionError):
        os.ftruncate(lease, 1_000_000)


def test_a_lease_that_shrank_is_refused(lease: int) -> None:
    """A reader would be short of bytes, or die of SIGBUS."""
    os.ftruncate(lease, 10)
    with pytest.raises(RemoteProtocolError, match="early"):
        buffers.read_lease(lease, len(DATA))
    with pytest.raises(RemoteProtocolError, match="announced"):
        buffers.claim_lease(lease, len(DATA))
    with pytest.raises(PermissionError):
        os.ftruncate(lease, 0)  # sealed before it was looked at


def test_an_emptied_lease_has_no_memory_and_gets_none(lease: int) -> None:
    """Whoever has it open or mapped: its pages are gone, and no new ones come."""
    os.pwrite(lease, DATA, 0)
    with mmap.mmap(lease, len(DATA)):
        buffers.empty_lease(lease)
        assert os.fstat(lease).st_blocks == 0
        with pytest.raises(PermissionError):
            os.pwrite(lease, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(lease, 1)
    buffers.empty_lease(lease)


def test_a_lease_that_cannot_be_emptied_is_the_borrowers_fault(lease: int) -> None:
    """One that has sealed it would keep the memory."""
    fcntl.fcntl(lease, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(RemoteProtocolError, match="sealed"):
        buffers.empty_lease(lease)


def test_a_lease_is_copied_or_claimed(lease: int) -> None:
    """What the borrower wrote can be read as bytes, or mapped without a copy; what is written then stays private."""
    assert os.pwrite(lease, DATA, 0) == len(DATA)
    assert buffers.read_lease(lease, len(DATA)) == DATA
    view = buffers.claim_lease(lease, len(DATA))
    assert view == DATA
    view[0] ^= 255
    assert buffers.read_lease(lease, len(DATA)) == DATA
    del view


def test_a_claimed_lease_cannot_be_written_any_more(lease: int) -> None:
    """After the claim the borrower's descriptor is read-only; claiming twice is harmless."""
    view = buffers.claim_lease(lease, len(DATA))
    with pytest.raises(PermissionError):
        os.pwrite(lease, b"x", 0)
    again = buffers.claim_lease(lease, len(DATA))
    assert view == again
    del view, again


def test_a_lease_that_is_still_mapped_is_refused(lease: int) -> None:
    """A borrower that keeps a writable mapping could change the result under the reader's eyes."""
    with mmap.mmap(lease, len(DATA)), pytest.raises(RemoteProtocolError, match="still change"):
        buffers.claim_lease(lease, len(DATA))


def test_a_lease_whose_seals_are_sealed_is_refused(lease: int) -> None:
    """A borrower that seals the seals keeps the lease writable: refused."""
    fcntl.fcntl(lease, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    with pytest.raises(RemoteProtocolError, match="still change"):
        buffers.claim_lease(lease, len(DATA))


def test_a_lease_that_is_too_short_to_read_is_refused(lease: int) -> None:
    """Reading more than there is, is the peer's fault."""
    with pytest.raises(RemoteProtocolError, match="early"):
        buffers.read_lease(lease, len(DATA) + 1)


def test_an_empty_lease_is_empty_bytes() -> None:
    """Nothing can be lent and read; it cannot be mapped."""
    fd = buffers.create_lease(0)
    assert buffers.read_lease(fd, 0) == b""
    with pytest.raises(RemoteProtocolError):
        buffers.claim_lease(fd, 0)
    os.close(fd)


def test_many_buffers_use_few_descriptors() -> None:
    """Results that the caller keeps do not use up the descriptors of the process; the copies are as good."""
    before = len(os.listdir("/proc/self/fd"))
    views = []
    for number in range(100):
        fd = buffers.create_lease(8)
        os.pwrite(fd, number.to_bytes(8, "big"), 0)
        views.append(buffers.claim_lease(fd, 8))
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) - before <= 32
    assert [int.from_bytes(view, "big") for view in views] == list(range(100))
    assert not views[-1].readonly
    del views


def test_a_failure_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """If making a buffer fails half-way, its descriptor is closed."""

    def fail(*arguments: object) -> None:
        raise OSError(28, "no space")

    for name in ("pwrite", "ftruncate"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="no space"):
                buffers.create_sealed(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", fail)
        with pytest.raises(OSError, match="no space"):
            buffers.create_lease(10)


def test_a_memfd_cannot_be_executed(lease: int) -> None:
    """Where the kernel can forbid it (Linux 6.3), a lent memfd is no program."""
    if not os.fstat(lease).st_mode & 0o111:
        with pytest.raises(PermissionError):
            os.chmod(lease, 0o777)


@pytest.mark.parametrize("writable", [True, False])
def test_a_kept_buffer_cannot_change_its_size(writable: bool) -> None:
    """Neither side's mapping of it can ever fault; nobody can seal or unseal anything, once it is settled."""
    fd, mapping = buffers.create_kept(8192, writable=writable)
    for size in (0, 4096, 10_000):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    theirs = buffers.map_kept(fd, 8192, writable=writable)
    if writable:
        buffers.settle_kept(fd, 8192)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    os.close(fd)
    mapping[:5] = b"there"
    assert theirs[:5] == b"there"
    if writable:
        theirs[:4] = b"back"
        assert mapping[:4] == b"back"


def test_what_holds_arguments_is_written_by_its_maker_alone() -> None:
    """Its worker can neither write to it nor map it so."""
    fd, mapping = buffers.create_kept(8192, writable=False)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 8192)
    with pytest.raises(PermissionError):
        buffers.map_kept(fd, 8192, writable=True)
    mapping[:3] = b"abc"
    assert os.pread(fd, 3, 0) == b"abc"
    os.close(fd)


def test_only_what_cannot_shrink_is_kept(lease: int) -> None:
    """A worker would die of SIGBUS in the middle of a task."""
    with pytest.raises(RemoteProtocolError, match="shrink"):
        buffers.map_kept(lease, len(DATA), writable=True)
