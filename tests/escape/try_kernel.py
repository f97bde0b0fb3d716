"""Attempts on the kernel's surface: calls that nobody computing needs, in every spelling that a filter may miss."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import ctypes
import errno
import mmap
import os
import signal
import struct

from breakout import Facts, attempts, call, raw, text

attempt = attempts("kernel surface")

_X86 = {"machine": "x86_64"}
_SEEN = (errno.EPERM, errno.ENOSYS)


def _reaches(number_or_name, w: Facts, *args) -> bool:
    """Say whether the kernel looked at a call with arguments that are none."""
    try:
        if isinstance(number_or_name, str):
            call(w, number_or_name, *args)
        else:
            raw(number_or_name, *args)
    except OSError as error:
        if error.errno in _SEEN:
            raise
    return True


# name: (what, arguments that nothing can come of, kills, needs root to be seen unsandboxed)
_CALLS: dict[str, tuple[str, tuple[object, ...], bool, bool]] = {
    "bpf": ("programs in the kernel", (0, 0, 0), True, True),
    "userfaultfd": ("handling page faults", (1,), True, False),
    "perf_event_open": ("counters of the processor", (0, 0, -1, -1, 0), True, False),
    "keyctl": ("keyrings", (0, -3, 0, 0, 0), True, False),
    "add_key": ("a key that outlives the process", (0, 0, 0, 0, 0), True, False),
    "request_key": ("keys, through a helper of the kernel's", (0, 0, 0, 0), True, False),
    "kexec_load": ("another kernel", (0, 99, 0, 0), True, True),
    "kexec_file_load": ("another kernel, by file", (-1, -1, 0, 0, 1 << 20), True, True),
    "init_module": ("a kernel module", (0, 0, 0), True, True),
    "finit_module": ("a kernel module, by file", (-1, 0, 0), True, True),
    "delete_module": ("removing a kernel module", (0, 0), True, True),
    "iopl": ("ports of the machine", (4,), True, False),
    "ioperm": ("some ports of the machine", (1 << 20, 1, 1), True, False),
    "modify_ldt": ("segments", (0x11, 0, 0), True, False),
    "reboot": ("the end of the machine", (0, 0, 0, 0), True, True),
    "swapon": ("swap", (0, 0), True, True),
    "swapoff": ("no swap", (0,), True, True),
    "acct": ("accounting", (1,), True, True),
    "quotactl": ("quotas", (0x800002, 0, 0, 0), True, True),
    "quotactl_fd": ("quotas, by descriptor", (-1, 0x800002, 0, 0), True, True),
    "settimeofday": ("the clock", (1, 0), True, False),
    "clock_settime": ("the clock, newer", (99, 0), True, False),
    "adjtimex": ("the clock's rate", (1,), False, False),
    "clock_adjtime": ("the clock's rate, newer", (99, 1), False, False),
    "syslog": ("the kernel's log", (99, 0, 0), True, True),
    "fanotify_init": ("watching every file", (1 << 30, 0), True, True),
    "fsconfig": ("settings of a file system", (-1, 0, 0, 0, 0), True, True),
    "fsmount": ("mounting what was configured", (-1, 0, 0), True, True),
    "inotify_init1": ("watching files", (0,), False, False),
    "fanotify_mark": ("marks of a watcher", (-1, 1, 1, -1, 0), False, False),
    "personality": ("another operating system's ways", (0xFFFFFFFF,), False, False),
    "seccomp": ("a filter whose supervisor it would be", (1, 8, 0), False, False),
    "landlock_create_ruleset": ("Landlock itself", (0, 0, 1), False, False),
    "memfd_create": ("memory that no limit counts", (0, 0), False, False),
    "timerfd_create": ("timers that are files", (1, 0), False, False),
    "signalfd4": ("signals that are files", (-1, 0, 0, 0), False, False),
    "timer_create": ("timers of the kernel's", (99, 0, 0), False, False),
    "io_setup": ("asynchronous input", (0, 0), False, False),
    "io_submit": ("asynchronous input, begun", (1, 0, 0), False, False),
    "splice": ("moving pages between files", (-1, 0, -1, 0, 1, 0), False, False),
    "vmsplice": ("one's own pages into a pipe", (-1, 0, 0, 0), False, False),
    "tee": ("copying pipes", (-1, -1, 1, 0), False, False),
    "mlockall": ("memory that cannot be swapped", (1 << 20,), False, False),
    "remap_file_pages": ("pages in another order", (1, 0, 0, 0, 0), False, False),
    "shmget": ("shared memory that outlives the process", (0x7EA5, 0, 0), False, False),
    "semget": ("semaphores that outlive the process", (0x7EA5, 1, 0), False, False),
    "msgget": ("queues that outlive the process", (0x7EA5, 0), False, False),
    "mq_open": ("queues with a name", (1, 0, 0, 0), False, False),
    "mq_unlink": ("removing such a queue", (1,), False, False),
    "sethostname": ("the host's name", (0, 1000), False, True),
    "setdomainname": ("the host's domain", (0, 1000), False, True),
    "vhangup": ("hanging up terminals", (), False, True),
    "sync": ("writing out every disk", (), False, False),
    "syncfs": ("writing out a disk", (-1,), False, False),
    "lookup_dcookie": ("profiling", (0, 0, 0), False, True),
    "ustat": ("file systems by device", (0, 0), False, False),
    "sysfs": ("kinds of file systems", (99, 0, 0), False, False),
    "uselib": ("a library, as in 1993", (0,), False, False),
    "set_mempolicy": ("where memory lies", (99, 0, 0), False, False),
    "pkey_alloc": ("keys of pages", (1, 0), False, False),
    "set_thread_area": ("segments of threads", (0,), False, False),
    "futex_waitv": ("the newest futex", (0, 0, 1 << 20, 0, 0), False, False),
    "rseq": ("", (), False, False),
    "cachestat": ("which pages of a file others have read", (-1, 0, 0, 0), False, False),
    "mseal": ("pages that nobody may change", (1, 0, 0), False, False),
    "listmount": ("the mounts there are", (0, 0, 0, 0), False, False),
    "statmount": ("a mount's properties", (0, 0, 0, 0), False, False),
    "lsm_list_modules": ("the host's security modules", (0, 0, 0), False, False),
    "map_shadow_stack": ("shadow stacks", (1, 0, 99), False, False),
}  # fmt: skip
_UNKNOWN = {"rseq", "uselib", "set_thread_area", "lookup_dcookie", "remap_file_pages"}
for _name, (_what, _args, _kills, _root) in _CALLS.items():
    if _name in _UNKNOWN:
        continue

    @attempt(f"{_name}: {_what}", name=f"call_{_name}", kills=_kills, root=_root, needs=(f"call:{_name}",),
             opens=("native:jit",) if _name.startswith("pkey") else ())  # fmt: skip
    def _call(w: Facts, name=_name, args=_args) -> bool:
        return _reaches(name, w, *args)


@attempt("the x32 spelling of a call", kills=True, needs=("x32",), **_X86)
def x32_call(w: Facts) -> bool:
    return raw(39 | 0x40000000) > 0


def _int80(number: int, *args: int) -> int:
    """Make a 32-bit system call, by an `int 0x80` that is written."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; mov edx, r8d(unused); int 0x80; pop rbx; ret
    page.write(bytes.fromhex("5389f889f389d1cd805bc3"))
    code = ctypes.addressof(ctypes.c_char.from_buffer(page))
    _pages.append(page)
    function = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 3)(code)
    return int(function(number, *args))


