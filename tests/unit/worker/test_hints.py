"""What stands in for typing at a zygote's start: no library ever sees it, and what is made with it is as it was."""

import subprocess
import sys
import typing

import pytest

from ringfence.worker import hints

_PROGRAM = f"""
import sys
sys.path[:] = {sys.path!r}
from ringfence.worker.hints import make_room, stand_in
stand_in()
from ringfence.sandbox import _syscalls, features, id_maps
from ringfence.worker.zygote import main
from ringfence.worker import hints
stood_in = sys.modules.get("typing") is hints
make_room()
assert stood_in and "typing" not in sys.modules
for name, module in list(sys.modules.items()):
    if name != "__main__" and not name.startswith("ringfence"):
        for value in vars(module).values():
            assert getattr(value, "__module__", None) != hints.__name__, (name, value)
import typing
assert typing is not hints and typing.get_type_hints
from ringfence.sandbox.landlock import Access, PathGrant
from ringfence.ipc.limits import WireLimits
assert WireLimits(max_fds=1)._replace(max_fds=2).max_fds == 2 and issubclass(WireLimits, tuple)
import pickle
print(pickle.dumps((PathGrant("/a", Access.READ), WireLimits(max_fds=7)), 5).hex())
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="typing is imported from there on")
def test_no_library_sees_it_and_records_are_the_same() -> None:
    """All that a zygote imports at first works with it; tuples made there and here can be exchanged."""
    import pickle

    from ringfence.ipc.limits import WireLimits
    from ringfence.sandbox.landlock import Access, PathGrant

    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    grant, limits = pickle.loads(bytes.fromhex(done.stdout))
    assert (type(grant), grant, limits) == (PathGrant, PathGrant("/a", Access.READ), WireLimits(max_fds=7))


def test_tuples_with_names_are_as_typing_makes_them() -> None:
    """Fields, defaults, methods, texts: whatever stands in the class."""

    def made(base: typing.Any) -> typing.Any:
        class Point(base):  # type: ignore[misc]
            """Where."""

            x: int
            y: int = 2

            def total(self) -> int:
                return self.x + self.y

        return Point

    ours, theirs = made(hints.NamedTuple), made(typing.NamedTuple)
    for cls in (ours, theirs):
        assert cls(1) == (1, 2) and cls(x=3, y=4).total() == 7 and cls.__doc__ == "Where."
        assert repr(cls(1)) == "Point(x=1, y=2)" and cls._fields == ("x", "y") and not hasattr(cls(1), "__dict__")
        assert cls(1)._replace(y=5).y == 5 and type(cls(1)._replace(y=5)) is cls
        with pytest.raises(TypeError):
            cls()
    assert ours.__module__ == theirs.__module__ and ours.__qualname__ == theirs.__qualname__


def test_it_stays_away_where_typing_is_there_already() -> None:
    """A process that has imported typing keeps it."""
    hints.stand_in()
    assert sys.modules["typing"] is typing
    hints.make_room()
    assert sys.modules["typing"] is typing


def test_who_needs_more_of_typing_finds_it() -> None:
    """A name that is not here is typing's own, and from then on all are."""
    program = (
        "from ringfence.worker.hints import make_room, stand_in; stand_in(); from typing import Final, Protocol\n"
        "import sys, typing; from ringfence.worker import hints\n"
        "assert Final is hints.Final and Protocol is typing.Protocol and typing is not hints; make_room()\n"
        "from typing import Final as own; assert own is typing.Final is not hints.Final; import typing as t; t.List"
    )
    command = f"import sys; sys.path[:] = {sys.path!r}; {program}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
