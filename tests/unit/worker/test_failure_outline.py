"""What a worker says of a failure when it cannot import what formats tracebacks."""

import sys

import pytest

from ringfence.ipc.codec import Codec
from ringfence.worker import failure


def _nested(depth: int) -> None:
    if depth:
        _nested(depth - 1)
    raise KeyError("deep")


@pytest.mark.parametrize("depth", [2, 200])
def test_a_traceback_without_its_module(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    """Where a task left no descriptor for the import, files, lines and names of the innermost frames are told."""
    monkeypatch.setitem(sys.modules, "traceback", None)
    with pytest.raises(KeyError) as caught:
        _nested(depth)
    lines = failure.record(caught.value, Codec())["traceback"].splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[-1] == "KeyError: 'deep'"
    frames = lines[1:-1]
    assert len(frames) == min(depth + 2, 40)
    assert frames[-1].startswith(f'  File "{__file__}", line ') and frames[-1].endswith(", in _nested")
