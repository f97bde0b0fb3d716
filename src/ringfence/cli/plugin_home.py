"""Where plugins, approvals and quarantine are kept, and what a PLUGIN on a command line means."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, final

import typer

if TYPE_CHECKING:
    from ringfence.plugins.handle import PluginHandle
    from ringfence.plugins.manifest import Manifest
    from ringfence.plugins.runtime import PluginRuntime
    from ringfence.plugins.store import PluginStore

__all__ = ["Home", "JsonOption", "PluginArgument", "StoreOption", "Target", "complete_installed", "found"]

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="The store to use instead of the user's own.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]

def complete_installed(incomplete: str) -> list[str]:
    """Return the installed plugins whose names begin so, for the shell's completion; an unreadable store has none."""
    from ringfence.errors import RingfenceError

    try:
        store = Home.of(None).existing()
        names = [] if store is None else list(dict.fromkeys(each.name for each in store.installed()))
    except (RingfenceError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]


PluginArgument = Annotated[
    str,
    typer.Argument(
        help="A folder, manifest, .py or .plb file, or NAME or NAME@VERSION of an installed plugin.",
        autocompletion=complete_installed,
    ),
]

_MAX_BYTECODE: Final = 64 * 1024 * 1024
# What a plugin's file may end in; anything else that is no file is meant as a name.
_SUFFIXES: Final = (".py", ".plb", ".toml", ".json")


@final
@dataclass(frozen=True, slots=True)
class Home:
    """A store's folder, and beside it the files with what was approved and what is in quarantine."""

    root: Path

    @classmethod
    def of(cls, store: Path | None) -> "Home":
        """Return the home whose store is at `store`, by default the user's own."""
        if store is not None:
            return cls(Path(os.path.abspath(store.expanduser())))
        own = os.environ.get("RINGFENCE_HOME")
        if own:
            return cls(Path(os.path.abspath(os.path.expanduser(own))) / "plugins")
        data = os.environ.get("XDG_DATA_HOME", "")
        # The specification says of a relative one: ignore it.
        base = Path(data) if os.path.isabs(data) else Path(os.path.expanduser("~/.local/share"))
        return cls(base / "ringfence" / "plugins")

    @property
    def approvals(self) -> Path:
        """The lock file."""
        return self.root.with_name(f"{self.root.name}-approvals.toml")

    @property
    def quarantine(self) -> Path:
        """The file of plugins that are not started."""
        return self.root.with_name(f"{self.root.name}-quarantine.json")

    def store(self) -> "PluginStore":
        """Return the store, made if it is not there."""
        from ringfence.plugins.store import PluginStore

        return PluginStore(self.root)

    def existing(self) -> "PluginStore | None":
        """Return the store, or None if there is none: who only looks makes nothing."""
        from ringfence.plugins.store import PluginStore

        return PluginStore(self.root, create=False) if os.path.lexists(self.root) else None


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A plugin that was named: the file or folder to load, and the version of the store it is, if it is one."""

    path: Path
    installed: str | None = None

    @property
    def suffix(self) -> str:
        """What its file ends in; nothing for a folder."""
        return "" if self.path.is_dir() else self.path.suffix

    def manifest(self) -> "Manifest":
        """Read what it says of itself. Raises as `Manifest.from_file` and, for a compiled plugin, `read_header`."""
        return _manifest_at(self.path)

    def load(self, runtime: "PluginRuntime") -> "PluginHandle":
        """Load it. Raises as `PluginRuntime.load_manifest`."""
        if self.suffix == ".py":
            return runtime.load_source(self.path)
        return runtime.load_bytecode_file(self.path) if self.suffix == ".plb" else runtime.load_manifest(self.path)


def _manifest_at(path: Path) -> "Manifest":
    """Return the manifest of a folder, a manifest's file, a Python file or a compiled plugin; see `Target.manifest`."""
    import warnings

    from ringfence.plugins.beneath import read_inside
    from ringfence.plugins.bytecode import read_header
    from ringfence.plugins.errors import ManifestNotFound
    from ringfence.plugins.manifest import Manifest
    from ringfence.plugins.versions import HOST_API_VERSION

    with warnings.catch_warnings():
        # What is spelt the old way is among the manifest's notes; a warning besides would be a second telling.
        warnings.simplefilter("ignore", DeprecationWarning)
        if not os.path.lexists(path):
            raise ManifestNotFound(path)
        if path.is_dir() or path.suffix not in (".py", ".plb"):
            return Manifest.from_file(path)
        if path.suffix == ".py":
            return Manifest.from_source(path)
    code = read_inside(path.parent, path.name, _MAX_BYTECODE, "bytecode")
    header = read_header(code, any_interpreter=True)
    data: dict[str, Any] = {
        "name": header.name, "version": header.version, "api_version": HOST_API_VERSION, "bytecode": path.name,
        "capabilities": header.capabilities, "exports": [name for name in header.exports if name],
    }  # fmt: skip
    manifest = Manifest(**data)
    manifest._path = path.absolute()
    return manifest


@contextmanager
def found(plugin: str, home: Home) -> Iterator[Target]:
    """Yield what `plugin` means: a path that is there, else an installed plugin, NAME or NAME@VERSION.

    An installed one stays while the block runs, whatever is removed meanwhile.

    Raises:
        PluginNotFound: it is neither. What using the store raises.
    """
    from ringfence.plugins.errors import ManifestNotFound, PluginNotFound

    path = Path(plugin)
    if os.path.lexists(path):
        yield Target(path)
        return
    if "/" in plugin or path.suffix in _SUFFIXES:
        raise ManifestNotFound(path)
    name, _, version = plugin.partition("@")
    store = home.existing()
    if store is None:
        raise PluginNotFound(name, f"store {home.root}, and there is no such file")
    with store.use(name, version or None) as lease:
        yield Target(lease.installed.manifest_path, f"{lease.installed.name}@{lease.installed.version}")
