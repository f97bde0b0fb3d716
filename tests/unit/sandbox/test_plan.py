"""Plans: policy and features decide everything, on hosts that only exist here."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ringfence.sandbox.errors import UnsupportedError
from ringfence.sandbox.features import CgroupFeature, Features
from ringfence.sandbox.landlock import Access, PathGrant
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.plan import make_plan
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.report import Status
from ringfence.sandbox.runtime_paths import RuntimePaths
from ringfence.sandbox.steps import Plan

RUNTIME = RuntimePaths(read=("/usr/lib", "/opt/python"))
GROUP = CgroupFeature(
    path="/sys/fs/cgroup/own", controllers=("cpu", "memory", "pids"), kill=True, freeze=True, writable=True
)
ROOT = Features(
    machine="x86_64",
    landlock_abi=7,
    seccomp=True,
    user_namespaces=True,
    namespaces=frozenset({"mnt", "pid", "net", "ipc", "uts", "cgroup"}),
    mount_api=True,
    cgroup=GROUP,
    is_root=True,
    can_setuid=True,
    can_drop_bounding=True,
    own_uids=True,
    pidfd=True,
    close_range=True,
    memfd=True,
)
USER = replace(
    ROOT, is_root=False, can_setuid=False, can_drop_bounding=False, own_uids=False, needs_user_namespace=True
)
IN_CONTAINER = replace(
    USER,
    namespaces=frozenset(),
    user_namespaces=False,
    mount_api=False,
    cgroup=None,
    reasons={"user_namespaces": "Operation not permitted"},
)


def plan(features: Features, *allow: str, profile: str = "untrusted", **demands: Demand) -> Plan:
    """Plan for one profile, with demands by layer name."""
    policy = Policy.build(profile, allow, environ={"LANG": "C"})
    changed = {**policy.demands, **{Layer(name): demand for name, demand in demands.items()}}
    return make_plan(replace(policy, demands=changed), features, runtime=RUNTIME)


@pytest.mark.parametrize("features", [ROOT, USER], ids=["root", "user"])
def test_on_a_good_host_everything_is_full(features: Features) -> None:
    """Root and user both get every layer, whole."""
    made = plan(features)
    assert {r.status for r in made.report.layers} == {Status.FULL}, str(made.report)
    assert made.missing == ()


def test_the_report_names_every_layer_in_order() -> None:
    """A report has each layer once, in the order of application."""
    assert [r.layer for r in plan(USER).report.layers] == [layer.value for layer in Layer]


def test_a_plan_can_be_sent() -> None:
    """A plan survives pickling unchanged: it is plain data."""
    made = plan(USER, "fs:read=/data", "net:request=:443")
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        ("namespaces", {"namespaces": frozenset()}),
        ("landlock", {"landlock_abi": 0}),
        ("seccomp", {"seccomp": False}),
        ("seccomp", {"machine": "riscv64"}),
        ("cgroup", {"cgroup": None}),
    ],
)
def test_a_missing_layer_is_an_error_or_on_record(layer: str, change: dict[str, Any]) -> None:
    """Required and missing: an error with layer, reason and fix. Preferred: recorded. Off: not missed."""
    features = replace(USER, **change)
    with pytest.raises(UnsupportedError) as caught:
        plan(features, **{layer: Demand.REQUIRED})
    assert caught.value.layer == layer
    assert caught.value.reason
    assert caught.value.fix
    made = plan(features, **{layer: Demand.PREFERRED})
    assert made.report[layer].status is Status.NONE
    assert [missing.layer for missing in made.missing] == [layer]
    without = plan(features, **{layer: Demand.OFF})
    assert without.report[layer].status is Status.OFF
    assert without.missing == ()


def test_a_container_without_namespaces_still_gets_the_rest() -> None:
    """Where user namespaces are forbidden, Landlock, seccomp and rlimits hold, and the report says why."""
    made = plan(IN_CONTAINER)
    assert made.namespaces is None
    assert made.landlock is not None
    assert made.seccomp is not None
    assert made.report["namespaces"].cause == "Operation not permitted"
    assert made.report["rlimits"].status is Status.PARTIAL
    # Without a pid namespace the pid is filled in by each worker.
    assert made.seccomp.pid_slots


def test_root_without_admin_rights_gets_no_namespaces() -> None:
    """Root whose namespaces are refused goes on without, as an unprivileged user."""
    made = plan(replace(ROOT, namespaces=frozenset(), needs_user_namespace=True, cgroup=None))
    assert made.namespaces is None
    assert made.privileges is not None
    assert made.privileges.change_uid


def test_root_that_cannot_change_its_user_says_so() -> None:
    """A root that must stay root is reported as partial, and its process limit as not binding."""
    made = plan(replace(ROOT, can_setuid=False, own_uids=False))
    assert made.report["privileges"].status is Status.PARTIAL
    assert made.report["rlimits"].status is Status.PARTIAL


def test_a_closed_interpreter_is_refused_before_it_fails() -> None:
    """Root, an interpreter only root can read, no private root: an error that names the path."""
    closed = replace(RUNTIME, closed=("/root/python",))
    policy = Policy.build("untrusted")
    assert make_plan(policy, ROOT, runtime=closed)
    assert make_plan(policy, USER, runtime=closed)
    with pytest.raises(UnsupportedError, match="/root/python"):
        make_plan(policy, replace(ROOT, namespaces=frozenset()), runtime=closed)


def test_namespaces_keep_the_network_when_it_is_granted() -> None:
    """A network namespace would cut off what net:* grants."""
    bare = plan(USER).namespaces
    assert bare is not None
    assert "net" in bare.kinds
    for grant in ("net:request", "net:listen", "net:dns"):
        granted = plan(USER, grant)
        assert granted.namespaces is not None
        assert "net" not in granted.namespaces.kinds
        assert granted.report["namespaces"].status is Status.FULL


def test_part_of_the_namespaces_is_partial() -> None:
    """A kind that is refused is named in the report, with the kernel's words."""
    features = replace(USER, namespaces=USER.namespaces - {"net"}, reasons={"namespace.net": "No space left"})
    report = plan(features).report["namespaces"]
    assert report.status is Status.PARTIAL
    assert report.cause == "net: No space left"


