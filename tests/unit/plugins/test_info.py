"""What there is to know of a loaded plugin."""

import threading

import pytest

from ringfence.plugins.info import PluginInfo, next_plugin_id
from ringfence.plugins.states import LifecycleState


def test_a_snapshot_does_not_change() -> None:
    """Frozen, and comparable."""
    info = PluginInfo(id=1, name="a", version="1.0.0", state=LifecycleState.RUNNING, loaded_at=5.0, pid=7)
    assert (info.reload_count, info.invocation_count, info.last_reload) == (0, 0, None)
    assert info == PluginInfo(id=1, name="a", version="1.0.0", state=LifecycleState.RUNNING, loaded_at=5.0, pid=7)
    with pytest.raises(AttributeError):
        info.pid = 8  # type: ignore[misc]


def test_numbers_are_given_once() -> None:
    """From any thread."""
    given: list[int] = []

    def take() -> None:
        given.extend(next_plugin_id() for _ in range(200))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(given)) == 800
    assert min(given) >= 1
