"""A manifest checks itself, and answers what hosts ask of it."""

import copy
import os
import pickle
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from ringfence.plugins.builder import ManifestBuilder
from ringfence.plugins.errors import (
    IncompatibleApiVersion,
    InvalidManifest,
    ManifestNotFound,
    ManifestParse,
    MissingCapability,
    MissingManifestField,
    PluginCompatibilityError,
    PluginIOError,
)
from ringfence.plugins.manifest import Dependency, Manifest
from ringfence.plugins.manifest_fields import python_matches
from ringfence.plugins.versions import HOST_API_VERSION, ApiVersion
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import UnknownCapability
from ringfence.sandbox.limits import Limits

TEXT = """\
name = "my-plugin"
version = "1.0.0"
api-version = { major = 0, minor = 18, patch = 0 }
source = "plugin.py"
"""


def _manifest(**fields: object) -> Manifest:
    basic: dict[str, object] = {"name": "a", "version": "1.0.0", "api_version": ApiVersion(0, 18), "source": "a.py"}
    return Manifest(**{**basic, **fields})


def test_all_problems_at_once() -> None:
    """All that is wrong with a file is in one error, in the order of its lines."""
    text = """\
name = "Bad"
vresion = "1"
capabilities = ["fs:raed", 3]
source = "a.py"
bytecode = "a.plb"
[metadata]
interval = "never"
"""
    with pytest.raises(InvalidManifest) as caught:
        Manifest.from_toml(text)
    starts = [problem.partition(": ")[0] for problem in caught.value.problems]
    assert starts[:7] == ["line 1", "line 2", "line 3", "line 3", "line 5", "line 7", "missing required manifest field"]
    assert len(starts) == 8
    assert "unknown capability: fs:raed" in str(caught.value)


def test_thousands_of_problems() -> None:
    """Of very many problems a hundred are told, and the rest counted; very long lists are not looked through."""
    with pytest.raises(InvalidManifest) as caught:
        Manifest.from_toml(TEXT + "".join(f"x{number} = 1\n" for number in range(5000)))
    assert len(caught.value.problems) == 101
    assert caught.value.problems[-1] == "and 4900 more problems"
    with pytest.raises(InvalidManifest, match="line 5: capabilities: has more than 200 entries"):
        Manifest.from_toml(TEXT + "capabilities = [" + '"x",' * 5000 + "]")


def test_table_plugin() -> None:
    """The table [plugin] may hold scopes and limits, each once, and nothing else."""
    text = TEXT + 'capabilities = ["fs:read"]\n[plugin.scopes]\n"fs:read" = ["/data"]\n[plugin.limits]\nwall = 1\n'
    manifest = Manifest.from_toml(text)
    assert (manifest.scopes, manifest.limits.wall) == ({"fs:read": ("/data",)}, 1.0)
    with pytest.raises(InvalidManifest, match=r"line 10: limits: is given twice; it is there as plugin.limits too"):
        Manifest.from_toml(text + "[limits]\nwall = 2\n")
    with pytest.raises(InvalidManifest, match="line 10: unknown key: 'tags'"):
        Manifest.from_toml(text + "[plugin.tags]\n")


def test_missing_field() -> None:
    """One field that is missing is an error of its own, which names it."""
    with pytest.raises(MissingManifestField) as caught:
        Manifest.from_toml(TEXT.replace('version = "1.0.0"\n', "", 1))
    assert caught.value.field == "version"
    assert str(caught.value) == "missing required manifest field: version"
    assert copy.copy(caught.value).field == "version"


def test_unknown_keys_tolerated() -> None:
    """Where the host is not strict, an unknown key is a note."""
    manifest = Manifest.from_toml(TEXT + "exprots = []\n[[dependencies]]\nname='b'\nversion='1'\nx=1\n", strict=False)
    assert "unknown key: 'exprots'; did you mean 'exports'?" in manifest.lint()
    assert manifest.dependencies[0].name == "b"


