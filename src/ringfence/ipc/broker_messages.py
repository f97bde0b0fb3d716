"""What a worker asks of the broker in the supervisor, and what that answers: the words and their limits."""

import _socket
from typing import Any, Final, NamedTuple

from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.limits import WireLimits

__all__ = [
    "ADDRESSES",
    "ANSWER_LIMITS",
    "CONNECT",
    "DUAL_STACK",
    "FAILED",
    "LISTEN",
    "LOOK_UP",
    "REFUSED",
    "REQUEST_LIMITS",
    "REUSE_ADDRESS",
    "SOCKET",
    "UNRESOLVED",
    "Request",
    "read_request",
]

# From the worker: [tag, id, host, port, family, flags].
LOOK_UP: Final = 1
"""The addresses of `host`, please; `port` is what they are for, and only words a refusal."""
CONNECT: Final = 2
"""A socket that is being connected to `host` (a name or an address), please."""
LISTEN: Final = 3
"""A socket that listens at `host`, please; `flags` are REUSE_ADDRESS and DUAL_STACK."""

# To the worker: [tag, id, ...].
ADDRESSES: Final = 11
"""[..., [[family, address], ...]]."""
SOCKET: Final = 12
"""[..., whether the connection is still being made], and the socket with it. It does not block."""
FAILED: Final = 13
"""[..., errno, text]: the kernel's answer."""
UNRESOLVED: Final = 14
"""[..., code, text]: the answer of getaddrinfo."""
REFUSED: Final = 15
"""[..., the grant that would have allowed it, the grants that are there, a sentence]."""

REUSE_ADDRESS: Final = 1
DUAL_STACK: Final = 2

# A request is a name of 253 characters and a few numbers. (Descriptors only leave; the kernel drops what comes.)
REQUEST_LIMITS: Final = WireLimits(max_frame=1024, max_depth=2, max_items=64, max_fds=1)
# An answer may list grants and addresses.
ANSWER_LIMITS: Final = WireLimits(max_frame=64 * 1024, max_depth=8, max_items=8192, max_fds=16)

_FAMILIES: Final = (0, _socket.AF_INET, _socket.AF_INET6)
_MOST_ID: Final = 2**31


class Request(NamedTuple):
    """One request, its fields in range. `host` is any text of at most 256 characters."""

    tag: int
    id: int
    host: str
    port: int
    family: int
    flags: int


def read_request(message: Any) -> Request:
    """Return what a worker sent, which may be anything, as a request.

    Raises:
        RemoteProtocolError: it is none.
    """
    if type(message) is not list or len(message) != 6:
        raise RemoteProtocolError("a request to the broker is a list of six")
    tag, number, host, port, family, flags = message
    if type(host) is not str or len(host) > 256:
        raise RemoteProtocolError("the broker was asked for no host")
    if any(type(value) is not int for value in (tag, number, port, family, flags)):
        raise RemoteProtocolError("a request to the broker is made of numbers")
    if tag not in (LOOK_UP, CONNECT, LISTEN) or not 0 <= number < _MOST_ID:
        raise RemoteProtocolError(f"the broker knows no request {tag}")
    if not 0 <= port <= 65535 or family not in _FAMILIES or (tag != LOOK_UP and not family):
        raise RemoteProtocolError("the broker was asked for a port or family that there is not")
    if flags & ~(REUSE_ADDRESS | DUAL_STACK) or (flags and tag != LISTEN):
        raise RemoteProtocolError("the broker was asked for options that there are not")
    return Request(tag, number, host, port, family, flags)
