"""Reads the plain part of TOML that the shipped profiles are written in: importing tomllib takes longer than all of it.

What it does not know for certain it does not read: then tomllib has to.
"""

from typing import Any

__all__ = ["read_plain"]


def read_plain(text: str) -> dict[str, Any] | None:
    """Return what `tomllib.loads` would, or None where that takes more than is known here.

    Known are lines: a comment, ``[table]``, and ``key = value``, the value being a text without escapes, a plain
    decimal number, or a list of such texts, on one line or with a line for each.
    """
    found: dict[str, Any] = {}
    table = found
    listed: list[str] | None = None
    for whole in text.split("\n"):
        line = whole.strip(" \t")
        if not line.isprintable():
            return None
        if not line or line[0] == "#":
            continue
        if listed is not None:
            if line == "]":
                listed = None
            elif line[-1] == "," and (one := _text(line[:-1])) is not None:
                listed.append(one)
            else:
                return None
            continue
        if line[0] == "[":
            name = line[1:-1]
            if line[-1] != "]" or not _is_key(name) or name in found:
                return None
            table = found[name] = {}
            continue
        key, equals, rest = (part.strip(" \t") for part in line.partition("="))
        if not equals or not _is_key(key) or key in table:
            return None
        if rest == "[":
            listed = table[key] = []
            continue
        value = _value(rest)
        if value is None:
            return None
        table[key] = value
    return found if listed is None else None


def _is_key(text: str) -> bool:
    return text.isascii() and text.replace("_", "a").isalpha()


def _value(text: str) -> str | int | list[str] | None:
    if text.isascii() and text.isdigit() and (text == "0" or text[0] != "0"):
        return int(text)
    if text[:1] == "[" and text[-1:] == "]":
        one = _text(text[1:-1])
        return None if one is None else [one]
    return _text(text)


def _text(quoted: str) -> str | None:
    """Return what stands between double quotes, where nothing in between means anything but itself."""
    inner = quoted[1:-1]
    plain = len(quoted) > 1 and quoted[0] == quoted[-1] == '"' and inner.isprintable()
    return inner if plain and '"' not in inner and "\\" not in inner else None
