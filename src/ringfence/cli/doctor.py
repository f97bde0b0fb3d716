"""``ringfence doctor``: what this host can enforce, and the fix for what it cannot."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ringfence.sandbox.doctor import Assessment, LayerFinding
    from ringfence.sandbox.profiles import Profile

__all__ = ["register"]

_MISSING: Final = 1
_USAGE: Final = 2

# The words carry the meaning; the colours only help the eye.
_COLOURS: Final = {
    "full": "green",
    "kernel": "green",
    "by construction": "green",
    "partial": "yellow",
    "partly": "yellow",
    "advisory": "dim",
    "none": "red",
    "not enforced": "red",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    profile: Annotated[
        str | None, typer.Option(help="The profile to check for: a name or the path of a TOML file. [untrusted]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Let preferred and partly available layers count as missing too.")
    ] = False,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Try the sandbox from inside: the profile given, or every one.")
    ] = False,
) -> None:
    """Show what this host can enforce, layer by layer and capability by capability.

    Exit code: 0 the profile can be held to, 1 a layer is missing or the self-test found a hole, 2 usage.
    """
    if self_test:
        from ringfence.cli.selftest import run

        raise typer.Exit(run(profile, as_json=as_json))
    from ringfence.sandbox.doctor import assess
    from ringfence.sandbox.errors import PolicyError
    from ringfence.sandbox.features import probe
    from ringfence.sandbox.profiles import load_profile

    try:
        chosen = load_profile(profile or "untrusted")
    except PolicyError as error:
        print(f"ringfence doctor: {error}", file=sys.stderr)
        raise typer.Exit(_USAGE) from None
    assessment = assess(probe())
    missing = assessment.missing(chosen.demands, strict=strict)
    if as_json:
        print(json.dumps(_data(assessment, chosen, missing), indent=2))
    else:
        _show(assessment, chosen, missing)
    raise typer.Exit(_MISSING if missing else 0)


def _data(
    assessment: "Assessment", profile: "Profile", missing: "tuple[LayerFinding, ...]"
) -> dict[str, object]:
    data = assessment.to_data()
    for entry in data["layers"]:
        entry["demand"] = next(d.value for layer, d in profile.demands.items() if layer == entry["layer"])
    level = assessment.level(profile.demands).value
    names = [finding.layer.value for finding in missing]
    return {"profile": profile.name, "level": level, "ok": not missing, "missing": names, **data}


def _show(assessment: "Assessment", profile: "Profile", missing: "tuple[LayerFinding, ...]") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_layers(assessment, profile))
    console.print(_capabilities(assessment))
    _show_fixes(console, assessment)
    console.print(f"Level of profile {profile.name!r} here: [bold]{assessment.level(profile.demands)}[/]")
    if missing:
        names = ", ".join(finding.layer.value for finding in missing)
        console.print(f"[red]This host cannot hold profile {profile.name!r} to all of it: {names}.[/]")
    else:
        console.print(f"[green]Profile {profile.name!r} can be enforced on this host.[/]")


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        # The last column is prose and may fold; names and verdicts stay whole.
        table.add_column(column, no_wrap=position < len(columns) - 1, overflow="fold")
    return table


def _verdict(word: str) -> str:
    return f"[{_COLOURS[word]}]{word}[/]"


def _layers(assessment: "Assessment", profile: "Profile") -> "Table":
    table = _table(
        f"Layers, for profile {profile.name!r}", "layer", "asked", "here", "what holds, what is missing"
    )
    for finding in assessment.layers:
        prose = finding.detail + (f"\n[dim]missing: {finding.gap}[/]" if finding.gap else "")
        table.add_row(
            finding.layer.value, profile.demands[finding.layer].value, _verdict(finding.status.value), prose
        )
    return table


def _capabilities(assessment: "Assessment") -> "Table":
    table = _table(
        "Without the grant, what stops the code", "capability", "risk", "strength", "by what, what is left"
    )
    for finding in assessment.capabilities:
        gap = f"\n[dim]{finding.gap}[/]" if finding.gap else ""
        by = "" if finding.strength.value == "advisory" else finding.by
        table.add_row(
            finding.capability.value,
            finding.capability.risk.value,
            _verdict(finding.strength.value),
            (by + gap).lstrip("\n"),
        )
    return table


def _show_fixes(console: "Console", assessment: "Assessment") -> None:
    """Print every fix once, with all that it is for."""
    fixes: dict[str, list[str]] = {}
    for layer in assessment.layers:
        if layer.fix:
            fixes.setdefault(layer.fix, []).append(layer.layer.value)
    for capability in assessment.capabilities:
        if capability.fix:
            fixes.setdefault(capability.fix, []).append(capability.capability.value)
    if not fixes:
        return
    table = _table("What would help", "for", "fix")
    for fix, wanted in fixes.items():
        table.add_row("\n".join(wanted), fix)
    console.print(table)
