"""map and imap_unordered: many calls of one function over a lazy input, a bounded number of items ahead.

Items travel in chunks. Unless the caller fixes the size, it grows until a chunk takes about as long as it costs to
send one several times over. When a worker dies of a chunk, or cannot send its results, its items run again one by one,
so that only the one at fault fails.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Final, Protocol

from ringfence.pool.answers import Partial
from ringfence.pool.errors import LimitExceeded, ResultNotSerializable, WorkerCrashed
from ringfence.pool.future import PoolFuture

__all__ = ["Mapper"]

# Seconds a chunk should take: a hundred times what sending it costs, and short enough that a timeout or a
# cancellation loses little.
_CHUNK_SECONDS: Final = 0.010
_MAX_CHUNK: Final = 4096
# Chunks in flight for each worker: one that it runs, one that waits, and one whose results are being read.
_AHEAD: Final = 3

# Failures of a chunk that say nothing of which item is at fault, nor keep what the others gave.
_WHOLE: Final = (WorkerCrashed, LimitExceeded, ResultNotSerializable)

_Item = tuple[Any, ...]
_END: Final = object()


class Submit(Protocol):
    """Sends a chunk of calls to the pool."""

    def __call__(self, function: Callable[..., Any], items: list[_Item]) -> PoolFuture: ...


class _Chunk:
    """Some items on their way."""

    __slots__ = ("future", "items", "started")

    def __init__(self, items: list[_Item], future: PoolFuture) -> None:
        self.items = items
        self.future = future
        self.started = time.monotonic()


class Mapper:
    """One call of map or imap_unordered."""

    def __init__(
        self,
        submit: Submit,
        function: Callable[..., Any],
        items: Iterable[_Item],
        *,
        workers: int,
        chunksize: int | None,
        buffersize: int | None,
        deadline: float | None,
    ) -> None:
        """Start: the first items are sent before this returns.

        `chunksize` None lets the size adapt; `buffersize` bounds the items that are read ahead of the results taken;
        `deadline` is a time of time.monotonic after which waiting raises TimeoutError.
        """
        self._submit = submit
        self._function = function
        self._items = iter(items)
        self._workers = workers
        self._adapts = chunksize is None
        self._size = chunksize or 1
        self._most_chunks = _AHEAD * workers
        self._most_items = buffersize
        self._deadline = deadline
        self._chunks: deque[_Chunk] = deque()
        self._ahead = 0
        self._fill()

    # Sending

    def _fill(self) -> None:
        while len(self._chunks) < self._most_chunks:
            size = self._size
            if self._most_items is not None:
                size = min(size, self._most_items - self._ahead)
            items = list(itertools.islice(self._items, size)) if size > 0 else []
            if not items:
                return
            self._chunks.append(_Chunk(items, self._submit(self._function, items)))
            self._ahead += len(items)

    def _learn(self, chunk: _Chunk) -> None:
        """Adapt the size to how long a chunk took, from its sending, with those before it in line."""
        if self._adapts:
            seconds = (time.monotonic() - chunk.started) / _AHEAD
            if seconds < _CHUNK_SECONDS and len(chunk.items) >= self._size:
                self._size = min(self._size * 2, _MAX_CHUNK)
            elif seconds > 4 * _CHUNK_SECONDS:
                self._size = max(1, self._size // 2)

    # Receiving

    def ordered(self) -> Iterator[Any]:
        """Yield the results in the order of the items. Raises the first failure in that order, or TimeoutError."""
        try:
            while self._chunks:
                chunk = self._chunks.popleft()
                yield from self._results(chunk)
        finally:
            self._cancel()

    def unordered(self) -> Iterator[Any]:
        """Yield the results as they come. Raises the first failure that comes, or TimeoutError."""
        try:
            while self._chunks:
                by_future: dict[Future[Any], _Chunk] = {chunk.future: chunk for chunk in self._chunks}
                done, _ = wait(by_future, self._left(), FIRST_COMPLETED)
                if not done:
                    raise TimeoutError
                ready = [by_future.pop(future) for future in done]
                self._chunks = deque(by_future.values())
                by_future.clear()
                done.clear()
                while ready:
                    yield from self._results(ready.pop())
        finally:
            self._cancel()

    def _results(self, chunk: _Chunk) -> Iterator[Any]:
        values, error = self._outcome(chunk)
        self._learn(chunk)
        # With a bound on the items, the next are read when these are taken; without one, at once.
        strict = self._most_items is not None
        if error is None and not strict:
            self._replace(chunk)
        values.reverse()
        while values:  # nothing of a result may stay alive here
            if strict and error is None and len(values) == 1:
                self._replace(chunk)
            yield values.pop()
        if error is not None:
            try:
                raise error
            finally:
                del error

    def _replace(self, chunk: _Chunk) -> None:
        self._ahead -= len(chunk.items)
        self._fill()

    def _outcome(self, chunk: _Chunk) -> tuple[list[Any], BaseException | None]:
        try:
            answer = chunk.future.result(self._left())
        except _WHOLE as error:
            if len(chunk.items) == 1:
                return [], error
            return self._one_by_one(chunk)
        except TimeoutError:
            chunk.future.withdraw()
            raise
        finally:
            future, chunk.future = chunk.future, None  # type: ignore[assignment]  # drops the result it holds
            del future
        assert isinstance(answer, Partial)
        return answer.values, answer.error

    def _one_by_one(self, chunk: _Chunk) -> tuple[list[Any], BaseException | None]:
        """Run the items of a chunk that failed as a whole again, each alone."""
        values: list[Any] = []
        for item in chunk.items:
            answer = None
            try:
                answer = self._submit(self._function, [item]).result(self._left())
            except _WHOLE as error:
                return values, error
            if answer.error is not None:
                return values, answer.error
            values.extend(answer.values)
        return values, None

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _cancel(self) -> None:
        for chunk in self._chunks:
            if chunk.future is not None:
                chunk.future.withdraw()
        self._chunks.clear()
