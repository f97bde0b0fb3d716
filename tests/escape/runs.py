"""Makes attempts outside and inside, by mode and profile, and judges what came of each."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import breakout
import subject
import try_protocol
import world as worlds
from breakout import ATTEMPTS, Attempt
from scenario_plugins import write_plugin

from ringfence import Limits, PluginRuntime, Pool, RingfenceError, RuntimeConfig
from ringfence.sandbox.profiles import load_profile
from ringfence.sandbox.report import Level

HERE = Path(__file__).parent
MODES = ("call", "import", "thread")
PROFILES = (
    "untrusted", "data-processing", "observability", "orchestration", "orchestration-all", "terminal", "testing",
    "web-service",
)  # fmt: skip

# What workers may have while they try to have more.
LIMITS = Limits(memory="64MiB", processes=16, open_files=64, file_size="1MiB", output="64KiB")
SECONDS = 1.5

# These need a runner of their own.
_OWN = ("exhaustion", "protocol", "persistence")


class Verdict(StrEnum):
    """What came of an attempt."""

    THROUGH = "got through"
    REFUSED = "refused"
    KILLED = "killed"
    STAYS = "stays, as documented"
    GRANTED = "granted"
    MISSING = "not offered by this host"


def names(groups: Iterable[str] = breakout.CLASSES) -> list[str]:
    """Return the attempts of these classes for this machine."""
    machine = os.uname().machine
    return [a.name for a in ATTEMPTS.values() if a.group in groups and a.machine in (None, machine)]


def _got(attempt: Attempt, answer: list[Any], world: worlds.World) -> bool:
    kind, *rest = answer
    if kind != "value" or not rest[0] or rest[0] in ("False", "0", "[]", "None"):
        return False
    return attempt.shows is None or world.shows(attempt.shows, rest[0])


# --- outside ----------------------------------------------------------------------------------------------------


def outside(world: worlds.World, wanted: Iterable[str]) -> dict[str, bool]:
    """Make attempts unsandboxed, as an ordinary user where that is enough; return which of them worked."""
    wanted = list(wanted)
    found: dict[str, bool] = {}
    for root in (False, True):
        chosen = [name for name in wanted if ATTEMPTS[name].root is root]
        if not chosen or (root and os.geteuid() != 0):
            continue
        found.update(_outside(world, chosen, root=root))
    return found


def _outside(world: worlds.World, chosen: list[str], *, root: bool) -> dict[str, bool]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        for source in HERE.glob("*.py"):
            shutil.copy(source, home)
        user: dict[str, Any] = {}
        python = sys.executable
        if os.geteuid() == 0 and not root:
            user = {"user": worlds.NOBODY, "group": worlds.NOBODY, "extra_groups": []}
            python = "/usr/bin/python3"
        ended = subprocess.run(
            [python, "-B", str(home / "outside.py"), world.secrets["argument"], *chosen],
            input=world.for_outside(), capture_output=True, text=True, timeout=300, check=False, cwd=folder,
            env={"PATH": "/usr/bin:/bin", worlds.HOST_VARIABLE: world.secrets["environment"], "TMPDIR": world.folder},
            **user,
        )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(ended.stderr)
    import json

    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    before = dict(world.secrets)
    world.secrets |= {"supervisor": f"[{lines[0][1]}]", "script": folder}
    found = dict(lines[1:])
    result = {name: _got(ATTEMPTS[name], answer, world) for name, answer in found.items()}
    world.secrets.update(before)
    for name, worked in result.items():
        if not worked:
            _failures[name] = found[name]
    return result


# Why an attempt did not work outside, to be shown.
_failures: dict[str, Any] = {}


def why(name: str) -> Any:
    """Return what an attempt that did not work outside answered."""
    return _failures.get(name)


# --- inside -----------------------------------------------------------------------------------------------------


class Inside:
    """Makes attempts in the workers of one profile; `verdicts` and `answers` by attempt, `damage` in words."""

    def __init__(self, world: worlds.World, profile: str, mode: str, **options: Any) -> None:
        self._world = world
        self._profile = profile
        self._mode = mode
        self._options = {"profile": profile, **options}
        self._facts = world.facts | {"mode": mode, "inside": True}
        self.verdicts: dict[str, Verdict] = {}
        self.answers: dict[str, Any] = {}
        self.level = ""
        capabilities = load_profile(profile).capabilities
        self._granted = {str(grant).partition("=")[0] for grant in capabilities}

    def findings(self) -> dict[str, Any]:
        """Return all of it, and what has become of the world."""
        return {"verdicts": self.verdicts, "answers": self.answers, "level": self.level, "damage": self._world.damage()}

    def make(self, wanted: Iterable[str]) -> "Inside":
        """Make these attempts."""
        left = []
        for name in wanted:
            if set(ATTEMPTS[name].opens) & self._granted:
                self.verdicts[name] = Verdict.GRANTED
            else:
                left.append(name)
        by_group = {group: [n for n in left if ATTEMPTS[n].group == group] for group in breakout.CLASSES}
        plain = [n for n in left if ATTEMPTS[n].group not in _OWN and not (ATTEMPTS[n].kills or ATTEMPTS[n].alone)]
        lethal = [n for n in left if ATTEMPTS[n].group not in _OWN and (ATTEMPTS[n].kills or ATTEMPTS[n].alone)]
        self._together(plain)
        self._one_by_one(lethal, {})
        if by_group["exhaustion"]:
            self._one_by_one(by_group["exhaustion"], {"limits": LIMITS, "timeout": SECONDS, "max_workers": 4})
        if by_group["protocol"]:
            self._protocol(by_group["protocol"])
        if by_group["persistence"]:
            self._persistence(by_group["persistence"])
        return self

    def _pool(self, **options: Any) -> Pool:
        return Pool(**{"max_workers": 1, **self._options, **options})

    def _note(self, name: str, answer: list[Any]) -> None:
        attempt = ATTEMPTS[name]
        self.answers[name] = answer
        if not _got(attempt, answer, self._world):
            self.verdicts[name] = Verdict.REFUSED
        elif attempt.stays and self.level != Level.PRIVATE:
            self.verdicts[name] = Verdict.STAYS
        else:
            self.verdicts[name] = Verdict.THROUGH

    def _together(self, wanted: list[str]) -> None:
        """Make many attempts in one worker; whichever ends it is found by making the rest alone."""
        if not wanted:
            return
        with self._pool() as pool:
            try:
                answers = self._submit(pool, wanted)
            except RingfenceError:
                answers = {}
            self._see(pool)
        for name, answer in answers.items():
            self._note(name, answer)
        self._one_by_one([name for name in wanted if name not in answers], {})

    def _see(self, pool: Pool) -> None:
        for report in pool.reports().values():
            self.level = report.level

    def _submit(self, pool: Pool, wanted: list[str]) -> dict[str, list[Any]]:
        if self._mode == "thread":
            pool.submit(subject.in_thread, wanted, self._facts).result(60)
            return dict(pool.submit(subject.of_thread).result(60))
        run = subject.at_import if self._mode == "import" else subject.in_call
        return dict(pool.submit(run, wanted, self._facts).result(60))

    def _one_by_one(self, wanted: list[str], options: dict[str, Any]) -> None:
        """Make each attempt in a worker of its own."""
        if not wanted:
            return
        if self._mode == "thread":
            with self._pool(**options | {"max_workers": 1}) as pool:
                for name in wanted:
                    try:
                        self._note(name, self._submit(pool, [name])[name])
                    except (RingfenceError, KeyError, MemoryError) as error:
                        self._died(name, error)
                self._see(pool)
            return
        with self._pool(isolation="call", **{"max_workers": 2, **options}) as pool:
            run = subject.at_import if self._mode == "import" else subject.in_call
            futures: dict[str, Future[Any]] = {n: pool.submit(run, [n], self._facts) for n in wanted}
            for name, future in futures.items():
                try:
                    self._note(name, future.result(60)[name])
                except (RingfenceError, MemoryError, OSError) as error:
                    self._died(name, error)
                self._see(pool)

    def _died(self, name: str, error: BaseException) -> None:
        self.answers[name] = ["died", type(error).__name__, str(error)[:200]]
        self.verdicts[name] = Verdict.KILLED

    def _protocol(self, wanted: list[str]) -> None:
        """Whatever a worker says, another pool's tasks end as they should, and its own goes on."""
        run = {"call": try_protocol.say, "import": subject.say_at_import, "thread": subject.say_in_thread}[self._mode]
        with self._pool(max_workers=2, timeout=1) as pool, self._pool() as other:
            for name in wanted:
                said = pool.submit(run, name, self._facts)
                bystander = other.submit(subject.nap, 0.03, 42)
                answer = _outcome(said)
                right = _outcome(bystander) == ["value", "42"]
                after = _outcome(pool.submit(subject.nap, 0, 43))
                if after != ["value", "43"]:  # it was in the line of the worker that was ended
                    after = _outcome(pool.submit(subject.nap, 0, 43))
                self.answers[name] = answer
                run_here = os.path.exists("/tmp/ringfence-escape-pickled")
                through = not right or after != ["value", "43"] or run_here
                self.verdicts[name] = Verdict.THROUGH if through else Verdict.REFUSED
                if through:
                    self.answers[name] += [_outcome(bystander), after, run_here]

    def _persistence(self, wanted: list[str]) -> None:
        """What a worker leaves behind, the next one does not find; nor does another pool."""
        before = _processes()
        with self._pool(isolation="call") as pool, self._pool() as other:
            for name in wanted:
                try:
                    answer = pool.submit(subject.in_call, [name], self._facts).result(60)[name]
                except RingfenceError as error:
                    self._died(name, error)
                    continue
                self.answers[name] = answer
                found = pool.submit(subject.look_for).result(60) + other.submit(subject.look_for).result(60)
                self.verdicts[name] = Verdict.THROUGH if name in found else Verdict.REFUSED
        until = time.monotonic() + 2
        while (left := _processes() - before) and time.monotonic() < until:
            time.sleep(0.02)
        if left:
            self.verdicts["leave_child"] = Verdict.THROUGH
            self.answers["leave_child"] = sorted(left)


