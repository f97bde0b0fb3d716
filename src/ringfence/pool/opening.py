"""What a new pool is told to be, found out while its zygote's interpreter starts: policy, features, plan, config."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ringfence.pool.config import PoolConfig
from ringfence.pool.ignition import Started
from ringfence.pool.library import library_paths
from ringfence.pool.preflight import check_paths, paths_to_map
from ringfence.pool.serialise import Serialiser
from ringfence.pool.task import Output, TaskOptions
from ringfence.pool.terms import terms_of
from ringfence.pool.zygote import Nursing, Zygote
from ringfence.sandbox.amounts import parse_duration, parse_size
from ringfence.sandbox.capabilities import GrantLike
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.features import Features, probe
from ringfence.sandbox.limits import Limits
from ringfence.sandbox.plan import Plan, group_limits, make_plan
from ringfence.sandbox.policy import Policy
from ringfence.sandbox.profiles import Profile
from ringfence.sandbox.refusal import Refusal
from ringfence.sandbox.requirement import RequirementLike
from ringfence.sandbox.runtime_paths import RuntimePaths, runtime_paths

if TYPE_CHECKING:
    from ringfence.pool.intake import Intake
    from ringfence.pool.network_events import NetworkEvent
    from ringfence.pool.supervisor import Supervisor

__all__ = ["open_pool"]

# What workers import that ask the supervisor for their sockets.
_BROKERED = ("ringfence.worker.network_sockets",)


def open_pool(
    started: Started | None,
    nursing: Nursing,
    *,
    policy: tuple[
        str | Profile, Iterable[GrantLike], Limits | None, Mapping[str, str] | None, RequirementLike,
        Mapping[str, str] | None,
    ],
    max_workers: int | None,
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
    timeout: float | str | None,
    sessions: bool,
    max_tasks: int | None,
    queue_size: int | None,
    capture: bool,
    on_output: Callable[[Output], Any] | None,
    on_refusal: Callable[[Refusal], Any] | None,
    on_network: "Callable[[NetworkEvent], Any] | None",
    pickle_results: bool,
    max_buffer: int | str,
    preload: Sequence[str],
) -> "tuple[Supervisor, Intake]":  # fmt: skip
    """Return a new pool's supervisor, whose thread has to be started, and the way into it.

    `started` is its zygote's process, ours from here on, if it has one already; otherwise it is started now, from the
    nursery as `nursing` says. `policy`: what `Policy.build` takes; the others: what `Pool` takes, checked as far as
    that goes without a policy. Raises what Pool raises.
    """
    # Before it is known what the policy is, and whether it is one: its interpreter starts meanwhile.
    zygote = Zygote(inherit=not capture, nursing=nursing, started=started)
    try:
        held = Policy.build(*policy)
        _check(held, pickle_results=pickle_results, sessions=sessions)
        options = TaskOptions(timeout=held.timeout if timeout is None else parse_duration(timeout))
        serialiser = Serialiser()
        zygote.hear_features()
        offered = probe()
        if offered.cgroup is not None and (limits := group_limits(held, offered)) and zygote.has_started:
            zygote.enter_group(offered.cgroup.path, limits, held)
        runtime = runtime_paths(library_paths())
        if not held.is_trusted:
            # The plan needs the one, its proof the other: before the supervisor's thread and ours take turns.
            from ringfence.sandbox import seccomp, selftest  # noqa: F401
        plan = _plan(held, offered, runtime, single_use=max_tasks == 1 and not sessions)
        cpus = len(os.sched_getaffinity(0))
        config = PoolConfig(
            policy=held,
            plan=plan,
            cgroup=offered.cgroup.path if plan.cgroup is not None and offered.cgroup is not None else None,
            max_workers=max_workers or cpus,
            cpus=cpus,
            max_buffer=parse_size(max_buffer),
            capture=capture,
            pickle_results=pickle_results,
            max_tasks=max_tasks,
            sessions=sessions,
            queue_size=queue_size,
            initializer=None if initializer is None else serialiser.value(initializer),
            preload=(*preload, *(_BROKERED if held.is_brokered else ())),
            sources=serialiser.sources,
            on_output=on_output,
            on_refusal=on_refusal,
            on_network=on_network,
        )
        zygote.settle()
        zygote.begin(config, terms_of(config))
        # While it is told what to be, and gets ready.
        from ringfence.pool.intake import Intake
        from ringfence.pool.supervisor import Supervisor

        supervisor = Supervisor(config, zygote)
    except BaseException:
        zygote.abandon()
        raise
    return supervisor, Intake(supervisor, serialiser, options)


def _check(policy: Policy, *, pickle_results: bool, sessions: bool) -> None:
    """Raise PolicyError for what the policy does not allow."""
    if pickle_results and not policy.is_trusted:
        raise PolicyError(
            f"pickle_results needs profile='trusted': unpickling what a worker of profile {policy.name!r} sent "
            "would let it run code here; return plain data, or register the class with ringfence.register_type"
        )
    for name in ("instructions", "fs_ops", "net_ops", "written") if sessions else ():
        if getattr(policy.limits, name) is not None:
            raise PolicyError(
                f"limits.{name} is counted task by task, and a session is none; use limits.cpu or a timeout"
            )


def _plan(policy: Policy, offered: Features, runtime: RuntimePaths, *, single_use: bool) -> Plan:
    """Return what each layer will do. Raises PolicyError, UnsupportedError."""
    plan = make_plan(policy, offered, runtime=runtime, single_use=single_use)
    other_user = plan.privileges is not None and plan.privileges.change_uid
    private = plan.namespaces is not None and plan.namespaces.private_root
    mapped = paths_to_map(policy, runtime.sealed) if other_user and private else {}
    check_paths(policy, as_other_user=other_user, behind_a_root=private, mapped=mapped)
    if mapped:
        works = [path for path, why_not in mapped.items() if why_not is None]
        plan = make_plan(policy, offered, runtime=runtime, single_use=single_use, mapped=works)
    return plan
