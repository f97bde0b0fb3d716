"""Where programs run that are not a plain interpreter on a plain host: each works, or is told what to do."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pool_tasks as tasks
import pytest

from ringfence import Pool
from ringfence.pool import library
from ringfence.sandbox.cgroups import find_own_cgroup
from ringfence.sandbox.features import probe
from ringfence.sandbox.runtime_paths import runtime_paths

POOL = "from ringfence import Pool\nwith Pool(1) as pool: print(pool.submit(pow, 2, 5).result())\n"
TOOLS = "unshare", "umount", "mount"


def run(code: str, *, first: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program; `first`: in a mount namespace of its own, after this shell command."""
    command = [sys.executable, "-c", code]
    if first is not None:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing or "mnt" not in probe().namespaces or probe().needs_user_namespace:
            pytest.skip("no mount namespace can be made here without a user namespace")
        command = ["unshare", "--mount", "sh", "-c", f"{first} && exec {shlex.join(command)}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_without_proc_the_pool_says_so() -> None:
    """What workers became cannot be seen there: no pool starts, whatever its profile, and the error says what to do."""
    for profile in ("untrusted", "trusted"):
        ended = run(POOL.replace("Pool(1)", f"Pool(1, profile={profile!r})"), first="umount -l /proc")
        assert ended.returncode == 1
        assert "UnsupportedError" in ended.stderr
        assert "/proc is not mounted" in ended.stderr
        assert "mount -t proc proc /proc" in ended.stderr


def test_without_proc_doctor_says_so() -> None:
    """Its exit code too, though the layer it stands under is only preferred."""
    code = "from ringfence.cli import main; main()"
    ended = run(f"import sys; sys.argv = ['ringfence', 'doctor', '--json']; {code}", first="umount -l /proc")
    assert ended.returncode == 1, ended.stderr
    assert '"missing": [\n    "monitor"\n  ]' in ended.stdout


@pytest.mark.parametrize("options", ["hidepid=invisible", "subset=pid", "hidepid=ptraceable,subset=pid"])
def test_a_proc_that_shows_less_will_do(options: str) -> None:
    """Its owner's processes may be hidden, or all that is not a process."""
    ended = run(POOL, first=f"mount -t proc -o {options} proc /proc")
    assert ended.stdout == "32\n", ended.stderr


def test_a_program_whose_name_is_no_text() -> None:
    """Whoever shows in `ps` what a process does may cut a letter in two: the kernel keeps sixteen bytes."""
    ended = run("import ctypes; ctypes.CDLL(None).prctl(15, b'caf\\xc3')\n" + POOL)
    assert ended.stdout == "32\n", ended.stderr


def test_a_mount_whose_name_is_no_text(tmp_path: Path) -> None:
    """It may be anywhere on the host."""
    folder = tmp_path / os.fsdecode(b"caf\xc3")
    folder.mkdir()
    ended = run(POOL, first=f"mount -t tmpfs none {shlex.quote(str(folder))}")
    assert ended.stdout == "32\n", ended.stderr


# Says which worker it has; once it reads a line, again.
TWICE = """
import os, sys
from ringfence import Pool
def who():
    return sys.__dict__.setdefault("who", os.urandom(8).hex())
with Pool(1) as pool:
    for _ in range(2):
        print(pool.submit(who).result(), flush=True)
        sys.stdin.readline()
"""


def _is_grouped() -> bool:
    try:
        return find_own_cgroup().writable
    except OSError:
        return False


@pytest.mark.skipif(not _is_grouped(), reason="no control group can be made here")
def test_pools_of_another_pid_namespace_live_beside_ours() -> None:
    """Neither takes the other's control group for one of a dead process: to each the other's pid is nobody's."""
    options = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *options, "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("no pid namespace can be made here")
    with Pool(1) as pool:
        ours = pool.submit(tasks.worker_id).result(30)
        with subprocess.Popen(
            [*command, sys.executable, "-c", TWICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdin is not None and other.stdout is not None
            theirs = other.stdout.readline()
            assert len(theirs) == 17
            assert pool.submit(tasks.worker_id).result(30) == ours
            with Pool(1) as another:
                assert another.submit(pow, 2, 5).result(30) == 32
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == theirs
            other.stdin.close()
        assert other.returncode == 0
        assert pool.submit(tasks.worker_id).result(30) == ours


@pytest.mark.parametrize("executable", ["", None])
def test_an_unknown_interpreter_is_named(executable: str | None) -> None:
    """As in a program that embeds Python."""
    ended = run(f"import sys; sys.executable = {executable!r}\n{POOL}")
    assert "OSError: it is not known where this program's Python interpreter is: set sys.executable" in ended.stderr


def test_from_an_archive_it_says_so(tmp_path: Path) -> None:
    """Workers are given folders of libraries to read, and see nothing else."""
    package = Path(library.__file__).parents[1]
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", package.parent, package.name)
    ended = run(f"import sys; sys.path.insert(0, {archive!r})\n{POOL}")
    assert f"OSError: ringfence lies in {archive}, from which no worker can import it" in ended.stderr


def test_a_frozen_program_does_not_start_itself(tmp_path: Path) -> None:
    """Its `sys.executable` is the program itself: started for a zygote, it would make a pool, and so start again."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho >> {tmp_path}/started\n")
    program.chmod(0o755)
    ended = run(f"import sys; sys.frozen, sys.executable = True, {str(program)!r}\n{POOL}")
    assert "frozen program" in ended.stderr
    assert not (tmp_path / "started").exists()


def test_libraries_are_known_by_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `pip install --target`, or of an unpacked wheel; a project's own folder is none."""
    for name in ("deps/msgpack", "attrs-25.3.0-py3-none-any.whl", "site-packages", "project/package"):
        (tmp_path / name).mkdir(parents=True)
    places = [str(tmp_path / name) for name in ("deps", "attrs-25.3.0-py3-none-any.whl", "site-packages", "project")]
    monkeypatch.setattr(sys, "path", [*places, *sys.path])
    found = library.library_paths.__wrapped__()
    assert found[:3] == tuple(places[:3])
    assert places[3] not in found


def test_shared_objects_below_the_interpreters_prefix_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of conda, whose ssl and NumPy load what lies in $PREFIX/lib, not only below $PREFIX/lib/python3.x."""
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert str(tmp_path / "lib") in runtime_paths().read


@pytest.mark.parametrize("mask", ["077", "027", "777"])
def test_what_others_may_not_see_by_default_workers_may(mask: str) -> None:
    """Started by root, they are another user, for whom the folders of the private root have to be open."""
    ended = subprocess.run(
        ["sh", "-c", f"umask {mask}; exec {shlex.join([sys.executable, '-c', POOL])}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.stdout == "32\n", ended.stderr


def test_who_ignores_the_end_of_children_has_a_pool_all_the_same() -> None:
    """SIGCHLD stays ignored past exec, and then the kernel reaps before our processes can wait."""
    ended = run(f"import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n{POOL}")
    assert ended.stdout == "32\n", ended.stderr


def test_workers_answer_signals_that_their_caller_blocks() -> None:
    """A thread that blocks them and makes a pool would else take their alarms from tasks."""
    ended = run("""
import signal
from ringfence import Pool

def blocked():
    import signal
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())

signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
with Pool(1) as pool: print(pool.submit(blocked).result())
""")
    assert ended.stdout == "set()\n", ended.stderr


@pytest.mark.parametrize("options", ["-Ur", "-Urm", "-Urpf --mount-proc"])
def test_root_of_a_user_namespace_that_maps_nobody_else(options: str) -> None:
    """There it may not become another user, nor come back into a pid namespace that is its parent's: it is a user."""
    if shutil.which("unshare") is None or not probe().user_namespaces:
        pytest.skip("no user namespace can be made here")
    code = POOL.replace("Pool(1)", "Pool(1, require='private')")
    ended = subprocess.run(
        ["unshare", *options.split(), sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.stdout == "32\n", ended.stderr


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
@pytest.mark.parametrize("place", ["_thread.start_new_thread", "select.select", "subprocess.Popen"])
def test_cooperative_threads_are_named(library: str, place: str) -> None:
    """A pool would wait for ever where its thread is one of them. What they left as it was does not matter."""
    module = place.partition(".")[0]
    patch = f"def stand_in(*args): ...\nstand_in.__module__ = '{library}.green'\nimport {module}\n{place} = stand_in\n"
    ended = run(patch + POOL)
    assert f"OSError: {library} has taken the place of this program's " in ended.stderr
    assert "thread=False, select=False, subprocess=False" in ended.stderr


def test_where_nothing_can_be_written_functions_still_travel_by_value() -> None:
    """As in a container with a read-only root: dill asks for a temporary folder when it is imported, on both sides."""
    code = "from ringfence import Pool\nwith Pool(1) as pool: print(pool.submit(lambda: 32).result())\n"
    ended = run(code, first="mount -o remount,ro,bind /")
    assert ended.stdout == "32\n", ended.stderr


def test_a_proc_of_other_processes_is_named() -> None:
    """A pid namespace without a /proc of its own: what is read there would be about somebody else."""
    if shutil.which("unshare") is None or "pid" not in probe().namespaces or probe().needs_user_namespace:
        pytest.skip("no pid namespace can be made here without a user namespace")
    ended = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", POOL],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "UnsupportedError" in ended.stderr
    assert "/proc is that of another pid namespace" in ended.stderr


def test_the_command_runs_as_a_module() -> None:
    """Where the folder of scripts is not on the path."""
    ended = subprocess.run(
        [sys.executable, "-m", "ringfence", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout.startswith("ringfence "), ended.stderr


def test_who_closes_all_descriptors_is_told_for_each_task() -> None:
    """As a daemon to be does. The pool is lost, nobody waits for ever, and another can be made."""
    ended = run("""
import os, time
from ringfence import BrokenPool, Pool

pool = Pool(2)
pool.submit(pow, 2, 5).result()
tasks = [pool.submit(time.sleep, 3) for _ in range(4)]
os.closerange(3, 256)
for task in tasks:
    assert isinstance(task.exception(30), (BrokenPool, type(None)))
pool.shutdown()
with Pool(1) as another: print(another.submit(pow, 2, 5).result())
""")
    assert ended.stdout == "32\n", ended.stderr
