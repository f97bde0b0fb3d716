"""The deadlock hunt: random programs over a pool's whole API under a watchdog, which shrink when one hangs.

hypothesis makes the programs (a state machine: pools, tasks and what is done to them); `programs.py` runs each in a
process of its own and compares what became of it with a small model. To run one again: `programs.py 20 PROGRAM 10`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from kinds import ACTIONS, ENDINGS, KINDS

# Seconds a program may take on a machine that does much else; most take less than one.
PATIENCE = 40.0
TEMPLATE = Path(__file__).parent / "programs.py"

actors = st.sampled_from([0, 0, 0, 1, 2])
trouble = st.sampled_from([None, None, None, "raise", "submit", "shutdown", "exit"])
pool_settings = st.fixed_dictionaries(
    {
        "max_workers": st.integers(1, 3),
        "profile": st.sampled_from(["untrusted", "trusted", "trusted"]),
    },
    optional={
        "isolation": st.just("call"),
        "queue_size": st.just(3),
        "initializer": st.sampled_from(["ok", "ok", "raise", "exit"]),
    },
)


class Template:
    """The process that runs programs, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.programs = 0

    def run(self, program: list[list[Any]]) -> list[str]:
        """Run one program and return what was wrong."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(TEMPLATE), str(PATIENCE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(program) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.programs += 1
        return [*answer["problems"], answer["stderr"]] if answer["problems"] else []

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.communicate(timeout=60)
            self._process = None


template = Template()


class Hunt(RuleBasedStateMachine):
    """Writes a program step by step, and runs it at the end."""

    pools: ClassVar[Bundle[int]] = Bundle("pools")
    futures: ClassVar[Bundle[int]] = Bundle("futures")
    # Whether ^C comes in between, which is another matter each time.
    interrupts = False

    def __init__(self) -> None:
        super().__init__()
        self.program: list[list[Any]] = []
        self.count = 0
        self.ending = "shutdown"

    def number(self) -> int:
        """Name something new; thousands apart, so that bursts have names of their own."""
        self.count += 1
        return self.count * 1000

    def step(self, actor: int, name: str, *arguments: Any) -> None:
        """Add a step."""
        self.program.append([actor, name, *arguments])

    @initialize(target=pools, settings=pool_settings, ending=st.sampled_from(ENDINGS))
    def begin(self, settings: dict[str, Any], ending: str) -> int:
        """There is a pool, and an end."""
        self.ending = ending
        return self.another_pool_with(settings)

    def another_pool_with(self, settings: dict[str, Any]) -> int:
        """Make a pool."""
        number = self.number()
        self.step(0, "pool", number, settings)
        return number

    @rule(target=pools, settings=pool_settings)
    def another_pool(self, settings: dict[str, Any]) -> int:
        """Make another pool."""
        return self.another_pool_with(settings)

    @rule(
        target=futures, actor=actors, pool=pools, kind=st.sampled_from(KINDS), nowait=st.booleans(),
        action=st.sampled_from([None, None, None, *ACTIONS]),
    )  # fmt: skip
    def submit(self, actor: int, pool: int, kind: str, nowait: bool, action: str | None) -> int:
        """Hand in a task, with something to be done when it is done."""
        key = self.number()
        self.step(actor, "submit", pool, key, kind, nowait, action)
        return key

    @rule(target=futures, actor=actors, pool=pools, count=st.integers(1, 80))
    def burst(self, actor: int, pool: int, count: int) -> int:
        """Hand in many tasks in a row."""
        key = self.number()
        self.step(actor, "burst", pool, key, count)
        return key

    @rule(
        actor=actors, pool=pools, count=st.integers(0, 100), chunksize=st.sampled_from([None, 1, 7]),
        buffersize=st.sampled_from([None, 1, 10]), take=st.integers(0, 100),
        how=st.sampled_from(["map", "imap_unordered"]), trouble=trouble,
    )  # fmt: skip
    def map(
        self, actor: int, pool: int, count: int, chunksize: int | None, buffersize: int | None, take: int, how: str,
        trouble: str | None,
    ) -> None:  # fmt: skip
        """Map over some items and take some of the results."""
        self.step(actor, "map", pool, count, [chunksize, buffersize], take, how, trouble)

    @rule(actor=actors, future=futures)
    def cancel(self, actor: int, future: int) -> None:
        """Cancel a task, wherever it is."""
        self.step(actor, "cancel", future)

    @rule(actor=actors, future=futures, seconds=st.sampled_from([None, 0.0, 0.01]))
    def wait(self, actor: int, future: int, seconds: float | None) -> None:
        """Wait for a task."""
        self.step(actor, "wait", future, seconds)

    @rule(actor=actors, pool=pools, what=st.sampled_from(["wait all", "statistics"]))
    def look(self, actor: int, pool: int, what: str) -> None:
        """Wait for all tasks, or count them."""
        self.step(actor, what, pool)

    @rule(actor=actors, pool=pools, which=st.integers(0, 2), frozen=st.sampled_from([None, None, 0.03]))
    def harm(self, actor: int, pool: int, which: int, frozen: float | None) -> None:
        """Kill a worker, or stop it for a while."""
        if frozen is None:
            self.step(actor, "kill", pool, which)
        else:
            self.step(actor, "freeze", pool, which, frozen)

    @rule(actor=actors, which=st.integers(0, 3))
    def kill_zygote(self, actor: int, which: int) -> None:
        """Kill a zygote, or the nursery."""
        self.step(actor, "kill zygote", which)

    @rule(actor=actors, pool=pools, wait=st.booleans(), cancel=st.booleans())
    def shut_down(self, actor: int, pool: int, wait: bool, cancel: bool) -> None:
        """Shut a pool down; others may be using it."""
        self.step(actor, "shutdown", pool, wait, cancel)

    @rule(actor=actors, pool=pools, what=st.sampled_from(["kill workers", "drop"]))
    def finish(self, actor: int, pool: int, what: str) -> None:
        """Kill a pool's workers, or forget it."""
        self.step(actor, what, pool)

    @rule(actor=actors, pool=pools, action=st.sampled_from(["submit", "shutdown", "cancel all", "kill workers"]))
    def garbage(self, actor: int, pool: int, action: str) -> None:
        """Leave a cycle that uses the pool when it is collected."""
        self.step(actor, "garbage", pool, action)

    @rule(actor=actors, pool=pools, what=st.sampled_from(["nothing", "use", "shutdown", "pool", "leave"]))
    def fork(self, actor: int, pool: int, what: str) -> None:
        """Fork the caller."""
        self.step(actor, "fork", pool, what)

    @rule(actor=actors, pool=pools, count=st.integers(1, 10), cancelled=st.integers(0, 5))
    def run_async(self, actor: int, pool: int, count: int, cancelled: int) -> None:
        """Await calls, and cancel some."""
        self.step(actor, "async", pool, count, cancelled)

    @precondition(lambda self: self.interrupts)
    @rule(
        target=futures, microseconds=st.integers(1, 3000), pool=pools,
        kind=st.sampled_from(["square", "nap", "parcel"]),
    )  # fmt: skip
    def interrupted_call(self, microseconds: int, pool: int, kind: str) -> int:
        """^C while a task is handed in."""
        key = self.number()
        self.step(0, "interrupt", microseconds, "submit", [pool, key, kind])
        return key

    @precondition(lambda self: self.interrupts)
    @rule(microseconds=st.integers(1, 20_000), pool=pools, future=futures, what=st.integers(0, 3))
    def interrupted(self, microseconds: int, pool: int, future: int, what: int) -> None:
        """^C while something else is done."""
        steps: list[tuple[str, list[Any]]] = [
            ("cancel", [future]), ("wait", [future, 0.02]), ("shutdown", [pool, True, False]),
            ("map", [pool, 50, [None, None], 50, "map", None]),
        ]  # fmt: skip
        self.step(0, "interrupt", microseconds, *steps[what])

    def teardown(self) -> None:
        """Run the program."""
        if not self.program:
            return
        self.step(0, "end", self.ending)
        problems = template.run(self.program)
        if problems:
            raise AssertionError("\n".join([*problems, "", "The program:", json.dumps(self.program)]))


def hunt(examples: int, steps: int, number: int | None = None) -> None:
    """Run so many programs of so many steps; with a `number`, others than those of every day."""
    machine = Hunt if number is None else seed(number)(type("Hunt", (Hunt,), {"interrupts": number % 2 == 0}))
    before = template.programs
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples, stateful_step_count=steps, derandomize=number is None, deadline=None,
                database=None, suppress_health_check=list(HealthCheck), print_blob=False,
                phases=(Phase.generate, Phase.shrink),
            ),
        )  # fmt: skip
    finally:
        template.close()
    assert template.programs - before >= examples // 2


def test_random_programs_end() -> None:
    """Some programs, the same each time."""
    hunt(4, 12)


@pytest.mark.soak
@pytest.mark.timeout(7000)
@pytest.mark.parametrize("number", range(10))
def test_many_random_programs_end(number: int) -> None:
    """Ten times three hundred longer ones."""
    hunt(300, 30, number)
