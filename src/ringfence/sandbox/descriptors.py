"""Nothing inherited: environment, file mode mask; descriptors are closed by `closing`."""

import os
import sys
from collections.abc import Mapping
from typing import final

from ringfence.records import dataclass, field

__all__ = ["DescriptorPlan", "empty_environment"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptorPlan:
    """The environment a worker gets and its mode mask."""

    environment: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o077


def empty_environment(plan: DescriptorPlan) -> None:
    """Replace the environment of this process and set its mode mask; inherited by every later fork."""
    os.environ.clear()
    os.environ.update(plan.environment)
    if "tempfile" in sys.modules:
        # It keeps what it found in the environment before.
        vars(sys.modules["tempfile"])["tempdir"] = plan.environment.get("TMPDIR")
    os.umask(plan.umask)
