"""A plugin's files are found in its folder and nowhere else, and one digest stands for all of its code."""

import contextlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringfence.plugins import folder as folder_module
from ringfence.plugins.beneath import inside, read_inside
from ringfence.plugins.errors import InvalidManifest, PluginIOError
from ringfence.plugins.folder import check_hash, code_hash, extract_plugin_name, main_module, modules_of, read_code
from ringfence.plugins.manifest import Manifest

TEXT = 'name = "my-plugin"\nversion = "1.0.0"\napi-version = { major = 0, minor = 18, patch = 0 }\n'


def _plugin(folder: Path, entry: str = 'source = "main.py"', manifest: str = "plugin.toml", **files: str) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / manifest).write_text(TEXT + entry + "\n")
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Manifest.from_file(folder / manifest)


class TestInside:
    @pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..", "a/..", "", "a\0b", "a\nb", "x" * 2000])
    def test_names(self, tmp_path: Path, name: str) -> None:
        """A name that could lead outside is refused, whatever is or is not there."""
        with pytest.raises(InvalidManifest, match=r"^invalid manifest: source: "):
            inside(tmp_path, name, "source")

    def test_d13(self, tmp_path: Path) -> None:
        """A file that does not exist is judged by where it would be: its parents are resolved."""
        allowed = tmp_path / "allowed"
        allowed.mkdir()
        (allowed / "etc").symlink_to("/etc")
        (allowed / "sub").mkdir()
        assert inside(allowed, "sub/new/file") == allowed.resolve() / "sub/new/file"
        for name in ("../etc/new", "sub/../../etc/new", "etc/new", "etc"):
            with pytest.raises(InvalidManifest):
                inside(allowed, name)

    def test_sibling_with_same_start(self, tmp_path: Path) -> None:
        """A folder whose name only starts alike is outside."""
        (tmp_path / "a").mkdir()
        (tmp_path / "ab").mkdir()
        (tmp_path / "a" / "link").symlink_to(tmp_path / "ab")
        with pytest.raises(InvalidManifest, match="outside"):
            inside(tmp_path / "a", "link")

    def test_folder_over_link(self, tmp_path: Path) -> None:
        """The folder itself may be reached over a link, and links within it are followed."""
        (tmp_path / "real" / "sub").mkdir(parents=True)
        (tmp_path / "real" / "sub" / "x").write_bytes(b"data")
        (tmp_path / "real" / "y").symlink_to("sub/x")
        (tmp_path / "link").symlink_to("real")
        assert read_inside(tmp_path / "link", "y", 10) == b"data"

    def test_read(self, tmp_path: Path) -> None:
        """What is read is a regular file within its limit; the rest is an error that says which."""
        (tmp_path / "x").write_bytes(b"12345")
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "zero").symlink_to("/dev/zero")
        (tmp_path / "folder").mkdir()
        assert read_inside(tmp_path, "x", 5) == b"12345"
        for name, words in [
            ("x", "larger than 4 bytes"),
            ("fifo", "no regular file"),
            ("zero", "outside"),
            ("folder", "no regular file"),
            (".", "is a folder"),
        ]:
            with pytest.raises(InvalidManifest, match=words):
                read_inside(tmp_path, name, 4)
        with pytest.raises(PluginIOError, match="bytecode: No such file"):
            read_inside(tmp_path, "gone", 4, "bytecode")

    def test_socket(self, tmp_path: Path) -> None:
        """A socket is no regular file."""
        with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(tmp_path):
            listening.bind("x")
            with pytest.raises(InvalidManifest, match="no regular file"):
                read_inside(tmp_path, "x", 10)

    def test_link_after_check(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder swapped for a link between the check and the opening is refused by the kernel."""
        (tmp_path / "plugin" / "sub").mkdir(parents=True)
        (tmp_path / "outside").mkdir()
        for where in ("plugin/sub", "outside"):
            (tmp_path / where / "x").write_text(where)
        honest = inside(tmp_path / "plugin", "sub/x")
        (tmp_path / "plugin" / "sub" / "x").unlink()
        (tmp_path / "plugin" / "sub").rmdir()
        (tmp_path / "plugin" / "sub").symlink_to(tmp_path / "outside")
        monkeypatch.setattr("ringfence.plugins.beneath.inside", lambda *_: honest)
        with pytest.raises((InvalidManifest, PluginIOError)):
            read_inside(tmp_path / "plugin", "sub/x", 100)

    @given(st.text(max_size=30))
    def test_any_name(self, name: str) -> None:
        """Any name is a path inside, or an InvalidManifest."""
        top = Path("/usr/lib")
        try:
            assert inside(top, name).is_relative_to(top.resolve())
        except InvalidManifest:
            pass


class TestModules:
    def test_flat(self, tmp_path: Path) -> None:
        """A main.py has the modules and packages beside it, itself first; other files are data."""
        manifest = _plugin(
            tmp_path / "p",
            **{
                "main.py": "m",
                "words.py": "w",
                "not-a-module.py": "",
                "data.json": "{}",
                "parts/__init__.py": "",
                "parts/one.py": "1",
                "parts/deep/__init__.py": "",
                "parts/data/x.txt": "",
                "plain/no_package.py": "",
                "__pycache__/main.cpython-311.pyc": "",
                ".hidden/__init__.py": "",
            },
        )
        modules = modules_of(manifest)
        assert [(module.name, module.is_package) for module in modules] == [
            ("main", False),
            ("parts", True),
            ("parts.deep", True),
            ("parts.one", False),
            ("words", False),
        ]
        assert modules[0].source == b"m"
        assert modules[3].filename == str(tmp_path.resolve() / "p/parts/one.py")

    @pytest.mark.parametrize(
        ("source", "main", "names"),
        [
            ("pkg/__init__.py", "pkg", {"pkg", "pkg.a", "beside"}),
            ("pkg/a.py", "pkg.a", {"pkg", "pkg.a", "beside"}),
            ("src/pkg/a.py", "pkg.a", {"pkg", "pkg.a", "tool"}),
            ("src/tool.py", "tool", {"tool", "pkg", "pkg.a"}),
            ("./beside.py", "beside", {"beside", "pkg", "pkg.a"}),
        ],
    )
    def test_package(self, tmp_path: Path, source: str, main: str, names: set[str]) -> None:
        """Imports start from the folder that the file's package is in."""
        files = {f"{top}pkg/{name}.py": name for top in ("", "src/") for name in ("__init__", "a")}
        manifest = _plugin(tmp_path / "p", f'source = "{source}"', **files, **{"beside.py": "", "src/tool.py": ""})
        assert main_module(manifest) == main
        modules = modules_of(manifest)
        assert modules[0].name == main
        assert {module.name for module in modules} == names

    def test_folder_is_package(self, tmp_path: Path) -> None:
        """A folder that is itself a package is called as the plugin, so that its relative imports work."""
        files = {"__init__.py": "", "a.py": "", "b/__init__.py": ""}
        manifest = _plugin(tmp_path / "p", 'source = "__init__.py"', **files)
        assert [module.name for module in modules_of(manifest)] == ["my_plugin", "my_plugin.a", "my_plugin.b"]
        other = _plugin(tmp_path / "q", 'source = "a.py"', **{"__init__.py": "", "a.py": ""})
        assert [module.name for module in modules_of(other)] == ["my_plugin.a", "my_plugin"]

    def test_shared_folder(self, tmp_path: Path) -> None:
        """In a folder with manifests of other names, a plugin is its file or package alone."""
        files = {"a.py": "", "b.py": "", "pkg/__init__.py": "", "pkg/one.py": ""}
        assert [m.name for m in modules_of(_plugin(tmp_path / "p", 'source = "a.py"', "a.toml", **files))] == ["a"]
        package = _plugin(tmp_path / "p", 'source = "pkg/__init__.py"', "c.toml")
        assert [m.name for m in modules_of(package)] == ["pkg", "pkg.one"]

    def test_source_alone(self, tmp_path: Path) -> None:
        """A source file without a manifest is alone even in a package of some application; an __init__.py is not."""
        _plugin(tmp_path / "p", **{"__init__.py": "", "tool.py": "", "other.py": ""})
        assert [m.name for m in modules_of(Manifest.from_source(tmp_path / "p/tool.py"))] == ["tool"]
        package = Manifest.from_source(tmp_path / "p/__init__.py")
        assert {m.name for m in modules_of(package)} == {"p", "p.tool", "p.other"}

    def test_names_of_the_library(self, tmp_path: Path) -> None:
        """A file called as a module of the library does not take its place; a package so called is refused."""
        assert main_module(_plugin(tmp_path / "p", 'source = "json.py"', **{"json.py": ""})) == "json_"
        assert main_module(_plugin(tmp_path / "q", 'source = "my-tool.py"', **{"my-tool.py": ""})) == "my_tool"
        for name in ("json", "my-pkg"):
            files = {f"{name}/__init__.py": "", f"{name}/a.py": ""}
            manifest = _plugin(tmp_path / name, f'source = "{name}/a.py"', **files)
            with pytest.raises(InvalidManifest, match="cannot be imported"):
                modules_of(manifest)

    def test_links_out(self, tmp_path: Path) -> None:
        """A module or package that is a link out of the folder is refused, the source too."""
        manifest = _plugin(tmp_path / "p", **{"main.py": ""})
        (tmp_path / "secret.py").write_text("secret")
        (tmp_path / "pkg").mkdir()
        (tmp_path / "pkg/__init__.py").write_text("")
        for name, target in [("other.py", "secret.py"), ("pkg", "pkg")]:
            (tmp_path / "p" / name).symlink_to(tmp_path / target)
            with pytest.raises(InvalidManifest):
                modules_of(manifest)
            (tmp_path / "p" / name).unlink()
        (tmp_path / "p/main.py").unlink()
        (tmp_path / "p/main.py").symlink_to("../secret.py")
        with pytest.raises(InvalidManifest, match="outside the plugin's folder"):
            modules_of(manifest)

    def test_too_much(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Too many modules, too large ones and too many bytes together are refused."""
        manifest = _plugin(tmp_path / "p", **{"main.py": "12345", "a.py": "12345", "b.py": "12345"})
        for limit, value, words in [
            ("MAX_MODULES", 2, "more than 2 modules"),
            ("MAX_MODULE_BYTES", 4, "larger than 4 bytes"),
            ("MAX_CODE_BYTES", 14, "MiB of modules"),
        ]:
            with monkeypatch.context() as patch, pytest.raises(InvalidManifest, match=words):
                patch.setattr(folder_module, limit, value)
                modules_of(manifest)
        assert len(modules_of(manifest)) == 3

    def test_too_deep(self, tmp_path: Path) -> None:
        """Packages in packages without end are refused."""
        deep = "/".join(["p"] * 20)
        files = {f"{deep[: 2 * depth + 1]}/__init__.py": "" for depth in range(20)}
        with pytest.raises(InvalidManifest, match="nested more than 16 deep"):
            modules_of(_plugin(tmp_path / "p", **{"main.py": ""}, **files))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root lists every folder")
    def test_unreadable(self, tmp_path: Path) -> None:
        """A package that may not be listed is an error of the IO category."""
        manifest = _plugin(tmp_path / "p", **{"main.py": "", "x/__init__.py": ""})
        (tmp_path / "p/x").chmod(0o100)
        with pytest.raises(PluginIOError):
            modules_of(manifest)
        (tmp_path / "p/x").chmod(0o700)

    def test_one_name_twice(self, tmp_path: Path) -> None:
        """Two files that would be one module are an error, not a guess."""
        manifest = _plugin(tmp_path / "p", **{"main.py": "", "x.py": "", "x/__init__.py": ""})
        with pytest.raises(InvalidManifest, match="would both be the module x"):
            modules_of(manifest)

    def test_no_folder(self) -> None:
        """A manifest that belongs to no file has no modules to read."""
        with pytest.raises(InvalidManifest, match="no folder"):
            modules_of(Manifest.from_toml(TEXT + 'source = "a.py"'))


class TestDigest:
    def test_any_change(self, tmp_path: Path) -> None:
        """Any change to code, to a file's name, or to the manifest changes the hash; data files do not."""
        files = {"main.py": "m", "a.py": "1", "data.txt": "x"}
        seen = {code_hash(_plugin(tmp_path / "p", **files))}
        assert code_hash(_plugin(tmp_path / "q", **files)) in seen  # not where the plugin lies
        (tmp_path / "p/data.txt").write_text("y")
        assert code_hash(Manifest.from_file(tmp_path / "p")) in seen
        (tmp_path / "p/a.py").write_text("2")
        seen.add(code_hash(Manifest.from_file(tmp_path / "p")))
        (tmp_path / "p/a.py").rename(tmp_path / "p/b.py")
        seen.add(code_hash(Manifest.from_file(tmp_path / "p")))
        (tmp_path / "p/plugin.toml").write_text(TEXT + 'source = "main.py" # \n')
        seen.add(code_hash(Manifest.from_file(tmp_path / "p")))
        assert len(seen) == 4

    def test_nothing_moves_between_files(self, tmp_path: Path) -> None:
        """Bytes that move from one file's end to the next one's start make another digest."""
        one = read_code(_plugin(tmp_path / "p", **{"main.py": "", "a.py": "xy", "b.py": "z"}))
        two = read_code(_plugin(tmp_path / "q", **{"main.py": "", "a.py": "x", "b.py": "yz"}))
        assert one.digest != two.digest

    def test_declared_hash(self, tmp_path: Path) -> None:
        """Code that is not what the manifest's hash says is refused."""
        manifest = _plugin(tmp_path / "p", **{"main.py": "m"})
        code = read_code(manifest)
        check_hash(manifest, code)
        right = _plugin(tmp_path / "p", f'source = "main.py"\nhash = "{code.digest}"')
        assert read_code(right).digest == code.digest
        (tmp_path / "p/main.py").write_text("other")
        with pytest.raises(InvalidManifest, match="it was changed since"):
            read_code(right)

    def test_one_file(self, tmp_path: Path) -> None:
        """Bytecode and a program are one file each, hashed too."""
        compiled = read_code(_plugin(tmp_path / "p", 'bytecode = "p.plb"', **{"p.plb": "code"}))
        assert (compiled.bytecode, compiled.modules, compiled.main) == (b"code", (), "p_plb")
        entry = 'runtime = "executable"\nprogram = "run"'
        program = read_code(_plugin(tmp_path / "q", entry, run="code"))
        assert (program.bytecode, program.modules) == (None, ())
        assert read_code(_plugin(tmp_path / "q", entry, run="edoc")).digest != program.digest
        assert modules_of(_plugin(tmp_path / "p", 'bytecode = "p.plb"')) == []


class TestName:
    def test_nearest(self, tmp_path: Path) -> None:
        """A path belongs to the plugin whose manifest is nearest above, whether the file is still there or not."""
        _plugin(tmp_path / "p", **{"sub/x.py": "", "package.json": "{}"})
        (tmp_path / "p/inner").mkdir()
        (tmp_path / "p/inner/plugin.json").write_text(
            Manifest.from_toml(TEXT.replace("my-plugin", "inner") + 'source = "a.py"').to_json()
        )
        for path, name in [
            ("p/sub/x.py", "my-plugin"),
            ("p/gone/deep/x.py", "my-plugin"),
            ("p/plugin.toml", "my-plugin"),
            ("p/package.json", "my-plugin"),
            ("p", "my-plugin"),
            ("p/inner/a.py", "inner"),
            ("elsewhere/x.py", None),
        ]:
            assert extract_plugin_name(tmp_path / path) == name, path
        assert extract_plugin_name("/") is None

    def test_named_as_the_file(self, tmp_path: Path) -> None:
        """In a folder of several manifests, the one that is called as the file is its."""
        _plugin(tmp_path / "p", 'source = "a.py"', "a.toml", **{"a.py": "", "b.py": ""})
        assert extract_plugin_name(tmp_path / "p/a.py") == "my-plugin"
        assert extract_plugin_name(tmp_path / "p/a.toml") == "my-plugin"
        assert extract_plugin_name(tmp_path / "p/b.py") is None

    def test_block(self, tmp_path: Path) -> None:
        """A source file with a manifest in its comments is its own plugin."""
        _plugin(tmp_path / "p", **{"a.py": '# /// plugin\n# name = "tool"\n# ///\n', "b.py": ""})
        assert extract_plugin_name(tmp_path / "p/a.py") == "tool"
        assert extract_plugin_name(tmp_path / "p/b.py") == "my-plugin"

    def test_broken(self, tmp_path: Path) -> None:
        """A file whose nearest manifest is broken belongs to nobody, not to the plugin further up."""
        _plugin(tmp_path / "p")
        (tmp_path / "p/inner").mkdir()
        (tmp_path / "p/inner/plugin.toml").write_text("name = ")
        assert extract_plugin_name(tmp_path / "p/inner/a.py") is None
