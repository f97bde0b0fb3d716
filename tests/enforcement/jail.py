"""Runs one function in a locked-in, throw-away worker, and tells how it went."""

import json
import os
import select
import signal
import socket  # noqa: F401 - attempts need these; a worker that cannot read the interpreter cannot import them
import subprocess  # noqa: F401
import threading  # noqa: F401
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ringfence.sandbox import _syscalls, enforce, profiles, seccomp  # noqa: F401
from ringfence.sandbox.features import Features, probe_here
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.plan import Plan, make_plan
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.runtime_paths import RuntimePaths, runtime_paths

NOBODY = 65534
RUNTIME = runtime_paths()


class Sender:
    """Sends one line of JSON; ``fd`` must stay open for it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __call__(self, message: Any) -> None:
        """Send one message."""
        os.write(self.fd, json.dumps(message).encode() + b"\n")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: a value, an error by type name and errno, or a signal."""

    value: Any = None
    error: str | None = None
    errno: int | None = None
    signal: int | None = None

    def __bool__(self) -> bool:
        return self.error is None and self.signal is None


@dataclass(frozen=True)
class Caller:
    """Who starts the zygote: ``root``, or ``user`` (nobody, as an ordinary user would)."""

    name: str
    features: Features

    def become(self) -> None:
        """Turn this process into the caller."""
        become(self.name)

    def plan(
        self,
        allow: Iterable[str] = (),
        limits: Limits | None = None,
        demands: Mapping[Layer, Demand] | None = None,
        without: Mapping[str, Any] | None = None,
        runtime: RuntimePaths = RUNTIME,
        single_use: bool = False,
    ) -> Plan:
        """Return the untrusted profile's plan, changed as asked; ``without`` replaces features."""
        policy = Policy.build("untrusted", list(allow), limits)
        policy = replace(policy, demands={**policy.demands, **(demands or {})})
        return make_plan(policy, replace(self.features, **(without or {})), runtime=runtime, single_use=single_use)

    def run(self, attempt: Callable[[], Any], *, keep: Iterable[int] = (), **options: Any) -> Outcome:
        """Run ``attempt`` in a worker of a plan made with ``options``."""
        return self.run_plan(self.plan(**options), attempt, keep=keep)

    def run_plan(self, plan: Plan, attempt: Callable[[], Any], *, keep: Iterable[int] = ()) -> Outcome:
        """Run ``attempt`` in a worker of ``plan``."""
        return in_process(lambda send: self._zygote(plan, attempt, tuple(keep), send))

    def _zygote(self, plan: Plan, attempt: Callable[[], Any], keep: tuple[int, ...], send: Sender) -> None:
        self.become()
        prepared = enforce.prepare(plan)
        pid = enforce.fork(prepared)
        if pid == 0:
            enforce.enter(prepared, [*keep, send.fd])
            try:
                send(["value", attempt()])
            except BaseException as error:
                send(["error", type(error).__name__, getattr(error, "errno", None)])
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            send(["signal", os.WTERMSIG(status)])


def become(name: str) -> None:
    """Turn this process into ``root`` (as it is) or an ordinary user, as login would."""
    if name == "user" and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # An exec would do this; without it /proc/self belongs to root.
        _syscalls.prctl(_syscalls.PR_SET_DUMPABLE, 1)


def features_of(name: str) -> Features:
    """Return what the kernel offers that caller."""

    def ask(send: Sender) -> None:
        become(name)
        send(["value", probe_here().to_data()])

    return Features.from_data(in_process(ask).value)


def in_process(body: Callable[[Sender], None], seconds: float = 20.0) -> Outcome:
    """Run ``body(send)`` in a forked process and return what it sent first, or how it died."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.setsid()
        send = Sender(writer)
        try:
            body(send)
        except BaseException as error:
            step = getattr(error, "step", None)
            send(["error", type(error).__name__ + (f": {step}" if step else ""), getattr(error, "errno", None)])
        os._exit(0)
    os.close(writer)
    text = _read_line(reader, time.monotonic() + seconds, pid)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if not text:
        return Outcome(signal=os.WTERMSIG(status)) if os.WIFSIGNALED(status) else Outcome(error="nothing was sent")
    kind, *rest = json.loads(text)
    if kind == "value":
        return Outcome(value=rest[0])
    return Outcome(error=rest[0], errno=rest[1]) if kind == "error" else Outcome(signal=rest[0])


def _read_line(reader: int, deadline: float, pid: int) -> bytes:
    """Read until end of file: by then every process of the attempt has ended. The first line counts."""
    data = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            os.kill(pid, signal.SIGKILL)
            return data.partition(b"\n")[0] or b'["error", "timeout", null]'
        chunk = os.read(reader, 65536)
        if not chunk:
            return data.partition(b"\n")[0]
        data += chunk
