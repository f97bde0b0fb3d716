"""Archives that nobody vouches for: unpacked beneath one folder under limits, or refused with the entry named."""

import io
import os
import random
import stat
import struct
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins.archive_names import Names, TreeLimits
from ringfence.plugins.archives import unpack
from ringfence.plugins.sources import prepare
from ringfence.plugins.store_errors import ArchiveRefused
from ringfence.plugins.trees import TreeWriter

LIMITS = TreeLimits()
SMALL = TreeLimits(entries=20, total=10_000, file=6_000, archive=5_000, ratio=20, slack=1_000, depth=4)


def entry(name: str, mode: int = stat.S_IFREG | 0o644, **fields: int) -> zipfile.ZipInfo:
    """Return an entry as a Unix tool would write it."""
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    info.create_system = 3
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def zipped(*entries: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip with these entries, whatever they are called."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for info, data in entries:
            info = entry(info) if isinstance(info, str) else info
            with pytest.warns(UserWarning, match="Duplicate") if info.filename in archive.NameToInfo else nullcontext():
                archive.writestr(info, data, compress_type=method)
    return buffer.getvalue()


def unpacked(data: bytes, folder: Path, limits: TreeLimits = LIMITS) -> TreeWriter:
    """Unpack a zip into `folder`."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        writer = TreeWriter(fd, limits, "some.zip")
        unpack(io.BytesIO(data), len(data), writer, limits, "some.zip")
        writer.sync()
        return writer
    finally:
        os.close(fd)


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder, by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


HOSTILE_NAMES = [
    ("/etc/passwd", "absolute"),
    ("../out", "climbs out"),
    ("a/../../out", "climbs out"),
    ("..", "climbs out"),
    ("a/./b", "normal form"),
    ("./a", "normal form"),
    ("a//b", "normal form"),
    (".", "normal form"),
    ("a\\b", "backslash"),
    ("..\\out", "backslash"),
    ("C:out", "drive letter"),
    ("c:/out", "drive letter"),
    ("a\0b", "cannot be seen"),
    ("a\nb", "cannot be seen"),
    ("a\x7fb", "cannot be seen"),
    ("a\x1b[2Jb", "cannot be seen"),
    ("a\u202eyp.b", "cannot be seen"),
    ("a\u2028b", "cannot be seen"),
    ("\ud800", "cannot be seen"),
    ("a" * 256, "longer than 255"),
    ("a/" * 16 + "a", "deep"),
    ("ab/" * 341 + "abcd", "longer than 1024"),
    ("", "no name"),
]


@pytest.mark.parametrize(("name", "why"), HOSTILE_NAMES, ids=[why + ascii(name)[:12] for name, why in HOSTILE_NAMES])
def test_a_hostile_name_is_refused_and_said(name: str, why: str) -> None:
    """Each name that leads elsewhere, or is not what it looks like, is refused with the reason."""
    with pytest.raises(ArchiveRefused, match=why) as caught:
        Names(LIMITS, "some.zip").add(name, folder=False)
    assert caught.value.entry == name
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a", "A"),
        ("straße", "strasse"),
        ("é", "e\u0301"),
        ("ﬁle", "file"),
        ("A/x", "a/y"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("a/b/c", "A/b"),
    ],
)
def test_names_that_collide_are_refused(names: tuple[str, str]) -> None:
    """Two names that some file system takes for one, or a file that is a folder, too."""
    seen = Names(LIMITS)
    seen.add(names[0], folder=False)
    with pytest.raises(ArchiveRefused):
        seen.add(names[1], folder=False)


def test_a_folder_may_be_listed_before_or_after_what_is_in_it_and_once() -> None:
    """The order of entries does not matter; saying the same folder twice does."""
    for order in (("a", "a/b"), ("a/b", "a")):
        seen = Names(LIMITS)
        for name in order:
            seen.add(name, folder=name == "a")
        with pytest.raises(ArchiveRefused, match="twice"):
            seen.add("a", folder=True)


@given(st.lists(st.tuples(st.text(max_size=40), st.booleans()), max_size=8))
def test_every_name_is_refused_or_stays_beneath(names: list[tuple[str, bool]]) -> None:
    """Whatever the names: ArchiveRefused, or parts that can only lead downwards, each set of them once."""
    seen, taken = Names(LIMITS), set()
    for name, folder in names:
        try:
            parts = seen.add(name, folder)
        except ArchiveRefused:
            continue
        assert parts
        assert "/".join(parts) == name
        assert not {"", ".", ".."} & set(parts)
        assert "\0" not in name
        assert parts not in taken
        taken.add(parts)


path_like = st.lists(
    st.sampled_from(["..", ".", "", "a", "A", "b", "C:", "é", "e\u0301", "\\", "\0", "a" * 300]), max_size=6
)


@given(st.lists(path_like.map("/".join), max_size=6))
def test_what_is_unpacked_stays_in_its_folder(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Zips of nasty names: refused, or each file is where its name says, and nothing is outside."""
    outer = tmp_path_factory.mktemp("zip")
    folder = outer / "inner"
    folder.mkdir()
    try:
        unpacked(zipped(*((name, name.encode("utf-8", "replace")) for name in names if name)), folder)
    except ArchiveRefused:
        pass
    else:
        assert set(files(folder)) <= set(names)
    assert os.listdir(outer) == ["inner"]


def test_files_come_out_with_two_modes_only(tmp_path: Path) -> None:
    """Executable or not is kept; set-uid, group and others' write bits are not; folders are 0755."""
    old = os.umask(0o077)
    try:
        unpacked(
            zipped(
                (entry("d/", stat.S_IFDIR | 0o777), b""),
                (entry("d/plain", stat.S_IFREG | 0o666), b"1"),
                (entry("d/run", stat.S_IFREG | 0o7777), b"2"),
                (entry("e/none", 0), b"3"),
            ),
            tmp_path,
        )
    finally:
        os.umask(old)
    modes = {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o7777) for path in tmp_path.rglob("*")}
    assert modes == {"d": "0o755", "d/plain": "0o644", "d/run": "0o755", "e": "0o755", "e/none": "0o644"}


