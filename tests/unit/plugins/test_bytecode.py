"""Bytecode containers: what is packed is read back, and what is not one is refused before its code is looked at."""

import marshal
import subprocess
import sys
from dataclasses import replace

import pytest

from ringfence.ipc import bytecode_layout as layout
from ringfence.ipc.codec import Codec
from ringfence.plugins.bytecode import (
    BytecodeHeader,
    CompiledModule,
    ExportInfo,
    Metadata,
    is_bytecode,
    pack_container,
    read_header,
    validate_bytecode,
)
from ringfence.plugins.errors import IncompatibleBytecode, InvalidBytecode
from ringfence.worker.container import read_container

METADATA = Metadata(
    name="greeter",
    version="1.2.3",
    language_version="3.11",
    compiler_version="cpython 3.11.7",
    source_name="greeter.py",
    source_hash="sha256:00",
    compiled_at=1.5,
    required_capabilities=("fs:read",),
    suggested_capabilities=("time:read",),
    exports=(ExportInfo("greet", 1, False, "Greet.", "(who: str) -> str"), ExportInfo("again")),
    imports=("time",),
    flags=("annotations",),
    custom={"by": "me"},
)
MODULES = [
    CompiledModule("greeter", marshal.dumps(compile("x = 1", "greeter.py", "exec")), "greeter.py", True),
    CompiledModule("greeter.words", marshal.dumps(compile("y = 2", "words.py", "exec")), "greeter/words.py"),
]
CONTAINER = pack_container(METADATA, MODULES)


def _container(code: bytes = b"", tag: str | None = None, **changes: object) -> bytes:
    """Return a container whose digest fits, with some of its metadata changed, as whoever likes can make one."""
    written = Codec().unpack(layout.split(CONTAINER).metadata)
    written["modules"] = [["greeter", "greeter.py", False, len(code)]] if code else written["modules"]
    return layout.join(
        layout.interpreter_tag() if tag is None else tag,
        Codec().pack({**written, **changes}),
        code or bytes(layout.split(CONTAINER).code),
    )


def test_a_header_says_what_was_packed() -> None:
    """Every field comes back; the version is the plugin's own and not its compiler's."""
    header = read_header(CONTAINER)
    assert header.metadata == METADATA
    assert (header.name, header.version, header.exports) == ("greeter", "1.2.3", ("greet", "again"))
    assert header.capabilities == ("fs:read",)
    assert header.main == "greeter"
    assert [(m.name, m.filename, m.is_package) for m in header.modules] == [
        ("greeter", "greeter.py", True),
        ("greeter.words", "greeter/words.py", False),
    ]
    assert header.interpreter == layout.interpreter_tag()
    assert header.format_version == layout.FORMAT


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind: type) -> None:
    """bytes, bytearray and memoryview are one."""
    assert validate_bytecode(kind(CONTAINER)) == read_header(CONTAINER)
    assert is_bytecode(kind(CONTAINER))
    assert not is_bytecode(kind(b"print(1)"))


def test_one_flipped_byte_is_found() -> None:
    """Whichever byte it is, the container is refused as damaged."""
    for position in range(len(CONTAINER)):
        damaged = bytearray(CONTAINER)
        damaged[position] ^= 0x10
        with pytest.raises(InvalidBytecode):
            read_header(damaged)


def test_a_container_cut_short_is_found() -> None:
    """At whichever length, down to nothing; and with something behind it."""
    for size in range(len(CONTAINER)):
        with pytest.raises(InvalidBytecode):
            read_header(CONTAINER[:size])
    with pytest.raises(InvalidBytecode):
        read_header(CONTAINER + b"\0")


def test_another_interpreter_is_named() -> None:
    """The error says whose bytecode it is and what this is; its header can be read all the same."""
    foreign = _container(tag="cpython cpython-399 ffff0d0a")
    with pytest.raises(IncompatibleBytecode, match="cpython-399") as caught:
        read_header(foreign)
    assert caught.value.required == "cpython cpython-399 ffff0d0a"
    assert caught.value.found == layout.interpreter_tag()
    assert read_header(foreign, any_interpreter=True).name == "greeter"
    with pytest.raises(ValueError, match="cpython-399"):
        read_container(foreign)


