"""Announced operations that are not worth a judgement: what everybody may do, and what the interpreter does itself."""

import os
import sys
from typing import Any

__all__ = ["Libraries", "is_harmless"]


class Libraries:
    """The folders of the interpreter's files: imports read them by the hundred."""

    def __init__(self) -> None:
        folders = {sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)} - {"/", "/usr"}
        self._folders = tuple(folder + os.sep for folder in folders)

    def holds(self, args: tuple[Any, ...]) -> bool:
        """Whether this `open`, given as its path, mode and flags, reads one of them."""
        path, mode, flags = args
        return (
            type(path) is str
            and path.startswith(self._folders)
            and ".." not in path
            and (mode in ("r", "rb") or (mode is None and flags & os.O_ACCMODE == os.O_RDONLY))
        )


def is_harmless(name: str, args: tuple[Any, ...], hook: str) -> bool:
    """Whether an operation is allowed to everybody, which its arguments do not show to the grants.

    `hook` is the file of the audit hook that asks, whose frames are not the operation's.
    """
    if name == "os.kill":
        return bool(args[0] == os.getpid())
    if name == "socket.__new__":
        # Wrapping a descriptor that is there, as socketpair() does, announces itself like a new socket.
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_filename in (hook, __file__):
            frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
        return frame is not None and frame.f_locals.get("fileno") is not None
    return False
