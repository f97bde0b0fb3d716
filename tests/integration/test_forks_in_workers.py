"""What workers get by being forked, and what their own children get."""

import os
import random

from ringfence import Pool


def _draw() -> float:
    return random.random()


def _draw_in_child() -> tuple[float, float]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, repr(random.random()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return random.random(), float(os.read(reader, 100))


def test_no_two_workers_draw_the_same() -> None:
    """Each worker has random numbers of its own, and so has what it forks."""
    with Pool(1, isolation="call") as pool:
        assert len({pool.submit(_draw).result() for _ in range(4)}) == 4
    with Pool(1, profile="trusted") as pool:
        own, child = pool.submit(_draw_in_child).result()
        assert own != child
