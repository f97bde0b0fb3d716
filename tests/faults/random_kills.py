"""Programs that use pools and plugins, killed at random moments: a program of its own, which prints what was wrong.

Usage: python random_kills.py SEED NUMBER FOLDER GRACE. It is the reaper of all that those programs leave; all has to be
gone in GRACE seconds, and a machine with more to do than processors is given more.
"""

import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pool_tasks as tasks
from filelock import FileLock, Timeout
from scenario_plugins import write_plugin
from waiting import descendants

from ringfence import PluginRuntime, Pool
from ringfence.plugins.store import PluginStore
from ringfence.sandbox.cgroups import CgroupTree, find_own_cgroup
from ringfence.sandbox.features import probe

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# A program has to get as far as its deed in so many seconds: the next start is clean.
_START = 20.0

_PLUGIN = """\
def echo(number): return number
def save_state(): return 1
def restore_state(state): pass
"""


def start(folder: Path) -> None:
    """Start pools and end them."""
    for workers in (1, 3):
        with Pool(workers) as pool:
            pool.submit(tasks.square, 2).result(30)


def load(folder: Path) -> None:
    """Load a plugin, call it, unload it."""
    runtime = PluginRuntime()
    try:
        plugin = runtime.load_manifest(folder / "plugin" / "plugin.toml")
        plugin.call("echo", [1])
        runtime.unload(plugin.name)
    finally:
        runtime.shutdown()


def reload(folder: Path) -> None:
    """Load a plugin, and load it anew again and again."""
    runtime = PluginRuntime()
    plugin = runtime.load_manifest(folder / "plugin" / "plugin.toml")
    while True:
        runtime.reload_plugin(plugin.name)
        plugin.call("echo", [1])


def kills(folder: Path) -> None:
    """Have workers that die, are killed, and start children."""
    with Pool(2, profile="trusted", timeout=0.05) as pool:
        while True:
            futures = [pool.submit(tasks.spin), pool.submit(os._exit, 3), pool.submit(tasks.square, 2)]
            futures[0].cancel()
            for future in futures[1:]:
                future.exception(30)


def transfers(folder: Path) -> None:
    """Send large arguments and get large results."""
    with Pool(2) as pool:
        block = bytes(3 << 20)
        while True:
            for future in [pool.submit(tasks.identity, block) for _ in range(3)]:
                future.result(30)


def spinning(folder: Path) -> None:
    """Have workers that compute and hear nothing."""
    with Pool(3, profile="trusted") as pool:
        for future in [pool.submit(tasks.spin_catching_everything) for _ in range(3)]:
            future.result(60)


def fresh(folder: Path) -> None:
    """Have a worker for each call."""
    with Pool(2, isolation="call") as pool:
        while True:
            for future in [pool.submit(tasks.square, n) for n in range(4)]:
                future.result(30)


def many(folder: Path) -> None:
    """Have several pools, whose zygotes come from a nursery."""
    pools = [Pool(1) for _ in range(3)]
    for pool in pools:
        pool.submit(tasks.square, 2).result(30)
    for pool in pools:
        pool.shutdown()


def installs(folder: Path) -> None:
    """Install a plugin and remove it."""
    store = PluginStore(folder / "store")
    while True:
        installed = store.install(folder / "plugin")
        store.remove(installed.name)


DEEDS: tuple[Callable[[Path], None], ...] = (
    start, load, reload, kills, transfers, spinning, fresh, many, installs,
)  # fmt: skip


def _program(deed: Callable[[Path], None], folder: Path, go: int) -> None:
    os.environ["TMPDIR"] = str(folder / "tmp")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    with Pool(1) as pool:  # what was killed before has left nothing that would be in its way
        assert pool.submit(tasks.square, 3).result(30) == 9
    os.write(go, b"g")
    while True:
        deed(folder)


def _all_gone(deadline: float) -> list[str]:
    """Reap until there is nobody left; return, and kill, those that are there after `deadline`."""
    late: list[str] = []
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return late
        if time.monotonic() > deadline:
            for pid in descendants(os.getpid()):
                with suppress(OSError):  # gone since
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:100]
                    late.append(f"process {pid}: {command.decode(errors='replace')}")
                with suppress(ProcessLookupError):  # its parent has reaped it since
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 1.0
        time.sleep(0.002)


def _traces(pid: int, folder: Path) -> list[str]:
    """Return what the killed process `pid` has left on disk."""
    found = [str(path) for path in (folder / "tmp").iterdir()]
    found += [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if "ringfence" in name and str(pid) in name]
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(root, name) for name in folders if name.startswith(f"ringfence-{pid}-")]
    for path in folder.rglob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            found.append(f"{path} is locked")
    return found


@contextmanager
def _group_of_our_own() -> Iterator[None]:
    """Be in a control group that nobody else has, where that is allowed: others who start pools would tidy up.

    Its name is that of a supervisor's: should we be killed, whoever starts a pool next removes it with all below.
    """
    own = find_own_cgroup()
    try:
        tree = CgroupTree(own.path) if own is not None else None
        if tree is not None:
            tree.attach(os.getpid())
    except OSError:
        tree = None
    try:
        yield
    finally:
        if tree is not None and own is not None:
            Path(own.path, "cgroup.procs").write_text(str(os.getpid()))
            tree.remove()


def rounds(seed: int, number: int, folder: Path, least: float) -> Iterator[str]:
    """Start, kill and look `number` times; yield what was wrong. `least`: seconds in which all has to be gone."""
    chance = random.Random(seed)
    (folder / "tmp").mkdir()
    write_plugin(folder / "plugin", _PLUGIN, exports=("echo",))
    probe()
    for turn in range(number):
        deed = DEEDS[turn % len(DEEDS)]
        delay = chance.choice((0.01, 0.1, 0.3)) * chance.random()
        heard, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # should we be killed ourselves
                os.close(heard)
                _program(deed, folder, go)
            except BaseException:  # it must not go on as the test
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        os.close(go)
        what = f"turn {turn}, {deed.__name__}, {delay:.3f} s"
        deadline = time.monotonic() + _START
        os.set_blocking(heard, False)
        while not (said := _read(heard)) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.close(heard)
        if said != b"g":
            yield f"{what}: the start before was not clean"
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = time.monotonic()
        if status != signal.SIGKILL:
            yield f"{what}: it had ended by itself, with status {status}"
        grace = least * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        for late in _all_gone(killed + grace):
            yield f"{what}: {late} lived on for {grace:.1f} s"
        while (traces := _traces(pid, folder)) and time.monotonic() < killed + grace:
            time.sleep(0.01)
        for trace in traces:
            yield f"{what}: left {trace}"


def _read(fd: int) -> bytes | None:
    try:
        return os.read(fd, 1) or b"end"
    except BlockingIOError:
        return None


def main() -> None:
    """See above."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    seed, number, folder, grace = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    started = time.monotonic()
    wrong = 0
    with _group_of_our_own():
        for finding in rounds(seed, number, folder, grace):
            wrong += 1
            print(finding, flush=True)
    print(f"{number} kills, {wrong} findings, {time.monotonic() - started:.1f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
