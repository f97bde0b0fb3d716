"""Large arguments and results, which travel in memfds beside the messages: the supervisor's side."""

import os
from collections.abc import Mapping
from typing import Any

from ringfence.ipc import buffers, parcel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError
from ringfence.ipc.large import restore
from ringfence.pool.serialise import Shipment

__all__ = ["LARGE", "Lease", "argument_buffer"]

# Payloads from here on travel in a memfd. A pipe's buffer is 208 KiB (net.core.wmem_default): a larger message would
# have to be written in turns.
LARGE = 128 * 1024


def argument_buffer(shipment: Shipment) -> int:
    """Return a sealed memfd with the shipment's payload and buffers; the caller closes it. Raises OSError."""
    pieces = [memoryview(shipment.payload), *shipment.buffers]
    header, offsets, size = parcel.layout([piece.nbytes for piece in pieces])
    return buffers.create_sealed_from(size, [(0, header), *zip(offsets, pieces, strict=True)])


class Lease:
    """A memfd lent to a worker for one result."""

    __slots__ = ("fd", "size", "task")

    def __init__(self, task: int, size: int) -> None:
        """Create it, `size` bytes long. Raises OSError."""
        self.task = task
        self.size = size
        self.fd = buffers.create_lease(size)

    def redeem(self, form: Mapping[str, Any], codec: Codec) -> Any:
        """Return the value that the worker wrote, and close the lease. Raises RemoteProtocolError."""
        try:
            if form.get("size") != self.size:
                raise RemoteProtocolError("a lease used for another size than was asked for")
            return restore(form, self.fd, self.size, codec)
        finally:
            self.close()

    def close(self) -> None:
        """Close our fd; the memory goes when the worker's is closed too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
