"""Bytes and messages between two processes; knows no worker and no policy."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringfence.ipc.channel import Channel, pipe
    from ringfence.ipc.codec import Codec
    from ringfence.ipc.errors import (
        ChannelClosed,
        DeadlineExceeded,
        FrameTooLarge,
        LocalProtocolError,
        NotSerializable,
        ProtocolError,
        RemoteProtocolError,
        UnregisteredType,
    )
    from ringfence.ipc.framing import FrameDecoder
    from ringfence.ipc.limits import WireLimits
    from ringfence.ipc.types import TypeRegistry

__all__ = [
    "Channel",
    "ChannelClosed",
    "Codec",
    "DeadlineExceeded",
    "FrameDecoder",
    "FrameTooLarge",
    "LocalProtocolError",
    "NotSerializable",
    "ProtocolError",
    "RemoteProtocolError",
    "TypeRegistry",
    "UnregisteredType",
    "WireLimits",
    "pipe",
]

_HOMES = {
    "Channel": "channel",
    "Codec": "codec",
    "FrameDecoder": "framing",
    "TypeRegistry": "types",
    "WireLimits": "limits",
    "pipe": "channel",
}


def __getattr__(name: str) -> object:
    # Lazy: a worker imports the modules it needs and pays for no other.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