def test_legacy_api_version() -> None:
    """The old spelling is read with a DeprecationWarning, its patch may be left out; both spellings are too many."""
    text = TEXT.replace("api-version = { major = 0, minor = 18, patch = 0 }", 'api_version = "0.21"')
    with pytest.warns(DeprecationWarning, match="ringfence plugin migrate"):
        manifest = Manifest.from_toml(text)
    assert manifest.api_version == ApiVersion(0, 21, 0)
    with pytest.raises(InvalidManifest, match="line 5: api_version: is given twice"):
        Manifest.from_toml(TEXT + 'api_version = "0.21.0"\n')


def test_keywords() -> None:
    """Keywords in Python are checked as a file is, with the same errors, and both spellings of scopes work."""
    manifest = _manifest(capabilities=["fs:read", "sys:env"], scopes={"env:read": "HOME"}, limits=Limits(memory="8MiB"))
    assert manifest.capabilities == ("fs:read", "env:read")
    assert manifest.grants().to_names() == ["env:read=HOME", "fs:read"]
    with pytest.raises(InvalidManifest, match="unknown key: 'exprots'"):
        _manifest(exprots=[])
    with pytest.raises(MissingManifestField):
        Manifest(name="a", version="1.0.0", source="a.py")

    class Holder(BaseModel):
        manifest: Manifest

    assert Holder(manifest=manifest).manifest is manifest
    with pytest.raises(ValidationError, match="invalid manifest"):
        Holder.model_validate({"manifest": {"name": "a"}})


def test_frozen_and_equal() -> None:
    """A manifest cannot be changed; equality is what it says, not where it was read."""
    manifest = Manifest.from_toml(TEXT)
    with pytest.raises(ValidationError):
        manifest.name = "other"
    assert Manifest.from_toml(TEXT, path="/somewhere/plugin.toml") == manifest
    assert hash(Manifest.from_toml(TEXT)) == hash(manifest)
    assert manifest != _manifest() and manifest != 1
    twin = pickle.loads(pickle.dumps(Manifest.from_toml(TEXT, path="/x/plugin.toml")))
    assert twin == manifest and twin.path == Path("/x/plugin.toml")
    assert repr(manifest) == "Manifest('my-plugin', '1.0.0', path=None)"


def test_entry_points() -> None:
    """Source, bytecode or a program: exactly one, and the program only with its runtime."""
    assert (_manifest().entry_point(), _manifest().uses_source()) == ("a.py", True)
    compiled = _manifest(source=None, bytecode="a.plb")
    assert (compiled.entry_point(), compiled.uses_source()) == ("a.plb", False)
    program = _manifest(source=None, runtime="executable", program="bin/run", protocol="json")
    assert (program.entry_point(), program.protocol) == ("bin/run", "json")
    with pytest.raises(InvalidManifest, match="manifest must specify either 'source' or 'bytecode'"):
        _manifest(source=None)
    with pytest.raises(InvalidManifest, match="cannot specify both source and bytecode"):
        _manifest(bytecode="a.plb")
    with pytest.raises(InvalidManifest, match="needs the field program"):
        _manifest(source=None, runtime="executable")


def test_d10() -> None:
    """The name's pattern, the version and both entry points are all checked, and told together."""
    with pytest.raises(InvalidManifest) as caught:
        _manifest(name="a\n", version="one", bytecode="a.plb")
    assert len(caught.value.problems) == 3


def test_capabilities() -> None:
    """Both spellings of a capability are one; an unknown one is an error here too."""
    manifest = _manifest(capabilities=["sys:time", "fs:read"])
    assert manifest.requires_capability("time:read")
    assert manifest.requires_capability("sys:time")
    assert manifest.requires_capability(Capability.FILE_READ)
    assert not manifest.requires_capability("fs:write")
    with pytest.raises(UnknownCapability):
        manifest.requires_capability("fs:wirte")
    with pytest.raises(InvalidManifest, match=r"has a scope; write 'fs:read' here"):
        _manifest(capabilities=["fs:read=/data"])


