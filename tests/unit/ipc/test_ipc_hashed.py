"""Keys that look at all that is there already before they find a place are refused, honest ones in any number taken."""

import random
import struct
from zoneinfo import available_timezones

import pytest

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError


def slow_keys(count: int) -> list[int]:
    """Return integers that fill a dict of CPython's in quadratic time; their hashes, which they are, all differ.

    Four fifths lie one behind the other on the path that a search takes once the hash is used up; the others have
    hashes that lead to that path's beginning, over places that are taken.
    """
    size = 8
    while size * 2 // 3 < count:
        size *= 2
    mask = size - 1
    path, at = [], 0
    for _ in range(count * 4 // 5):
        path.append(at)
        at = (5 * at + 1) & mask
    place = {slot: index for index, slot in enumerate(path)}
    taken = set(path)
    chance = random.Random(1)
    keys = list(path)
    while len(keys) < count:
        key = rest = chance.getrandbits(mask.bit_length() + 8)
        slot = key & mask
        while slot in taken and rest:
            rest >>= 5
            slot = (5 * slot + rest + 1) & mask
        if slot in taken and place.get(slot, size) < len(path) // 3:
            keys.append(key)
            taken.add(at)
            at = (5 * at + 1) & mask
    return keys


def packed(keys: list[int]) -> bytes:
    """Return a map of these keys to 1."""
    entries = b"".join(struct.pack(">BQB", 0xCF, key, 1) for key in keys)
    return b"\xdf" + struct.pack(">I", len(keys)) + entries


def test_keys_that_were_made_to_be_slow_are_refused() -> None:
    """87,000 of them take six seconds in a dict, and honest ones 10 ms."""
    with pytest.raises(RemoteProtocolError, match="slow"):
        Codec().unpack(packed(slow_keys(87_381)))


def test_honest_keys_are_taken_in_any_number() -> None:
    """Whatever their type."""
    codec = Codec()
    chance = random.Random(1)
    numbers = [chance.getrandbits(60) for _ in range(100_000)]
    for keys in (numbers, range(100_000), map(float, numbers), map(str, range(5000)), [(n, n) for n in range(5000)]):
        value = dict.fromkeys(keys, 1)
        assert codec.unpack(codec.pack(value)) == value
        assert codec.unpack(codec.pack(set(value))) == set(value)


def test_one_key_many_times_is_refused() -> None:
    """Honest senders have dicts; and what each entry replaces costs its making."""
    with pytest.raises(RemoteProtocolError, match="equal hashes"):
        Codec().unpack(packed([1] * 5000))


def test_each_zone_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is read when it turns up for the first time, however many others come in between."""
    import zoneinfo

    from ringfence.ipc import ext_types

    read = []
    plain = zoneinfo.ZoneInfo
    monkeypatch.setattr(zoneinfo, "ZoneInfo", lambda key: (read.append(key), plain(key))[1])
    ext_types._zone.cache_clear()
    names = sorted(name for name in available_timezones() if len(name) < 20)[:30]
    for _ in range(3):
        for name in names:
            ext_types.DECODERS[7](bytes(8) + b"Z" + name.encode())
    assert read == names
    ext_types._zone.cache_clear()
