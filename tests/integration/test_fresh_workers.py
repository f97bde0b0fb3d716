"""A fresh worker for each call: what lies ready in the zygote is no other worker's, and each is judged for itself."""

import importlib
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from ringfence import BrokenPool, Limits, Pool
from ringfence.ipc import messages as m
from ringfence.pool.crew import Crew
from ringfence.pool.handle import WorkerHandle


def _draw() -> float:
    return random.random()


def _draw_in_child() -> tuple[float, float]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, repr(random.random()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return random.random(), float(os.read(reader, 100))


def _print() -> tuple[bool, bool]:
    print("out")
    print("error", file=sys.stderr)
    return sys.stdout.seekable(), sys.stderr.seekable()


def test_no_two_workers_draw_the_same() -> None:
    """Each worker has random numbers of its own, and so has what it forks."""
    with Pool(1, isolation="call") as pool:
        assert len({pool.submit(_draw).result() for _ in range(4)}) == 4
    with Pool(1, profile="trusted") as pool:
        own, child = pool.submit(_draw_in_child).result()
        assert own != child


def test_streams_are_the_worker_s_own_pipes() -> None:
    """What was made before the fork, where 1 and 2 were no pipes, writes to them and knows that they cannot seek."""
    with Pool(1, isolation="call") as pool:
        for _ in range(2):
            future = pool.submit(_print)
            assert future.result() == (False, False)
            assert future.output is not None
            assert (future.output.stdout, future.output.stderr) == ("out\n", "error\n")


def test_a_worker_with_one_task_leaves_when_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to tell it: it ends by itself, in time and in order."""
    codes: list[int | None] = []
    send, bury = WorkerHandle.send, Crew._bury

    def without_stop(self: WorkerHandle, message: list[Any], fds: Any = ()) -> None:
        if message[0] != m.STOP or not self.functions:  # none: it never got a task
            send(self, message, fds)

    def note(self: Crew, handle: WorkerHandle, done: Any) -> None:
        if handle.started:
            codes.append(handle.exit_code)
        bury(self, handle, done)

    monkeypatch.setattr(WorkerHandle, "send", without_stop)
    monkeypatch.setattr(Crew, "_bury", note)
    with Pool(1, isolation="call") as pool:
        assert [pool.submit(abs, -n).result() for n in range(3)] == [0, 1, 2]
    assert len(codes) >= 3
    assert set(codes) == {0}


def test_each_worker_s_report_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one worker's lock-in was enough says nothing of one that reports less."""
    welcome = Crew.welcome
    welcomed: list[int] = []

    def weaken(self: Crew, handle: WorkerHandle, message: list[Any], done: Any) -> None:
        welcomed.append(handle.number)
        if handle.number > 2:
            message = [*message[:2], [{**layer, "status": "none", "cause": "a test"} for layer in message[2]]]
        welcome(self, handle, message, done)

    monkeypatch.setattr(Crew, "welcome", weaken)
    with Pool(1, isolation="call") as pool, pytest.raises(BrokenPool, match="not locked in"):
        for n in range(6):
            assert pool.submit(abs, -n).result() == n
    assert max(welcomed) > 2


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """A function of a module that imports from the library: it marks what it finds there, and says what it found."""
    text = (
        "import colorsys\nlines = []\ndef mark(text):\n"
        "    lines.append(text)\n"
        "    found, colorsys.mark = getattr(colorsys, 'mark', ''), text\n"
        "    return found + ''.join(lines)\n"
        "def fail():\n    raise ValueError('shown')\n"
    )
    name = f"marks_in_{tmp_path.name}"  # one that nobody has sent before
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name).mark
    sys.modules.pop(name, None)
    vars(sys.modules["colorsys"]).pop("mark", None)


_HAS_IT = "'colorsys' in __import__('sys').modules"


@pytest.mark.as_user
def test_calls_share_imports_and_nothing_that_they_do_to_them(imports: Callable[[str], str]) -> None:
    """What two calls needed of the library is there before the next one; what a call changes there ends with it."""
    with Pool(2, isolation="call") as pool:
        assert not pool.submit(eval, _HAS_IT).result(60)
        for n in range(3):
            assert pool.submit(imports, str(n)).result(60) == str(n)
        wait_until(lambda: pool.submit(eval, _HAS_IT).result(60), what="the zygote's import")
        for n in range(5):
            assert pool.submit(imports, str(n)).result(60) == str(n)


def test_a_new_zygote_learns_what_the_last_one_knew(imports: Callable[[str], str]) -> None:
    """It dies with all it imported, and nobody's result depends on that."""
    with Pool(1, isolation="call") as pool:
        for n in range(3):
            assert pool.submit(imports, str(n)).result(60) == str(n)
        wait_until(lambda: pool.submit(eval, _HAS_IT).result(60), what="the zygote's import")
        zygote = pool._supervisor._crew._zygote
        assert zygote is not None
        os.kill(zygote.pid, signal.SIGKILL)
        wait_until(lambda: pool._supervisor._crew._zygote is not zygote, what="the end of the zygote")
        wait_until(lambda: pool.submit(eval, _HAS_IT).result(60), what="the new zygote's import")
        assert pool.submit(imports, "x").result(60) == "x"


def test_where_imports_count_each_call_makes_its_own(imports: Callable[[str], str]) -> None:
    """A limit on what a task does, step by step, is reached by each call alike; workers that stay import for good."""
    with Pool(1, isolation="call", limits=Limits(fs_ops=1000)) as pool:
        for n in range(4):
            assert pool.submit(imports, str(n)).result(60) == str(n)
        assert not pool.submit(eval, _HAS_IT).result(60)
        assert pool._supervisor._crew._beforehand is None
    with Pool(1) as pool:
        assert pool._supervisor._crew._beforehand is None


def test_compiled_modules_fail_as_others_do(imports: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second worker on a module arrives as code, and tracebacks show the same lines of the same file."""
    sent: list[bool] = []
    ship = WorkerHandle._ship

    def note(self: WorkerHandle, modules: Any) -> list[list[Any]]:
        messages = ship(self, modules)
        sent.extend(bool(module[4:] and module[4]) for _, entries in messages for module in entries)
        return messages

    monkeypatch.setattr(WorkerHandle, "_ship", note)
    fail = sys.modules[imports.__module__].fail
    with Pool(1, isolation="call") as pool:
        errors = [pool.submit(fail).exception(60) for _ in range(3)]
    assert sent == [False, True, True]
    shown = {"\n".join(getattr(error, "__notes__", [])) + str(error.__cause__ or error) for error in errors}
    assert len(shown) == 1
    assert all("raise ValueError('shown')" in str(error.__cause__) for error in errors if error is not None)
