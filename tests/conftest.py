"""What every test is held to: it leaks nothing, and it runs only where the kernel has what it needs."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from levels import STANDINGS, USER, Starter
from ordinary_user import NOBODY, AsUser, open_to_everyone

from ringfence.sandbox.features import Features, probe

# The same examples each time, however slow the machine is today.
settings.register_profile("ringfence", deadline=None, derandomize=True, database=None)
settings.load_profile("ringfence")

# Seconds that what a test started may take to be gone after it.
_GRACE = 20.0
# Libraries open these once and keep them.
_LASTING = ("/dev/null", "/dev/urandom", "/dev/tty", "/dev/pts", "/dev/random")
# And libffi, as newer distributions build it, keeps its own file open from the first callback on.
_OWN_FILES = ("libffi.so",)


def _children() -> set[str]:
    """Return the pids of our children; one that ends meanwhile may hide another, and the list is then read again."""
    before, found = None, _listed_children()
    while found != before:
        before, found = found, _listed_children()
    return found


def _listed_children() -> set[str]:
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            found.update(Path(f"/proc/self/task/{task}/children").read_text().split())
        except OSError:  # a thread that ended while we looked
            continue
    return found


def _fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the listing's own fd
            continue
        if not target.startswith(_LASTING) and not os.path.basename(target).startswith(_OWN_FILES):
            found[int(name)] = target
    return found


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


class _Snapshot:
    """What this process has: children, threads, fds."""

    def __init__(self) -> None:
        self.children = _children()
        self.threads = _threads()
        self.fds = _fds()

    def leaks(self) -> list[str]:
        """Return what is there now and was not there then, as text."""
        found = [f"child process {pid} ({_command(pid)})" for pid in _children() - self.children]
        found += [f"thread {thread.name} {_place(thread)}" for thread in _threads() - self.threads]
        found += [f"fd {fd} -> {target}" for fd, target in _fds().items() if self.fds.get(fd) != target]
        return found


def _place(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "at " + ", ".join(f"{each.name}:{each.lineno}" for each in traceback.extract_stack(frame)) if frame else ""


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    except OSError:
        return "gone"


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a child process, a thread or an fd behind."""
    before = _Snapshot()
    yield
    deadline = time.monotonic() + _GRACE
    while leaks := before.leaks():
        if time.monotonic() > deadline:
            pytest.fail(f"{request.node.nodeid} leaked: {'; '.join(leaks)}", pytrace=False)
        time.sleep(0.01)


@pytest.fixture(scope="session")
def features() -> Features:
    """What this kernel offers to this user."""
    return probe()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``needs("feature", ...)`` where the probe says that the feature is missing."""
    features = probe()
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if not _has(features, name):
                pytest.skip(f"this host has no {name}: {features.reasons.get(name, 'not offered')}")


def _has(features: Features, name: str) -> bool:
    if name in ("user", "mnt", "pid", "net", "ipc", "uts"):
        return name in features.namespaces
    return bool(getattr(features, "landlock_abi" if name == "landlock" else name))


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks that live here; hear ^C, which a shell lets what runs in its background ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(feature, ...): skip where sandbox.features.probe() lacks one")


@pytest.fixture(scope="session")
def copies() -> Iterator[tuple[Path, Path, Path]]:
    """The folders of `open_to_everyone`, without NumPy."""
    with open_to_everyone() as found:
        yield found


@pytest.fixture
def as_user(request: pytest.FixtureRequest) -> Iterator[AsUser]:
    """Run programs as an ordinary user; skipped unless we are root and that user has an interpreter like ours."""
    if os.geteuid() != 0:
        pytest.skip("not root: every test runs as an ordinary user already")
    source, tests, libraries = request.getfixturevalue("copies")
    home = Path("/var/tmp") / f"ringfence-tests-{os.getpid()}"  # tmp_path is root's alone
    home.mkdir(mode=0o777)
    os.chown(home, NOBODY, NOBODY)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        path = os.pathsep.join(map(str, (source, libraries)))
        for python in (sys.executable, f"/usr/bin/python{version}"):
            user = AsUser(python, path, home, tests)
            try:
                if user.run("-c", "import pytest, ringfence.pool.opening").returncode == 0:
                    break
            except OSError:
                continue
        else:
            pytest.skip(f"uid {NOBODY} can run no Python {version} with what these tests import")
        yield user
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def starter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Start programs in any standing of `levels`; skipped where no interpreter is one that every user can run."""
    folders = request.getfixturevalue("copies") if os.geteuid() == 0 else None
    with _starter(tmp_path_factory, folders) as found:
        yield found


@pytest.fixture(scope="session")
def starter_with_numpy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """The same, for what needs NumPy as well."""
    with ExitStack() as stack:
        folders = stack.enter_context(open_to_everyone(numpy=True)) if os.geteuid() == 0 else None
        yield stack.enter_context(_starter(tmp_path_factory, folders))


@contextmanager
def _starter(factory: pytest.TempPathFactory, folders: tuple[Path, Path, Path] | None) -> Iterator[Starter]:
    tests = Path(__file__).parent
    if folders is None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        yield Starter(sys.executable, path, factory.mktemp("standings"), tests)
        return
    home = Path(tempfile.mkdtemp(prefix="ringfence-standings-", dir="/var/tmp"))
    home.chmod(0o755)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        source, tests, libraries = folders
        path = os.pathsep.join(map(str, (source, libraries)))
        for python in (sys.executable, f"/usr/bin/python{version}"):
            found = Starter(python, path, home, tests)
            try:
                if found.run(STANDINGS[1], "-c", "import pytest, ringfence.pool.opening").returncode == 0:
                    break
            except OSError:
                continue
        else:
            pytest.skip(f"uid {USER} can run no Python {version} with what these tests import")
        yield found
    finally:
        shutil.rmtree(home)
