"""The deadlock hunt of the plugin runtime: random programs over its whole API, which shrink when one goes wrong.

`plugin_programs.py` runs each in a process of its own. To run one again, in a folder with the plugins of
`plugin_steps.write_plugins`: `plugin_programs.py 20 PROGRAM 10`.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_steps import ACTIONS, ENDINGS, KINDS, NAMES, RELAYS, TRANSITIONS, write_plugins

# Seconds a program may take on a machine that does much else; most take less than five.
PATIENCE = 100.0
# How often a program that went wrong is run with parts left out.
MOST_TRIES = 150

Program = list[list[Any]]


def make_program(seed: int, steps: int) -> Program:
    """Return the program of a seed; with ^C in between where it is odd."""
    pick = random.Random(seed)
    pools, futures = [1000], [0]
    restart = [None, "often", "once"]
    program: Program = []

    def runtime(number: int) -> None:
        settings: dict[str, Any] = {
            "plugins": pick.choice([[], ["one"], ["one", "two"], ["one", "two"], list(NAMES)]),
            "restart": pick.choice(restart), "calls": pick.choice([1, 3, 100]), "drain": pick.choice([0.1, 2.0]),
            "duplicates": pick.random() < 0.3,
            "on event": pick.choice([None, None, *ACTIONS]) if pick.random() < 0.3 else None,
        }  # fmt: skip
        program.append([0, "runtime", number, settings])

    def call() -> list[Any]:
        key = futures[-1] + 1000
        futures.append(key)
        return [pick.choice(pools), key, pick.choice(NAMES[:2]), pick.choice([*KINDS, "echo", "nap", "relay"]),
                [pick.choice(RELAYS), pick.choice(NAMES)]]  # fmt: skip

    def step() -> list[Any]:
        pool, what = pick.choice(pools), pick.random()
        if what < 0.20:
            key = call()
            return ["call", *key, 0.1 if key[3] == "late" else 10.0]
        if what < 0.42:
            action = pick.choice([None, None, *ACTIONS])
            submitted = call()
            count = 1 if submitted[3] in ("late", "leave") else pick.choice([1, 1, 5, 40])
            return ["submit", *submitted, action, count]
        if what < 0.65:
            return ["transition", pool, pick.choice(TRANSITIONS), pick.choice(NAMES[:2])]
        if what < 0.72:
            return ["wait", pick.choice(futures), pick.choice([None, 0.01])]
        if what < 0.75:
            return ["cancel", pick.choice(futures)]
        if what < 0.81:
            return ["kill", pool, pick.randrange(3)]
        choices: list[Callable[[], list[Any]]] = [
            lambda: ["freeze", pool, pick.randrange(3), 0.03], lambda: ["kill zygote", pick.randrange(3)],
            lambda: ["broadcast", pool, futures[-1]], lambda: ["async", pool, pick.randrange(10), pick.randrange(5)],
            lambda: ["shutdown", pool, pick.random() < 0.7, pick.random() < 0.3], lambda: ["drop", pool],
            lambda: ["garbage", pool],
            lambda: ["fork", pool, pick.choice(["nothing", "use", "shutdown", "pool", "leave"])],
        ]  # fmt: skip
        return pick.choice(choices)()

    runtime(1000)
    for _ in range(steps):
        actor, what = pick.choice([0, 0, 0, 1, 2, 3]), pick.random()
        if what < 0.05:
            pools.append(pools[-1] + 1000)
            runtime(pools[-1])
        elif what < 0.08:
            pools.append(pools[-1] + 1000)
            settings = {"size": pick.choice([1, 2]), "lazy_init": pick.random() < 0.5}
            program.append([0, "plugin pool", pools[-1], settings])
        elif what < 0.35 and seed % 2:
            program.append([0, "interrupt", pick.choice([pick.randrange(1, 3000), pick.randrange(1, 60_000)])])
            name, *arguments = step()
            program[-1] += [name, arguments] if name not in ("fork", "async") else ["wait", [futures[-1], 0.01]]
        else:
            program.append([actor, *step()])
    program.append([0, "end", pick.choice(ENDINGS)])
    return program


class Template:
    """The process that runs programs."""

    def __init__(self, folder: Path) -> None:
        write_plugins(folder / "plugins")
        self._left = folder / "temporary"
        self._left.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("plugin_programs.py")), str(PATIENCE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder / "plugins",
            env={**os.environ, "TMPDIR": str(self._left)},
        )  # fmt: skip

    def run(self, program: Program) -> list[str]:
        """Run one program and return what was wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(program) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        left = [f"{path} is left" for path in self._left.iterdir()]
        for path in self._left.iterdir():
            path.rename(self._left.with_name(f"left-{path.name}"))
        problems = [*answer["problems"], *left]
        return [*problems, answer["stderr"]] if problems else []

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


@pytest.fixture
def template(tmp_path: Path) -> Iterator[Template]:
    """What runs programs."""
    made = Template(tmp_path)
    yield made
    made.close()


def shrunk(template: Template, program: Program, problems: list[str]) -> tuple[Program, list[str]]:
    """Leave out what a wrong program goes wrong without."""
    tries, size = MOST_TRIES, len(program) // 2
    while size and tries:
        at = 0
        while at < len(program) - 1 and tries:
            tries -= 1
            less = [*program[:at], *program[at + size : -1], program[-1]]
            if found := template.run(less):
                program, problems = less, found
            else:
                at += size
        size //= 2
    return program, problems


def hunt(template: Template, seeds: range, steps: int) -> None:
    """Run the programs of so many seeds."""
    for seed in seeds:
        program = make_program(seed, steps)
        if problems := template.run(program):
            program, problems = shrunk(template, program, problems)
            lines = [*problems, f"The program, of seed {seed} with {steps} steps:", json.dumps(program)]
            raise AssertionError("\n".join(lines))


def test_random_programs_end(template: Template) -> None:
    """Some programs, the same each time."""
    hunt(template, range(3), 12)


@pytest.mark.soak
@pytest.mark.timeout(7000)
@pytest.mark.parametrize("number", range(1, 11))
def test_many_random_programs_end(template: Template, number: int) -> None:
    """Ten times a hundred longer ones; each second one with ^C."""
    hunt(template, range(number * 1000, number * 1000 + 100), 30)
