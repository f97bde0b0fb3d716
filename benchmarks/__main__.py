"""The command: runs the rows asked for, prints the table, writes records."""

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path

from benchmarks import machine, table
from benchmarks.rows import ROWS
from benchmarks.running import run_row


def _arguments() -> argparse.Namespace:
    names = [row.name for row in ROWS]
    description = "ringfence beside other pools, in one run."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run; all by default: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small and once: shows that all works, not how fast")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds for each row (a row's time stays bounded)")
    parser.add_argument("--json", metavar="FILE", help="write the values there, too")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"no such row: {', '.join(unknown)} (there are {', '.join(names)})")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def _note(text: str) -> None:
    """Show what is going on, to people only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:90]}", end="", file=sys.stderr, flush=True)


def main() -> int:
    options = _arguments()
    # Subjects find this package by the current folder.
    os.chdir(Path(__file__).resolve().parent.parent)
    described = machine.describe()
    print("\n".join(textwrap.wrap(machine.line(described), table.WIDTH)))
    peers = f"Peers start workers by {described['start_method']}, this interpreter's default, unless a line says more."
    print("\n".join(textwrap.wrap(f"{peers} {table.LEGEND}", table.WIDTH)))
    if options.quick:
        print("QUICK: small, once, two at a time. These figures show that everything works; they compare nothing.")
    print(flush=True)
    records = []
    for number, row in enumerate(ROWS, 1):
        if options.names and row.name not in options.names:
            continue
        parameters = row.quick if options.quick else row.full
        lines = run_row(row, quick=options.quick, rounds=options.rounds, note=_note)
        _note("")
        print(table.render(row, lines, parameters, number), flush=True)
        records += table.records(row, lines, parameters)
    if options.json:
        data = {"machine": described, "quick": options.quick, "records": records}
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(data, out, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
