"""Every program in examples/ runs, and prints what it is there to show."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MAIN = "from ringfence.cli import main; main()"


def run(*command: str) -> list[str]:
    """Run a Python command line to its successful end; return the lines it printed."""
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout.splitlines()


def test_formulas() -> None:
    """Each formula gets its own answer, whatever the others do."""
    answers = run(str(EXAMPLES / "formulas.py"))
    expected = [
        "332833500", "118264581564861424", "ZeroDivisionError", "TaskTimeout", "MemoryExceeded",
        "CapabilityDenied", "CapabilityDenied", "WorkerCrashed", "1.414",
    ]  # fmt: skip
    assert len(answers) == len(expected)
    for answer, part in zip(answers, expected, strict=True):
        assert part in answer


def test_word_count() -> None:
    """The words of a folder's files are added up."""
    folder = Path(__file__).parent.parent.parent / "src" / "ringfence" / "configs"
    lines = run(str(EXAMPLES / "word_count.py"), str(folder))
    assert len(lines) == 5
    assert any(line.endswith(" limits") for line in lines)


@pytest.mark.parametrize("granted", [False, True])
def test_poke_around(granted: bool) -> None:
    """Locked in, the script sees nothing of the host; a grant shows it that folder."""
    options = ["--allow", "fs:read=/etc"] if granted else []
    lines = run("-P", "-c", MAIN, "run", str(EXAMPLES / "poke_around.py"), *options)
    seen = {line[:22].strip(): line[23:] for line in lines}
    assert seen["the environment"] == "'{}'"
    assert ("entries" in seen["/etc"]) is granted
    assert all("Error" in seen[what] for what in ("an outside host", "another program", "all processes"))
    assert seen["a sum"] == "'45'"


def test_poking_around_hurts_nobody_outside() -> None:
    """Who runs it without ringfence, to compare, or has `learn` run it, loses no process by it."""
    hook = "lambda event, args: os._exit(9) if event == 'os.kill' and args[1] else None"
    program = str(EXAMPLES / "poke_around.py")
    run("-c", f"import os, runpy, sys; sys.addaudithook({hook}); runpy.run_path({program!r})")


def example(name: str) -> list[str]:
    """Run an example; return what it prints."""
    return run("-W", "error", str(EXAMPLES / name))


def test_plugins_quick_start() -> None:
    """As the guide prints it."""
    assert example("plugins_quick_start.py") == ["Result: 'DATA'", "Another process than this one: True"]


def test_plugins_pipeline() -> None:
    """Dependencies come first, what is wrong is said, and each plugin has a part in the result."""
    assert example("plugins_pipeline.py") == [
        "Loaded 3 plugins",
        "- row-reader",
        "- column-sums",
        "- data-processor",
        "Not loaded: 4-unsound: UnknownManifestCapability",
        "Processing result: {'apples': 13, 'pears': 5}",
    ]


def test_hot_reload() -> None:
    """New code answers, broken code changes nothing."""
    assert example("hot_reload.py") == [
        "before: DATA",
        "reload of example: succeeded",
        "changed: data",
        "reload of example: failed, '(' was never closed",
        "broken: data",
        "reload of example: succeeded",
        "mended: Data",
    ]


def test_foo_extension() -> None:
    """Its steps come in their order."""
    lines = example("foo_extension.py")
    steps = [line.partition(":")[0] for line in lines]
    assert steps == ["new", "attach_to", "initialize", "in between", "teardown", "new", "by its name alone"]
    assert lines[2].endswith("True")


def test_logger_from_python() -> None:
    """What is above the level is heard."""
    assert example("logger_from_python.py") == [
        "INFO  extension __EXT_hyperion_logger initialized",
        "INFO  instance of Notebook 0.1.0 on Hyperion 0.1.1 created with __EXT_hyperion_logger",
        "DEBUG 3 of 4",
        "INFO  said by {name}, with no arguments: nothing is filled in",
    ]


def test_host_profiles() -> None:
    """The collector runs, the deployer does not, and the daemon's work is done."""
    assert example("host_profiles.py") == [
        "loaded: log-processor with fs:read, net:request, time:read",
        "refused: plugin 'deployer' requires fs:write, which the profile 'observability' does not allow",
        "counted: {'GET': 2, 'POST': 1}",
        "collected by itself: True",
        "by name: deployer",
    ]


def test_pool_1000_items() -> None:
    """Each item once, and four workers had a part."""
    assert example("pool_1000_items.py") == [
        "Processed 1000 items",
        "Their squares add up to 332833500.0",
        "Workers: 4",
    ]


def test_flaky_retry() -> None:
    """It crashes twice, and then it works."""
    first, second, third = example("flaky_retry.py")
    for line in (first, second):
        assert "SIGSEGV" in line
    assert third == "Success: 'done'"


def test_both_seeds() -> None:
    """Plugins and extensions end in their order, with everything in the log."""
    lines = example("both_seeds.py")
    # What a plugin prints takes another way than what it logs: it is there in the end, wherever.
    lines.remove("[talker] INFO working on data")
    for line in ("answer: DATA", "published: 1 ['the news']", "the same steps: True"):
        assert line in lines
    assert lines[lines.index("and now the end:") + 1 :] == [
        "[host] WARN closing with live plugins: talker, counter",
        "[counter] INFO counted new, attach_to, initialize, teardown",
        "[host] INFO plugin counter stopped",
        "[host] INFO plugin counter unloaded",
        "[talker] INFO goodbye",
        "[host] INFO plugin talker stopped",
        "[host] INFO plugin talker unloaded",
        "[host] INFO counted new, attach_to, initialize, teardown",
        "[host] INFO extension __EXT_COUNTER torn down",
        "[host] INFO extension __EXT_ringfence_plugin_runtime torn down",
    ]


def test_every_example_has_a_test() -> None:
    """Nothing lies in examples/ that no test runs."""
    source = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in source] == []
