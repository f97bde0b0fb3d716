"""The plan as plain data: all that a zygote needs to know, and all that it needs to import."""

from typing import final

from ringfence.records import dataclass
from ringfence.sandbox.cgroups import CgroupLimits
from ringfence.sandbox.descriptors import DescriptorPlan
from ringfence.sandbox.landlock import LandlockPlan, PathGrant
from ringfence.sandbox.namespaces import NamespacePlan
from ringfence.sandbox.privileges import PrivilegePlan
from ringfence.sandbox.report import Report
from ringfence.sandbox.rlimits import RlimitPlan

__all__ = ["Missing", "Plan", "SeccompPlan"]


@final
@dataclass(frozen=True, slots=True)
class Missing:
    """A layer, or a part of it, that the policy prefers and this host lacks."""

    layer: str
    reason: str
    fix: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SeccompPlan:
    """A finished program; `pid_slots` are filled by each worker with its own pid."""

    code: bytes
    pid_slots: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done, as plain data that can be pickled. A layer that is `None` is left out.

    Attributes:
        policy: the policy's name.
        grants: the paths that can be reached, for Landlock and the private root alike.
        missing: what the policy prefers and does not get.
        report: what will be true once every planned step has succeeded.
        cgroup: the limits a cgroup should carry; the supervisor makes it and puts the zygote in.
    """

    policy: str
    grants: tuple[PathGrant, ...]
    descriptors: DescriptorPlan | None
    namespaces: NamespacePlan | None
    rlimits: RlimitPlan | None
    cgroup: CgroupLimits | None
    privileges: PrivilegePlan | None
    landlock: LandlockPlan | None
    seccomp: SeccompPlan | None
    close_range: bool
    missing: tuple[Missing, ...]
    report: Report
