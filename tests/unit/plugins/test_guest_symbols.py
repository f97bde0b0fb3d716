"""Which C functions a plugin that looks them up with ctypes may not call."""

import pytest

from ringfence.sandbox.bpf import KILL_PROCESS
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.rulesets import BASE
from ringfence.worker import guest_symbols
from ringfence.worker.guest_symbols import ends_the_worker, judge_symbol

# What libc calls otherwise than the kernel.
KERNEL_NAMES = {"umount": "umount2", "klogctl": "syslog"}


def test_what_is_refused_for_ending_the_worker_would_end_it() -> None:
    """Each of them is a call for which the kernel kills the process, in any worker."""
    rules = [rule for bundle in BASE for rule in bundle.rules if rule.action == KILL_PROCESS]
    killed = {name for rule in rules for name in rule.calls.split()}
    assert {KERNEL_NAMES.get(name, name) for name in guest_symbols._NEVER} <= killed


@pytest.mark.parametrize(
    ("name", "needs"),
    [("system", "process:exec"), ("kill", "process:exec"), ("connect", "net:request"), ("getaddrinfo", "net:dns"),
     ("unlink", "fs:delete"), ("chmod", "fs:metadata"), ("mkdir", "fs:write")],
)  # fmt: skip
def test_the_capability_decides(name: str, needs: str) -> None:
    """Any scope of it will do: what the function is called with is not known."""
    denied = judge_symbol(name, Capabilities(["fs:read"]))
    assert denied is not None
    assert (denied.capability, denied.operation, denied.target) == (needs, "ctypes.dlsym", name)
    assert judge_symbol(name, Capabilities([needs])) is None
    assert not ends_the_worker(name)


def test_no_capability_opens_mount() -> None:
    """Not even all of them together."""
    denied = judge_symbol("mount", Capabilities.all())
    assert denied is not None
    assert "no capability opens it" in str(denied)
    assert ends_the_worker("mount")


@pytest.mark.parametrize("name", ["strlen", "getenv", "", 12, None, b"mount"])
def test_everything_else_is_nobodys_business(name: object) -> None:
    """Ordinals and other oddities included."""
    assert judge_symbol(name, Capabilities()) is None