def test_exceeds() -> None:
    """What is asked for beyond what is allowed is told as grants, and the first of it in the manifest's order."""
    manifest = _manifest(capabilities=["fs:read", "fs:write", "fs:delete"], scopes={"fs:read": ["/var/log"]})
    allowed = Capabilities(["fs:read=/var", "fs:metadata"])
    assert manifest.exceeds(allowed).to_names() == ["fs:delete", "fs:write"]
    assert str(manifest.first_missing(allowed)) == "fs:write"
    assert manifest.exceeds(Capabilities.all()).to_names() == ["fs:read=/var/log"]
    assert manifest.first_missing(Capabilities(["fs:read=/", "fs:write", "fs:delete"])) is None


def test_validate_for() -> None:
    """A host can check version, Python and capabilities before anything is loaded."""
    manifest = _manifest(capabilities=["fs:read", "fs:write"])
    manifest.validate_for()
    manifest.validate_for(HOST_API_VERSION, Capabilities(["fs:read", "fs:write"]))
    with pytest.raises(MissingCapability) as caught:
        manifest.validate_for(allowed=Capabilities(["fs:read"]))
    assert (caught.value.capability, caught.value.plugin) == ("fs:write", "a")
    newer = _manifest(api_version=ApiVersion(0, 22))
    assert not newer.is_compatible_with_host(ApiVersion(0, 21, 0))
    with pytest.raises(IncompatibleApiVersion) as other:
        newer.validate_for(ApiVersion(0, 21, 0))
    assert (other.value.required, other.value.host) == (ApiVersion(0, 22), ApiVersion(0, 21, 0))
    with pytest.raises(PluginCompatibilityError, match="requires Python <3"):
        _manifest(requires_python="<3").validate_for()
    _manifest(requires_python=f">={sys.version_info[0]}.{sys.version_info[1]}").validate_for()


@pytest.mark.parametrize(
    ("requirement", "version", "holds"),
    [
        (">=3.11", (3, 11, 0), True),
        (">=3.11", (3, 9, 9), False),
        (">=3.11,<4", (4, 0, 0), False),
        ("==3.11.*", (3, 11, 7), True),
        ("!=3.11.*", (3, 11, 7), False),
        ("~=3.11", (3, 14, 0), True),
        ("~=3.11", (4, 0, 0), False),
        ("~=3.11.2", (3, 11, 1), False),
        ("==3.11", (3, 11, 0), True),
        (">3.11", (3, 11, 1), True),
        ("<=3.11", (3, 11, 1), False),
        ("!=3.12.1", (3, 12, 1), False),
    ],
)
def test_python_matches(requirement: str, version: tuple[int, ...], holds: bool) -> None:
    """A requirement of Python is read as PEP 440 means it."""
    assert python_matches(requirement, version) is holds


def test_relative_scopes(tmp_path: Path) -> None:
    """A relative scope is in the plugin's folder, even where it is not there yet; a link out of it is refused."""
    (tmp_path / "plugin.toml").write_text(TEXT + 'capabilities = ["fs:write"]\n[scopes]\n"fs:write" = ["out/new"]\n')
    manifest = Manifest.from_file(tmp_path / "plugin.toml")
    assert manifest.grants().scopes(Capability.FS_WRITE) == (str(tmp_path.resolve() / "out/new"),)
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(InvalidManifest, match="leads outside the plugin's folder"):
        manifest.grants()
    with pytest.raises(InvalidManifest, match="has no folder"):
        Manifest.from_toml(TEXT + 'capabilities = ["fs:write"]\nscopes = {"fs:write" = ["out"]}\n').grants()


