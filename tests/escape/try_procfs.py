"""Attempts through /proc, /sys and /dev: other processes, oneself, and the kernel's knobs."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import os

from breakout import Facts, attempts

attempt = attempts("procfs")


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 8192)
    finally:
        os.close(fd)


@attempt("the environment of another process", shows="token")
def proc_environ(w: Facts) -> bytes:
    return _read(f"/proc/{w.victim}/environ")


@attempt("the command line of another process", shows="argument")
def proc_cmdline(w: Facts) -> bytes:
    return _read(f"/proc/{w.victim}/cmdline")


@attempt("the name of the first process")
def proc_one(w: Facts) -> bytes:
    return _read("/proc/1/comm")


@attempt("status and uids of another process")
def proc_status(w: Facts) -> bytes:
    return _read(f"/proc/{w.victim}/status")


@attempt("the memory map of another process")
def proc_maps(w: Facts) -> bytes:
    return _read(f"/proc/{w.victim}/maps")


@attempt("the memory of another process", shows="token")
def proc_mem(w: Facts) -> bytes:
    found = b""
    with open(f"/proc/{w.victim}/maps") as maps, open(f"/proc/{w.victim}/mem", "rb", 0) as memory:
        for line in maps:
            span, mode, *_, name = line.rstrip("\n").split(" ", 2)[0], line.split()[1], line.split()[-1]
            if "w" in mode and ("[heap]" in name or "[stack]" in name):
                low, high = (int(part, 16) for part in span.split("-"))
                memory.seek(low)
                found += memory.read(min(high - low, 1 << 22))
    at = found.find(w.token_head.encode())
    return found[at : at + 200] if at >= 0 else b""


@attempt("the descriptors of another process")
def proc_fds(w: Facts) -> list[str]:
    return os.listdir(f"/proc/{w.victim}/fd")


@attempt("an open file of another process, through its descriptor", shows="token")
def proc_fd_of_other(w: Facts) -> bytes:
    for name in os.listdir(f"/proc/{w.victim}/fd"):
        try:
            if name not in "012" and (found := _read(f"/proc/{w.victim}/fd/{name}")):
                return found
        except OSError:
            continue
    return b""


@attempt("the root of another process", shows="token")
def proc_root_of_other(w: Facts) -> bytes:
    return _read(f"/proc/{w.victim}/root{w.secret}")


@attempt("the working folder of another process", shows="token")
def proc_cwd_of_other(w: Facts) -> bytes:
    return _read(f"/proc/{w.victim}/cwd/{os.path.basename(w.secret)}")


@attempt("all processes, by number")
def proc_list(w: Facts) -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


@attempt("the parent, the one that started us")
def proc_parent(w: Facts) -> bytes:
    return _read(f"/proc/{os.getppid() or w.supervisor}/cmdline")


@attempt("the oom score of oneself, raised against others")
def proc_oom(w: Facts) -> bool:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("999")
    return True


@attempt("files past the own root, by /proc/self/root", shows="token")
def proc_self_root(w: Facts) -> bytes:
    return _read("/proc/self/root" + w.secret)


@attempt("files by /proc/self/cwd and ..", shows="token")
def proc_self_cwd(w: Facts) -> bytes:
    return _read("/proc/self/cwd" + "/.." * 30 + w.secret)


@attempt("the first process' root", shows="token", root=True, needs=("one",))
def proc_one_root(w: Facts) -> bytes:
    return _read("/proc/1/root" + w.secret)


@attempt("writing the own memory, past the protection of pages")
def proc_self_mem(w: Facts) -> bool:
    import ctypes

    buffer = ctypes.create_string_buffer(b"before")
    with open("/proc/self/mem", "r+b", 0) as memory:
        memory.seek(ctypes.addressof(buffer))
        memory.write(b"after\0")
    return buffer.value == b"after"


@attempt("the own descriptors, listed")
def proc_self_fds(w: Facts) -> list[str]:
    return os.listdir("/proc/self/fd")


@attempt("its own output's other end, by opening the pipe again", stays=True)
def proc_self_pipe(w: Facts) -> bool:
    if w.inside:
        return os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK) >= 0
    _, write = os.pipe()
    return os.open(f"/proc/self/fd/{write}", os.O_RDONLY | os.O_NONBLOCK) >= 0


@attempt("the own memory map")
def proc_self_maps(w: Facts) -> bytes:
    return _read("/proc/self/maps")


@attempt("the environment that the process began with")
def proc_self_environ(w: Facts) -> bytes:
    return _read("/proc/self/environ")


@attempt("the same by another name: /proc/thread-self")
def proc_thread_self(w: Facts) -> bytes:
    return _read("/proc/thread-self/status")


@attempt("the host's mounts")
def proc_mountinfo(w: Facts) -> bytes:
    return _read("/proc/self/mountinfo")


@attempt("the host's connections")
def proc_net(w: Facts) -> bytes:
    return _read("/proc/net/tcp")


@attempt("the host's unix sockets, by name", shows="abstract")
def proc_net_unix(w: Facts) -> bytes:
    with open("/proc/net/unix", "rb") as file:
        return b"\n".join(line for line in file if b"ringfence-escape" in line)


@attempt("uid_map of oneself, for more users")
def proc_uid_map(w: Facts) -> bytes:
    return _read("/proc/self/uid_map")


@attempt("a knob of the kernel: core_pattern", root=True)
def proc_sys(w: Facts) -> bool:
    with open("/proc/sys/kernel/core_pattern", "r+") as file:
        file.write(file.read())
    return True


@attempt("reading the kernel's knobs")
def proc_sys_read(w: Facts) -> bytes:
    return _read("/proc/sys/kernel/pid_max")


@attempt("sysrq-trigger, opened for writing", root=True, needs=("sysrq",))
def proc_sysrq(w: Facts) -> bool:
    return os.open("/proc/sysrq-trigger", os.O_WRONLY) >= 0


@attempt("the kernel's symbols")
def proc_kallsyms(w: Facts) -> bytes:
    return _read("/proc/kallsyms")


@attempt("keys and key users")
def proc_keys(w: Facts) -> bytes:
    return _read("/proc/key-users")


@attempt("/sys: hardware")
def sys_class(w: Facts) -> list[str]:
    return os.listdir("/sys/class")


@attempt("/sys/kernel")
def sys_kernel(w: Facts) -> list[str]:
    return os.listdir("/sys/kernel")


@attempt("control groups: their folder, to leave one's own", root=True)
def sys_cgroup(w: Facts) -> bool:
    with open("/sys/fs/cgroup/cgroup.procs", "w") as file:
        return file.writable()


@attempt("which control groups there are")
def sys_cgroup_list(w: Facts) -> list[str]:
    return os.listdir("/sys/fs/cgroup")


@attempt("the host's /dev, listed")
def dev_list(w: Facts) -> bool:
    return len(os.listdir("/dev")) > 5


@attempt("the kernel's log, as a device", root=True)
def dev_kmsg(w: Facts) -> bool:
    return os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK) >= 0


@attempt("/dev/shm, listed")
def dev_shm_list(w: Facts) -> bool:
    return os.path.basename(w.dev_shm) in os.listdir("/dev/shm")


@attempt("/dev/fuse, to make a file system of one's own", needs=("fuse",))
def dev_fuse(w: Facts) -> bool:
    return os.open("/dev/fuse", os.O_RDWR) >= 0


@attempt("/dev/net/tun", needs=("tun",))
def dev_tun(w: Facts) -> bool:
    return os.open("/dev/net/tun", os.O_RDWR) >= 0
