"""Prints what came of every attempt, by class and standing: ``python -m tests.escape [--modes ...] [--profiles ...]``.

``--inside PROFILE MODE CLASSES`` makes attempts in the standing that this process has, and prints JSON.
"""
# ruff: noqa: E402 - run as a program, nobody has set a path for it

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import runs
from breakout import ATTEMPTS, CLASSES
from levels import STANDINGS, Starter, standings_here
from ordinary_user import open_to_everyone


def inside(profile: str, mode: str, classes: list[str]) -> dict[str, Any]:
    """Make the attempts of these classes here; return what came of them."""
    with runs.world() as world:
        return runs.Inside(world, profile, mode).make(runs.names(classes)).findings()


def table(rows: dict[str, dict[str, Counter[str]]], worked: Counter[str]) -> str:
    """Return the table: for each class what worked outside, and for each standing what came of it."""
    width = max(map(len, CLASSES))
    lines = [f"{'class':{width}}  outside  " + "  ".join(f"{name:>23}" for name in rows)]
    for group in (*CLASSES, "all"):
        cells = []
        for found in rows.values():
            count = sum(found.values(), Counter()) if group == "all" else found.get(group, Counter())
            held = count["refused"] + count["killed"]
            cells.append(f"{held} held, {count['stays, as documented']} stay, {count['got through']} out")
        total = sum(worked.values()) if group == "all" else worked[group]
        lines.append(f"{group:{width}}  {total:7}  " + "  ".join(f"{cell:>23}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="tests.escape", description=__doc__)
    parser.add_argument("--inside", nargs=3, metavar=("PROFILE", "MODE", "CLASSES"))
    parser.add_argument("--profiles", default="untrusted")
    parser.add_argument("--modes", default="call")
    parser.add_argument("--standings", default=",".join(standing.name for standing in standings_here()))
    parser.add_argument("--classes", default=",".join(CLASSES))
    given = parser.parse_args()
    logging.getLogger("ringfence").setLevel(logging.CRITICAL)
    if given.inside:
        profile, mode, classes = given.inside
        print(json.dumps(inside(profile, mode, classes.split(","))))
        return 0
    profiles = runs.PROFILES if given.profiles == "all" else given.profiles.split(",")
    modes = runs.MODES if given.modes == "all" else given.modes.split(",")
    return _everywhere(given.standings.split(","), profiles, modes, given.classes)


def _everywhere(standings: list[str], profiles: Iterable[str], modes: Iterable[str], classes: str) -> int:
    with runs.world() as world:
        outside = runs.outside(world, runs.names(classes.split(",")))
    worked = Counter(ATTEMPTS[name].group for name, did in outside.items() if did)
    rows: dict[str, dict[str, Counter[str]]] = {}
    bad: list[str] = []
    made = 0
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    home.chmod(0o755)
    try:
        with open_to_everyone() as (source, tests, libraries):
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            python = f"/usr/bin/python{version}" if os.geteuid() == 0 else sys.executable
            starter = Starter(python, os.pathsep.join(map(str, (source, libraries))), home, tests)
            for standing in STANDINGS:
                if standing.name not in standings:
                    continue
                rows[standing.name] = {}
                for profile in profiles:
                    for mode in modes:
                        program = (str(tests / "escape" / "__main__.py"), "--inside", profile, mode, classes)
                        ended = starter.run(standing, *program, timeout=900)
                        if ended.returncode:
                            bad.append(f"{standing.name} {profile} {mode}: {ended.stderr[-2000:]}")
                            continue
                        found = json.loads(ended.stdout.splitlines()[-1])
                        counted = Counter(found["verdicts"].values())
                        print(standing.name, profile, mode, dict(counted), file=sys.stderr, flush=True)
                        made += len(found["verdicts"])
                        for name, verdict in found["verdicts"].items():
                            if not outside.get(name):
                                continue
                            count = rows[standing.name].setdefault(ATTEMPTS[name].group, Counter())
                            count[verdict] += 1
                        bad += [f"{standing.name} {profile} {mode} {problem}" for problem in runs.problems(found)]
    finally:
        shutil.rmtree(home)
    print(table(rows, worked))
    print(f"{made} attempts inside, {len(outside)} outside; profiles {', '.join(profiles)}; as {', '.join(modes)}")
    print(*(f"PROBLEM {line}" for line in bad), sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
