"""Bytecode containers on the host's side: packed, and their headers read under limits; the code is never touched.

What is where is in ringfence.ipc.bytecode_layout; what a header says of its plugin is `Metadata`. Everything in a file
comes from whoever made it: each field is checked here once, and what is wrong with it named.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

from ringfence.ipc.bytecode_layout import FORMAT, MAX_CODE, MAX_METADATA, MAX_MODULES, interpreter_tag, join, split
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import NotSerializable, RemoteProtocolError, UnregisteredType
from ringfence.plugins.errors import IncompatibleBytecode, InvalidBytecode

__all__ = [
    "SUFFIX",
    "BytecodeHeader",
    "CompiledModule",
    "ExportInfo",
    "Metadata",
    "ModuleEntry",
    "is_bytecode",
    "pack_container",
    "read_header",
    "validate_bytecode",
]

SUFFIX: Final = ".plb"

_codec = Codec()

# Texts of a header; a docstring's first lines are the longest of them.
_MAX_TEXT: Final = 16 * 1024
_MAX_NAME: Final = 255
_MAX_LIST: Final = 10_000


@final
@dataclass(frozen=True, slots=True)
class ExportInfo:
    """One function that a plugin exports, as its source declares it.

    `param_count` and `signature` are None where the source does not show the function's definition.
    """

    name: str
    param_count: int | None = None
    is_async: bool = False
    doc: str = ""
    signature: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Metadata:
    """What a container says of its plugin.

    `required_capabilities` are those that were declared, `suggested_capabilities` those that its imports hint at;
    `compiled_at` is seconds since the epoch; `language_version` is the Python the source was checked for and
    `compiler_version` the interpreter that compiled it; `flags` are the `__future__` features switched on from outside.
    """

    name: str
    version: str = "0.0.0"
    language_version: str = ""
    compiler_version: str = ""
    source_name: str = ""
    source_hash: str = ""
    compiled_at: float = 0.0
    required_capabilities: tuple[str, ...] = ()
    suggested_capabilities: tuple[str, ...] = ()
    exports: tuple[ExportInfo, ...] = ()
    imports: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    custom: Mapping[str, str] = field(default_factory=dict)


class CompiledModule(NamedTuple):
    """One module's marshalled code, as a worker made it."""

    name: str
    code: bytes
    filename: str
    is_package: bool = False


@final
@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """One module of a container: its name, the file name that tracebacks show, and the bytes of its code."""

    name: str
    filename: str
    is_package: bool
    size: int


