"""Worker settings: what a pool is told, and what is refused because nothing could hold it."""

from pathlib import Path

import pytest

from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.grants import Effective
from ringfence.plugins.reach import NetPolicy
from ringfence.plugins.sandbox_config import IsolationMode, NamespaceConfig, ResourceLimits, SandboxConfig
from ringfence.plugins.worker_settings import worker_settings
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import PolicyError, UnsupportedError
from ringfence.sandbox.features import Features
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.profiles import load_profile


def held(
    *grants: str, boxes: tuple[SandboxConfig, ...] = (), limits: Limits | None = None, **more: object
) -> Effective:
    """Return what a plugin is held to."""
    fields: dict[str, object] = {
        "plugin": "example",
        "folder": None,
        "declared": grants,
        "grants": Capabilities(grants).sealed(),
        "limits": Limits() if limits is None else limits,
        "call_timeout": None,
        "sandboxes": boxes,
    }
    return Effective(**(fields | more))  # type: ignore[arg-type]


def test_grants_and_limits_arrive_in_the_policy() -> None:
    """The policy that a pool builds from the arguments holds what was granted, and every layer is asked for."""
    limits = Limits(memory="8MiB", cpu=2, wall=3, call_depth=100, instructions=10, fs_ops=1, net_ops=0, output="1KiB")
    settings = worker_settings(held("fs:read=/usr", "random", limits=limits, call_timeout=3.0), environ={})
    arguments = settings.pool_arguments()
    policy = Policy.build(arguments["profile"], arguments["capabilities"], arguments["limits"], {})
    assert policy.capabilities.to_names() == ["fs:read=/usr", "random"]
    assert policy.limits.to_mapping() == {"memory": 8 * 2**20, "cpu": 2.0, "call_depth": 100, "output": 1024}
    assert policy.timeout is None, "a worker lives longer than one call"
    assert {layer for layer, demand in policy.demands.items() if demand is Demand.REQUIRED} >= {
        Layer.LANDLOCK,
        Layer.SECCOMP,
        Layer.PRIVILEGES,
        Layer.RLIMITS,
    }
    assert settings.per_call.to_mapping() == limits.to_mapping()
    told = {"open_files": None, "processes": None, "file_size": None}
    assert settings.guest_limits() == {"call_depth": 100, "instructions": 10, "fs_ops": 1, "net_ops": 0, **told}
    assert (settings.call_timeout, settings.working_dir, settings.unenforced) == (3.0, None, ())


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        ("fs:metadata=/data", "does not limit stat"),
        ("fs:write=/proc", "reaches the kernel"),
        ("env:read=LD_PRELOAD", "dynamic loader"),
    ],
)
def test_grants_that_nothing_can_hold_are_refused(grant: str, said: str) -> None:
    """A scope that no layer keeps is an error before anything starts, never silently more."""
    with pytest.raises(PolicyError, match=said):
        worker_settings(held(grant), environ={})


def test_hosts_of_a_sandbox_are_held_to_like_those_of_a_manifest() -> None:
    """An allow-list of host names becomes grants, with which an empty network of its own goes together."""
    (host,) = NetPolicy.allow(["API.example.com"]).hosts
    box = SandboxConfig().with_namespaces(NamespaceConfig(net=True))
    settings = worker_settings(held(f"net:request={host}", boxes=(box,)), environ={})
    assert settings.profile.capabilities.to_names() == ["net:request=api.example.com"]
    with pytest.raises(PolicyError, match="namespaces"):
        worker_settings(held("net:request=:443", boxes=(box,)), environ={})


def test_a_plugin_never_runs_in_its_host() -> None:
    """In-process isolation is refused with the way to go instead."""
    with pytest.raises(PolicyError, match="extension"):
        worker_settings(held(boxes=(SandboxConfig().with_process_isolation(False),)))


def test_no_slip_opens_the_sandbox() -> None:
    """A worker without a sandbox takes two words of the host, and a profile that does not require one."""
    bare = SandboxConfig().with_isolation(IsolationMode.PROCESS)
    trusted = SandboxConfig().with_isolation(IsolationMode.PROCESS, trusted=True)
    with pytest.raises(PolicyError, match="trusted=True"):
        worker_settings(held(boxes=(bare,)))
    with pytest.raises(PolicyError, match="contradicts"):
        worker_settings(held(boxes=(trusted, SandboxConfig(trusted=True))))
    with pytest.raises(PolicyError, match="contradicts the profile 'untrusted'"):
        worker_settings(held(boxes=(trusted,), profile="untrusted", demands=load_profile("untrusted").demands))
    settings = worker_settings(held(boxes=(trusted,)), environ={})
    assert settings.profile.demands[Layer.SECCOMP] is Demand.OFF