def test_grants_become_paths() -> None:
    """Each scope is a path with its own access, marked as demanded; the interpreter's are not."""
    grants = plan(USER, "fs:read=/data", "fs:write=/out", "fs:delete=/out").grants
    assert PathGrant("/data", Access.READ | Access.LIST, True) in grants
    assert PathGrant("/out", Access.WRITE, True) in grants
    assert PathGrant("/out", Access.DELETE, True) in grants
    assert PathGrant("/opt/python", Access.READ | Access.LIST) in grants
    assert not [g for g in plan(USER).grants if g.access & (Access.DELETE | Access.EXECUTE) or g.demanded]


def test_a_grant_knows_where_its_links_led(tmp_path: Path) -> None:
    """So that no other link can come in between the decision and the worker."""
    link = tmp_path / "link"
    link.symlink_to("folder")
    (tmp_path / "folder").mkdir()
    real = str((tmp_path / "folder").resolve())
    (grant,) = [grant for grant in plan(USER, f"fs:read={link}").grants if grant.demanded]
    assert (grant.path, grant.place) == (str(link), real)


def test_name_service_files_come_with_the_network_only() -> None:
    """/etc/resolv.conf and its like are readable with a network grant, otherwise not."""
    assert "/etc/resolv.conf" in [g.path for g in plan(USER, "net:request").grants]
    assert "/etc/resolv.conf" not in [g.path for g in plan(USER).grants]


