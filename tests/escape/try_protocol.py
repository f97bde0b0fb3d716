"""Attempts on the supervisor, by what is said on the channel and with the descriptors that lead to it.

Unsandboxed, a peer that reads its channel gets each of these whole: nothing stops them on the way. What must stop
them is what the supervisor makes of them.
"""
# ruff: noqa: D103 - what is attempted stands in the decorator

import fcntl
import gc
import os
import pickle
import socket
import struct
import sys
import time

from breakout import Facts, attempts, call

attempt = attempts("protocol")

FORGED = "forged by a worker"
RESULT, ERROR, PICKLED, NEED_LEASE, LEASED, NEED_BUFFER, SYNCED, STARTED, READY = 31, 32, 33, 34, 35, 36, 37, 38, 30


def _worker():
    """Return the worker that runs us, and the number of the task that it runs, or the last one."""
    for value in gc.get_objects():
        if type(value).__name__ == "Worker" and type(value).__module__ == "ringfence.worker.serve":
            break
    else:
        raise LookupError("no worker")
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name == "_run" and "task" in frame.f_locals:
                return value, frame.f_locals["task"]
            frame = frame.f_back
    return value, 1


def _frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def _say(w: Facts, *bodies: bytes) -> bool:
    """Write these bytes to the channel as they are, then give the supervisor time to act."""
    if not w.inside:
        here, there = socket.socketpair()
        with here, there:
            data = b"".join(bodies)[:100_000]
            here.setblocking(False)
            sent = here.send(data)
            return there.recv(sent, socket.MSG_WAITALL) == data[:sent]
    worker, _ = _worker()
    fd = worker._channel.fileno()
    for body in bodies:
        view = memoryview(body)
        while view:
            view = view[os.write(fd, view) :]
    time.sleep(0.03)
    return True


def _message(w: Facts, *message: object) -> bytes:
    """Return a well-formed frame with this message; `None` for its task is the one that runs."""
    if not w.inside:
        return _frame(repr(message).encode()[:100_000])
    worker, task = _worker()
    return _frame(worker._codec.pack([task if field is TASK else field for field in message]))


TASK = object()

_MESSAGES = {
    "an answer to a task of another worker": (RESULT, 10**9, FORGED),
    "answers to every task there may be": (RESULT, 2, FORGED),
    "an answer to task 0": (RESULT, 0, FORGED),
    "an answer to a negative task": (RESULT, -1, FORGED),
    "an answer by a boolean": (RESULT, True, FORGED),
    "READY once more, with a report of its own": (READY, 1, []),
    "STARTED once more": (STARTED,),
    "SYNCED that nobody asked for": (SYNCED,),
    "a pickle where none was asked for": (PICKLED, TASK, b"cos\nsystem\n(S'true'\ntR."),
    "arguments that are not its": (NEED_BUFFER, 10**9),
    "a lease without an end": (NEED_LEASE, TASK, 1 << 62),
    "a lease of less than nothing": (NEED_LEASE, TASK, -5),
    "a lease used that was never given": (LEASED, TASK, {"form": "bytes", "size": 10}),
    "an error for everybody": (ERROR, -1, {"kind": "start", "type": "SystemExit", "module": "builtins"}),
    "an error without fields": (ERROR, TASK, {}),
    "a message of the zygote's: EXITED": (13, 1, 0, 0.0, 0),
    "a message of the zygote's: SPAWNED": (11, 1, 1),
    "a message to a worker: TASKS": (23, []),
    "a tag that is not there": (999,),
    "no message at all": (),
    "a message with a field too many": (RESULT, TASK, FORGED, 1, 2, 3),
    "positions in the output that go backwards": (RESULT, TASK, FORGED, -1, 1 << 62),
}
for _what, _message_of in _MESSAGES.items():
    _key = "say_" + "_".join(_what.replace(",", "").replace(":", "").replace("'", "").split()[:7])

    @attempt(_what, name=_key)
    def _send(w: Facts, message=_message_of) -> bool:
        return _say(w, _message(w, *message))


