"""When a side of a channel looks for the next message, and when it sleeps until it comes."""

import os
import socket
import time

from ringfence.ipc.channel import Channel, pipe
from ringfence.ipc.patience import LOOK, Patience


def looks(patience: Patience, waits: int, *, came: bool) -> int:
    """Return how many of `waits` waits began with a look, each with the same end."""
    looked = 0
    for _ in range(waits):
        if patience.wants_to_look():
            looked += 1
            patience.learn(came)
    return looked


def test_who_finds_messages_looks_for_each() -> None:
    """But for the first wait: a worker that is used once has nothing to look for."""
    patience = Patience()
    assert looks(patience, 1, came=True) == 0
    assert looks(patience, 100, came=True) == 100


def test_who_looks_in_vain_hardly_looks() -> None:
    """In the long run once in 64 waits, so that waiting for what comes late costs next to nothing."""
    patience = Patience()
    looks(patience, 200, came=False)
    assert looks(patience, 640, came=False) == 10


def test_one_message_in_time_is_enough_to_look_again() -> None:
    """A caller who was away comes back to a quick pool within 64 calls."""
    patience = Patience()
    looks(patience, 200, came=False)
    assert looks(patience, 64 + 100, came=True) >= 100


def test_looking_is_learnt_from() -> None:
    """Each look says what came of it, and the next waits follow from that."""
    near, far = pipe()
    patience = Patience()
    with near, far:
        assert not patience.look(near)  # the first wait: there is none
        far.send(b"x")
        assert [patience.look(near) for _ in range(3)] == [True] * 3
        near.recv()
        assert not patience.look(near)
        far.send(b"x")
        assert not patience.look(near)  # none again, after one in vain
        assert patience.look(near)


def test_a_look_sees_what_is_there_and_reads_nothing() -> None:
    """Bytes of the peer, and the end of the stream."""
    near, far = pipe()
    with near:
        far.send(b"x")
        assert near.look(1.0)
        assert near.recv() == b"x"
        far.close()
        assert near.look(1.0)


def test_a_look_ends_by_itself() -> None:
    """Where nothing comes, after the time that it was given."""
    near, far = pipe()
    with near, far:
        began = time.process_time()
        assert not near.look(LOOK)
        assert time.process_time() - began < 1.0


def test_whose_processor_was_taken_away_has_looked_in_vain() -> None:
    """Most likely the peer had to wait for it: it would have been quicker if we had slept."""

    class Slow:
        """A poll object that the kernel lets run for one call in 20 ms."""

        def __init__(self) -> None:
            self.calls = 0

        def poll(self, timeout: int) -> list[tuple[int, int]]:
            """Find something at the second look."""
            self.calls += 1
            time.sleep(0.02)
            return [(0, 1)] if self.calls > 1 else []

    near, far = socket.socketpair()
    with far, Channel(os.dup(near.fileno())) as channel:
        near.close()
        channel._poll = Slow()  # type: ignore[assignment]
        assert not channel.look(1.0)
