"""Policy and features to plan: what each layer will do on this host, decided without touching it."""

import os
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.cgroups import CgroupLimits
from ringfence.sandbox.descriptors import DescriptorPlan
from ringfence.sandbox.errors import UnsupportedError
from ringfence.sandbox.features import MOUNT_PROC, NO_PROC, Features
from ringfence.sandbox.kernel_trees import KERNEL_TREES, PROCESSES_AND_DEVICES
from ringfence.sandbox.landlock import Access, LandlockPlan, PathGrant, plan_landlock, weaknesses
from ringfence.sandbox.namespaces import SCRATCH, SCRATCH_PARENT, NamespacePlan
from ringfence.sandbox.net_rules import NETWORK
from ringfence.sandbox.opens import OPENS, Fact, brought_by
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.privileges import PrivilegePlan
from ringfence.sandbox.report import LayerReport, Report, Status
from ringfence.sandbox.rlimits import RlimitPlan, plan_rlimits
from ringfence.sandbox.runtime_paths import RuntimePaths
from ringfence.sandbox.steps import Missing, Plan, SeccompPlan

__all__ = ["Missing", "Plan", "SeccompPlan", "group_limits", "make_plan"]

# For a worker's private folder, unless the memory limit is smaller: its pages are memory that RLIMIT_DATA
# does not see. snekbox gives 40 MiB.
_SCRATCH: Final = 64 << 20

_READ: Final = Access.READ | Access.LIST
_LOOK: Final = _READ | Access.EXECUTE


def make_plan(
    policy: Policy,
    features: Features,
    *,
    runtime: RuntimePaths,
    single_use: bool = False,
    mapped: Collection[str] = (),
) -> Plan:
    """Decide what each layer will do.

    Args:
        policy: what is asked.
        features: what this kernel offers.
        runtime: what the interpreter must be able to read.
        single_use: whether each worker serves one task; then RLIMIT_CPU stands behind the supervisor's clock.
        mapped: real paths that only their owner may use, and whose owner this kernel can map to the worker.

    Raises:
        UnsupportedError: a required layer or level is not to be had here, or a grant's scope could not be kept.
    """
    return _Planner(policy, features, runtime, mapped).plan(single_use)


def group_limits(policy: Policy, features: Features) -> CgroupLimits | None:
    """Return the limits of each worker's control group, or None where workers will have none."""
    group = features.cgroup
    if policy.demands[Layer.CGROUP] is Demand.OFF or group is None or not group.writable:
        return None
    limits = policy.limits
    return CgroupLimits(memory=limits.memory, processes=limits.processes, cpu=limits.cpu_share)


