"""Takes the code out of a bytecode container, inside the worker: unmarshalling hostile bytes may crash a process.

CPython says of marshal that it is not safe for data from others, and of code objects that made-up ones crash the
interpreter. So the host never imports this module; the worker that does is locked in and serves one plugin.
"""

import marshal
from types import CodeType
from typing import Any, Final

from ringfence.ipc.bytecode_layout import FORMAT, interpreter_tag, split
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import RemoteProtocolError, UnregisteredType

__all__ = ["Entry", "read_container"]

# (module name, its code, file name, is a package)
Entry = tuple[str, CodeType, str, bool]

_FIELDS: Final = (str, str, bool, int)


def read_container(data: bytes) -> tuple[dict[str, Any], list[Entry]]:
    """Return the metadata and the modules of a container, the main module first.

    Raises ValueError for one that is damaged, of another interpreter, or whose code is none. Made-up code may also
    end the process, here or when it runs.
    """
    try:
        sections = split(data)
    except ValueError as error:
        raise ValueError(f"not a bytecode container: {error}") from None
    if sections.format != FORMAT or sections.tag != interpreter_tag():
        raise ValueError(f"bytecode of {sections.tag or 'another format'}, this is {interpreter_tag()}")
    try:
        metadata = Codec().unpack(sections.metadata)
    except (RemoteProtocolError, UnregisteredType) as error:
        raise ValueError(f"bytecode with unreadable metadata: {error}") from None
    listed = metadata.get("modules") if type(metadata) is dict else None
    if type(listed) is not list or not listed:
        raise ValueError("bytecode that lists no modules")
    entries: list[Entry] = []
    start = 0
    for each in listed:
        if type(each) is not list or tuple(map(type, each)) != _FIELDS:
            raise ValueError("bytecode with a malformed list of modules")
        name, filename, is_package, size = each
        entries.append((name, _code(name, sections.code[start : start + size]), filename, is_package))
        start += size
    return metadata, entries


def _code(name: str, marshalled: memoryview) -> CodeType:
    try:
        code = marshal.loads(marshalled)
    except (EOFError, ValueError, TypeError) as error:
        raise ValueError(f"the code of module {name!r} does not unmarshal: {error}") from None
    if type(code) is not CodeType:
        raise ValueError(f"the code of module {name!r} is a {type(code).__name__}")
    return code
