"""Attempts on processes: starting some, slowing, reading and becoming others."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import ctypes
import os
import resource
import struct
import subprocess
import threading

from breakout import PYTHON, Facts, attempts, call, raw, reaches, text

attempt = attempts("process")

_EXEC = ("process:exec",)
_SIGCHLD = 17
# Under process:exec a child may be made, and is a process under the same walls.
_CHILD = {"opens": _EXEC}


def _forked(pid: int) -> bool:
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "no child")
    os.waitpid(pid, 0x40000000)  # __WALL: whatever signal it ends with
    return True


@attempt("fork", **_CHILD)
def fork(w: Facts) -> bool:
    return _forked(os.fork())


@attempt("fork, the old call", machine="x86_64", **_CHILD)
def fork_old(w: Facts) -> bool:
    return _forked(call(w, "fork"))


@attempt("clone without flags", **_CHILD)
def clone_plain(w: Facts) -> bool:
    return _forked(call(w, "clone", _SIGCHLD, 0, 0, 0, 0))


@attempt("clone3, whose flags no filter can see")
def clone3(w: Facts) -> bool:
    wanted = ctypes.create_string_buffer(struct.pack("=8Q", 0, 0, 0, 0, _SIGCHLD, 0, 0, 0))
    return _forked(call(w, "clone3", wanted, 64))


for _name, _flags in {
    "new_user": 0x10000000,
    "new_user_and_mounts": 0x10020000,
    "new_user_and_network": 0x50000000,
    "new_user_and_pids": 0x30000000,
    "new_user_and_all": 0x7E020000,
}.items():

    @attempt(f"clone into namespaces: {_name}", name=f"clone_{_name}", needs=("user_namespaces",))
    def _clone_into(w: Facts, flags=_flags) -> bool:
        return _forked(call(w, "clone", flags | _SIGCHLD, 0, 0, 0, 0))

    @attempt(f"unshare: {_name}", name=f"unshare_{_name}", needs=("user_namespaces",), kills=True)
    def _unshare(w: Facts, flags=_flags) -> bool:
        return call(w, "unshare", flags) == 0


@attempt("the flags of a thread and of a new network in one clone")
def clone_thread_and_network(w: Facts) -> bool:
    # The kernel refuses the mix itself, with EINVAL: that it does is enough to see that no filter stood before it.
    try:
        return call(w, "clone", 0x10F00 | 0x40000000 | 0x10000000, 0, 0, 0, 0) > 0
    except OSError as error:
        if error.errno == 22:
            return True
        raise


@attempt("a child of one's parent (CLONE_PARENT)")
def clone_parent(w: Facts) -> bool:
    pid = call(w, "clone", 0x8000 | _SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid > 0


@attempt("a child with a pidfd of the kernel's making (CLONE_PIDFD)")
def clone_pidfd(w: Facts) -> bool:
    return _forked(call(w, "clone", 0x1000 | _SIGCHLD, 0, ctypes.create_string_buffer(8), 0, 0))


@attempt("a child that shares our files table and more (CLONE_FILES|CLONE_FS)")
def clone_files(w: Facts) -> bool:
    return _forked(call(w, "clone", 0x400 | 0x200 | _SIGCHLD, 0, 0, 0, 0))


@attempt("a child that is not traced and sends no signal")
def clone_untraced(w: Facts) -> bool:
    pid = call(w, "clone", 0x800000, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid > 0


@attempt("a shell", **_CHILD)
def shell(w: Facts) -> bool:
    return os.system("exit 7") == 7 << 8


@attempt("subprocess", **_CHILD)
def run_program(w: Facts) -> bool:
    return subprocess.run(["/bin/true"], check=False).returncode == 0


@attempt("posix_spawn", **_CHILD)
def spawn(w: Facts) -> bool:
    return os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0


@attempt("vfork, then execve", machine="x86_64", **_CHILD)
def vfork_exec(w: Facts) -> bool:
    return subprocess.run(["/bin/true"], close_fds=False, check=False).returncode == 0


@attempt("multiprocessing", **_CHILD)
def multiprocess(w: Facts) -> bool:
    import multiprocessing.util

    return multiprocessing.util.spawnv_passfds(b"/bin/true", [b"true"], []) > 0


@attempt("execve in place of this process", kills=False, **_CHILD)
def exec_self(w: Facts) -> bool:
    if not w.inside:
        return run_program(w)
    return os.execv("/bin/true", ["true"])


@attempt("execve in a thread", **_CHILD)
def exec_in_thread(w: Facts) -> bool:
    if not w.inside:
        return run_program(w)
    errors: list[OSError] = []

    def go() -> None:
        try:
            os.execv("/bin/true", ["true"])
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    raise errors[0]


def _in_child(run) -> bool:
    """Unsandboxed an exec would replace what tries it: do it in a child there."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(9)
    return os.waitpid(pid, 0)[1] == 0


