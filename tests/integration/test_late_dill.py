"""Workers that were forked before their zygote imported dill do what the others do."""

import importlib
import os
import subprocess
import sys
import time

import pytest
from waiting import wait_until

from ringfence import CapabilityDenied, Pool

pytestmark = pytest.mark.as_user

_LOADED = "'dill' in __import__('sys').modules"


def test_dill_is_imported_where_nothing_may_be_written() -> None:
    """Its import learns the types that it would have, opens nothing for writing, and leaves open() and itself alone."""
    program = """
import _pyio, builtins, io, os, sys
from ringfence.worker import later

def no_writing(event, args):
    if event == "open" and args[2] & os.O_ACCMODE != os.O_RDONLY:
        raise PermissionError(args[0])

sys.addaudithook(no_writing)
opens, finders = (builtins.open, _pyio.open), list(sys.meta_path)
assert later.is_missing()
later.put_off()
import dill
assert (builtins.open, _pyio.open) == opens and sys.meta_path[1:] == finders
found = dill._dill
assert (found.BufferedRandomType, found.BufferedWriterType) == (io.BufferedRandom, io.BufferedWriter)
assert (found.PyBufferedRandomType, found.PyBufferedWriterType) == (_pyio.BufferedRandom, _pyio.BufferedWriter)
assert type(dill.__loader__).__name__ == type(dill.__spec__.loader).__name__ == "SourceFileLoader"
assert dill.loads(dill.dumps(lambda: 3))() == 3
import tempfile
assert tempfile.tempdir is None
later.put_off()
assert sys.meta_path[1:] == finders
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_first_worker_takes_what_goes_by_value() -> None:
    """A worker that was forked at once runs a plain call, then a lambda, and imports dill like any module."""
    with Pool(1) as pool:
        first = pool.submit(os.getpid).result(60)
        base = 7
        assert pool.submit(lambda: (os.getpid() == first, base)).result(60) == (True, 7)


def test_the_first_worker_imports_what_its_zygote_put_off() -> None:
    """The library is there whole, and a failure says where it was."""
    names = ("typing", "threading", "logging", "random", "socket", "pickle", "traceback")
    with Pool(1) as pool:
        failed = pool.submit(eval, "1 // 0").exception(60)
        assert 'File "<string>", line 1, in <module>' in str(failed.__cause__)  # type: ignore[union-attr]
        for name in names:
            found = pool.submit(eval, f"__import__({name!r}).__spec__.origin").result(60)
            assert found == sys.modules.get(name, __import__(name)).__spec__.origin  # type: ignore[union-attr]


def test_later_workers_have_it_from_their_zygote() -> None:
    """It is imported once, in a lull, behind the private root; who is forked after that finds it there."""
    with Pool(1, max_tasks_per_child=2) as pool:
        assert pool.submit(eval, _LOADED).result(60) in (False, True)
        wait_until(lambda: pool.submit(eval, _LOADED).result(60), what="the zygote's import of dill")


def test_workers_for_one_call_have_it_once_something_went_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would pay for it at its fork: where nothing goes by value, it is not there."""
    own = importlib.import_module("dill")
    monkeypatch.delitem(sys.modules, "dill")  # as in a program that has sent nothing by value yet
    with Pool(1, isolation="call") as pool:
        first = {pool.submit(eval, _LOADED).result(60)}
        time.sleep(0.1)  # longer than any lull
        assert first | {pool.submit(eval, _LOADED).result(60) for _ in range(4)} == {False}
        monkeypatch.setitem(sys.modules, "dill", own)
        base = 7
        assert pool.submit(lambda: base).result(60) == 7
        wait_until(lambda: pool.submit(eval, _LOADED).result(60), what="the zygote's import of dill")


def test_no_worker_pays_for_what_its_zygote_has_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of its private memory comes on top of what it has from its start."""
    monkeypatch.delitem(sys.modules, "dill", raising=False)  # or zygotes would import it at once
    limit = "__import__('resource').getrlimit(__import__('resource').RLIMIT_DATA)[0]"
    asked = f"('dill' in __import__('sys').modules, {limit})"
    found: dict[bool, int] = {}
    with Pool(1, max_tasks_per_child=2) as pool:

        def ask() -> bool:
            late, limit = pool.submit(eval, asked).result(60)
            found.setdefault(late, limit)
            return bool(late)

        wait_until(ask, what="the zygote's import of dill")
    if False not in found:
        pytest.skip("it was imported before the first worker started")
    assert found[True] > found[False]


@pytest.mark.parametrize("late", [False, True])
def test_the_place_of_temporary_files_does_not_depend_on_when_a_worker_started(late: bool) -> None:
    """tempfile says what it says in a worker that was forked with dill in it: its folder, or that it has none."""
    place = "__import__('tempfile').gettempdir()"
    with Pool(1) as none, Pool(1, capabilities=["fs:write"]) as one:
        if late:
            assert [pool.submit(lambda: 1).result(60) for pool in (none, one)] == [1, 1]
        assert isinstance(none.submit(eval, place).exception(60), CapabilityDenied)
        assert one.submit(eval, place).result(60) == one.submit(eval, "__import__('os').environ['TMPDIR']").result(60)


def test_an_initializer_goes_by_value() -> None:
    """What the first worker needs before its first task is there."""
    marks: list[int] = []
    with Pool(1, initializer=lambda: marks.append(1)) as pool:
        assert pool.submit(pow, 2, 3).result(60) == 8
