"""Whether to look for a message for a moment before sleeping until it comes: learnt from what came of it."""

from typing import Final

from ringfence.ipc.channel import Channel

__all__ = ["LOOK", "Patience"]

LOOK: Final = 100e-6
"""Seconds to look at most. Falling asleep and being woken on another processor cost some 40 us (the half of a bare echo
between two idle ones), the work between an answer and the next question as much again: a pair of processes that find
each other awake is quicker than that, and one that waits longer has wasted twice what sleeping would have cost."""

# After a look that was in vain none is taken so many times at most: where messages always come late, that is 100 us in
# 64 of them.
_MOST_SKIPPED: Final = 63


class Patience:
    """Whether one side of a channel looks for the next message. Starts out knowing that nobody is in a hurry."""

    __slots__ = ("_left", "_skipped")

    def __init__(self) -> None:
        # How many waits after a look in vain are slept through, and how many of them are still to come.
        self._skipped = 1
        self._left = 1

    def look(self, channel: Channel) -> bool:
        """Look for a message in `channel`, if that has been worth it; say whether one came. Only one thread at a time.

        May raise what `Channel.look` raises.
        """
        if not self.wants_to_look():
            return False
        came = channel.look(LOOK)
        self.learn(came)
        return came

    def wants_to_look(self) -> bool:
        """Say whether to look this time; whoever does says afterwards what came of it."""
        if self._left:
            self._left -= 1
            return False
        return True

    def learn(self, came: bool) -> None:
        """Take in whether the message came while it was looked for."""
        if came:
            self._skipped = 0
        else:
            self._skipped = min(2 * self._skipped + 1, _MOST_SKIPPED)
            self._left = self._skipped