class _Planner:
    """The decisions for one policy on one host; each method decides one layer and notes its report."""

    def __init__(
        self, policy: Policy, features: Features, runtime: RuntimePaths, mapped: Collection[str]
    ) -> None:
        self._policy = policy
        self._caps: Capabilities = policy.capabilities
        self._features = features
        self._runtime = runtime
        self._mapped = tuple(sorted(mapped))
        # Whether workers open sockets of this host's network themselves. With a broker they never do.
        self._uses_network = not policy.is_brokered and any(self._caps.has(c) for c in NETWORK)
        self._reports: dict[Layer, LayerReport] = {}
        self._missing: list[Missing] = []

    def plan(self, single_use: bool) -> Plan:
        namespaces = self._namespaces()
        landlock = self._landlock(namespaces)
        self._check_scopes(namespaces, landlock)
        privileges = self._privileges(namespaces)
        descriptors = self._descriptors(namespaces)
        rlimits = self._rlimits(single_use, namespaces, privileges)
        cgroup = self._cgroup()
        seccomp = self._seccomp(namespaces, landlock)
        self._check_broker(seccomp)
        self._monitor()
        report = Report(tuple(self._reports[layer] for layer in Layer))
        self._require(report)
        return Plan(
            policy=self._policy.name,
            grants=tuple(self._grants(namespaces)),
            descriptors=descriptors,
            namespaces=namespaces,
            rlimits=rlimits,
            cgroup=cgroup,
            privileges=privileges,
            landlock=landlock,
            seccomp=seccomp,
            close_range=self._features.close_range,
            missing=tuple(self._missing),
            report=report,
        )

    # --- what every layer does ------------------------------------------------------------------------------

    def _wants(self, layer: Layer) -> bool:
        if self._policy.demands[layer] is not Demand.OFF:
            return True
        self._note(layer, Status.OFF, "not asked for")
        return False

    def _note(self, layer: Layer, status: Status, detail: str, cause: str | None = None) -> None:
        self._reports[layer] = LayerReport(layer.value, status, detail, cause)

    def _lacks(self, layer: Layer, reason: str, fix: str, left: str = "not enforced") -> None:
        """Refuse if the layer is required, else record that it will not be there, and what is `left` open."""
        if self._policy.demands[layer] is Demand.REQUIRED:
            raise UnsupportedError(layer, reason, fix)
        self._missing.append(Missing(layer.value, reason, fix))
        self._note(layer, Status.NONE, left, reason)

    def _require(self, report: Report) -> None:
        """Refuse if less will come true than the caller insists on."""
        lacking = self._policy.requirement.lacking(report)
        if not lacking:
            return
        first, wanted = lacking[0], self._policy.requirement
        reason = f"{wanted} is required, and this would be {report.level}, with {first.layer} {first.status}"
        fix = next((m.fix for m in self._missing if m.layer == first.layer), "require less, or use another host")
        if first.status is Status.OFF:
            fix = f"profile {self._policy.name!r} switches it off: take another profile"
        raise UnsupportedError(first.layer, f"{reason} ({first.cause or first.detail})", fix)

    # --- layers ---------------------------------------------------------------------------------------------

    def _descriptors(self, namespaces: NamespacePlan | None) -> DescriptorPlan | None:
        if not self._wants(Layer.DESCRIPTORS):
            return None
        environment = dict(self._policy.environment)
        if namespaces is not None and namespaces.scratch:
            environment.setdefault("TMPDIR", SCRATCH)
        names = ", ".join(sorted(environment)) or "none"
        self._note(Layer.DESCRIPTORS, Status.FULL, f"nothing inherited; environment: {names}")
        return DescriptorPlan(environment=environment)

    def _namespaces(self) -> NamespacePlan | None:
        if not self._wants(Layer.NAMESPACES):
            return None
        features = self._features
        kinds: list[str] = [kind for kind in ("mnt", "pid", "ipc", "uts", "cgroup") if kind in features.namespaces]
        uses_network = self._uses_network
        if "net" in features.namespaces and not uses_network:
            kinds.append("net")
        if "pid" in kinds and features.needs_user_namespace and not features.pidfd:
            kinds.remove("pid")
        if not kinds:
            left = f"visible: {'; '.join(_VISIBLE.values())}{self._no_folder()}"
            self._lacks(Layer.NAMESPACES, *_why_no_namespaces(features), left)
            return None
        wanted = {"mnt", "pid", "ipc", "uts", *(() if uses_network else ("net",))}
        lost = sorted(wanted - set(kinds))
        detail = f"{', '.join(kinds)}{' in a user namespace' if features.needs_user_namespace else ''}"
        if lost:
            cause = "; ".join(f"{kind}: {features.reasons.get(f'namespace.{kind}', 'refused')}" for kind in lost)
            detail += "".join(f"; visible: {_VISIBLE[kind]}" for kind in lost if kind in _VISIBLE)
            detail += self._no_folder() if "mnt" in lost else ""
            self._note(Layer.NAMESPACES, Status.PARTIAL, detail, cause)
            self._missing.append(Missing(Layer.NAMESPACES.value, cause, "allow these namespaces on this host"))
        else:
            self._note(Layer.NAMESPACES, Status.FULL, detail + ("; the host's network" if uses_network else ""))
        private = "mnt" in kinds
        mapped = self._mapped if private and features.is_root and features.own_uids else ()
        return NamespacePlan(
            kinds=tuple(kinds),
            user=features.needs_user_namespace,
            devices=self._runtime.devices if private else (),
            scratch=self._scratch_size() if private and self._caps.has(Capability.FS_WRITE) else None,
            run_programs=self._caps.has(Capability.PROCESS_EXEC),
            mapped=mapped,
            count_alone=bool(mapped) and features.users_make_namespaces,
        )

    def _no_folder(self) -> str:
        """Return what to add where a grant brings a private folder, and there can be none."""
        promised = self._caps.is_unscoped(Capability.FS_WRITE)
        return "; no private folder: fs:write without a path opens nothing" if promised else ""

    def _scratch_size(self) -> int:
        memory = self._policy.limits.memory
        return _SCRATCH if memory is None else min(_SCRATCH, memory)

    def _rlimits(
        self, single_use: bool, namespaces: NamespacePlan | None, privileges: PrivilegePlan | None
    ) -> RlimitPlan | None:
        if not self._wants(Layer.RLIMITS):
            return None
        plan = plan_rlimits(self._policy.limits, cpu_backstop=single_use)
        detail = "memory, open files, processes, core dumps, stack, locked memory"
        if self._features.is_root and (privileges is None or not privileges.change_uid):
            self._note(Layer.RLIMITS, Status.PARTIAL, detail, "the number of processes does not bind root")
        elif not _counted_alone(namespaces, privileges):
            cause = "processes are counted per user, not per worker"
            self._note(Layer.RLIMITS, Status.PARTIAL, detail, cause)
        else:
            self._note(Layer.RLIMITS, Status.FULL, detail)
        return plan

    def _cgroup(self) -> CgroupLimits | None:
        if not self._wants(Layer.CGROUP):
            return None
        group = self._features.cgroup
        fix = "delegate a cgroup v2 subtree: systemd-run --user --scope -p Delegate=yes"
        limits = group_limits(self._policy, self._features)
        if group is None or limits is None:
            self._lacks(Layer.CGROUP, self._features.reasons.get("cgroup", "no cgroup v2 subtree is delegated"), fix)
            return None
        lost = [name for name in ("memory", "pids", "cpu") if name not in group.controllers]
        if not lost:
            self._note(Layer.CGROUP, Status.FULL, "memory, processes, CPU; killed as one")
        else:
            cause = f"controllers not delegated: {', '.join(lost)}"
            self._note(Layer.CGROUP, Status.PARTIAL, "killed as one", cause)
            self._missing.append(Missing(Layer.CGROUP.value, cause, fix))
        return limits

    def _privileges(self, namespaces: NamespacePlan | None) -> PrivilegePlan | None:
        if not self._wants(Layer.PRIVILEGES):
            return None
        features = self._features
        change = features.is_root and features.can_setuid
        if change and self._runtime.closed and not (namespaces is not None and namespaces.private_root):
            raise UnsupportedError(
                Layer.PRIVILEGES,
                f"started as root, and an unprivileged user cannot read {self._runtime.closed[0]}",
                "install the interpreter and ringfence where every user can read them (chmod o+rX), or start "
                "as the user who owns them",
            )
        if features.is_root and not change:
            cause = "root without the right to change its user"
            self._note(Layer.PRIVILEGES, Status.PARTIAL, "no capabilities, no way to regain them", cause)
            self._missing.append(Missing(Layer.PRIVILEGES.value, cause, "start as an ordinary user"))
        else:
            whom = " and the user" if change else ""
            detail = f"capabilities{whom} dropped, no_new_privs, not dumpable"
            self._note(Layer.PRIVILEGES, Status.FULL, detail)
        return PrivilegePlan(
            change_uid=change,
            own_uid=change and features.own_uids,
            drop_bounding=features.can_drop_bounding or (namespaces is not None and namespaces.user),
            shared_uid=change and features.own_uids and namespaces is not None and bool(namespaces.mapped),
        )

    def _landlock(self, namespaces: NamespacePlan | None) -> LandlockPlan | None:
        if not self._wants(Layer.LANDLOCK):
            return None
        abi = self._features.landlock_abi
        if abi < 1:
            reason = self._features.reasons.get("landlock_abi", "the kernel has no Landlock")
            self._lacks(Layer.LANDLOCK, reason, "Linux 5.13 or newer with landlock in the lsm= boot parameter")
            return None
        gaps = weaknesses(abi)
        detail = f"ABI {abi}: paths" + "".join(f", {what}" for since, what in _PARTS if abi >= since)
        if gaps:
            self._note(Layer.LANDLOCK, Status.PARTIAL, detail, f"ABI {abi} does not govern {', '.join(gaps)}")
        else:
            self._note(Layer.LANDLOCK, Status.FULL, detail)
        brokered = self._policy.is_brokered
        return plan_landlock(
            abi,
            connect=() if brokered else _ports(self._caps, Capability.NET_REQUEST),
            bind=() if brokered else _ports(self._caps, Capability.NET_LISTEN),
        )

    def _seccomp(self, namespaces: NamespacePlan | None, landlock: LandlockPlan | None) -> SeccompPlan | None:
        # A hundred kilobytes of tables that only a supervisor which plans needs.
        from ringfence.sandbox.bpf import ARCHES
        from ringfence.sandbox.seccomp import build_program, choose_bundles

        if not self._wants(Layer.SECCOMP):
            return None
        features = self._features
        if not features.seccomp or features.machine not in ARCHES:
            reason = features.reasons.get("seccomp", f"no system call table for {features.machine}")
            self._lacks(Layer.SECCOMP, reason, "a kernel with CONFIG_SECCOMP_FILTER on x86-64 or aarch64")
            return None
        own_pids = namespaces is not None and namespaces.own_pids
        private_root = namespaces is not None and namespaces.private_root
        facts = {
            Fact.PRIVATE_ROOT: private_root,
            Fact.SIGNALS_INSIDE: own_pids or (landlock is not None and landlock.abi >= 6),
            Fact.PATHS_INSIDE: private_root or landlock is not None,
        }
        brokered = NETWORK if self._policy.is_brokered else ()
        bundles = choose_bundles(self._caps, [fact for fact, holds in facts.items() if holds], brokered)
        program = build_program(features.machine, bundles, pid=1 if own_pids else None)
        detail = f"allow-list of {len(bundles)} sets, {len(program.instructions)} instructions"
        self._note(Layer.SECCOMP, Status.FULL, detail)
        return SeccompPlan(code=program.to_bytes(), pid_slots=program.pid_slots)

    def _monitor(self) -> None:
        if not self._features.proc:
            # Whatever is asked for: it is where the supervisor sees what its workers became.
            raise UnsupportedError(Layer.MONITOR, self._features.reasons.get("proc", NO_PROC), MOUNT_PROC)
        if self._wants(Layer.MONITOR):
            self._note(Layer.MONITOR, Status.FULL, "the supervisor watches memory and time")

    # --- paths and ports ------------------------------------------------------------------------------------

    def _grants(self, namespaces: NamespacePlan | None) -> Iterator[PathGrant]:
        caps, runtime = self._caps, self._runtime
        private_root = namespaces is not None and namespaces.private_root
        for brings in dict.fromkeys(brought_by(caps)):
            yield from (PathGrant(path, brings.access) for path in getattr(runtime, brings.paths))
        for capability, access in _ACCESS.items():
            yield from self._demanded(caps.scopes(capability), access, private_root)
        if namespaces is not None and namespaces.scratch:
            yield PathGrant(SCRATCH_PARENT, _READ | Access.WRITE | Access.DELETE)

    def _demanded(self, paths: Iterable[str], access: Access, private_root: bool) -> Iterator[PathGrant]:
        for path in paths:
            if path == "/" and not private_root:
                # As the private root is filled: neither the host's processes nor its devices are files.
                yield PathGrant("/", access & Access.LIST, True)
                kernel = PROCESSES_AND_DEVICES if access == access & _LOOK else KERNEL_TREES
                yield from (PathGrant(top, access) for top in self._runtime.top if top not in kernel)
            else:
                real = self._policy.places.get(path) or os.path.realpath(path)
                yield PathGrant(path, access, True, None if real == path else real)

    def _check_scopes(self, namespaces: NamespacePlan | None, landlock: LandlockPlan | None) -> None:
        """Refuse grants that would reach further than they say, whatever the demands are."""
        if self._policy.is_trusted:
            return
        by_paths = landlock is not None or (namespaces is not None and namespaces.private_root)
        for capability in (*_ACCESS, Capability.NET_REQUEST, Capability.NET_LISTEN):
            scopes = self._caps.scopes(capability)
            if not scopes:
                continue
            reason = f"nothing here can hold {capability}={scopes[0]} to its scope"
            if capability in _ACCESS and not by_paths and scopes != ("/",):
                raise UnsupportedError(Layer.LANDLOCK, reason, "Landlock (Linux 5.13) or a mount namespace")
            if capability not in _ACCESS and self._policy.is_brokered:
                continue
            if capability not in _ACCESS and (landlock is None or landlock.abi < 4):
                raise UnsupportedError(Layer.LANDLOCK, reason, "Landlock ABI 4 (Linux 6.7)")

    def _check_broker(self, seccomp: SeccompPlan | None) -> None:
        """Refuse grants that name hosts where a worker could connect what it was handed to another host."""
        if self._policy.is_brokered and seccomp is None:
            named = next(g for g in self._caps if g.capability in NETWORK and g.scope is not None)
            reason = f"nothing here can hold {named} to its scope"
            raise UnsupportedError(Layer.SECCOMP, reason, "seccomp, required or preferred, on a kernel that has it")


