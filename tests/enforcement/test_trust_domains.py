"""Two trust domains: what the worker of one does is nothing to the worker of another, whatever both were granted."""

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import domain_tasks as tasks
import pytest
from domain_tasks import SHARED
from jail import Caller, Sender, in_process

from ringfence import Level, Pool, WorkerCrashed
from ringfence.sandbox import enforce
from ringfence.sandbox.features import probe
from ringfence.worker.seeds import reseed

pytestmark = pytest.mark.as_user

GRANTS = {
    "nothing": (),
    "a path to read": (f"fs:read={Path(SHARED).parent}",),
    "a private folder": ("fs:read", "fs:write"),
    "both": (f"fs:read={Path(SHARED).parent}", "fs:write"),
    "programs": ("process:exec",),
}


@pytest.mark.parametrize("grants", GRANTS.values(), ids=GRANTS)
def test_no_trace_of_another_worker(grants: tuple[str, ...]) -> None:
    """A worker sees the same whether the other does everything that leaves a trace, or nothing."""
    with ExitStack() as stack:
        # The first zygote is exec'd, the later ones come from the nursery, and so from one process.
        pools = [stack.enter_context(Pool(1, capabilities=grants)) for _ in range(3)]
        for pool in pools:
            pool.submit(abs, 0).result()
        ((noisy, report),) = pools[1].reports().items()
        before = [pool.submit(tasks.look_around, noisy).result() for pool in (pools[0], pools[2])]
        done = pools[1].submit(tasks.leave_traces).result()
        after = [pool.submit(tasks.look_around, noisy).result() for pool in (pools[0], pools[2])]
    assert done["read"] > 0
    assert after == before
    for seen in before:
        refused = ("kill", "group", "session", "processors", "priority", "limits", "unix socket", "netlink", "wake")
        assert {name: seen[name] < 0 for name in refused} == dict.fromkeys(refused, True)
        assert seen["proc"] is (report.level < Level.PRIVATE)  # there, and not to be looked into


def test_locks_still_do_their_work(everyones: Path) -> None:
    """Where two write the same file, locks are real; a reader keeps a writer away; sqlite works in every case."""
    (everyones / "file").write_text("content")
    (everyones / "file").chmod(0o666)
    both = [f"fs:read={everyones}", f"fs:write={everyones}", f"fs:delete={everyones}"]
    with Pool(1, capabilities=both) as writer, Pool(1, capabilities=both[:1]) as reader:
        assert writer.submit(tasks.take_lock, str(everyones / "file"), os.O_RDWR, 2).result() == 0
        assert reader.submit(tasks.take_lock, str(everyones / "file"), os.O_RDONLY, 1).result() == -11
        rows = writer.submit(tasks.use_database, str(everyones / "rows.db")).result()
        (everyones / "rows.db").chmod(0o666)
        assert reader.submit(tasks.read_database, str(everyones / "rows.db")).result() == rows == [1, 2]
    if "mnt" not in probe().namespaces:
        return  # there is no private folder
    with Pool(1, capabilities=["fs:write"]) as alone:
        assert alone.submit(tasks.use_database, "/tmp/rows.db").result() == rows
        assert alone.submit(tasks.use_database, "/tmp/log.db", "WAL").result() == rows


def test_reading_anothers_memory_ends_the_worker() -> None:
    """Who tries is killed, and the other goes on."""
    with Pool(1) as curious, Pool(1) as other:
        other.submit(abs, 0).result()
        (pid,) = other.reports()
        with pytest.raises(WorkerCrashed) as caught:
            curious.submit(tasks.read_memory, pid).result()
        assert caught.value.signal == signal.SIGSYS
        assert tuple(other.reports()) == (pid,)


def identities(caller: Caller, count: int) -> list[tuple[str, str]]:
    """Return (uid, user namespace of a user's) of workers of one zygote, as root sees them from outside."""
    plan = caller.plan()
    told, tell = os.pipe()
    hold, go = os.pipe()

    def be_zygote(send: Sender) -> None:
        caller.become()
        prepared = enforce.prepare(plan)
        for _ in range(count):
            pid = enforce.fork(prepared)
            if pid == 0:
                enforce.enter(prepared, [hold, tell])
                os.write(tell, b".")
                os.read(hold, 1)
                os._exit(0)
            os.write(tell, b"%d " % enforce.host_pid(prepared, pid))
        os.read(hold, 1)  # workers end with their zygote
        send(["value", True])

    found = []

    def look() -> None:
        text = b""
        while text.count(b" ") < count or text.count(b".") < count:
            text += os.read(told, 64)
        for number in text.replace(b".", b"").split():
            status = Path(f"/proc/{int(number)}/status").read_text(errors="replace")
            uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
            space = os.readlink(f"/proc/{int(number)}/ns/user") if caller.name == "user" else ""
            found.append((uid, space))

    # It has to be looked at while it lives.
    looking = threading.Thread(target=look)
    looking.start()
    try:
        release = threading.Thread(target=lambda: (looking.join(10), os.write(go, b"." * (count + 1))))
        release.start()
        assert in_process(be_zygote)
        release.join()
    finally:
        for fd in (told, tell, hold, go):
            os.close(fd)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may see whose namespaces others are in")
def test_no_two_workers_are_the_same_user(caller: Caller) -> None:
    """Started as root, each worker has a uid of its own; started by a user, a user namespace of its own."""
    if caller.name == "user" and not caller.features.user_namespaces:
        pytest.skip(str(caller.features.reasons))
    found = identities(caller, 3)
    if caller.name == "root":
        assert len({uid for uid, _ in found}) == 3
        assert "0" not in {uid for uid, _ in found}
    else:
        spaces = {space for _, space in found}
        assert len(spaces) == 3
        assert os.readlink("/proc/self/ns/user") not in spaces


# Random numbers


def drawn(caller: Caller, *, anew: bool) -> list[str]:
    """Return what OpenSSL gives two workers of a zygote that has used it before they were forked."""
    plan = caller.plan()

    def be_zygote(send: Sender) -> None:
        import ssl

        caller.become()
        prepared = enforce.prepare(plan)
        ssl.RAND_bytes(8)
        reader, writer = os.pipe()
        for _ in range(2):
            pid = enforce.fork(prepared)
            if pid == 0:
                enforce.enter(prepared, [writer])
                if anew:
                    reseed()
                os.write(writer, ssl.RAND_bytes(8).hex().encode() + b" ")
                os._exit(0)
            os.waitpid(pid, 0)
        send(["value", os.read(reader, 100).decode().split()])

    found: list[str] = in_process(be_zygote).value
    return found


def test_workers_draw_numbers_of_their_own(caller: Caller) -> None:
    """OpenSSL, used before the fork, gives each worker others; as a user's it would not by itself: all are pid 1."""
    first, second = drawn(caller, anew=True)
    assert first != second
    if caller.name == "user" and "pid" in caller.features.namespaces:
        first, second = drawn(caller, anew=False)
        assert first == second


def test_no_worker_repeats_what_another_drew() -> None:
    """With everything preloaded, and a worker for each call, no source gives a number twice."""
    pytest.importorskip("numpy")
    preload = ["random", "secrets", "ssl", "uuid", "numpy.random"]
    with Pool(1, isolation="call", preload=preload) as pool:
        rows = [pool.submit(tasks.draw).result() for _ in range(3)]
    for column in zip(*rows, strict=True):
        assert len(set(column)) == 3
