"""Zygotes from the nursery: nothing of it or of each other is theirs; nothing is left when its last user is gone."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pool_tasks as tasks
import pytest
from waiting import descendants, is_alive, wait_until, wait_until_gone

from ringfence import Pool
from ringfence.ipc import messages as m
from ringfence.ipc.channel import Channel, pipe
from ringfence.ipc.codec import Codec
from ringfence.pool import nursery
from ringfence.pool.process import ByPidfd
from ringfence.sandbox.features import Features

pytestmark = pytest.mark.as_user


def running() -> int:
    """Return the pid of this process's nursery."""
    found = nursery._home._nursery
    assert found is not None
    return found.process.pid


def zygote_of(pool: Pool) -> int:
    """Return the pid of the pool's zygote."""
    wait_until(lambda: pool._supervisor._crew._zygote is not None)
    zygote = pool._supervisor._crew._zygote
    assert zygote is not None
    return zygote.pid


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def open_files(pid: int) -> dict[int, str]:
    """Return what a process has open, by number."""
    return {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}


def same_file(first: int, second: int, number: int) -> bool:
    """Say whether a descriptor means one open file in two processes (kcmp(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer: int = libc.syscall({"x86_64": 312, "aarch64": 272}[os.uname().machine], first, second, 0, number, number)
    if answer < 0:
        pytest.skip(f"kcmp: {os.strerror(ctypes.get_errno())}")
    return answer == 0


def say(session: object, text: bytes) -> bytes:
    """Send `text` over a session and return the answer."""
    with socket.socket(fileno=os.dup(session.fd)) as peer:  # type: ignore[attr-defined]
        peer.settimeout(30)
        peer.setblocking(True)
        peer.sendall(text)
        return peer.recv(100)


class Plugin:
    """A pool for one session, and the session."""

    def __init__(self) -> None:
        self.pool = Pool(1, isolation="session")
        self.session = self.pool.open_session(tasks.converse, "farewell")
        assert say(self.session, b"hello") == b"HELLO"

    def close(self) -> None:
        """End the session, and then the pool."""
        os.close(self.session.fd)
        assert self.session.ended.result(30) == "farewell"
        self.pool.shutdown()


@pytest.fixture
def plugins() -> Iterator[list[Plugin]]:
    """Three of them."""
    with ExitStack() as stack:
        made = []
        for _ in range(3):
            made.append(Plugin())
            stack.callback(made[-1].close)
        yield made


def program(text: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=60, check=False
    )


# Where zygotes come from


def test_pools_for_sessions_share_a_nursery(plugins: list[Plugin]) -> None:
    """Each has a zygote of its own, all of them forked by one process."""
    zygotes = {zygote_of(plugin.pool) for plugin in plugins}
    assert len(zygotes) == 3
    assert {parent_of(zygote) for zygote in zygotes} == {running()}


def test_nothing_is_left_when_the_last_pool_is_gone() -> None:
    """The nursery ends with its last user, and everything that came from it is gone before."""
    first, second = Plugin(), Plugin()
    pid = running()
    everything = descendants(pid)
    first.close()
    assert is_alive(pid)
    second.close()
    assert nursery._home._nursery is None
    assert nursery._home._users == 0
    assert not any(map(is_alive, {pid, *everything}))


@contextmanager
def somebody_inside() -> Iterator[None]:
    """Have another thread be where one nursery is asked, started and counted, as a finalizer there may be for long."""
    home, inside, leave = nursery._home, threading.Event(), threading.Event()

    def be_inside() -> None:
        with home._lock:
            inside.set()
            leave.wait(60)
        home.settle()

    other = threading.Thread(target=be_inside)
    other.start()
    try:
        assert inside.wait(30)
        yield
    finally:
        leave.set()
        other.join()


def comes_back(call: Callable[[], object]) -> bool:
    """Say whether a call comes back while others are where they are."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


