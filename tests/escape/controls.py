"""What must go on working inside: a sandbox that refuses everything holds nothing back that anybody would miss."""
# ruff: noqa: D103 - the names say it

import os
from collections.abc import Callable
from typing import Any

Control = Callable[[], Any]
CONTROLS: dict[str, tuple[Control, tuple[str, ...]]] = {}


def control(*needs: str) -> Callable[[Control], Control]:
    """Add a control that needs these capabilities (or more "memory" than 64 MiB); it returns something true."""

    def add(run: Control) -> Control:
        CONTROLS[run.__name__] = (run, needs)
        return run

    return add


@control()
def arithmetic() -> bool:
    return sum(range(1000)) == 499500 and pow(2, 200, 97) == 2**200 % 97


@control()
def imports() -> int:
    import importlib

    names = (
        "argparse array ast asyncio base64 bisect calendar cmath codecs collections concurrent.futures configparser "
        "contextlib copy csv ctypes dataclasses datetime decimal difflib dis email enum fractions functools gzip "
        "hashlib heapq hmac html http.client importlib.metadata inspect io ipaddress itertools json keyword linecache "
        "locale logging lzma math mimetypes multiprocessing numbers operator optparse pathlib pickle platform pprint "
        "queue random re sched secrets select selectors shlex shutil signal socket sqlite3 ssl stat statistics string "
        "struct subprocess tarfile tempfile textwrap threading time timeit token tokenize traceback types typing "
        "unicodedata unittest urllib.parse urllib.request uuid warnings wave weakref xml.etree.ElementTree zipfile "
        "zlib zoneinfo"
    )
    return len([importlib.import_module(name) for name in names.split()])


@control()
def threads() -> bool:
    import threading

    found: list[int] = []
    made = [threading.Thread(target=found.append, args=(n,)) for n in range(8)]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    return sorted(found) == list(range(8))


@control()
def thread_pool() -> bool:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(abs, [-1, -2])) == [1, 2]


@control()
def asyncio_loop() -> bool:
    import asyncio

    async def main() -> int:
        values = await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(lambda: 2))
        async with asyncio.timeout(5):
            queue: asyncio.Queue[int] = asyncio.Queue()
            await queue.put(3)
            return sum(values) + await queue.get()

    return asyncio.run(main()) == 6


@control()
def json_values() -> bool:
    import json

    return json.loads(json.dumps({"a": [1, 2.5, None, "ü"]})) == {"a": [1, 2.5, None, "ü"]}


@control()
def compression() -> bool:
    import bz2
    import gzip
    import lzma
    import zlib

    data = bytes(range(256)) * 100
    pairs = ((zlib.compress, zlib.decompress), (gzip.compress, gzip.decompress), (bz2.compress, bz2.decompress))
    small = lzma.decompress(lzma.compress(data, preset=0))  # the preset that needs little memory
    return small == data and all(back(there(data)) == data for there, back in pairs)


@control()
def digests() -> bool:
    import hashlib
    import hmac

    return len(hashlib.sha256(b"x").digest() + hashlib.blake2b(b"x").digest() + hmac.digest(b"k", b"m", "sha1")) == 116


@control()
def sqlite_in_memory() -> bool:
    import sqlite3

    base = sqlite3.connect(":memory:")
    base.execute("create table t(a)")
    base.executemany("insert into t values (?)", [(n,) for n in range(100)])
    found = base.execute("select sum(a) from t").fetchone() == (4950,)
    base.close()
    return found


@control()
def decimals() -> bool:
    import decimal
    import fractions

    return str(decimal.Decimal("0.1") * 3) == "0.3" and fractions.Fraction(1, 3) * 3 == 1


@control()
def random_numbers() -> bool:
    import random
    import secrets

    return random.random() < 1 and len(secrets.token_bytes(16)) == 16 and len(os.urandom(4)) == 4


@control()
def time_zones() -> bool:
    import datetime
    import zoneinfo

    return datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")).utcoffset() is not None


@control()
def clocks() -> bool:
    import time

    return time.monotonic() > 0 and time.time() > 1e9 and time.process_time() >= 0 and bool(time.localtime())


@control()
def sleep() -> bool:
    import time

    time.sleep(0.001)
    return True


@control()
def regular_expressions() -> bool:
    import re

    return re.sub(r"(\w+) (\w+)", r"\2 \1", "a b") == "b a"


@control()
def pickles_of_its_own() -> bool:
    import pickle

    return bool(pickle.loads(pickle.dumps({"x": {1, 2}})) == {"x": {1, 2}})


@control()
def xml() -> bool:
    import xml.etree.ElementTree as tree

    return tree.fromstring("<a><b>1</b></a>").findtext("b") == "1"


@control()
def csv_text() -> bool:
    import csv
    import io

    return list(csv.reader(io.StringIO("a,b\n"))) == [["a", "b"]]


@control()
def uuids() -> bool:
    import uuid

    return uuid.uuid4() != uuid.uuid4()


@control()
def socket_pair() -> bool:
    import socket

    one, two = socket.socketpair()
    with one, two:
        one.sendall(b"x")
        return two.recv(1) == b"x"


@control()
def pipes() -> bool:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    found = os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)
    return found