@final
@dataclass(frozen=True, slots=True)
class BytecodeHeader:
    """A container's header, checked. `main` is the module that exports; `digest` is the whole container's SHA-256."""

    format_version: int
    interpreter: str
    digest: str
    metadata: Metadata
    modules: tuple[ModuleEntry, ...]

    @property
    def main(self) -> str:
        """The name of the module that is run and exports."""
        return self.modules[0].name

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.metadata.name

    @property
    def version(self) -> str:
        """The plugin's own version, not its compiler's."""
        return self.metadata.version

    @property
    def exports(self) -> tuple[str, ...]:
        """The names of the functions it exports."""
        return tuple(export.name for export in self.metadata.exports)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The capabilities it was declared to need."""
        return self.metadata.required_capabilities


def is_bytecode(data: bytes | bytearray | memoryview) -> bool:
    """Whether `data` begins as a container does; nothing more is looked at."""
    return bytes(data[:4]) == b"RFPB"


def pack_container(metadata: Metadata, modules: Sequence[CompiledModule]) -> bytes:
    """Return the container of these modules, the one that exports first, for this interpreter.

    Raises InvalidBytecode when it would not be read back: a text or the whole is too long, a name is no module's.
    """
    if not 1 <= len(modules) <= MAX_MODULES:
        raise InvalidBytecode(f"a container holds 1 to {MAX_MODULES} modules, not {len(modules)}")
    listed = [[module.name, module.filename, module.is_package, len(module.code)] for module in modules]
    written = {
        "name": metadata.name,
        "version": metadata.version,
        "language_version": metadata.language_version,
        "compiler_version": metadata.compiler_version,
        "source_name": metadata.source_name,
        "source_hash": metadata.source_hash,
        "compiled_at": float(metadata.compiled_at),
        "capabilities": list(metadata.required_capabilities),
        "suggested": list(metadata.suggested_capabilities),
        "exports": [[e.name, e.param_count, e.is_async, e.doc, e.signature] for e in metadata.exports],
        "imports": list(metadata.imports),
        "flags": list(metadata.flags),
        "custom": dict(metadata.custom),
        "modules": listed,
    }
    try:
        _read_metadata(written)
        code = b"".join(module.code for module in modules)
        return join(interpreter_tag(), _codec.pack(written, name="metadata"), code)
    except (ValueError, NotSerializable) as error:
        raise InvalidBytecode(f"cannot be packed: {error}") from None


def read_header(data: bytes | bytearray | memoryview, *, any_interpreter: bool = False) -> BytecodeHeader:
    """Check a container and return what its header says. Its code is not looked at.

    Args:
        data: the whole container.
        any_interpreter: also read the header of a container for another interpreter.

    Raises:
        InvalidBytecode: it is no container, or a damaged one.
        IncompatibleBytecode: another interpreter, or another format of container; the error names both.
    """
    if len(data) > MAX_CODE + 2 * MAX_METADATA:
        raise InvalidBytecode(f"not a bytecode container: {len(data)} bytes are more than any has")
    view = memoryview(data if isinstance(data, bytes) else bytes(data))  # a copy: nobody changes it meanwhile
    try:
        sections = split(view)
    except ValueError as error:
        raise InvalidBytecode(f"not a bytecode container: {error}") from None
    if sections.format != FORMAT:
        raise IncompatibleBytecode(
            f"a ringfence with container format {sections.format}", f"one with container format {FORMAT}"
        )
    # The tag is quoted in errors: what is not plain text in it is shown as such.
    tag = sections.tag if sections.tag.isprintable() else ascii(sections.tag)
    if tag != interpreter_tag() and not any_interpreter:
        raise IncompatibleBytecode(tag, interpreter_tag())
    try:
        metadata, modules = _read_metadata(_codec.unpack(sections.metadata))
    except (ValueError, RemoteProtocolError, UnregisteredType) as error:
        raise InvalidBytecode(f"a bytecode container with a bad header: {error}") from None
    size = sum(module.size for module in modules)
    if size != len(sections.code):
        raise InvalidBytecode(f"a bytecode container whose modules are {size} bytes, and its code {len(sections.code)}")
    return BytecodeHeader(sections.format, tag, sections.digest, metadata, modules)


def validate_bytecode(data: bytes | bytearray | memoryview) -> BytecodeHeader:
    """Check that this interpreter could load a container, without loading it: see `read_header`."""
    return read_header(data)


# Reading, field by field


def _read_metadata(data: object) -> tuple[Metadata, tuple[ModuleEntry, ...]]:
    """Return the metadata and the modules that `data` describes; raises ValueError naming the field."""
    if type(data) is not dict or not all(type(key) is str for key in data):
        raise ValueError("its metadata is no map of names")
    modules = _list(data, "modules", _module, MAX_MODULES)
    names = [module.name for module in modules]
    if not modules or len(set(names)) != len(names):
        raise ValueError("modules: none, or one twice")
    metadata = Metadata(
        name=_short("name", data.get("name")),
        version=_short("version", data.get("version")),
        language_version=_line("language_version", data.get("language_version")),
        compiler_version=_line("compiler_version", data.get("compiler_version")),
        source_name=_line("source_name", data.get("source_name"), _MAX_TEXT),
        source_hash=_line("source_hash", data.get("source_hash")),
        compiled_at=_seconds(data.get("compiled_at")),
        required_capabilities=_list(data, "capabilities", _line),
        suggested_capabilities=_list(data, "suggested", _line),
        exports=_list(data, "exports", _export),
        imports=_list(data, "imports", _line),
        flags=_list(data, "flags", _line),
        custom=_custom(data.get("custom")),
    )
    return metadata, modules


def _list(data: dict[str, Any], name: str, read: Callable[..., Any], most: int = _MAX_LIST) -> tuple[Any, ...]:
    value = data.get(name)
    if type(value) is not list or len(value) > most:
        raise ValueError(f"{name} is no list of at most {most}")
    return tuple(read(name, each) for each in value)


def _text(name: str, value: object, most: int = _MAX_TEXT) -> str:
    if type(value) is not str or len(value) > most:
        raise ValueError(f"{name} is no text of at most {most} characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is no Unicode text") from None
    return value


def _line(name: str, value: object, most: int = _MAX_NAME) -> str:
    """Read a text that will be shown: no line breaks, no terminal's control characters."""
    text = _text(name, value, most)
    if not text.isprintable():
        raise ValueError(f"{name} has characters that do not print")
    return text


def _short(name: str, value: object) -> str:
    text = _line(name, value)
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


def _seconds(value: object) -> float:
    # Also no "not a number", which no comparison holds for.
    if type(value) is not float or not 0 <= value < 1e11:
        raise ValueError("compiled_at is no time")
    return value


def _custom(value: object) -> dict[str, str]:
    if type(value) is not dict or len(value) > _MAX_LIST:
        raise ValueError("custom is no map")
    return {_line("custom", key): _text("custom", each) for key, each in value.items()}


def _export(name: str, value: object) -> ExportInfo:
    if type(value) is not list or len(value) != 5:
        raise ValueError(f"{name} has an entry that is none")
    function, count, is_async, doc, signature = value
    if type(function) is not str or len(function) > _MAX_NAME or not function.isidentifier():
        raise ValueError(f"{name} has a name that is no identifier")
    if count is not None and (type(count) is not int or not 0 <= count <= _MAX_LIST):
        raise ValueError(f"{name}: {function} has no number of parameters")
    if type(is_async) is not bool:
        raise ValueError(f"{name}: {function} is neither async nor not")
    shown = None if signature is None else _line(name, signature, _MAX_TEXT)
    return ExportInfo(function, count, is_async, _text(name, doc), shown)


_MODULE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def _module(name: str, value: object) -> ModuleEntry:
    if type(value) is not list or len(value) != 4:
        raise ValueError(f"{name} has an entry that is none")
    module, filename, is_package, size = value
    if type(module) is not str or len(module) > _MAX_NAME or not _MODULE.fullmatch(module):
        raise ValueError(f"{name} has a name that is no module's")
    if type(is_package) is not bool or type(size) is not int or not 0 < size <= MAX_CODE:
        raise ValueError(f"{name}: {module} has no kind or no size")
    return ModuleEntry(module, _line(name, filename, _MAX_TEXT), is_package, size)
