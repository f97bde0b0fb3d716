"""Who may say what when: one transition table for each conversation.

The table is the whole protocol; the code around it only looks up and raises. A conversation is seen from the
supervisor's side, which is the side that must not believe its peer.

`(state, tag) -> state after it`. A pair that is not in the table is a RemoteProtocolError.
"""

from collections.abc import Mapping
from typing import Any, Final

from ringfence.ipc import messages as m

__all__ = ["NURSERY", "PLAIN_WORKER", "WORKER", "ZYGOTE", "Conversation"]

_Table = Mapping[str, Mapping[int, str]]

# What a zygote may say. It says HELLO, is configured once, then reports on the workers it was asked for,
# and on the self-test if it was asked for that.
ZYGOTE: Final[_Table] = {
    "connected": {m.HELLO: "greeted"},
    "greeted": {m.CONFIGURED: "serving", m.FAILED: "failed"},
    "serving": {m.SPAWNED: "serving", m.EXITED: "serving", m.FAILED: "serving", m.PROVEN: "serving"},
    "failed": {},
}

# What a nursery may say: HELLO, then how each birth that it was asked for went, in the order of asking.
NURSERY: Final[_Table] = {
    "connected": {m.HELLO: "serving"},
    "serving": {m.FORKED: "serving", m.FAILED: "serving"},
}

# What a worker may say. Before READY no task may reach it, before STARTED none has run in it. Besides, an answer
# must be for the task at the head of what the worker holds, and SYNCED must have been asked for: the pool checks
# both, since it knows.
WORKER: Final[_Table] = {
    "connected": {m.READY: "starting", m.ERROR: "failed"},
    "starting": {m.STARTED: "serving", m.ERROR: "failed"},
    "serving": {
        m.RESULT: "serving",
        m.ERROR: "serving",
        m.PICKLED: "serving",
        m.LEASED: "serving",
        m.NEED_LEASE: "serving",
        m.NEED_BUFFER: "serving",
        m.SYNCED: "serving",
        m.REFUSED: "serving",
        m.FREE: "serving",
    },
    "failed": {},
}

# The same where there is nothing foreign to begin with: no initializer. It has begun when it says READY.
PLAIN_WORKER: Final[_Table] = {
    "connected": {m.READY: "serving", m.ERROR: "failed"},
    "serving": WORKER["serving"],
    "failed": {},
}


class Conversation:
    """The state of one conversation: `hear` a message, and the table says whether it was allowed."""

    __slots__ = ("_table", "state")

    def __init__(self, table: _Table) -> None:
        self._table = table
        self.state = "connected"

    def hear(self, message: object) -> list[Any]:
        """Check `message` in the present state, move on, and return it as a list. Raises RemoteProtocolError."""
        after = self._table[self.state]
        heard = m.check(message, after)
        self.state = after[heard[0]]
        return heard
