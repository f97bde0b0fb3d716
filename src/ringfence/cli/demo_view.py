"""What the demo shows: progress, two tables, and a verdict; or the same as plain data."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ringfence.cli.ending import visible
from ringfence.sandbox.report import Status

if TYPE_CHECKING:
    from ringfence.cli.demo import Attack, Findings

__all__ = ["View", "as_data"]


class View:
    """The terminal, or whatever stdout is: without one there are no colours and no bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        """With `quiet`, show no progress."""
        self._console = Console(highlight=False)
        self._quiet = quiet

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar of `total` steps while the block runs; yield what moves it by one."""
        if self._quiet or not self._console.is_terminal:
            yield lambda: None
            return
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        ) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)

    def show(self, findings: "Findings") -> None:
        """Print everything."""
        totals = findings.totals
        self._console.print(_largest(findings))
        unread = f", {totals.unreadable} of them not valid Python" if totals.unreadable else ""
        self._console.print(
            f"{totals.files} files{unread}: {totals.lines:,} lines, {totals.functions:,} functions, "
            f"{totals.classes:,} classes."
        )
        self._console.print(
            f"{totals.files / findings.seconds:,.0f} files/s, {totals.bytes / findings.seconds / 1e6:.1f} MB/s: "
            f"{totals.bytes / 1e6:.1f} MB in {findings.seconds:.1f} s, by {findings.workers} locked-in workers.\n"
        )
        self._console.print(_attacks(findings.attacks))
        self._show_layers(findings)
        self._show_verdict(findings)

    def _show_layers(self, findings: "Findings") -> None:
        if findings.report is None:
            return
        layers = [layer for layer in findings.report.layers if layer.status is not Status.OFF]
        inside = [layer.layer for layer in layers if layer.status is not Status.NONE]
        self._console.print(f"In force: {', '.join(inside)}.")
        for layer in layers:
            if layer.status is Status.NONE:
                self._console.print(f"Not on this host: {layer.layer} ({escape(layer.cause or layer.detail)}).")
        self._console.print()

    def _show_verdict(self, findings: "Findings") -> None:
        honest = findings.honest
        got_through = sum(attack.stop is None for attack in findings.attacks)
        lost = honest.submitted - honest.completed
        lines = [
            (not got_through, f"{len(findings.attacks)} attempts, {got_through} got through."),
            (
                not lost and not honest.wrong,
                f"{honest.submitted} honest tasks ran beside them: {honest.completed} done, "
                f"{honest.wrong} with another result than before, {lost} lost.",
            ),
            (not findings.leaked, f"The secret {'LEFT' if findings.leaked else 'left no'} trace in what came out."),
            (not findings.connections, f"{findings.connections} connections reached the listening socket."),
        ]
        for good, line in lines:
            self._console.print(f"[{'green' if good else 'bold red'}]{line}[/]")
        self._console.print("[bold green]Lost: nothing.[/]" if findings.held else "[bold red]IT DID NOT HOLD.[/]")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _largest(findings: "Findings") -> Table:
    table = _table("The largest functions of Python's library")
    table.add_column("lines", justify="right", no_wrap=True)
    table.add_column("function", overflow="fold")
    table.add_column("where", overflow="fold")
    for lines, name, path, at in findings.totals.largest:
        table.add_row(str(lines), escape(name), escape(f"{os.path.relpath(path, findings.folder)}:{at}"))
    return table


def _attacks(attacks: "list[Attack]") -> Table:
    table = _table("Attacks from inside a worker")
    # The error gets what the other two leave.
    table.add_column("attempt", max_width=22)
    table.add_column("what stopped it", max_width=24)
    table.add_column("the error its author saw", overflow="fold")
    for attack in attacks:
        # The texts come from a worker.
        error = escape(visible(attack.error))
        if attack.stop is None:
            table.add_row(f"[bold red]{attack.title}[/]", "[bold red]NOTHING: IT SUCCEEDED[/]", f"[red]{error}[/]")
        else:
            table.add_row(attack.title, f"[green]{attack.stop.layer}[/]: {escape(attack.stop.how)}", error)
    return table


def as_data(findings: "Findings") -> dict[str, Any]:
    """Return the findings for JSON."""
    totals = findings.totals
    return {
        "held": findings.held,
        "folder": findings.folder,
        "workers": findings.workers,
        "seconds": findings.seconds,
        "files_per_second": totals.files / findings.seconds,
        "bytes_per_second": totals.bytes / findings.seconds,
        "totals": {key: value for key, value in totals._asdict().items() if key != "largest"},
        "largest": [
            {"lines": lines, "function": name, "path": path, "line": at} for lines, name, path, at in totals.largest
        ],
        "attacks": [
            {
                "attempt": attack.title,
                "succeeded": attack.stop is None,
                "stopped_by": attack.stop.layer if attack.stop else None,
                "how": attack.stop.how if attack.stop else None,
                "error": attack.error,
                "seconds": attack.seconds,
            }
            for attack in findings.attacks
        ],
        "honest": findings.honest._asdict(),
        "secret_leaked": findings.leaked,
        "connections": findings.connections,
        "layers": findings.report.to_data() if findings.report is not None else None,
    }
