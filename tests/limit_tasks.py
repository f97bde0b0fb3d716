"""What tests about limits run in workers; it imports little, because workers have to import it too."""

import mmap
import os
import re
import signal
import stat
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
