"""pool/beforehand and pool/compiled: what is done once for the workers that one call each is given to."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from ringfence.pool.beforehand import HARMLESS, Beforehand, importable
from ringfence.pool.codebase import Module, library_of
from ringfence.pool.compiled import code_of
from ringfence.worker.modules import ShippedModules

# Run in an interpreter of its own: says of each module what its import has left behind besides modules.
_IMPORTS = """
import atexit, importlib, os, random, signal, sys, threading

def seen():
    maps = [line.split() for line in open("/proc/self/maps")]
    return {
        "descriptors": os.listdir("/proc/self/fd"), "threads": os.listdir("/proc/self/task"),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(), "at exit": atexit._ncallbacks(),
        "environment": dict(os.environ), "signals": [signal.getsignal(each) for each in signal.valid_signals()],
        "timers": [signal.getitimer(each) for each in range(3)], "folder": os.getcwd(), "forks": list(forks),
        "shared memory": [line for line in maps if line[1].endswith("s")], "finders": [*sys.meta_path, *sys.path],
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        "random": random.getstate(),
    }

forks = []
os.register_at_fork = lambda **functions: forks.append(functions)
before = seen()
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        continue  # not a part of this interpreter
    now = seen()
    for kind in now:
        if now[kind] != before[kind]:
            print(name, kind)
    before = now
"""


def _left_behind(*names: str) -> str:
    command = [sys.executable, "-I", "-S", "-c", _IMPORTS, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_imports_that_are_made_beforehand_leave_nothing_behind() -> None:
    """No thread, descriptor, shared memory, function to be called: forks of the importer share definitions alone."""
    assert _left_behind(*sorted(HARMLESS)) == ""
    assert "forks" in _left_behind("concurrent.futures.thread")  # so it would have been seen


def test_a_module_is_due_when_it_was_needed_twice() -> None:
    """What comes once may never come again; and a zygote that is new has to be told all of it."""
    wanted = Beforehand()
    wanted._by_value = True
    wanted.note(("json", "typing"))
    assert wanted.take() == []
    wanted.note(("json",))
    assert (wanted.take(), wanted.take()) == (["json"], [])
    wanted.note(("json", "typing"))
    assert wanted.take() == ["typing"]
    wanted.renew()
    wanted._by_value = True
    assert wanted.take() == ["json", "typing"]


def test_dill_is_due_when_something_went_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that sends it has it then; each zygote is told once."""
    wanted = Beforehand()
    monkeypatch.delitem(sys.modules, "dill", raising=False)
    assert wanted.take() == []
    monkeypatch.setitem(sys.modules, "dill", sys)
    assert (wanted.take(), wanted.take()) == (["dill"], [])
    wanted.renew()
    assert wanted.take() == ["dill"]


def test_what_a_function_needs_of_the_library_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it is harmless to import, and the program itself has imported it."""
    (tmp_path / "needs_some.py").write_text("import colorsys, asyncio\nfrom needs_more import x\n")
    (tmp_path / "needs_more.py").write_text("import collections.abc\nx = 1\ndef later():\n    import zipapp, mailbox\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("needs_some")
    try:
        assert {"colorsys", "asyncio", "collections.abc", "zipapp"} <= library_of("needs_some")
        assert importable(library_of("needs_some")) == ("collections", "collections.abc", "colorsys")
        monkeypatch.delitem(sys.modules, "colorsys")
        assert "colorsys" not in importable(library_of("needs_some"))
        assert library_of("json") == {"json"}
    finally:
        for name in ("needs_some", "needs_more"):
            sys.modules.pop(name, None)


def test_a_module_is_compiled_when_it_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that changed since, nor one that this program has not imported: the worker compiles those."""
    module = Module("sent_often", "value = 1\n", "/sent/often.py", False)
    assert (code_of(module), code_of(module)) == (b"", b"")  # never imported
    monkeypatch.setitem(sys.modules, "sent_often", sys)
    module = module._replace(source="value = 2\n")
    assert code_of(module) == b""
    code = code_of(module)
    assert code and code_of(module) is code
    broken = module._replace(source="value =\n")
    assert (code_of(broken), code_of(broken)) == (b"", b"")


def test_code_of_another_interpreter_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marshalled code says which interpreter it is for; without a match the source counts."""
    module = Module("sent_as_code", "value = 2\n", "/sent/as_code.py", False)
    monkeypatch.setitem(sys.modules, module.name, sys)
    code_of(module)
    code = code_of(module)
    for sent, value in ((code, 2), (b"\x00" + code[1:], 3), (b"", 3)):
        monkeypatch.delitem(sys.modules, module.name, raising=False)
        shipped = ShippedModules()
        try:
            shipped.add(module.name, "value = 3\n", module.filename, False, sent)
            assert importlib.import_module(module.name).value == value
        finally:
            sys.meta_path.remove(shipped)
