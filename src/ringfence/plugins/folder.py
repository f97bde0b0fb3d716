"""A plugin's folder: which of its files are code, their bytes, and the digest that stands for all of them.

Code is read here and never looked into; only a worker compiles it.
"""

import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, final

from ringfence.plugins.beneath import digest_inside, inside, read_inside
from ringfence.plugins.errors import InvalidManifest, PluginError, PluginIOError
from ringfence.plugins.manifest import MANIFEST_NAMES, Manifest
from ringfence.plugins.manifest_text import embedded_block

__all__ = [
    "Code",
    "ModuleSource",
    "check_hash",
    "code_hash",
    "extract_plugin_name",
    "inside",
    "main_module",
    "modules_of",
    "read_code",
    "read_inside",
]

# Far above what plugins are; the modules travel to the worker in one message.
MAX_MODULES: Final = 500
MAX_MODULE_BYTES: Final = 4 * 1024 * 1024
MAX_CODE_BYTES: Final = 32 * 1024 * 1024
# Of bytecode or a program, which is one file.
MAX_ENTRY_BYTES: Final = 256 * 1024 * 1024
_MAX_FOLDERS_DEEP: Final = 16

# A module of one of these names would stand in for what others import by it.
_TAKEN: Final = frozenset(sys.stdlib_module_names) | {"__main__", "ringfence"}


class ModuleSource(NamedTuple):
    """One module as it is sent to a worker: dotted name, source, the file it came from, whether it is a package."""

    name: str
    source: bytes
    filename: str
    is_package: bool


@final
@dataclass(frozen=True, slots=True)
class Code:
    """All of a plugin that would run, read once: what is approved is what is sent.

    `main` is the name of the module with the functions (of bytecode and programs too, for messages); `modules` are
    its sources, itself first; `bytecode` is the one file where there are none. Of a program nothing is kept: it is
    started from its file. `digest` stands for the code alone, `hash` for the code and the manifest; both start with
    ``sha256:``.
    """

    main: str
    modules: tuple[ModuleSource, ...]
    bytecode: bytes | None
    digest: str
    hash: str


def _owns_folder(manifest: Manifest) -> bool:
    # Several manifests in one folder, each with another name: what lies around them belongs to nobody in particular.
    # So it is around a source file that is a plugin without a manifest: it may lie in an application's own package.
    return manifest.path is not None and manifest.path.name in MANIFEST_NAMES


def _folder(manifest: Manifest) -> Path:
    if manifest.folder is None:
        raise InvalidManifest("the plugin has no folder: its manifest was not read from a file")
    return Path(os.path.realpath(manifest.folder))


def _identifier(text: str) -> str:
    name = "".join(char if char.isascii() and char.isalnum() else "_" for char in text)
    return name if name.isidentifier() else f"_{name}"


def _free(name: str) -> str:
    return f"{name}_" if name in _TAKEN else name