_pages: list[mmap.mmap] = []


@attempt("a 32-bit call (int 0x80) out of memory that was written", needs=("ia32",), opens=("native:jit",), **_X86)
def int80_written(w: Facts) -> bool:
    return _int80(20, 0, 0) > 0  # getpid


@attempt("a 32-bit call (int 0x80) whose bytes lie in a library by chance", kills=True, needs=("ia32",), **_X86)
def int80_found(w: Facts) -> bool:
    """Find `cd 80 ... c3` in the code of a loaded library, and call it: eax is then what it happens to be.

    Whatever the number is, an interrupt of another architecture's is answered with the end of the process.
    """
    if not w.inside:
        return _int80(20, 0, 0) > 0
    target = _find_int80()
    if target is None:
        os.kill(os.getpid(), signal.SIGKILL)  # nothing was found to try it with
    function = ctypes.CFUNCTYPE(ctypes.c_int)(target)
    function()
    return True


def _find_int80() -> int | None:
    """Return the address of an `int 0x80` in the code of the C library, wherever that lies."""
    base = ctypes.cast(ctypes.CDLL(None).printf, ctypes.c_void_p).value
    assert base is not None
    for start in range(base & ~4095, (base & ~4095) + (1 << 20), 4096):
        at = ctypes.string_at(start, 4096).find(b"\xcd\x80")
        if at >= 0:
            return start + at
    return None


@attempt("memory that is written and run at once", opens=("native:jit",))
def memory_rwx(w: Facts) -> bool:
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        return True


