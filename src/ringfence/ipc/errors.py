"""What can go wrong between two processes, and whose fault it is.

``Local`` means our own caller broke a rule: raise and carry on. ``Remote`` means the peer did: the
connection, and with it the worker, is finished. A peer that is gone or slow broke no rule and has errors of
its own.
"""

from ringfence.errors import RingfenceError

__all__ = [
    "ChannelClosed",
    "DeadlineExceeded",
    "FrameTooLarge",
    "LocalProtocolError",
    "NotSerializable",
    "ProtocolError",
    "RemoteProtocolError",
    "UnregisteredType",
]


class ProtocolError(RingfenceError):
    """Somebody broke the rules of the wire; raised only as one of its two kinds, never itself."""

    def __init__(self, *args: object) -> None:
        if type(self) is ProtocolError:
            raise TypeError("a ProtocolError is either Local or Remote: say whose fault it is")
        super().__init__(*args)


class LocalProtocolError(ProtocolError):
    """Our own side asked for something the protocol does not allow; the connection is still good."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol does not allow; the connection must be closed."""


class FrameTooLarge(LocalProtocolError):
    """A frame of ``size`` bytes was to be sent where at most ``limit`` bytes are allowed."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a frame of {size} bytes is larger than the limit of {limit} bytes")
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[type["FrameTooLarge"], tuple[int, int]]:
        return type(self), (self.size, self.limit)


class NotSerializable(LocalProtocolError, TypeError):
    """A value cannot cross the wire exactly as it is.

    ``path`` says where in the value it is (``result['a'][3]``), ``type_name`` what it is (``module.Class``),
    ``reason`` why it cannot go.
    """

    def __init__(self, path: str, type_name: str, reason: str = "this type has no wire format") -> None:
        super().__init__(f"{path} ({type_name}) cannot be serialised: {reason}")
        self.path = path
        self.type_name = type_name
        self.reason = reason

    def __reduce__(self) -> tuple[type["NotSerializable"], tuple[str, str, str]]:
        return type(self), (self.path, self.type_name, self.reason)


class UnregisteredType(LocalProtocolError):
    """A value arrived whose type, ``name``, this side has not registered (or has not installed)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a value of the type {name!r} arrived, which is not registered on this side")
        self.name = name

    def __reduce__(self) -> tuple[type["UnregisteredType"], tuple[str]]:
        return type(self), (self.name,)


class ChannelClosed(RingfenceError, EOFError):
    """The other side is gone, or this side has closed its end; no frame was cut in two."""


class DeadlineExceeded(RingfenceError, TimeoutError):
    """The deadline of a blocking call passed before it was done."""
