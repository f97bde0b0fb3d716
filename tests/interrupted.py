"""^C at a chosen moment: CPython asks for signals when a function is entered and when one written in C has returned."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def interrupted_at(moment: int, module: ModuleType) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread at the `moment`-th of the times when ^C could hit a module's code."""
    left = moment

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename == module.__file__:  # type: ignore[attr-defined]
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
