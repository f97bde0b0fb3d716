"""LifecycleHooks: functions of the host that are called as plugins go through their lives."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Self, overload

from ringfence.locks import Lock

__all__ = ["LifecycleHooks"]

_log = logging.getLogger("ringfence.plugins")

PhaseHook = Callable[[str], object]
CallHook = Callable[[str, str, float], object]
ErrorHook = Callable[[str, BaseException], object]


class LifecycleHooks:
    """Functions of the host, by phase; every method that adds one returns the hooks, so that calls can be chained.

    ``on_init``, ``on_start``, ``on_stop`` and ``on_cleanup`` get the plugin's name and run before the plugin's own
    export of that phase. An error of the first two fails the transition; one of the others is raised when all is done.
    ``on_call`` gets plugin, function and seconds, after a call; ``on_error`` gets plugin and exception. Their own
    errors are logged.

    ``@hooks.on_init`` works too (the name is then the hooks); ``@hooks.on_init()`` leaves the function its name.
    """

    def __init__(self) -> None:
        """Make hooks that do nothing yet."""
        # Replaced, never changed, under the lock: readers take a reference and need none.
        self._lock = Lock()
        self._callbacks: dict[str, tuple[Callable[..., object], ...]] = {}
        self._added: tuple[LifecycleHooks, ...] = ()

    @overload
    def on_init(self, callback: PhaseHook) -> Self: ...
    @overload
    def on_init(self) -> Callable[[PhaseHook], PhaseHook]: ...
    def on_init(self, callback: PhaseHook | None = None) -> Any:
        """Call `callback(plugin)` before a plugin is initialised."""
        return self._register("init", callback)

    @overload
    def on_start(self, callback: PhaseHook) -> Self: ...
    @overload
    def on_start(self) -> Callable[[PhaseHook], PhaseHook]: ...
    def on_start(self, callback: PhaseHook | None = None) -> Any:
        """Call `callback(plugin)` before a plugin is started."""
        return self._register("start", callback)

    @overload
    def on_stop(self, callback: PhaseHook) -> Self: ...
    @overload
    def on_stop(self) -> Callable[[PhaseHook], PhaseHook]: ...
    def on_stop(self, callback: PhaseHook | None = None) -> Any:
        """Call `callback(plugin)` before a plugin is stopped."""
        return self._register("stop", callback)

    @overload
    def on_cleanup(self, callback: PhaseHook) -> Self: ...
    @overload
    def on_cleanup(self) -> Callable[[PhaseHook], PhaseHook]: ...
    def on_cleanup(self, callback: PhaseHook | None = None) -> Any:
        """Call `callback(plugin)` before a plugin is cleaned up."""
        return self._register("cleanup", callback)

    @overload
    def on_call(self, callback: CallHook) -> Self: ...
    @overload
    def on_call(self) -> Callable[[CallHook], CallHook]: ...
    def on_call(self, callback: CallHook | None = None) -> Any:
        """Call `callback(plugin, function, seconds)` after every call of a plugin's function."""
        return self._register("call", callback)

    @overload
    def on_error(self, callback: ErrorHook) -> Self: ...
    @overload
    def on_error(self) -> Callable[[ErrorHook], ErrorHook]: ...
    def on_error(self, callback: ErrorHook | None = None) -> Any:
        """Call `callback(plugin, error)` for every error of a plugin."""
        return self._register("error", callback)

    def _register(self, phase: str, callback: Callable[..., object] | None) -> object:
        if callback is None:

            def decorator(function: Callable[..., object]) -> Callable[..., object]:
                self._register(phase, function)
                return function

            return decorator
        if not callable(callback):
            raise TypeError(f"on_{phase} takes a function; {callback!r} cannot be called")
        with self._lock:
            self._callbacks = {**self._callbacks, phase: (*self._callbacks.get(phase, ()), callback)}
        return self

    def add_hooks(self, hooks: "LifecycleHooks") -> Self:
        """Run `hooks` after these, with whatever is registered on them later on. Raises ValueError for a circle."""
        if any(each is self for each in hooks._all()):
            raise ValueError("these hooks would run themselves; add them to others than their own")
        with self._lock:
            self._added = (*self._added, hooks)
        return self

    def set_hooks(self, hooks: "LifecycleHooks | None") -> Self:
        """Forget what is registered here, and run `hooks` (if any) in its place."""
        if hooks is not None and any(each is self for each in hooks._all()):
            raise ValueError("these hooks would run themselves; set others than their own")
        with self._lock:
            self._callbacks = {}
            self._added = () if hooks is None else (hooks,)
        return self

    def remove(self, what: "Callable[..., object] | LifecycleHooks") -> bool:
        """Take a callback out of every phase, or added hooks as a whole; return whether there was anything to take."""
        with self._lock:
            callbacks = {phase: tuple(c for c in found if c != what) for phase, found in self._callbacks.items()}
            added = tuple(each for each in self._added if each is not what)
            changed = callbacks != self._callbacks or len(added) != len(self._added)
            self._callbacks, self._added = callbacks, added
        return changed

    def run(self, phase: str, *arguments: object) -> list[Exception]:
        """Call every callback of `phase`, whatever those before it raised; return what was raised. It is logged too."""
        errors: list[Exception] = []
        for callback in tuple(self._of(phase)):
            try:
                callback(*arguments)
            except Exception as error:  # noqa: BLE001  # returned: the caller says what it means
                _log.exception("an on_%s hook raised for plugin %r", phase, arguments[0])
                errors.append(error)
        return errors

    def called(self, plugin: str, function: str, seconds: float) -> None:
        """Tell the ``on_call`` hooks of a call that has ended."""
        self.run("call", plugin, function, seconds)

    def failed(self, plugin: str, error: BaseException) -> None:
        """Tell the ``on_error`` hooks of an error."""
        self.run("error", plugin, error)

    def _of(self, phase: str) -> Iterator[Callable[..., object]]:
        for hooks in self._all():
            yield from hooks._callbacks.get(phase, ())

    def _all(self) -> "Iterator[LifecycleHooks]":
        """Yield these hooks and those added, each before what was added to it."""
        yield self
        for hooks in self._added:
            yield from hooks._all()

    def __repr__(self) -> str:
        counts = ", ".join(f"{phase}: {len(found)}" for phase, found in self._callbacks.items() if found)
        return f"<LifecycleHooks {counts or 'none'}{f' and {len(self._added)} more' if self._added else ''}>"
