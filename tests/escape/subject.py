"""What runs in workers: every attempt there is, and the ways to make them. Shipped to workers as source."""

import builtins
import importlib.util
import sys
import threading
import time
from typing import Any

import breakout
import try_exhaustion  # noqa: F401
import try_files  # noqa: F401
import try_information  # noqa: F401
import try_kernel  # noqa: F401
import try_network  # noqa: F401
import try_persistence
import try_process  # noqa: F401
import try_procfs  # noqa: F401
import try_protocol
import try_signals  # noqa: F401
import try_terminal  # noqa: F401


def in_call(names: list[str], facts: dict[str, Any]) -> dict[str, list[Any]]:
    """Make attempts in the call itself."""
    return breakout.attempt_all(names, facts)


def in_thread(names: list[str], facts: dict[str, Any]) -> None:
    """Make them in a thread that outlives the call."""
    breakout.leave_thread(names, facts)


def of_thread() -> dict[str, list[Any]]:
    """Return what that thread found."""
    return breakout.what_the_thread_found()


class _Importer:
    """Finds one module, whose code does something when it is imported."""

    def __init__(self, act: Any) -> None:
        self._act = act

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        """Find it."""
        return importlib.util.spec_from_loader(name, self) if name == "ringfence_escape_imported" else None

    def create_module(self, spec: object) -> None:
        """Leave that to the import system."""

    def exec_module(self, module: Any) -> None:
        """Run its code."""
        module.FOUND = self._act()


def _import(act: Any) -> Any:
    importer = _Importer(act)
    sys.meta_path.insert(0, importer)
    try:
        sys.modules.pop("ringfence_escape_imported", None)
        return builtins.__import__("ringfence_escape_imported").FOUND
    finally:
        sys.meta_path.remove(importer)


def at_import(names: list[str], facts: dict[str, Any]) -> Any:
    """Make attempts while a module is imported."""
    return _import(lambda: breakout.attempt_all(names, facts))


def say_at_import(name: str, facts: dict[str, Any]) -> Any:
    """Make one of the protocol's attempts while a module is imported."""
    return _import(lambda: try_protocol.say(name, facts))


def say_in_thread(name: str, facts: dict[str, Any]) -> None:
    """Make one of the protocol's attempts in a thread that outlives the call."""

    def later() -> None:
        time.sleep(0.02)
        try_protocol.say(name, facts)

    threading.Thread(target=later, daemon=True).start()


def nap(seconds: float, value: int) -> int:
    """Be a task like any other."""
    time.sleep(seconds)
    return value


def look_for() -> list[str]:
    """Return which traces are to be seen."""
    return try_persistence.look_for()
