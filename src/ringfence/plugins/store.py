"""A folder of plugins that several supervisors share: install, find, use, pin and remove, from many processes at once.

Readers take no lock: an index is replaced as a whole, so what they read is what was true at one moment. Writers do the
long part (copy, unpack, measure, validate) side by side, each in scratch of its own, and only the last step one by one.
Whoever uses a version holds a lock on its folder; what is removed meanwhile goes with its last user, or when the next
writer comes by.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

from ringfence.errors import PluginError, PluginIOError
from ringfence.plugins.archive_names import TreeLimits
from ringfence.plugins.digest import checked_digest, folder_digest
from ringfence.plugins.errors import (
    DependencyNotSatisfied,
    DuplicatedKey,
    InvalidManifest,
    InvalidState,
    PluginNotFound,
)
from ringfence.plugins.locks import KernelLock, is_at, lock_shared
from ringfence.plugins.singleton import Singleton
from ringfence.plugins.sources import Prepared, check_code, prepare, read_manifest
from ringfence.plugins.store_errors import DigestMismatch, StoreBusy, StoreDamaged
from ringfence.plugins.store_files import StoreFiles
from ringfence.plugins.store_index import Index, Record, is_plugin_name, is_version, precedence
from ringfence.plugins.store_layout import Layout
from ringfence.plugins.versions import VersionReq

if TYPE_CHECKING:
    from ringfence.plugins.compile import CompileOptions

__all__ = ["Installed", "Lease", "PluginStore"]

# How often what was found may be gone again before it is used; each time, someone has removed or replaced it.
_TRIES = 100
# Seconds that the last user of a removed version waits for its turn to delete it; the next writer would.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Installed:
    """One installed version of a plugin, as it was when it was asked for.

    `folder` holds its files, its manifest among them; both may go unless `PluginStore.use` holds them.
    `digest` is the folder's, `source` the name of what it was installed from, `installed_at` seconds since the epoch.
    """

    name: str
    version: str
    folder: Path
    digest: str
    manifest_path: Path
    source: str
    installed_at: float
    is_current: bool
    is_pinned: bool


@final
class Lease:
    """A version in use: it stays until `release`, or the end of a `with` block, whatever is removed meanwhile."""

    __slots__ = ("_lock", "_on_release", "installed")

    def __init__(self, installed: Installed, lock: KernelLock, on_release: Callable[[Installed], None]) -> None:
        self.installed = installed
        self._lock, self._on_release = lock, on_release

    @property
    def folder(self) -> Path:
        """The version's folder."""
        return self.installed.folder

    @property
    def is_held(self) -> bool:
        """Whether the version is still held, by this process."""
        return self._lock.fileno() >= 0

    def release(self) -> None:
        """Let the version go. May be repeated; never raises for what cannot be swept now."""
        if self.is_held:
            self._lock.release()
            self._on_release(self.installed)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@final
