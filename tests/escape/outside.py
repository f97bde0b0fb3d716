"""Makes attempts with nothing to hold them back: each in a process of its own, which is thrown away.

``python outside.py NAME...`` reads the world's facts from stdin as JSON, and prints a line of JSON for each attempt.
"""
# ruff: noqa: E402 - nobody has set a path for it

import contextlib
import json
import os
import select
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.modules["ringfence_escape_host_module"] = sys

import try_exhaustion  # noqa: F401
import try_files  # noqa: F401
import try_information  # noqa: F401
import try_kernel  # noqa: F401
import try_network  # noqa: F401
import try_persistence  # noqa: F401
import try_process  # noqa: F401
import try_procfs  # noqa: F401
import try_protocol  # noqa: F401
import try_signals  # noqa: F401
import try_terminal  # noqa: F401
from breakout import Facts, one

SECONDS = 60.0


def restore(w: Facts) -> None:
    """Bring back what attempts before this one have changed."""
    for folder in ("empty", "tree"):
        os.makedirs(f"{w.folder}/{folder}", exist_ok=True)
    for file in ("doomed", "file", "tree/file", "writable"):
        path = f"{w.folder}/{file}"
        if os.path.lexists(path) and not os.path.isfile(path):
            os.unlink(path)  # a whiteout
        if not os.path.exists(path) or os.path.getsize(path) < 7:
            with open(path, "w") as made:
                made.write("content")
            with contextlib.suppress(PermissionError):  # it is root's
                os.chmod(path, 0o666)


def alone(name: str, w: Facts) -> list[object]:
    """Make one attempt in a child; return what came of it."""
    restore(w)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.setpgid(0, 0)
            os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
            os.dup2(1, 2)
            os.write(writer, json.dumps(one(name, w)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    data, until = b"", time.monotonic() + SECONDS
    while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reader, 65536)
        if not part:
            break
        data += part
        try:
            json.loads(data)
        except ValueError:
            continue
        break
    os.close(reader)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, status = os.waitpid(pid, 0)
    return json.loads(data) if data else ["error", f"ended with status {status}", None, ""]


if __name__ == "__main__":
    w = Facts(**json.loads(sys.stdin.read()))
    w.supervisor = os.getpid()
    print(json.dumps(["pid", os.getpid()]), flush=True)
    for attempt in sys.argv[2:]:  # the first argument is one of the secrets
        print(json.dumps([attempt, alone(attempt, w)]), flush=True)
