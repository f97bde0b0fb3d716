"""Memory that two processes pass to each other as a file descriptor, beside their messages.

Three kinds, all memfds that cannot grow. A *sealed* one is written by its maker and can never change again. A
*lease* is made by the supervisor and lent to a worker, which fills it; the supervisor copies it and takes the memory
back, or seals it before it maps it: a mapping that a hostile worker can still write would change under the reader's
eyes. A worker that keeps the descriptor of a lease keeps nothing but that, once the memory has been taken back.

A *kept* one stays with one worker for many tasks, so that its pages are made once; what the worker writes there is
copied before it is looked at.

Whoever gets a descriptor from here closes it; nothing here keeps one, nor closes one that it was given. Where
memfds are missing (``available()``), large values travel in frames instead, up to the limit of those.
"""

import fcntl
import mmap
import os
import sys
from _weakrefset import WeakSet  # weakref's own
from collections.abc import Iterable

from ringfence.ipc.errors import RemoteProtocolError

__all__ = [
    "available",
    "claim_lease",
    "create_kept",
    "create_lease",
    "create_sealed",
    "create_sealed_from",
    "empty_lease",
    "map_kept",
    "map_sealed",
    "read_lease",
    "settle_kept",
]

Buffer = bytes | bytearray | memoryview

_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_IMMUTABLE = _FIXED_SIZE | fcntl.F_SEAL_WRITE
_F_SEAL_FUTURE_WRITE = 0x0010  # since Linux 5.1; mappings made before it may still be written to, but get no holes
_FINAL = _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL

# Since Linux 6.3; a memfd that can be executed is a way around a noexec mount. Python has no name for it yet.
_MFD_NOEXEC_SEAL = 0x0008

# Before Python 3.13 a mapping keeps a descriptor of its own for as long as it lives, and results live as long
# as the caller likes: beyond this many, buffers are copied instead, so that results never use up the
# descriptors (1,024).
_MAX_TRACKED = 32
_tracked: WeakSet[mmap.mmap] = WeakSet()


def available() -> bool:
    """Whether this host has memfds that can be sealed."""
    try:
        os.close(_create(1))
    except (OSError, AttributeError):
        return False
    return True


def create_sealed(data: Buffer) -> int:
    """Return a memfd that holds `data` and can never change again; the caller closes it. Raises OSError."""
    view = memoryview(data).cast("B")
    return create_sealed_from(view.nbytes, [(0, view)])


def create_sealed_from(size: int, pieces: Iterable[tuple[int, Buffer]]) -> int:
    """Return a sealed memfd of `size` bytes with each piece at its offset and zeros between; the caller
    closes it."""
    fd = _create(size)
    try:
        for offset, piece in pieces:
            _write_at(fd, offset, memoryview(piece).cast("B"))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _IMMUTABLE | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_sealed(fd: int, size: int) -> memoryview:
    """Return a read-only view of the sealed memfd that a peer sent; `fd` stays the caller's to close.

    Raises RemoteProtocolError unless it is a memfd of exactly `size` bytes (at least one) that nobody can
    change.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise RemoteProtocolError("a buffer that is not a memfd") from error
    if seals & _IMMUTABLE != _IMMUTABLE:
        raise RemoteProtocolError("a buffer that its sender could still change")
    _check_size(fd, size)
    return _map(fd, size, mmap.PROT_READ)


def create_lease(size: int) -> int:
    """Return a memfd of `size` bytes, zeros, for a peer to fill; it can never grow. The caller closes it.

    Raises OSError.
    """
    fd = _create(size)
    try:
        # Not against shrinking: that is how its memory is taken back.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_lease(fd: int, size: int) -> bytes:
    """Return a copy of a lease of `size` bytes; `fd` stays the caller's. Raises RemoteProtocolError."""
    parts: list[bytes] = []
    missing = size
    while missing:
        part = os.pread(fd, missing, size - missing)
        if not part:
            raise RemoteProtocolError(f"a buffer that ends {missing} bytes early")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def empty_lease(fd: int) -> None:
    """Take the memory of a lease back, whoever else has it open or mapped; `fd` stays the caller's to close.

    Raises RemoteProtocolError when the peer has sealed it against that, whose memory then lives as long as the peer.
    """
    try:
        os.ftruncate(fd, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SIZE | fcntl.F_SEAL_SEAL)
    except OSError as error:
        if os.fstat(fd).st_size:
            raise RemoteProtocolError("a lease that its borrower has sealed") from error


