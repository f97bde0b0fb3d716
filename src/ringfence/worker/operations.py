"""Counts the file and network operations of a call, as Python announces them; a guard, as all that is counted here."""

from typing import Any, Final

from ringfence.sandbox.operations import KEPT
from ringfence.worker.guest_limits import Limits, reach

__all__ = ["Operations"]

_FILE_EVENTS: Final = frozenset(
    name
    for name in KEPT
    if name == "open" or (name.startswith("os.") and name not in ("os.posix_spawn", "os.exec", "os.fork", "os.forkpty",
                                                                 "os.kill", "os.killpg", "os.system"))
)  # fmt: skip
_NET_EVENTS: Final = frozenset(
    ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
)


class Operations:
    """How many operations each call has done, and may do by `limits`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def count(self, name: str, args: tuple[Any, ...]) -> None:
        """Count what was announced under `name`. Raises LimitReached when it was one too many."""
        if name in _FILE_EVENTS:
            self._count("fs_ops", self._limits.fs_ops, args)
        elif name in _NET_EVENTS:
            self._count("net_ops", self._limits.net_ops, args)

    def _count(self, kind: str, limit: int | None, args: tuple[Any, ...]) -> None:
        call = None if limit is None else Limits.charged()
        if limit is None or call is None or (kind == "fs_ops" and isinstance(args[0], int)):
            return
        measured = getattr(call, kind) + 1
        setattr(call, kind, measured)
        if measured > limit:
            raise reach(call, kind, limit, measured)
