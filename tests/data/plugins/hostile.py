# ruff: noqa: D103
"""What a hostile plugin tries: each attack is a function, and `attempt` catches whatever it ends with."""

import ctypes
import gc
import os
import socket
import subprocess
import sys

_libc = None


def libc():
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def checked(answer):
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def write(path):
    with open(path, "w") as file:
        file.write("was here")


def append(path):
    with open(path, "a") as file:
        file.write("was here")


def read(path):
    with open(path) as file:
        return file.read(100)


def open_only(path):
    os.close(os.open(path, os.O_RDONLY))


def listing(path):
    return os.listdir(path)


def read_by_symlink(path, where):
    os.symlink(path, where)
    return read(where)


def symlink(path, where):
    os.symlink(path, where)


def hard_link(path, where):
    os.link(path, where)


def remove(path):
    os.remove(path)


def move(path, where):
    os.rename(path, where)


def chmod(path):
    os.chmod(path, 0o777)


def chmod_own(path):
    write(path)
    chmod(path)


def tcp(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"was here")


def udp(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.sendto(b"was here", ("127.0.0.1", port))


def unix(address):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(b"was here")


def abstract(address):
    unix("\0" + address)


def dns(name):
    return socket.getaddrinfo(name, 80)[0][4][0]


def run(path):
    return subprocess.run(["/bin/sh", "-c", f"echo was here > {path}"], check=True).returncode


def execv(path):
    os.execv("/bin/sh", ["sh", "-c", f"echo was here > {path}"])


def system(path):
    status = libc().system(f"echo was here > {path}".encode())
    if status:
        raise OSError(f"system() returned {status}")


def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def bomb():
    started = []
    for _ in range(1000):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        started.append(pid)
    return len(started)


def ptrace(pid):
    checked(libc().ptrace(16, pid, 0, 0))  # PTRACE_ATTACH


def kill(pid, number):
    os.kill(pid, number)


def kill_by_libc(pid, number):
    checked(libc().kill(pid, number))


def mount(path):
    checked(libc().mount(b"none", path.encode(), b"tmpfs", 0, None))


def unshare(flags):
    checked(libc().unshare(flags))


def raw_unshare():
    checked(libc().syscall({"x86_64": 272, "aarch64": 97}[os.uname().machine], 0x200))


def variable(name):
    return os.environ[name]


def variable_by_libc(name):
    found = libc()["getenv"]
    found.restype = ctypes.c_char_p
    value = found(name.encode())
    if value is None:
        raise LookupError(name)
    return value.decode()


def inherited(fd):
    return os.write(fd, b"was here")


def every_fd(text):
    written = 0
    for fd in range(3, 256):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") == text:
                written += os.write(fd, b"was here")
        except OSError:
            continue
    if not written:
        raise LookupError("no such file is open here")
    return written


def search(secret):
    wanted = secret.replace("-", "_")  # our own argument is not what is looked for
    for name, module in list(sys.modules.items()):
        if any(isinstance(value, str) and value == wanted for value in list(vars(module).values())):
            return f"module {name}"
    for found in gc.get_objects():
        if type(found).__name__ in ("PluginRuntime", "PluginHandle", "Supervisor"):
            return f"object {type(found).__name__}"
        if isinstance(found, dict) and any(isinstance(each, str) and each == wanted for each in list(found.values())):
            return "some dict"
    raise LookupError("nothing of the host's")


def attempt(name, args):
    try:
        return ["done", globals()[name](*args)]
    except BaseException as error:
        return ["refused", type(error).__name__, str(error)]