def _outcome(future: "Future[Any]") -> list[Any]:
    try:
        return ["value", repr(future.result(30))[:200]]
    except BaseException as error:  # whatever a worker makes it
        return ["error", type(error).__name__, "".join(map(str, error.args))[:200]]


def _processes() -> set[str]:
    """Return the processes that descend from this one."""
    found: set[str] = set()
    line = [str(os.getpid())]
    while line:
        pid = line.pop()
        for task in _listed(f"/proc/{pid}/task"):
            try:
                children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            except OSError:
                continue
            found.update(children)
            line += children
    return found


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


_PLUGIN = """
import sys, types
for name, source in {sources!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name + ".py", "exec"), vars(module))
found = sys.modules["breakout"].attempt_all({names!r}, {facts!r})
def findings():
    return found
"""


def as_plugin(world: worlds.World, wanted: list[str], folder: Path) -> dict[str, Any]:
    """Make attempts at the top of a plugin's module, while it is loaded; return what came of them."""
    sources = {"breakout": (HERE / "breakout.py").read_text()}
    sources |= {path.stem: path.read_text() for path in sorted(HERE.glob("try_*.py"))}
    code = _PLUGIN.format(sources=sources, names=wanted, facts=world.facts | {"mode": "import", "inside": True})
    manifest = write_plugin(folder / "escapist", code, exports=("findings",))
    with PluginRuntime(RuntimeConfig()) as runtime:
        runtime.load_manifest(str(manifest))
        answers = runtime.call("escapist", "findings", [])
    inside = Inside(world, "untrusted", "import")
    with Pool(1) as pool:
        inside.level = Level.PRIVATE if pool.hides_paths else Level.CONFINED
    for name, answer in answers.items():
        inside._note(name, answer)
    return inside.findings()


def problems(found: dict[str, Any]) -> list[str]:
    """Return, in words, what of a run's findings must not be."""
    bad = [f"damage: {line}" for line in found["damage"]]
    for name, verdict in found["verdicts"].items():
        attempt, answer = ATTEMPTS[name], found["answers"].get(name)
        if verdict == Verdict.THROUGH:
            bad.append(f"{name} got through: {answer}")
        elif verdict == Verdict.KILLED and not attempt.kills and attempt.group != "exhaustion":
            bad.append(f"{name} ended its worker: {answer}")
        elif attempt.kills and verdict == Verdict.REFUSED:
            bad.append(f"{name} was refused, not killed: {answer}")
    return bad


@contextmanager
def world() -> Iterator[worlds.World]:
    """Yield a new world."""
    with worlds.made() as made:
        yield made