def test_the_demands_of_a_profile_arrive() -> None:
    """A layer that the profile requires is required of the worker."""
    found = worker_settings(held(demands={Layer.CGROUP: Demand.REQUIRED}), environ={})
    assert found.profile.demands[Layer.CGROUP] is Demand.REQUIRED
    assert found.profile.demands[Layer.LANDLOCK] is Demand.REQUIRED


def test_shares_of_the_machine_are_refused_or_reported() -> None:
    """What nothing here enforces is an error; with best_effort it is said and the rest goes on."""
    for box, name in [
        (SandboxConfig(resource_limits=ResourceLimits(cpu_shares=512)), "cpu_shares=512"),
        (SandboxConfig(resource_limits=ResourceLimits(io_weight=100)), "io_weight=100"),
    ]:
        with pytest.raises(PolicyError, match=name):
            worker_settings(held(boxes=(box,)), environ={})
        (said,) = worker_settings(held(boxes=(box.with_best_effort(),)), environ={}).unenforced
        assert name in said
    with pytest.raises(PolicyError, match=r"limits\.written .* limits\.file_size"):
        worker_settings(held(limits=Limits(written=1000)), environ={})


def test_a_share_of_the_processors_is_the_workers() -> None:
    """It holds as long as the worker lives."""
    limits = worker_settings(held(limits=Limits(cpu_share=0.25)), environ={}).profile.limits
    assert limits.cpu_share == 0.25


def test_capabilities_of_the_kernel_are_dropped_not_kept() -> None:
    """Dropping is what happens anyway; keeping is refused, and so is a shared temporary folder."""
    worker_settings(held(boxes=(SandboxConfig().drop_capabilities(["CAP_SYS_ADMIN"]),)), environ={})
    with pytest.raises(PolicyError, match="CAP_NET_BIND_SERVICE"):
        worker_settings(held(boxes=(SandboxConfig().keep_capabilities(["CAP_NET_BIND_SERVICE"]).with_best_effort(),)))
    with pytest.raises(PolicyError, match="temporary folder of its own"):
        worker_settings(held(boxes=(SandboxConfig().with_temp_isolation(False).with_best_effort(),)))


def test_namespaces_that_are_insisted_on() -> None:
    """They make the layer required, are looked for on this host, and contradict a granted network."""
    box = SandboxConfig().with_namespaces(NamespaceConfig(pid=True, net=True))
    rich = Features(machine="x86_64", namespaces=frozenset({"pid", "net", "mnt"}))
    poor = Features(machine="x86_64", namespaces=frozenset({"mnt", "pid"}), reasons={"namespace.net": "EPERM"})
    found = worker_settings(held(boxes=(box,)), features=rich, environ={})
    assert found.profile.demands[Layer.NAMESPACES] is Demand.REQUIRED
    with pytest.raises(UnsupportedError, match="net: EPERM"):
        worker_settings(held(boxes=(box,)), features=poor, environ={})
    with pytest.raises(PolicyError, match="an empty one"):
        worker_settings(held("net:request", boxes=(box,)), environ={})
    user = SandboxConfig().with_namespaces(NamespaceConfig(user=True))
    worker_settings(held(boxes=(user,)), features=Features(machine="x86_64", needs_user_namespace=True), environ={})
    with pytest.raises(UnsupportedError, match="user"):
        worker_settings(held(boxes=(user,)), features=rich, environ={})


def test_a_working_folder_must_be_readable(tmp_path: Path) -> None:
    """A folder the plugin cannot read is no place to be in, and there is one at most."""
    box = SandboxConfig().with_working_dir(tmp_path)
    with pytest.raises(InvalidConfig, match="may not read"):
        worker_settings(held(boxes=(box,)), environ={})
    assert worker_settings(held(f"fs:read={tmp_path}", boxes=(box,)), environ={}).working_dir == str(tmp_path)
    with pytest.raises(InvalidConfig, match="two are set"):
        worker_settings(held("fs:read=/", boxes=(box, SandboxConfig().with_working_dir("/"))), environ={})