def claim_lease(fd: int, size: int) -> memoryview:
    """Take a lease of `size` bytes (at least one) back: return a writable view of it that is this process's
    alone.

    Nothing is copied; pages are as they are written to. `fd` stays the caller's to close. Raises
    RemoteProtocolError when the peer still has the lease mapped for writing.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _IMMUTABLE)
    except OSError as error:
        # EBUSY: somebody has it mapped for writing. EPERM: the peer has sealed the seals.
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _IMMUTABLE != _IMMUTABLE:
            raise RemoteProtocolError("a lease that its borrower can still change") from error
    _check_size(fd, size)  # not before: until it is sealed, it can shrink
    return _map(fd, size, mmap.PROT_READ | mmap.PROT_WRITE)


def create_kept(size: int, *, writable: bool) -> tuple[int, mmap.mmap]:
    """Return a memfd of `size` bytes that stays with one peer, and our own mapping of it.

    Its size is fixed. Unless it is `writable`, we alone can write to it, through this mapping; else `settle_kept` has
    to come before we read. The caller closes the fd. Raises OSError.
    """
    fd = _create(size)
    try:
        mapping = mmap.mmap(fd, size)
        seals = _FIXED_SIZE if writable else _FIXED_SIZE | _FINAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd, mapping


def settle_kept(fd: int, size: int) -> None:
    """See to it that every page of a kept memfd is there, and stays, once its peer has mapped it.

    A page that is missing is made when it is read; where there is no memory for it, that kills the reader (SIGBUS). A
    peer that writes through its mapping only may not make holes, once this is sealed. `fd` stays the caller's. Raises
    OSError where there is no memory, and RemoteProtocolError when the peer has sealed it against that.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FINAL)
    except OSError as error:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _F_SEAL_FUTURE_WRITE == 0:
            raise RemoteProtocolError("a kept buffer that its borrower has sealed") from error
    os.posix_fallocate(fd, 0, size)


def map_kept(fd: int, size: int, *, writable: bool) -> mmap.mmap:
    """Return a peer's mapping of a memfd of `size` bytes that it keeps; `fd` stays the caller's to close.

    One that is not `writable` is private: what we were to write there (see sandbox.memory.bytes_at) we alone would see.
    Raises RemoteProtocolError when that could shrink, and OSError.
    """
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _FIXED_SIZE != _FIXED_SIZE:
        raise RemoteProtocolError("a kept buffer that could shrink")
    _check_size(fd, size)
    if writable:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ)


def _create(size: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    made: list[int] = []
    try:
        # Made and noted in one step of the interpreter: ^C comes between two, and would leave it open.
        try:
            made.extend(map(os.memfd_create, ("ringfence",), (flags | _MFD_NOEXEC_SEAL,)))
        except OSError:
            made.extend(map(os.memfd_create, ("ringfence",), (flags,)))
        os.ftruncate(made[0], size)
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return made[0]


def _write_at(fd: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        offset += written
        data = data[written:]


def _check_size(fd: int, size: int) -> None:
    actual = os.fstat(fd).st_size
    if actual != size or size <= 0:
        raise RemoteProtocolError(f"a buffer of {actual} bytes that was announced with {size}")


def _map(fd: int, size: int, protection: int) -> memoryview:
    """Return a private mapping of a memfd that cannot change any more, or a copy of it."""
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, size, mmap.MAP_PRIVATE, protection, trackfd=False))
    if len(_tracked) < _MAX_TRACKED:
        mapping = mmap.mmap(fd, size, mmap.MAP_PRIVATE, protection)
        _tracked.add(mapping)
        return memoryview(mapping)
    copy = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
    view = memoryview(copy)
    done = 0
    while done < size:
        # Never zero: the size is sealed.
        done += os.preadv(fd, [view[done:]], done)
    return view if protection & mmap.PROT_WRITE else view.toreadonly()
