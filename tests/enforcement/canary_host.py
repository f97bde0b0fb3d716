"""A host program that plants a secret wherever a program may have one, and lets its workers search for it."""

import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import types
from typing import Any

import canary_search

from ringfence import Pool, WorkerCrashed


def by_fork(digest: str, folders: list[str]) -> list[str]:
    """Search in a plain fork of this process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(canary_search.search(digest, folders)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return list(json.loads(pipe.read()))


def main(secret: str) -> dict[str, Any]:
    """Plant the secret, and return where each kind of process found it."""
    digest = hashlib.sha256(secret[len(canary_search.MARK) :].encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.chdir(folder)
        kept = open("secret", "w+")  # noqa: SIM115  # it stays open: what it holds is searched for
        kept.write(secret)
        kept.flush()
        pipe = os.pipe()
        os.write(pipe[1], secret.encode())
        local = threading.local()
        local.secret = secret.encode()
        module = types.ModuleType("preloaded_secret")
        vars(module)["SECRET"] = bytearray(secret.encode())
        sys.modules["preloaded_secret"] = module
        found: dict[str, Any] = {"a plain fork": by_fork(digest, [folder])}
        with Pool(1) as other:
            # In this worker it is, for it was given it.
            other.submit(canary_search.keep, secret).result()
            found |= search_in_workers(digest, [folder])
            found["the worker that was given it"] = other.submit(canary_search.search, digest, [folder]).result()
        return found


def search_in_workers(digest: str, folders: list[str]) -> dict[str, Any]:
    """Return what workers of every kind found."""
    found: dict[str, Any] = {}
    with Pool(1) as pool:
        found["a pool"] = pool.submit(canary_search.search, digest, folders).result()
        zygote = pool._supervisor._crew._zygote
        assert zygote is not None
        os.kill(zygote.pid, signal.SIGKILL)
        while True:
            try:
                found["after its zygote was killed"] = pool.submit(canary_search.search, digest, folders).result()
                break
            except WorkerCrashed:
                time.sleep(0.05)
    with Pool(1, isolation="call") as pool:
        found["a worker for each call"] = pool.submit(canary_search.search, digest, folders).result()
    with Pool(1) as _, Pool(1) as pool:
        found["a later pool, from the nursery"] = pool.submit(canary_search.search, digest, folders).result()
    with Pool(1, capabilities=["fs:read=/usr/share", "fs:write"]) as pool:
        found["a pool with files"] = pool.submit(canary_search.search, digest, folders).result()
    with Pool(1, isolation="session") as pool:
        talk = pool.open_session(canary_search.session, digest, folders)
        text = b""
        while chunk := os.read(talk.fd, 4096):
            text += chunk
        os.close(talk.fd)
        found["a session's pool"] = json.loads(text)
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2:
        planted = canary_search.MARK.decode() + secrets.token_hex(32)
        os.execve(sys.executable, [sys.executable, __file__, planted], {**os.environ, "CANARY": planted})
    print(json.dumps(main(sys.argv[1])))
