"""`ringfence plugin`: each command about one plugin as somebody types it, and what it says when they are wrong."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from plugin_cli import CODE, MAIN, NEEDY, PLAIN, Cli, command, run

from ringfence.cli.plugin_words import meaning
from ringfence.plugins.lockfile import LockFile
from ringfence.sandbox.capabilities import Capability, Grant


def test_each_new_plugin_passes_check_and_its_own_test(cli: Cli) -> None:
    """Every kind, as a module, a package or a program, is in order, and its test passes under pytest."""
    names = ["module-generic", "module-ui", "module-daemon", "module-hybrid", "package-hybrid", "executable-generic",
             "executable-hybrid"]  # fmt: skip
    for name in names:
        form, kind = name.split("-")
        cli("new", name, "--kind", kind, *([] if form == "module" else [f"--{form}"]))
    checked = cli.json("check", *names, "--strict")
    assert [each["name"] for each in checked["plugins"]] == names
    assert checked["ok"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib",
         f"--rootdir={cli.folder}", *names],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout
    assert "10 passed" in tests.stdout


def test_new_overwrites_nothing(cli: Cli) -> None:
    """A folder that is there stays as it is, even an empty one."""
    (cli.folder / "mine").mkdir()
    assert "nothing is overwritten" in cli.error("new", "mine")["message"]
    assert list((cli.folder / "mine").iterdir()) == []


@pytest.mark.parametrize(("name", "near"), [("My_Plugin", "'my-plugin'"), ("../x", "'x'"), ("a\n", "'a'"), ("", "")])
def test_new_refuses_what_is_no_name(cli: Cli, name: str, near: str) -> None:
    """A wrong name is a wrong command line; one that would do is offered."""
    assert near in cli.error("new", name, code=2)["message"]
    assert list(cli.folder.iterdir()) == []


def test_a_package_is_never_called_as_a_module_of_the_library(cli: Cli) -> None:
    """A plugin may be called json; its package may not."""
    made = cli.json("new", "json", "--package", "--dir", "deep/er")
    assert "json_plugin/__init__.py" in made["files"]
    assert cli.json("check", "deep/er/json")["ok"]


# check


def test_check_tells_all_problems_of_a_manifest_with_their_lines(cli: Cli) -> None:
    """One run shows everything that has to be mended, and where."""
    folder = cli.write('name = "Bad"\nversion = "1"\ncolour = 3\nsource = "x.py"\n')
    found = cli.json("check", str(folder), code=1)["plugins"][0]["problems"]
    assert {each["line"] for each in found if each["line"]} == {1, 2, 3}
    assert len(found) == 4  # and the API version, which is not there
    shown = cli("check", str(folder), code=1).stdout
    assert f"{folder}/plugin.toml:2: error: version:" in shown


def test_check_finds_what_is_wrong_with_code_without_running_it(cli: Cli) -> None:
    """Syntax, missing exports and undeclared needs are found; the code does not run."""
    mark = cli.folder / "ran"
    cli.write(PLAIN.replace("plain", "syntax"), "def f(:\n")
    lacking = f"import socket\nopen({str(mark)!r}, 'w')\nfrom os import getpid as echo\n"
    cli.write(PLAIN.replace("plain", "lacking"), lacking)
    first, second = cli.json("check", "syntax", "lacking", code=1)["plugins"]
    assert (first["problems"][0]["line"], first["problems"][0]["column"]) == (1, 7)
    texts = [each["message"] for each in second["problems"]]
    assert "exports: 'boom' is not defined" in texts
    assert not any("'echo'" in text for text in texts)  # it is imported, which is as good
    assert any("needs net:request" in text for text in texts)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("code", "severity"),
    [
        ("echo = print", None),
        ("from os.path import *", "warning"),
        ("globals()['echo'] = print", "warning"),
        ("if True:\n    with open('f') as echo: pass", None),
        ("class C:\n    def echo(self): pass", "error"),
        ("def f(echo): echo = 1", "error"),
    ],
)
def test_an_export_is_missing_only_where_nothing_could_define_it(cli: Cli, code: str, severity: str | None) -> None:
    """What is assigned or imported is there; what may be made by hand is a warning; what is not at the top is not."""
    cli.write(re.sub("exports = .*", 'exports = ["echo"]', PLAIN), f"def other(): pass\n{code}\n")
    found = cli.json("check", "plain", code=severity == "error")["plugins"][0]["problems"]
    assert [each["severity"] for each in found if "echo" in each["message"]] == ([severity] if severity else [])


def test_check_compares_with_what_a_host_grants(cli: Cli) -> None:
    """With --allow or --profile a plugin that asks for more is told of; without, what no worker can be held to is."""
    cli.write(NEEDY)
    assert cli.json("check", "needy")["ok"]
    assert cli.json("check", "needy", "--allow", "fs:read", "--allow", "net:request")["ok"]
    assert "requires net:request=:443" in cli("check", "needy", "--allow", "fs:read", code=1).stdout
    assert "profile 'untrusted'" in cli("check", "needy", "--profile", "untrusted", code=1).stdout
    cli.write(NEEDY.replace('":443"', '"example.org:443"'))
    assert cli.json("check", "needy")["ok"]
    cli.write(NEEDY.replace('"net:request"', '"fs:metadata"').replace('":443"', '"/srv"'))
    assert "cannot be enforced" in cli("check", "needy", code=1).stdout


def test_check_can_run_it_locked_in(cli: Cli) -> None:
    """--run finds what only running can find; it asks for approval as every start does."""
    cli.write(PLAIN, CODE + "raise RuntimeError('on import')\n")
    assert cli.json("check", "plain")["ok"]
    assert "on import" in cli("check", "plain", "--run", code=1).stdout
    cli.write(NEEDY)
    assert "needs approval" in cli("check", "needy", "--run", code=1).stdout
    checked = cli.json("check", "needy", "--run", "--allow", "fs:read", "--allow", "net:request=:443")
    assert checked["plugins"][0]["loaded"]


def test_check_strictly(cli: Cli) -> None:
    """--strict lets warnings count."""
    cli.write(PLAIN.replace('description = "A plugin of these tests"\n', ""))
    assert cli("check", "plain").stdout.endswith("plain 1.0.0: 1 warning\n")
    cli("check", "plain", "--strict", code=1)


def test_errors_are_told_as_text_too(cli: Cli) -> None:
    """Without --json an error is a sentence on stderr, and a hint where one helps; stdout stays empty."""
    cli.write(NEEDY)
    said = cli("call", "needy", "echo", code=125)
    *_, sentence, hint = said.stderr.splitlines()
    assert sentence.startswith("ringfence: plugin 'needy' needs approval for fs:read, net:request=:443: ")
    assert hint == "  approve it with --yes, or for one time with --allow fs:read --allow net:request=:443"
    assert said.stdout == ""
    (cli.folder / "needy" / "plugin.toml").write_text("name = 1\nnope = 2\n")
    problems = cli("hash", "needy", code=1).stderr.splitlines()
    assert problems[0].startswith("ringfence: invalid manifest needy/plugin.toml: ")
    assert any(line.startswith("  - line 2: ") for line in problems)
    assert "nothing is overwritten" in cli("new", "needy", code=1).stderr


@pytest.mark.parametrize("path", ["missing", "missing.py", "missing.plb", "missing.toml", "home"])
def test_a_path_that_is_no_plugin(cli: Cli, path: str) -> None:
    """Whatever is not there is told in a sentence, by every command that takes a path."""
    (cli.folder / "home").mkdir()
    assert "manifest not found" in cli("check", path, code=1).stdout
    for name in ("compile", "hash", "migrate"):
        assert cli.error(name, path)["type"] in ("ManifestNotFound", "ManifestParse")
    assert cli.error("watch", path, code=125)["type"] == "ManifestNotFound"


# inspect, compile, hash, migrate, schema


def test_inspect_says_what_a_plugin_is_wants_and_offers(cli: Cli) -> None:
    """Risks in words, signatures, the digest, and what this host enforces; and a stub where one is wanted."""
    echo = 'def echo(text: str, times: int = 1) -> list[str]:\n    """Repeat."""\n'
    cli.write(NEEDY, echo + CODE.replace("def echo", "def _"))
    said = cli.json("inspect", "needy", "--stub", "needy.pyi")
    assert [(each["grant"], each["risk"]) for each in said["capabilities"]] == [
        ("fs:read", "low"), ("net:request=:443", "medium")]  # fmt: skip
    assert "leave this machine" in said["capabilities"][1]["means"]
    assert said["exports"][0] == {
        "name": "echo", "signature": "(text: str, times: int = ...) -> list[str]", "doc": "Repeat.", "async": False,
    }  # fmt: skip
    assert said["hash"] == cli.json("hash", "needy")["code"]
    assert {each["layer"] for each in said["host"]} >= {"seccomp", "landlock"}
    assert "def echo(self, text: str, times: int = ...) -> list[str]" in (cli.folder / "needy.pyi").read_text()
    shown = cli("inspect", "needy").stdout
    assert "connect to :443" in shown and "\x1b" not in shown


def test_every_capability_has_words() -> None:
    """Nobody is asked to grant what is not explained."""
    for capability in Capability.__members__.values():
        assert meaning(Grant(capability))
    assert meaning(Grant.parse("fs:write=/data")) == "write below /data"


def test_a_compiled_plugin_is_inspected_checked_and_called(cli: Cli) -> None:
    """One file, from any folder, without its source."""
    cli.write()
    made = cli.json("compile", "plain", "-o", "out.plb", "--mode", "production")
    assert made["exports"][0] == "echo"
    assert [each["name"] for each in cli.json("inspect", "out.plb")["exports"]] == made["exports"]
    assert cli.json("check", "out.plb")["ok"]
    assert cli.json("call", "out.plb", "echo", "1")["result"] == [[1], {}]
    assert "compiled already" in cli.error("compile", "out.plb")["message"]
    Path("out.plb").write_bytes(b"no bytecode")
    assert cli.error("inspect", "out.plb")["type"] == "InvalidBytecode"


def test_the_hash_is_what_a_manifest_takes(cli: Cli) -> None:
    """A manifest with the hash that is printed loads; with another one the right one can still be asked for."""
    folder = cli.write()
    digest = cli("hash", "plain").stdout.strip()
    manifest = folder / "plugin.toml"
    manifest.write_text(PLAIN + f'hash = "{digest}"\n')
    assert cli.json("hash", "plain")["matches"] is True
    assert cli.json("check", "plain")["ok"]
    manifest.write_text(PLAIN + f'hash = "sha256:{"0" * 64}"\n')
    assert cli.json("hash", "plain")["code"] == digest
    assert not cli.json("check", "plain", code=1)["ok"]


def test_migrate_shows_or_rewrites(cli: Cli) -> None:
    """The old spelling becomes today's, on stdout or in place; mode and comments stay."""
    folder = cli.write(re.sub("api-version.*", 'api_version = "0.21.0"  # old', PLAIN))
    manifest = folder / "plugin.toml"
    manifest.chmod(0o640)
    made = cli("migrate", "plain").stdout
    assert made == PLAIN.replace("patch = 0 }", "patch = 0 }  # old")
    assert "api_version" in manifest.read_text()
    assert cli.json("migrate", "plain/plugin.toml", "--in-place")["written"]
    assert (manifest.read_text(), manifest.stat().st_mode & 0o777) == (made, 0o640)
    assert "needs no change" in cli("migrate", "-i", "plain").stdout


