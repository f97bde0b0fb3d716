"""A thread that waits for its task's answer reads it itself, while nothing else is going on in that task's worker.

That saves the way through the I/O thread, half of a short call's time.
"""

from ringfence.pool.backlog import Backlog
from ringfence.pool.config import PoolConfig
from ringfence.pool.crew import Crew
from ringfence.pool.delivery import Errand
from ringfence.pool.dispatch import Dispatcher
from ringfence.pool.handle import WorkerHandle
from ringfence.pool.interest import Interest
from ringfence.pool.task import Task

__all__ = ["Waiting"]


class Waiting:
    """Takes workers over from the I/O thread, and gives them back. The supervisor's lock guards all but `sleep`."""

    def __init__(
        self, config: PoolConfig, backlog: Backlog, dispatcher: Dispatcher, crew: Crew, interest: Interest
    ) -> None:
        self._backlog = backlog
        self._dispatcher = dispatcher
        self._crew = crew
        self._interest = interest
        # Whether an idle worker may be left unheard, since a thread is expected to wait for its next task: not where
        # others wait as well.
        self._leaves_unheard = (
            config.queue_size is None and config.max_tasks is None
            and config.on_output is None and config.on_refusal is None
        )
        # Whether a thread may look for the answer before it sleeps.
        self._may_look = config.may_look

    def take_over(self, handle: WorkerHandle, task: Task) -> bool:
        """Have this thread hear the worker instead of the I/O thread, if `task` is all that goes on; say whether."""
        alone = len(handle.line) == 1 and handle.line[0] is task and not self._backlog.queued
        if (
            not alone or handle.watched or not handle.started or handle.doom or handle.channel.wants_write
            or handle.overdue is task
        ):  # fmt: skip
            self._interest.attend()
            return False
        if handle.channel.fileno() not in self._crew.handlers:
            return False  # its channel has ended, and it is about to be buried
        try:
            handle.watched = True
            if self._interest.unheard is handle:
                self._interest.unheard = None
            else:
                self._interest.listen(handle)
        except OSError:  # no memory in the kernel: the I/O thread goes on hearing it
            handle.watched = False
            return False
        except BaseException:
            handle.watched = False
            raise
        return True

    def sleep(self, handle: WorkerHandle, deadline: float | None) -> None:
        """Return when the worker has said something, or its channel has ended, or at `deadline` (time.monotonic)."""
        if not (self._may_look and handle.patience.look(handle.channel)):
            handle.channel.wait_readable(deadline)

    def give_back(self, handle: WorkerHandle, done: list[Errand]) -> bool:
        """Hear what the worker has said, and leave it to the I/O thread; say whether that has something to do now."""
        handle.watched = False
        if handle.gone:
            handle.close()
            return False
        if handle.channel.fileno() in self._crew.handlers:
            # Read first: listened to before, it would wake the I/O thread for what we are about to read.
            self._crew.hear_worker(handle, done)
        # In this order: a task that came before the worker was idle again is seen here, one that came later finds it
        # idle.
        self._backlog.absorb()
        self._dispatcher.feed()
        if handle.line or handle.sealed or handle.stopping or not self._leaves_unheard:
            self._interest.listen(handle)
        # It has to start another worker, or to wait for this one's end.
        return handle.ending or self._backlog.queued > 0
