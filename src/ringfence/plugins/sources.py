"""Bring a plugin from a folder, a zip or a wheel into a scratch folder, where it is measured before it is anybody's."""

import configparser
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from ringfence.plugins.archive_names import TreeLimits
from ringfence.plugins.archives import unpack
from ringfence.plugins.digest import files_beneath, opened_beneath, tree_digest
from ringfence.plugins.store_errors import ArchiveRefused, DigestMismatch
from ringfence.plugins.trees import TreeWriter, copy_tree

if TYPE_CHECKING:
    from ringfence.plugins.manifest import Manifest

__all__ = ["ENTRY_POINTS", "Prepared", "check_code", "manifest_file", "prepare", "read_manifest"]

# The group of a wheel's entry points that names the package, or packages, where its plugin is.
ENTRY_POINTS: Final = "ringfence.plugins"

_MANIFESTS: Final = ("plugin.toml", "plugin.json")
_CHUNK: Final = 1 << 20
_ENTRY_POINTS_SIZE: Final = 1 << 16


class Prepared(NamedTuple):
    """What was brought: all of it on disk, none of it visible."""

    # The plugin's folder, in the scratch folder.
    folder: str
    # Of the plugin's folder, and of the archive that it came from (None: from a folder).
    digest: str
    archive: str | None
    source: str

    def check(self, expected: str) -> None:
        """Raise DigestMismatch unless `expected` is the digest of the plugin's folder, or of its archive."""
        if expected not in (self.digest, self.archive):
            raise DigestMismatch(expected, self.archive or self.digest, self.source)


def prepare(source: "str | os.PathLike[str]", scratch: str, limits: TreeLimits) -> Prepared:
    """Copy or unpack `source` into the folder `scratch`, and measure it.

    An archive is copied first and read from the copy: what was hashed is what was unpacked, whoever writes to `source`.
    Raises ArchiveRefused, and OSError.
    """
    path = os.fspath(source)
    name = os.path.basename(os.path.normpath(path))
    tree = os.path.join(scratch, "tree")
    os.mkdir(tree, 0o700)
    os.chmod(tree, 0o755)
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writer = TreeWriter(fd, limits, name)
        archive = None
        if os.path.isdir(path):
            copy_tree(path, writer, limits)
            below: tuple[str, ...] = ()
            if manifest_file(os.listdir(fd)) is None:
                raise ArchiveRefused(None, "holds no plugin.toml", name)
        else:
            archive = _unpacked(path, os.path.join(scratch, "archive"), writer, limits, name)
            below = _find(fd, limits, name, wheel=path.endswith(".whl"))
        writer.sync()
        digest = _digest_below(fd, below, limits, name)
    finally:
        os.close(fd)
    return Prepared(os.path.join(tree, *below), digest, archive, name)


def manifest_file(names: list[str]) -> str | None:
    """Return which of a folder's files is its manifest: plugin.toml, plugin.json, or the only other TOML file."""
    for name in _MANIFESTS:
        if name in names:
            return name
    others = [name for name in names if name.endswith(".toml") and name != "pyproject.toml"]
    return others[0] if len(others) == 1 else None


def read_manifest(folder: str) -> "tuple[str, Manifest]":
    """Return which file of a plugin's folder is its manifest, and the manifest.

    Raises ManifestNotFound, ManifestParse, InvalidManifest.
    """
    # Not at the top: it brings pydantic, and most of what a store does needs no manifest.
    from ringfence.plugins.errors import ManifestNotFound
    from ringfence.plugins.manifest import Manifest

    name = manifest_file(os.listdir(folder))
    if name is None:
        raise ManifestNotFound(os.path.join(folder, _MANIFESTS[0]))
    return name, Manifest.from_file(os.path.join(folder, name))


def check_code(manifest: "Manifest") -> None:
    """Raise InvalidManifest unless what a manifest names is there, within limits, and what its `hash` says."""
    from ringfence.plugins.folder import read_code

    read_code(manifest)


def _unpacked(path: str, copy: str, writer: TreeWriter, limits: TreeLimits, name: str) -> str:
    """Copy the archive at `path` to `copy`, unpack that, delete it; return the archive's digest."""
    digest, size = hashlib.sha256(), 0
    # O_NONBLOCK: a FIFO would have us wait for its other end.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArchiveRefused(None, "is neither a folder nor a file", name)
        with open(copy, "xb") as target:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > limits.archive:
                    raise ArchiveRefused(None, f"is larger than {limits.archive} bytes", name)
                digest.update(chunk)
                target.write(chunk)
    with open(copy, "rb") as file:
        unpack(file, size, writer, limits, name)
    os.unlink(copy)
    return f"sha256:{digest.hexdigest()}"


def _digest_below(fd: int, below: tuple[str, ...], limits: TreeLimits, name: str) -> str:
    folder = os.open(os.path.join(".", *below), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        return tree_digest(folder, limits, name)
    finally:
        os.close(folder)


def _find(fd: int, limits: TreeLimits, name: str, *, wheel: bool) -> tuple[str, ...]:
    """Return where in an unpacked archive its one plugin is, as the parts of the folder's path."""
    files = sorted(files_beneath(fd, limits, name))
    folders = {parts[:-1] for parts in files if parts[-1] in _MANIFESTS}
    if wheel:
        named = _named_by_entry_points(fd, files, folders, name)
        folders = named or folders
    elif manifest_file([parts[0] for parts in files if len(parts) == 1]):
        return ()
    if len(folders) != 1:
        shown = ", ".join(ascii("/".join(parts)) for parts in sorted(folders)[:5])
        why = f"holds several plugins ({shown}); name one by an entry point of the group {ENTRY_POINTS}, in a wheel"
        raise ArchiveRefused(None, why if folders else "holds no plugin.toml", name)
    return next(iter(folders))


def _named_by_entry_points(
    fd: int, files: list[tuple[str, ...]], folders: set[tuple[str, ...]], name: str
) -> set[tuple[str, ...]]:
    found = set()
    for parts in files:
        if len(parts) == 2 and parts[0].endswith(".dist-info") and parts[1] == "entry_points.txt":
            for module in _entry_points(fd, parts, name):
                # The module is the plugin's package, or lies in it.
                places = [module[:length] for length in range(len(module), 0, -1) if module[:length] in folders]
                if not places:
                    raise ArchiveRefused("/".join(parts), f"names {'.'.join(module)}, where no plugin.toml is", name)
                found.add(places[0])
    return found


def _entry_points(fd: int, parts: tuple[str, ...], name: str) -> list[tuple[str, ...]]:
    with opened_beneath(fd, parts, name) as (file, _):
        data = os.read(file, _ENTRY_POINTS_SIZE + 1)
    if len(data) > _ENTRY_POINTS_SIZE:
        raise ArchiveRefused("/".join(parts), f"is larger than {_ENTRY_POINTS_SIZE} bytes", name)
    reader = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    try:
        reader.read_string(data.decode())
    except (UnicodeDecodeError, configparser.Error) as error:
        raise ArchiveRefused("/".join(parts), f"cannot be read: {ascii(str(error))[1:-1][:200]}", name) from None
    if not reader.has_section(ENTRY_POINTS):
        return []
    # "name = package.module:attribute [extras]"
    values = [value.partition("[")[0].partition(":")[0].strip() for _, value in reader.items(ENTRY_POINTS)]
    return [tuple(value.split(".")) for value in values]
