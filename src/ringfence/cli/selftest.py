"""``ringfence doctor --self-test``: what workers of each profile tried from inside, and what came of it."""

import json
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

    from ringfence.pool.trial import Trial

__all__ = ["run"]

_HOLE: Final = 1
_USAGE: Final = 2


def run(profile: str | None, *, as_json: bool) -> int:
    """Put one profile, or every shipped one, to the test; print what came of it; return the exit code."""
    from ringfence.pool.trial import put_to_the_test
    from ringfence.sandbox.errors import PolicyError
    from ringfence.sandbox.profiles import list_profiles, load_profile

    try:
        chosen = [load_profile(name) for name in ([profile] if profile is not None else list_profiles())]
    except PolicyError as error:
        print(f"ringfence doctor: {error}", file=sys.stderr)
        return _USAGE
    trials = [put_to_the_test(each) for each in chosen]
    if as_json:
        print(json.dumps({"ok": all(trial.holds for trial in trials), "profiles": list(map(_data, trials))}, indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        _show(console, trials, every=profile is not None)
    return 0 if all(trial.holds for trial in trials) else _HOLE


def _data(trial: "Trial") -> dict[str, object]:
    probes = [
        {"probe": found.probe.name, "layer": str(found.probe.layer), "seen": found.seen, "hole": found.is_hole}
        for found in trial.findings
    ]
    return {
        "profile": trial.profile, "level": trial.level, "ok": trial.holds, "error": trial.error, "probes": probes,
    }  # fmt: skip


def _show(console: "Console", trials: "list[Trial]", *, every: bool) -> None:
    """Print a line for each profile; before it each hole, or with `every` each attempt."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    def new(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for position, column in enumerate(columns):
            # The last column is prose and may fold.
            made.add_column(column, no_wrap=position < len(columns) - 1, overflow="fold")
        return made

    details = new("What was tried", "profile", "layer", "seen", "attempt")
    for trial in trials:
        for found in trial.findings if every else trial.holes:
            seen = f"[red]{found.seen}: a hole[/]" if found.is_hole else f"[green]{found.seen}[/]"
            details.add_row(trial.profile, str(found.probe.layer), seen, escape(found.probe.name))
    if details.row_count:
        console.print(details)
    table = new("Self-test", "profile", "level", "attempts", "verdict")
    for trial in trials:
        verdict = f"[green]{_praise(trial)}[/]" if trial.holds else f"[red]{escape(_blame(trial))}[/]"
        table.add_row(trial.profile, trial.level, str(len(trial.findings)), verdict)
    console.print(table)


def _praise(trial: "Trial") -> str:
    return "holds" if trial.findings else "nothing to prove: no layer is asked for"


def _blame(trial: "Trial") -> str:
    return trial.error or f"{len(trial.holes)} holes, the first: {trial.holes[0].probe.name}"
