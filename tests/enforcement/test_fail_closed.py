"""A step of the lock-down that fails, or only says that it worked, ends the worker before it can do anything."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from jail import Caller, Outcome, Sender, in_process

from ringfence.sandbox import _syscalls, enforce

# What `prepare` and `enter` call, when everything is there; all of it must be missed.
STEPS = [
    "unshare",
    "mount",
    "umount",
    "open_tree",
    "mount_setattr",
    "move_mount",
    "pivot_root",
    "set_host_name",
    "landlock_create",
    "landlock_add_path",
    "landlock_restrict",
    "seccomp_load",
    "capset",
    "prctl",
    "close_range",
]


def lock_in_with(caller: Caller, name: str, stand_in: Callable[..., Any]) -> Outcome:
    """Lock a worker in while one call is replaced; the value is what the worker managed to say."""
    plan = caller.plan(["fs:write"])

    def zygote(send: Sender) -> None:
        caller.become()
        setattr(_syscalls, name, stand_in)
        prepared = enforce.prepare(plan)
        pid = enforce.fork(prepared)
        if pid == 0:
            try:
                enforce.enter(prepared, [send.fd])
            except BaseException as error:
                send(["error", type(error).__name__, getattr(error, "errno", None)])
                os._exit(1)
            send(["value", "foreign code would run now"])
            os._exit(0)
        os.waitpid(pid, 0)

    return in_process(zygote)


def refuse(*args: Any) -> None:
    """Answer as a kernel that does not want to."""
    raise OSError(errno.EPERM, "refused")


@pytest.mark.parametrize("name", STEPS)
def test_a_refused_step_ends_the_worker(caller: Caller, name: str) -> None:
    """Whichever call the kernel refuses, no foreign code runs, and the errno is kept."""
    plan = caller.plan(["fs:write"])
    if plan.namespaces is None or not plan.namespaces.private_root:
        pytest.skip(str(caller.features.reasons))
    outcome = lock_in_with(caller, name, refuse)
    assert outcome.value is None
    assert str(outcome.error).split(":")[0] in ("EnforcementError", "OSError", "PermissionError")
    assert outcome.errno == errno.EPERM


@pytest.mark.parametrize("name", ["landlock_restrict", "seccomp_load"])
def test_a_step_that_only_says_it_worked_is_found_out(caller: Caller, name: str) -> None:
    """A filter or a domain that is not there although the call returned well is noticed from inside."""
    outcome = lock_in_with(caller, name, lambda *args: None)
    assert outcome.error == "EnforcementError"


def test_the_control_runs(caller: Caller) -> None:
    """With nothing replaced the same worker gets to its end."""
    original = _syscalls.capset
    assert lock_in_with(caller, "capset", original).value == "foreign code would run now"