_BYTES = {
    "a length of four gigabytes": struct.pack(">I", 0xFFFFFFFF),
    "a length of nothing": bytes(4000),
    "a frame that is cut off": struct.pack(">I", 1000) + b"\x93",
    "noise": bytes(range(256)) * 100,
    "an array that says it has four billion entries": _frame(b"\xdd\xff\xff\xff\xff"),
    "a map that says it has four billion entries": _frame(b"\x92\x1f\xdf\xff\xff\xff\xff"),
    "text that says it is four gigabytes long": _frame(b"\x93\x1f\x01\xdb\xff\xff\xff\xff"),
    "nesting a hundred thousand deep": _frame(b"\x93\x1f\x01" + b"\x91" * 100_000 + b"\xc0"),
    "an extension of a type that is not there": _frame(b"\x93\x1f\x01\xc7\x04\x7fabcd"),
    "text that is no UTF-8": _frame(b"\x93\x1f\x01\xa4\xff\xfe\xfd\xfc"),
    "a map with the same key twice": _frame(b"\x93\x1f\x01\x82\x01\x01\x01\x02"),
    "a map with a key that is a list": _frame(b"\x93\x1f\x01\x81\x91\x01\x02"),
    "a map with keys not equal to themselves": _frame(b"\x92\x1f\x82" + (b"\xcb\x7f\xf8" + bytes(6) + b"\x01") * 2),
    "a pickle instead of a message": _frame(pickle.dumps({"forged": True})),
    "two messages in one frame": _frame(b"\x91\x25\x91\x25"),
}  # fmt: skip
for _what, _data in _BYTES.items():

    @attempt(_what, name="send_" + "_".join(_what.split()[:7]))
    def _send_bytes(w: Facts, data=_data) -> bool:
        return _say(w, data)


@attempt("a hundred thousand messages that mean nothing")
def flood_messages(w: Facts) -> bool:
    return _say(w, *[_message(w, SYNCED)] * (2000 if w.inside else 10))


@attempt("one byte at a time, without an end")
def drip(w: Facts) -> bool:
    return _say(w, *[bytes([byte]) for byte in struct.pack(">I", 1 << 20) + b"x" * 200])


@attempt("closing the channel while going on")
def close_channel(w: Facts) -> bool:
    if not w.inside:
        return _say(w, b"x")
    worker, _ = _worker()
    os.close(worker._channel.fileno())
    time.sleep(60)
    return True


@attempt("shutting the channel for sending, then waiting")
def shut_channel(w: Facts) -> bool:
    if not w.inside:
        return _say(w, b"x")
    worker, _ = _worker()
    call(w, "shutdown", worker._channel.fileno(), 1)
    time.sleep(60)
    return True


@attempt("the channel's descriptor replaced by a pipe of one's own")
def replace_channel(w: Facts) -> bool:
    if not w.inside:
        return _say(w, b"x")
    worker, _ = _worker()
    os.dup2(os.pipe()[1], worker._channel.fileno())
    return True


@attempt("every token taken, so that nobody knows what has begun")
def steal_tokens(w: Facts) -> bool:
    if not w.inside:
        return _say(w, b"x")
    worker, _ = _worker()
    os.set_blocking(worker._tokens, False)
    try:
        while os.read(worker._tokens, 4096):
            pass
    except BlockingIOError:
        pass
    return True


@attempt("tokens made, where there were none")
def forge_tokens(w: Facts) -> bool:
    if not w.inside:
        return _say(w, b"x")
    worker, _ = _worker()
    return os.write(worker._tokens, b"x" * 100) == 100


@attempt("the token socket made to wait, and emptied: whoever reads it stands still")
def block_tokens(w: Facts) -> bool:
    if not w.inside:
        return _say(w, b"x")
    worker, _ = _worker()
    os.set_blocking(worker._tokens, True)
    fcntl.fcntl(worker._tokens, fcntl.F_SETFL, 0)
    while True:
        try:
            if not os.read(worker._tokens, 1):
                break
        except OSError:
            break
    return True


@attempt("the token socket shut")
def shut_tokens(w: Facts) -> bool:
    if not w.inside:
        return _say(w, b"x")
    worker, _ = _worker()
    call(w, "shutdown", worker._tokens, 2)
    return True


_NET = ("net:request", "net:dns", "net:listen")


@attempt("descriptors put into the channel (SCM_RIGHTS), for the supervisor to hold", opens=_NET)
def pass_descriptors(w: Facts) -> bool:
    import array

    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 50))]
    if not w.inside:
        here, there = socket.socketpair()
        with here, there:
            return here.sendmsg([b"x"], rights) == 1
    worker, _ = _worker()
    made = socket.socket(fileno=os.dup(worker._channel.fileno()))
    for _ in range(10):
        made.sendmsg([_message(w, SYNCED)], rights)
    time.sleep(0.03)
    return True


@attempt("a byte out of band on the channel")
def channel_out_of_band(w: Facts) -> bool:
    if not w.inside:
        here, there = socket.socketpair()
        with here, there:
            return here.send(b"x", socket.MSG_OOB) == 1
    worker, _ = _worker()
    return call(w, "sendto", worker._channel.fileno(), b"x", 1, socket.MSG_OOB, 0, 0) == 1


