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


def hold(seconds: float) -> float:
    """Keep a worker busy for so long; return when that began (of time.monotonic, which all processes share)."""
    begun = time.monotonic()
    time.sleep(seconds)
    return begun


def spin(seconds: float) -> None:
    """Compute for so long."""
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        pass