KINDS = {
    "link": stat.S_IFLNK,
    "device": stat.S_IFCHR,
    "disk": stat.S_IFBLK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_and_folders_come_out(tmp_path: Path, kind: str) -> None:
    """A link or device is refused by name, and nothing at all is unpacked."""
    with pytest.raises(ArchiveRefused, match="is a") as caught:
        unpacked(zipped(("first", b"1"), (entry("odd", KINDS[kind] | 0o777), b"/etc/passwd")), tmp_path)
    assert caught.value.entry == "odd"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("info", "data"),
    [
        (entry("d/", stat.S_IFDIR | 0o755), b"content"),
        (entry("d", stat.S_IFDIR | 0o755), b""),
        (entry("d/", stat.S_IFREG | 0o644), b""),
    ],
)
def test_an_entry_is_a_file_or_a_folder(tmp_path: Path, info: zipfile.ZipInfo, data: bytes) -> None:
    """Name, mode and content agree on what it is."""
    with pytest.raises(ArchiveRefused, match=r"folder"):
        unpacked(zipped((info, data), method=zipfile.ZIP_STORED), tmp_path)


def patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Return an archive with bytes of the last record of this signature replaced."""
    at = data.rindex(signature) + offset
    return data[:at] + value + data[at + len(value) :]


TABLE, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (patched(zipped(("a", b"x")), TABLE, 8, b"\1\0"), "encrypted"),
        (patched(zipped(("a", b"x")), TABLE, 10, struct.pack("<H", 14)), "method 14"),
        (patched(zipped(("a", b"x")), TABLE, 10, struct.pack("<H", 99)), "method 99"),
        (patched(zipped(("a", b"x")), TABLE, 16, b"\0\0\0\0"), "CRC"),
        (patched(zipped(("a", b"x")), TABLE, 42, struct.pack("<I", 1 << 31)), "outside"),
        (patched(zipped(("a", b"x")), LOCAL, 30, b"b"), "differ"),
        (patched(zipped(("a", b"x")), TABLE, 6, struct.pack("<H", 99)), "version"),
        (patched(zipped(("a", b"x" * 9)), TABLE, 24, struct.pack("<I", 4)), "CRC|unpacks to more"),
        (zipped(("a", b"x"))[:-5], "no readable zip"),
        (zipped(("a", b"x"))[60:], "no readable zip"),
        (b"", "no readable zip"),
        (b"PK", "no readable zip"),
    ],
)
def test_an_archive_that_lies_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    """Encrypted, of an unknown method, damaged, or at odds with its own table."""
    with pytest.raises(ArchiveRefused, match=why):
        unpacked(data, tmp_path)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A small archive whose table names the same bytes many times unpacks to nothing."""
    one = zipped(("a", b"x" * 5000))
    start, end = one.index(TABLE), one.index(END)
    row = one[start:end]
    rows = b"".join(row.replace(b"a", bytes([98 + number])) for number in range(9))
    fields = struct.pack("<HHII", 9, 9, len(rows), start)
    with pytest.raises(ArchiveRefused, match="same bytes"):
        unpacked(one[:start] + rows + END + bytes(4) + fields + bytes(2), tmp_path)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([(f"f{number}", b"") for number in range(21)], "has 21 entries"),
        ([("a", random.Random(1).randbytes(6001))], "unpacks to 6001"),
        ([("a", random.Random(1).randbytes(5000)), ("b", random.Random(2).randbytes(5001))], "unpacks to 10001"),
        ([("a", bytes(5500))], "times its size"),
        ([("a/b/c/d/e", b"")], "deep"),
        ([(f"{number}/" * 3 + "x", b"") for number in range(7)], "more than 20"),
    ],
    ids=["entries", "file", "total", "ratio", "depth", "folders"],
)
def test_what_is_too_much_is_refused(tmp_path: Path, entries: list[tuple[str, bytes]], why: str) -> None:
    """Entries, folders that are only in names, one size, all sizes, ratio and depth have limits."""
    with pytest.raises(ArchiveRefused, match=why):
        unpacked(zipped(*entries), tmp_path, SMALL)


