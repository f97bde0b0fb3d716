"""Blueprint: everything about a plugin that is decided before a worker of it starts."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

from ringfence.errors import PluginError
from ringfence.plugins.bytecode import BytecodeHeader, read_header
from ringfence.plugins.compile import read_signatures
from ringfence.plugins.config import LoaderConfig
from ringfence.plugins.errors import InvalidConfig, PolicyError, UndeclaredCapability
from ringfence.plugins.folder import Code, read_code
from ringfence.plugins.grants import Effective, effective
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.profiles import HostProfile
from ringfence.plugins.programs import Program, describe_program
from ringfence.plugins.sandbox_config import IsolationMode
from ringfence.plugins.signatures import Function
from ringfence.plugins.worker_settings import WorkerSettings, worker_settings
from ringfence.pool.executor import Pool
from ringfence.pool.network_events import NetworkEvent
from ringfence.pool.session import Session
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.features import probe
from ringfence.worker.guest import serve
from ringfence.worker.program import run_program

__all__ = ["LIFECYCLE", "PHASES", "Blueprint", "draw", "signatures_of"]

_log = logging.getLogger("ringfence.plugins")

LIFECYCLE: Final = ("init", "start", "stop", "cleanup", "save_state", "restore_state", "health_check")
"""Exports that mean something to the runtime itself; all of them optional."""

PHASES: Final[Mapping[str, tuple[str, ...]]] = {
    "init": ("init", "on_init"),
    "start": ("start", "on_start"),
    "stop": ("stop", "on_stop"),
    "cleanup": ("cleanup", "on_unload"),
    "before_reload": ("on_before_reload",),
    "after_reload": ("on_after_reload",),
}
"""The exports that belong to a phase of a plugin's life: the guides of compatible hosts know two spellings."""

# Calls of one plugin that may overlap. Each is a thread of the worker, and counts against its limit of processes.
_MOST_THREADS: Final = 32


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A plugin as it would be started: what is approved is what runs, whatever happens to its files meanwhile.

    Attributes:
        manifest: what it says of itself.
        code: its code as it was read.
        effective: what it is held to; `worker` is the same as settings of its worker.
        exports: the functions that may be called; None for all public ones.
        program: how to start it, if it is a program.
        optimize: how its source is compiled, as `compile` takes it.
    """

    manifest: Manifest
    code: Code
    effective: Effective
    worker: WorkerSettings
    exports: tuple[str, ...] | None
    program: Program | None = None
    optimize: int = -1
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.manifest.name

    @property
    def grants(self) -> Capabilities:
        """What it may do."""
        return self.effective.grants

    @property
    def folder(self) -> Path | None:
        """Where its files are."""
        return None if self.effective.folder is None else Path(self.effective.folder)

    def threads(self, most: int) -> int:
        """Return how many of its calls may overlap where the host allows `most`."""
        processes = self.effective.limits.processes
        # The main thread, the one that stands by, and what the plugin itself may start.
        room = _MOST_THREADS if processes is None else max(1, processes - 2)
        return max(1, min(most, room, _MOST_THREADS))

    def open_pool(self, size: int = 1, *, on_network: Callable[[NetworkEvent], object] | None = None) -> Pool:
        """Return a pool for `size` workers of this plugin. Raises what `Pool` raises, PolicyError as InvalidConfig.

        `on_network` hears of every connection that a worker asks for, where grants name hosts.
        """
        arguments = self.worker.pool_arguments()
        with _told_of(self.manifest):
            self.effective.require_places()
            # The places, not the paths: a link that is changed from now on gains nothing.
            places, preload = self.effective.places, ("ringfence.worker.guest",)
            return Pool(
                size, isolation="session", preload=preload, places=places, on_network=on_network, **arguments
            )

    def open_session(self, pool: Pool) -> Session:
        """Start one worker that serves as this plugin's guest."""
        if self.program is None:
            return pool.open_session(serve, on_output=_unheard)
        folder = None if self.folder is None else str(self.folder)
        return pool.open_session(
            run_program, list(self.program.argv), folder, {}, self.manifest.protocol, on_output=_unheard
        )

    def settings(
        self, *, threads: int, host_functions: list[str], private_root: bool, may_look: bool = False
    ) -> dict[str, Any]:
        """Return what the guest is told, in LOAD."""
        return {
            "name": self.name,
            "version": self.manifest.version,
            "folder": self.effective.folder,
            "main": self.code.main,
            "modules": [list(module) for module in self.code.modules],
            "bytecode": self.code.bytecode,
            "exports": None if self.exports is None else list(self.exports),
            "threads": threads,
            "may_look": may_look,
            "limits": self.worker.guest_limits(),
            "capabilities": self.grants.to_names(),
            "private_root": private_root,
            "sandboxed": all(box.isolation is not IsolationMode.PROCESS for box in self.effective.sandboxes),
            "host_functions": host_functions,
            "extension": self.manifest.extension,
            "optimize": self.optimize,
            "working_dir": self.worker.working_dir,
            "config": dict(self.config),
        }


