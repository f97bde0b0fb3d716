"""Learning: from what was touched to the fewest grants, each with its reason."""

import pytest

from ringfence.sandbox.learning import Lesson, Reason, Surroundings, Touch, Usage, learn, limits_for

AROUND = Surroundings(temporary="/tmp", home="/home/me", accepts=lambda grant: not grant.startswith("net:request=h"))


def _grants(*touches: Touch, around: Surroundings = AROUND) -> list[str]:
    return [reason.grant for reason in learn(touches, around).grants]


def _read(path: str, existed: bool = True) -> Touch:
    return Touch("read", path, existed, "main.py:1")


def _write(path: str, existed: bool = False) -> Touch:
    return Touch("write", path, existed, "main.py:2")


@pytest.mark.parametrize(
    ("touches", "expected"),
    [
        ([], []),
        ([_read("/data/a")], ["fs:read=/data/a"]),
        ([_read(f"/srv/data/{n}") for n in range(4)], ["fs:read=/srv/data"]),
        ([_read(f"/srv/data/{n}") for n in range(3)], [f"fs:read=/srv/data/{n}" for n in range(3)]),
        ([_read("/srv/data/a"), Touch("list", "/srv/data")], ["fs:read=/srv/data"]),
        ([_read(f"/etc/{n}") for n in range(5)], [f"fs:read=/etc/{n}" for n in range(5)]),
        ([_read(f"/home/me/{n}") for n in range(5)], [f"fs:read=/home/me/{n}" for n in range(5)]),
        ([_read("/srv/missing", existed=False)], []),
        ([_write("/srv/out/new")], ["fs:write=/srv/out"]),
        ([_write("/srv/out/old", existed=True)], ["fs:write=/srv/out/old"]),
        ([Touch("make", "/srv/out/d", False), _write("/srv/out/d/new")], ["fs:write=/srv/out"]),
        ([_write("/srv/out/new"), _read("/srv/out/new")], ["fs:read=/srv/out", "fs:write=/srv/out"]),
        ([_write("/tmp/xyz"), _read("/tmp/xyz"), Touch("delete", "/tmp/xyz")], ["fs:write"]),
        ([_write("/tmp", existed=True)], ["fs:write"]),
        ([Touch("delete", "/srv/out/old")], ["fs:delete=/srv/out"]),
        ([Touch("database", "/srv/x.db")], ["fs:read=/srv/x.db"]),
        (
            [Touch("database", "/srv/db/x", changed=True)],
            ["fs:delete=/srv/db", "fs:read=/srv/db", "fs:write=/srv/db"],
        ),
        ([Touch("meta", "/srv/x")], ["fs:metadata"]),
        ([_write("/srv/x", existed=True), Touch("meta", "/srv/x")], ["fs:write=/srv/x"]),
        ([Touch("import", "/srv/lib/a.py")], ["fs:read=/srv/lib"]),
        ([Touch("env", "TOKEN")], ["env:read=TOKEN"]),
        ([Touch("env", "no name")], []),
        (
            [Touch("program", "/bin/ls"), Touch("program", "/bin/cat")],
            ["process:exec=/bin/cat", "process:exec=/bin/ls"],
        ),
        ([Touch("program", "/bin/ls"), Touch("shell", "sh")], ["process:exec"]),
        ([Touch("fork", "")], ["process:exec"]),
        ([Touch("listen", "8080")], ["net:listen=8080"]),
        ([Touch("connect", "192.0.2.1|443")], ["net:request=192.0.2.1:443"]),
        ([Touch("connect", "::1|443")], ["net:request=[::1]:443"]),
        ([Touch("listen", "0"), Touch("connect", "127.0.0.1|40000")], ["net:listen=0", "net:request"]),
        ([Touch("lookup", "example.com")], ["net:dns"]),
        ([Touch("lookup", "192.0.2.1")], []),
        ([Touch("udp", "192.0.2.1")], ["net:dns"]),
        (
            [Touch("lookup", "h.example"), Touch("name", "192.0.2.1|h.example"), Touch("connect", "192.0.2.1|80")],
            ["net:dns", "net:request=:80"],
        ),
    ],
)  # fmt: skip
def test_the_fewest_grants(touches: list[Touch], expected: list[str]) -> None:
    """Folders for many files, never a whole home or the system's own; what is made there goes where it is made."""
    assert _grants(*touches) == expected


def test_a_host_by_its_name_where_that_can_be_enforced() -> None:
    """The name that was looked up, not the address that it had at the time; no name service of the worker's own."""
    around = Surroundings(temporary="/tmp", home="/home/me")
    touches = [Touch("lookup", "a.example"), Touch("name", "192.0.2.1|a.example"), Touch("connect", "192.0.2.1|80")]
    assert _grants(*touches, around=around) == ["net:request=a.example:80"]


def test_a_plugins_own_folder_is_the_bare_grant() -> None:
    """Its modules are sent to it, its data is read with fs:read."""
    around = Surroundings(temporary="/tmp", home="/home/me", folder="/srv/plugin")
    assert _grants(Touch("import", "/srv/plugin/a.py"), around=around) == []
    assert _grants(_read("/srv/plugin/data/x"), _read("/srv/y"), around=around) == ["fs:read", "fs:read=/srv/y"]


def test_each_grant_has_its_reason_and_dangerous_ones_a_warning() -> None:
    """The first line that needed it; what it gives away besides."""
    (reason,) = learn([_read("/data/a"), _read("/data/a")], AROUND).grants
    assert reason == Reason("fs:read=/data/a", "reads a", "main.py:1")
    (removal,) = learn([Touch("delete", "/srv/out/x", True, "main.py:9")], AROUND).grants
    assert (removal.where, removal.warning) == ("main.py:9", "it may remove whatever is there")
    (wide,) = learn([_write("/home/me/new")], AROUND).grants
    assert wide.grant == "fs:write=/home/me" and "folder of its own" in wide.warning
    assert learn([Touch("link", "/srv/l", True, "main.py:3")], AROUND).beyond == (
        "main.py:3: it makes links, which no capability allows",
    )


def test_further_grants_replace_those_that_they_cover() -> None:
    """What a locked-in run was refused is added once."""
    lesson = Lesson((Reason("fs:read=/a/b", "x"),)).with_more([Reason("fs:read=/a", "y"), Reason("fs:read=/a", "z")])
    assert [(reason.grant, reason.why) for reason in lesson.grants] == [("fs:read=/a", "y")]


def test_limits_have_head_room() -> None:
    """Twice what was used, and never too little to start."""
    assert limits_for(Usage()) == {
        "memory": "64MiB", "cpu": "1s", "wall": "5s", "processes": "4", "open_files": "64", "file_size": "1MiB",
    }  # fmt: skip
    used = Usage(memory=100 << 20, cpu=3.2, wall=10, processes=5, open_files=100, file_size=5 << 20)
    assert limits_for(used) == {
        "memory": "208MiB", "cpu": "7s", "wall": "20s", "processes": "10", "open_files": "200", "file_size": "10MiB",
    }  # fmt: skip
