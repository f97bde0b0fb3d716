"""Which command and which grants starting a program takes, read from the file alone."""

import os
import struct
import sys
from pathlib import Path

import pytest

from ringfence.plugins.errors import InvalidManifest
from ringfence.plugins.programs import ProgramEnd, describe_end, describe_program, program_grants


def elf(loader: bytes | None = b"/lib64/ld-linux-x86-64.so.2\0", *, bits: int = 2, entries: int = 2) -> bytes:
    """Return the beginning of a binary: its header, its segments, and the name of its loader."""
    head = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + bytes(16) + struct.pack("<Q", 64) + bytes(14)
    head += struct.pack("<HH", 56, entries) + bytes(6)
    segment = struct.pack("<IIQQQQQQ", 1, 0, 0, 0, 0, 0, 0, 0)
    if loader is None:
        return head + segment * 2
    return head + segment + struct.pack("<IIQQQQQQ", 3, 0, 64 + 112, 0, 0, len(loader), 0, 0) + loader


@pytest.fixture
def bin_(tmp_path: Path) -> Path:
    """A folder with interpreters: binaries of no other content."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "node", "env", "python3"):
        put(folder / name, elf())
    return folder


def put(path: Path, content: bytes | str) -> Path:
    """Write an executable file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o755)
    return path


def grants(path: Path, *search: Path) -> list[str]:
    """Return the grants as text."""
    return [str(grant) for grant in describe_program(path, search=map(str, search)).grants]


def test_a_binary_needs_itself(tmp_path: Path) -> None:
    """Its usual loader comes with every worker that may start programs; a static one has none."""
    for content in (elf(), elf(None)):
        program = put(tmp_path / "p", content)
        assert grants(program) == [f"process:exec={program}"]
        assert describe_program(program).argv == (str(program),)
        assert describe_program(program).interpreter is None


def test_an_unusual_loader_is_granted(tmp_path: Path) -> None:
    """Another C library's loader is executed by the kernel with the program."""
    program = put(tmp_path / "p", elf(b"/lib/ld-musl-x86_64.so.1\0"))
    assert grants(program) == [f"process:exec={program}", "process:exec=/lib/ld-musl-x86_64.so.1"]


def test_the_plugins_folder_may_be_read(tmp_path: Path) -> None:
    """Only when it is named: a program of the system does not open its folder."""
    program = put(tmp_path / "p", elf())
    assert [str(grant) for grant in program_grants(program, tmp_path)] == [
        f"process:exec={program}",
        f"fs:read={tmp_path}",
    ]


def test_a_script_needs_its_interpreter(tmp_path: Path, bin_: Path) -> None:
    """It is started as the kernel starts it, with what is behind the interpreter as one argument."""
    script = put(tmp_path / "s", f"#! {bin_}/sh  -e -u \necho\n")
    program = describe_program(script)
    assert program.argv == (f"{bin_}/sh", "-e -u", str(script))
    assert program.interpreter == f"{bin_}/sh"
    assert [str(grant) for grant in program.grants] == [f"process:exec={script}", f"process:exec={bin_}/sh"]


@pytest.mark.parametrize("line", ["env python3", "env -S python3", "env -Spython3"])
def test_env_is_looked_through(tmp_path: Path, bin_: Path, line: str) -> None:
    """The interpreter that env would find is started itself: neither env nor PATH is needed in the worker."""
    script = put(tmp_path / "s", f"#!/usr/bin/{line}\n")
    assert grants(script, tmp_path, bin_) == [f"process:exec={script}", f"process:exec={bin_}/python3"]


def test_env_splits_arguments_when_told_to(tmp_path: Path, bin_: Path) -> None:
    """`-S` splits; without it, env looks for one name with spaces in it, and finds none."""
    script = put(tmp_path / "s", "#!/usr/bin/env -S node --jitless --no-warnings\n")
    program = describe_program(script, search=[str(bin_)])
    assert program.argv == (f"{bin_}/node", "--jitless", "--no-warnings", str(script))
    assert "native:jit" not in grants(script, bin_)
    with pytest.raises(InvalidManifest, match="node --jitless"):
        grants(put(tmp_path / "s", "#!/usr/bin/env node --jitless\n"), bin_)