def test_writing_brings_a_private_folder() -> None:
    """fs:write gives a bounded folder of the worker's own, where a private root can hold it."""
    made = plan(USER, "fs:write")
    assert made.namespaces is not None
    assert made.namespaces.scratch
    assert made.descriptors is not None
    assert made.descriptors.environment["TMPDIR"] == "/private/tmp"
    assert plan(USER).namespaces.scratch is None  # type: ignore[union-attr]  # planned on this host
    assert plan(IN_CONTAINER, "fs:write").namespaces is None


def test_the_private_folder_is_no_larger_than_the_memory() -> None:
    """Its pages are memory: a small memory limit makes a small folder."""
    policy = Policy.build("untrusted", ["fs:write"], Limits(memory="1MiB"))
    made = make_plan(policy, USER, runtime=RUNTIME)
    assert made.namespaces is not None
    assert made.namespaces.scratch == 1 << 20


@pytest.mark.parametrize("grant", ["fs:read=/data", "fs:write=/data", "fs:delete=/data", "process:exec=/bin/ls"])
def test_a_path_scope_that_nothing_can_keep_is_refused(grant: str) -> None:
    """Without Landlock and without a private root a path scope would be silently widened: an error."""
    bare = replace(IN_CONTAINER, landlock_abi=0)
    with pytest.raises(UnsupportedError, match=grant):
        plan(bare, grant, landlock=Demand.PREFERRED)
    assert plan(replace(bare, namespaces=USER.namespaces), grant, landlock=Demand.PREFERRED)


@pytest.mark.parametrize("grant", ["net:request=:443", "net:listen=8080"])
def test_a_port_scope_that_nothing_can_keep_is_refused(grant: str) -> None:
    """Ports take Landlock ABI 4."""
    with pytest.raises(UnsupportedError, match="ABI 4"):
        plan(replace(USER, landlock_abi=3), grant)
    assert plan(replace(USER, landlock_abi=4), grant)


def test_ports_reach_the_rule_set() -> None:
    """Scopes become port rules; a bare grant leaves that direction open; no grant leaves it shut."""
    ports = plan(USER, "net:request=:443", "net:listen=8080").landlock
    assert ports is not None
    assert set(ports.ports) == {(443, 2), (8080, 1)}
    bare = plan(USER, "net:request").landlock
    assert bare is not None
    assert bare.handled_net == 1


def test_trusted_leaves_the_process_as_it_is() -> None:
    """The trusted profile asks for no isolation: neither namespaces nor filters nor another user."""
    made = plan(ROOT, profile="trusted")
    assert (made.namespaces, made.landlock, made.seccomp, made.privileges) == (None, None, None, None)
    assert made.report["seccomp"].status is Status.OFF


def test_missing_controllers_make_the_cgroup_partial() -> None:
    """A delegated group without controllers can be killed as one, and the report says what it cannot do."""
    made = plan(replace(USER, cgroup=replace(GROUP, controllers=("hugetlb",))))
    assert made.report["cgroup"].status is Status.PARTIAL
    assert "memory, pids, cpu" in str(made.report["cgroup"].cause)


def test_old_landlock_is_partial() -> None:
    """What an older ABI does not govern is named."""
    report = plan(replace(USER, landlock_abi=3)).report["landlock"]
    assert report.status is Status.PARTIAL
    assert "TCP ports" in str(report.cause)


def test_the_cpu_backstop_is_for_single_use_workers() -> None:
    """RLIMIT_CPU never starts again at zero: only a worker for one task gets it."""
    policy = Policy.build("untrusted", (), Limits(cpu=1.5))
    once = make_plan(policy, USER, runtime=RUNTIME, single_use=True).rlimits
    often = make_plan(policy, USER, runtime=RUNTIME).rlimits
    assert once is not None
    assert often is not None
    assert dict(once.fixed)["RLIMIT_CPU"] == 2
    assert "RLIMIT_CPU" not in dict(often.fixed)
