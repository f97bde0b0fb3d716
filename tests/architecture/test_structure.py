"""The shape of the code: imports go one way, modules stay small, what is public is documented."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ringfence

ROOT = Path(ringfence.__file__).parent
PROJECT = Path(__file__).parent.parent.parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "tables" not in path.relative_to(ROOT).parts)
NAMES = [
    name
    for _, name, _ in pkgutil.walk_packages([str(ROOT)], "ringfence.")
    if not name.endswith("__main__") and ".tables" not in name
]


def test_imports_go_one_way() -> None:
    """import-linter's contracts of pyproject.toml hold."""
    pytest.importorskip("importlinter")
    ended = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 broken" in ended.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_small_and_says_what_it_is(path: Path) -> None:
    """At most 600 lines, and a docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    tree = ast.parse(text)
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_exists_and_is_documented(name: str) -> None:
    """Every name in __all__ is there; classes and functions, and their public methods, have docstrings."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert inspect.getdoc(value), f"{name}.{public} has no docstring"
        if inspect.isclass(value) and value.__module__ == name:
            for attribute, method in vars(value).items():
                if not attribute.startswith("_") and inspect.isfunction(method):
                    assert inspect.getdoc(getattr(value, attribute)), f"{name}.{public}.{attribute}"


def test_the_face_is_complete() -> None:
    """Each name of ringfence.__all__ resolves and dir() shows it: those of the pool and of the plugin runtime."""
    for name in ringfence.__all__:
        assert getattr(ringfence, name) is not None
    assert len(ringfence.__all__) <= 96  # the compatible plugin hosts' guides import some fifty names from one place
    assert set(ringfence.__all__) <= set(dir(ringfence))
    with pytest.raises(AttributeError):
        ringfence.no_such_name  # noqa: B018


def imported_by(statement: str, *flags: str) -> set[str]:
    """Return the modules that a fresh interpreter, started with `flags`, has after a statement."""
    path = f"sys.path[:] = {sys.path!r}; " if flags else ""
    program = f"import sys; {path}before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    ended = subprocess.run(
        [sys.executable, *flags, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return set(ended.stdout.split())


def tops(names: set[str]) -> set[str]:
    """Return the top-level packages of modules."""
    return {name.partition(".")[0] for name in names}


def test_importing_ringfence_imports_nothing() -> None:
    """Nothing is loaded, and nothing runs, before a name is used."""
    assert imported_by("import ringfence") <= {"ringfence", "ringfence._version", "typing", "copyreg", "contextlib"} | (
        imported_by("import typing") | {"typing"}
    )


def test_a_worker_imports_little() -> None:
    """What every zygote loads: no pydantic, asyncio, typer, rich, psutil or dill, and nothing of the pool."""
    loaded = imported_by("import ringfence.worker.zygote")
    assert not tops(loaded) & {"pydantic", "asyncio", "typer", "rich", "psutil", "dill", "numpy", "multiprocess"}
    assert not tops(loaded) & {"dataclasses", "inspect", "ast", "logging", "pathlib", "subprocess"}
    assert not {name for name in loaded if name.startswith(("ringfence.pool", "ringfence.cli"))}


def test_the_name_of_the_pool_imports_little() -> None:
    """`from ringfence import Pool` is an import of concurrent.futures and next to nothing else: the rest is imported
    while the first pool's zygote starts."""
    loaded = imported_by("from ringfence import Pool")
    ours = {name for name in loaded if tops({name}) == {"ringfence"}}
    assert ours == {"ringfence", "ringfence._version", "ringfence.pool", "ringfence.pool.executor"}
    more = loaded - ours - imported_by("import concurrent.futures, typing")
    assert {name for name in more if not name.startswith("importlib")} <= {"weakref", "_weakrefset", "gc"}


def test_a_zygote_starts_before_the_rest_is_imported() -> None:
    """What stands between the call of Pool and its zygote's start: no policy, no supervisor, no messages."""
    loaded = imported_by("from ringfence.pool.ignition import ignite")
    assert not {name for name in loaded if name.startswith("ringfence.sandbox")}
    assert not loaded & {
        "ast", "concurrent.futures.process", "dataclasses", "inspect", "json", "msgpack", "multiprocessing", "pathlib",
        "ringfence.pool.supervisor", "tempfile", "tomllib",
    }  # fmt: skip


def test_a_zygote_is_told_what_to_be_before_the_rest_is_imported() -> None:
    """Nothing is imported on the way to that message which only errors need, or what follows it."""
    loaded = imported_by(
        "import ringfence.pool.opening; from ringfence.sandbox.profiles import load_profile; load_profile('untrusted')"
    )
    assert not loaded & {
        "concurrent.futures.process", "json", "multiprocessing", "pickletools", "ringfence.pool.crew",
        "ringfence.pool.intake", "ringfence.pool.supervisor", "tempfile",
    }  # fmt: skip


def test_a_zygote_imports_what_its_first_workers_need() -> None:
    """The rest comes in a lull: what formats tracebacks, what is done after forks, what is slow for its enums."""
    loaded = imported_by("from ringfence.worker.zygote import main", "-I", "-S")
    assert not loaded & {
        "dill", "inspect", "json", "linecache", "logging", "pickle", "random", "socket", "subprocess", "tempfile",
        "textwrap", "threading", "tokenize", "traceback", "weakref",
    }  # fmt: skip


def test_a_pool_imports_no_command_line() -> None:
    """Whoever uses a pool does not pay for typer and rich, nor for dill, dataclasses and inspect before their time."""
    loaded = imported_by("from ringfence import Pool; Pool(1).shutdown()")
    assert not tops(loaded) & {"typer", "rich", "pydantic", "numpy", "dill", "asyncio", "psutil", "multiprocess"}
    assert not loaded & {"dataclasses", "inspect", "importlib.resources", "hashlib"}


def test_ctypes_is_in_one_module() -> None:
    """Foreign calls have one home. (One of the demo's attacks uses ctypes, inside a worker.)"""
    users = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and any(alias.name == "ctypes" for alias in node.names):
                users.add(path.name)
    assert users <= {"_syscalls.py", "attacks.py"}


def test_the_supervisor_never_unpickles_what_a_worker_sent() -> None:
    """pickle.loads, eval, exec, compile and marshal appear in pool and ipc only where the caller asked for pickles.

    And where a module is compiled that the program itself has imported: what it sends, never what comes.
    """
    found = set()
    for path in MODULES:
        if path.parent.name not in ("pool", "ipc"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("pickle.loads", "pickle.load", "dill.loads", "marshal.loads", "eval", "exec", "compile"):
                    found.add(f"{path.name}: {name}")
    assert found == {"answers.py: pickle.loads", "compiled.py: compile"}
