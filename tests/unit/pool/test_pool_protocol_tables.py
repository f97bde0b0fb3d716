"""The protocol's tables, every cell; and the one place where a message is judged."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.ipc import messages as m
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.protocol import NURSERY, PLAIN_WORKER, WORKER, ZYGOTE, Conversation

SAMPLES: dict[type, Any] = {int: 1, str: "s", bytes: b"b", float: 1.5, dict: {}, list: [], object: None}


def message(tag: int) -> list[Any]:
    """Return a well-formed message of this tag."""
    fields, needed = m.FIELDS[tag]
    return [tag, *(SAMPLES[kind] for kind in fields[:needed])]


CELLS = [
    pytest.param(table, state, tag, id=f"{name} {state} {m.NAMES[tag]}")
    for name, table in (("nursery", NURSERY), ("zygote", ZYGOTE), ("worker", WORKER))
    for state in table
    for tag in m.FIELDS
]


@pytest.mark.parametrize(("table", "state", "tag"), CELLS)
def test_every_cell(table: Any, state: str, tag: int) -> None:
    """A message that the table allows moves the conversation on; any other is refused and changes nothing."""
    conversation = Conversation(table)
    conversation.state = state
    after = table[state].get(tag)
    if after is None:
        with pytest.raises(RemoteProtocolError, match=m.NAMES[tag]):
            conversation.hear(message(tag))
        assert conversation.state == state
    else:
        assert conversation.hear(message(tag)) == message(tag)
        assert conversation.state == after


@pytest.mark.parametrize(
    "table", [WORKER, PLAIN_WORKER, ZYGOTE, NURSERY], ids=["worker", "plain worker", "zygote", "nursery"]
)
def test_every_state_is_reached_and_known(table: Any) -> None:
    """The tables have no loose ends."""
    reached = {"connected"} | {after for row in table.values() for after in row.values()}
    assert reached == set(table)


def test_no_task_before_the_lock_in() -> None:
    """From a worker's connection to its answers there is no way but READY, and STARTED if it has to begin."""
    assert set(WORKER["connected"]) == {m.READY, m.ERROR}
    assert set(WORKER["starting"]) == {m.STARTED, m.ERROR}
    assert set(PLAIN_WORKER["connected"]) == {m.READY, m.ERROR}
    assert m.STARTED not in PLAIN_WORKER["serving"]


def test_a_failed_conversation_is_over() -> None:
    """After a failure nothing more is believed."""
    assert WORKER["failed"] == {}
    assert ZYGOTE["failed"] == {}


def test_every_tag_has_a_name_and_fields() -> None:
    """Names and fields belong to the same tags, and no tag is used twice."""
    assert set(m.FIELDS) <= set(m.NAMES)
    tags = [value for name, value in vars(m).items() if type(value) is int and name.isupper() and value in m.FIELDS]
    assert len([tag for tag in tags if tag >= 10]) == len({tag for tag in tags if tag >= 10})


@pytest.mark.parametrize("tag", m.FIELDS, ids=m.NAMES.get)
def test_fields_are_counted(tag: int) -> None:
    """One field too few or too many is an error."""
    fields, needed = m.FIELDS[tag]
    whole = [tag, *(SAMPLES[kind] for kind in fields)]
    assert m.check(whole, {tag}) == whole
    with pytest.raises(RemoteProtocolError):
        m.check([*whole, 1], {tag})
    if needed:
        with pytest.raises(RemoteProtocolError):
            m.check(whole[:needed], {tag})


@pytest.mark.parametrize("tag", m.FIELDS, ids=m.NAMES.get)
def test_fields_have_their_exact_types(tag: int) -> None:
    """A value of another type, also of a subclass such as bool for int, is an error that names the field."""
    fields, _ = m.FIELDS[tag]
    for position, kind in enumerate(fields):
        if kind is object:
            continue
        for wrong in (None, True, "text", b"bytes", 1.5, 7, [], {}):
            if type(wrong) is kind:
                continue
            broken = [tag, *(SAMPLES[each] for each in fields)]
            broken[1 + position] = wrong
            with pytest.raises(RemoteProtocolError, match=f"field {position + 1}"):
                m.check(broken, {tag})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(anything | st.lists(anything, max_size=6) | st.tuples(st.sampled_from(sorted(m.FIELDS)), anything).map(list))
def test_anything_is_accepted_or_refused(value: Any) -> None:
    """check returns the message or raises RemoteProtocolError, never anything else."""
    try:
        assert m.check(value, set(m.FIELDS)) is value
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "number", [10**5000, -(10**5000), 1 << 63, -65], ids=["huge", "hugely negative", "64 bits", "below any"]
)
def test_integers_are_bounded(number: int) -> None:
    """What cannot be a number, a size or a status is refused, and not quoted."""
    for message_ in ([number], [m.RESULT, number, None], [m.NEED_LEASE, 1, number]):
        with pytest.raises(RemoteProtocolError):
            m.check(message_, WORKER["serving"])
