"""What was refused while a task ran, whether or not the task went on: for hosts that asked to be told."""

import os
import sys
from _thread import _local as thread_local
from typing import Any, Final

from ringfence.ipc.messages import MAX_REFUSALS
from ringfence.sandbox.denials import Event, Refusals
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.sandbox.operations import KEPT
from ringfence.worker.harmless import Libraries, is_harmless

__all__ = ["Overheard"]

_LONGEST: Final = 1024


class _Thread(thread_local):
    """Whether what happens in a thread is our own doing."""

    def __init__(self) -> None:
        self.paused = False


class Overheard:
    """Judges every operation that Python announces, and remembers those that the grants do not cover."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._libraries = Libraries()
        self._thread = _Thread()
        # (capability, operation, target, needs), each once, in order.
        self._found: dict[tuple[str, str, str | None, str], None] = {}
        self._more = 0

    def install(self) -> None:
        """Begin to listen; Python offers no way to end it."""
        sys.addaudithook(self._hear)

    def take(self, uncaught: CapabilityDenied | None = None) -> list[Any]:
        """Return what was refused since the last time, and how much more; without what the task's answer tells."""
        found, more = self._found, self._more
        self._found, self._more = {}, 0
        if uncaught is not None:
            found.pop(_fields(uncaught), None)
        return [[list(each) for each in found], more] if found else []

    def _hear(self, name: str, args: tuple[Any, ...]) -> None:
        part = KEPT.get(name)
        if part is None or self._thread.paused:
            return
        self._thread.paused = True
        try:
            if (name == "open" and self._libraries.holds(args)) or (args and _is_cache(args[0])):
                return
            denied = self._refusals.judge(Event(name, args[part]))
            if denied is not None and not is_harmless(name, args[part], __file__):
                if len(self._found) < MAX_REFUSALS:
                    self._found[_fields(denied)] = None
                else:
                    self._more += 1
        except Exception:  # noqa: BLE001  # an error here would become the task's
            pass
        finally:
            self._thread.paused = False


def _is_cache(path: object) -> bool:
    """Whether this is what the interpreter keeps of modules; that it cannot write there is no loss to anybody."""
    return type(path) is str and "/__pycache__" in path


def _fields(denied: CapabilityDenied) -> tuple[str, str, str | None, str]:
    target = None if denied.target is None else os.fsdecode(denied.target)[:_LONGEST]
    return denied.capability, (denied.operation or "")[:_LONGEST], target, denied.needs[:_LONGEST]