@pytest.mark.parametrize("said", [0, 1, 10, 999])
def test_bytes_are_counted_whatever_the_table_says(tmp_path: Path, said: int) -> None:
    """A table that makes a file smaller than it is lets no more come out than it said, or than is allowed."""
    data = zipped(("a", bytes(5_500)))
    lying = patched(patched(data, TABLE, 24, struct.pack("<I", said)), LOCAL, 22, struct.pack("<I", said))
    with pytest.raises(ArchiveRefused):
        unpacked(lying, tmp_path, SMALL)
    assert sum(map(len, files(tmp_path).values())) <= SMALL.slack


def test_a_table_of_entries_has_a_size_before_it_is_read(tmp_path: Path) -> None:
    """An archive that is nothing but a huge table is refused before the table is parsed."""
    data = zipped(("a", b""))
    start = data.index(TABLE)
    row = data[start : data.index(END)]
    rows = row * (3_000_000 // len(row))
    end = END + bytes(4) + struct.pack("<HHII", 0xFFFE, 0xFFFE, len(rows), start) + bytes(2)
    with pytest.raises(ArchiveRefused, match="table of entries is larger"):
        unpacked(data[:start] + rows + end, tmp_path)


@given(st.data())
def test_a_damaged_archive_is_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes an archive has: it is unpacked, or ArchiveRefused; never any other error."""
    whole = bytearray(zipped(("a/b", b"some text" * 20), ("c", b"more"), (entry("d/", stat.S_IFDIR | 0o755), b"")))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    try:
        unpacked(bytes(whole[:cut]), tmp_path_factory.mktemp("zip"), SMALL)
    except ArchiveRefused:
        pass


def test_what_tools_leave_is_left_out(tmp_path: Path) -> None:
    """Compiled files and version control are not unpacked; their names are held to the rules all the same."""
    unpacked(
        zipped(
            ("a.py", b"1"),
            ("__pycache__/a.pyc", b"2"),
            ("b/.git/HEAD", b"3"),
            (entry(".git/", stat.S_IFDIR | 0o755), b""),
        ),
        tmp_path,
    )
    assert files(tmp_path) == {"a.py": b"1"}
    with pytest.raises(ArchiveRefused):
        unpacked(zipped(("__pycache__/../../x", b"2")), tmp_path)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """If somebody put a link into the folder that is unpacked to, nothing is written through it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "f").symlink_to(tmp_path / "out" / "f")
    for name in ("a/b", "f"):
        with pytest.raises(OSError):
            unpacked(zipped((name, b"x")), tmp_path / "in")
    assert os.listdir(tmp_path / "out") == []


