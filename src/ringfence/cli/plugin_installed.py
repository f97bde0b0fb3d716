"""``ringfence plugin install``, ``list``, ``pin``, ``unpin``, ``remove`` and ``retry``: what is in a store."""

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringfence.cli.plugin_home import Home, JsonOption, StoreOption, complete_installed
from ringfence.cli.plugin_output import console, print_json, show, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ringfence.plugins.quarantine import Quarantined
    from ringfence.plugins.store import Installed, PluginStore

__all__ = ["register"]

NameArgument = Annotated[
    str, typer.Argument(help="NAME, or NAME@VERSION.", metavar="NAME", autocompletion=complete_installed)
]


def register(group: typer.Typer) -> None:
    """Add the commands."""
    for function in (install, list_, pin, unpin, remove, retry):
        group.command(function.__name__.rstrip("_"))(function)


def install(
    source: Annotated[Path, typer.Argument(help="A plugin's folder, a zip or a wheel.")],
    digest: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="What it must be: of the folder, or of the archive.", show_default=False),
    ] = None,
    pinned: Annotated[bool, typer.Option("--pin", help="Keep this version the current one.")] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Only as a newer version of a plugin that is installed.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Install a plugin. Nothing of it runs, and nothing is approved by it.

    It is there as a whole or not at all, also for programs that use the store at this moment. The same content
    again changes nothing; a changed plugin needs a new version.

    \b
    Examples:
      ringfence plugin install greeter
      ringfence plugin install greeter-1.2.0.zip --pin --digest sha256:...
    """
    if upgrade and pinned:
        raise typer.BadParameter("a pinned plugin is not upgraded; give one of --pin and --upgrade")
    opened = Home.of(store).store()
    found = opened.upgrade(source, digest=digest) if upgrade else opened.install(source, digest=digest, pin=pinned)
    if as_json:
        print_json(_data(found))
        return
    show(f"{found.name} {found.version} is installed{_standing(found)}", "bold green")
    show(f"  {found.folder}", "dim")


def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show what is installed: versions, which is current, pinned or in use, and what is in quarantine, and why.

    \b
    Examples:
      ringfence plugin list
      ringfence plugin list --json
    """
    home = Home.of(store)
    there = home.existing()
    found = [] if there is None else there.installed()
    held = _quarantine(home).entries()
    approved = _approved(home)
    if as_json:
        print_json({
            "store": str(home.root),
            "plugins": [{**_data(each), "approved": each.name in approved,
                         "quarantine": _why(held.get(each.name))} for each in found],
            "quarantine": {name: _why(entry) for name, entry in held.items()},
        })  # fmt: skip
        return
    if found:
        _show(found, held)
    else:
        show(f"Nothing is installed in {home.root}.", "dim")
    for name, entry in held.items():
        show(f"{name} is in quarantine since {_date(entry.at)}: {entry.reason}", "red")
        show(f"  ringfence plugin retry {name} lifts it", "dim")


def _show(found: "Iterable[Installed]", held: "Mapping[str, Quarantined]") -> None:
    from rich.text import Text

    from ringfence.cli.ending import visible

    rows = table("plugin", "version", "state", "installed", "from")
    for each in found:
        states = {
            "current": each.is_current, "pinned": each.is_pinned, "in use": _in_use(each),
            "quarantine": each.name in held,
        }  # fmt: skip
        state = Text(", ".join(word for word, holds in states.items() if holds))
        rows.add_row(
            Text(each.name, style="bold" if each.is_current else ""), each.version,
            state if each.name not in held else Text(state.plain, style="red"),
            _date(each.installed_at), Text(visible(each.source)),
        )  # fmt: skip
    console().print(rows)


def pin(name: NameArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Keep a version of a plugin the current one, whatever is installed later.

    \b
    Example:
      ringfence plugin pin greeter@1.2.0
    """
    plain, version = _parted(name)
    _tell(_existing(store, plain).pin(plain, version), as_json)


def unpin(name: NameArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Let the newest version of a plugin be the current one again.

    \b
    Example:
      ringfence plugin unpin greeter
    """
    plain, _ = _parted(name)
    _tell(_existing(store, plain).unpin(plain), as_json)


def remove(
    name: NameArgument,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also what its hosts keep for it, its approval and its quarantine.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a plugin, or one version of it. Whoever is using one keeps it until they let go.

    \b
    Examples:
      ringfence plugin remove greeter@1.0.0
      ringfence plugin remove greeter --purge
    """
    from ringfence.plugins.lockfile import LockFile

    plain, version = _parted(name)
    home, opened = Home.of(store), _existing(store, plain)
    gone = opened.remove(plain, version, keep_state=not purge)
    left = [each.version for each in opened.installed(plain)]
    if purge and not left:
        if home.approvals.exists():
            LockFile(home.approvals).forget(plain)
        if home.quarantine.exists():
            _quarantine(home).retry(plain)
    if as_json:
        print_json({"name": plain, "removed": gone, "left": left})
        return
    show(f"{plain} {', '.join(gone)} is removed" + (f"; {', '.join(left)} is left" if left else ""), "bold green")


def retry(
    name: Annotated[str, typer.Argument(help="The plugin's name.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lift a plugin's quarantine: it may be started again.

    \b
    Example:
      ringfence plugin retry greeter
    """
    from ringfence.plugins.errors import PluginNotFound

    home = Home.of(store)
    quarantine = _quarantine(home)
    held = quarantine.entries()
    if name not in held:
        raise PluginNotFound(name, f"quarantine {home.quarantine}", held)
    quarantine.retry(name)
    if as_json:
        print_json({"name": name, "lifted": _why(held[name])})
        return
    show(f"{name} may be started again. It was in quarantine for this: {held[name].reason}", "bold green")


# Steps


def _tell(found: "Installed", as_json: bool) -> None:
    if as_json:
        print_json(_data(found))
    else:
        show(f"{found.name} {found.version}{_standing(found)}", "bold green")


def _standing(found: "Installed") -> str:
    words = [word for word, holds in (("current", found.is_current), ("pinned", found.is_pinned)) if holds]
    return f" ({', '.join(words)})" if words else ""


def _existing(store: Path | None, name: str) -> "PluginStore":
    from ringfence.plugins.errors import PluginNotFound

    home = Home.of(store)
    opened = home.existing()
    if opened is None:
        raise PluginNotFound(name, f"store {home.root}")
    return opened


def _quarantine(home: Home) -> Any:
    from ringfence.plugins.quarantine import Quarantine

    return Quarantine(home.quarantine)


def _approved(home: Home) -> frozenset[str]:
    from ringfence.plugins.lockfile import LockFile

    return frozenset(LockFile(home.approvals).names()) if home.approvals.exists() else frozenset()


def _parted(name: str) -> tuple[str, str | None]:
    plain, _, version = name.partition("@")
    return plain, version or None


def _in_use(each: "Installed") -> bool:
    from ringfence.plugins.locks import holder_of

    return holder_of(os.fspath(each.folder)) is not None


def _data(each: "Installed") -> dict[str, Any]:
    return {
        "name": each.name, "version": each.version, "current": each.is_current, "pinned": each.is_pinned,
        "in_use": _in_use(each), "digest": each.digest, "folder": str(each.folder), "source": each.source,
        "installed_at": datetime.datetime.fromtimestamp(each.installed_at, datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _why(entry: "Quarantined | None") -> dict[str, Any] | None:
    return None if entry is None else {"reason": entry.reason, "at": entry.at, "crashes": entry.crashes}


def _date(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")