class PluginStore:
    """The store in the folder `root`; any number of threads and processes may have one of their own on it.

    It is made when it is not there and `create` says so, for this user alone, or `readable` for all. Only its owner and
    root may be able to change it; others use a store that they can read. `timeout`: seconds to wait for other writers.
    `limits`: of what is installed.

    Every method raises `PluginIOError` for what the system refuses, `StoreDamaged` where a file is not as the store
    writes it; those that change something also `StoreBusy` after `timeout`, and `StoreReadOnly`.
    """

    def __init__(
        self,
        root: "str | os.PathLike[str]",
        *,
        create: bool = True,
        readable: bool = False,
        timeout: float = 30.0,
        limits: TreeLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        with _io():
            self._layout = Layout(root, create=create, readable=readable)
        self._files = StoreFiles(self._layout)
        self._timeout, self._limits, self._clock = timeout, limits or TreeLimits(), clock

    @property
    def root(self) -> Path:
        """The store's folder, without links in its path."""
        return Path(self._layout.root)

    def __repr__(self) -> str:
        return f"PluginStore({self._layout.root!r})"

    # Reading

    def installed(self, name: str | None = None) -> list[Installed]:
        """Return every installed version, of one plugin or of all, ordered by name and version."""
        with _io():
            names = self._files.names() if name is None else [name] if is_plugin_name(name) else []
            indexes = [self._files.read(each) for each in names]
        return [self._installed(index, each) for index in indexes for each in sorted(index.versions, key=precedence)]

    def find(self, name: str, requirement: "str | VersionReq | None" = None) -> Installed:
        """Return the version of `name` that is meant: the pinned one, else the newest that `requirement` matches.

        Raises:
            PluginNotFound: no version of it is installed.
            DependencyNotSatisfied: none matches, or the pinned one does not.
        """
        index = self._require(name)
        if requirement is None:
            return self._installed(index, str(index.current))
        wanted = VersionReq.parse(requirement) if isinstance(requirement, str) else requirement
        offered = [index.pinned] if index.pinned else sorted(index.versions, key=precedence)
        matching = [version for version in offered if wanted.matches(version)]
        if not matching:
            raise DependencyNotSatisfied(name, str(wanted), None, index.current)
        return self._installed(index, matching[-1])

    def use(self, name: str, version: str | None = None, *, timeout: float | None = None) -> Lease:
        """Hold a version (None: the current one) so that its folder stays; use it in a `with` block, or release it.

        Raises:
            PluginNotFound: it is not installed.
            StoreBusy: the folder was locked exclusively for `timeout` seconds; no writer does that for long.
        """
        timeout = self._timeout if timeout is None else timeout
        for _ in range(_TRIES):
            index = self._require(name, version)
            chosen = self._installed(index, version or str(index.current))
            folder = os.fspath(chosen.folder)
            with _io():
                try:
                    lock = lock_shared(folder, timeout, f"version {chosen.version} of the plugin {name!r}")
                except FileNotFoundError:
                    continue
                try:
                    # A version that is in the index once we hold its folder cannot go until we let go.
                    now = self._files.read(name).versions.get(chosen.version)
                    if now == index.versions[chosen.version] and is_at(lock.fileno(), folder):
                        return Lease(chosen, lock, self._released)
                except BaseException:
                    lock.release()
                    raise
                lock.release()
        raise StoreDamaged(folder, "is in the plugin's index and not there")

    def verify(self, name: str, version: str | None = None) -> Installed:
        """Read all of a version again (None: the current one) and return it when it is what was installed.

        Raises DigestMismatch when it is not.
        """
        with self.use(name, version) as lease, _io():
            found = folder_digest(lease, self._limits)
            if found != lease.installed.digest:
                raise DigestMismatch(lease.installed.digest, found, f"the installed {name} {lease.installed.version}")
            return lease.installed

    def singleton(self, name: str, *, timeout: float | None = None) -> Singleton:
        """Return the one place, over all processes, of a plugin that must run only once; a `with` block takes it.

        `timeout`: seconds that a `with` block waits for it (None: as long as it takes). Raises PluginNotFound.
        """
        self._require(name)
        with _io():
            return Singleton(name, self._layout.singleton(name), timeout)

    def state_path(self, name: str) -> Path:
        """Return the folder in which a host keeps what belongs to an installed plugin; it is made when it can be."""
        self._require(name)
        with _io():
            path = self._files.kept(name)
            if self._layout.is_writable():
                self._layout.ensure(path, 0o700)
        return Path(path)

    # Changing

    def install(self, source: "str | os.PathLike[str]", *, digest: str | None = None, pin: bool = False) -> Installed:
        """Install a plugin from a folder, a zip or a wheel, and return it; nothing of it is visible before all is.

        `digest` is what it must have: of its folder, or of the archive's bytes ("sha256:..."). `pin`: make this version
        the current one, whatever else is or will be installed. Installing the same content again changes nothing.

        Raises:
            ArchiveRefused: it holds what is not installed: links, names that climb out or collide, too much.
            DigestMismatch: it is not what `digest` names.
            ManifestNotFound, ManifestParse, InvalidManifest: its manifest.
            DuplicatedKey: this version is installed with another content.
        """
        return self._add(source, digest, pin=pin, upgrade=False)

    def upgrade(self, source: "str | os.PathLike[str]", *, digest: str | None = None) -> Installed:
        """Install a newer version of a plugin that is installed, as `install` does; users of the old one keep it.

        Raises also:
            PluginNotFound: no version of it is installed.
            InvalidState: the plugin is pinned, or the version is not newer than the current one.
        """
        return self._add(source, digest, pin=False, upgrade=True)

    def pin(self, name: str, version: str | None = None) -> Installed:
        """Keep an installed version (None: the current one) the current one. Raises PluginNotFound."""
        with _io(), self._writing(name) as scratch:
            index = self._require(name, version)
            chosen = version or str(index.current)
            if index.pinned != chosen:
                index = replace(index, pinned=chosen)
                self._files.write(index, scratch)
            return self._installed(index, chosen)

    def unpin(self, name: str) -> Installed:
        """Let the newest version be the current one again, and return it. Raises PluginNotFound."""
        with _io(), self._writing(name) as scratch:
            index = self._require(name)
            if index.pinned is not None:
                index = replace(index, pinned=None)
                self._files.write(index, scratch)
            return self._installed(index, str(index.current))

    def remove(self, name: str, version: str | None = None, *, keep_state: bool = True) -> list[str]:
        """Remove one version of a plugin, or all (None), and return which; users of one keep it until they let go.

        `keep_state` False: when no version is left, what `state_path` holds goes, too. Raises PluginNotFound.
        """
        with _io(), self._writing(name) as scratch:
            index = self._require(name, version)
            going = [version] if version is not None else sorted(index.versions, key=precedence)
            index = index.marked(*going)
            self._files.write(index, scratch)
            self._files.sweep(scratch)
            if not keep_state and not index.versions:
                with suppress(FileNotFoundError):
                    os.rename(self._files.kept(name), os.path.join(scratch, "kept"))
            return going

    def compile(self, name: str, version: str | None = None, *, options: "CompileOptions | None" = None) -> Path:
        """Return the bytecode of a version (None: the current one), compiled in a worker unless it is there already.

        It is kept beside the version and goes with it: read it while `use` holds the version.

        Raises CompilationError; InvalidManifest where the plugin is a program; StoreReadOnly where it is not there and
        this user may not write it.
        """
        from ringfence.plugins.store_bytecode import compiled_file

        with self.use(name, version) as lease, _io():
            found = lease.installed
            return Path(compiled_file(self._files, found.name, found.version, found.digest, options))

    def sweep(self) -> None:
        """Delete what interrupted installs and removed versions left; every change does that, too."""
        with _io(), self._writing(None):
            pass

    # Steps

    def _add(self, source: "str | os.PathLike[str]", digest: str | None, *, pin: bool, upgrade: bool) -> Installed:
        expected = None if digest is None else checked_digest(digest)
        with _io():
            self._layout.require_writable()
            self._layout.sweep_scratch()
            with self._layout.scratch() as scratch:
                prepared = prepare(source, scratch, self._limits)
                if expected is not None:
                    prepared.check(expected)
                try:
                    file, manifest = read_manifest(prepared.folder)
                    check_code(manifest)
                except PluginError as error:
                    error.add_note(f"while installing {prepared.source}")  # its paths are those of our scratch
                    raise
                if not is_plugin_name(manifest.name) or not is_version(manifest.version):
                    raise InvalidManifest("name or version is too long, or cannot be a folder's name", prepared.source)
                record = Record(prepared.digest, prepared.source, file, self._clock())
                with self._layout.writer(self._timeout):
                    self._files.sweep(scratch)
                    index = self._files.read(manifest.name)
                    if upgrade:
                        self._check_upgrade(index, manifest.version)
                    index = self._commit(prepared, index, manifest.version, record, scratch, pin=pin)
        return self._installed(index, manifest.version)

    def _commit(
        self, prepared: Prepared, index: Index, version: str, record: Record, scratch: str, *, pin: bool
    ) -> Index:
        there = index.versions.get(version) or index.removed.get(version)
        if there is not None and there.digest != record.digest:
            if version in index.removed:
                raise StoreBusy(f"the removed version {version} of the plugin {index.name!r}, of another content,", 0.0)
            detail = f"installed with {there.digest}, this is {record.digest}; a changed plugin needs a new version"
            raise DuplicatedKey("plugin version", f"{index.name} {version}", detail)
        self._layout.singleton(index.name)
        wanted = index.installed(version, there or record)
        if pin:
            wanted = replace(wanted, pinned=version)
        try:
            if there is None:
                self._files.move_in(prepared.folder, index.name, version)
            if wanted != index:
                self._files.write(wanted, scratch)
        except BaseException:
            # Whether the version is in the index, the disk says: if it is not, its folder goes again.
            with suppress(OSError):
                self._files.sweep(scratch)
            raise
        return wanted

    def _check_upgrade(self, index: Index, version: str) -> None:
        if index.current is None:
            raise PluginNotFound(index.name, self._where, self._files.names())
        if index.pinned is not None:
            raise InvalidState("not pinned (unpin it first)", f"pinned to {index.pinned}", index.name, "upgrade")
        if precedence(version)[0] <= precedence(index.current)[0]:
            raise InvalidState(f"older than {version}", f"at {index.current}", index.name, "upgrade")

    @contextmanager
    def _writing(self, name: str | None) -> Iterator[str]:
        """Have the writer's turn and a scratch folder for a block, and all that was left by others swept."""
        if name is not None:
            self._require(name)
        self._layout.require_writable()
        self._layout.sweep_scratch()
        with self._layout.scratch() as scratch, self._layout.writer(self._timeout):
            self._files.sweep(scratch)
            yield scratch

    def _released(self, installed: Installed) -> None:
        """Sweep after a version's user, where it was removed meanwhile and we may."""
        with suppress(PluginError, OSError):
            if installed.version in self._files.read(installed.name).versions or not self._layout.is_writable():
                return
            with self._layout.scratch() as scratch, self._layout.writer(min(_PATIENCE, self._timeout)):
                self._files.sweep(scratch)

    @property
    def _where(self) -> str:
        return f"store {self._layout.root}"

    def _require(self, name: str, version: str | None = None) -> Index:
        """Return the index of a plugin that is installed, in `version` if that is given; else raise PluginNotFound."""
        with _io():
            index = self._files.read(name) if is_plugin_name(name) else Index(str(name))
            if not index.versions:
                raise PluginNotFound(str(name), self._where, self._files.names())
        if version is not None and version not in index.versions:
            raise PluginNotFound(f"{name} {version}", self._where, [f"{name} {each}" for each in index.versions])
        return index

    def _installed(self, index: Index, version: str) -> Installed:
        record = index.versions[version]
        folder = Path(self._files.folder(index.name, version))
        return Installed(
            index.name,
            version,
            folder,
            record.digest,
            folder / record.manifest,
            record.source,
            record.installed_at,
            version == index.current,
            version == index.pinned,
        )


@contextmanager
def _io() -> Iterator[None]:
    """Raise what the system refuses as PluginIOError, with its errno and file."""
    try:
        yield
    except PluginError:
        raise
    except OSError as error:
        raise PluginIOError(error.errno, error.strerror or str(error), error.filename) from error