# A finalizer that runs in a thread which asks for a zygote may wait for a pool. What that pool's thread does with its
# lock must not wait for the other thread:


def test_nobody_waits_to_let_go() -> None:
    """Whoever is inside counts it off when it leaves."""
    kept, let_go = nursery.hold(), nursery.hold()
    users = nursery._home._users
    with somebody_inside():
        assert comes_back(let_go.release)
    assert nursery._home._users == users - 1
    kept.release()


def test_nobody_waits_for_ever_to_ask() -> None:
    """A zygote is exec'd then."""
    births: list[nursery.Birth | None] = []
    with nursery.hold(start=True):
        with somebody_inside():
            assert comes_back(lambda: births.append(nursery.ask(0, start=True)))
        assert births == [None]
        assert nursery._home._users == 1


def test_nobody_waits_to_say_that_it_is_lost() -> None:
    """Whoever is inside ends it when it leaves."""
    ours, theirs = pipe()
    with nursery.hold(start=True), ours, theirs:
        birth = nursery.ask(theirs.fileno(), start=True)
        assert birth is not None
        pid = running()
        os.kill(pid, signal.SIGKILL)
        lost = []

        def wait() -> None:
            with pytest.raises(nursery.NurseryLost):
                birth.wait()
            lost.append(running())

        with somebody_inside():
            assert comes_back(wait)
            assert lost == [pid]
        assert nursery._home._nursery is None
        assert not is_alive(pid)
        nursery._home.well()
        birth.release()


def test_nobody_waits_for_who_reads_to_end_it() -> None:
    """Whoever reads closes the channel when that is over."""
    ours, theirs = pipe()
    with nursery.hold(start=True), ours, theirs:
        birth = nursery.ask(theirs.fileno(), start=True)
        assert birth is not None
        real = birth._nursery
        with real._lock:
            assert comes_back(lambda: real.end(kill=True))
            assert not real._channel.closed
        with pytest.raises(nursery.NurseryLost):
            birth.wait()
        assert real._channel.closed
        nursery._home.well()
        birth.release()


def test_a_hold_keeps_it_for_the_next_plugin() -> None:
    """Between two plugins it stays, as long as somebody holds it."""
    with nursery.hold():
        Plugin().close()
        pid = running()
        Plugin().close()
        assert running() == pid
    assert not is_alive(pid)


def test_the_second_pool_of_any_kind_has_it_too() -> None:
    """The first ordinary pool execs its zygote; later ones find a nursery."""
    with Pool(1) as first, Pool(1) as second, Pool(1) as third:
        assert [pool.submit(tasks.square, 3).result(60) for pool in (first, second, third)] == [9, 9, 9]
        assert parent_of(zygote_of(first)) == os.getpid()
        assert parent_of(zygote_of(second)) == parent_of(zygote_of(third)) == running()


def test_workers_that_write_to_our_stdout_have_an_execd_zygote() -> None:
    """The nursery does not have the caller's stdout to hand down; stdin is sent to each zygote."""
    with nursery.hold(), Pool(1, isolation="session"):
        with Pool(1, isolation="session", stdout="inherit") as loud:
            assert parent_of(zygote_of(loud)) == os.getpid()
        with Pool(1, isolation="session", capabilities=["stdin:read"]) as reader:
            assert parent_of(zygote_of(reader)) != os.getpid()


