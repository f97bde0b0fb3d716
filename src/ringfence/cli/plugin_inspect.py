"""``ringfence plugin inspect``: what a plugin is, wants and offers, and what it would be held to here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ringfence.cli.plugin_home import Home, JsonOption, PluginArgument, StoreOption, Target, found
from ringfence.cli.plugin_output import console, escaped, note, print_json, show, table

if TYPE_CHECKING:
    from ringfence.plugins.folder import Code
    from ringfence.plugins.manifest import Manifest
    from ringfence.plugins.signatures import Function

__all__ = ["register"]

_RISKS: Final = {"low": "green", "medium": "yellow", "high": "bold red"}
_STATUS: Final = {"full": "green", "partial": "yellow", "none": "red"}


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("inspect")(inspect_plugin)


def inspect_plugin(
    plugin: PluginArgument,
    stub: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a .pyi of its exports, for type checkers.", show_default=False),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a plugin is, what it wants and what it offers, without running it.

    Each capability that it declares is told in words with its risk; then its limits, its exports with their signatures,
    the digest of its code, and what the sandbox enforces on this host, whatever the plugin tries.

    \b
    Examples:
      ringfence plugin inspect greeter
      ringfence plugin inspect greeter --stub greeter_stub.pyi --json
    """
    from ringfence.plugins.folder import read_code
    from ringfence.plugins.stubs import write_stub

    with found(plugin, Home.of(store)) as target:
        manifest = target.manifest()
        code = read_code(manifest)
        functions, exports = _exports(manifest, code)
        data = _data(manifest, code, exports, target)
    if stub is not None:
        stub.write_text(write_stub(functions, plugin=manifest.name), encoding="utf-8")
        data["stub"] = str(stub)
    if as_json:
        print_json(data)
    else:
        _show(data)


def _data(manifest: "Manifest", code: "Code", exports: list[dict[str, Any]], target: Target) -> dict[str, Any]:
    from ringfence.cli.plugin_words import meaning
    from ringfence.plugins.config import EngineConfig
    from ringfence.sandbox.doctor import assess
    from ringfence.sandbox.features import probe

    return {
        "name": manifest.name,
        "version": manifest.version,
        "description": manifest.description,
        "authors": list(manifest.authors),
        "license": manifest.license,
        "kind": manifest.kind.value,
        "runtime": manifest.runtime,
        "entry": manifest.entry_point(),
        "path": str(manifest.path or target.path),
        "installed": target.installed,
        "api_version": str(manifest.api_version),
        "dependencies": [{"name": each.name, "version": str(each.version), "optional": each.is_optional}
                         for each in manifest.dependencies],
        "capabilities": [{"grant": str(grant), "risk": grant.capability.risk.value, "means": meaning(grant),
                          "dangerous": grant.capability.is_dangerous} for grant in sorted(manifest.grants())],
        "limits": EngineConfig().limits.narrow(manifest.limits).to_mapping(),
        "asked_limits": manifest.limits.to_mapping(),
        "exports": exports,
        "hash": code.digest,
        "host": [{"layer": each.layer.value, "status": each.status.value, "detail": each.detail, "missing": each.gap}
                 for each in assess(probe()).layers],
        "notes": manifest.lint(),
    }  # fmt: skip


def _exports(manifest: "Manifest", code: "Code") -> "tuple[list[Function], list[dict[str, Any]]]":
    """Return the exports as far as their source tells of them, and all of them as data."""
    from ringfence.plugins.bytecode import read_header
    from ringfence.plugins.inspection import inspect_source, inspection_pool
    from ringfence.plugins.signatures import Function

    if code.bytecode is not None:
        known = {each.name: each for each in read_header(code.bytecode, any_interpreter=True).metadata.exports}
        names = manifest.exports or tuple(known)
        listed = [_export(name, known[name].signature if name in known else None,
                          known[name].doc if name in known else "") for name in names]  # fmt: skip
        return [Function(name, is_known=False) for name in names], listed
    if not code.modules:
        names = manifest.exports
        return [Function(name, is_known=False) for name in names], [_export(name, None) for name in names]
    functions: dict[str, Function] = {}
    public: tuple[str, ...] = ()
    with inspection_pool() as pool:
        # The main module first; what it has from another of the plugin's modules is described there.
        for position, module in enumerate(code.modules):
            seen = inspect_source(module.source, module.filename, pool=pool)
            if seen.error is not None and position == 0:
                raise seen.error.to_error()
            public = seen.public if position == 0 else public
            wanted = manifest.exports or public
            functions = {**{name: seen.functions[name] for name in wanted if name in seen.functions}, **functions}
            if all(name in functions for name in wanted):
                break
    names = manifest.exports or public
    known_functions = [functions.get(name, Function(name, is_known=False)) for name in names]
    return known_functions, [
        _export(each.name, str(each.signature) if each.is_known else None, each.doc, each.is_async)
        for each in known_functions
    ]


def _export(name: str, signature: str | None, doc: str = "", is_async: bool = False) -> dict[str, Any]:
    return {"name": name, "signature": signature, "doc": doc, "async": is_async}


# For people


def _show(data: dict[str, Any]) -> None:
    show(f"{data['name']} {data['version']}", "bold")
    if data["description"]:
        show(f"  {data['description']}")
    facts = {
        "from": data["path"], "kind": data["kind"], "runs": f"{data['entry']} ({data['runtime']})",
        "authors": ", ".join(data["authors"]), "license": data["license"], "api": data["api_version"],
        "code": data["hash"],
        "needs": ", ".join(f"{each['name']} {each['version']}" for each in data["dependencies"]),
    }  # fmt: skip
    for name, value in facts.items():
        if value:
            show(f"  {name:8} {value}")
    _show_table("It wants to", ("capability", "risk", "which is to"),
                [(each["grant"], each["risk"], each["means"] + ("; look twice" if each["dangerous"] else ""))
                 for each in data["capabilities"]], 1, _RISKS,
                "It declares no capability: it computes, and reaches nothing.")  # fmt: skip
    _show_table("It offers", ("function", "what its author says"),
                [((f"{'async ' if each['async'] else ''}{each['name']}{each['signature'] or '(...)'}"),
                  each["doc"].partition("\n")[0]) for each in data["exports"]], None, {},
                "It declares no exports.")  # fmt: skip
    limits = ", ".join(f"{name} {_amount(name, value)}" for name, value in data["limits"].items())
    show(f"Limits: {limits or 'none'}")
    _show_table("On this host, whatever it tries", ("layer", "here", "what holds"),
                [(each["layer"], each["status"], each["detail"]) for each in data["host"]], 1, _STATUS, "")  # fmt: skip
    for text in data["notes"]:
        note(f"note: {text}")


def _show_table(
    title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], coloured: int | None, styles: dict[str, str],
    otherwise: str,
) -> None:  # fmt: skip
    from rich.text import Text

    out = console()
    if not rows:
        out.print(otherwise)
        return
    made = table(*columns, title=title)
    for row in rows:
        made.add_row(*(
            Text(escaped(cell.replace("\n", " ")), style=styles.get(cell, "") if at == coloured else "")
            for at, cell in enumerate(row)
        ))  # fmt: skip
    out.print(made)


def _amount(name: str, value: float) -> str:
    if name in ("memory", "file_size", "output"):
        return f"{value / 2**20:g} MiB"
    return f"{value:g} s" if name in ("cpu", "wall") else f"{value:g}"
