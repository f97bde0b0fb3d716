"""Landlock plans: the rights asked for are those the kernel has, and no path gets a right it cannot have."""

import errno
import os
import re
from pathlib import Path

import pytest

from ringfence.sandbox import landlock
from ringfence.sandbox.landlock import KNOWN_ABI, Access, open_place, plan_landlock, rights, weaknesses

ALL_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}


@pytest.mark.parametrize("abi", sorted(ALL_FILE_RIGHTS))
def test_every_right_of_the_abi_is_handled(abi: int) -> None:
    """A right that is not handled is not refused: all the ABI knows are."""
    assert plan_landlock(abi).handled_fs == ALL_FILE_RIGHTS[abi]


def test_an_unknown_newer_abi_is_taken_as_the_newest_known() -> None:
    """The same plan on a kernel of the future: nothing is asked for that is not listed here."""
    assert plan_landlock(KNOWN_ABI + 5) == plan_landlock(KNOWN_ABI)
    assert plan_landlock(KNOWN_ABI).handled_fs == (1 << 17) - 1


@pytest.mark.parametrize(("abi", "net", "scoped"), [(3, 0, 0), (4, 3, 0), (5, 3, 0), (6, 3, 3), (7, 3, 3)])
def test_ports_and_scopes_come_with_their_abi(abi: int, net: int, scoped: int) -> None:
    """TCP from ABI 4, abstract sockets and signals from 6."""
    plan = plan_landlock(abi)
    assert (plan.handled_net, plan.scoped) == (net, scoped)


def test_no_port_is_open_unless_it_is_named() -> None:
    """Both directions are refused by default, each named port opens in one, None opens all of one."""
    assert plan_landlock(7).ports == ()
    plan = plan_landlock(7, connect=(443, 80), bind=(8080,))
    assert plan.handled_net == 3
    assert set(plan.ports) == {(443, 2), (80, 2), (8080, 1)}
    assert plan_landlock(7, connect=None).handled_net == 1
    assert plan_landlock(7, connect=None, bind=None).handled_net == 0


def test_a_file_gets_no_right_of_folders() -> None:
    """The kernel refuses a rule that gives a file what only a folder can have."""
    handled = plan_landlock(7).handled_fs
    everything = Access.READ | Access.LIST | Access.WRITE | Access.DELETE | Access.EXECUTE
    on_file = rights(everything, handled, is_folder=False)
    assert on_file & ~(0b111 | 1 << 14) == 0
    assert rights(everything, handled, is_folder=True) & on_file == on_file


def test_rights_are_cut_to_what_is_handled() -> None:
    """A rule may only name handled rights: on ABI 1 neither truncation nor moving exists."""
    assert rights(Access.WRITE, plan_landlock(1).handled_fs, is_folder=True) >> 13 == 0
    assert rights(Access.WRITE, plan_landlock(3).handled_fs, is_folder=True) >> 13 == 0b11


@pytest.mark.parametrize("trap", [6, 9, 10, 11, 12, 15], ids=["char", "sock", "fifo", "block", "sym", "ioctl"])
def test_no_access_makes_devices_sockets_or_links(trap: int) -> None:
    """No grant contains the making of devices, sockets, fifos and links, nor device ioctls."""
    for access in Access:
        assert not rights(access, plan_landlock(7).handled_fs, is_folder=True) & 1 << trap


def test_reading_does_not_write_and_writing_does_not_delete() -> None:
    """Each access contains its own rights only."""
    handled = plan_landlock(7).handled_fs
    read, write, delete = (rights(a, handled, is_folder=True) for a in (Access.READ, Access.WRITE, Access.DELETE))
    assert read == 0b1100
    assert not write & (0b1100 | 0b110000)
    assert delete & (1 << 1 | 1 << 8) == 0


def test_older_abis_say_what_they_cannot_refuse() -> None:
    """The gaps of an ABI are named; from 6 on there is none that matters here."""
    assert weaknesses(7) == weaknesses(6) == ()
    assert "TCP ports" in weaknesses(3)
    assert len(weaknesses(1)) == 4


def test_a_link_that_came_into_a_granted_path_is_not_followed(tmp_path: Path) -> None:
    """Wherever on the path it is; without one the very place is opened."""
    real = tmp_path.resolve()
    (real / "folder" / "inner").mkdir(parents=True)
    (real / "link").symlink_to("folder")
    place = open_place(f"{real}/folder/inner")
    assert os.fstat(place).st_ino == (real / "folder" / "inner").stat().st_ino
    os.close(place)
    for path in (f"{real}/link", f"{real}/link/inner"):
        with pytest.raises(OSError) as caught:
            open_place(path)
        assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError):
        open_place(f"{real}/folder/none")


def test_rights_are_called_as_the_kernel_calls_them() -> None:
    """Each name has the bit that the kernel's header gives it, as far as the installed header goes."""
    header = Path("/usr/include/linux/landlock.h")
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    bits = dict(re.findall(r"#define LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", header.read_text()))
    assert len(bits) > 13
    for name, bit in bits.items():
        assert landlock._NAMES[int(bit)] == name


def test_no_right_goes_without_a_name() -> None:
    """What every ABI handles, in order, is all there are names for."""
    named = [name for brought in landlock.names_by_abi().values() for name in brought]
    assert named == list(landlock._NAMES)
    assert landlock.names_of(Access.WRITE | Access.DELETE) == (
        "WRITE_FILE", "REMOVE_DIR", "REMOVE_FILE", "MAKE_DIR", "MAKE_REG", "REFER", "TRUNCATE",
    )  # fmt: skip