def test_a_newer_format_is_no_damage() -> None:
    """A container of another format says so, whatever it looks like inside."""
    import hashlib

    body = layout.MAGIC + b"\0\x02" + b"who knows"
    with pytest.raises(IncompatibleBytecode, match="container format 2"):
        read_header(body + hashlib.sha256(body).digest())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"name": 3}, "name"),
        ({"version": None}, "version"),
        ({"compiled_at": float("nan")}, "compiled_at"),
        ({"compiled_at": 1}, "compiled_at"),
        ({"capabilities": "fs:read"}, "capabilities"),
        ({"capabilities": ["\x1b[2J"]}, "capabilities"),
        ({"exports": [["a b", 0, False, "", None]]}, "exports"),
        ({"exports": [["a", -1, False, "", None]]}, "exports"),
        ({"exports": [["a", 0, 1, "", None]]}, "exports"),
        ({"exports": [["a"]]}, "exports"),
        ({"exports": [["a", 0, False, "\ud800", None]]}, "exports"),
        ({"modules": []}, "modules"),
        ({"modules": [["a", "a.py", False, 1], ["a", "b.py", False, 1]]}, "modules"),
        ({"modules": [["../a", "a.py", False, 1]]}, "modules"),
        ({"modules": [["a", "a.py", False, -1]]}, "modules"),
        ({"modules": [["a", "a.py", False, 1 << 40]]}, "modules"),
        ({"modules": [["a", "a.py", False, 1]]}, "modules are 1 bytes"),
        ({"custom": {"a": 1}}, "custom"),
    ],
)
def test_each_field_is_checked(changes: dict[str, object], what: str) -> None:
    """A digest that fits vouches for nothing: a field that makes no sense is refused by its name."""
    with pytest.raises(InvalidBytecode, match=what):
        read_header(_container(**changes))


@pytest.mark.parametrize("metadata", [b"", b"\xc1", b"\x90", b"\x81\x01\x02", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000])
def test_hostile_metadata_is_refused(metadata: bytes) -> None:
    """Metadata that is no map, or claims to be huge, or nests without end."""
    with pytest.raises(InvalidBytecode):
        read_header(layout.join(layout.interpreter_tag(), metadata, b"x"))


def test_what_could_not_be_read_back_is_not_packed() -> None:
    """Packing checks what reading checks."""
    for metadata, modules in (
        (METADATA, []),
        (METADATA, [MODULES[0], MODULES[0]]),
        (replace(METADATA, name=""), MODULES),
        (replace(METADATA, exports=(ExportInfo("not a name"),)), MODULES),
        (METADATA, [CompiledModule("greeter", b"", "a.py")]),
        (METADATA, [CompiledModule("greeter", bytes(layout.MAX_CODE + 1), "a.py")]),
    ):
        with pytest.raises(InvalidBytecode):
            pack_container(metadata, modules)


def test_a_worker_reads_the_code() -> None:
    """The modules come back as code, in order, the main one first."""
    metadata, entries = read_container(CONTAINER)
    assert metadata["name"] == "greeter"
    found: dict[str, object] = {}
    for _, code, _, _ in entries:
        exec(code, found)
    assert (found["x"], found["y"]) == (1, 2)
    assert [(name, filename, package) for name, _, filename, package in entries] == [
        ("greeter", "greeter.py", True),
        ("greeter.words", "greeter/words.py", False),
    ]


@pytest.mark.parametrize("code", [b"\0", b"\xe3", b"i\0\0\0\0", b"s\xff\xff\xff\x7f", b"(\x01\0\0\0N", b"N"])
def test_code_that_is_none_is_a_value_error(code: bytes) -> None:
    """The header is fine for the host; the worker says which module has no code."""
    data = _container(code)
    assert isinstance(read_header(data), BytecodeHeader)
    with pytest.raises(ValueError, match="greeter"):
        read_container(data)


def test_the_host_loads_no_unmarshaller() -> None:
    """Reading a header imports neither the module that unmarshals nor anything that compiles."""
    program = (
        "import sys; from ringfence.plugins.bytecode import read_header;"
        "print([n for n in sys.modules if n.startswith('ringfence.worker')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
