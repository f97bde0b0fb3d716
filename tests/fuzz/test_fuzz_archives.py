"""Any archive is unpacked into files and folders beneath its folder, within the limits, or refused."""

import io
import os
import shutil
import stat
import tempfile
import zipfile

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.plugins.archive_names import TreeLimits
from ringfence.plugins.archives import unpack
from ringfence.plugins.store_errors import ArchiveRefused
from ringfence.plugins.trees import TreeWriter

_LIMITS = TreeLimits(
    entries=64, total=1 << 20, file=1 << 19, archive=1 << 20, ratio=200, slack=1 << 16, depth=6, part=64, path=200
)


def check(data: bytes) -> str:
    """Unpack `data` in a folder between two others, and look at all that is there afterwards."""
    root = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        target = os.path.join(root, "target")
        os.mkdir(target)
        os.mkdir(os.path.join(root, "beside"))
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            writer = TreeWriter(fd, _LIMITS)
            try:
                unpack(io.BytesIO(data), len(data), writer, _LIMITS)
                came = "unpacked"
            except ArchiveRefused as error:
                assert len(str(error)) < 10_000
                came = kind_of(error)
        finally:
            os.close(fd)
        assert sorted(os.listdir(root)) == ["beside", "target"]
        assert not os.listdir(os.path.join(root, "beside"))
        count, total = _measure(target)
        assert count <= _LIMITS.entries
        assert total <= _LIMITS.total + (1 << 16)
        return f"{came} {count}"
    finally:
        shutil.rmtree(root)


def _measure(folder: str) -> tuple[int, int]:
    """Count entries and bytes; every entry is a plain file or folder."""
    count = total = 0
    for entry in os.scandir(folder):
        status = entry.stat(follow_symlinks=False)
        count += 1
        if stat.S_ISDIR(status.st_mode):
            inner = _measure(entry.path)
            count, total = count + inner[0], total + inner[1]
        else:
            assert stat.S_ISREG(status.st_mode)
            assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID)
            total += status.st_size
    return count, total


def _zip(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, mode: int = 0o644) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return made.getvalue()


TARGET = Target(
    check,
    [
        _zip(("plugin.toml", b'name = "a"\n' * 9), ("src/", b""), ("src/main.py", b"x = 1\n" * 40)),
        _zip(("a/b/c/d.py", b"pass"), ("a/b/e.txt", b"text"), method=zipfile.ZIP_STORED),
        _zip(("bomb", bytes(400_000))),
        _zip(("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
        _zip(("../out", b"x"), ("/abs", b"x"), ("a\\b", b"x")),
        _zip(("A", b"x"), ("a", b"y"), ("dir/x", b"1"), ("dir", b"2")),
        _zip(("setuid", b"x"), mode=0o4755),
        _zip(*((f"f{n}", b"x") for n in range(70))),
        _zip(("lzma", b"x" * 100), method=zipfile.ZIP_LZMA),
        _zip(("__pycache__/x.pyc", b"x"), (".git/config", b"y"), ("kept", b"z")),
    ],
    [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"../", b"/", b"\\", b"\0",
     b"\xff\xff\xff\xff", b"\x01\x00\x10\x00", b"up\x09\x00\x01", b"\xe2\x80\xae", b"a/" * 9],
)  # fmt: skip


@settings(max_examples=150)
@given(inputs(TARGET))
def test_any_archive_stays_beneath_its_folder_or_is_refused(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_archives_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "archives")
