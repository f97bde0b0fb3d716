"""What is free between the objects of a zygote is filled."""

import subprocess
import sys

_POOL = 16 * 1024

# In a fresh interpreter: pools with room here, and none of this process's memory kept.
_PROGRAM = f"""
import sys
sys.path[:0] = {sys.path!r}
from ringfence.worker.filling import fill
kept = [bytes(60) for _ in range(2000)]
del kept[::20]
old = {{id(one) // {_POOL} for one in kept}}
fill() if sys.argv[1] == "fill" else None
new = [bytes(60) for _ in range(50)]
print(sum(id(one) // {_POOL} in old for one in new))
"""


def _in_old_pools(what: str) -> int:
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, what]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_new_objects_lie_in_new_pools() -> None:
    """An object made after `fill` lies where no older one has left room; without it, it does."""
    assert _in_old_pools("nothing") == 50
    assert _in_old_pools("fill") == 0
