"""Large results in a lease: how a value is laid out there, and how it is read again.

Three forms: "bytes" (the value is the buffer), "array" (the buffer is the elements of a NumPy array, whose head says
the rest), "frame" (the buffer is the value as the codec packs it).
"""

from collections.abc import Callable, Mapping
from typing import Any

from ringfence.ipc import buffers
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError, UnregisteredType

__all__ = ["lay_out", "restore", "restore_kept"]


def lay_out(value: object, codec: Codec) -> tuple[dict[str, Any], Any]:
    """Return the form of `value` and its bytes (a buffer; not a copy where that can be). Raises NotSerializable."""
    if type(value) is bytes:
        return {"form": "bytes"}, value
    if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        from ringfence.ipc.ext_types import Unencodable
        from ringfence.ipc.numpy_types import array_form

        try:
            head, data = array_form(value)
            return {"form": "array", "head": head}, data
        except Unencodable:
            pass  # packing it says why it cannot be sent
    return {"form": "frame"}, codec.pack(value, name="result")


def restore_kept(
    form: Mapping[str, Any], lease: memoryview, codec: Codec, bytes_of: Callable[[memoryview], bytes]
) -> Any:
    """Return the value of this form from a lease whose borrower may write to it at any time: it is copied first.

    `bytes_of` makes bytes of it. Raises as `restore` does.
    """
    kind, head = form.get("form"), form.get("head")
    if type(kind) is not str:
        raise RemoteProtocolError("a lease without a form")
    if kind == "bytes":
        return bytes_of(lease)
    if kind == "frame":
        return codec.unpack(bytes_of(lease))
    if kind == "array" and type(head) is str:
        return _array(head, lease).copy(order="K")
    raise RemoteProtocolError("a lease of unknown form")


def restore(form: Mapping[str, Any], lease: int, size: int, codec: Codec) -> Any:
    """Return the value of this form from the `size` bytes of a lease.

    Raises RemoteProtocolError, UnregisteredType; and OSError or MemoryError where it does not fit into this process.
    """
    kind, head = form.get("form"), form.get("head")
    if type(kind) is not str:
        raise RemoteProtocolError("a lease without a form")
    if kind == "bytes":
        return buffers.read_lease(lease, size)
    if kind == "frame":
        return codec.unpack(buffers.read_lease(lease, size))
    if kind == "array" and type(head) is str:
        return _array(head, buffers.claim_lease(lease, size))
    raise RemoteProtocolError("a lease of unknown form")


def _array(head: str, view: memoryview) -> Any:
    from ringfence.ipc.numpy_types import array_from

    try:
        return array_from(head, view)
    except (MemoryError, UnregisteredType):
        raise
    except Exception as error:  # what NumPy makes of a head is NumPy's affair
        raise RemoteProtocolError(f"an array that is none: {type(error).__name__}: {str(error)[:200]}") from error
