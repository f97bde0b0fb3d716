"""The functions that pools run here. Importable, because most pools take nothing else."""

import time
from typing import Any


def increment(x: int) -> int:
    return x + 1


def echo(value: Any) -> Any:
    return value


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spin(seconds: float) -> None:
    """Compute for so long."""
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        pass