def test_dependency() -> None:
    """A dependency is made by what it is, and tells it."""
    assert Dependency.required("a", "^1.0").optional is False
    dependency = Dependency.optional("b", "^1.0")
    assert dependency.optional is True
    assert dependency.requirement.matches("1.4.0")
    assert dependency == Dependency(name="b", version="^1.0", optional=True)
    with pytest.raises(InvalidManifest, match="dependency name"):
        Dependency.required("A", "^1.0")
    assert _manifest(dependencies=[dependency]).dependencies == (dependency,)


def test_builder() -> None:
    """The builder says the same as keywords, checks all at the end, or nothing."""
    built = (
        ManifestBuilder("a", "1.0.0")
        .description("Does it")
        .author("Ada")
        .license("MIT")
        .api_version(ApiVersion(0, 18))
        .capability(Capability.FS_READ, "data")
        .capabilities(["sys:time"])
        .dependency(Dependency.required("b", "1.0.0"))
        .source("a.py")
        .export("main")
        .exports(["process", "stop"])
        .tag("terminal")
        .metadata("category", "ui")
        .limits(Limits(wall=1))
        .build()
    )
    assert built == _manifest(
        description="Does it",
        authors=["Ada"],
        license="MIT",
        capabilities=["fs:read", "time:read"],
        scopes={"fs:read": ["data"]},
        dependencies=[{"name": "b", "version": "1.0.0"}],
        exports=["main", "process", "stop"],
        tags=["terminal"],
        metadata={"category": "ui"},
        limits={"wall": 1},
    )
    assert ManifestBuilder("a", "1.0.0").bytecode("a.plb").build().api_version == HOST_API_VERSION
    assert ManifestBuilder("a", "1.0.0").program("run", "json").build().runtime == "executable"
    with pytest.raises(InvalidManifest):
        ManifestBuilder("A", "1").source("a.py").build()
    unchecked = ManifestBuilder("A", "1").exports(["x"]).build_unchecked()
    assert (unchecked.name, unchecked.exports, unchecked.tags) == ("A", ("x",), ())


def test_lint() -> None:
    """What works and is better written otherwise is told."""
    notes = _manifest(
        capabilities=["fs:execute"],
        exports=["report"],
        metadata={"category": "daemon", "interval": 5, "interactive": True},
    ).lint()
    assert [note.partition(":")[0] for note in notes] == [
        "metadata.interval",
        "metadata.interactive",
        "exports",
        "metadata.interactive",
        "capabilities",
        "description",
    ]
    assert "exports" in _manifest(metadata={"category": "ui"}, exports=["x"], description="x").lint()[0]


