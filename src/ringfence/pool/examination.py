"""Looks at a worker from outside before it is sent anything: its own report is only its word."""

import logging

from ringfence.pool.handle import WorkerHandle
from ringfence.sandbox.errors import EnforcementError
from ringfence.sandbox.outside import Contradiction, Witness
from ringfence.sandbox.steps import Plan

__all__ = ["Examination"]

_log = logging.getLogger("ringfence.pool")


class Examination:
    """What every worker of one pool has to stand."""

    def __init__(self, plan: Plan) -> None:
        self._witness = Witness(plan)
        # It was said already that nothing can be seen of workers.
        self._blind = False

    def take(self, handle: WorkerHandle) -> None:
        """Return if the kernel's word and the plan agree about a worker that says it is locked in.

        Raises EnforcementError where they do not, and ProcessLookupError when it has died.
        """
        try:
            seen = self._witness.look(handle.pid)
        except Contradiction as found:
            if handle.has_ended:
                raise ProcessLookupError from None  # it was another process, or none, that we looked at
            raise EnforcementError("a worker is not locked in as it says", 0, str(found)) from None
        if not seen and not self._blind:
            self._blind = True
            _log.warning("workers cannot be looked at from outside: /proc does not show them (hidepid)")
