"""What a host and a plugin's worker, its guest, say to each other once the worker is locked in.

The same frames and the same msgpack as everywhere (docs/reference/plugin-protocol.md), on a socket of their own: a
plugin that is a program in another language reads and writes them too. Messages are lists ``[tag, field, ...]``. The
guest is foreign code: what it says is looked up in `GUEST`, by the state it is in, and checked field by field.
"""

from collections.abc import Mapping
from typing import Any, Final

from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError

__all__ = ["FIELDS", "GUEST", "NAMES", "PROTOCOL_VERSION", "Dialogue", "check_size"]

PROTOCOL_VERSION: Final = 1

# host -> guest
LOAD: Final = 1
CALL: Final = 2
HOST_RESULT: Final = 3
HOST_ERROR: Final = 4
CANCEL: Final = 5
STOP: Final = 6
# guest -> host
HELLO: Final = 20
LOADED: Final = 21
LOAD_FAILED: Final = 22
RESULT: Final = 23
ERROR: Final = 24
HOST_CALL: Final = 25
LOG: Final = 26
METRIC: Final = 27
DENIED: Final = 28
BYE: Final = 29

# The fields after the tag, and how many of them must be there; `object` is any value that the codec takes.
FIELDS: Final[Mapping[int, tuple[tuple[type, ...], int]]] = {
    LOAD: ((dict,), 1),  # the settings
    CALL: ((int, str, list, dict), 4),  # call id (from 1), function, positional and keyword arguments
    HOST_RESULT: ((int, object), 2),  # host call id, value
    HOST_ERROR: ((int, dict), 2),  # host call id, failure record
    CANCEL: ((int,), 1),  # call id: nobody waits for its answer any more
    STOP: ((), 0),  # answered with BYE once the calls that run have been answered
    HELLO: ((int, dict), 2),  # protocol version, who speaks: {"runtime": "python", "version": "3.11.7"}
    LOADED: ((dict,), 1),  # what there is: {"functions": {name: signature or None}}
    LOAD_FAILED: ((dict,), 1),  # failure record
    RESULT: ((int, object), 2),  # call id, value
    ERROR: ((int, dict), 2),  # call id, failure record
    # host call id (from 1), the call it is made in (0: none), function, positional and keyword arguments
    HOST_CALL: ((int, int, str, list, dict), 5),
    # level (0 trace to 4 error), logger, message, {"module", "file", "line", "thread"}
    LOG: ((int, str, str, dict), 4),
    METRIC: ((str, str, float, dict), 4),  # "counter", "gauge" or "histogram", name, value, tags
    DENIED: ((str, str, str, str), 4),  # capability, operation, target, the grant it would have needed
    BYE: ((), 0),
}

NAMES: Final[Mapping[int, str]] = {
    value: name for name, value in globals().items() if type(value) is int and name != "PROTOCOL_VERSION"
}

_TALK: Final = dict.fromkeys((RESULT, ERROR, HOST_CALL, LOG, METRIC, DENIED), "serving") | {BYE: "ended"}
# `(state, tag) -> state after it`, for what a guest says. Besides, an answer must be to a call that waits for one.
GUEST: Final[Mapping[str, Mapping[int, str]]] = {
    "connected": {HELLO: "greeted"},
    # A module may log, and ask its host, while it is being loaded.
    "greeted": {LOADED: "serving", LOAD_FAILED: "ended"} | dict.fromkeys((HOST_CALL, LOG, METRIC, DENIED), "greeted"),
    "serving": _TALK,
    "ended": {},
}

_MOST: Final = 1 << 62

# Frames above this are looked at before they are read: reading takes time that every guest of a host waits for.
_LARGE: Final = 1 << 20
# What may be large: code and descriptions, arguments, results and failures.
_MAY_BE_LARGE: Final = frozenset({LOADED, LOAD_FAILED, RESULT, ERROR, HOST_CALL})


def check_size(body: bytes) -> None:
    """Raise RemoteProtocolError for a frame that is larger than what it says it is can be.

    A large frame must say so in its first two bytes, an array of few elements and a small integer, as packers do.
    """
    if len(body) > _LARGE and (body[0] & 0xF0 != 0x90 or body[1] not in _MAY_BE_LARGE):
        raise RemoteProtocolError(f"a frame of {len(body)} bytes that is no answer and no call")


class Dialogue:
    """The state of the talk with one guest: `hear` a message, and the table says whether it was allowed."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = "connected"

    def read(self, body: bytes, codec: Codec) -> list[Any]:
        """Read a frame and `hear` what it says. Raises as `hear`, and what `codec` raises."""
        check_size(body)
        return self.hear(codec.unpack(body))

    def hear(self, message: object) -> list[Any]:
        """Check `message` in the present state, move on, and return it as a list. Raises RemoteProtocolError."""
        if type(message) is not list or not message or type(message[0]) is not int:
            raise RemoteProtocolError("a message is a list that starts with its tag")
        tag = message[0]
        after = GUEST[self.state].get(tag)
        if after is None:
            name = NAMES.get(tag, "an unknown message")
            raise RemoteProtocolError(f"{name} is not allowed while the guest is {self.state}")
        fields, needed = FIELDS[tag]
        if not needed <= len(message) - 1 <= len(fields):
            raise RemoteProtocolError(f"{NAMES[tag]} has {len(message) - 1} fields, not {len(fields)}")
        for position, value in enumerate(message[1:]):
            kind = fields[position]
            if kind is not object and type(value) is not kind:
                raise RemoteProtocolError(f"{NAMES[tag]} field {position + 1} is a {type(value).__name__}")
            if kind is int and not 0 <= value < _MOST:
                raise RemoteProtocolError(f"{NAMES[tag]} field {position + 1} is out of range")
        self.state = after
        return message
