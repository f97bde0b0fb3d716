"""Hears the operations that Python announces: counts them, and reports those that the grants do not cover.

It reports and explains, it protects nothing; refusing is the kernel's business. What is announced and refused is
reported even if the plugin swallows the error. Only a look-up of a C function for which the kernel would end the worker
is refused here, so that there is an error which says so.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ringfence.ipc import guest_messages as g
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.denials import Event, Refusals
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.sandbox.operations import KEPT
from ringfence.worker.guest_limits import Limits
from ringfence.worker.guest_state import CURRENT, Active, Call
from ringfence.worker.guest_symbols import OPERATION, ends_the_worker, judge_symbol
from ringfence.worker.harmless import Libraries, is_harmless
from ringfence.worker.operations import Operations

__all__ = ["Watch"]

# Refusals that one call may report; a plugin that tries a million files is told of once.
_MOST: Final = 256
_MAX_TEXT: Final = 4096


class _Thread(threading.local):
    """What each thread is up to."""

    def __init__(self) -> None:
        # Do not listen: what happens is our own doing.
        self.paused = False


_thread: Final = _Thread()
_watch: "Watch | None" = None
_installed = False


class Watch:
    """Listens for one guest.

    Args:
        refusals: knows what is granted.
        limits: how many operations a call may do.
        grants: what is granted; None where nothing is enforced, and so nothing is refused.
    """

    def __init__(self, refusals: Refusals, limits: Limits, grants: Capabilities | None = None) -> None:
        self._refusals = refusals
        self._grants = grants
        self._active: Active | None = None
        # What no call does: the module while it is loaded, threads of the plugin's own.
        self._background = Call(0, "", 0)
        self._libraries = Libraries()
        self._operations = Operations(limits)

    def install(self, active: Active) -> None:
        """Begin to listen, and to report to `active`; Python offers no way to take an audit hook away again."""
        global _watch, _installed
        self._active = active
        self._refusals.install()
        _watch = self
        if not _installed:
            _installed = True
            sys.addaudithook(_on_event)

    def remove(self) -> None:
        """Stop listening."""
        global _watch
        self._active = None
        if _watch is self:
            _watch = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not listen to this thread: formatting a traceback reads files, too."""
        before, _thread.paused = _thread.paused, True
        try:
            yield
        finally:
            _thread.paused = before

    def report(self, denied: CapabilityDenied) -> None:
        """Tell the host of a refusal, unless the call that it happens in has had too many."""
        call = CURRENT.get() or self._background
        call.denials += 1
        if call.denials > _MOST or self._active is None:
            return
        texts = (denied.capability, denied.operation or "", denied.target or "", denied.needs)
        self._active.send([g.DENIED, *(text[:_MAX_TEXT] for text in texts)])

    def summarise(self, call: Call | None = None) -> None:
        """Say how many refusals were not reported one by one."""
        call = call or self._background
        if call.denials > _MOST and self._active is not None:
            text = f"{call.denials - _MOST} more refused operations were not reported one by one"
            self._active.send([g.LOG, 3, "ringfence.guest", text, {}])
            call.denials = 0

    def hear(self, name: str, args: tuple[Any, ...]) -> None:
        """Count and judge an operation. Raises LimitReached when it was one too many."""
        if name == "open" and self._libraries.holds(args):
            return
        self._operations.count(name, args)
        try:
            denied = self._refusals.judge(Event(name, args))
            if denied is not None and not is_harmless(name, args, __file__):
                self.report(denied)
        except Exception:  # noqa: BLE001  # an error here would become the plugin's; ChannelClosed, RecursionError
            pass

    def hear_symbol(self, name: object) -> None:
        """Judge a look-up of a C function. Raises CapabilityDenied when to call it would end the worker."""
        denied = None if self._grants is None else judge_symbol(name, self._grants)
        if denied is None:
            return
        try:
            self.report(denied)
        except Exception:  # noqa: BLE001  # as above
            pass
        if ends_the_worker(name):
            raise denied


def _on_event(name: str, args: tuple[Any, ...]) -> None:
    part = KEPT.get(name)
    watch = _watch
    if (part is None and name != OPERATION) or watch is None or _thread.paused:
        return
    _thread.paused = True
    try:
        if part is None:
            watch.hear_symbol(args[1])
        else:
            watch.hear(name, args[part])
    finally:
        _thread.paused = False
