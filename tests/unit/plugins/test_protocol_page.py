"""The page on the protocol says what the code does: its tables are read and compared."""

import re
from pathlib import Path

from ringfence.ipc import guest_messages as g
from ringfence.ipc.limits import DEFAULT_LIMITS
from ringfence.worker.json_wire import _FROM_PROGRAM, _SCALARS, _TO_PROGRAM

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "plugin-protocol.md").read_text()
TYPES = {"map": dict, "text": str, "integer": int, "array": list, "float": float, "value": object}


def rows(columns: int) -> list[list[str]]:
    """Return the rows of every table with so many columns."""
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line[:1] == "|"]
    return [row for row in found if len(row) == columns]


def test_each_message_is_listed_with_its_fields() -> None:
    """Tags, names, directions and the types of fields, in order, and no message more or less."""
    listed = {}
    for tag, name, sender, fields in rows(4):
        if tag.isdecimal():
            words = re.findall(r"(?:: |, )(map|text|integer|array|float|value)(?=,|$)", f", {fields.strip(' |')}")
            listed[int(tag)] = (name, sender, tuple(TYPES[word] for word in words))
    assert listed == {
        tag: (g.NAMES[tag], "host" if tag < g.HELLO else "plugin", fields) for tag, (fields, _) in g.FIELDS.items()
    }


def test_the_state_table_is_the_codes() -> None:
    """State, what may be said in it, and the state after it."""
    listed = {
        (state, name): after
        for state, names, after in rows(3)
        if state in g.GUEST
        for name in names.split(", ")
    }
    assert listed == {(state, g.NAMES[tag]): after for state, table in g.GUEST.items() for tag, after in table.items()}


def test_every_line_of_json_is_shown() -> None:
    """Each type of message, both ways, and each type of value."""
    shown = {row[0] for row in rows(2)}
    assert set(_FROM_PROGRAM) <= shown
    assert len(_TO_PROGRAM) == len(shown & {"load", "call", "host_result", "host_error", "cancel", "stop"})
    for kind in (*_SCALARS, "List", "Map"):
        assert f'{{"{kind}":' in PAGE


def test_the_numbers_are_the_codes() -> None:
    """Limits and the version as they are."""
    assert f"{DEFAULT_LIMITS.max_frame:,}" in PAGE
    assert f"| containers inside containers, in one message | {DEFAULT_LIMITS.max_depth} |" in PAGE
    assert f"The version is one number, now {g.PROTOCOL_VERSION}." in PAGE
