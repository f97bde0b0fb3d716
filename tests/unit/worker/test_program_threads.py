"""What passes on between a program and its host: where there is no memory for a thread of that, it says so."""

import signal
import socket
import subprocess
import threading
from typing import Any

import pytest

from ringfence.ipc.channel import Channel
from ringfence.worker import program


def test_a_program_ends_for_which_nobody_could_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that never begins (python/cpython#140746) is an error, and no wait until the load's time is up."""
    name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
    plain = getattr(threading, name)

    def stillborn(bootstrap: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(lambda *_: None, *args, **kwargs)

    near, far = socket.socketpair()
    ours, theirs = socket.socketpair()
    child = subprocess.Popen(["sleep", "60"])
    try:
        with near, far, theirs, Channel(ours.detach(), blocking=True) as channel, monkeypatch.context() as patch:
            relay = program._Relay(channel, near, child.pid)
            patch.setattr(threading, name, stillborn)
            patch.setattr(program, "_BEGINNING", 0.01)
            with pytest.raises(MemoryError, match="no memory for a thread"):
                relay.start()
        assert child.wait(20) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
        for thread in list(threading._limbo):  # type: ignore[attr-defined]  # CPython forgets them there
            del threading._limbo[thread]  # type: ignore[attr-defined]
