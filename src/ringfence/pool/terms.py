"""What every worker of a pool is told, before any of them is made."""

import logging
from typing import Any, Final

from ringfence.ipc.types import REGISTERED
from ringfence.pool.config import PoolConfig
from ringfence.sandbox.refusal import AUDIT

__all__ = ["TOLD", "terms_of"]

TOLD: Final = ("call_depth", "file_size", "fs_ops", "instructions", "net_ops", "open_files", "processes", "written")
"""The limits that a worker has to know: those it counts, and those whose errors it tells apart (outcome.EXCEEDED)."""


def terms_of(config: PoolConfig) -> dict[str, Any]:
    """Return the terms as plain data, for the zygote: nothing in them is foreign."""
    return {
        "types": REGISTERED.names(),
        "pickle_results": config.pickle_results,
        "may_look": config.may_look,
        "one_task": config.one_task,
        "begins_plainly": config.begins_plainly,
        "limits": {name: getattr(config.policy.limits, name) for name in TOLD},
        "capabilities": [str(grant) for grant in config.policy.capabilities],
        "private_root": config.plan.namespaces is not None and config.plan.namespaces.private_root,
        "trusted": config.policy.is_trusted,
        "refusals": config.on_refusal is not None or AUDIT.isEnabledFor(logging.INFO),
    }