# --- values and exceptions --------------------------------------------------------------------------------------


class _Reduced:
    def __reduce__(self):
        return os.system, ("touch /tmp/ringfence-escape-pickled",)


class _Lies(Exception):
    @property
    def __class__(self):
        return KeyboardInterrupt

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__

    def __reduce__(self):
        return os.system, ("touch /tmp/ringfence-escape-pickled",)


def _outside(value: object) -> bool:
    """Unsandboxed a pool that pickles hands such a value on; whether it can be made is all there is to be seen."""
    return value is not None


_VALUES = {
    "an object whose pickle runs a program": lambda: _Reduced(),
    "a list that contains itself": lambda: _recursive(),
    "a list a hundred thousand deep": lambda: _deep(100_000),
    "an integer of a million digits": lambda: 10**1_000_000,
    "a text of lone surrogates": lambda: "\ud800" * 1000,
    "keys that are not equal to themselves": lambda: {float("nan"): 1, float("inf"): 2},
    "an array of objects": lambda: _objects(),
    "a function": lambda: _recursive,
    "a module": lambda: os,
    "a class": lambda: _Lies,
    "a generator": lambda: (x for x in ()),
    "an open file": lambda: sys.stdin,
    "a subclass of int that lies": lambda: type("Int", (int,), {"__int__": lambda self: os._exit(3)})(5),
    "a subclass of str that lies": lambda: type("Str", (str,), {"encode": lambda *_: 5})("x"),
    "terminal escapes": lambda: "\x1b]52;c;ZXZpbA==\x07\x1b[2J",
}


def _recursive() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


def _deep(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def _objects() -> object:
    try:
        import numpy

        return numpy.array([_Reduced(), None], dtype=object)
    except ImportError:
        return _Reduced()


class Returned(Exception):
    """Carries a value out of an attempt, to be returned as the task's result."""


for _what, _make in _VALUES.items():

    @attempt(f"returning {_what}", name="return_" + "_".join(_what.split()[:6]).replace("'", ""))
    def _return(w: Facts, make=_make) -> bool:
        value = make()
        if w.inside and w.mode == "call":
            raise Returned(value)
        return _outside(value) and not w.inside


_EXCEPTIONS = {
    "an exception that says it is KeyboardInterrupt": lambda: _Lies("x"),
    "SystemExit": lambda: SystemExit(0),
    "KeyboardInterrupt": lambda: KeyboardInterrupt(),
    "GeneratorExit": lambda: GeneratorExit(),
    "an exception with a name of terminal escapes": lambda: type("\x1b[2J\nE", (Exception,), {})("\x1b]0;x\x07"),
    "an exception of a module to be imported": lambda: type("E", (Exception,), {"__module__": "antigravity"})("x"),
    "an exception with arguments that lie": lambda: Exception(_Reduced(), _recursive()),
    "an exception with a message of many megabytes": lambda: Exception("x" * (8 << 20)),
    "an exception whose cause is itself": lambda: _own_cause(),
    "a group of groups": lambda: _groups(50),
    "UnicodeDecodeError beyond its text": lambda: UnicodeDecodeError("utf-8", b"abc", -(2**40), 2**40, "x"),
    "an exception with notes that are none": lambda: _noted(),
}


def _own_cause() -> Exception:
    error = Exception("x")
    error.__cause__ = error
    error.__context__ = error
    return error


def _noted() -> Exception:
    error = Exception("x")
    error.__notes__ = [_Reduced(), 5, None, "\x1b[2J"]  # type: ignore[list-item]
    return error


def _groups(depth: int) -> BaseException:
    error: BaseException = ValueError("x")
    for _ in range(depth):
        error = BaseExceptionGroup("g", [error])
    return error


class Raised(Exception):
    """Carries an exception out of an attempt, to be raised by the task."""


for _what, _make_error in _EXCEPTIONS.items():

    @attempt(f"raising {_what}", name="raise_" + "_".join(_what.split()[:7]))
    def _raise(w: Facts, make=_make_error) -> bool:
        error = make()
        if w.inside and w.mode == "call":
            raise Raised(error)
        return _outside(error) and not w.inside


def say(name: str, facts: dict[str, object]) -> object:
    """Make one of these attempts as the task itself: what it returns or raises is the task's."""
    from breakout import ATTEMPTS

    try:
        return ATTEMPTS[name].run(Facts(**facts))
    except Returned as carried:
        return carried.args[0]
    except Raised as carried:
        raise carried.args[0]  # noqa: B904
