"""What travels in memfds, on our side: counted, and given back whatever happens."""

import os
import signal
import threading

import pytest

from ringfence.pool import transfer
from ringfence.pool.serialise import Shipment


@pytest.mark.parametrize("error", [OSError(24, "no"), MemoryError(), KeyboardInterrupt()])
def test_a_parcel_that_fails_midway_is_not_counted(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all later ones would wait in plain memory."""
    before = transfer._held

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_seal", fail)
        if isinstance(error, OSError):
            transfer.Parcel(Shipment(None, b"x", ())).close()
        else:
            with pytest.raises(type(error)):
                transfer.Parcel(Shipment(None, b"x", ()))
    assert transfer._held == before
    parcel = transfer.Parcel(Shipment(None, b"x", ()))
    assert transfer._held == before + 1
    parcel.close()
    assert transfer._held == before


def test_a_forked_child_can_make_parcels() -> None:
    """A thread of the parent's may hold the lock at the fork, and is not there to release it."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transfer._held_lock:
            taken.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(30)
    pid = os.fork()
    if not pid:
        signal.alarm(5)
        transfer.Parcel(Shipment(None, b"x", ())).close()
        os._exit(0)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
