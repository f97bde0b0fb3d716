"""Recovery: what happens when a plugin's worker dies: it is started again after a while, or put into quarantine."""

import logging
import os
import time
from typing import final

from ringfence.errors import PluginError
from ringfence.locks import Lock
from ringfence.plugins.quarantine import Quarantine
from ringfence.plugins.restart import CrashHistory, GiveUp, RestartPolicy
from ringfence.plugins.states import LifecycleState
from ringfence.plugins.surroundings import Surroundings
from ringfence.plugins.worker_steps import WorkerSteps

__all__ = ["Recovery"]

_log = logging.getLogger("ringfence.plugins")


@final
class Recovery:
    """The crashes of a runtime's plugins and what is done about them. Thread-safe."""

    def __init__(
        self, around: Surroundings, policy: RestartPolicy | None, path: "str | os.PathLike[str] | None" = None
    ) -> None:
        """Without a policy a crashed plugin stays as it is. `path` keeps the quarantine beyond the runtime's life."""
        self._around = around
        self._policy = policy
        self.quarantine = Quarantine(path)
        self._histories: dict[str, CrashHistory] = {}
        self._lock = Lock()
        # Those that are being started again, each with the death that was reported meanwhile: one crash, not two.
        self._under_way: dict[WorkerSteps, PluginError | None] = {}
        self._closed = False

    def admit(self, name: str) -> None:
        """Do nothing if a plugin may be started. Raises PluginQuarantined."""
        self.quarantine.check(name)

    def forgive(self, name: str) -> None:
        """Lift a plugin's quarantine and forget its crashes."""
        self.quarantine.retry(name)
        history = self._histories.get(name)
        if history is not None:
            history.forget()

    def crashed(self, steps: WorkerSteps, error: PluginError) -> bool:
        """A worker has died: decide what comes of it; return False if that is not for us. Does not wait."""
        if self._policy is None:
            return False
        if self._closed:
            steps.recovering(False)
            return True
        with self._lock:
            if steps in self._under_way:
                self._under_way[steps] = error
                return True
            history = self._histories.setdefault(steps.name, CrashHistory(self._policy))
        decision = history.crashed()
        if isinstance(decision, GiveUp):
            reason = f"{decision.reason}; the last time: {str(error).splitlines()[0]}"
            _log.error("plugin %r is put into quarantine: %s", steps.name, reason)
            try:
                self.quarantine.add(steps.name, reason, decision.crashes)
            except (PluginError, OSError) as failed:
                _log.error("the quarantine of plugin %r cannot be written down: %s", steps.name, failed)
            steps.recovering(False)
            return True
        _log.warning(
            "plugin %r is started again in %g s (attempt %d): %s",
            steps.name, decision.delay, decision.attempt, str(error).splitlines()[0],
        )  # fmt: skip
        steps.recovering(True)
        self._around.board.at(time.monotonic() + decision.delay, lambda: self._restart_soon(steps))
        return True

    def _restart_soon(self, steps: WorkerSteps) -> None:
        self._around.chores.submit(lambda: self._restart(steps))

    def _restart(self, steps: WorkerSteps) -> None:
        with self._lock:
            if steps in self._under_way:
                return
            self._under_way[steps] = None
        failure: PluginError | None = None
        try:
            if not self._closed and steps.lifecycle.state is LifecycleState.FAILED:
                steps.lifecycle.restart(hooks=False)
        except (PluginError, ExceptionGroup) as error:
            failure = error if isinstance(error, PluginError) else PluginError(str(error))
        except Exception:  # noqa: BLE001  # a defect of ours; nobody would hear of it otherwise
            _log.exception("plugin %r could not be started again", steps.name)
        with self._lock:
            failure = self._under_way.pop(steps) or failure
            if failure is None or steps.lifecycle.state is not LifecycleState.FAILED:
                steps.recovering(False)
                return
        self.crashed(steps, failure)

    def close(self) -> None:
        """Start nothing any more."""
        self._closed = True
