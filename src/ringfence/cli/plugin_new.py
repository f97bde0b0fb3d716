"""``ringfence plugin new``: a folder with a plugin that works, and its test."""

import errno
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ringfence.cli.plugin_home import JsonOption
from ringfence.cli.plugin_output import print_json, show

__all__ = ["register"]


class Kind(StrEnum):
    """Who starts the plugin's work."""

    GENERIC = "generic"
    UI = "ui"
    DAEMON = "daemon"
    HYBRID = "hybrid"


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("new")(new)


def new(
    name: Annotated[str, typer.Argument(help="The plugin's name: small letters, digits and '-'.")],
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Make it in this folder; by default here.", show_default=False),
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="Called by its host, by a user's keys, by a schedule, or by both.")
    ] = Kind.GENERIC,
    package: Annotated[bool, typer.Option("--package", help="Its code as a package of several modules.")] = False,
    executable: Annotated[
        bool, typer.Option("--executable", help="A program that speaks with its host in lines of JSON.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a new plugin: plugin.toml, its code, a README.md and a test that passes.

    The folder is called as the plugin, and must not be there yet: nothing is overwritten.

    \b
    Examples:
      ringfence plugin new greeter
      ringfence plugin new collector --kind daemon --dir plugins
      ringfence plugin new shout --executable
    """
    from ringfence.cli.plugin_templates import EXECUTABLE, plugin_files

    _check_name(name)
    if package and executable:
        raise typer.BadParameter("a program is no package; give one of --package and --executable")
    target = (folder or Path()) / name
    files = plugin_files(name, kind.value, package=package, executable=executable)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.mkdir()
    except FileExistsError:
        said = "is there already, and nothing is overwritten; choose another name"
        raise FileExistsError(errno.EEXIST, said, str(target)) from None
    for path, text in files.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
        if path == EXECUTABLE:
            file.chmod(file.stat().st_mode | 0o111 & ~_umask())
    if as_json:
        print_json({"name": name, "kind": kind.value, "folder": str(target.absolute()), "files": sorted(files)})
        return
    show(f"{target}/", "bold green")
    for path in sorted(files):
        show(f"  {path}")
    show(f"Next: ringfence plugin check {target}", "dim")


def _check_name(name: str) -> None:
    from ringfence.plugins.manifest_fields import MOST_NAME, NAME_PATTERN

    if len(name) <= MOST_NAME and re.fullmatch(NAME_PATTERN, name):
        return
    near = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:MOST_NAME]
    raise typer.BadParameter(
        f"{name!a} is no plugin's name: at most {MOST_NAME} small letters, digits and '-', no '-' first"
        + (f"; {near!r} would be one" if near else ""),
        param_hint="NAME",
    )


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
