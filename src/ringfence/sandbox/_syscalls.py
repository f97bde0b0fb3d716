"""The only ctypes: a prototype for each kernel call and a wrapper as long as the call.

Every wrapper raises `OSError` with the kernel's errno. No wrapper keeps a pointer beyond its call: buffers
are owned by the caller and live at least as long as the expression that passes them.

Calls that glibc 2.36 does not wrap go through ``syscall(2)`` by number. From 424 on a number is the same on
every architecture; the few older ones are in `_OLD_NUMBERS`.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import Any, Final

__all__ = [
    "FilterProgram",
    "attempt",
    "bytes_at",
    "capget",
    "capset",
    "close_range",
    "forget_bytes",
    "landlock_abi",
    "landlock_add_path",
    "landlock_add_port",
    "landlock_create",
    "landlock_restrict",
    "mount",
    "mount_setattr",
    "move_mount",
    "new_bytes",
    "open_tree",
    "pivot_root",
    "prctl",
    "references",
    "refusal",
    "seccomp_action_available",
    "seccomp_load",
    "set_host_name",
    "setns",
    "umount",
    "unshare",
]

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 2

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
_MOUNT_ATTR_IDMAP: Final = 0x100000

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_GET_SECCOMP: Final = 21
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_GET_SECUREBITS: Final = 27
PR_SET_SECUREBITS: Final = 28
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_CLOSE_RANGE: Final = 436
_MOUNT_SETATTR: Final = 442
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446

_OLD_NUMBERS: Final = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "capget": 125, "capset": 126, "openat": 257},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "capget": 90, "capset": 91, "openat": 56},
}.get(os.uname().machine, {})

_libc = ctypes.CDLL(None, use_errno=True)

_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_prctl.restype = ctypes.c_int
_unshare = _libc.unshare
_unshare.argtypes = [ctypes.c_int]
_unshare.restype = ctypes.c_int
_setns = _libc.setns
_setns.argtypes = [ctypes.c_int, ctypes.c_int]
_setns.restype = ctypes.c_int
_mount = _libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_mount.restype = ctypes.c_int
_umount2 = _libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_umount2.restype = ctypes.c_int
_sethostname = _libc.sethostname
_sethostname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_sethostname.restype = ctypes.c_int
_setdomainname = _libc.setdomainname
_setdomainname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_setdomainname.restype = ctypes.c_int

_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_madvise.restype = ctypes.c_int
_MADV_HUGEPAGE: Final = 14
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_bytes_of_size = ctypes.pythonapi.PyBytes_FromStringAndSize
_bytes_of_size.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_bytes_of_size.restype = ctypes.py_object
_bytes_address = ctypes.pythonapi.PyBytes_AsString
_bytes_address.argtypes = [ctypes.py_object]
_bytes_address.restype = ctypes.c_void_p

_mprotect = _libc.mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_mprotect.restype = ctypes.c_int
# Reference count, type, size and hash (-1: not known yet), before the bytes themselves.
_BytesHeader = ctypes.c_ssize_t * 4


class _Buffer(ctypes.Structure):
    """Py_buffer, as CPython's stable ABI has it."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        *((name, ctypes.c_ssize_t) for name in ("len", "itemsize")),
        *((name, ctypes.c_int) for name in ("readonly", "ndim")),
        *((name, ctypes.c_void_p) for name in ("format", "shape", "strides", "suboffsets", "internal")),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_Buffer)]
_release_buffer.restype = None

# ctypes passes a bare int as a C int; a system call takes longs, so every argument is widened by hand.
_long = ctypes.c_long


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _old_number(name: str) -> int:
    try:
        return _OLD_NUMBERS[name]
    except KeyError:
        raise OSError(38, f"{name}: no number known for this machine") from None  # ENOSYS


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Call ``prctl`` with integer arguments and return its answer."""
    return _checked(_prctl(option, arg2, arg3, arg4, arg5))


def unshare(flags: int) -> None:
    """Move this thread into new namespaces."""
    _checked(_unshare(flags))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind ``fd``, which must be of ``kind`` (a CLONE_NEW constant)."""
    _checked(_setns(fd, kind))


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """Mount by the old interface."""
    kind = None if fstype is None else fstype.encode()
    options = None if data is None else data.encode()
    _checked(_mount(os.fsencode(source), os.fsencode(target), kind, flags, options))


