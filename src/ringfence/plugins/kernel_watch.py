"""What the kernel reports of some paths, in batches, until there is a reason to stop."""

import logging
from collections.abc import Callable, Generator, Sequence

__all__ = ["TICK", "reports"]

_log = logging.getLogger("ringfence.plugins")

# Milliseconds: how often the kernel's queue is looked at, and how long a batch may collect. Our own debouncer decides
# when changes are reported, so these only need to be small beside any debounce time, and idle wake-ups cheap.
_STEP = 20
_COLLECT = 60
# Seconds after which an empty batch is yielded when nothing happens.
TICK = 0.1


class _Condition:
    """What watchfiles asks after each step whether to stop."""

    __slots__ = ("is_set",)

    def __init__(self, is_set: Callable[[], bool]) -> None:
        self.is_set = is_set


def reports(
    paths: Sequence[str], *, recursive: bool, concerns: Callable[[str], bool], until: Callable[[], bool]
) -> Generator[set[str], None, None]:
    """Yield sets of paths that changed, empty ones when nothing did for a while, until `until()` is true.

    What changed after the first yield is reported. Paths that `concerns` refuses are left out. Where the kernel lends
    no more watches, the paths are polled, and the log says so. Raises OSError, also when a path is gone by now, and
    the RuntimeError of watchfiles, which every name that is no UTF-8 brings about.
    """
    import watchfiles

    def listen(force_polling: bool | None) -> Generator[set[str], None, None]:
        batches = watchfiles.watch(
            *paths,
            watch_filter=lambda change, path: concerns(path),
            debounce=_COLLECT,
            step=_STEP,
            rust_timeout=round(TICK * 1000),
            yield_on_timeout=True,
            stop_event=_Condition(until),
            raise_interrupt=False,
            recursive=recursive,
            ignore_permission_denied=True,
            force_polling=force_polling,
        )
        try:
            for batch in batches:
                yield {path for _, path in batch}
        finally:
            # Not left to the collector: it holds a thread and an fd.
            batches.close()

    started = False
    try:
        for batch in listen(None):
            started = True
            yield batch
    except FileNotFoundError:
        raise
    except OSError as error:
        if started:
            raise
        _log.warning("the kernel does not watch %s (%s); polling instead", ", ".join(paths), error)
        yield from listen(True)