# Where the plugin is


MANIFEST = b'name = "p"\n'


def wheel(tmp_path: Path, *entries: tuple[str, bytes], name: str = "p-1-py3-none-any.whl") -> Path:
    """Write a wheel."""
    path = tmp_path / name
    path.write_bytes(zipped(*entries))
    return path


def found(path: Path, tmp_path: Path) -> str:
    """Return which folder of an archive is the plugin's."""
    scratch = tmp_path / f"scratch{len(os.listdir(tmp_path))}"
    scratch.mkdir()
    return os.path.relpath(prepare(path, str(scratch), LIMITS).folder, scratch / "tree")


def points(text: str) -> tuple[str, bytes]:
    """Return a wheel's entry points."""
    return "p-1.dist-info/entry_points.txt", f"[console_scripts]\nx = y:z\n[ringfence.plugins]\n{text}\n".encode()


def test_a_plugin_is_found_in_a_zip(tmp_path: Path) -> None:
    """At the top, or in the one folder that has a manifest."""
    assert found(wheel(tmp_path, ("plugin.toml", MANIFEST), ("sub/plugin.toml", b""), name="a.zip"), tmp_path) == "."
    assert found(wheel(tmp_path, ("p.toml", MANIFEST), ("pyproject.toml", b""), name="b.zip"), tmp_path) == "."
    assert (
        found(wheel(tmp_path, ("p-1/src/plugin.json", MANIFEST), ("p-1/x", b""), name="c.zip"), tmp_path) == "p-1/src"
    )


def test_a_plugin_is_found_in_a_wheel(tmp_path: Path) -> None:
    """By the entry point of our group, the nearest folder with a manifest; else where the only manifest is."""
    two = (("a/plugin.toml", MANIFEST), ("b/plugin.toml", MANIFEST), ("b/c/x.py", b""))
    assert found(wheel(tmp_path, ("a/plugin.toml", MANIFEST)), tmp_path) == "a"
    assert found(wheel(tmp_path, *two, points("p = b")), tmp_path) == "b"
    assert found(wheel(tmp_path, *two, points("p = b.c:main [extra]\nq = b:x")), tmp_path) == "b"


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([("a/x", b"")], "holds no plugin.toml"),
        ([("a/plugin.toml", b""), ("b/plugin.toml", b"")], "several plugins"),
        ([("a/plugin.toml", b""), ("b/plugin.toml", b""), points("p = a\nq = b")], "several plugins"),
        ([("a/plugin.toml", b""), points("p = c")], "where no plugin.toml is"),
        ([("a/plugin.toml", b""), points("p = ..:x")], "where no plugin.toml is"),
        ([("a/plugin.toml", b""), points("p = a\np = a")], "cannot be read"),
        ([("a/plugin.toml", b""), ("p.dist-info/entry_points.txt", b"\xff")], "cannot be read"),
        ([("a/plugin.toml", b""), ("p.dist-info/entry_points.txt", b"#" * 70_000)], "larger than"),
    ],
)
def test_a_wheel_that_does_not_say_where_is_refused(tmp_path: Path, entries: list[tuple[str, bytes]], why: str) -> None:
    """No manifest, several, or an entry point that leads nowhere."""
    with pytest.raises(ArchiveRefused, match=why):
        found(wheel(tmp_path, *entries), tmp_path)


def test_an_archive_has_a_size(tmp_path: Path) -> None:
    """One that is larger than allowed is not even copied; a pipe is no archive."""
    (tmp_path / "s").mkdir()
    path = wheel(tmp_path, ("plugin.toml", random.Random(1).randbytes(5001)), name="a.zip")
    with pytest.raises(ArchiveRefused, match="larger than 5000"):
        prepare(path, str(tmp_path / "s"), SMALL)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "t").mkdir()
    with pytest.raises(ArchiveRefused, match="neither a folder nor a file"):
        prepare(tmp_path / "fifo", str(tmp_path / "t"), SMALL)
