"""Arguments for a plugin's function from text, and its results as text."""

import base64
import datetime
import enum
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

import typer

__all__ = ["as_data", "as_text", "keywords", "value_of"]

# What can only be meant as JSON: a slip in it is an error, not a text.
_JSON_ONLY: Final = ('"', "{", "[")

# Beyond some thousand digits Python refuses to write an integer in decimals.
_MOST_BITS: Final = 10_000


def value_of(text: str, what: str = "ARGS") -> Any:
    """Return the value that an argument means: JSON, and text where it is none. Raises BadParameter."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith(_JSON_ONLY):
            raise typer.BadParameter(
                f"{text[:80]!a} begins as JSON and is none: {error}; a text may be quoted as JSON: '\"...\"'",
                param_hint=what,
            ) from None
        return text


def _no_number(_: str) -> NoReturn:
    raise ValueError("no number of JSON")


def keywords(given: Iterable[str] | None) -> dict[str, Any]:
    """Return what several ``name=value`` mean. Raises BadParameter."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{text[:80]!a} is not NAME=VALUE", param_hint="--kwarg")
        if name in found:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--kwarg")
        found[name] = value_of(value, f"--kwarg {name}")
    return found


def as_data(value: Any) -> Any:
    """Return a result as what JSON has.

    Bytes become base64, dates ISO 8601, huge integers hexadecimal, tuples and sets lists, whatever else there is text.

    Results have come over the wire, whose limits hold for them: they are not nested beyond measure.
    """
    match value:
        case enum.Enum():
            return as_data(value.value)
        case int() if value.bit_length() > _MOST_BITS:
            return hex(value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Mapping():
            return {key if isinstance(key, str) else str(as_data(key)): as_data(each) for key, each in value.items()}
        case list() | tuple():
            return [as_data(each) for each in value]
        case set() | frozenset():
            return sorted((as_data(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
    plain = getattr(value, "tolist", None)  # NumPy's
    return as_data(plain()) if callable(plain) else str(value)


def as_text(value: Any) -> str | None:
    """Return what a terminal shows of a result: a text as it is, nothing for None, anything else as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return value
    return json.dumps(as_data(value), indent=2, ensure_ascii=False)
