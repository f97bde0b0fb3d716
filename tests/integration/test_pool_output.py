"""What tasks print: captured to a bound, delivered, limited, or let through."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pool_tasks as tasks
import pytest

from ringfence import Limits, Output, OutputExceeded, Pool


def test_each_task_has_its_own_output() -> None:
    """future.output holds what this task printed, and nothing of its neighbours'."""
    with Pool(1) as pool:
        futures = [pool.submit(tasks.print_both, f"out {n}", f"err {n}", n) for n in range(20)]
        for n, future in enumerate(futures):
            assert future.result() == n
            assert future.output == Output(f"out {n}\n", f"err {n}\n")


def test_a_task_that_prints_nothing_has_no_output() -> None:
    """output is None, also after a task that printed."""
    with Pool(1) as pool:
        pool.submit(print, "first").result()
        future = pool.submit(tasks.square, 2)
        assert future.result() == 4
        assert future.output is None


def test_output_comes_with_an_error() -> None:
    """What was printed before an exception, and before a crash, is there."""

    def say_and(what: str) -> None:
        print("before")
        if what == "raise":
            raise ValueError
        sys.stdout.flush()
        os._exit(1)

    with Pool(1) as pool:
        for what in ("raise", "crash"):
            future = pool.submit(say_and, what)
            assert future.exception(30) is not None
            assert future.output is not None
            assert future.output.stdout == "before\n"


def test_a_callback_gets_every_output() -> None:
    """on_output is called once for each task that printed."""
    seen: list[Output] = []
    enough = threading.Event()

    def note(output: Output) -> None:
        seen.append(output)
        if len(seen) == 3:
            enough.set()

    with Pool(1, on_output=note) as pool:
        for n in range(3):
            pool.submit(print, n).result()
            pool.submit(tasks.square, n).result()
        assert enough.wait(30)
    assert [output.stdout for output in seen] == ["0\n", "1\n", "2\n"]


def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged, the task's result stands, and the pool goes on."""

    def broken(_: Output) -> None:
        raise RuntimeError("callback broke")

    with Pool(1, on_output=broken) as pool:
        assert pool.submit(tasks.print_both, "a", "b", 3).result() == 3
        assert pool.submit(tasks.square, 3).result() == 9
    assert "on_output" in caplog.text


def test_a_flood_is_kept_to_a_bound() -> None:
    """Megabytes of output end the task well; a bounded part is kept, its beginning and its end, marked truncated."""
    with Pool(1, profile="trusted", limits=Limits(output=None)) as pool:
        future = pool.submit(tasks.flood, 8 << 20)
        assert future.result(60) == 8 << 20
        assert future.output is not None
        assert future.output.truncated
        assert 1024 < len(future.output.stdout) <= 256 * 1024


def test_output_over_the_limit_ends_the_task() -> None:
    """limits.output is enforced: OutputExceeded, with what was printed up to then, and the pool goes on."""
    with Pool(1, limits=Limits(output="64KiB")) as pool:
        future = pool.submit(tasks.flood, 64 << 20)
        error = future.exception(60)
        assert isinstance(error, OutputExceeded)
        assert error.limit == 64 * 1024
        assert pool.submit(tasks.square, 3).result(30) == 9


def test_an_endless_flood_without_newlines_is_ended() -> None:
    """Raw writes to fd 1 count too."""

    def flood() -> None:
        while True:
            os.write(1, b"x" * 65536)

    with Pool(1, limits=Limits(output="1MiB")) as pool:
        assert isinstance(pool.submit(flood).exception(60), OutputExceeded)


def test_bytes_that_are_not_utf_8_are_escaped() -> None:
    """Whatever comes, output is text."""

    def noise() -> None:
        os.write(1, b"\xff\xfe!\n")

    with Pool(1) as pool:
        future = pool.submit(noise)
        future.result()
        after = pool.submit(print, "\udc80")
        after.result()
        said = "".join(each.output.stdout for each in (future, after) if each.output is not None)
    assert "\\xff\\xfe!" in said


def test_a_task_may_close_or_replace_its_streams() -> None:
    """It only hurts itself: results still come, and so does the next task's output."""

    def vandal() -> int:
        sys.stdout.close()
        sys.stderr = None  # type: ignore[assignment]
        return 5

    with Pool(1) as pool:
        assert pool.submit(vandal).result() == 5
        assert pool.submit(tasks.square, 2).result() == 4


def test_inherited_output_reaches_our_own_stdout() -> None:
    """With stdout="inherit" a worker's print goes where ours goes."""
    program = textwrap.dedent("""
        from ringfence import Pool
        with Pool(1, stdout="inherit") as pool:
            future = pool.submit(print, "from the worker")
            future.result()
            assert future.output is None
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "from the worker\n", "")


# Tries, from a worker, what its own output leads to besides writing: reading it, going back in it, changing its flags.
BEYOND_WRITING = """
import os, sys
from ringfence import Pool

def attempt(fd):
    found = []
    for act in (lambda: os.read(fd, 100).decode(), lambda: os.pwrite(fd, b"x", 0)):
        try:
            os.set_blocking(fd, False)
            found.append(act())
        except OSError as error:
            found.append(error.strerror)
    os.write(fd, b"")
    return found

with Pool(1, stdout="inherit") as pool:
    for fd in (1, 2):
        print(pool.submit(attempt, fd).result(30), os.get_blocking(fd), file=sys.stderr, flush=True)
"""


def test_a_terminal_that_is_inherited_is_only_written_to() -> None:
    """What is typed there is not the workers' to read, and what they set there is theirs alone."""
    master, slave = os.openpty()
    with os.fdopen(master, "rb", 0) as typing:
        os.write(master, b"a password\n")
        command = [sys.executable, "-c", BEYOND_WRITING]
        ended = subprocess.run(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, check=False)
        os.close(slave)
        said = typing.read(8192).decode()
    assert ended.returncode == 0, said
    assert said.count("['Bad file descriptor', 'Illegal seek'] True") == 2, said


def test_a_log_that_is_appended_to_keeps_what_stands_in_it(tmp_path: Path) -> None:
    """Workers that write to the end of our log cannot read it, nor go back in it."""
    log = tmp_path / "log"
    log.write_text("what was before\n")
    with log.open("a+") as file:
        subprocess.run([sys.executable, "-c", BEYOND_WRITING], stdout=file, stderr=file, check=True)
    text = log.read_text()
    assert text.startswith("what was before\n"), text
    assert "Bad file descriptor" in text


# Tries, from a worker that may read our stdin, to write there and to change its flags.
BEYOND_READING = """
import os, sys
from ringfence import Pool

def attempt():
    os.set_blocking(0, False)
    try:
        return os.write(0, b"\\x1b[2J")
    except OSError as error:
        return error.strerror

with Pool(1, capabilities=["stdin:read"]) as pool:
    print(pool.submit(os.read, 0, 100).result(30), pool.submit(attempt).result(30), os.get_blocking(0))
"""


def test_a_terminal_that_is_read_is_only_read() -> None:
    """Workers with stdin:read write nothing to the terminal behind it, and what they set there is theirs alone."""
    master, slave = os.openpty()
    with os.fdopen(master, "rb", 0):
        os.write(master, b"a line\n")
        command = [sys.executable, "-c", BEYOND_READING]
        ended = subprocess.run(command, stdin=slave, capture_output=True, start_new_session=True, check=True)
        os.close(slave)
    assert ended.stdout == b"b'a line\\n' Bad file descriptor True\n"
