"""`ringfence plugin`: what holds for all of its commands: help, completion, colours, foreign text, values."""

import os
import pty
import subprocess
import sys

import pytest
import typer
from plugin_cli import MAIN, Cli, command, run

from ringfence.cli.plugin_output import error_document, safe_lines
from ringfence.cli.plugin_values import as_data, as_text, keywords, value_of
from ringfence.plugins.errors import InvalidManifest


def test_every_command_and_option_is_described(cli: Cli) -> None:
    """--help of each command says what it does, what each option is for, and shows an example."""
    shown = cli("--help").stdout
    app = typer.main.get_command(cli._app)
    commands = app.commands["plugin"].commands  # type: ignore[attr-defined]  # it is a group of groups
    assert set(commands) == {
        "new", "check", "inspect", "compile", "hash", "migrate", "schema", "call", "watch", "install", "list", "pin",
        "unpin", "remove", "retry",
    }  # fmt: skip
    for name, each in commands.items():
        assert f" {name} " in shown
        assert "Example" in cli(name, "--help").stdout
        assert all(parameter.help for parameter in each.params), name
        assert any("--json" in parameter.opts for parameter in each.params), name


@pytest.mark.parametrize(
    ("variables", "shell"),
    [
        ({"COMP_WORDS": "ringfence plugin ", "COMP_CWORD": "2"}, "bash"),
        ({"_TYPER_COMPLETE_ARGS": "ringfence plugin "}, "zsh"),
        ({"_TYPER_COMPLETE_ARGS": "ringfence plugin ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "fish"),
    ],
)
def test_the_shell_completes_commands(variables: dict[str, str], shell: str) -> None:
    """Each shell is told the commands of the group."""
    done = run(env={**os.environ, **variables, "_RINGFENCE_COMPLETE": f"complete_{shell}"})
    for name in ("new", "check", "install", "retry"):
        assert name in done.stdout, done.stderr


def test_bash_completes_commands_and_installed_names(cli: Cli) -> None:
    """The script that --show-completion prints works in bash: commands, and the names of installed plugins."""
    cli.write()
    cli("install", "plain")
    (cli.folder / "bin").mkdir()
    launcher = cli.folder / "bin" / "ringfence"
    launcher.write_text(f"#!/bin/sh\nexec {sys.executable} -P -c '{MAIN}' \"$@\"\n")
    launcher.chmod(0o755)
    script = run("--show-completion", env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": ""}).stdout
    if "complete -o default" not in script:  # these tests' own parent is no shell
        script = shell_script(cli)
    asked = (
        'COMP_WORDS=(ringfence plugin in); COMP_CWORD=2; _ringfence_completion ringfence; echo "${COMPREPLY[*]}";'
        'COMP_WORDS=(ringfence plugin remove pl); COMP_CWORD=3; _ringfence_completion ringfence; echo "${COMPREPLY[*]}"'
    )
    path = f"{cli.folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asked}"], env={**os.environ, "PATH": path}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.replace("\n", " ").split() == ["inspect", "install", "plain"], done.stderr


def shell_script(cli: Cli) -> str:
    """Return what --show-completion prints in bash, by asking from bash."""
    return subprocess.run(
        ["bash", "-c", "ringfence --show-completion; true"], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PATH": f"{cli.folder / 'bin'}:{os.environ['PATH']}"},
    ).stdout  # fmt: skip


def test_run_imports_nothing_of_the_plugin_commands(cli: Cli) -> None:
    """`ringfence run` starts as fast as before there were plugins."""
    (cli.folder / "script.py").write_text("print('ran')")
    code = (
        "import atexit, sys\n"
        "parts = 'ringfence.cli.plugin', 'ringfence.plugins'\n"
        "atexit.register(lambda: print([name for name in sys.modules if name.startswith(parts)]))\n" + MAIN
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "run", "script.py"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "ran\n[]\n", done.stderr


def test_colours_are_for_terminals(cli: Cli) -> None:
    """Piped output has none, whatever TERM says; a terminal with NO_COLOR has none either."""
    cli.write()
    assert "\x1b" not in run("plugin", "check", "plain", env={**os.environ, "TERM": "xterm-256color"}).stdout
    for more, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        leader, follower = pty.openpty()
        with subprocess.Popen(
            command("plugin", "check", "plain"), stdout=follower, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            env={**environment, "TERM": "xterm-256color", **more},
        ):  # fmt: skip
            os.close(follower)
            shown = os.read(leader, 4096)
        os.close(leader)
        assert (b"\x1b[" in shown.replace(b"\x1b[0m", b"").replace(b"\x1b[1m", b"")) is coloured, shown


def test_foreign_text_is_harmless_and_short() -> None:
    """What comes from plugins is shown line by line, spelt out, and not without end."""
    lines = list(safe_lines("a\tb\x1b[31m\r\n" * 300))
    assert lines[0] == "a    b\\x1b[31m\\r"
    assert lines[-1] == "… and 100 more lines"
    assert all(line.isprintable() for line in lines)


def test_errors_as_data() -> None:
    """An error's document has its problems with their lines, and the errors of a group are all told."""
    said = error_document(InvalidManifest(["line 3: this", "that"], "p.toml"))["error"]
    assert (said["category"], said["path"]) == ("validation", "p.toml")
    assert said["problems"] == [{"line": 3, "message": "this"}, {"line": None, "message": "that"}]
    group = ExceptionGroup("two", [OSError(2, "not there", "f"), ExceptionGroup("one", [ValueError("x")])])
    assert error_document(group)["error"]["message"] == "two (2 sub-exceptions)\n  - f: not there\n  - x".replace(
        " (2 sub-exceptions)", ""
    )


def test_values_of_arguments_and_results() -> None:
    """JSON where it is JSON, text where it is not, an error where it was meant to be."""
    assert [value_of(text) for text in ("1", "1.5", "true", "null", "x y", "NaN", "007", '"1"', "")] == [
        1, 1.5, True, None, "x y", "NaN", "007", "1", ""]  # fmt: skip
    for text in ("[1", '"x', "{'a': 1}", "[" * 100_000):
        with pytest.raises(typer.BadParameter):
            value_of(text)
    assert keywords(["a=1", "b=x=y"]) == {"a": 1, "b": "x=y"}
    assert as_text("é\x1b") == "é\x1b"
    assert as_text(("é", b"\0")) == '[\n  "é",\n  "AA=="\n]'
    assert as_data({(1, 2): {3}, 1.5: float("inf")}) == {"[1, 2]": [3], "1.5": "inf"}