@attempt("execveat by descriptor")
def exec_at(w: Facts) -> bool:
    def run() -> None:
        fd = os.open("/bin/true" if not w.inside else os.__file__, os.O_RDONLY)
        args = (ctypes.c_char_p * 2)(b"true", None)
        call(w, "execveat", fd, text(""), args, (ctypes.c_char_p * 1)(None), 0x1000)

    if w.inside:
        run()
        return True
    return _in_child(run)


@attempt("a program in memory (memfd_create, then exec)")
def exec_memfd(w: Facts) -> bool:
    fd = os.memfd_create("program")
    if w.inside:
        return True
    with open("/bin/true", "rb") as file:
        os.write(fd, file.read())
    return _in_child(lambda: os.execve(fd, ["true"], {}))


@attempt("memfd_secret, memory that not even the kernel reads", needs=("memfd_secret",))
def memory_secret(w: Facts) -> bool:
    return raw(447, 0) >= 0


@attempt("a program through the loader, which is then what is executed", **_CHILD)
def exec_interpreter_by_loader(w: Facts) -> bool:
    loader = "/lib64/ld-linux-x86-64.so.2"
    return subprocess.run([loader, PYTHON if w.inside else "/bin/true"], check=False).returncode == 0


if "x86_64" not in os.uname().machine:
    exec_interpreter_by_loader = None


@attempt("a setuid program, to become root", opens=_EXEC)
def exec_setuid(w: Facts) -> bool:
    for program in ("/usr/bin/su", "/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/chsh"):
        if os.path.exists(program):
            return subprocess.run([program, "--version"], capture_output=True, check=False).returncode >= 0
    return subprocess.run(["/bin/true"], check=False).returncode == 0


# --- others' limits and turns -----------------------------------------------------------------------------------


@attempt("prlimit of another, read", opens=())
def prlimit_read(w: Facts) -> bool:
    return bool(resource.prlimit(w.victim, resource.RLIMIT_NOFILE))


@attempt("prlimit of another, changed")
def prlimit_change(w: Facts) -> bool:
    soft, hard = (63, 64) if w.inside else resource.prlimit(w.victim, resource.RLIMIT_NOFILE)
    resource.prlimit(w.victim, resource.RLIMIT_NOFILE, (soft, hard))
    return True


@attempt("one's own limits, raised to where the kernel would let them")
def own_limits(w: Facts) -> bool:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True


@attempt("prlimit64 of oneself by pid, changed")
def own_limits_by_pid(w: Facts) -> bool:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.prlimit(os.getpid(), resource.RLIMIT_STACK, (hard, hard))
    return True


@attempt("setpriority of another")
def renice(w: Facts) -> bool:
    os.setpriority(os.PRIO_PROCESS, w.victim, 19)
    return True


@attempt("getpriority of another")
def niceness(w: Facts) -> bool:
    return os.getpriority(os.PRIO_PROCESS, w.victim) >= -20


@attempt("sched_setaffinity of another")
def affinity(w: Facts) -> bool:
    os.sched_setaffinity(w.victim, {0})
    return True


@attempt("sched_getaffinity of another")
def affinity_read(w: Facts) -> bool:
    return bool(os.sched_getaffinity(w.victim))


@attempt("sched_setscheduler of another")
def scheduler(w: Facts) -> bool:
    os.sched_setscheduler(w.victim, os.SCHED_BATCH, os.sched_param(0))
    return True


@attempt("sched_getscheduler of another")
def scheduler_read(w: Facts) -> bool:
    return os.sched_getscheduler(w.victim) >= 0


@attempt("sched_setattr of oneself, for a better turn")
def scheduler_attr(w: Facts) -> bool:
    wanted = ctypes.create_string_buffer(struct.pack("=IIQiIQQQ", 48, 3, 0, 0, 0, 0, 0, 0))
    return call(w, "sched_setattr", 0, wanted, 0) == 0


@attempt("ioprio_set of another")
def io_priority(w: Facts) -> bool:
    return call(w, "ioprio_set", 1, w.victim, 3 << 13) == 0


@attempt("setpgid of another")
def group_of_other(w: Facts) -> bool:
    try:
        os.setpgid(w.victim, w.victim)
    except ProcessLookupError:
        return not w.inside  # no child of ours: the kernel has looked
    except PermissionError:
        if not w.inside:
            return True
        raise
    return True


@attempt("getpgid of another: whether it is there")
def group_read(w: Facts) -> bool:
    return os.getpgid(w.victim) > 0


@attempt("getsid of another")
def session_read(w: Facts) -> bool:
    return os.getsid(w.victim) > 0


@attempt("waitid for whatever child there is, by pidfd or group", opens=_EXEC)
def wait_any(w: Facts) -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True  # the kernel has looked
    return True


@attempt("kcmp: whether two processes share something", kills=True, needs=("kcmp",))
def kcmp(w: Facts) -> bool:
    return call(w, "kcmp", os.getpid(), w.victim, 1, 0, 0) >= 0


@attempt("get_robust_list of another")
def robust_list(w: Facts) -> bool:
    try:
        return call(w, "get_robust_list", w.victim, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)) == 0
    except PermissionError:
        return not w.inside