def test_many_threads_make_pools_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pools work, and there was one nursery."""
    monkeypatch.setattr(nursery, "_TURN", 30.0)  # however long its start takes on a loaded machine
    results: list[int] = []
    parents: set[int] = set()

    def use() -> None:
        plugin = Plugin()
        parents.add(parent_of(zygote_of(plugin.pool)))
        plugin.close()
        results.append(1)

    with nursery.hold():
        threads = [threading.Thread(target=use) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(results) == 6
        assert parents == {running()}


# What a zygote has


class Bare:
    """A zygote from the nursery that has not been configured, and the channel to it."""

    def __init__(self) -> None:
        self.channel, theirs = pipe()
        with theirs:
            birth = nursery.ask(theirs.fileno(), start=True)
            assert birth is not None
        self.birth = birth
        self.process: ByPidfd = birth.wait()
        # It is what it will be once it has said HELLO.
        self.hello = Codec().unpack(self.channel.recv(time.monotonic() + 30))

    def close(self) -> None:
        """Close the channel, which ends it."""
        self.channel.close()
        self.process.wait(30)
        self.birth.release()


@pytest.fixture
def bare() -> Iterator[list[Bare]]:
    """Three of them, of one nursery."""
    with nursery.hold(), ExitStack() as stack:
        made = []
        for _ in range(3):
            made.append(Bare())
            stack.callback(made[-1].close)
        yield made


def test_a_zygote_holds_its_channel_and_nothing_else(bare: list[Bare]) -> None:
    """No descriptor of the nursery is open in it, and none of another zygote: neither sockets nor pidfds."""
    everything: set[str] = set()
    for zygote in bare:
        files = open_files(zygote.process.pid)
        streams = [files.pop(number) for number in (0, 1, 2)]
        assert streams[:2] == ["/dev/null", "/dev/null"]
        assert streams[2] == os.readlink("/proc/self/fd/2")
        assert len(files) == 1
        (channel,) = files.values()
        assert channel.startswith("socket:")
        assert channel not in everything
        everything.add(channel)
    # The nursery in its turn keeps no end of theirs (it closes the last one after its answer), and nobody has ours.
    wait_until(lambda: not everything & set(open_files(running()).values()))
    ours = {os.readlink(f"/proc/self/fd/{zygote.channel.fileno()}") for zygote in bare}
    for pid in (running(), *(zygote.process.pid for zygote in bare)):
        assert not ours & set(open_files(pid).values())


def test_streams_are_opened_anew(bare: list[Bare]) -> None:
    """Open files that two plugins' workers share would share flags, which each may set: stdin and stdout are not."""
    first, second = (zygote.process.pid for zygote in bare[:2])
    for number in (0, 1):
        assert not same_file(first, second, number)
        assert not same_file(first, running(), number)


def test_a_zygote_says_what_an_execd_one_says(bare: list[Bare]) -> None:
    """HELLO, with its own pid; and it is single-threaded, as the nursery is."""
    for zygote in bare:
        assert zygote.hello == [m.HELLO, m.PROTOCOL_VERSION, zygote.process.pid]
        assert len(os.listdir(f"/proc/{zygote.process.pid}/task")) == 1
    assert len(os.listdir(f"/proc/{running()}/task")) == 1


def test_nothing_of_our_environment_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the nursery nor a zygote knows a secret of ours."""
    monkeypatch.setenv("TEST_SECRET", "hunter2")
    with nursery.hold():
        zygote = Bare()
        try:
            for pid in (running(), zygote.process.pid):
                assert b"SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()
                assert os.readlink(f"/proc/{pid}/cwd") == "/"
        finally:
            zygote.close()


def test_stderr_is_the_one_of_its_birth(tmp_path: Path, bare: list[Bare]) -> None:
    """A host that leads its stderr elsewhere has later zygotes write there."""
    kept = os.dup(2)
    with open(tmp_path / "log", "wb") as log:
        os.dup2(log.fileno(), 2)
        try:
            later = Bare()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    try:
        assert open_files(later.process.pid)[2] == str(tmp_path / "log")
        assert open_files(bare[0].process.pid)[2] != str(tmp_path / "log")
        wait_until(lambda: str(tmp_path / "log") not in open_files(running()).values(), what="the nursery's own copy")
    finally:
        later.close()


def test_a_zygote_that_ended_is_reaped(bare: list[Bare]) -> None:
    """The nursery leaves no zombie, whatever its child died of."""
    dead = Bare()
    os.kill(dead.process.pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{dead.process.pid}"), what="the zygote's burial")
    dead.close()
    assert all(is_alive(zygote.process.pid) for zygote in bare)


def test_a_host_that_changed_its_limits_gets_another_zygote() -> None:
    """What the nursery could not hand down is inherited by exec, as before."""
    ended = program("""
        import resource
        from ringfence import Pool
        from ringfence.pool import nursery
        with nursery.hold(), Pool(1, isolation="session"):
            assert nursery._home._users == 2
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
            with Pool(1, isolation="session"):
                assert nursery._home._users == 2
        print("well")
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "well\n", "")


