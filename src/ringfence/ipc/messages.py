"""The vocabulary: every message that crosses a channel, with the type of each field.

A message is a list ``[tag, field, ...]``; the tag is a small integer. Lists, not records, because a pool moves
a hundred thousand of them a second. `check` is the one place where a message from a peer is
judged; after it the fields may be trusted to have their types (not to be true), and integers to be of a size that can
be printed.
"""

from collections.abc import Container, Mapping
from typing import Any, Final

from ringfence.ipc.errors import RemoteProtocolError

__all__ = ["FIELDS", "MAX_ERROR", "MAX_SAID", "NAMES", "PROTOCOL_VERSION", "STACK_SIGNAL", "check", "check_size"]

PROTOCOL_VERSION: Final = 1
# The signal that asks a worker for its stacks: of the real-time ones, which nothing else uses by custom.
STACK_SIGNAL: Final = 61

# supervisor -> zygote
CONFIGURE: Final = 1
SPAWN: Final = 2
RETIRE: Final = 3
GROUP: Final = 5
IMPORT: Final = 6
# host -> nursery; its answers are HELLO, FORKED and FAILED
FORK: Final = 4
# zygote -> supervisor
HELLO: Final = 10
CONFIGURED: Final = 11
SPAWNED: Final = 12
EXITED: Final = 13
FAILED: Final = 14
# nursery -> host
FORKED: Final = 15
# zygote -> supervisor
PROVEN: Final = 17
# supervisor -> worker
START: Final = 20
MODULES: Final = 21
FUNCTION: Final = 22
TASKS: Final = 23
LEASE: Final = 24
BUFFER: Final = 25
SYNC: Final = 26
STOP: Final = 27
FORGET: Final = 28
# worker -> supervisor
READY: Final = 30
RESULT: Final = 31
ERROR: Final = 32
PICKLED: Final = 33
NEED_LEASE: Final = 34
LEASED: Final = 35
NEED_BUFFER: Final = 36
SYNCED: Final = 37
STARTED: Final = 38
REFUSED: Final = 39
FREE: Final = 40

# The fields after the tag; `object` means any value the codec accepts.
FIELDS: Final[Mapping[int, tuple[tuple[type, ...], int]]] = {
    # tag: (fields, how many of them must be there)
    CONFIGURE: ((bytes, dict), 2),  # pickled Plan, settings
    SPAWN: ((int, list), 2),  # worker number, roles of the fds: channel, tokens, stacks; to capture stdout, stderr
    RETIRE: ((), 0),
    IMPORT: ((list,), 1),  # names of library modules for all workers to come
    GROUP: ((str,), 1),  # the folder of the control group that is about to be made: whoever lives last removes it
    FORK: ((int,), 1),  # birth number; fds: the zygote's channel, its stderr
    HELLO: ((int, int), 2),  # protocol version, pid
    CONFIGURED: ((), 0),
    SPAWNED: ((int, int), 2),  # worker number, pid as the host sees it; fd: pidfd
    EXITED: ((int, int, float, int), 4),  # worker number, wait status, CPU seconds, peak RSS in bytes
    FAILED: ((int, dict), 2),  # worker or birth number, or -1 for the zygote itself; failure record
    PROVEN: ((list,), 1),  # what the self-test saw: for each group of attempts, the answers
    FORKED: ((int, int), 2),  # birth number, pid; fd: pidfd
    START: ((dict,), 1),
    MODULES: ((list,), 1),
    FUNCTION: ((int, bytes), 2),
    # [[task, function, payload, flags], ...]; with BUFFERED, a payload that is a number: the arguments lie in the memfd
    # that the worker keeps, so many bytes.
    TASKS: ((list,), 1),
    # Task, bytes[, bytes of the whole memfd, which the worker keeps for later tasks]; fd: the memfd. Without one, and
    # with more than 0 bytes: in the memfd that it keeps. 0 bytes: there is none.
    LEASE: ((int, int, int), 2),  # for the result
    BUFFER: ((int, int, int), 2),  # with the arguments
    FORGET: ((), 0),  # let go of the memfds that it keeps
    SYNC: ((), 0),  # answered with SYNCED once everything before it has been read
    STOP: ((), 0),
    READY: ((int, list), 2),  # protocol version, what came true of the lock-in
    RESULT: ((int, object, int, int), 2),  # task, value[, bytes written so far to stdout, to stderr]
    ERROR: ((int, dict, int, int), 2),  # task (-1: the initializer), failure record[, as above]
    PICKLED: ((int, bytes, int, int), 2),  # as RESULT, only where the profile is trusted and the caller asked
    NEED_LEASE: ((int, int), 2),  # task, bytes
    LEASED: ((int, dict, int, int), 2),  # task, how to read the lease[, as above]
    NEED_BUFFER: ((int, int), 1),  # task[, whether the memfd that it keeps may be written over]
    SYNCED: ((), 0),
    REFUSED: ((int, list, int), 3),  # task, [[capability, operation, target, needs], ...], how many more there were
    FREE: ((), 0),  # before an answer: nothing uses the arguments in the memfd that it keeps any more
    STARTED: ((), 0),  # the initializer has run: from here on, answers
}

