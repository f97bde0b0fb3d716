"""``ringfence plugin compile``, ``hash``, ``migrate`` and ``schema``: a plugin's files, read and written."""

import os
import stat
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ringfence.cli.plugin_home import JsonOption, Target
from ringfence.cli.plugin_output import note, print_json, show

if TYPE_CHECKING:
    from ringfence.plugins.compile import CompileResult

__all__ = ["register"]


class Mode(StrEnum):
    """What compiled code keeps."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command("compile")(compile_plugin)
    group.command("hash")(hash_plugin)
    group.command("migrate")(migrate)
    group.command("schema")(schema)


def compile_plugin(
    path: Annotated[Path, typer.Argument(help="A folder, a manifest or a .py file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="By default NAME.plb, here.", show_default=False),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="production leaves out assertions and docstrings.")
    ] = Mode.DEVELOPMENT,
    strip: Annotated[bool, typer.Option("--strip", help="Leave out line numbers and folders' names, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a plugin into one file, which other machines load without its source.

    The compiler runs in a throw-away worker; the plugin does not run. The file is for the version of Python
    that made it, which it says, and is not bound to it otherwise.

    \b
    Examples:
      ringfence plugin compile greeter
      ringfence plugin compile greeter -o dist/greeter.plb --mode production
    """
    from ringfence.plugins.compile import CompileOptions, compile_modules
    from ringfence.plugins.errors import InvalidManifest
    from ringfence.plugins.folder import modules_of

    manifest = Target(path).manifest()
    if not manifest.uses_source():
        what = "compiled already" if manifest.bytecode else "a program, which is not compiled"
        raise InvalidManifest(f"plugin {manifest.name!r} is {what}", str(path))
    options = CompileOptions.production() if mode is Mode.PRODUCTION else CompileOptions.development()
    result = compile_modules(
        modules_of(manifest),
        options.with_(strip=strip),
        name=manifest.name,
        version=manifest.version,
        capabilities=manifest.capabilities,
        exports=manifest.exports or None,
    )
    file = output or Path(f"{manifest.name}.plb")
    result.write(file)
    if as_json:
        print_json(_compiled(result, file))
        return
    for warning in result.warnings:
        note(str(warning))
    stats = result.stats
    counts = (stats.bytecode_size, "byte"), (stats.modules, "module"), (stats.functions, "function")
    shown = ", ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts)
    show(f"{file}: {shown}", "bold green")


def _compiled(result: "CompileResult", file: Path) -> dict[str, object]:
    return {
        "file": str(file.absolute()),
        "name": result.metadata.name,
        "version": result.metadata.version,
        "exports": [each.name for each in result.metadata.exports],
        "capabilities": list(result.metadata.required_capabilities),
        "suggested_capabilities": list(result.metadata.suggested_capabilities),
        "language_version": result.metadata.language_version,
        "source_hash": result.metadata.source_hash,
        "size": result.stats.bytecode_size,
        "warnings": [str(warning) for warning in result.warnings],
    }


def hash_plugin(
    path: Annotated[Path, typer.Argument(help="A folder, a manifest, a .py or a .plb file.")],
    as_json: JsonOption = False,
) -> None:
    """Print the digest of a plugin's code, as `hash` in its manifest names it.

    A manifest with a hash loads this code and no other. The second digest, of the folder with all that is in it, is
    what install --digest compares; --json has both.

    \b
    Examples:
      ringfence plugin hash greeter
      ringfence plugin install greeter --digest "$(ringfence plugin hash greeter --json | jq -r .folder)"
    """
    from ringfence.plugins.digest import folder_digest
    from ringfence.plugins.folder import read_code
    from ringfence.plugins.manifest import Manifest

    manifest = Target(path).manifest()
    # A hash that is wrong is why one asks: it must not keep us from telling the right one.
    unbound = Manifest(**{**dict(manifest), "hash": None})
    unbound._path = manifest.path
    code = read_code(unbound)
    folder = folder_digest(path) if path.is_dir() else None
    if as_json:
        print_json({"name": manifest.name, "version": manifest.version, "code": code.digest, "folder": folder,
                    "matches": None if manifest.hash is None else manifest.hash == code.digest})  # fmt: skip
        return
    show(code.digest)
    if manifest.hash is not None and manifest.hash != code.digest:
        note(f"the manifest says {manifest.hash}: it would not load")


def migrate(
    file: Annotated[Path, typer.Argument(help="A plugin.toml or plugin.json; a folder means the one in it.")],
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Rewrite the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rewrite an old manifest in today's spelling; comments and order stay.

    api_version = "0.21.0" becomes a table, keys with underscores get hyphens, metadata that is no text becomes text.

    \b
    Examples:
      ringfence plugin migrate greeter/plugin.toml
      ringfence plugin migrate --in-place greeter
    """
    from ringfence.plugins.beneath import read_inside
    from ringfence.plugins.errors import ManifestNotFound, ManifestParse
    from ringfence.plugins.manifest import find_manifest
    from ringfence.plugins.manifest_text import MAX_MANIFEST_BYTES
    from ringfence.plugins.migrate import migrate_manifest

    path = find_manifest(file)
    if not os.path.lexists(path):
        raise ManifestNotFound(path)
    raw = read_inside(path.parent, path.name, MAX_MANIFEST_BYTES, "manifest")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestParse("not UTF-8", str(path), raw.count(b"\n", 0, error.start) + 1) from None
    made = migrate_manifest(text)
    changed = made != text
    if in_place and changed:
        _rewrite(path, made)
    if as_json:
        print_json({"file": str(path), "changed": changed, "written": in_place and changed, "text": made})
    elif in_place:
        show(f"{path}: {'rewritten' if changed else 'needs no change'}", "green" if changed else None)
    else:
        sys.stdout.write(made)


def _rewrite(path: Path, text: str) -> None:
    """Put a text in a file's place, whole at every moment, with the same mode; a link keeps leading to it."""
    real = Path(os.path.realpath(path))
    beside = real.with_name(f".{real.name}.{os.getpid()}")
    try:
        with beside.open("x", encoding="utf-8", newline="") as opened:
            opened.write(text)
        beside.chmod(stat.S_IMODE(real.stat().st_mode))
        beside.replace(real)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of manifests, for editors and other tools. (--json changes nothing here.)

    \b
    Example:
      ringfence plugin schema > plugin.schema.json
    """
    from ringfence.plugins.manifest_schema import manifest_schema_text

    sys.stdout.write(manifest_schema_text())