@attempt("move_pages of another")
def move_pages(w: Facts) -> bool:
    return reaches(w, "move_pages", w.victim, 0, 0, 0, 0, 0)


@attempt("migrate_pages of another")
def migrate_pages(w: Facts) -> bool:
    node = ctypes.create_string_buffer(struct.pack("Q", 1))
    return reaches(w, "migrate_pages", w.victim, 2, node, node)


@attempt("process_madvise of whatever pidfd there is")
def process_madvise(w: Facts) -> bool:
    fd = 0 if w.inside else os.pidfd_open(os.getpid())
    page = ctypes.create_string_buffer(8192)
    vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(page) & ~4095, 4096))
    return call(w, "process_madvise", fd, vector, 1, 20, 0) >= 0


@attempt("process_mrelease of whatever pidfd there is")
def process_mrelease(w: Facts) -> bool:
    fd = 0 if w.inside else os.pidfd_open(w.victim)
    return reaches(w, "process_mrelease", fd, 0)


# --- memory of others -------------------------------------------------------------------------------------------


@attempt("ptrace: attach", kills=True)
def ptrace_attach(w: Facts) -> bool:
    return call(w, "ptrace", 0x4206, w.victim, 0, 0) == 0  # SEIZE, which does not stop it


@attempt("ptrace: traceme", kills=True)
def ptrace_me(w: Facts) -> bool:
    return call(w, "ptrace", 0, 0, 0, 0) == 0


@attempt("process_vm_readv", kills=True)
def vm_read(w: Facts) -> bool:
    buffer = ctypes.create_string_buffer(8)
    vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(buffer), 8))
    try:
        return call(w, "process_vm_readv", w.victim, vector, 1, vector, 1, 0) > 0
    except OSError as error:
        return error.errno == 14 or not w.inside  # EFAULT: it was let in


@attempt("process_vm_writev", kills=True)
def vm_write(w: Facts) -> bool:
    vector = ctypes.create_string_buffer(struct.pack("PN", 8, 0))
    return call(w, "process_vm_writev", w.victim, vector, 1, vector, 1, 0) >= 0


# --- becoming another -------------------------------------------------------------------------------------------

for _name in ("setuid", "setgid", "setreuid", "setresuid", "setregid", "setresgid", "setfsuid", "setfsgid"):

    @attempt(f"{_name} to root's", name=_name, root=True)
    def _become(w: Facts, name=_name) -> bool:
        if name.startswith("setfs"):
            before = call(w, name, 0)
            return before >= 0 and call(w, name, 0) == 0
        return call(w, name, 0, 0, 0) == 0


@attempt("setgroups", root=True)
def setgroups(w: Facts) -> bool:
    os.setgroups([0])
    return True


@attempt("capset: all capabilities", root=True)
def capset(w: Facts) -> bool:
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    call(w, "capget", header, ctypes.create_string_buffer(24))
    data = ctypes.create_string_buffer(24)
    call(w, "capget", header, data)
    return call(w, "capset", header, data) == 0


@attempt("setsid, for a terminal of one's own", opens=_EXEC)
def setsid(w: Facts) -> bool:
    if w.inside:
        call(w, "setsid")
        return True
    return _in_child(lambda: (os.setsid(), os._exit(0)))


@attempt("setns into whatever descriptor there is", kills=True)
def setns(w: Facts) -> bool:
    try:
        call(w, "setns", 0, 0)
    except OSError as error:
        if error.errno in (1, 38):
            raise
    return True


for _option, _value, _what in (
    (4, 1, "PR_SET_DUMPABLE: readable again for others"),
    (0x59616D61, -1, "PR_SET_PTRACER: everybody may trace"),
    (1, 0, "PR_SET_PDEATHSIG: outliving the parent"),
    (36, 1, "PR_SET_CHILD_SUBREAPER"),
    (8, 1, "PR_SET_KEEPCAPS"),
    (35, 0, "PR_SET_MM"),
    (22, 1, "PR_SET_SECCOMP by prctl"),
    (28, 0, "PR_SET_SECUREBITS"),
    (47, 1, "PR_CAP_AMBIENT"),
    (26, 1, "PR_SET_TSC: clocks that kill"),
    (53, 0, "PR_SET_SPECULATION_CTRL"),
    (55, 0, "PR_PAC and friends"),
    (62, 1, "PR_SCHED_CORE: sharing a core with another"),
    (59, 99, "PR_SET_SYSCALL_USER_DISPATCH"),
):

    @attempt(f"prctl: {_what}", name=f"prctl_{_option:x}")
    def _prctl(w: Facts, option=_option, value=_value) -> bool:
        try:
            return call(w, "prctl", option, value, 0, 0, 0) >= 0
        except OSError as error:
            if w.inside and error.errno in (1, 38):
                raise
            return True  # the kernel has looked at it


@attempt("ioctl of a namespace descriptor for its owner")
def namespace_ioctl(w: Facts) -> bool:
    import fcntl

    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    return fcntl.ioctl(fd, 0xB703) >= 0