def umount(target: str, flags: int = 0) -> None:
    """Take a mount away."""
    _checked(_umount2(os.fsencode(target), flags))


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root of the mount namespace, the old one moving to ``put_old``."""
    number = _old_number("pivot_root")
    _checked(_syscall(_long(number), os.fsencode(new_root), os.fsencode(put_old)))


def set_host_name(name: str) -> None:
    """Set host and domain name of this UTS namespace."""
    raw = name.encode()
    _checked(_sethostname(raw, len(raw)))
    _checked(_setdomainname(raw, len(raw)))


def open_tree(place: int) -> int:
    """Return an fd for a detached copy of the mount tree at the path behind the fd ``place``; the caller closes it."""
    # OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE: without the submounts a user namespace is refused.
    flags = 1 | os.O_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
    return _checked(_syscall(_long(_OPEN_TREE), _long(place), b"", _long(flags)))


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def mount_setattr(fd: int, attributes: int, owners: int | None = None) -> None:
    """Add ``attributes`` to all mounts of the detached tree ``fd``, and the id map of the user namespace ``owners``."""
    mapped = (0, 0) if owners is None else (_MOUNT_ATTR_IDMAP, owners)
    attr = _MountAttr(attributes | mapped[0], 0, 0, mapped[1])
    flags = _long(_AT_EMPTY_PATH | _AT_RECURSIVE)
    size = _long(ctypes.sizeof(attr))
    _checked(_syscall(_long(_MOUNT_SETATTR), _long(fd), b"", flags, ctypes.byref(attr), size))


def move_mount(fd: int, target: str) -> None:
    """Attach the detached mount ``fd`` at ``target``."""
    where = os.fsencode(target)
    # MOVE_MOUNT_F_EMPTY_PATH: the source is the fd itself.
    _checked(_syscall(_long(_MOVE_MOUNT), _long(fd), b"", _long(AT_FDCWD), where, _long(4)))


def attempt(number: int, arguments: Iterable[int | str]) -> int:
    """Make any system call, and return what it returned, or minus its errno.

    For the self-test, whose arguments are numbers that no kernel takes for an address, and texts: paths.
    """
    ready = [os.fsencode(value) if isinstance(value, str) else _long(value) for value in arguments]
    result = int(_syscall(_long(number), *ready))
    return -ctypes.get_errno() if result == -1 else result


# Made before the fork, as `_CAPSET` is. What pidfd_open answers to -1 is EINVAL, unless a filter knows no such call.
PIDFD_OPEN_NONE: Final = (_long(434), _long(-1), _long(0))
OPEN_ROOT: Final = (
    _long(_OLD_NUMBERS.get("openat", -1)),
    _long(AT_FDCWD),
    b"/",
    _long(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
)


def refusal(call: tuple[Any, ...]) -> int:
    """Make one of the calls above, and return the errno that it was refused with, or 0 if it was not.

    No exception is made of it: what that takes would be copied for each worker, which looks for refusals.
    """
    return ctypes.get_errno() if int(_syscall(*call)) < 0 else 0


def close_range(first: int, last: int) -> None:
    """Close every open fd from ``first`` to ``last``, both included."""
    _checked(_syscall(_long(_CLOSE_RANGE), _long(first), _long(last), _long(0)))


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


_CAP_VERSION_3: Final = 0x20080522
_CAP_NUMBERS = (_OLD_NUMBERS.get("capget", -1), _OLD_NUMBERS.get("capset", -1))


# Made before the fork: building them in each worker would copy a page of memory for nearly every object, ten
# times the cost of the call.
_NO_CAPABILITIES = (_CapHeader(_CAP_VERSION_3, 0), (_CapData * 2)())
_CAPSET = (_long(_CAP_NUMBERS[1]), ctypes.byref(_NO_CAPABILITIES[0]), _NO_CAPABILITIES[1])


def capget() -> int:
    """Return the effective capabilities of this thread as a bit mask."""
    header, data = _CapHeader(_CAP_VERSION_3, 0), (_CapData * 2)()
    _checked(_syscall(_long(_CAP_NUMBERS[0]), ctypes.byref(header), data))
    return int(data[0].effective | data[1].effective << 32)


def capset() -> None:
    """Give up every effective, permitted and inheritable capability of this thread."""
    _checked(_syscall(*_CAPSET))


class _RulesetAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


class _NetPort(ctypes.Structure):
    _fields_ = [("allowed_access", ctypes.c_uint64), ("port", ctypes.c_uint64)]


def landlock_abi() -> int:
    """Return the Landlock ABI version of this kernel."""
    # A null attribute with LANDLOCK_CREATE_RULESET_VERSION asks for the version.
    return _checked(_syscall(_long(_LANDLOCK_CREATE_RULESET), None, _long(0), _long(1)))


def landlock_create(handled_fs: int, handled_net: int, scoped: int) -> int:
    """Return the fd of a new rule-set; the caller closes it.

    Kernels accept a longer structure than they know as long as the unknown fields are zero.
    """
    attr = _RulesetAttr(handled_fs, handled_net, scoped)
    size = _long(ctypes.sizeof(attr))
    return _checked(_syscall(_long(_LANDLOCK_CREATE_RULESET), ctypes.byref(attr), size, _long(0)))


def landlock_add_path(ruleset: int, fd: int, access: int) -> None:
    """Allow ``access`` on and below the file or folder ``fd``."""
    rule = _PathBeneath(access, fd)
    _checked(_syscall(_long(_LANDLOCK_ADD_RULE), _long(ruleset), _long(1), ctypes.byref(rule), _long(0)))


def landlock_add_port(ruleset: int, port: int, access: int) -> None:
    """Allow ``access`` (bind, connect) for one TCP port."""
    rule = _NetPort(access, port)
    _checked(_syscall(_long(_LANDLOCK_ADD_RULE), _long(ruleset), _long(2), ctypes.byref(rule), _long(0)))


def landlock_restrict(ruleset: int) -> None:
    """Put this thread under the rule-set, for good."""
    _checked(_syscall(_long(_LANDLOCK_RESTRICT_SELF), _long(ruleset), _long(0)))


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class FilterProgram:
    """A BPF program in memory that the kernel can read, with the immediates that differ per process.

    Args:
        code: the program, eight bytes an instruction, at most 4096 instructions (BPF_MAXINSNS).
        pid_slots: the instructions whose immediate is to become the pid of the process that loads it.
    """

    def __init__(self, code: bytes, pid_slots: tuple[int, ...] = ()) -> None:
        if not code or len(code) % 8 or len(code) > 4096 * 8:
            raise ValueError(f"a BPF program of {len(code)} bytes cannot be loaded")
        # Both buffers stay referenced by self: the kernel reads them during the call only.
        self._code = ctypes.create_string_buffer(code, len(code))
        self._header = _SockFprog(len(code) // 8, ctypes.addressof(self._code))
        self._pid_slots = pid_slots

    def set_pid(self, pid: int) -> None:
        """Write ``pid`` into every slot."""
        for slot in self._pid_slots:
            ctypes.c_uint32.from_buffer(self._code, slot * 8 + 4).value = pid

    @property
    def code(self) -> bytes:
        """The program as it stands now."""
        return self._code.raw

    @property
    def header(self) -> _SockFprog:
        """The structure that ``seccomp`` takes."""
        return self._header


def seccomp_action_available(action: int) -> bool:
    """Say whether the kernel's filters know ``action``."""
    value = ctypes.c_uint32(action)
    number = _long(_old_number("seccomp"))
    return int(_syscall(number, _long(2), _long(0), ctypes.byref(value))) == 0  # SECCOMP_GET_ACTION_AVAIL


