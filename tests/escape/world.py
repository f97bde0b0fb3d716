"""The world that attempts are made on: secrets, victims and servers, and whether anything happened to them."""

import ctypes
import json
import os
import pwd
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from try_persistence import MARK

from ringfence.sandbox.seccomp import syscall_table

NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)

_IPC_RMID = 0
_IPC_STAT_SIZE = 256

# What the host process has and no worker may find.
HOST_MODULE = "ringfence_escape_host_module"
HOST_VARIABLE = "RINGFENCE_ESCAPE_SECRET"


class World:
    """One world. Make it with `made`; `facts` is what an attempt is told, `secrets` what it is not."""

    def __init__(self, folder: str, stack: ExitStack) -> None:
        self._stack = stack
        self.folder = folder
        name = os.path.basename(folder)
        token = f"TOKEN-{os.urandom(12).hex()}"
        self.secrets = {"token": token, "environment": f"ENV-{os.urandom(12).hex()}"}
        self.facts: dict[str, Any] = {
            "inside": True, "mode": "call", "token_head": "TOKEN-", "environment_head": "ENV-",
            "numbers": dict(syscall_table(os.uname().machine)),
            "supervisor": os.getpid(),
        }  # fmt: skip
        self._files(name, token)
        self._servers(name)
        self._memory(name, token)
        self._terminal()
        self._victim(token)
        self._host()
        self._before = self._look()

    # --- what there is ------------------------------------------------------------------------------------------

    def _files(self, name: str, token: str) -> None:
        os.chmod(self.folder, 0o777)
        for folder in ("empty", "tree", "tree/deeper"):
            os.mkdir(self._path(folder))
            os.chmod(self._path(folder), 0o777)
        for file in ("doomed", "file", "tree/file"):
            self._file(self._path(file), "content", 0o666)
        told = {
            "secret": self._file(self._path("secret"), token, 0o644),
            "writable": self._file(self._path("writable"), "content", 0o666),
            "own": self._file(self._path("own"), "content", 0o644),
            "module": self._file(self._path("foreign.py"), f"TOKEN = {token!r}\n", 0o644),
            "in_tmp": self._file(f"/tmp/{name}", token, 0o644),
            "dev_shm": self._file(f"/dev/shm/{name}", token, 0o644),
            "link": self._path("link"),
            "fifo": self._path("fifo"),
            "folder": self.folder,
        }
        for path in (told["in_tmp"], told["dev_shm"]):
            self._stack.callback(_remove, path)
            self._stack.callback(_remove, path + "-new")
        os.symlink(told["secret"], told["link"])
        self.secrets["linked"] = told["secret"]
        os.mkfifo(told["fifo"])
        os.chmod(told["fifo"], 0o666)
        fifo = os.open(told["fifo"], os.O_RDWR)
        self._stack.callback(os.close, fifo)
        for path in (told["own"], told["secret"]):
            os.setxattr(path, "user.token", token.encode())
        if os.geteuid() == 0:
            os.chown(told["own"], NOBODY, NOBODY)
        self.facts.update(told)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _file(self, path: str, content: str, mode: int) -> str:
        with open(path, "w") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    def _servers(self, name: str) -> None:
        self._listening: dict[str, socket.socket] = {}
        hidden = f"ringfence-escape-hidden-{os.urandom(6).hex()}"
        self.secrets["abstract"] = hidden
        for key, family, kind, address in (
            ("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("unix", socket.AF_UNIX, socket.SOCK_STREAM, self._path("unix")),
            ("unix_datagram", socket.AF_UNIX, socket.SOCK_DGRAM, self._path("datagram")),
            ("abstract_name", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + name),
            ("hidden", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + hidden),
        ):
            made = self._stack.enter_context(socket.socket(family, kind))
            try:
                made.bind(address)
            except OSError:  # no IPv6 here
                self.facts[key] = 0
                continue
            if kind == socket.SOCK_STREAM:
                made.listen(200)
            made.setblocking(False)
            self._listening[key] = made
            if family != socket.AF_UNIX:
                self.facts[key] = made.getsockname()[1]
            elif key != "hidden":
                self.facts[key] = str(address).lstrip("\0")
                if not str(address).startswith("\0"):
                    os.chmod(str(address), 0o666)

    def _memory(self, name: str, token: str) -> None:
        self._shm = _libc.shmget(0, 4096, 0o1666)
        _libc.shmat.restype = ctypes.c_void_p
        at = ctypes.c_void_p(_libc.shmat(self._shm, None, 0))
        ctypes.memmove(at, token.encode(), len(token))
        _libc.shmdt(at)
        self._stack.callback(_libc.shmctl, self._shm, _IPC_RMID, None)
        self._msg = _libc.msgget(0, 0o1666)
        self._stack.callback(_libc.msgctl, self._msg, _IPC_RMID, None)
        self._sem = _libc.semget(0, 1, 0o1666)
        self._stack.callback(_libc.semctl, self._sem, 0, _IPC_RMID)
        mask = os.umask(0)
        self._mq = _libc.mq_open(f"/{name}".encode(), os.O_RDWR | os.O_CREAT, 0o666, None)
        os.umask(mask)
        self._stack.callback(_libc.mq_unlink, f"/{name}".encode())
        if self._mq >= 0:
            self._stack.callback(os.close, self._mq)
        self.facts.update(shm=self._shm, msg=self._msg, sem=self._sem, mq=name)

    def _terminal(self) -> None:
        self._master, slave = os.openpty()
        self.facts["terminal"] = os.ttyname(slave)
        os.chmod(self.facts["terminal"], 0o666)
        os.set_blocking(self._master, False)
        self._stack.callback(os.close, self._master)
        self._stack.callback(os.close, slave)

    def _victim(self, token: str) -> None:
        argument = f"ARG-{os.urandom(6).hex()}"
        self.secrets["argument"] = argument
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        with open(self.facts["secret"]) as secret:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", "trap 'echo hit' USR1; echo up; while :; do read x; done", "victim", argument],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.folder, env={"SECRET": token},
                start_new_session=True, pass_fds=(secret.fileno(),), **user,
            )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()
        os.set_blocking(self._process.stdout.fileno(), False)
        self._stack.callback(self._end_victim)
        self.facts["victim"] = self._process.pid

    def _end_victim(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _host(self) -> None:
        """Put secrets into this process itself, and take down what is known of it."""
        os.environ[HOST_VARIABLE] = self.secrets["environment"]
        sys.modules[HOST_MODULE] = sys
        self._stack.callback(os.environ.pop, HOST_VARIABLE)
        self._stack.callback(sys.modules.pop, HOST_MODULE)
        entry = pwd.getpwuid(NOBODY)
        self.secrets |= {
            "hostname": os.uname().nodename, "module": HOST_MODULE, "user": f"{entry.pw_name}|user",
            "home": f"{entry.pw_dir}|home", "supervisor": f"[{os.getpid()}]",
            "script": os.path.dirname(os.path.abspath(__file__)),
        }  # fmt: skip

    # --- what has become of it ----------------------------------------------------------------------------------

    def shows(self, secret: str, value: str) -> bool:
        """Say whether a value that an attempt returned holds a secret."""
        return self.secrets[secret] in value

    def damage(self) -> list[str]:
        """Return, in words, what is not as it was, and what has arrived that must not."""
        now = self._look()
        found = [f"{key}: {self._before.get(key)} became {now.get(key)}"[:300]
                 for key in self._before.keys() | now.keys() if self._before.get(key) != now.get(key)]  # fmt: skip
        for key, made in self._listening.items():
            while True:
                try:
                    if made.type == socket.SOCK_STREAM:
                        made.accept()[0].close()
                    else:
                        made.recv(100)
                except BlockingIOError:
                    break
                found.append(f"something came to {key}")
        assert self._process.stdout is not None
        for fd, what in ((self._master, "the terminal"), (self._process.stdout.fileno(), "the victim")):
            try:
                if os.read(fd, 1000):
                    found.append(f"{what} was hit")
            except BlockingIOError:
                pass
        return sorted(found)

    def _look(self) -> dict[str, Any]:
        pid = self._process.pid
        seen: dict[str, Any] = {"alive": self._process.poll(), "priority": os.getpriority(os.PRIO_PROCESS, pid)}
        seen["affinity"] = sorted(os.sched_getaffinity(pid))
        with open(f"/proc/{pid}/limits") as limits:
            seen["limits"] = limits.read()
        for base, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                path = os.path.join(base, name)
                status = os.lstat(path)
                seen[path] = (status.st_mode, status.st_uid, status.st_nlink, status.st_size, status.st_mtime_ns)
                if name in ("secret", "own"):
                    seen[path] += tuple(os.listxattr(path))
        for path in ("/dev/shm", "/tmp"):
            # Other worlds may come and go meanwhile.
            seen[path] = sorted(name for name in os.listdir(path) if self.facts["mq"] in name or MARK in name)
        seen["host name"] = os.uname().nodename
        state = ctypes.create_string_buffer(_IPC_STAT_SIZE)
        seen["shared memory"] = _libc.shmctl(self._shm, 2, state)
        seen["queue"] = (_libc.msgctl(self._msg, 2, state), struct.unpack_from("Q", state, 80)[0])
        seen["semaphore"] = _libc.semctl(self._sem, 0, 12)
        return seen

    def for_outside(self) -> str:
        """Return the facts for attempts that nothing holds back, as JSON."""
        return json.dumps(self.facts | {"inside": False})


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


@contextmanager
def made() -> Iterator[World]:
    """Yield a new world; nothing of it remains."""
    folder = tempfile.mkdtemp(prefix="ringfence-escape-", dir="/var/tmp")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield World(folder, stack)