def test_the_schema_is_one(cli: Cli) -> None:
    """What is printed is the JSON Schema of manifests."""
    assert json.loads(cli("schema").stdout)["properties"]["name"]["type"] == "string"


# call


def test_a_call_has_json_arguments_and_a_json_result(cli: Cli) -> None:
    """Arguments are JSON, or texts; what JSON lacks has a form in it."""
    cli.write()
    args = ["1", "two", '{"a": [null]}', "--kwarg", "k=[1]", "--kwarg", "t=x", "--", "-5"]
    given, named = json.loads(cli("call", "plain", "echo", *args).stdout)
    assert (given, named) == ([1, "two", {"a": [None]}, -5], {"k": [1], "t": "x"})
    result = cli.json("call", "plain/plain.py", "date")["result"]
    assert result.pop("n").startswith("0x8000")
    assert result == {"at": "2020-01-02T00:00:00", "raw": "/w==", "nan": "nan", "1": [1, 2]}
    assert cli("call", "plain").stdout == ""  # main, which is not exported and may be called


def test_what_goes_wrong_in_a_call_has_its_own_exit_code(cli: Cli) -> None:
    """The plugin's own traceback, then one sentence; 1 it failed, 124 too long, 125 it did not start."""
    cli.write()
    failed = cli("call", "plain", "boom", code=1)
    assert failed.stderr.splitlines()[-1] == "ringfence: plain.boom raised ValueError: no \\x1b[31m good"
    assert 'raise ValueError("no' in failed.stderr and "\x1b" not in failed.stderr
    assert cli.error("call", "plain", "boom")["remote_type"] == "ValueError"
    assert cli.error("call", "plain", "spin", "--timeout", "500ms", code=124)["type"] == "CallTimeout"
    assert cli.error("call", "plain", "die")["type"] == "PluginCrashed"
    assert "exports: echo" in cli.error("call", "plain", "nothing")["message"]
    cli.write(PLAIN, CODE + "raise RuntimeError('on import')\n")
    assert cli.error("call", "plain", "echo", code=125)["type"] == "InitializationFailed"
    cli.write(PLAIN.replace("plain", "other").replace("0.", "x."))
    assert cli.error("call", "other", "echo", code=125)["category"] == "validation"