def test_a_compiling_interpreter_needs_to_write_code(tmp_path: Path, bin_: Path) -> None:
    """node ends at once where it may not make memory executable."""
    script = put(tmp_path / "s.js", "#!/usr/bin/env node\n")
    assert grants(script, bin_) == [f"process:exec={script}", f"process:exec={bin_}/node", "native:jit"]


def test_an_interpreter_may_be_a_script(tmp_path: Path, bin_: Path) -> None:
    """Each script on the way is granted; a circle is not followed for ever."""
    inner = put(tmp_path / "inner", f"#!{bin_}/sh\n")
    outer = put(tmp_path / "outer", f"#!{inner} -x\n")
    assert describe_program(outer).argv == (f"{bin_}/sh", str(inner), "-x", str(outer))
    assert grants(outer) == [f"process:exec={each}" for each in (outer, inner, bin_ / "sh")]
    with pytest.raises(InvalidManifest, match="and so on"):
        grants(put(inner, f"#!{outer}\n"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "neither a binary"),
        (b"print('no first line')", "neither a binary"),
        (b"MZ\x90\0", "neither a binary"),
        (elf(bits=1), "another kind"),
        (elf()[:40], "another kind"),
        (elf(entries=5000), "damaged"),
        (b"#!\n", "no interpreter"),
        (b"#!sh\n", "no interpreter"),
        (b"#!../sh\n", "no interpreter"),
        (b"#!/bin/s\0h\n", "no interpreter"),
        (b"#!/bin/\xff\n", "no interpreter"),
        (b"#!/" + b"x" * 300, "first line is longer"),
        (b"#!/no/such/interpreter\n", "no such program"),
        (b"#!/usr/bin/env -i node\n", "only -S"),
        (b"#!/usr/bin/env -S A=1 node\n", "only -S"),
        (b"#!/usr/bin/env no-such-interpreter\n", "usual folders"),
    ],
)
def test_what_cannot_be_started_is_said(tmp_path: Path, content: bytes, what: str) -> None:
    """The error names the file and what is the matter with it, before any worker is started."""
    program = put(tmp_path / "p", content)
    with pytest.raises(InvalidManifest, match=what):
        grants(program, tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Not there, a folder, or not executable."""
    with pytest.raises(InvalidManifest, match="no such program"):
        program_grants(tmp_path / "nothing")
    with pytest.raises(InvalidManifest, match="no such program"):
        program_grants(tmp_path)
    plain = tmp_path / "plain"
    plain.write_bytes(elf())
    with pytest.raises(InvalidManifest, match="chmod"):
        program_grants(plain)


def test_this_interpreter_is_a_program() -> None:
    """The real thing: a binary whose loader is the system's."""
    real = os.path.realpath(sys.executable)
    assert f"process:exec={real}" in map(str, program_grants(real))


@pytest.mark.parametrize(
    ("result", "end"),
    [
        ({"exit_code": 3, "signal": None, "violation": None}, ProgramEnd("it ended with exit code 3", 3)),
        ({"exit_code": None, "signal": 9, "violation": None}, ProgramEnd("it was ended by SIGKILL", None, 9)),
        ({"exit_code": None, "signal": 40, "violation": None}, ProgramEnd("it was ended by signal 40", None, 40)),
        (
            {"exit_code": None, "signal": 9, "violation": "no JSON"},
            ProgramEnd("it broke the protocol and was killed: no JSON", None, 9),
        ),
        ({"exit_code": "3", "signal": 900}, ProgramEnd("it ended, and nobody knows how")),
        (None, ProgramEnd("it ended, and nobody knows how")),
    ],
)
def test_an_end_is_put_into_words(result: object, end: ProgramEnd) -> None:
    """Exit code, signal or violation; and no trust in what a worker says."""
    assert describe_end(result) == end


def test_a_violation_cannot_draw_on_a_terminal() -> None:
    """Its text comes from the program's own line."""
    message = describe_end({"violation": "\x1b[2J" + "x" * 5000}).message
    assert message.isprintable()
    assert len(message) < 600
