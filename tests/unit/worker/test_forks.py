"""What is wanted after each fork: not by a zygote's children, but by theirs."""

import subprocess
import sys

PROGRAM = """
import os
from ringfence.worker import forks

def draws():
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, repr(random.random()).encode())
        os._exit(0)
    os.wait()
    return os.read(reader, 100)

forks.hold_back()
import random, threading
kept = draws() == draws()
forks.give_back()
print(kept, draws() == draws())
"""


def test_held_back_and_given_back() -> None:
    """A child of a process that holds back finds everything as it was; after it is given back, a child is seeded."""
    ended = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert ended.stdout.split() == ["True", "False"]
