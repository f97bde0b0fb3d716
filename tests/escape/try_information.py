"""Attempts to learn what is nobody's business: who, where, what else runs, and what the host keeps in its memory."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import ctypes
import gc
import os
import platform
import re
import socket
import sys

from breakout import Facts, attempts, call, libc, raw

attempt = attempts("information")

_NET = ("net:request", "net:dns", "net:listen")


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 8192)
    finally:
        os.close(fd)


for _name, _path in {
    "passwd": "/etc/passwd",
    "group": "/etc/group",
    "machine_id": "/etc/machine-id",
    "hostname_file": "/etc/hostname",
    "hosts_file": "/etc/hosts",
    "issue": "/etc/issue",
    "fstab": "/etc/fstab",
    "boot_id": "/proc/sys/kernel/random/boot_id",
    "cmdline_of_kernel": "/proc/cmdline",
    "version": "/proc/version",
    "cpuinfo": "/proc/cpuinfo",
    "meminfo": "/proc/meminfo",
    "loadavg": "/proc/loadavg",
    "uptime": "/proc/uptime",
    "mounts": "/proc/mounts",
    "filesystems": "/proc/filesystems",
    "modules": "/proc/modules",
    "interrupts": "/proc/interrupts",
    "diskstats": "/proc/diskstats",
    "pressure": "/proc/pressure/cpu",
    "route": "/proc/net/route",
    "arp": "/proc/net/arp",
    "interfaces": "/proc/net/dev",
    "dmi": "/sys/class/dmi/id/product_name",
    "mac_address": "/sys/class/net/lo/address",
    "cgroup_own": "/proc/self/cgroup",
    "vulnerabilities": "/sys/devices/system/cpu/vulnerabilities/meltdown",
    "profile": "/etc/profile",
    "shells": "/etc/shells",
    "login_defs": "/etc/login.defs",
    "dpkg_status": "/var/lib/dpkg/status",
    "lastlog": "/var/log/lastlog",
}.items():
    _OPENS = ("net:request", "net:dns", "net:listen") if _name == "hosts_file" else ()

    @attempt(f"{_path}", name=f"file_{_name}", needs=(f"file:{_path}",), opens=_OPENS)
    def _file(w: Facts, path=_path) -> bytes:
        return _read(path)


@attempt("the environment that the host has", shows="environment", opens=("env:read",))
def environment(w: Facts) -> str:
    return repr(dict(os.environ))


@attempt("the environment as the C library has it", shows="environment", opens=("env:read",))
def environment_of_c(w: Facts) -> bytes:
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    found, at = [], 0
    while environ and environ[at]:
        found.append(environ[at])
        at += 1
    return b"\n".join(found)


@attempt("what lies on the stack: the first environment", shows="environment", opens=("env:read",))
def environment_on_stack(w: Facts) -> bytes:
    program = ctypes.c_char_p.in_dll(libc, "program_invocation_name")
    start = ctypes.cast(program, ctypes.c_void_p).value or 0
    found = b""
    out, into = os.pipe()
    while len(found) < 1 << 16:
        # Pages that are not there end the attempt with a crash: ask the kernel first.
        page = (start + len(found)) & ~4095
        if libc.write(into, ctypes.c_void_p(page), 1) != 1:
            break
        os.read(out, 1)
        left = 4096 - ((start + len(found)) & 4095)
        found += ctypes.string_at(start + len(found), left)
    at = found.find(w.environment_head.encode())
    return found[at : at + 200] if at >= 0 else b""


@attempt("the arguments of the program that started us", shows="argument")
def arguments(w: Facts) -> str:
    return repr((sys.argv, sys.orig_argv))


@attempt("objects of the host's, by the garbage collector", shows="environment", opens=("env:read",))
def objects_by_gc(w: Facts) -> str:
    head = w.environment_head
    for value in gc.get_objects():
        # Dictionaries of plain text are not tracked: they are found through what refers to them.
        for near in (value, *gc.get_referents(value)):
            for item in list(near.values()) if type(near) is dict else ():
                text = item.decode("latin-1") if type(item) is bytes else item
                if type(text) is str and text.startswith(head) and len(text) > len(head):
                    return text
    return ""


@attempt("the host's memory, scanned by write() and EFAULT", shows="environment", opens=("env:read",))
def memory_scan(w: Facts) -> bytes:
    """Look through the heap around objects of ours, page by page, as far as the kernel says that pages are there."""
    pattern = re.compile(w.environment_head.encode() + b"[0-9a-f]{8,}")
    pages = {id(value) & ~0xFFFFF for value in gc.get_objects()[::50]}
    out, into = os.pipe()
    for start in sorted(pages)[:256]:
        for page in range(start, start + (1 << 20), 4096):
            if libc.write(into, ctypes.c_void_p(page), 1) != 1:
                continue
            os.read(out, 1)
            found = pattern.search(ctypes.string_at(page, 4096))
            if found:
                return found[0]
    return b""


@attempt("the name of the host (gethostname)", shows="hostname", stays=True)
def host_name(w: Facts) -> str:
    return socket.gethostname()


@attempt("the same by uname", shows="hostname", stays=True)
def host_name_by_uname(w: Facts) -> str:
    return os.uname().nodename + platform.node()


@attempt("getdomainname", shows="hostname", stays=True)
def host_name_by_call(w: Facts) -> bytes:
    buffer = ctypes.create_string_buffer(6 * 65)
    call(w, "uname", buffer)
    return buffer.raw[65:130]


# Where names can be looked up, systemd's library makes up that of this uid.
@attempt("who we are: the user's name", shows="user", opens=_NET)
def user_name(w: Facts) -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name + "|user"


@attempt("all users there are")
def user_list(w: Facts) -> bool:
    import pwd

    return len(pwd.getpwall()) > 1


@attempt("the home folder", shows="home", opens=_NET)
def home(w: Facts) -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_dir + "|home"


@attempt("the login name (utmp)")
def login_name(w: Facts) -> bool:
    for path in ("/var/run/utmp", "/run/utmp", "/var/log/wtmp", "/var/log/lastlog", "/etc/passwd"):
        try:
            return bool(_read(path)) or True
        except FileNotFoundError:
            continue
    return False


@attempt("the pid of the program that started us", shows="supervisor")
def parent_pid(w: Facts) -> str:
    return f"[{os.getppid()}]"


@attempt("the session and group of the program that started us")
def parent_session(w: Facts) -> bool:
    return os.getsid(w.supervisor if w.inside else w.victim) > 0


@attempt("network interfaces")
def interfaces(w: Facts) -> bool:
    return len(socket.if_nameindex()) > 0


@attempt("which pages of a file are cached (cachestat)")
def page_cache_by_call(w: Facts) -> bool:
    fd = os.open(os.__file__ if w.inside else w.own, os.O_RDONLY)
    span, found = ctypes.create_string_buffer(16), ctypes.create_string_buffer(40)
    return raw(451, fd, span, found, 0) == 0


@attempt("kernel pointers and more (syslog)", kills=True, root=True)
def kernel_log(w: Facts) -> bool:
    buffer = ctypes.create_string_buffer(4096)
    return call(w, "syslog", 3, buffer, 4096) >= 0


# With children of its own it finds those.
@attempt("how many processes there are, by their numbers (kill 0 over all)", opens=("process:exec",))
def process_count(w: Facts) -> bool:
    found = 0
    for pid in range(2, 3000):
        if pid == os.getpid():
            continue
        try:
            os.kill(pid, 0)
            found += 1
        except ProcessLookupError:
            continue
        except PermissionError:
            found += not w.inside
    try:
        os.kill(w.victim, 0)
        found += 1
    except OSError:
        pass
    return found > 0


@attempt("modules of the host program, in sys.modules", shows="module")
def modules(w: Facts) -> str:
    return " ".join(sorted(sys.modules))


@attempt("where the host program lies (sys.path)", shows="script")
def search_path(w: Facts) -> str:
    return repr(sys.path)


@attempt("memory of the host's as files: descriptors above 2 read from", shows="token", alone=True)
def descriptors_read(w: Facts) -> bytes:
    if not w.inside:
        return _read(w.secret)
    found = b""
    for fd in range(3, 256):
        try:
            found += os.pread(fd, 4096, 0)
        except OSError:
            continue
    return found

