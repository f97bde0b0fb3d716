"""Sizes, durations and counts, as people write them: `"256MiB"`, `"1.5s"`."""

import math
import re
from collections.abc import Mapping
from typing import Final

from ringfence.sandbox.errors import PolicyError

__all__ = ["parse_count", "parse_duration", "parse_size", "read_number"]

# K, M, G, T alone are binary, as for docker, systemd and ulimit; MB and GB are decimal, as for disks and SI.
_SIZE_UNITS: Final[Mapping[str, int]] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_TIME_UNITS: Final[Mapping[str, float]] = {
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_TIME_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|min|s|m|h|d)?\s*", re.IGNORECASE)

# Characters of a number that is not out of range, with room for leading zeros and underscores.
_MOST_DIGITS: Final = 64
# The kernel's rlimits are 64-bit; one bit is left so that a baseline can be added to a limit without
# overflow.
_MOST_BYTES: Final = 2**62
# Ten years: time limits are added to clock readings and handed to poll() in milliseconds.
__MOST_SECONDS: Final = 10 * 365 * 86400.0


def parse_size(value: int | float | str, *, what: str = "size") -> int:
    """Return a size in bytes.

    Args:
        value: a whole number of bytes, or text such as ``"256MiB"``, ``"1.5GB"``, ``"64k"``. KiB, MiB, GiB,
            TiB and bare K, M, G, T are powers of 1024; kB, MB, GB, TB are powers of 1000. Case does not
            matter.
        what: the name to blame in the error.

    Raises:
        PolicyError: it is no size, negative, or beyond 2**62.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        unit = _SIZE_UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise PolicyError(
                f"{what}: {value!r} is not a size; write bytes or text such as '256MiB' or '1.5GB'"
            )
        # int() of more than 4,300 digits raises; what is that long is out of range anyway.
        exact = "." not in match[1] and len(match[1]) <= _MOST_DIGITS
        size = int(match[1]) * unit if exact else float(match[1]) * unit
    else:
        size = read_number(value, what, "a size; write bytes or text such as '256MiB'")
    if not 0 <= size <= _MOST_BYTES:
        raise PolicyError(f"{what}: {value!r} is out of range (0 to 4 EiB)")
    if size != int(size) and not isinstance(value, str):
        raise PolicyError(f"{what}: {value!r} is not a whole number of bytes")
    return int(size)


def parse_duration(value: int | float | str, *, what: str = "duration") -> float:
    """Return a duration in seconds.

    Args:
        value: seconds, or text such as ``"1.5s"``, ``"100ms"``, ``"2m"``, ``"1h30m"`` (units us, ms, s, m or
            min, h, d; a bare number is seconds).
        what: the name to blame in the error.

    Raises:
        PolicyError: it is no duration, not positive, or beyond ten years.
    """
    if isinstance(value, str):
        seconds = _parse_time_text(value, what)
    else:
        seconds = float(read_number(value, what, "a duration; write seconds or text such as '1.5s'"))
    if not 0 < seconds <= __MOST_SECONDS:
        raise PolicyError(f"{what}: {value!r} is out of range (more than 0, at most ten years)")
    return seconds


def _parse_time_text(text: str, what: str) -> float:
    parts = _TIME_PART.findall(text.strip())
    rest = _TIME_PART.sub("", text.strip())
    # A bare number is seconds, but only alone: "1h30" could be minutes or seconds.
    ambiguous = len(parts) > 1 and any(not unit for _, unit in parts)
    if not parts or rest or ambiguous:
        raise PolicyError(
            f"{what}: {text!r} is not a duration; write seconds or text such as '100ms', '1.5s', '2m'"
        )
    return sum(float(number) * _TIME_UNITS[unit.lower() or "s"] for number, unit in parts)


def parse_count(value: int | float | str, *, what: str = "count") -> int:
    """Return how many of something, from 0 up.

    Args:
        value: a whole number, or its digits as text, which may be grouped by underscores.
        what: the name to blame in the error.

    Raises:
        PolicyError: it is no whole number, negative, or beyond 2**62.
    """
    if isinstance(value, str):
        value = value.strip()  # of more than int() strips
        if not re.fullmatch(r"[0-9]+(?:_[0-9]+)*", value, re.ASCII):
            raise PolicyError(f"{what}: {value!r} is not a whole number")
        number: int | float = int(value) if len(value) <= _MOST_DIGITS else math.inf
    else:
        number = read_number(value, what, "a whole number")
    if number == math.inf or number != int(number) or not 0 <= number <= _MOST_BYTES:
        raise PolicyError(f"{what}: {value!r} is not a whole number from 0 up")
    return int(number)


def read_number(value: object, what: str, wanted: str) -> int | float:
    """Return `value` if it is a finite number.

    Args:
        value: what somebody gave.
        what: the name to blame in the error, and `wanted` what should stand there.

    Raises:
        PolicyError: it is anything else.
    """
    # bool is an int: Limits(memory=True) is a slip, never one byte.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(f"{what}: {value!r} is not {wanted}")
    if not math.isfinite(value):
        raise PolicyError(f"{what}: {value!r} is not finite; None means unlimited")
    return value
