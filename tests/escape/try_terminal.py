"""Attempts on terminals: typing into the one that started us, reading it, taking it."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import fcntl
import os
import struct
import termios

from breakout import Facts, attempts, call

attempt = attempts("terminal")


def _terminal(w: Facts) -> int:
    """Return a terminal: inside whatever we were given, outside the victim's."""
    if not w.inside:
        return os.open(w.terminal, os.O_RDWR | os.O_NOCTTY)
    for fd in range(64):
        if os.isatty(fd):
            return fd
    return 1


@attempt("writing to another's terminal")
def terminal_write(w: Facts) -> bool:
    return os.write(os.open(w.terminal, os.O_WRONLY | os.O_NOCTTY), b"\x1b]0;owned\x07") > 0


@attempt("reading another's terminal")
def terminal_read(w: Facts) -> bool:
    return os.open(w.terminal, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK) >= 0


@attempt("the terminal that controls us, by name")
def terminal_controlling(w: Facts) -> bool:
    return os.open("/dev/tty" if w.inside else w.terminal, os.O_RDWR) >= 0


@attempt("TIOCSTI: typing into it")
def terminal_sti(w: Facts) -> bool:
    try:
        fcntl.ioctl(_terminal(w), termios.TIOCSTI, b"x")
    except OSError as error:
        if w.inside and error.errno in (1, 25):
            raise  # 25: refused by what it is no terminal for
        return True
    return True


@attempt("TIOCSTI with a bit above the 32nd")
def terminal_sti_high_bits(w: Facts) -> bool:
    import ctypes

    try:
        call(w, "ioctl", _terminal(w), termios.TIOCSTI | 1 << 40, ctypes.create_string_buffer(b"x"))
    except OSError as error:
        if w.inside and error.errno in (1, 25):
            raise
    return True


@attempt("TIOCSCTTY: taking it")
def terminal_take(w: Facts) -> bool:
    try:
        fcntl.ioctl(_terminal(w), termios.TIOCSCTTY, 0)
    except OSError as error:
        if w.inside and error.errno in (1, 25):
            raise
    return True


@attempt("TIOCLINUX: the console's selection")
def terminal_linux(w: Facts) -> bool:
    try:
        fcntl.ioctl(_terminal(w), 0x541C, b"\x02" + bytes(8))
    except OSError as error:
        if w.inside and error.errno in (1, 25):
            raise
    return True


@attempt("its settings changed (TCSETS): no echo, no signals")
def terminal_settings(w: Facts) -> bool:
    fd = _terminal(w)
    settings = termios.tcgetattr(fd)
    termios.tcsetattr(fd, termios.TCSANOW, settings)
    return True


@attempt("its size changed, which signals its programs")
def terminal_size(w: Facts) -> bool:
    fcntl.ioctl(_terminal(w), termios.TIOCSWINSZ, struct.pack("HHHH", 1, 1, 1, 1))
    return True


@attempt("a new pair of terminals (/dev/ptmx)")
def terminal_new(w: Facts) -> bool:
    return os.openpty()[0] >= 0


@attempt("the foreground given to another group (TIOCSPGRP)")
def terminal_foreground(w: Facts) -> bool:
    try:
        fcntl.ioctl(_terminal(w), termios.TIOCSPGRP, struct.pack("i", os.getpgrp()))
    except OSError as error:
        if w.inside and error.errno in (1, 25):
            raise
    return True
