"""Watches plugin folders: tells handlers what has changed, has changed plugins reloaded."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from ringfence.locks import Lock
from ringfence.plugins.debounce import Debouncer
from ringfence.plugins.errors import WatchError
from ringfence.plugins.kernel_watch import TICK, reports
from ringfence.plugins.reload_driver import ReloadAttempt, ReloadDriver, ReloadHealth, ReloadTarget, kind_of
from ringfence.plugins.watch_config import WatchConfig
from ringfence.plugins.watch_events import Renamed, WatchEvent
from ringfence.plugins.watched_plugins import WatchedPlugins
from ringfence.plugins.watched_tree import Identity, WatchedTree, identify
from ringfence.pool.condition import Condition, Event, Thread

__all__ = ["PluginWatcher"]

_log = logging.getLogger("ringfence.plugins")

_Handler = TypeVar("_Handler", bound=Callable[[WatchEvent], object])

# Changes that wait for the thread that runs handlers. Beyond, the listening thread waits too: nothing is lost, since
# what it then finds is told by comparison.
_MAX_WAITING: Final = 10_000
# A batch of so many reports may have overrun the kernel's queue.
_FLOOD: Final = 2_000
# Seconds after which a new folder is looked into once more: the kernel watches it only from a moment after its making.
_SECOND_LOOK: Final = 0.5
# Seconds: the longest pause after the kernel's reports have failed, and how long they must have gone well before that
# for the pauses to begin small again.
_MAX_REST: Final = 1.0
_LONG: Final = 10.0
# Seconds that stop() waits for a handler or reload that is running.
_STOP_TIMEOUT: Final = 30.0


class PluginWatcher:
    """Watches files and folders from `start` to `stop`; also a context manager that does both.

    `runtime`, if given, is asked to reload plugins whose files changed (see `ReloadDriver`), unless the config's
    `auto_reload` is False; a PluginRuntime also stops its watchers when it shuts down. `plugin_of(path)` returns the
    name of the plugin a path belongs to, or None; without it the nearest manifest says. Two threads run: one listens to
    the kernel, the other debounces and calls handlers, hooks and the runtime, one at a time and without any lock held.
    All methods may be called from any thread, handlers and hooks included.
    """

    def __init__(
        self,
        config: WatchConfig | None = None,
        runtime: ReloadTarget | None = None,
        *,
        plugin_of: Callable[[Path], str | None] | None = None,
    ) -> None:
        self.config = WatchConfig() if config is None else config
        self._plugins = WatchedPlugins(plugin_of)
        self._handlers: tuple[Callable[[WatchEvent], object], ...] = ()
        self._before: tuple[Callable[[str], object], ...] = ()
        self._after: tuple[Callable[[str, ReloadAttempt], object], ...] = ()
        self._retry: tuple[Callable[[str, int], object], ...] = ()
        self._recorders: tuple[Callable[[ReloadAttempt], object], ...] = ()
        self._driver: ReloadDriver | None = None
        if runtime is not None and self.config.auto_reload:
            self._driver = ReloadDriver(
                runtime,
                self.config.backoff,
                breaker_threshold=self.config.breaker_threshold,
                breaker_timeout=self.config.breaker_timeout,
                before=self._run_before,
                after=lambda name, attempt: _call_each("on_after_reload", self._after, name, attempt),
                retry=lambda name, number: _call_each("on_retry", self._retry, name, number),
                record=lambda attempt: _call_each("on_attempt", self._recorders, attempt),
            )
        # Guards the tree; held while folders are read, never while anybody else's code runs.
        self._tree_lock = Lock()
        self._tree = WatchedTree(self.config)
        # Goes up when what is watched changes, so that the listening thread begins anew.
        self._generation = 0
        # Guards the two below and the handler tuples; also where the handlers' thread sleeps.
        self._wake = Condition()
        self._run: _Run | None = None
        # The latest thread that runs, or ran, handlers.
        self._handlers_thread: threading.Thread | None = None
        # A runtime that can look after its watchers does.
        adopt = getattr(runtime, "adopt_watcher", None)
        if adopt is not None:
            adopt(self)

    # What is watched

    def watch(self, path: str | os.PathLike[str]) -> Self:
        """Watch a folder (with its sub-folders, if the config says so) or a file, from now on or from `start` on.

        Raises WatchError when there is nothing at `path`, or it cannot be read.
        """
        root = _absolute(path)
        try:
            if os.path.isdir(root):
                with os.scandir(root):
                    pass
            else:
                os.stat(root)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise WatchError(f"cannot watch {root!r}: {reason}; it must exist and be readable") from error
        with self._tree_lock:
            self._tree.add_root(root)
            self._generation += 1
            files = list(self._tree.files)
        self._plugins.learn(files)
        return self

    def watch_all(self, paths: Iterable[str | os.PathLike[str]]) -> Self:
        """Watch each of `paths`; raises WatchError for the first that cannot be, with those before it watched."""
        for path in paths:
            self.watch(path)
        return self

    def unwatch(self, path: str | os.PathLike[str]) -> bool:
        """Watch `path` no longer; return False when it was not watched."""
        with self._tree_lock:
            dropped = self._tree.drop_root(_absolute(path))
            self._generation += dropped
        return dropped

    def watched_paths(self) -> list[Path]:
        """Return what is watched, absolute, in the order in which it was added."""
        with self._tree_lock:
            return [Path(root) for root in self._tree.roots]

    # Who is told

    def on_change(self, handler: _Handler) -> _Handler:
        """Call `handler(event)` for each change; returns it, to be used as a decorator.

        Handlers run in the order in which they were added, one event at a time; one that raises is logged, and stops
        neither the others nor the watcher.
        """
        with self._wake:
            self._handlers = (*self._handlers, handler)
        return handler

    on_event = on_change

    def on_before_reload(self, hook: Callable[[str], object]) -> Self:
        """Call `hook(name)` before each attempt to reload; when it raises, that reload is not made."""
        with self._wake:
            self._before = (*self._before, hook)
        return self

    def on_after_reload(self, hook: Callable[[str, ReloadAttempt], object]) -> Self:
        """Call `hook(name, attempt)` after each attempt: `attempt.ok`, `.result`, `.error`."""
        with self._wake:
            self._after = (*self._after, hook)
        return self

    def on_retry(self, hook: Callable[[str, int], object]) -> Self:
        """Call `hook(name, number)` before the `number`-th retry, counted from 1."""
        with self._wake:
            self._retry = (*self._retry, hook)
        return self

    def on_attempt(self, hook: Callable[[ReloadAttempt], object]) -> Self:
        """Call `hook(attempt)` for everything in the history, also what was skipped or aborted: the audit trail."""
        with self._wake:
            self._recorders = (*self._recorders, hook)
        return self

    def health(self, plugin: str | None = None) -> ReloadHealth:
        """Return the counters of reloads of one plugin, or of all."""
        return self._driver.health(plugin) if self._driver else ReloadHealth()

    def history(self) -> tuple[ReloadAttempt, ...]:
        """Return the latest attempts to reload, and what was skipped, oldest first."""
        return self._driver.history() if self._driver else ()

    # Running

    def start(self) -> Self:
        """Begin to watch, and return at once. Changes from now on are told; nothing happens if it runs already."""
        with self._wake:
            if self._run is not None:
                return self
            run = self._run = _Run(self._handlers_thread)
        # What happened while nobody watched is no change.
        with self._tree_lock:
            self._tree.reconcile()
            files = list(self._tree.files)
        self._plugins.learn(files)
        listening = Thread(target=self._listen, args=(run,), name="ringfence-watch", daemon=True)
        telling = Thread(target=self._tell, args=(run,), name="ringfence-watch-handlers", daemon=True)
        with self._wake:
            if not run.is_stopped:
                self._handlers_thread = telling
                run.threads = (listening, telling)
                for thread in run.threads:
                    thread.start()
        return self

    def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """Stop watching; changes that are not reported yet never are. Nothing happens if it does not run.

        Waits up to `timeout` seconds for a handler or reload that is running, unless called by one.
        """
        with self._wake:
            run, self._run = self._run, None
            if run is None:
                return
            run.stopped.set()
            self._wake.notify_all()
        deadline = time.monotonic() + timeout
        for thread in run.threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    _log.warning("the watcher's thread %s is still busy after %g s", thread.name, timeout)

    def is_running(self) -> bool:
        """Whether it watches."""
        return self._run is not None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running() else "stopped"
        return f"<PluginWatcher {state}: {', '.join(map(str, self.watched_paths())) or 'nothing'}>"

    # The listening thread

    def _listen(self, run: "_Run") -> None:
        failures, said = 0, ""
        while not run.is_stopped:
            began = time.monotonic()
            try:
                self._listen_once(run)
                failures = 0
                continue
            except FileNotFoundError as error:
                # It went away between looking and listening.
                _log.debug("watching begins anew: %s", error)
            except Exception as error:  # noqa: BLE001  # going on is better than to watch no more
                # A plugin can bring this about as often as it likes, with a name that is no UTF-8.
                if str(error) != said:
                    said = str(error)
                    _log.warning("what changes is looked for about once a second, for lack of reports: %s", said)
            self._look(run, None)
            failures = 0 if time.monotonic() - began > _LONG else failures + 1
            run.stopped.wait(min(TICK * failures, _MAX_REST))

    def _listen_once(self, run: "_Run") -> None:
        """Listen until what is to be listened to is no longer the same."""
        with self._tree_lock:
            generation = self._generation
            places = self._places()
        present = [path for path, identity in places.items() if identity is not None]

        def is_over() -> bool:
            return run.is_stopped or self._generation != generation

        if not present:
            run.stopped.wait(TICK)
            if not self._same(places):
                self._look(run, None)
            return
        batches = reports(present, recursive=self.config.recursive, concerns=self._concerns, until=is_over)
        is_first = True
        look_again: float | None = None
        try:
            for paths in batches:
                now = time.monotonic()
                is_late = look_again is not None and now >= look_again
                if is_first or is_late or len(paths) >= _FLOOD:
                    # Between the last look and the first report nobody listened.
                    is_first, look_again = False, None
                    self._look(run, None)
                if paths:
                    self._look(run, paths)
                    if look_again is None and any(map(os.path.isdir, paths)):
                        look_again = now + _SECOND_LOOK
                if not self._same(places):
                    # A watched folder was replaced, or a link leads elsewhere: the kernel still watches the old one.
                    self._look(run, None)
                    return
        finally:
            batches.close()

    def _places(self) -> dict[str, Identity | None]:
        """Return what the kernel should watch, and what is there now. The lock is held."""
        return {path: identify(path) for path in (*self._tree.roots, *self._tree.links)}

    def _same(self, places: dict[str, Identity | None]) -> bool:
        with self._tree_lock:
            return self._places() == places

    def _concerns(self, path: str) -> bool:
        with self._tree_lock:
            return self._tree.concerns(path)

    def _look(self, run: "_Run", paths: set[str] | None) -> None:
        """Look at `paths`, or at everything, and hand on what changed."""
        with self._tree_lock:
            events = self._tree.reconcile() if paths is None else self._tree.refresh(paths)
        now = time.monotonic()
        names = self._plugins.names_of({event.path for event in events})
        groups = [names[event.path] or str(event.path.parent) for event in events]
        with self._wake:
            for event, group in zip(events, groups, strict=True):
                self._wake.wait_for(lambda: run.is_stopped or len(run.waiting) < _MAX_WAITING)
                if run.is_stopped:
                    return
                run.waiting.append((event, group, now))
                self._wake.notify_all()

    # The handlers' thread

    def _tell(self, run: "_Run") -> None:
        # A run that a handler has stopped, and this one begun, is still in that handler.
        if run.before is not None:
            run.before.join()
            run.before = None
        try:
            self._tell_until_stopped(run)
        finally:
            if self._driver is not None:
                self._driver.cancel()

    def _tell_until_stopped(self, run: "_Run") -> None:
        debouncer = Debouncer(self.config.effective_debouncer(), self.config.max_wait)
        driver = self._driver
        while True:
            dues = (debouncer.next_due(), driver.next_due() if driver is not None else None)
            due = [when for when in dues if when is not None]
            with self._wake:
                left = max(0.0, min(due) - time.monotonic()) if due else None
                self._wake.wait_for(lambda: run.is_stopped or run.waiting, left)
                if run.is_stopped:
                    return
                arrived = list(run.waiting)
                run.waiting.clear()
                self._wake.notify_all()
            for event, group, at in arrived:
                debouncer.add(event, group, at)
            for events in debouncer.ready():
                for event in events:
                    if run.is_stopped:
                        break
                    _call_each("a change handler", self._handlers, event)
                if driver is not None:
                    self._note_changed(driver, events)
            if driver is not None and not run.is_stopped:
                try:
                    driver.pump()
                except BaseException:  # noqa: BLE001  # as for handlers
                    _log.exception("a reload failed in an unexpected way")

    def _note_changed(self, driver: ReloadDriver, events: Iterable[WatchEvent]) -> None:
        paths = {event.path for event in events} | {event.from_path for event in events if isinstance(event, Renamed)}
        for path, name in self._plugins.names_of(paths).items():
            if name is not None:
                driver.changed(name, kind_of(path))

    def _run_before(self, name: str) -> None:
        for hook in self._before:
            hook(name)


class _Run:
    """One time from start to stop."""

    def __init__(self, before: threading.Thread | None) -> None:
        # The thread that ran handlers before; only one at a time does.
        self.before = before
        self.threads: tuple[threading.Thread, ...] = ()
        self.stopped = Event()
        # Changes for the handlers' thread: with their group, and when they were seen.
        self.waiting: deque[tuple[WatchEvent, str, float]] = deque()

    @property
    def is_stopped(self) -> bool:
        return self.stopped.is_set()


def _absolute(path: str | os.PathLike[str]) -> str:
    """Return `path` without dots and double slashes, links kept: that is how the kernel's reports begin."""
    return os.path.abspath(os.fspath(path))


def _call_each(what: str, calls: Iterable[Callable[..., Any]], *args: object) -> None:
    """Call what users gave; an error is logged and concerns nobody else."""
    for call in calls:
        try:
            call(*args)
        except BaseException:  # noqa: BLE001  # a handler's sys.exit() must not end the watching either
            _log.exception("%s failed", what)
