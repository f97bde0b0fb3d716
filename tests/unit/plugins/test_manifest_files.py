"""The example manifests load and survive rewriting; each bad one is refused with the sentence in its first line."""

from pathlib import Path

import pytest

from ringfence.plugins.errors import InvalidManifest, MissingManifestField, UnknownCapability
from ringfence.plugins.kinds import PluginKind
from ringfence.plugins.manifest import Manifest

DATA = Path(__file__).parents[2] / "data" / "manifests"
GOOD = sorted(file for file in DATA.iterdir() if file.is_file())
BAD = sorted((DATA / "bad").iterdir())


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.name)
def test_round_trip(file: Path) -> None:
    """TOML -> model -> JSON -> model -> TOML -> model changes nothing."""
    read = Manifest.from_file(file)
    through_json = Manifest.from_json(read.to_json())
    assert through_json == read
    through_toml = Manifest.from_toml(through_json.to_toml())
    assert through_toml == read
    assert through_toml.to_toml() == read.to_toml()
    assert read.is_compatible_with_host()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_bad(file: Path) -> None:
    """A manifest that breaks one rule is refused for that rule, with its line, and for nothing else."""
    says = file.read_text().partition("\n")[0].removeprefix("# says: ")
    with pytest.raises(InvalidManifest) as caught:
        Manifest.from_file(file)
    assert len(caught.value.problems) == 1, caught.value.problems
    assert says in caught.value.problems[0]
    assert caught.value.path == str(file)
    if says.startswith("missing required"):
        assert type(caught.value) is MissingManifestField
    else:
        assert isinstance(caught.value, InvalidManifest)
        assert isinstance(caught.value, UnknownCapability) == ("unknown capability" in says)


def test_every_rule_has_a_bad_file() -> None:
    """M3 to M16, apart from what is no rule about a file, is broken by a file each."""
    covered = {file.name[:3] for file in BAD}
    # M7, M8 and M10 are about methods.
    assert {f"m{number:02}" for number in (1, 3, 4, 5, 6, 9, 11, 12, 13, 14, 15, 16, 17)} <= covered


def test_full() -> None:
    """Every field of the full example is read as it is meant."""
    full = Manifest.from_file(DATA / "full.toml")
    assert (full.name, full.version, str(full.api_version)) == ("log-processor", "2.1.0-beta.1", "0.21.0")
    assert full.authors == ("Ada Example <ada@example.org>", "Grace Example")
    assert full.capabilities == ("fs:read", "net:request", "time:read")
    assert full.limits.to_mapping() == {"memory": 64 << 20, "wall": 5.0, "processes": 4}
    needed = [(dependency.name, dependency.optional) for dependency in full.dependencies]
    assert needed == [("line-reader", False), ("colours", True)]
    assert (full.kind, full.interval, full.behaviour.interactive) == (PluginKind.DAEMON, 60.0, False)
    assert full.profile == "observability"
    assert sorted(full.grants().to_names()) == sorted([
        "fs:read",
        "fs:read=/var/log",
        f"fs:read={(DATA / 'data').resolve()}",
        "net:request=collector.example.org:443",
        "time:read",
    ])  # fmt: skip
    assert full.lint() == []


def test_kinds() -> None:
    """A UI plugin's booleans and numbers are taken, and noted; a hybrid one is recognised."""
    ui = Manifest.from_file(DATA / "ui.toml")
    assert ui.kind is PluginKind.UI
    assert (ui.behaviour.min_width, ui.behaviour.min_height, ui.behaviour.requires_terminal) == (40, 12, True)
    assert ui.metadata["interactive"] == "true"
    assert [note.partition(":")[0] for note in ui.lint()] == [
        "metadata.interactive",
        "metadata.requires-terminal",
        "metadata.min-width",
        "metadata.min-height",
    ]
    assert ui.profile == "terminal"
    assert Manifest.from_file(DATA / "from-json.json").kind is PluginKind.HYBRID
    assert Manifest.from_file(DATA / "minimal.toml").kind is PluginKind.GENERIC
