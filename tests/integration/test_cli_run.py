"""`ringfence run`: real scripts, real kills, as a user types it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ringfence.cli.ending import ending_of, visible
from ringfence.pool.errors import WorkerCrashed
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import CapabilityDenied
from ringfence.sandbox.limits import Limits

MAIN = "from ringfence.cli import main; main()"


class Cli:
    """The command, in a folder of its own that any user can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, source: str, name: str = "script.py") -> Path:
        """Put a file into the folder."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        return path

    def command(self, *args: str) -> list[str]:
        """Return the command line of ``ringfence run *args``."""
        # -P, as the installed command: nothing of this folder is on sys.path.
        return [sys.executable, "-P", "-c", MAIN, "run", *args]

    def run(self, source: str, *args: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a script with this source; return how it ended."""
        self.write(source)
        return self.plain("script.py", *args, stdin=stdin)

    def plain(self, *args: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run ``ringfence run *args``; return how it ended."""
        return subprocess.run(
            self.command(*args), cwd=self.folder, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command in an empty folder."""
    return Cli(tmp_path)


def sentence(ended: "subprocess.CompletedProcess[str]") -> str:
    """Return what ringfence itself said: the last line on stderr."""
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("ringfence: "), ended.stderr
    return last.removeprefix("ringfence: ")


def test_script_runs_as_main_with_its_arguments_and_streams(cli: Cli) -> None:
    """A script is `__main__`, gets argv and stdin, and writes to both streams, as under plain python."""
    source = """
import sys
print(__name__, sys.argv, __file__, sys.stdin.read().upper(), __annotations__)
print("to stderr", file=sys.stderr)
"""
    ended = cli.run(source, "--memory", "128MiB", "--", "-x", "--allow", "b c", stdin="typed")
    assert ended.returncode == 0, ended.stderr
    file = cli.folder / "script.py"
    assert ended.stdout == f"__main__ ['script.py', '-x', '--allow', 'b c'] {file} TYPED {{}}\n"
    assert ended.stderr == "to stderr\n"


def test_script_from_stdin(cli: Cli) -> None:
    """`-` reads the script from stdin."""
    ended = cli.plain("-", "a", stdin="import sys; print(sys.argv)")
    assert (ended.returncode, ended.stdout) == (0, "['-', 'a']\n")


@pytest.mark.parametrize(
    ("source", "code", "stderr"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('the reason')", 1, "the reason\n"),
        ("exit()", 0, ""),
        ("import os; os._exit(9)", 9, ""),
        ("raise KeyboardInterrupt", 130, None),
        ("x =", 1, None),
    ],
)
def test_exit_code_is_the_scripts(cli: Cli, source: str, code: int, stderr: str | None) -> None:
    """However a script ends by itself, the command ends with the status python would have ended with."""
    ended = cli.run(source)
    assert ended.returncode == code, ended.stderr
    assert stderr is None or ended.stderr == stderr
    assert "ringfence:" not in ended.stderr


def test_end_of_script_waits_for_threads_then_calls_exit_handlers(cli: Cli) -> None:
    """Threads finish and atexit handlers run before the command ends."""
    source = """
import atexit, threading, time
atexit.register(print, "exit handler")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("main")
"""
    assert cli.run(source).stdout == "main\nthread\nexit handler\n"


def test_traceback_has_the_scripts_lines_and_no_frame_of_ours(cli: Cli) -> None:
    """An uncaught exception prints the traceback its author expects, through modules that were sent along, too."""
    cli.write("def fail():\n    raise ValueError('deep')  # the line\n", "beside.py")
    cli.write("import beside\nbeside.fail()\n", "importing.py")
    ended = cli.run("try:\n    1 / 0\nfinally:\n    import importing\n")
    assert ended.returncode == 1
    assert "ringfence" not in ended.stderr.replace(str(cli.folder), "")
    assert "importlib" not in ended.stderr
    assert "raise ValueError('deep')  # the line" in ended.stderr
    assert "    1 / 0" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "ValueError: deep"


def test_endless_recursion_ends_in_a_short_traceback(cli: Cli) -> None:
    """A script that raises the recursion limit and recurses does not spend its time on a traceback."""
    ended = cli.run("import sys\nsys.setrecursionlimit(300_000)\ndef f(): f()\nf()", "--timeout", "20s")
    assert ended.returncode != 124
    assert len(ended.stderr) < 10_000


def test_modules_beside_the_script_can_be_imported(cli: Cli) -> None:
    """Sibling modules, packages and relative imports work, though the worker cannot read the folder."""
    cli.write("from .inner import VALUE\n", "package/__init__.py")
    cli.write("from beside import base\nVALUE = base + 1\n", "package/inner.py")
    cli.write("base = 41\n", "beside.py")
    ended = cli.run("def late():\n    from package import VALUE\n    return VALUE\nprint(late())\n")
    assert (ended.stdout, ended.stderr) == ("42\n", "")


def test_no_file_of_the_scripts_runs_outside_the_worker(cli: Cli) -> None:
    """Modules beside the script, even ones that ringfence itself imports late, run in the worker only."""
    mark = cli.folder / "ran-outside"
    for name in ("psutil", "dill", "tokenize", "ast", "sitecustomize"):
        cli.write(f"import os\ntry:\n    open({str(mark)!r}, 'w')\nexcept OSError:\n    pass\n", f"{name}.py")
    ended = cli.run("import psutil, tokenize, dill\nprint(psutil.__file__)")
    assert not mark.exists()
    assert ended.stdout == f"{cli.folder / 'psutil.py'}\n", ended.stderr


@pytest.mark.parametrize(
    ("source", "needs"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "net:request"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')", "net:request"),
        ("import subprocess; subprocess.run(['/bin/true'])", "process:exec=/bin/true"),
        ("import os; os.fork()", "process:exec"),
    ],
)
def test_refusal_names_the_capability_and_the_option(cli: Cli, source: str, needs: str) -> None:
    """An uncaught refusal ends in one sentence with the grant that was missing and how to give it."""
    ended = cli.run(source)
    assert ended.returncode == 1
    assert "PermissionError: [Errno 1]" in ended.stderr
    assert sentence(ended).startswith("denied: ")
    assert sentence(ended).endswith(f"needs {needs} (grant it with --allow {needs})")


def test_file_outside_is_named_with_the_grant_that_opens_it(cli: Cli) -> None:
    """Reading an ungranted file is refused with the grant to give; with that grant the same script works."""
    data = cli.write("the data", "data.txt")
    ended = cli.run("print(open('data.txt').read())")
    assert ended.returncode == 1
    assert f"--allow fs:read={data}" in sentence(ended)
    assert cli.run("print(open('nothing.txt').read())").stderr.endswith("directory: 'nothing.txt'\n")
    cli.folder.chmod(0o755)
    granted = cli.run(f"print(open({str(data)!r}).read())", "--allow", "fs:read=data.txt")
    if granted.returncode == 0:
        assert granted.stdout == "the data\n"
    else:  # root's own folders above are closed to the user that workers run as: that is said
        assert "closed to the unprivileged user" in sentence(granted)


def test_writing_suggests_the_folder(cli: Cli) -> None:
    """A file that is to be made cannot be granted: the sentence names its folder, not the worker's private one."""
    ended = cli.run("open('out.txt', 'w')")
    assert f"--allow fs:write={cli.folder}" in sentence(ended)


@pytest.mark.parametrize(
    ("source", "options", "code", "said"),
    [
        ("while True: pass", ["--timeout", "300ms"], 124, "killed: ran longer than 0.3 s (raise it with --timeout)"),
        ("while True: pass", ["--cpu", "200ms"], 137, "CPU time, limit 0.2 s (raise it with --cpu)"),
        ("x = bytearray(1 << 30)", ["--memory", "64MiB"], 1, "out of memory: limit 64 MiB (raise it with --memory)"),
        (
            "import mmap, time\nm = mmap.mmap(-1, 300 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1\ntime.sleep(9)",
            ["--memory", "64MiB"],
            137,
            "MiB of memory, limit 64 MiB (raise it with --memory)",
        ),
        ("f = [open('/dev/null') for _ in range(99)]", ["--files", "32"], 1, "limit 32 (raise it with --files)"),
        ("import ctypes; ctypes.string_at(0)", [], 139, "killed by signal SIGSEGV: it crashed in native code"),
    ],
)
def test_limit_that_ended_it_is_named(cli: Cli, source: str, options: list[str], code: int, said: str) -> None:
    """Whatever ended the script, the exit code says how and one sentence says what, with the option to change it."""
    ended = cli.run(source, *options)
    assert ended.returncode == code, ended.stderr
    assert said in sentence(ended)


def test_writing_on_the_workers_channel_ends_the_script(cli: Cli) -> None:
    """A script that writes to every descriptor it finds gets nowhere."""
    source = """
import os, time
for fd in range(3, 30):
    try: os.write(fd, bytes([0, 0, 0, 3, 0x92, 31, 1]))
    except OSError: pass
time.sleep(10)
"""
    ended = cli.run(source)
    assert ended.returncode == 137
    assert "broke the protocol" in sentence(ended)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--allow", "fs:raed=/"], 2, "did you mean 'fs:read'"),
        (["--memory", "much"], 2, "--memory: 'much' is not a size"),
        (["--timeout", "0s"], 2, "--timeout: "),
        (["--profile", "untrustd"], 2, "did you mean 'untrusted'?"),
        (["--allow", "net:request=127.1:443"], 2, "four decimal numbers"),
        (["--allow", "fs:read=/no/such/place"], 125, "there is no such file or folder"),
    ],
)
def test_a_wrong_command_line_runs_nothing(cli: Cli, options: list[str], code: int, said: str) -> None:
    """A slip is 2, what cannot be kept is 125; the sentence says what to mend, and the script does not run."""
    ended = cli.run("print('ran')", *options)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in sentence(ended)