@pytest.mark.parametrize(
    "args",
    [
        ["plain", "echo", "[1"],
        ["plain", "echo", "--kwarg", "no"],
        ["plain", "echo", "--kwarg", "a=1", "--kwarg", "a=2"],
        ["plain", "echo", "--timeout", "soon"],
        ["plain", "echo", "--allow", "fs:raed"],
        ["plain", "echo", "--profile", "untrustd"],
        ["plain", "echo", "--nothing"],
        [],
    ],
)
def test_a_wrong_command_line_runs_nothing(cli: Cli, args: list[str]) -> None:
    """A slip is 2, as text and as JSON."""
    cli.write()
    assert cli.error("call", *args, code=2)["category"] == "usage"
    assert "Usage:" in cli("call", *args, code=2).stderr


def test_what_is_declared_has_to_be_approved(cli: Cli) -> None:
    """Without a terminal the answer is no, at once; --allow is for one time, --yes is remembered until code changes."""
    cli.write(NEEDY, CODE)
    said = cli.error("call", "needy", "echo", code=125)
    assert (said["type"], said["plugin"]) == ("ApprovalRequired", "needy")
    assert said["hint"].endswith("--allow fs:read --allow net:request=:443")
    assert cli.error("call", "needy", "echo", "--allow", "fs:read", code=125)["type"] == "ApprovalRequired"
    assert cli.json("call", "needy", "echo", "--allow", "fs:read", "--allow", "net:request")["result"] == [[], {}]
    assert cli.error("call", "needy", "echo", code=125)["type"] == "ApprovalRequired"
    assert cli.json("call", "needy", "echo", "--yes")["result"] == [[], {}]
    assert cli.json("call", "needy", "echo")["result"] == [[], {}]
    assert LockFile(cli.home.approvals).names() == ("needy",)
    cli.write(NEEDY, CODE + "\n# changed\n")
    assert "has changed" in cli.error("call", "needy", "echo", code=125)["message"]


