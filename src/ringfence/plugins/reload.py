"""What came of a reload; and whether new code would compile."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from ringfence.plugins.compile import validate_source
from ringfence.plugins.folder import modules_of
from ringfence.plugins.inspection import Diagnostic, inspection_pool
from ringfence.plugins.manifest import Manifest

if TYPE_CHECKING:
    from ringfence.plugins.handle import PluginHandle

__all__ = ["ReloadResult", "diagnostics"]


@final
@dataclass(frozen=True, slots=True)
class ReloadResult:
    """A reload that took effect: of which plugin, from which version to which, and the how many-th it was."""

    plugin: str
    version_before: str
    version: str
    reload_count: int


def diagnostics(handle: "PluginHandle") -> list[Diagnostic]:
    """Compile a plugin's sources as they are on disk now, in a throw-away worker; return the errors.

    Raises what reading the manifest and the sources raises.
    """
    path = handle.manifest.path
    if path is None:
        return []
    manifest = Manifest.from_source(path) if path.suffix == ".py" else Manifest.from_file(path)
    found: list[Diagnostic] = []
    with inspection_pool() as pool:
        for module in modules_of(manifest):
            if not module.source.strip():
                continue  # an empty __init__.py
            found += validate_source(module.source, module.filename, pool=pool)
    return [each for each in found if each.severity == "error"]