@final
@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a plugin's modules are, names in the plugin's folder: `root` is what imports start from."""

    main: str
    root: str  # "" is the plugin's folder itself
    package: str  # dotted name of `root` where the plugin's folder is itself a package, else ""


def _layout(manifest: Manifest, folder: Path) -> _Layout:
    *folders, file = [part for part in manifest.entry_point().split("/") if part not in ("", ".")]
    stem = file.removesuffix(".py")
    packages: list[str] = []
    while folders and os.path.lexists(folder.joinpath(*folders, "__init__.py")):
        packages.insert(0, folders.pop())
    whole = stem == "__init__" or _owns_folder(manifest)
    if not folders and whole and os.path.lexists(folder / "__init__.py"):
        # The folder is the package: relative imports in it need a name for it.
        top = _free(_identifier(manifest.name))
        own = [] if stem == "__init__" else [_identifier(stem)]
        return _Layout(".".join([top, *packages, *own]), "", top)
    if packages:
        if not all(name.isidentifier() and name.isascii() for name in packages) or packages[0] in _TAKEN:
            raise InvalidManifest(
                f"source: {manifest.entry_point()!a} is in a package whose name cannot be imported, or is the standard "
                "library's; give the folder another name"
            )
        own = [] if stem == "__init__" else [_identifier(stem)]
        return _Layout(".".join([*packages, *own]), "/".join(folders), "")
    return _Layout(_free(_identifier(stem)), "/".join(folders), "")


def main_module(manifest: Manifest) -> str:
    """Return the name of the module that has the plugin's functions.

    It is the file's, or the package's with a dot; of a file called as a module of the standard library, that and an
    underscore. Raises InvalidManifest when the manifest belongs to no file.
    """
    return _layout(manifest, _folder(manifest)).main


class _Reader:
    """Reads modules of one plugin, within the limits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: dict[str, ModuleSource] = {}
        self.files: dict[str, str] = {}  # file -> module
        self._bytes = 0

    def add(self, name: str, relative: str, is_package: bool, what: str) -> None:
        relative = "/".join(part for part in relative.split("/") if part not in ("", "."))
        if relative in self.files:
            return
        if name in self.modules:
            other = self.modules[name].filename
            raise InvalidManifest(f"{what}: {relative!a} and {other!a} would both be the module {name}")
        if len(self.modules) == MAX_MODULES:
            raise InvalidManifest(f"{what}: the plugin has more than {MAX_MODULES} modules")
        source = read_inside(self.folder, relative, MAX_MODULE_BYTES, what)
        self._bytes += len(source)
        if self._bytes > MAX_CODE_BYTES:
            raise InvalidManifest(f"{what}: the plugin has more than {MAX_CODE_BYTES >> 20} MiB of modules")
        self.modules[name] = ModuleSource(name, source, str(self.folder / relative), is_package)
        self.files[relative] = name

    def add_tree(self, relative: str, package: str, depth: int = 0) -> None:
        """Add every module of a folder, and of the packages in it."""
        if depth > _MAX_FOLDERS_DEEP:
            raise InvalidManifest(f"source: packages nested more than {_MAX_FOLDERS_DEEP} deep in {relative!a}")
        try:
            with os.scandir(self.folder / relative) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise PluginIOError(error.errno, os.strerror(error.errno or 0), str(self.folder / relative)) from None
        for entry in found:
            path = f"{relative}/{entry.name}" if relative else entry.name
            stem = entry.name.removesuffix(".py")
            if stem != entry.name:
                if stem.isidentifier() and stem.isascii() and stem != "__init__":
                    self.add(f"{package}.{stem}" if package else stem, path, False, "source")
            elif entry.name.isidentifier() and entry.name.isascii() and _is_package(self.folder / path):
                if entry.is_symlink():
                    raise InvalidManifest(f"source: the package {path!a} is a link; a plugin's packages are folders")
                name = f"{package}.{entry.name}" if package else entry.name
                self.add(name, f"{path}/__init__.py", True, "source")
                self.add_tree(path, name, depth + 1)


def _is_package(folder: Path) -> bool:
    return os.path.lexists(folder / "__init__.py")


def _read_modules(manifest: Manifest, folder: Path) -> _Reader:
    layout = _layout(manifest, folder)
    reader = _Reader(folder)
    source = manifest.entry_point()
    reader.add(layout.main, source, source.rpartition("/")[2] == "__init__.py", "source")
    if layout.package:
        reader.add(layout.package, "__init__.py", True, "source")
        reader.add_tree("", layout.package)
    elif _owns_folder(manifest):
        reader.add_tree(layout.root, "")
    elif "." in layout.main or reader.modules[layout.main].is_package:
        package = layout.main.partition(".")[0]
        path = f"{layout.root}/{package}" if layout.root else package
        reader.add(package, f"{path}/__init__.py", True, "source")
        reader.add_tree(path, package)
    return reader


def modules_of(manifest: Manifest) -> list[ModuleSource]:
    """Return the modules of a plugin that is run from source, the main one first; of any other none.

    They are: the file that `source` names, the modules beside it and the packages beside it with all that is in them,
    when the manifest is called plugin.toml or plugin.json, since the folder is the plugin's own then. With any other
    name, the file alone, or the package that it is in.

    Raises:
        InvalidManifest: a file lies outside over a link, is no regular file, or there is too much of it.
        PluginIOError: a file cannot be read.
    """
    if not manifest.uses_source():
        return []
    return list(_read_modules(manifest, _folder(manifest)).modules.values())


