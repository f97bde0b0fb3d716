"""PluginLoader: turns manifests, sources and bytecode into plugins, without running any of their code."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

from ringfence.plugins.approval import ApprovalRequest, Approvals
from ringfence.plugins.blueprint import Blueprint, draw
from ringfence.plugins.bytecode import read_header
from ringfence.plugins.config import LoaderConfig, RuntimeConfig
from ringfence.plugins.errors import InvalidBytecode, PluginIOError
from ringfence.plugins.folder import Code, read_code
from ringfence.plugins.handle import PluginHandle
from ringfence.plugins.lockfile import LockFile
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.profiles import HostProfile
from ringfence.plugins.sandbox_config import IsolationMode, SandboxConfig
from ringfence.plugins.surroundings import Surroundings

__all__ = ["PluginLoader"]

_MAX_BYTECODE: Final = 64 * 1024 * 1024

PathLike = str | os.PathLike[str]


@final
class PluginLoader:
    """Loads plugins. Each method returns a handle: RUNNING, or with ``auto_start=False`` CREATED.

    A loader may be used by itself; the one of a runtime registers nothing either, its runtime does.
    """

    def __init__(self, config: LoaderConfig | None = None, *, around: Surroundings | None = None) -> None:
        """Take the settings. `around` is what a runtime shares with its plugins."""
        self.config = LoaderConfig() if config is None else config
        if around is None:
            around = Surroundings(RuntimeConfig(loader_config=self.config), is_closed=False)
        self.around = around
        lockfile = None if self.config.lockfile is None else LockFile(self.config.lockfile)
        self._approvals = Approvals(self.config.approval, lockfile)

    def load_from_manifest(self, path: PathLike) -> PluginHandle:
        """Load the plugin that a manifest (TOML or JSON, or a folder with one) describes.

        Raises:
            ManifestNotFound, ManifestParse, InvalidManifest: the manifest is not there or no good.
            IncompatibleApiVersion, MissingCapability, IncompatibleProfile, ApprovalRequired: it does not fit this host.
            CompilationError, InitializationFailed, PluginCrashed: with ``auto_start``: it did not come up.
        """
        return self._brought_up(self.prepare(path))

    def load_source(self, path: PathLike, *, isolation: IsolationMode = IsolationMode.SANDBOX) -> PluginHandle:
        """Load a Python file that describes itself, or does not (`Manifest.from_source`). Raises as above."""
        return self._brought_up(self.prepare_source(path, isolation))

    def load_source_sandboxed(self, path: PathLike) -> PluginHandle:
        """Load a Python file; every plugin is sandboxed, this name says it."""
        return self.load_source(path)

    def load_bytecode_file(self, path: PathLike) -> PluginHandle:
        """Load a compiled plugin. Raises InvalidBytecode, IncompatibleBytecode, and as `load_from_manifest`."""
        return self._brought_up(self.prepare_bytecode_file(path))

    def load_bytecode(self, data: bytes | bytearray | memoryview) -> PluginHandle:
        """Load a compiled plugin from memory. Raises as `load_bytecode_file`."""
        return self._brought_up(self.prepare_bytecode(data))

    def _brought_up(self, handle: PluginHandle) -> PluginHandle:
        """Bring up a plugin that only its caller will know: what does not come up, nobody could unload."""
        try:
            return self.bring_up(handle)
        except BaseException:
            handle.steps.abandon()
            raise

    # The same without starting anything

    def prepare(self, path: PathLike, profile: HostProfile | None = None) -> PluginHandle:
        """Return the handle of a manifest's plugin, CREATED: nothing of it has run. Raises as `load_from_manifest`."""
        file = self._located(path)
        return self.prepare_moving(lambda: file, profile)

    def prepare_moving(self, where: Callable[[], Path], profile: HostProfile | None = None) -> PluginHandle:
        """Do as `prepare`, for a manifest that may be elsewhere at each reload: `where` returns its path."""
        profile = profile or self.around.config.profile

        def redraw() -> Blueprint:
            manifest = Manifest.from_file(where(), strict=self.config.strict_validation)
            return self._drawn(manifest, None, self.config, profile)

        return PluginHandle(redraw(), redraw, self.around)

    def prepare_source(
        self, path: PathLike, isolation: IsolationMode = IsolationMode.SANDBOX
    ) -> PluginHandle:
        """Return the handle of a Python file, CREATED. Raises as `load_source`."""
        file = self._located(path)
        config = self._isolated(isolation)

        def redraw() -> Blueprint:
            manifest = Manifest.from_source(file, strict=config.strict_validation)
            return self._drawn(manifest, None, config, self.around.config.profile, all_public=True)

        return PluginHandle(redraw(), redraw, self.around)

    def prepare_bytecode_file(self, path: PathLike) -> PluginHandle:
        """Return the handle of a compiled plugin, CREATED. Raises as `load_bytecode_file`."""
        file = self._located(path)

        def redraw() -> Blueprint:
            return self._from_bytecode(_read_bytecode(file), file)

        return PluginHandle(redraw(), redraw, self.around)

    def prepare_bytecode(self, data: bytes | bytearray | memoryview) -> PluginHandle:
        """Return the handle of a compiled plugin in memory, CREATED. Raises as `load_bytecode`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidBytecode(f"bytes are needed, not {type(data).__name__}; for a file use load_bytecode_file")
        blueprint = self._from_bytecode(bytes(data), None)
        return PluginHandle(blueprint, lambda: blueprint, self.around)

    def _drawn(
        self,
        manifest: Manifest,
        code: Code | None,
        config: LoaderConfig,
        profile: HostProfile | None,
        *,
        all_public: bool = False,
    ) -> Blueprint:
        if code is None:
            # Before the code is read: what does not fit is refused by what it says.
            manifest.validate_for(config.host_api_version)
            code = read_code(manifest)
        blueprint = draw(manifest, config, profile, code=code, all_public=all_public)
        self._approve(blueprint, profile)
        return blueprint

    def _approve(self, blueprint: Blueprint, profile: HostProfile | None) -> None:
        manifest = blueprint.manifest
        needed = manifest.behaviour.privileged or (profile is not None and profile.approval)
        request = ApprovalRequest(
            plugin=blueprint.name,
            version=manifest.version,
            description=manifest.description or "",
            capabilities=blueprint.effective.declared,
            # Not the manifest's own bytes: to give a capability up must not ask again.
            code_hash=blueprint.code.digest,
            path=None if manifest.path is None else str(manifest.path),
        )
        self._approvals.require(request, privileged=needed)

    def _from_bytecode(self, data: bytes, path: Path | None) -> Blueprint:
        header = read_header(data)
        manifest = Manifest(
            name=header.name,
            version=header.version,
            api_version=self.config.host_api_version,
            bytecode="plugin.plb" if path is None else path.name,
            capabilities=header.capabilities,
            exports=[name for name in header.exports if name],
        )
        digest = f"sha256:{header.digest.removeprefix('sha256:')}"
        code = Code(main=header.main, modules=(), bytecode=data, digest=digest, hash=digest)
        return self._drawn(manifest, code, self.config, self.around.config.profile, all_public=not header.exports)

    def _isolated(self, isolation: IsolationMode) -> LoaderConfig:
        if isolation is IsolationMode.SANDBOX:
            return self.config
        sandbox = self.config.engine_config.sandbox
        return self.config.with_sandbox_config((sandbox or SandboxConfig()).with_isolation(isolation))

    def _located(self, path: PathLike) -> Path:
        """A relative path starts in `manifest_dir`, unless it is there as it is written."""
        file, base = Path(path), self.config.manifest_dir
        if base is None or file.is_absolute() or (file.exists() and not (base / file).exists()):
            return file
        return base / file

    def bring_up(self, handle: PluginHandle) -> PluginHandle:
        """Announce a handle that was prepared and, with ``auto_start``, bring it to RUNNING. Raises as `load_...`."""
        begun = time.perf_counter()
        handle.lifecycle.announce()
        if self.config.auto_start:
            handle.lifecycle.bring_up()
        self.around.metrics.record_load(handle.name, time.perf_counter() - begun)
        return handle


def _read_bytecode(file: Path) -> bytes:
    """Read a regular file under a limit. Raises PluginIOError, InvalidBytecode."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as stream:
            data = stream.read(_MAX_BYTECODE + 1)
    except OSError as error:
        raise PluginIOError(f"cannot read the bytecode {str(file)!r}: {error.strerror}") from error
    if len(data) > _MAX_BYTECODE:
        raise InvalidBytecode(f"{str(file)!r} is larger than {_MAX_BYTECODE >> 20} MiB")
    return data
