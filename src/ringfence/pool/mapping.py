"""map and imap_unordered: many calls of one function over a lazy input, a bounded number of items ahead.

Items travel in chunks. Unless the caller fixes the size, it follows from what chunks took: about so long as it costs to
send one many times over, and no more bytes than a pipe takes at once. When a worker dies of a chunk, or cannot send its
results, or a chunk cannot be sent, its items run again one by one, so that only the one at fault fails.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ringfence.pool.answers import Partial
from ringfence.pool.errors import LimitExceeded, ResultNotSerializable, WorkerCrashed
from ringfence.pool.future import PoolFuture

__all__ = ["Mapper", "Results", "Sent"]

T = TypeVar("T")

# Seconds a chunk should take: twenty times what it costs to send one, and short enough that the last one keeps nobody
# waiting, and that a timeout or a cancellation loses little.
_CHUNK_SECONDS: Final = 0.010
# Bytes a chunk should be, both ways: larger ones leave the pipe for memory that has to be made for each.
_CHUNK_BYTES: Final = 96 * 1024
# Items: from here on larger chunks gain nothing (the cost of a chunk is a hundredth of theirs).
_MAX_CHUNK: Final = 16 * 1024
# How many times larger than the last one a chunk may be: a few quick items say little about those to come.
_GROWTH: Final = 4
# Chunks in flight for each worker: one that it runs, one that waits, and one whose results are being read.
_AHEAD: Final = 3

# Failures of a chunk that say nothing of which item is at fault, nor keep what the others gave.
_WHOLE: Final = (WorkerCrashed, LimitExceeded, ResultNotSerializable)


class Sent(NamedTuple):
    """A chunk that was handed in: its future, and how many bytes it was."""

    future: PoolFuture
    size: int


class Submit(Protocol):
    """Sends a chunk of calls to the pool.

    `spread`: each item is a tuple of arguments, else it is the one argument. `brief`: the answer may be for the first
    few items only, once these have taken long.
    """

    def __call__(self, function: Callable[..., Any], items: Sequence[Any], *, spread: bool, brief: bool) -> Sent: ...


class Results(itertools.chain[T]):
    """The results of a map, an iterator; `close` cancels what has not started."""

    # A chain, because that takes the results of a chunk without a step of the interpreter.

    _chunks: "Generator[Iterable[Any], None, None]"

    @classmethod
    def of(cls, chunks: Generator[Iterable[Any], None, None]) -> "Results[Any]":
        """Return the results in `chunks`, which is closed when nobody holds them any more.

        What comes first holds none: a generator that has not begun has nothing that would be done when it is closed.
        """
        next(chunks)
        made: Results[Any] = cls.from_iterable(chunks)  # type: ignore[assignment]  # typeshed says: a chain
        made._chunks = chunks
        return made

    def close(self) -> None:
        """End the iteration, and cancel what has not started. May be repeated."""
        self._chunks.close()
        deque(self, maxlen=0)  # those that have come


class _Whole(Exception):
    """A chunk failed as a whole, and one item alone may be at fault."""


class _Chunk:
    """Some items on their way, or what kept them from it."""

    __slots__ = ("error", "future", "items", "size")

    def __init__(self, items: Sequence[Any], sent: Sent | None, error: Exception | None = None) -> None:
        self.items = items
        self.future = None if sent is None else sent.future
        self.size = 0 if sent is None else sent.size
        self.error = error


class Mapper:
    """One call of map or imap_unordered."""

    def __init__(
        self,
        submit: Submit,
        function: Callable[..., Any],
        items: Iterable[Any],
        *,
        spread: bool,
        workers: int,
        chunksize: int | None,
        buffersize: int | None,
        deadline: float | None,
    ) -> None:
        """Start: the first items are sent before this returns.

        `spread`: each item is a tuple of arguments. `chunksize` None lets the size adapt; `buffersize` bounds the items
        that are read ahead of the results taken; `deadline` is a time of time.monotonic after which waiting raises
        TimeoutError.
        """
        self._submit = submit
        self._function = function
        # A range is cut by arithmetic, and its numbers are made by the workers.
        self._items = items if type(items) is range else iter(items)
        self._spread = spread
        self._workers = workers
        self._adapts = chunksize is None
        self._size = chunksize or 1
        self._most_chunks = _AHEAD * workers
        self._most_items = buffersize
        self._deadline = deadline
        # In the order of their items.
        self._chunks: deque[_Chunk] = deque()
        # Items read that have no result taken yet.
        self._ahead = 0
        # What the input raised: the last there is to yield.
        self._broken: Exception | None = None
        try:
            self._fill()
        except BaseException:
            self._cancel()
            raise

    # Sending

    def _fill(self) -> None:
        while len(self._chunks) < self._most_chunks:
            size = self._size
            if self._most_items is not None:
                size = min(size, self._most_items - self._ahead)
            items = self._read(size) if size > 0 else []
            if not items:
                return
            self._chunks.append(self._send(items))
            self._ahead += len(items)

    def _read(self, size: int) -> Sequence[Any]:
        if type(self._items) is range:
            cut, self._items = self._items[:size], self._items[size:]
            return cut
        items: list[Any] = []
        if self._broken is None:
            try:
                items.extend(itertools.islice(self._items, size))
            except Exception as error:  # noqa: BLE001  # the caller's iterator: raised in its place, behind the items
                self._broken = error
        return items

    def _send(self, items: Sequence[Any]) -> _Chunk:
        try:
            return _Chunk(items, self._submit(self._function, items, spread=self._spread, brief=self._adapts))
        except Exception as error:  # noqa: BLE001  # of pickling them, or of the pool: raised in its place
            return _Chunk(items, None, error)

    def _learn(self, chunk: _Chunk, answer: Partial) -> None:
        """Adapt the size to what a chunk took."""
        if not self._adapts:
            return
        done = len(answer.values) + (answer.error is not None)
        in_time = _CHUNK_SECONDS * done / max(answer.seconds, 1e-9)
        in_bytes = _CHUNK_BYTES / max(chunk.size / len(chunk.items), answer.size / done, 1e-9)
        self._size = max(1, int(min(in_time, in_bytes, _GROWTH * max(self._size, done), _MAX_CHUNK)))

    def _split(self, items: Sequence[Any]) -> None:
        """Send what a worker has left of a chunk, in pieces, to the front: it took longer than was to be expected."""
        size = max(self._size, -(-len(items) // self._most_chunks))
        pieces = [items[at : at + size] for at in range(0, len(items), size)]
        self._chunks.extendleft(reversed([self._send(piece) for piece in pieces]))

    # Receiving

    def ordered(self) -> Results[Any]:
        """Return the results in the order of the items. Raises the first failure in that order, or TimeoutError."""
        return Results.of(self._in_order())

    def unordered(self) -> Results[Any]:
        """Return the results as they come. Raises the first failure that comes, or TimeoutError."""
        return Results.of(self._as_they_come())

    def _in_order(self) -> Generator[Iterable[Any], None, None]:
        try:
            yield ()
            while self._chunks:
                yield from self._results(self._chunks.popleft())
            self._finish()
        finally:
            self._cancel()

    def _as_they_come(self) -> Generator[Iterable[Any], None, None]:
        try:
            yield ()
            while self._chunks:
                yield from self._results(self._take_done())
            self._finish()
        finally:
            self._cancel()

    def _take_done(self) -> _Chunk:
        """Take the first chunk that has its outcome; wait for one if need be."""
        while True:
            for position, chunk in enumerate(self._chunks):
                if chunk.future is None or chunk.future.done():
                    del self._chunks[position]
                    return chunk
            futures = [chunk.future for chunk in self._chunks if chunk.future is not None]
            if not wait(futures, self._left(), FIRST_COMPLETED).done:
                raise TimeoutError

    def _results(self, chunk: _Chunk) -> Iterator[Iterable[Any]]:
        """Yield the results of a chunk, in iterables that end before this goes on; raise its failure after them."""
        try:
            answer = self._outcome(chunk)
        except _Whole:
            answer = None
        if answer is None:
            yield from self._one_by_one(chunk.items)
            self._replace(chunk)
            return
        self._learn(chunk, answer)
        values, error = answer.values, answer.error
        if error is None and len(values) < len(chunk.items):
            self._split(chunk.items[len(values) :])
            chunk.items = chunk.items[: len(values)]
        # With a bound on the items, the next are read when these are taken; without one, at once.
        strict = self._most_items is not None
        if error is None and not strict:
            self._replace(chunk)
        if strict or answer.size >= _CHUNK_BYTES or len(values) == 1:
            yield self._taken(chunk, values, replace=strict and error is None)
        else:
            yield values
        del answer, values  # nothing of a result may stay alive here
        if error is not None:
            try:
                raise error
            finally:
                del error

    def _taken(self, chunk: _Chunk, values: list[Any], *, replace: bool) -> Iterator[Any]:
        """Yield `values`, and keep none that was taken."""
        values.reverse()
        while values:
            if replace and len(values) == 1:
                self._replace(chunk)
            yield values.pop()

    def _replace(self, chunk: _Chunk) -> None:
        self._ahead -= len(chunk.items)
        self._fill()

    def _outcome(self, chunk: _Chunk) -> Partial:
        """Wait for the answer to a chunk. Raises _Whole where its items must run again; TimeoutError."""
        future, chunk.future = chunk.future, None  # drops the results it holds
        try:
            if future is None:
                assert chunk.error is not None
                raise chunk.error
            answer = future.result(self._left())
        except _WHOLE:
            if len(chunk.items) > 1:
                raise _Whole from None
            raise
        except TimeoutError:
            if future is not None:
                future.withdraw()
            raise
        except Exception:
            if future is None and len(chunk.items) > 1:
                raise _Whole from None
            raise
        finally:
            chunk.error = None
            del future
        assert isinstance(answer, Partial)
        return answer

    def _one_by_one(self, items: Sequence[Any]) -> Iterator[Iterable[Any]]:
        """Run the items of a chunk that failed as a whole again, each alone."""
        return Mapper(
            self._submit, self._function, items, spread=self._spread, workers=self._workers, chunksize=1,
            buffersize=None, deadline=self._deadline,
        )._in_order()  # fmt: skip

    def _finish(self) -> None:
        """Everything that was read is done: raise what ended the reading."""
        if self._broken is not None:
            try:
                raise self._broken
            finally:
                self._broken = None

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _cancel(self) -> None:
        self._most_chunks = 0  # nothing is read any more
        for chunk in self._chunks:
            if chunk.future is not None:
                chunk.future.withdraw()
        self._chunks.clear()
