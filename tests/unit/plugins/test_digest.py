"""A folder's digest: the same for the same names and contents, another for any other, and nothing followed."""

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.errors import PluginValidationError
from ringfence.plugins.archive_names import TreeLimits
from ringfence.plugins.digest import checked_digest, file_digest, folder_digest
from ringfence.plugins.sources import prepare
from ringfence.plugins.store_errors import ArchiveRefused

Tree = dict[str, bytes]


def made(folder: Path, tree: Tree) -> Path:
    """Write a tree of files."""
    for name, data in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_the_digest_is_this_one(tmp_path: Path) -> None:
    """A known folder has a known digest: what is written down in lock files stays valid."""
    made(tmp_path, {"plugin.toml": b'name = "p"\n', "a/b.py": b"pass\n", "a.py": b""})
    assert folder_digest(tmp_path) == "sha256:" + KNOWN


KNOWN = "d46ee81af43b69e4e03662a274037f761d57b0c06a9acd505e52e79822b7b90b"


names = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("".join)
trees = st.dictionaries(names, st.binary(max_size=4), max_size=3)


@given(trees, trees)
def test_digests_are_equal_where_trees_are(tmp_path_factory: pytest.TempPathFactory, one: Tree, two: Tree) -> None:
    """No two different trees share a digest by moving bytes between names and contents."""
    first, second = made(tmp_path_factory.mktemp("one"), one), made(tmp_path_factory.mktemp("two"), two)
    assert (folder_digest(first) == folder_digest(second)) == (one == two)


def test_what_is_no_content_does_not_count(tmp_path: Path) -> None:
    """Modes, times, empty folders and what tools leave behind change nothing; nor does a link to the folder itself."""
    one = made(tmp_path / "one", {"p.py": b"1", "a/q.py": b"2"})
    two = made(tmp_path / "two", {"a/q.py": b"2", "p.py": b"1", "__pycache__/p.pyc": b"3", ".git/HEAD": b"4"})
    (two / "empty").mkdir()
    (two / "p.py").chmod(0o755)
    os.utime(two / "p.py", (1, 1))
    (tmp_path / "link").symlink_to(two)
    assert folder_digest(one) == folder_digest(two) == folder_digest(tmp_path / "link")


def test_a_folder_and_its_zip_have_one_digest(tmp_path: Path) -> None:
    """What is installed from either is the same, and says so."""
    folder = made(tmp_path / "p", {"plugin.toml": b"x", "a/q.py": b"2", "a.py": b""})
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(tmp_path))
    (tmp_path / "s").mkdir()
    prepared = prepare(tmp_path / "p.zip", str(tmp_path / "s"), TreeLimits())
    assert prepared.digest == folder_digest(folder)
    assert prepared.archive == file_digest(tmp_path / "p.zip")


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "link to nothing", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A link or a pipe beneath the folder has no digest, and is not waited for."""
    (tmp_path / "sub").mkdir()
    odd = tmp_path / "sub" / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"link to a file": "/etc/passwd", "link to a folder": "/etc"}.get(kind, "/none"))
    with pytest.raises(ArchiveRefused) as caught:
        folder_digest(tmp_path)
    assert caught.value.entry == "sub/odd"


def test_what_is_too_much_is_refused(tmp_path: Path) -> None:
    """Entries, depth and bytes have limits."""
    made(tmp_path, {"a/b/c": b"12345", "d": b"12345"})
    folder_digest(tmp_path, TreeLimits(entries=4, depth=3, total=10))
    for limits in (TreeLimits(entries=3), TreeLimits(depth=2), TreeLimits(total=9)):
        with pytest.raises(ArchiveRefused):
            folder_digest(tmp_path, limits)


def test_a_digest_has_one_spelling() -> None:
    """The algorithm is named; case does not matter; anything else is an error that says what is wanted."""
    assert checked_digest("sha256:" + "AB" * 32) == "sha256:" + "ab" * 32
    for text in (
        "",
        "ab" * 32,
        "sha256:",
        "sha256:" + "ab" * 31,
        "md5:" + "ab" * 16,
        "sha256:" + "ab" * 32 + "\n",
        None,
    ):
        with pytest.raises(PluginValidationError, match="64 hexadecimal digits"):
            checked_digest(text)  # type: ignore[arg-type]