def test_missing_and_unreadable_scripts(cli: Cli) -> None:
    """As for a shell, 127 is no such file and 126 one that cannot be read."""
    assert cli.plain("missing.py").returncode == 127
    assert cli.plain(".").returncode == 126
    assert "No such file" in sentence(cli.plain("missing.py"))


def test_interrupt_ends_everything_at_once(cli: Cli) -> None:
    """Ctrl-C ends the script with 130, and no process of it is left."""
    cli.write("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        cli.command("script.py"), cwd=cli.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"  # streamed: it is here while the script still runs
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")
    assert not psutil.wait_procs(family, timeout=20)[1]


def test_closed_streams_harm_nothing(cli: Cli) -> None:
    """With stdin and stdout closed, no pipe of ours takes their place; the exit code still comes through."""
    cli.write("import os\ntry:\n    os.write(1, b'x' * 100)\nexcept OSError:\n    pass\nraise SystemExit(5)\n")
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *cli.command("script.py")]
    ended = subprocess.run(command, cwd=cli.folder, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (5, "")


def test_trusted_profile_runs_in_the_callers_folder(cli: Cli) -> None:
    """With --profile trusted a script may do everything, and starts where the user is."""
    ended = cli.run("import os\nopen('made', 'w').close()\nprint(os.getcwd())", "--profile", "trusted")
    assert (ended.returncode, ended.stdout) == (0, f"{cli.folder}\n"), ended.stderr
    assert (cli.folder / "made").exists()


def test_a_folder_that_is_gone_is_no_reason_not_to_start(cli: Cli) -> None:
    """Somebody has removed the folder that we are in: the script has one of its own anyway."""
    script = cli.write("print('here')")
    leave = f"import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); {MAIN}"
    command = [sys.executable, "-P", "-c", leave, "run", str(script)]
    ended = subprocess.run(command, cwd=cli.folder, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "here\n"), ended.stderr


def test_as_an_ordinary_user(as_user) -> None:  # type: ignore[no-untyped-def]  # the fixture's class is conftest's
    """Without root the same holds: grants for the user's own files work, the rest is refused."""
    (as_user.home / "script.py").write_text(
        "open('out.txt', 'w').write('made')\nprint(open('out.txt').read())\nopen('/etc/passwd')\n"
    )
    ended = as_user.run("-c", MAIN, "run", "script.py", "--allow", "fs:read=.", "--allow", "fs:write=.")
    assert ended.stdout == "made\n", ended.stderr
    assert ended.returncode == 1
    assert "--allow fs:read=/etc/passwd" in sentence(ended)


def test_text_from_a_worker_cannot_drive_the_terminal() -> None:
    """Escapes, line breaks and text direction marks in what a worker sent are spelt out or flattened."""
    hostile = "\x1b]0;owned\x07\x9b2J\u202eevil\r\nringfence: all is well"
    shown = visible(hostile)
    assert shown.isprintable()
    assert "\\x1b" in shown and "\\u202e" in shown
    denied = CapabilityDenied("fs:read", "open", "x", needs="a lie", message=hostile)
    ended = ending_of(denied, Capabilities(), Limits())
    assert ended.sentence is not None
    assert visible(ended.sentence).isprintable()


def test_exit_codes_of_signals_and_lost_workers() -> None:
    """128 + N for signal N; 125 when nobody knows how the worker ended."""
    killed = WorkerCrashed("worker 1 was ended by signal SIGSYS: it made", None, signal.SIGSYS.value)
    assert ending_of(killed, Capabilities(), Limits()).code == 128 + signal.SIGSYS
    assert ending_of(WorkerCrashed("gone"), Capabilities(), Limits()).code == 125