# What a worker can see, though not reach, where it has no namespace of a kind to itself. (System V IPC needs none:
# seccomp refuses all of it.)
_VISIBLE: Final = {
    "mnt": "names, sizes, times and owners of files and where links lead (stat, readlink), not their content",
    "pid": "which processes there are",
    "net": "that there are network devices and their names",
    "uts": "the host's name",
}

_PARTS: Final = ((4, "TCP ports"), (5, "device ioctls"), (6, "signals, abstract sockets"))

_ACCESS: Final = {capability: opens.access for capability, opens in OPENS.items() if opens.access}


def _counted_alone(namespaces: NamespacePlan | None, privileges: PrivilegePlan | None) -> bool:
    """Say whether a worker's processes are counted for it alone."""
    if namespaces is not None and (namespaces.user or namespaces.count_alone):
        return True
    return privileges is not None and privileges.own_uid and not privileges.shared_uid


def _ports(capabilities: Capabilities, capability: Capability) -> tuple[int, ...] | None:
    """Return the ports a capability is held to, or `None` for all of them."""
    if capabilities.is_unscoped(capability):
        return None
    return tuple(int(scope.rpartition(":")[2]) for scope in capabilities.scopes(capability))


def _why_no_namespaces(features: Features) -> tuple[str, str]:
    if features.is_root:
        reason = features.reasons.get("namespace.mnt", "the kernel makes no namespaces")
        return reason, "give CAP_SYS_ADMIN, or start as an ordinary user where user namespaces are allowed"
    reason = features.reasons.get("user_namespaces", "user namespaces are not available")
    fix = "allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
    return reason, fix + "kernel.apparmor_restrict_unprivileged_userns; in a container: its seccomp profile"
