"""Tasks that were accepted and are not with a worker: an ordered queue that forgets cancelled ones."""

from collections import deque
from collections.abc import Iterable

from ringfence.pool.task import Task

__all__ = ["Backlog"]


class Backlog:
    """The queue of one pool. The supervisor's lock guards it."""

    __slots__ = ("_queue", "open", "queued")

    def __init__(self) -> None:
        # Oldest first. A cancelled task stays until its turn comes, so that cancelling needs no search.
        self._queue: deque[Task] = deque()
        # Tasks in the queue that are not cancelled.
        self.queued = 0
        # Tasks without an outcome, wherever they are.
        self.open = 0

    def push(self, task: Task) -> None:
        """Put a task at the end."""
        self._queue.append(task)
        self.queued += 1

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Put tasks that did not start back to the front, in their order; those that have an outcome are dropped."""
        alive = [task for task in tasks if task.future._owner is not None]
        self._queue.extendleft(reversed(alive))
        self.queued += len(alive)

    def take(self, count: int, most_bytes: int) -> list[Task]:
        """Take up to `count` tasks from the front, at least one, then as long as their payloads fit `most_bytes`."""
        taken: list[Task] = []
        queue = self._queue
        while queue and len(taken) < count:
            task = queue[0]
            if task.future._owner is None:
                queue.popleft()
                continue
            most_bytes -= len(task.shipment.payload)
            if taken and most_bytes < 0:
                break
            taken.append(queue.popleft())
        self.queued -= len(taken)
        return taken

    def drain(self) -> list[Task]:
        """Take every task that is not cancelled."""
        tasks = [task for task in self._queue if task.future._owner is not None]
        self._queue.clear()
        self.queued = 0
        return tasks

    def close(self, task: Task) -> None:
        """Note that a task has its outcome."""
        task.future._owner = None
        self.open -= 1
