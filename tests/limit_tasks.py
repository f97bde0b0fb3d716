"""What tests about limits run in workers; it imports little, because workers have to import it too."""

import mmap
import os
import re
import signal
import stat
import threading
import time

STACK_SIGNAL = 61


def python_loop() -> None:
    """Run Python code."""
    while True:
        pass


def native_loop() -> object:
    """Run native code that keeps the interpreter to itself."""
    return re.match(r"(a+)+$", "a" * 50 + "b")


def hoard() -> None:
    """Use shared memory, which no rlimit counts."""
    held = mmap.mmap(-1, 200 << 20)
    for at in range(0, 200 << 20, 4096):
        held[at] = 1
    time.sleep(600)


def block() -> None:
    """Let no signal through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    time.sleep(600)


def ignore() -> None:
    """Ignore the signal."""
    signal.signal(STACK_SIGNAL, signal.SIG_IGN)
    time.sleep(600)


def pipes() -> list[int]:
    """Return the descriptors of pipes, standard streams aside."""
    found = []
    for fd in range(3, 20):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            pass
    assert found
    return found


def flood() -> None:
    """Write where the stacks go, for ever."""
    while True:
        for fd in pipes():
            os.set_blocking(fd, False)
            try:
                os.write(fd, b'  File "\x1b[2J", line 1 in f\n' * 1000)
            except BlockingIOError:
                pass


def close() -> None:
    """Close where the stacks go."""
    for fd in pipes():
        os.close(fd)
    time.sleep(600)


def stop() -> None:
    """Stop; as the first process of a pid namespace it cannot."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


def nap() -> None:
    """Sleep."""
    time.sleep(600)


def nested(depth: int) -> int:
    """Call itself so often."""
    return 0 if depth == 0 else nested(depth - 1)


def own_recursion_error() -> None:
    """Raise what has nothing to do with a limit."""
    raise RecursionError("maximum recursion depth exceeded, says the task")


def own_errno(number: int) -> None:
    """Raise what has nothing to do with a limit."""
    raise OSError(number, "says the task")


def open_files(count: int) -> int:
    """Have so many files open at once."""
    return len([open(os.devnull) for _ in range(count)])  # they are to stay open


def write_file(path: str, size: int) -> int:
    """Write one file."""
    with open(path, "wb") as file:
        return file.write(b"x" * size)


def write_files(path: str, size: int, count: int) -> int:
    """Write several."""
    return sum(write_file(f"{path}-{number}", size) for number in range(count))


def start_threads(count: int) -> int:
    """Start so many threads at once, which end with the task."""
    done = threading.Event()
    started = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=done.wait)
            thread.start()
            started.append(thread)
    finally:
        done.set()
    for thread in started:
        thread.join()
    return len(started)


def start_threads_that_stay(count: int) -> int:
    """Start so many threads at once, which outlive the task."""
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return count


def fork(count: int) -> int:
    """Start so many processes at once."""
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    return count


def count_up(steps: int) -> int:
    """Run about three lines for each step."""
    done = 0
    while done < steps:
        done += 1
    return done


def look_at_files(count: int) -> int:
    """Open files, and swallow what comes of it."""
    for _ in range(count):
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except BaseException:
            pass
    return count


def spin(seconds: float) -> float:
    """Compute for so long; return which share of a processor that took."""
    begun, used = time.monotonic(), time.process_time()
    while time.monotonic() - begun < seconds:
        pass
    return (time.process_time() - used) / (time.monotonic() - begun)


def spin_in_children(seconds: float) -> float:
    """Have two children compute; return which share of a processor they got together."""
    begun = time.monotonic()
    started = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            spin(seconds)
            os._exit(0)
        started.append(child)
    for child in started:
        os.waitpid(child, 0)
    used = os.times()
    return (used.children_user + used.children_system) / (time.monotonic() - begun)


def leave_it_to_a_child() -> None:
    """Use no CPU time itself."""
    if os.fork() == 0:
        python_loop()
    time.sleep(600)


def fill_scratch(size: int) -> int:
    """Write to a file in memory, which no process has mapped."""
    path = os.path.join(os.environ["TMPDIR"], "filled")
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(b"x" * (1 << 20))
    time.sleep(0.5)
    os.unlink(path)
    return size


def hold_and_fill(held: int, filled: int) -> int:
    """Use memory of its own and, beside it, a file in memory."""
    mine = bytearray(held)
    return len(mine) + fill_scratch(filled)


def leave_it_to_children_nobody_waits_for() -> None:
    """Use CPU time in many short-lived children of which the kernel keeps no account."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        there, ended = os.pipe()
        if os.fork() == 0:
            spin(0.02)
            os._exit(0)
        os.close(ended)
        os.read(there, 1)
        os.close(there)
