"""Events of watched files."""

import copy
import pickle
from pathlib import Path

import pytest

from ringfence.plugins import watch_events
from ringfence.plugins.watch_events import Created, Deleted, Modified, Removed, Renamed, WatchEvent

EVENTS = [
    Created(Path("/p/a.py")),
    Modified(Path("/p/a.py")),
    Removed(Path("/p/a.py")),
    Renamed(Path("/q"), Path("/r")),
]


def kind(event: WatchEvent) -> str:
    """Take an event apart."""
    match event:
        case WatchEvent.Created(path=path):
            return f"created {path}"
        case WatchEvent.Modified(path=path):
            return f"modified {path}"
        case WatchEvent.Removed(path):
            return f"removed {path}"
        case WatchEvent.Renamed(from_path=old, to=new):
            return f"renamed {old} {new}"
    return "none"


def test_kinds_match_as_attributes() -> None:
    """The kinds are reached through WatchEvent in a match, with fields by name and by place."""
    assert [kind(event) for event in EVENTS] == [
        "created /p/a.py",
        "modified /p/a.py",
        "removed /p/a.py",
        "renamed /q /r",
    ]


def test_every_kind_is_a_watch_event() -> None:
    """isinstance holds, and the path of a renamed file is where it is now."""
    assert all(isinstance(event, WatchEvent) for event in EVENTS)
    assert EVENTS[3].path == Path("/r")
    assert WatchEvent.Deleted is Deleted is Removed is WatchEvent.Removed
    assert repr(WatchEvent.Modified(path=Path("a"))).startswith("WatchEvent.Modified(path=")


@pytest.mark.parametrize("event", EVENTS, ids=repr)
def test_events_are_values(event: WatchEvent) -> None:
    """Equal when their fields are, hashable, frozen, copied and pickled."""
    assert copy.copy(event) == event == pickle.loads(pickle.dumps(event))
    assert len({event, copy.copy(event)}) == 1
    with pytest.raises(AttributeError):
        event.path = Path("/other")  # type: ignore[misc]


def test_extensions_match_with_and_without_dot() -> None:
    """One extension or several, any case; a name without one matches none."""
    event = Modified(Path("/p/Main.PY"))
    assert event.matches_extension("py")
    assert event.matches_extension([".toml", ".Py"])
    assert not event.matches_extension(["p", "toml"])
    assert not Modified(Path("/p/py")).matches_extension("py")


def test_module_exports_what_it_says() -> None:
    """Every name of __all__ is there."""
    assert all(hasattr(watch_events, name) for name in watch_events.__all__)