def seccomp_load(program: FilterProgram) -> None:
    """Put this thread under the filter, for good; no_new_privs must be set."""
    number = _long(_old_number("seccomp"))
    _checked(_syscall(number, _long(1), _long(0), ctypes.byref(program.header)))  # SECCOMP_SET_MODE_FILTER


def new_bytes(size: int) -> tuple[bytes, memoryview]:
    """Return bytes (two or more) that are still to be written, and the view to write them through.

    Python's own rule for `PyBytes_FromStringAndSize(NULL, size)`: write before anybody else gets the object, never
    after. The view does not keep the memory: it must not outlive the bytes. Where the kernel makes huge pages for whom
    asks, they lie in such, whose faults cost a fifth. Raises MemoryError.
    """
    made: bytes = _bytes_of_size(None, size)
    start = _bytes_address(made)
    first = -(-start // _PAGE) * _PAGE
    # Advice only: what the kernel answers changes nothing.
    _madvise(first, (start + size) // _PAGE * _PAGE - first, _MADV_HUGEPAGE)
    return made, memoryview((ctypes.c_char * size).from_address(start)).cast("B")


def bytes_at(view: memoryview) -> tuple[bytes, int]:
    """Return the memory of `view` as bytes, without a copy, and where their header lies.

    It starts a page of a private mapping, the page before is nobody's, and behind its end is a zero. There is one
    reference too many, so that Python never frees them: the memory may go when `references` says 1. Raises OSError.
    """
    buffer = _Buffer()
    _get_buffer(view, ctypes.byref(buffer), 0)
    start = buffer.buf
    _release_buffer(ctypes.byref(buffer))
    header = start - ctypes.sizeof(_BytesHeader)
    _checked(_mprotect(start - _PAGE, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE))
    _BytesHeader.from_address(header)[:] = [1, id(bytes), len(view), -1]
    made: bytes = ctypes.cast(header, ctypes.py_object).value
    return made, header


def forget_bytes(header: int) -> None:
    """Take back the page that `bytes_at` has changed for a header: nothing refers to those bytes any more."""
    _checked(_madvise(header // _PAGE * _PAGE, _PAGE, mmap.MADV_DONTNEED))


def references(header: int) -> int:
    """Return how many references there are to an object that `bytes_at` has made."""
    return ctypes.c_ssize_t.from_address(header).value