@attempt("memory that is written, then made to run", opens=("native:jit",))
def memory_then_exec(w: Facts) -> bool:
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return call(w, "mprotect", address, 4096, 5) == 0


@attempt("pkey_mprotect for the same", opens=("native:jit",))
def memory_pkey_exec(w: Facts) -> bool:
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return call(w, "pkey_mprotect", address, 4096, 5, -1) == 0


@attempt("shared memory mapped to run", opens=("native:jit",))
def memory_shared_exec(w: Facts) -> bool:
    with mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_EXEC):
        return True


@attempt("a callback through libffi, which writes code", opens=("native:jit", "process:exec"))
def memory_closure(w: Facts) -> bool:
    return ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)() == 7


@attempt("a shared object that was written, loaded", opens=("process:exec",))
def load_written(w: Facts) -> bool:
    import _ctypes
    import shutil
    import tempfile

    target = os.path.join(tempfile.gettempdir(), "planted.so")
    shutil.copyfile(_ctypes.__file__, target)
    ctypes.CDLL(target)
    return True


@attempt("System V shared memory of the host's, attached", shows="token", needs=("shm",))
def shm_attach(w: Facts) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(w.shm, None, 0)
    if at in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shmat")
    return ctypes.string_at(at, 256)


@attempt("System V shared memory of the host's, removed", needs=("shm",))
def shm_remove(w: Facts) -> bool:
    return call(w, "shmctl", w.shm, 0, 0) == 0


@attempt("a System V queue of the host's, written to", needs=("msg",))
def queue_send(w: Facts) -> bool:
    return call(w, "msgsnd", w.msg, ctypes.create_string_buffer(struct.pack("l", 1) + b"x"), 1, 0x800) == 0


@attempt("a System V semaphore of the host's, raised", needs=("sem",))
def semaphore_raise(w: Facts) -> bool:
    return call(w, "semop", w.sem, ctypes.create_string_buffer(struct.pack("Hhh", 0, 1, 0)), 1) == 0


@attempt("a new System V segment, which would outlive the worker")
def shm_create(w: Facts) -> bool:
    made = call(w, "shmget", 0, 4096, 0o1600)
    if not w.inside:
        call(w, "shmctl", made, 0, 0)
    return made >= 0


@attempt("a POSIX message queue of the host's", needs=("mq",))
def mq_open(w: Facts) -> bool:
    return call(w, "mq_open", text(w.mq), 2, 0, 0) >= 0


@attempt("a filter that tells us of others' calls (SECCOMP_FILTER_FLAG_NEW_LISTENER)")
def seccomp_listener(w: Facts) -> bool:
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
    if not w.inside:
        call(w, "prctl", 38, 1, 0, 0, 0)
    return call(w, "seccomp", 1, 8, header) >= 0


@attempt("uninteresting calls with every value that a signed comparison may miss")
def ioctl_high_bits(w: Facts) -> bool:
    reader, _ = os.pipe()
    if not w.inside:
        reader = os.open("/dev/null", os.O_RDONLY)
    # FIOASYNC, with a bit above the 32nd: the kernel takes the low half.
    try:
        return call(w, "ioctl", reader, 0x5452 | 1 << 40, ctypes.create_string_buffer(8)) == 0
    except OSError as error:
        return not w.inside and error.errno == errno.ENOTTY


for _name, _request in {
    "ioctl_fs_flags": 0x40086602, "ioctl_fiemap": 0xC020660B, "ioctl_fitrim": 0xC0185879, "ioctl_ficlone": 0x40049409,
    "ioctl_loop": 0x4C82, "ioctl_sg": 0x2285, "ioctl_pidfd_info": 0xC040FF0B, "ioctl_fideduperange": 0xC0189436,
}.items():  # fmt: skip

    @attempt(f"{_name} on a file that may be read", name=_name, opens=("fs:write",) if "clone" in _name else ())
    def _ioctl(w: Facts, request=_request) -> bool:
        fd = os.open(os.__file__ if w.inside else w.own, os.O_RDONLY)
        try:
            call(w, "ioctl", fd, request, ctypes.create_string_buffer(256))
        except OSError as error:
            if w.inside and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                raise
        return True


@attempt("F_SETPIPE_SZ: a MiB of the kernel's memory for each pipe")
def pipe_size(w: Facts) -> bool:
    import fcntl

    return fcntl.fcntl(os.pipe()[1], 1031, 1 << 20) >= 1 << 20


@attempt("F_ADD_SEALS on whatever memfd there is")
def add_seals(w: Facts) -> bool:
    import fcntl

    fd = 0 if w.inside else os.memfd_create("x", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, 1033, 1)
    return True