def test_a_host_without_stderr_gets_another_zygote() -> None:
    """There is nothing to hand down at 2, and what an exec'd zygote has there is left to it."""
    ended = program("""
        import os
        from ringfence import Pool
        from ringfence.pool import nursery
        os.close(2)
        with Pool(1, isolation="session"):
            assert nursery._home._users == 0
        print("well")
    """)
    assert (ended.returncode, ended.stdout) == (0, "well\n")


def test_each_is_in_the_control_group_of_its_pool(plugins: list[Plugin], features: Features) -> None:
    """Zygote and worker are in it, the nursery is not, and it goes with the pool."""
    if features.cgroup is None or not features.cgroup.writable:
        pytest.skip("no cgroup is delegated")
    paths = set()
    for plugin in plugins:
        group = plugin.pool._supervisor._crew._zygote.group  # type: ignore[union-attr]
        assert group is not None
        paths.add(group.path)
        name = os.path.basename(group.path)
        for pid in descendants(zygote_of(plugin.pool)) | {zygote_of(plugin.pool)}:
            assert name in Path(f"/proc/{pid}/cgroup").read_text()
        assert name not in Path(f"/proc/{running()}/cgroup").read_text()
    assert len(paths) == 3
    another = Plugin()
    path = another.pool._supervisor._crew._zygote.group.path  # type: ignore[union-attr]
    another.close()
    assert not os.path.exists(path)


# Forks and exits


def test_a_forked_child_has_a_nursery_of_its_own(plugins: list[Plugin]) -> None:
    """In a child of fork the parent's is forgotten; a pool there starts and ends another."""
    parents = running()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = Plugin()
            code = 0 if running() != parents else 2
            own.close()
            if nursery._home._nursery is not None or not is_alive(parents):
                code = 3
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert running() == parents
    assert [say(plugin.session, b"on") for plugin in plugins] == [b"ON"] * 3


def test_exit_ends_what_is_still_held() -> None:
    """A program that ends without a release leaves nothing, and says nothing."""
    ended = program("""
        from ringfence import Pool
        from ringfence.pool import nursery
        held = nursery.hold()
        with Pool(1, isolation="session"):
            print(nursery._home._nursery.process.pid, flush=True)
    """)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not is_alive(int(ended.stdout))


HOST = """
    import os, sys, time
    sys.path[:0] = {path!r}
    from ringfence import Pool
    import pool_tasks as tasks
    pools = [Pool(1, isolation="session") for _ in range(3)]
    sessions = [pool.open_session(tasks.converse, "farewell") for pool in pools]
    while not all(session.worker for session in sessions):
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_when_the_host_is_killed_all_is_gone() -> None:
    """Nursery, zygotes and workers end with their channels, although a forked child of the host lives on."""
    text = textwrap.dedent(HOST).format(path=sys.path)
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        child = int(host.stdout.readline())
        started = descendants(host.pid) - {child}
        assert len(started) >= 1 + 3 + 3
        host.kill()
        host.wait()
        try:
            wait_until_gone(started)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_channel_is_all_that_keeps_a_zygote() -> None:
    """It ends when its own channel closes, with the nursery running on."""
    with nursery.hold():
        zygote = Bare()
        nurse = running()
        assert isinstance(zygote.channel, Channel)
        zygote.channel.close()
        zygote.process.wait(30)
        assert is_alive(nurse)
        zygote.birth.release()