def _unheard(_stream: str, _data: bytes) -> None:
    """Stand in until somebody listens: with a listener from the start nothing that is printed is lost."""


def draw(
    manifest: Manifest,
    config: LoaderConfig,
    profile: HostProfile | None = None,
    *,
    code: Code | None = None,
    all_public: bool = False,
) -> Blueprint:
    """Read a plugin's code and decide what it is held to; nothing is started.

    Args:
        manifest: the plugin's.
        config: the loader's settings.
        profile: the host's profile, if it has one.
        code: the code, where it was read already; by default what the manifest names.
        all_public: with no exports declared, every public function is one.

    Raises:
        PluginError: one of many ways in which it does not fit this host; UnsupportedError: the host lacks a layer.
    """
    manifest.validate_for(config.host_api_version)
    code = read_code(manifest) if code is None else code
    exports: tuple[str, ...] | None = manifest.exports
    if code.bytecode is not None:
        header = _checked(read_header(code.bytecode), manifest)
        exports = exports or header.exports
    with _told_of(manifest):
        held = effective(manifest, manifest.folder, config, profile)
    program = None
    if manifest.runtime == "executable":
        assert manifest.folder is not None
        path = manifest.folder.resolve() / manifest.entry_point()
        program = describe_program(path, held.folder)
        held = _with_program(held, program)
    with _told_of(manifest):
        worker = worker_settings(held, features=probe())
    for note in (*held.notes, *worker.unenforced):
        _log.warning("plugin %r: %s", manifest.name, note)
    return Blueprint(
        manifest=manifest,
        code=code,
        effective=held,
        worker=worker,
        exports=None if all_public and not exports else exports,
        program=program,
        # Without assertions in production.
        optimize=1 if config.compile_mode == "production" else -1,
    )


@contextmanager
def _told_of(manifest: Manifest) -> Iterator[None]:
    """Make of a PolicyError one that is about this plugin, and a PluginError as all that loading raises."""
    try:
        yield
    except PluginError:
        raise
    except PolicyError as error:
        wrong = InvalidConfig(f"plugin {manifest.name!r}: {error}")
        wrong.plugin = manifest.name
        raise wrong from error


def signatures_of(blueprint: Blueprint) -> Mapping[str, Function]:
    """Return what the main module's source declares, read in a throw-away worker; nothing where that does not work."""
    if not blueprint.code.modules:
        return {}
    main = blueprint.code.modules[0]
    try:
        return read_signatures(main.source, main.filename)
    except PluginError as error:
        _log.debug("the signatures of plugin %r cannot be read: %s", blueprint.name, error)
        return {}


def _with_program(held: Effective, program: Program) -> Effective:
    """A program may be started: that is what loading it means. It is granted nothing else by it."""
    places = {grant.scope: os.path.realpath(grant.scope) for grant in program.grants if grant.scope is not None}
    return replace(held, grants=held.grants.with_all(program.grants).sealed(), places={**places, **held.places})


def _checked(header: BytecodeHeader, manifest: Manifest) -> BytecodeHeader:
    missing = [name for name in header.capabilities if not manifest.requires_capability(name.partition("=")[0])]
    if missing:
        raise UndeclaredCapability(missing[0], manifest.name)
    return header
