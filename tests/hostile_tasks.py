"""What a hostile worker sends: frames of every wrong kind, seeded. Standard library alone: it is shipped as source."""
# ruff: noqa: D103 - the names say it

import os
import random
import socket
import struct
import sys
import threading
import time

import pool_tasks

# Numbers at which lengths, depths and counts turn over.
_NUMBERS = (
    0, 1, -1, -64, -65, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1,
    -(2**63),
)  # fmt: skip
_RECORD = {
    "kind": "exception", "module": "builtins", "type": "ValueError", "message": "m", "traceback": "", "notes": [],
    "args": ["m"],
}  # fmt: skip
_KINDS = (
    "exception", "denied", "start", "initializer", "unserializable", "unreadable", "memory", "cpu", "", "x" * 300,
)  # fmt: skip
_TYPES = (
    "ValueError", "KeyError", "SystemExit", "KeyboardInterrupt", "ExceptionGroup", "UnicodeDecodeError", "OSError",
    "StopIteration", "Own", "", "é" * 99,
)  # fmt: skip
_WORDS = (b"\x91" * 120, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd4\x01\x00", b"\xd6\xff\0\0\0\1")
_TAGS = (30, 31, 32, 33, 34, 35, 36, 37, 38, 39)


def _packer():
    return sys.modules["msgpack"]


def odd_value(chance, depth=0):
    """Some value that msgpack can say: mostly small, now and then at a limit."""
    kind = chance.randrange(14)
    if kind < 4 or depth > 6:
        return chance.choice(_NUMBERS)
    if kind == 4:
        return chance.choice((None, True, False, 1.5, float("nan"), float("inf"), -0.0))
    if kind == 5:
        return "x" * chance.choice((0, 1, 31, 32, 255, 256, 3000))
    if kind == 6:
        return chance.randbytes(chance.choice((0, 1, 15, 16, 255, 256, 3000)))
    if kind == 7:
        return {odd_key(chance): odd_value(chance, depth + 1) for _ in range(chance.randrange(4))}
    if kind == 8 and chance.random() < 0.05:
        body = chance.randbytes(chance.choice((0, 1, 4, 8, 9, 12, 40)))
        return _packer().ExtType(chance.randrange(-1, 16) & 127, body)
    return [odd_value(chance, depth + 1) for _ in range(chance.randrange(5))]


def odd_key(chance):
    return chance.choice(("form", "size", "kind", "type", "group", "args", "notes", "cause", "x", 1, -1))


def odd_record(chance, depth=0):
    """A failure record, more or less."""
    made = dict(_RECORD)
    for _ in range(chance.randrange(4)):
        field = chance.choice((*made, "cause", "context", "group", "filename", "bases", "denied", "measured", "frames"))
        made[field] = chance.choice((odd_value(chance), chance.choice(_TYPES), chance.choice(_KINDS), ["a", 1, None]))
    if chance.random() < 0.3:
        made["type"] = chance.choice(_TYPES)
    if depth < 3 and chance.random() < 0.2:
        made[chance.choice(("cause", "context"))] = odd_record(chance, depth + 1)
    if depth < 3 and chance.random() < 0.1:
        made["type"], made["group"] = "ExceptionGroup", [odd_record(chance, depth + 1) for _ in range(3)]
    return made


def packed(message):
    try:
        return _packer().packb(message)
    except (OverflowError, ValueError):
        return b"\xc0"


def frame(body):
    return struct.pack(">I", len(body)) + body


def mutated(chance, data):
    """The same bytes, but for a few."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(made) + 1)
        how = chance.randrange(5)
        if how == 0 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif how == 1 and at < len(made):
            made[at] = chance.choice((0, 0x7F, 0x80, 0x90, 0xC1, 0xC7, 0xDC, 0xDD, 0xDF, 0xFF))
        elif how == 2:
            del made[at : at + chance.randrange(1, 9)]
        elif how == 3:
            made[at:at] = made[at : at + chance.randrange(1, 17)] * chance.randrange(1, 4)
        else:
            made[at:at] = chance.choice(_WORDS)
    return bytes(made) or b"\xc0"


def odd_message(chance, task):
    """A message that the table has, with fields that may be anything."""
    tag = chance.choice(_TAGS)
    number = chance.choice((task, task, task, task + 1, task - 1, *_NUMBERS))
    fields = {
        30: [1, []], 31: [number, odd_value(chance)], 32: [number, odd_record(chance)], 33: [number, b"cos\nsystem\n."],
        34: [number, chance.choice(_NUMBERS)], 35: [number, {"form": "bytes", "size": 9}], 36: [number], 37: [], 38: [],
        39: [number, [["fs:read", "open", "/x", "fs:read=/x"]] * chance.choice((0, 1, 65)), 0],
    }[tag]  # fmt: skip
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        if fields and chance.random() < 0.7:
            fields[chance.randrange(len(fields))] = odd_value(chance)
        else:
            fields.append(odd_value(chance))
    return [tag, *fields]


def turn(seed, lethal):
    """From here on this worker answers oddly: as the protocol allows, but for one in `lethal` answers."""
    worker, _ = pool_tasks.worker_and_task()
    chance = random.Random(seed)

    def answer(task, function, payload, flags):
        if chance.randrange(lethal) == 0:
            body = packed(odd_message(chance, task))
            return mutated(chance, body) if chance.random() < 0.5 else body
        if chance.random() < 0.6:
            return packed([31, task, _plain(odd_value(chance))])
        return packed([32, task, odd_record(chance)])

    worker._answer = answer


def _plain(value):
    """Without what the supervisor must take for a violation: that is for the answers which are meant to be one."""
    if isinstance(value, float) or type(value) in (int, str, bytes, bool, type(None)):
        return value
    if type(value) is list:
        return [_plain(each) for each in value]
    if type(value) is dict:
        return {key: _plain(each) for key, each in value.items()}
    return None


def rampage(seed):
    """Write to the channel in one of the ways that no honest worker would, then wait for the end."""
    chance = random.Random(seed)
    worker, task = pool_tasks.worker_and_task()
    fd = pool_tasks.channel_fd()
    way = WAYS[seed % len(WAYS)]
    try:
        way(chance, worker, task, fd)
    except OSError:
        pass  # the other end is closed to us
    time.sleep(30)


def dribble():
    """Write a frame to the channel that has no end, byte by byte."""
    fd = pool_tasks.channel_fd()
    _write(fd, struct.pack(">I", 1 << 16))
    while True:
        _write(fd, b"x")
        time.sleep(0.002)


def _write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _random_bytes(chance, worker, task, fd):
    _write(fd, chance.randbytes(chance.choice((1, 5, 64, 4096, 65536))) + b"\xff" * 8)


def _mutations(chance, worker, task, fd):
    honest = [packed(odd_message(chance, task)) for _ in range(20)]
    _write(fd, b"".join(frame(mutated(chance, body)) for body in honest * 10))


def _tiny_frames(chance, worker, task, fd):
    body = chance.choice((b"\x91\x25", b"\x91\x26", b"\xc0", b"\x90", b"\x93\x1f\x00\xc0"))
    _write(fd, frame(body) * 60_000)


def _doubled_results(chance, worker, task, fd):
    _write(fd, frame(packed([31, task, 7])) * 2000)


def _unknown_tasks(chance, worker, task, fd):
    _write(fd, b"".join(frame(packed([31, task + n, n])) for n in range(1, 2000)))


def _huge_length(chance, worker, task, fd):
    size = chance.choice(((1 << 20) + 1, 60 << 20, 2**31, 2**32 - 1))
    _write(fd, struct.pack(">I", size) + b"\x93\x20" + bytes(400_000))


def _long_and_never_whole(chance, worker, task, fd):
    _write(fd, struct.pack(">I", 1 << 20) + packed([32, task, {}])[:3] + bytes(500_000))
    _write(fd, bytes(1 << 20))


def _deep(chance, worker, task, fd):
    depth = chance.choice((99, 101, 5000, 100_000))
    _write(fd, frame(b"\x93\x1f" + packed(task) + b"\x91" * depth + b"\xc0"))


def _wide(chance, worker, task, fd):
    body = chance.choice((b"\x90", b"\x80", b"\xc0", b"\xa0", b"\xc4\x00"))
    head = b"\x93\x20" + packed(task) + b"\x81\xa1x\xdd" + struct.pack(">I", 900_000)
    _write(fd, frame(head + body * 900_000) * 3)


def _descriptors(chance, worker, task, fd):
    reader, writer = os.pipe()
    with socket.socket(fileno=os.dup(fd)) as channel:
        for _ in range(300):
            numbers = struct.pack("=8i", *[reader, writer] * 4)
            body = frame(packed([37]))
            channel.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])


def _half_and_silence(chance, worker, task, fd):
    _write(fd, struct.pack(">I", 5000) + b"\x93\x1f" + bytes(chance.randrange(4000)))


def _asks_for_ever(chance, worker, task, fd):
    asked = ([34, task, 1 << 16], [36, task], [34, task, 2**62])
    _write(fd, b"".join(map(frame, map(packed, asked))) * 700)


def _says_ready_again(chance, worker, task, fd):
    _write(fd, frame(packed([30, 1, []])) + frame(packed([38])) + frame(packed([32, -1, _RECORD])))


def _after_the_answer(chance, worker, task, fd):
    """Answer as is proper, and go on talking while idle."""

    def talk():
        time.sleep(0.05)
        _write(fd, frame(packed([31, task, 1]))[: chance.choice((3, 6, 99))] * chance.choice((1, 5000)))

    _write(fd, frame(packed([31, task, "answered"])))
    talk()


def _two_writers(chance, worker, task, fd):
    body = b"".join(frame(packed(odd_message(chance, task))) for _ in range(200))
    threads = [threading.Thread(target=_quietly, args=(fd, body)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _quietly(fd, data):
    try:
        _write(fd, data)
    except OSError:
        pass


WAYS = (
    _random_bytes, _mutations, _tiny_frames, _doubled_results, _unknown_tasks, _huge_length, _long_and_never_whole,
    _deep, _wide, _descriptors, _half_and_silence, _asks_for_ever, _says_ready_again, _after_the_answer, _two_writers,
)  # fmt: skip