def read_code(manifest: Manifest) -> Code:
    """Read everything of a plugin that would run, once.

    Raises:
        InvalidManifest: as `modules_of`; or the code is not what the manifest's `hash` says.
        PluginIOError: a file cannot be read.
    """
    folder = _folder(manifest)
    bytecode: bytes | None = None
    modules: tuple[ModuleSource, ...] = ()
    if manifest.uses_source():
        reader = _read_modules(manifest, folder)
        modules = tuple(reader.modules.values())
        files = [_measured(relative, reader.modules[name].source) for relative, name in reader.files.items()]
    elif manifest.bytecode is not None:
        bytecode = read_inside(folder, manifest.bytecode, MAX_ENTRY_BYTES, "bytecode")
        files = [_measured(manifest.bytecode, bytecode)]
    else:
        entry = manifest.entry_point()
        files = [(entry, *digest_inside(folder, entry, MAX_ENTRY_BYTES, "program"))]
    code = Code(
        main=_layout(manifest, folder).main,
        modules=modules,
        bytecode=bytecode,
        digest=_digest(files),
        hash=_digest([*files, _measured("", manifest.raw)]),
    )
    check_hash(manifest, code)
    return code


def check_hash(manifest: Manifest, code: Code) -> None:
    """Do nothing if the manifest names no hash or the one of `code`. Raises InvalidManifest."""
    if manifest.hash is not None and manifest.hash != code.digest:
        raise InvalidManifest(
            f"hash: the code of plugin {manifest.name!r} is {code.digest}, not {manifest.hash} as its manifest says; "
            "it was changed since",
            None if manifest.path is None else str(manifest.path),
        )


def code_hash(manifest: Manifest) -> str:
    """Return ``sha256:...`` over all code of a plugin and its manifest's bytes; any change to either changes it.

    Raises:
        InvalidManifest: as `read_code`.
        PluginIOError: a file cannot be read.
    """
    return read_code(manifest).hash


def _measured(name: str, data: bytes) -> tuple[str, int, bytes]:
    return name, len(data), hashlib.sha256(data).digest()


def _digest(files: Iterable[tuple[str, int, bytes]]) -> str:
    """Digest names, lengths and contents' digests, whatever their order; nothing can move from one to another."""
    total = hashlib.sha256(b"ringfence plugin code 1\n")
    for name, length, content in sorted(files):
        written = os.fsencode(name)
        total.update(len(written).to_bytes(8, "big") + written + length.to_bytes(8, "big") + content)
    return f"sha256:{total.hexdigest()}"


def extract_plugin_name(path: "str | os.PathLike[str]") -> str | None:
    """Return the name of the plugin that a file belongs to, or None.

    It is the name in the nearest manifest: the file itself, the block in its comments, one beside it called
    plugin.toml, plugin.json or as the file is, or a plugin.toml or plugin.json in a folder above. A nearest manifest
    that is broken names nobody. The file need not exist.
    """
    file = Path(os.path.abspath(path))
    if not file.name:
        return None
    candidates = [file] if file.suffix in (".toml", ".json", ".py") else []
    candidates += [file / name for name in MANIFEST_NAMES]
    candidates += [file.with_name(name) for name in MANIFEST_NAMES]
    candidates += [file.with_suffix(suffix) for suffix in (".toml", ".json")]
    candidates += [folder / name for folder in file.parents[1:] for name in MANIFEST_NAMES]
    for candidate in dict.fromkeys(candidates):
        # The file itself may be any TOML or JSON, and what is called as it is too: only a manifest counts there.
        may_be_other = candidate.name not in MANIFEST_NAMES
        if not os.path.lexists(candidate) or candidate.is_dir():
            continue
        name = _name_in(candidate)
        if name is not None or not may_be_other:
            return name
    return None


def _name_in(file: Path) -> str | None:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if file.suffix == ".py":
                text = read_inside(file.parent, file.name, MAX_MODULE_BYTES).decode("utf-8", "replace")
                return Manifest.from_source(file, strict=False).name if embedded_block(text) else None
            return Manifest.from_file(file, strict=False).name
    except PluginError:
        return None
