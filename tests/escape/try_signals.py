"""Attempts to signal other processes, or to have the kernel do it."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import ctypes
import os
import signal
import struct

from breakout import Facts, attempts, call

attempt = attempts("process")

_EXEC = ("process:exec",)


@attempt("kill of another process")
def kill_victim(w: Facts) -> bool:
    os.kill(w.victim, signal.SIGUSR1)
    return True


@attempt("kill with signal 0: whether a process is there")
def kill_probe(w: Facts) -> bool:
    os.kill(w.victim, 0)
    return True


@attempt("kill with a pid whose bits above the 32nd are set")
def kill_high_bits(w: Facts) -> bool:
    return call(w, "kill", w.victim | 1 << 32, 0) == 0


@attempt("kill of the supervisor")
def kill_supervisor(w: Facts) -> bool:
    os.kill(w.supervisor if w.inside else w.victim, signal.SIGCONT)
    return True


@attempt("kill of the parent, the zygote")
def kill_parent(w: Facts) -> bool:
    parent = os.getppid()
    if w.inside and parent == 0:
        return False  # there is none that could be named
    os.kill(parent if w.inside else w.victim, signal.SIGCONT)
    return True


@attempt("kill of all that can be killed (-1)", opens=_EXEC)
def kill_all(w: Facts) -> bool:
    os.kill(-1, 0)
    return True


@attempt("kill of the own group (0)", opens=_EXEC)
def kill_group(w: Facts) -> bool:
    os.kill(0, 0)
    return True


@attempt("killpg of another's group")
def kill_other_group(w: Facts) -> bool:
    os.killpg(w.victim, 0)
    return True


@attempt("tgkill of another's thread")
def tgkill(w: Facts) -> bool:
    return call(w, "tgkill", w.victim, w.victim, 0) == 0


@attempt("tkill, which names no process", kills=False)
def tkill(w: Facts) -> bool:
    return call(w, "tkill", w.victim, 0) == 0


@attempt("rt_sigqueueinfo to another")
def sigqueue(w: Facts) -> bool:
    return call(w, "rt_sigqueueinfo", w.victim, 0, ctypes.create_string_buffer(struct.pack("iii", 0, 0, -1), 128)) == 0


@attempt("rt_tgsigqueueinfo to another's thread")
def tgsigqueue(w: Facts) -> bool:
    info = ctypes.create_string_buffer(struct.pack("iii", 0, 0, -1), 128)
    return call(w, "rt_tgsigqueueinfo", w.victim, w.victim, 0, info) == 0


@attempt("pidfd_open of another")
def pidfd_open(w: Facts) -> bool:
    return os.pidfd_open(w.victim) >= 0


@attempt("pidfd_send_signal to whatever descriptor there is")
def pidfd_signal(w: Facts) -> bool:
    if not w.inside:
        signal.pidfd_send_signal(os.pidfd_open(w.victim), 0)
        return True
    return any(call(w, "pidfd_send_signal", fd, 0, 0, 0) == 0 for fd in range(64))


@attempt("pidfd_getfd: a descriptor out of another process", kills=True)
def pidfd_getfd(w: Facts) -> bool:
    fd = 0 if w.inside else os.pidfd_open(w.victim)
    return call(w, "pidfd_getfd", fd, 0, 0) >= 0


@attempt("F_SETOWN, then F_SETSIG: the kernel sends the signal")
def signal_by_fcntl(w: Facts) -> bool:
    import fcntl

    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, w.victim)
    fcntl.fcntl(reader, 10, signal.SIGCONT)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    return os.write(writer, b"x") == 1


@attempt("F_SETOWN_EX, its newer form")
def signal_by_fcntl_ex(w: Facts) -> bool:
    import fcntl

    fcntl.fcntl(os.pipe()[0], 15, struct.pack("ii", 1, w.victim))
    return True


@attempt("FIOSETOWN by ioctl on a socket")
def signal_by_ioctl(w: Facts) -> bool:
    import fcntl
    import socket

    one, two = socket.socketpair()
    with one, two:
        fcntl.ioctl(one, 0x8901, struct.pack("i", w.victim))
    return True


@attempt("a timer that signals another thread (timer_create with SIGEV_THREAD_ID)")
def signal_by_timer(w: Facts) -> bool:
    event = ctypes.create_string_buffer(struct.pack("PiiI", 0, signal.SIGCONT, 4, 1), 64)
    try:
        return call(w, "timer_create", 0, event, ctypes.create_string_buffer(8)) == 0
    except OSError as error:
        if error.errno == 22:
            return True  # the kernel has looked for that thread
        raise


@attempt("a message queue that signals (mq_notify)")
def signal_by_queue(w: Facts) -> bool:
    try:
        return call(w, "mq_notify", 1, 0) == 0
    except OSError as error:
        if error.errno == 9:
            return True
        raise
