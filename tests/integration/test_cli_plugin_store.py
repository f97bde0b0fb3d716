"""`ringfence plugin`: what is installed, pinned, in quarantine and watched."""

import json
import os
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from plugin_cli import CODE, NEEDY, PLAIN, Cli, command

from ringfence import PluginStore
from ringfence.cli.plugin_home import Home
from ringfence.plugins.lockfile import LockFile
from ringfence.plugins.quarantine import Quarantine

# The store


def test_a_plugin_is_installed_called_pinned_and_removed(cli: Cli) -> None:
    """By name once it is installed; the version that is pinned is the one that is meant."""
    folder = cli.write()
    assert cli.json("list")["plugins"] == []
    assert not cli.home.root.exists()  # who only looks makes nothing
    digest = cli.json("hash", "plain")["folder"]
    assert cli.json("install", "plain", "--pin", "--digest", digest)["pinned"]
    (folder / "plugin.toml").write_text(PLAIN.replace("1.0.0", "1.1.0"))
    assert not cli.json("install", "plain")["current"]
    folder.rename(cli.folder / "elsewhere")
    assert cli.json("call", "plain", "echo")["version"] == "1.0.0"
    assert cli.json("call", "plain@1.1.0", "echo")["version"] == "1.1.0"
    with PluginStore(cli.home.root).use("plain", "1.1.0"):
        assert [(each["version"], each["pinned"], each["in_use"]) for each in cli.json("list")["plugins"]] == [
            ("1.0.0", True, False), ("1.1.0", False, True)]  # fmt: skip
        assert "current, pinned" in cli("list").stdout
    assert cli.json("unpin", "plain")["version"] == "1.1.0"
    assert cli.json("pin", "plain@1.0.0")["pinned"]
    assert cli.json("remove", "plain@1.0.0") == {"name": "plain", "removed": ["1.0.0"], "left": ["1.1.0"]}
    assert cli.json("remove", "plain")["left"] == []
    assert cli.error("call", "plain", "echo", code=125)["type"] == "PluginNotFound"


def test_an_archive_is_installed_into_another_store(cli: Cli) -> None:
    """--store is another place, with its own approvals; an archive that is hostile is refused in a sentence."""
    folder = cli.write(NEEDY)
    with zipfile.ZipFile("needy.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"needy/{file.name}")
    assert cli.json("install", "needy.zip", "--store", "other")["name"] == "needy"
    assert cli.json("call", "needy", "echo", "--yes", "--store", str(cli.folder / "other"))["result"] == [[], {}]
    assert cli.json("list", "--store", "other")["plugins"][0]["approved"]
    folder.rename(cli.folder / "elsewhere")
    assert cli.error("call", "needy", "echo", code=125)["type"] == "PluginNotFound"
    assert cli.json("remove", "needy", "--purge", "--store", "other")["left"] == []
    assert LockFile(cli.folder / "other-approvals.toml").names() == ()
    with zipfile.ZipFile("evil.zip", "w") as archive:
        archive.writestr("../../evil.py", "")
    assert cli.error("install", "evil.zip")["type"] == "ArchiveRefused"
    assert cli.error("install", "elsewhere", "--digest", f"sha256:{'0' * 64}")["type"] == "DigestMismatch"


def test_a_quarantine_is_shown_and_lifted(cli: Cli) -> None:
    """What crashed too often is not started, list says why, and one command lifts it."""
    cli.write()
    cli("install", "plain")
    Quarantine(cli.home.quarantine).add("plain", "crashed 5 times \x1b[31m", 5)
    assert cli.json("list")["plugins"][0]["quarantine"]["crashes"] == 5
    assert "plain is in quarantine since" in cli("list").stdout
    assert cli.error("call", "plain", "echo", code=125)["type"] == "PluginQuarantined"
    assert cli.json("retry", "plain")["name"] == "plain"
    assert cli.json("call", "plain", "echo")["result"] == [[], {}]
    assert cli.error("retry", "plain")["type"] == "PluginNotFound"


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ({"RINGFENCE_HOME": "/a/b"}, "/a/b/plugins"),
        ({"XDG_DATA_HOME": "/data"}, "/data/ringfence/plugins"),
        ({"XDG_DATA_HOME": "relative"}, "/home/me/.local/share/ringfence/plugins"),
        ({}, "/home/me/.local/share/ringfence/plugins"),
    ],
)
def test_where_plugins_are_kept(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], root: str) -> None:
    """RINGFENCE_HOME, else the user's data folder as the XDG specification has it; approvals lie beside."""
    for name in ("RINGFENCE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    home = Home.of(None)
    assert (str(home.root), str(home.approvals)) == (root, f"{root}-approvals.toml")
    assert Home.of(Path("/else")).quarantine == Path("/else-quarantine.json")


# watch


@pytest.fixture
def watching(cli: Cli) -> Iterator[Any]:
    """`ringfence plugin watch plain --call echo`, in lines of JSON."""
    cli.write(PLAIN, "def echo(word): return word\n" + CODE.replace("def echo", "def _"))
    with subprocess.Popen(
        command("plugin", "watch", "plain", "--call", "echo", "one", "--json"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def test_watch_tells_of_each_reload_until_interrupted(cli: Cli, watching: Any) -> None:
    """A change is one line, and so is one that fails; the version before goes on; Ctrl-C is a good end."""
    file = cli.folder / "plain" / "plain.py"

    def heard() -> dict[str, Any]:
        said: dict[str, Any] = json.loads(watching.stdout.readline())
        return said

    assert heard()["event"] == "loaded"
    assert heard() == {"event": "called", "plugin": "plain", "result": "one"}
    good = file.read_text()
    file.write_text("def echo(:\n")
    failed = heard()
    assert failed["event"] == "failed"
    assert "plain.py:1" in failed["error"]["message"]
    file.write_text(good.replace("return word", "return word * 2", 1))
    while (said := heard())["event"] == "failed":  # tried again, before the file was written
        pass
    assert said["event"] == "reloaded"
    assert heard()["result"] == "oneone"
    family = psutil.Process(watching.pid).children(recursive=True)
    os.killpg(watching.pid, signal.SIGINT)
    out, err = watching.communicate(timeout=30)
    assert (watching.returncode, out, err) == (0, "", "")
    assert not psutil.wait_procs(family, timeout=20)[1]
