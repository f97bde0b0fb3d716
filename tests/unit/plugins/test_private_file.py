"""Small files for their owner alone."""

import os
import stat
from pathlib import Path

import pytest

from ringfence.plugins.private_file import read_private, replace_private


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask; a second write replaces; up to the limit and no further."""
    path = str(tmp_path / "file")
    assert read_private(path, 10) is None
    before = os.umask(0)
    try:
        replace_private(path, b"first")
        replace_private(path, b"0123456789")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert read_private(path, 10) == b"0123456789"
    with pytest.raises(OSError, match="larger than 9 bytes"):
        read_private(path, 9)
    assert os.listdir(tmp_path) == ["file"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe is not waited for, a link not followed, a folder no file; no fd is left open."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("folder")
    for name in ("folder", "pipe", "link"):
        with pytest.raises(OSError, match=r"no regular file|symbolic links|Not a directory"):
            read_private(str(tmp_path / name), 10)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whichever system call it is; no temporary file stays."""
    path = str(tmp_path / "file")
    replace_private(path, b"old")

    def fail(*_args: object, **_kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            replace_private(path, b"new")
    assert read_private(path, 10) == b"old"
    assert os.listdir(tmp_path) == ["file"]