NAMES: Final[Mapping[int, str]] = {
    value: name for name, value in globals().items() if type(value) is int and name != "PROTOCOL_VERSION"
}

# Every integer in a message is a number of something, a size, or an exit status (down to minus the last signal).
_LEAST: Final = -64
_MOST: Final = 1 << 63

# Failure records may hold others (exception groups): so many in all, so deep.
MAX_FAILURES: Final = 256
MAX_FAILURE_DEPTH: Final = 16

# Refusals in one REFUSED, of which there is at most one for each task.
MAX_REFUSALS: Final = 64

MAX_ERROR: Final = 1024 * 1024
"""Bytes of the largest frame that a worker says, an ERROR or a REFUSED. Reading one takes a second at worst."""

MAX_SAID: Final = 160 * 1024
"""Bytes of any other frame that a worker says: larger results travel in leases, from 128 KiB on."""

# Task flags, in TASKS.
CHUNK: Final = 1  # the payload is a list of arguments, one for each call; the answer is [values, failure or None]
BUFFERED: Final = 2  # the payload is in a memfd: asked for with NEED_BUFFER, or kept (see TASKS)
PLAIN: Final = 4  # the payload is the list of positional arguments itself, all of them plain
SESSION: Final = 8  # the function's first argument is a socket, to be asked for with NEED_BUFFER
SPREAD: Final = 64  # with CHUNK: each of them is a tuple of arguments
BRIEF: Final = 128  # with CHUNK: the answer may be for the first items only, once these have taken long


def check_size(body: bytes) -> None:
    """Raise RemoteProtocolError for a frame of a worker that is larger than what it says it is can be.

    An ERROR or a REFUSED must say so in its first two bytes: an array of few elements, a small integer, as packed here.
    """
    if len(body) > MAX_SAID and (body[0] & 0xF0 != 0x90 or body[1] not in (ERROR, REFUSED)):
        raise RemoteProtocolError(f"a frame of {len(body)} bytes; large results travel in leases")


def check(message: object, allowed: Container[int]) -> list[Any]:
    """Return `message` if it is well formed and its tag is in `allowed`.

    Raises RemoteProtocolError, with the name of the message and of the field, otherwise.
    """
    if type(message) is not list or not message or type(message[0]) is not int:
        raise RemoteProtocolError("a message is a list that starts with its tag")
    tag = message[0]
    if tag not in FIELDS:
        raise RemoteProtocolError("an unknown message tag")  # unquoted: it may have thousands of digits
    if tag not in allowed:
        raise RemoteProtocolError(f"{NAMES[tag]} is not allowed now")
    fields, needed = FIELDS[tag]
    if not needed <= len(message) - 1 <= len(fields):
        raise RemoteProtocolError(f"{NAMES[tag]} has {len(message) - 1} fields, not {len(fields)}")
    for position, value in enumerate(message[1:]):
        kind = fields[position]
        if kind is not object and type(value) is not kind:
            raise RemoteProtocolError(f"{NAMES[tag]} field {position + 1} is a {type(value).__name__}")
        if kind is int and not _LEAST <= value < _MOST:
            raise RemoteProtocolError(f"{NAMES[tag]} field {position + 1} is out of range")
    return message
