"""The command: runs the rows asked for, prints the table and the aims, writes records and pages."""

import argparse
import json
import os
import shlex
import sys
import textwrap
import time
from pathlib import Path

from benchmarks import machine, pages, table
from benchmarks.aims import judge
from benchmarks.rows import ROWS
from benchmarks.running import run_row


def _arguments() -> argparse.Namespace:
    names = [row.name for row in ROWS]
    description = "ringfence beside other pools, in one run."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run; all by default: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small and once: shows that all works, not how fast")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds for each row (a row's time stays bounded)")
    parser.add_argument("--lazy-items", type=int, metavar="N", help="items of the row lazy (100000000: two minutes)")
    parser.add_argument("--json", metavar="FILE", help="write the values there, too")
    parser.add_argument("--write", metavar="PAGE", action="append", default=[], help="put the table into this page")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"no such row: {', '.join(unknown)} (there are {', '.join(names)})")
    for page in options.write:
        if not os.access(page, os.W_OK):
            parser.error(f"there is no page {page} to write to")
    for name in ("rounds", "lazy_items"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def _note(text: str) -> None:
    """Show what is going on, to people only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:90]}", end="", file=sys.stderr, flush=True)


def main() -> int:
    options = _arguments()
    wanted = [Path(page).resolve() for page in options.write]
    # Subjects find this package by the current folder.
    os.chdir(Path(__file__).resolve().parent.parent)
    started = time.monotonic()
    described = machine.describe()
    peers = f"Peers start workers by {described['start_method']}, this interpreter's default, unless a line says more."
    printed = textwrap.wrap(machine.line(described), table.WIDTH)
    printed += textwrap.wrap(f"{peers} {table.LEGEND}", table.WIDTH)
    if options.quick:
        printed.append("QUICK: small, once, two at a time. These figures show that all works; they compare nothing.")
    printed = ["\n".join(printed) + "\n"]
    print(printed[0], flush=True)
    records, judged = [], []
    for number, row in enumerate(ROWS, 1):
        if options.names and row.name not in options.names:
            continue
        parameters = dict(row.quick if options.quick else row.full)
        if row.name == "lazy" and options.lazy_items is not None:
            parameters["items"] = options.lazy_items
        lines = run_row(row, parameters, quick=options.quick, rounds=options.rounds, note=_note)
        _note("")
        printed.append(table.render(row, lines, parameters, number))
        print(printed[-1], flush=True)
        records += table.records(row, lines, parameters)
        judged += [(verdict, parameters) for verdict in judge(row, lines)]
    if judged:
        printed.append(table.summary(judged))
        print(printed[-1], flush=True)
    seconds = time.monotonic() - started
    printed.append(f"Took {seconds / 60:.1f} minutes; load {os.getloadavg()[0]:.2f} after.\n")
    print(printed[-1], end="", flush=True)
    if options.json:
        aims = [record for pair in judged for record in table.aim_records([pair[0]], pair[1])]
        data = {"machine": described, "quick": options.quick, "records": records, "aims": aims}
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(data, out, indent=1)
    ran = shlex.join(["python", "-m", "benchmarks", *(word for word in sys.argv[1:])])
    parts = {
        "table": f"Command: `{ran}`\n\n```text\n" + "\n".join(printed) + "```\n",
        "aims": table.summary_markdown(judged),
        "headline": table.headline_markdown(judged),
        "machine": machine.line(described) + ".\n",
    }
    for page in wanted:
        pages.write(page, parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