@control()
def selectors_wait() -> bool:
    import selectors
    import socket

    one, two = socket.socketpair()
    with one, two, selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ)
        two.send(b"x")
        return len(selector.select(1)) == 1


@control()
def signals_to_oneself() -> bool:
    import signal

    found: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: found.append(number))
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    return found == [signal.SIGUSR1]


@control()
def alarms() -> bool:
    import signal

    found: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: found.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    signal.sigtimedwait([], 0.5) if not found else None
    signal.signal(signal.SIGALRM, before)
    return bool(found)


@control()
def anonymous_memory() -> bool:
    import mmap

    with mmap.mmap(-1, 1 << 20) as mapped:
        mapped[:4] = b"abcd"
        return mapped[:4] == b"abcd"


@control()
def c_functions() -> bool:
    import ctypes

    return bool(ctypes.CDLL(None).abs(-5) == 5)


@control()
def own_facts() -> bool:
    import platform
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    return os.getpid() > 0 and os.getuid() >= 0 and limits[0] > 0 and bool(platform.python_version())


@control()
def own_turn() -> bool:
    return len(os.sched_getaffinity(0)) > 0 and os.getpriority(os.PRIO_PROCESS, 0) >= 0 and os.getpgid(0) >= 0


@control()
def printing() -> bool:
    import sys

    print("printed")
    return sys.stdout.fileno() == 1


@control()
def logs() -> bool:
    import logging

    logging.getLogger("control").debug("nothing")
    return True


@control()
def warnings_and_tracebacks() -> bool:
    import traceback

    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        return "ZeroDivisionError" in traceback.format_exc()
    return False


@control()
def dataclass_and_enum() -> bool:
    import dataclasses
    import enum

    kind = enum.Enum("Kind", "A B")
    made = dataclasses.make_dataclass("Point", ["x", "y"])
    return bool(made(1, kind.A).y is kind.A)


@control()
def archives_in_memory() -> bool:
    import io
    import tarfile
    import zipfile

    with zipfile.ZipFile(io.BytesIO(), "w") as packed:
        packed.writestr("a", "b")
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as packed_tar:
        packed_tar.addfile(tarfile.TarInfo("a"))
    return True


@control()
def large_result() -> bytes:
    return b"x" * (4 << 20)


@control()
def deep_result() -> Any:
    value: Any = 1
    for _ in range(20):
        value = [value]
    return value


@control()
def every_kind_of_value() -> Any:
    import datetime
    import decimal
    import uuid

    return [
        1, -(2**70), 1.5, True, None, "text", b"bytes", (1, 2), {1, 2}, {"k": [1]}, 1 + 2j,
        datetime.datetime(2024, 1, 1), decimal.Decimal("1.5"), uuid.UUID(int=5),
    ]  # fmt: skip


@control("memory")
def an_array() -> Any:
    try:
        import numpy
    except ImportError:
        return True
    return numpy.linalg.inv(numpy.eye(50)) @ numpy.ones(50)


@control()
def reading_the_library() -> bool:
    import inspect

    return "def " in inspect.getsource(inspect)


@control()
def null_and_random_devices() -> bool:
    with open("/dev/null", "rb") as null, open("/dev/urandom", "rb") as source:
        return null.read(1) == b"" and len(source.read(4)) == 4


@control("fs:write")
def temporary_file() -> bool:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
        file.flush()
        return os.path.getsize(file.name) == 1


@control("fs:write")
def temporary_folder() -> bool:
    import shutil
    import tempfile

    folder = tempfile.mkdtemp()
    with open(folder + "/a", "w") as file:
        file.write("x")
    shutil.copy2(folder + "/a", folder + "/b")
    os.rename(folder + "/b", folder + "/c")
    found = sorted(os.listdir(folder)) == ["a", "c"]
    shutil.rmtree(folder)
    return found


@control("fs:write")
def sqlite_in_a_file() -> bool:
    import sqlite3
    import tempfile

    base = sqlite3.connect(tempfile.mkdtemp() + "/base")
    with base:
        base.execute("create table t(a)")
        base.execute("insert into t values (1)")
    found = base.execute("select a from t").fetchone() == (1,)
    base.close()
    return found


@control("process:exec")
def a_program() -> bool:
    import subprocess

    return subprocess.run(["/bin/echo", "x"], capture_output=True, check=True).stdout == b"x\n"


@control("process:exec")
def a_pipeline() -> bool:
    return os.popen("echo abc | tr a-c A-C").read() == "ABC\n"


@control("net:request", "net:listen")
def a_connection_to_oneself() -> bool:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"x")
            return peer.recv(1) == b"x"


@control("net:dns")
def a_query() -> bool:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(("127.0.0.1", 53))
        return made.getpeername()[1] == 53


@control("native:jit")
def a_callback_from_c() -> bool:
    import ctypes

    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda value: value + 1)
    return bool(compare(4) == 5)


def run(names: list[str]) -> dict[str, str]:
    """Run these controls; return what failed, with the reason."""
    failed = {}
    for name in names:
        try:
            value = CONTROLS[name][0]()
            if not (value.size if hasattr(value, "size") else value):
                failed[name] = repr(value)[:200]
        except BaseException as error:  # whatever it is, it is the answer
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def value(name: str) -> Any:
    """Return a control's value: values have to arrive, too."""
    return CONTROLS[name][0]()