def test_a_profile_grants_what_it_grants(cli: Cli) -> None:
    """With --profile nobody is asked, and what the profile lacks is refused, unless --allow adds it."""
    cli.write(NEEDY)
    assert cli.error("call", "needy", "echo", "--profile", "untrusted", code=125)["type"] == "IncompatibleProfile"
    more = ["--allow", "fs:read", "--allow", "net:request=:443"]
    assert cli.json("call", "needy", "echo", "--profile", "untrusted", *more)["result"] == [[], {}]


def test_somebody_at_the_terminal_is_asked(cli: Cli) -> None:
    """Each capability is asked about, answers are kept as said, and what the plugin says cannot drive the terminal."""
    more = 'capabilities = ["stdout:write", "net:request"]\nscopes."net:request" = [":443"]\n'
    cli.write(PLAIN + more)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command("plugin", "call", "plain", "loud"), stdin=follower, stdout=follower, stderr=follower,
        start_new_session=True, env={**os.environ, "TERM": "xterm"}, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(follower)
    try:
        shown = ""
        answers = iter([b"y\n", b"s\n"])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                shown += os.read(leader, 4096).decode()
            except OSError:  # the other end is closed
                break
            if shown.rstrip(" ").endswith("[y/N/once/session]:") and (answer := next(answers, None)):
                os.write(leader, answer)
        assert process.wait(30) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    assert "net:request=:443 (medium risk)" in shown
    assert "printed \\x1b[31mred" in shown and "a\\x1b[31mb" in shown
    assert "\x1b" not in shown
    assert not cli.home.approvals.exists()  # for one of them only this session was said


def take_terminal() -> None:
    """Make stdin this process's terminal, as a shell would."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_what_a_plugin_prints_goes_to_stderr(cli: Cli) -> None:
    """stdout has the result alone: into a pipe byte for byte, in JSON as one document."""
    cli.write(PLAIN + 'capabilities = ["stdout:write"]\n')
    done = run("plugin", "call", "plain", "loud", "--yes")
    assert (done.stdout, done.stderr) == ("a\x1b[31mb\nc\n", "printed \\x1b[31mred\n")
    assert json.loads(run("plugin", "call", "plain", "loud", "--json").stdout)["result"] == "a\x1b[31mb\nc"


def test_interrupt_ends_a_call_at_once(cli: Cli) -> None:
    """Ctrl-C ends the call with 130, and no process of it is left."""
    cli.write(PLAIN + 'capabilities = ["stdout:write"]\n')
    with subprocess.Popen(
        command("plugin", "call", "plain", "wait", "--yes", "--timeout", "none"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline() == "up\n"
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    assert not psutil.wait_procs(family, timeout=20)[1]


def test_as_an_ordinary_user(as_user: Any) -> None:
    """Without root the same holds: written, installed and called in the user's own home."""

    def user(*args: str) -> str:
        done = as_user.run("-c", "import os; os.environ['RINGFENCE_HOME'] = 'home'\n" + MAIN, "plugin", *args)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    user("new", "mine", "--executable")
    user("install", "mine")
    assert user("call", "mine@0.1.0", "greet", "nobody") == "Hello, nobody!\n"
