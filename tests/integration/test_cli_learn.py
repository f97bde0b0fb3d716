"""ringfence learn: what a program needs is found, is enough, and is no more than that."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.cli.learn_program import program
from ringfence.cli.learn_proof import attempt
from ringfence.sandbox.learning import Lesson, Reason

MAIN = "from ringfence.cli import main; main()"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that workers may enter, with one to write to; the current one."""
    for each in (tmp_path, *tmp_path.parents):
        if each.stat().st_uid == os.getuid() and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _learn(*words: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", MAIN, "learn", *words], input=stdin, capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip


def _learned(*words: str, stdin: str = "", **environment: str) -> dict[str, Any]:
    ended = _learn("--json", *words, stdin=stdin, **environment)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    data: dict[str, Any] = json.loads(ended.stdout[ended.stdout.index("{\n") :])
    data["printed"] = ended.stdout[: ended.stdout.index("{\n")]
    return data


def test_without_a_folder_for_temporary_files(folder: Path) -> None:
    """Nothing that a script needs is one; what cannot be done without is told in a sentence."""
    start = f"import tempfile; tempfile._candidate_tempdir_list = list; {MAIN}"
    (folder / "counts.py").write_text("import sys; print(len(sys.stdin.read()))")
    (folder / "plugin").mkdir()
    Path("plugin/plugin.toml").write_text(
        'name = "some"\nversion = "1.0.0"\nsource = "main.py"\napi-version = {major = 0, minor = 21, patch = 0}\n'
    )
    Path("plugin/main.py").write_text("")
    for words, code, said in ((["counts.py"], 0, "proven"), (["--plugin", "plugin"], 125, "cannot learn from it: ")):
        ended = subprocess.run(
            [sys.executable, "-c", start, "learn", *words], input="abc", capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
        assert said in ended.stdout + ended.stderr


_FILES = """
import os, sys, tempfile
import helper
total = sum(int(open(f"data/{n}").read()) for n in range(4))
with tempfile.NamedTemporaryFile("w") as file:
    file.write("x")
with open("out/result", "w") as file:
    file.write(str(total))
os.remove("out/result")
try:
    open("/etc/ringfence-optional.conf")
except OSError:
    pass
print(total, sys.argv[1:], sys.stdin.read(), os.environ["LEARN_THIS"], helper.word())
"""
_NETWORK = """
import socket, subprocess, threading
server = socket.create_server(("127.0.0.1", 0))
def serve():
    peer, _ = server.accept()
    with peer:
        peer.sendall(b"hello")
thread = threading.Thread(target=serve, daemon=True)
thread.start()
with socket.create_connection(server.getsockname(), timeout=5) as peer:
    assert peer.recv(10) == b"hello"
print(subprocess.run(["/bin/echo", "sub"], capture_output=True, text=True, check=True).stdout)
"""
# What C code does by itself, Python announces nothing of: the locked-in run finds it.
_UNHEARD = """
import mmap, os
mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
"""


def _corpus(folder: Path) -> None:
    (folder / "data").mkdir()
    for number in range(4):
        (folder / "data" / str(number)).write_text(str(number))
    (folder / "files.py").write_text(_FILES)
    (folder / "helper.py").write_text("def word():\n    return 'helped'\n")
    (folder / "network.py").write_text(_NETWORK)
    (folder / "unheard.py").write_text(_UNHEARD)


def test_what_is_found_is_enough_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each script runs with it as before, stdin, arguments and modules included; without any one grant it fails."""
    _corpus(folder)
    monkeypatch.setenv("LEARN_THIS", "seen")
    expected = {
        "files.py": [
            "env:read=LEARN_THIS", f"fs:delete={folder}/out", f"fs:read={folder}/data", "fs:write",
            f"fs:write={folder}/out",
        ],
        "network.py": ["net:listen=0", "net:request", "process:exec=/bin/echo"],
        "unheard.py": ["native:jit"],
    }  # fmt: skip
    for script, grants in expected.items():
        found = _learned(script, "a", "--b", stdin="given")
        assert [each["grant"] for each in found["capabilities"]] == grants, script
        assert found["proven"] and found["exit_code"] == 0
        assert found["runs"] == (2 if script == "unheard.py" else 1)
        if script == "files.py":
            assert found["printed"].splitlines() == ["6 ['a', '--b'] given seen helped"] * 2
            assert found["handled"] == ["fs:read=/etc/ringfence-optional.conf"]
            where = {each["grant"]: each["where"] for each in found["capabilities"]}
            assert where[f"fs:read={folder}/data"] == "files.py:4"
        for left_out in grants:
            # An ephemeral port can be had by any grant to listen or connect; the rest is not to be had otherwise.
            lesson = Lesson(tuple(Reason(grant, "") for grant in grants if grant != left_out))
            ended = attempt(program([script, "a"]), lesson, found["limits"], None)
            assert ended.code != 0, f"{script} does not need {left_out}"


def test_a_program_that_fails_is_told_from_one_that_cannot_be_proven(folder: Path) -> None:
    """1 where it fails by itself, 3 where only the locked-in run does; signals are named as a shell has them."""
    (folder / "bad.py").write_text("raise SystemExit(7)")
    ended = _learn("bad.py")
    assert ended.returncode == 1
    assert "ended with 7 as before" in ended.stdout
    (folder / "killed.py").write_text("import os\nopen('bad.py')\nos.kill(os.getpid(), 9)")
    killed = _learn("--no-proof", "--json", "killed.py")
    assert killed.returncode == 1
    data = json.loads(killed.stdout)
    assert (data["exit_code"], data["proven"]) == (137, None)
    assert [each["grant"] for each in data["capabilities"]] == [f"fs:read={folder}/bad.py"]
    (folder / "links.py").write_text("import os\nos.symlink('a', 'out/link')\nos.remove('out/link')")
    link = _learn("links.py")
    assert link.returncode == 3
    assert "links.py:2: it makes links, which no capability allows" in link.stdout
    assert "not proven" in link.stdout


def test_it_says_that_the_code_has_all_rights_and_why_each_grant(folder: Path) -> None:
    """Before it runs, on stderr; then the grants with their lines, warnings, limits and the command to use."""
    (folder / "script.py").write_text("open('out/x', 'w').close()\nimport os\nos.remove('out/x')\n")
    ended = _learn("script.py")
    assert ended.stderr.startswith("ringfence: running script.py with all your rights, to see what it touches\n")
    assert "removes x (script.py:3)" in ended.stdout
    assert "! it may remove whatever is there" in ended.stdout
    (command,) = [line for line in ended.stdout.splitlines() if line.startswith("ringfence run")]
    assert f"--allow fs:write={folder}/out" in command and "--memory 80MiB" in command


def test_a_module_and_a_profile_that_is_written(folder: Path) -> None:
    """-m runs as python does; --write makes a profile for `run`, and overwrites nothing unasked."""
    (folder / "tool.py").write_text("import sys\nprint(__name__, sys.argv[1:])\nopen('data.txt').read()\n")
    (folder / "data.txt").write_text("x")
    found = _learned("--write", "learned.toml", "--", "-m", "tool", "x")
    assert found["printed"].splitlines() == ["__main__ ['x']"] * 2
    assert [each["grant"] for each in found["capabilities"]] == [f"fs:read={folder}"]
    profile = tomllib.loads((folder / "learned.toml").read_text())
    assert f"fs:read={folder}" in profile["capabilities"]
    again = _learn("--write", "learned.toml", "tool.py")
    assert again.returncode == 2 and "--force" in again.stderr
    (folder / "tool.py").write_text("print(open('data.txt').read())")
    run = [sys.executable, "-c", MAIN, "run", "--profile", "./learned.toml", "tool.py"]
    assert subprocess.run(run, capture_output=True, text=True, timeout=60, check=False).stdout == "x\n"


def test_a_plugin_gets_its_manifest(folder: Path) -> None:
    """Its function is called, once free and once locked in; capabilities, scopes and limits stand in its manifest."""
    plugin = folder / "words"
    plugin.mkdir()
    (folder / "text").write_text("some text")
    (plugin / "stop").write_text("a the")
    (plugin / "main.py").write_text(
        "from pathlib import Path\n"
        "def count(path):\n"
        "    stop = Path(__file__).with_name('stop').read_text().split()\n"
        "    return len([w for w in open(path).read().split() if w not in stop])\n"
    )
    manifest = plugin / "plugin.toml"
    manifest.write_text(
        'name = "words"\nversion = "1.0.0"\nsource = "main.py"\nexports = ["count"]\n'
        'api-version = { major = 0, minor = 21, patch = 0 }\ncapabilities = ["logging", "net:request"]\n'
    )
    found = _learned("--plugin", "words", "--write", str(manifest), "--force", "count", str(folder / "text"))
    assert found["proven"]
    data = tomllib.loads(manifest.read_text())
    assert data["capabilities"] == ["logging", "fs:read"]
    assert data["scopes"] == {"fs:read": [str(folder / "text")]}
    assert data["limits"]["wall"] == "5s"
    assert 'capabilities = ["logging", "net:request"]' in (plugin / "plugin.toml.bak").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "name a script"), (["no-such-program-here"], "there is no"), (["/bin/echo"], "is no Python program"),
     (["--plugin", "nowhere"], "nowhere")],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_a_usage_error(folder: Path, words: list[str], said: str) -> None:
    """2, with the reason."""
    ended = _learn(*words)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_native_code_that_gets_no_memory_gets_more(folder: Path) -> None:
    """It ends the process as it likes, as OpenBLAS does, and nobody but the kernel knows why."""
    (folder / "native.py").write_text(
        "import mmap, os\ntry:\n    mmap.mmap(-1, 120 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "except OSError:\n    os._exit(1)\n"
    )
    found = _learned("native.py")
    assert (found["proven"], found["runs"]) == (True, 2), found
    assert found["limits"]["memory"] in ("256MiB", "320MiB")