class TestFiles:
    def test_by_suffix_and_folder(self, tmp_path: Path) -> None:
        """The suffix says what a file is, and a folder means the manifest in it."""
        (tmp_path / "plugin.toml").write_text(TEXT)
        (tmp_path / "other.json").write_text(Manifest.from_toml(TEXT).to_json())
        (tmp_path / "other.yaml").write_text(TEXT)
        read = Manifest.from_file(tmp_path)
        assert read.path == tmp_path / "plugin.toml" and read.folder == tmp_path
        assert read.raw == TEXT.encode()
        assert Manifest.from_file(os.fspath(tmp_path / "other.json")) == read
        with pytest.raises(ManifestParse, match=r"ends in .toml or .json"):
            Manifest.from_file(tmp_path / "other.yaml")

    def test_not_there(self, tmp_path: Path) -> None:
        """A manifest that is not there is told by its path."""
        for path in (tmp_path / "plugin.toml", tmp_path, tmp_path / "a" / "b.toml"):
            with pytest.raises(ManifestNotFound) as caught:
                Manifest.from_file(path)
            assert caught.value.path.endswith(".toml")

    def test_no_regular_file(self, tmp_path: Path) -> None:
        """A FIFO, a device, and a link out of the folder are refused without waiting; a link inside is followed."""
        os.mkfifo(tmp_path / "fifo.toml")
        (tmp_path / "null.toml").symlink_to("/dev/null")
        (tmp_path / "out.toml").symlink_to("/etc/passwd")
        (tmp_path / "loop.toml").symlink_to("loop.toml")
        (tmp_path / "folder.toml").mkdir()
        for name in ("fifo.toml", "null.toml", "out.toml", "loop.toml"):
            with pytest.raises(InvalidManifest, match=r"no regular file|outside"):
                Manifest.from_file(tmp_path / name)
        (tmp_path / "real.toml").write_text(TEXT)
        (tmp_path / "link.toml").symlink_to("real.toml")
        assert Manifest.from_file(tmp_path / "link.toml").name == "my-plugin"

    def test_too_large(self, tmp_path: Path) -> None:
        """A file that is too large is refused before it is parsed."""
        (tmp_path / "plugin.toml").write_text(TEXT + "#" * (256 * 1024))
        with pytest.raises((ManifestParse, InvalidManifest), match="larger than"):
            Manifest.from_file(tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        """A file that may not be read is an error of the IO category."""
        (tmp_path / "plugin.toml").write_text(TEXT)
        (tmp_path / "plugin.toml").chmod(0)
        with pytest.raises(PluginIOError):
            Manifest.from_file(tmp_path)


class TestSource:
    def test_bare(self, tmp_path: Path) -> None:
        """A source file alone is a plugin: its stem is the name, its version 0.0.0, every public function exported."""
        (tmp_path / "My_Tool.py").write_text("def process(): ...\n")
        manifest = Manifest.from_source(tmp_path / "My_Tool.py")
        assert (manifest.name, manifest.version, manifest.source) == ("my-tool", "0.0.0", "My_Tool.py")
        assert (manifest.exports, manifest.capabilities, manifest.api_version) == ((), (), HOST_API_VERSION)

    def test_d9(self, tmp_path: Path) -> None:
        """The block in its comments is its manifest, exports included, with the file's own line numbers in errors."""
        block = '# /// plugin\n# name = "tool"\n# version = "1.2.0"\n# exports = ["process"]\n# ///\n'
        file = tmp_path / "tool.py"
        file.write_text(f'"""A tool."""\n{block}def process(): ...\n')
        manifest = Manifest.from_source(file)
        assert (manifest.name, manifest.version, manifest.exports) == ("tool", "1.2.0", ("process",))
        assert manifest.path == file
        file.write_text('"""A tool."""\n' + block.replace("exports", "exprots"))
        with pytest.raises(InvalidManifest, match="line 5: unknown key: 'exprots'"):
            Manifest.from_source(file)
        file.write_text(block.replace('"tool"', '"tool'))
        with pytest.raises(ManifestParse) as caught:
            Manifest.from_source(file)
        assert caught.value.line == 2
        file.write_text(block.replace('name = "tool"', 'source = "other.py"'))
        with pytest.raises(InvalidManifest, match="describes that file"):
            Manifest.from_source(file)


def test_a_single_unknown_capability_is_told_as_that_too(tmp_path: Path) -> None:
    """Who catches UnknownCapability has it with its suggestions, who catches InvalidManifest with its line."""
    file = tmp_path / "plugin.toml"
    text = 'name = "a"\nversion = "1.0.0"\napi-version = "0.18.0"\nsource = "a.py"\n'
    file.write_text(text + 'capabilities = ["fs:reed"]\n')
    (tmp_path / "a.py").write_text("")
    with pytest.raises(UnknownCapability) as caught:
        Manifest.from_file(file)
    error = caught.value
    assert isinstance(error, InvalidManifest)
    assert (error.name, error.suggestions[0], error.path) == ("fs:reed", "fs:read", str(file))
    assert "line 5: unknown capability: fs:reed; did you mean 'fs:read'" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.name) == (type(error), str(error), "fs:reed")
