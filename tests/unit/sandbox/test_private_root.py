"""Which mounts a private root needs, and where links lead."""

import errno
from pathlib import Path

import pytest

from ringfence.sandbox.private_root import Tree, choose_trees, follow


def test_links_on_the_way_are_found(tmp_path: Path) -> None:
    """A path through absolute and relative links yields the real one and every link with its target."""
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("real")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative/deep")
    real, links = follow(str(tmp_path / "absolute"))
    assert real == str(tmp_path / "real/deep")
    assert dict(links) == {
        str(tmp_path / "absolute"): str(tmp_path / "relative/deep"),
        str(tmp_path / "relative"): "real",
    }


def test_a_link_upwards_is_followed(tmp_path: Path) -> None:
    """`..` in a target leads from where the link lies."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "a/b/up").symlink_to("../../c")
    assert follow(str(tmp_path / "a/b/up"))[0] == str(tmp_path / "c")


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    """Links in a circle end with ELOOP, not never."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError) as caught:
        follow(str(tmp_path / "one"))
    assert caught.value.errno == errno.ELOOP


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    """A path that leads nowhere raises FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        follow(str(tmp_path / "nowhere/file"))


def test_what_an_outer_mount_shows_is_not_mounted_again() -> None:
    """A tree below another with the same access needs no mount of its own."""
    trees = choose_trees([Tree("/usr/lib/python", False), Tree("/usr/lib", False), Tree("/usr/library", False)])
    assert trees == (Tree("/usr/lib", False), Tree("/usr/library", False))


def test_a_writable_tree_in_a_readable_one_is_mounted_after_it() -> None:
    """The outer mount comes first, or it would cover the inner one."""
    trees = choose_trees([Tree("/data/out", True), Tree("/data", False)])
    assert trees == (Tree("/data", False), Tree("/data/out", True))


def test_a_readable_tree_in_a_writable_one_stays_as_it_is() -> None:
    """What may be written need not be mounted again to be read."""
    assert choose_trees([Tree("/data", True), Tree("/data/in", False)]) == (Tree("/data", True),)


def test_two_grants_of_one_path_are_one_mount() -> None:
    """The wider access of the two counts."""
    assert choose_trees([Tree("/data", False), Tree("/data", True)]) == (Tree("/data", True),)


def test_devices_keep_their_own_mount() -> None:
    """A folder's mount has no devices: each device shown is mounted over it."""
    trees = choose_trees([Tree("/dev", False), Tree("/dev/null", False, True)])
    assert trees == (Tree("/dev", False), Tree("/dev/null", False, True))


def test_writable_within_readable_within_writable() -> None:
    """Only the nearest outer mount decides what still has to be mounted."""
    trees = choose_trees([Tree("/a", True), Tree("/a/b", False), Tree("/a/b/c", True)])
    assert trees == (Tree("/a", True),)
