"""Tasks that were accepted and are not with a worker: an ordered queue that forgets cancelled ones."""

from collections import deque
from collections.abc import Iterable

from ringfence.pool.task import Task

__all__ = ["Backlog"]


class Backlog:
    """The queue of one pool. The supervisor's lock guards it."""

    __slots__ = ("_queue", "inbox", "open", "queued", "submitted")

    def __init__(self) -> None:
        # Where threads put new tasks without taking the lock (deque.append is atomic); behind everything in the queue.
        self.inbox: deque[Task] = deque()
        # Oldest first. A cancelled task stays until its turn comes, so that cancelling needs no search.
        self._queue: deque[Task] = deque()
        # Tasks in the queue that are not cancelled.
        self.queued = 0
        # Tasks without an outcome, wherever they are.
        self.open = 0
        self.submitted = 0

    def absorb(self) -> None:
        """Take in what threads have put into the inbox."""
        inbox = self.inbox
        # Counted first: more may come meanwhile, and belong to the next time.
        count = len(inbox)
        for _ in range(count):
            self._queue.append(inbox.popleft())
        self.queued += count
        self.open += count
        self.submitted += count

    def take_only(self) -> None:
        """Take the first task out of the inbox, which went to a worker at once."""
        self.inbox.popleft()
        self.pass_by()

    def pass_by(self) -> None:
        """Count a task that goes to a worker without ever having been here."""
        self.open += 1
        self.submitted += 1

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Put tasks that did not start back to the front, in their order; those that have an outcome are dropped."""
        alive = [task for task in tasks if task.future._owner is not None]
        for task in alive:
            task.handle = None
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
            most_bytes -= task.size
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

    def retract(self, task: Task) -> None:
        """Forget a task in the queue as if it had never been put in."""
        task.future._owner = None
        self.queued -= 1
        self.open -= 1
        self.submitted -= 1

    def close(self, task: Task) -> None:
        """Note that a task has its outcome."""
        task.future._owner = None
        self.open -= 1
        if task.parcel is not None:
            task.release()
