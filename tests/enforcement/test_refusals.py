"""Refusals that explain: whatever refused, however it arrives, authors read what was needed, at their own line."""

import _queue
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pool_tasks as tasks
import pytest
from scenario_plugins import write_plugin

from ringfence import CapabilityDenied, MemoryExceeded, PluginRuntime, Pool
from ringfence.sandbox.features import probe

pytestmark = pytest.mark.as_user

_HIDES = "mnt" in probe().namespaces


@pytest.fixture
def pool() -> Iterator[Pool]:
    """One worker that may read one folder."""
    with Pool(1, capabilities=["fs:read=/usr/share/doc"]) as made:
        yield made


# What the author wrote, and what the sentence says. The line that is to blame is the last one.
_DENIED = {
    "open": (
        "open('/etc/passwd')", "open('/etc/passwd') needs fs:read=/etc/passwd; this worker has fs:read=/usr/share/doc",
    ),
    "open to write": (
        "open('/srv/x', 'w')", "open('/srv/x') needs fs:write=/srv/x; this worker has nothing of the kind",
    ),
    "pathlib": ("import pathlib\npathlib.Path('/etc/passwd').read_text()", "needs fs:read=/etc/passwd"),
    "numpy": ("import numpy\nnumpy.fromfile('/etc/passwd')", "needs fs:read=/etc/passwd"),
    "listdir": ("import os\nos.listdir('/etc')", "os.listdir('/etc') needs fs:read=/etc"),
    "remove": ("import os\nos.remove('/etc/passwd')", "os.remove('/etc/passwd') needs fs:delete=/etc/passwd"),
    "sqlite3": ("import sqlite3\nsqlite3.connect('/srv/x.db')", "sqlite3.connect('/srv/x.db') needs fs:read=/srv/x.db"),
    "sqlite3, own": ("import sqlite3\nsqlite3.connect('x.db')", "sqlite3.connect('x.db') needs fs:write;"),
    "ctypes": ("import ctypes\nctypes.CDLL('/srv/x.so')", "ctypes.CDLL('/srv/x.so') needs fs:read=/srv/x.so"),
    "tempfile": ("import tempfile\ntempfile.TemporaryFile()", "tempfile needs fs:write"),
    # Not root: the C library may know of it without any file (nss-systemd).
    "pwd": ("import pwd\npwd.getpwuid(1)", "pwd.getpwuid needs fs:read=/etc/passwd"),
    "grp": ("import grp\ngrp.getgrnam('daemon')", "grp.getgrnam needs fs:read=/etc/group"),
    "look-up": ("import socket\nsocket.getaddrinfo('example.com', 80)", "'example.com') needs net:dns"),
    "asyncio": (
        "import asyncio\nasyncio.run(asyncio.open_connection('example.com', 80))", "'example.com') needs net:dns",
    ),
    "another thread": (
        "import asyncio\nasyncio.run(asyncio.to_thread(open, '/etc/passwd'))", "needs fs:read=/etc/passwd",
    ),
    "connection": ("import socket\nsocket.create_connection(('192.0.2.1', 80))", "needs net:request"),
    "setsockopt": ("import socket\nsocket.socketpair()[0].setsockopt(1, 1, 1)", "socket.setsockopt needs net:request"),
    "program": (
        "import subprocess\nsubprocess.run(['/usr/bin/env'])",
        "('/usr/bin/env') needs process:exec=/usr/bin/env",  # of Popen; from Python 3.13 on, of os.posix_spawn below it
    ),
    "posix_spawn": (
        "import os\nos.posix_spawn('/bin/ls', ['ls'], {})", "os.posix_spawn('/bin/ls') needs process:exec",
    ),
    "fork": ("import os\nos.fork()", "os.fork needs process:exec"),
    "multiprocessing": (
        "import multiprocessing\nmultiprocessing.Lock()", "multiprocessing.Lock needs process:exec",
    ),
    "wait": ("import os\nos.waitpid(-1, 0)", "os.waitpid needs process:exec"),
    "nice": ("import os\nos.nice(5)", "no capability changes how the kernel schedules a worker"),
    "affinity": ("import os\nos.sched_setaffinity(0, {0})", "os.sched_setaffinity needs a trusted profile"),
    "setrlimit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))", "resource.setrlimit needs a",
    ),
    "memfd": ("import os\nos.memfd_create('x')", "the kernel is an older one"),
    "executable memory": ("import mmap\nmmap.mmap(-1, 4096, prot=7)", "mmap.mmap needs native:jit"),
    "mkfifo": ("import os\nos.mkfifo('x')", "no capability makes special files"),
    "openpty": ("import os\nos.openpty()", "no capability opens terminals"),
    "setuid": ("import os\nos.setuid(0)", "no capability makes a worker another user"),
}  # fmt: skip
_HIDDEN = {
    "stat": ("import os\nos.stat('/etc/passwd')", "os.stat('/etc/passwd') needs fs:read=/etc/passwd"),
    "getsize": ("import os\nos.path.getsize('/etc/passwd')", "os.stat('/etc/passwd') needs fs:read=/etc/passwd"),
    "readlink": ("import os\nos.readlink('/etc/mtab')", "os.readlink('/etc/mtab') needs fs:read=/etc/mtab"),
    "chdir": ("import os\nos.chdir('/srv/no')", "os.chdir('/srv/no') needs fs:read=/srv/no"),
    "not there either": ("open('/no/such/file')", "open('/no/such/file') needs fs:read=/no/such/file"),
    "a process": ("open('/proc/self/status')", "a worker sees no processes in /proc"),
}  # fmt: skip
# These keep their type, because the author may have given it a meaning; a note says what was refused.
_NOTED = {
    "made of a refusal": (
        "try:\n    open('/srv/x', 'w')\nexcept OSError as error:\n    raise ValueError('no') from error",
        ValueError, "the sandbox refused: open('/srv/x') needs fs:write=/srv/x",
    ),
    "urllib": (
        "import urllib.request\nurllib.request.urlopen('http://example.com')", Exception,
        "the sandbox refused: socket.getaddrinfo('example.com') needs net:dns",
    ),
    "a group": (
        "try:\n    open('/srv/x', 'w')\nexcept OSError as error:\n    raise ExceptionGroup('all', [error])",
        ExceptionGroup, "the sandbox refused: open('/srv/x') needs fs:write=/srv/x",
    ),
    "an errno of one's own": (
        "raise PermissionError(1, 'my own system call')", PermissionError, "the kernel refused this (EPERM)"
    ),
    "threads": (
        "import threading, time\nthreading.stack_size(1 << 16)\nfor _ in range(500):\n"
        "    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()",
        RuntimeError, "this worker may have 64 processes and threads",
    ),
    "the user's name": (
        "import getpass\ngetpass.getuser()", Exception, "runs as a user of its own",
    ),
}  # fmt: skip
# Nothing here is the sandbox's doing.
_ORDINARY = {
    "relative": "open('no-such-file')",
    "granted": "open('/usr/share/doc/no-such-file')",
    "the interpreter's": "import os\nopen(os.path.dirname(os.__file__) + '/no-such-file')",
    "handled": "try:\n    open('/etc/ringfence.conf')\nexcept FileNotFoundError:\n    pass\n{}['key']",
    "exists": "import os\nresult = os.path.exists('/etc/passwd')\n1 / 0",
    "one's own": "raise FileNotFoundError('/etc/passwd is what I wanted')",
}


# Ways to make a callback for C code.
_CALLBACKS = {
    "at once": "ctypes.CFUNCTYPE(None)(print)",
    "by a name": "made = ctypes.PYFUNCTYPE(None)\nmade(print)",
    "by a member": "class C:\n    made = ctypes.CFUNCTYPE(None)\nc = C()\nc.made(print)",
    "of its own attributes": "class C: pass\nc = C()\nc.made = ctypes.CFUNCTYPE(None)\nc.made(print)",
    "by a module": "import types\nm = types.ModuleType('m')\nm.made = ctypes.CFUNCTYPE(None)\nm.made(*[print])",
    "of a class": "class C(ctypes._CFuncPtr):\n    _flags_, _restype_, _argtypes_ = 1, None, ()\nC(print)",
    "decorated": "made = ctypes.CFUNCTYPE(None)\n@made\ndef f(): pass",
    "in a function": "def f(made):\n    return made(print)\nf(ctypes.CFUNCTYPE(None))",
}
# These may be one, or may not.
_UNSURE = {
    "an item": "made = [ctypes.CFUNCTYPE(None)]\nmade[0](print)",
    "by C code": "made = ctypes.CFUNCTYPE(None)\nlist(map(made, [print]))",
}
_WORKS = "import ctypes\n{}\nresult = 'made'"


def _line_of(source: str) -> str:
    return f'"author.py", line {source.count(chr(10)) + 1}, in'


def test_refusals_are_explained_at_their_line(pool: Pool) -> None:
    """CapabilityDenied, whatever it was inside, with the grant, and how to give it, and the author's own line."""
    for name, (source, said) in _DENIED.items():
        error = pool.submit(tasks.author, source).exception(30)
        assert isinstance(error, CapabilityDenied), (name, error)
        assert said in str(error), name
        lifted = error.needs != "a trusted profile" and "only at level private" not in str(error)
        assert not lifted or f'capabilities=["{error.needs}"]' in error.__notes__[0], name
        assert error.granted == (("fs:read=/usr/share/doc",) if error.capability == "fs:read" else ()), name
        assert _line_of(source) in str(error.__cause__), (name, error.__cause__)
        assert "/ringfence/worker/" not in str(error.__cause__), (name, error.__cause__)


@pytest.mark.skipif(not _HIDES, reason="needs a private root")
def test_hidden_paths_are_explained_like_refused_ones(pool: Pool) -> None:
    """In the same words whether they exist outside or not: they are no oracle."""
    for name, (source, said) in _HIDDEN.items():
        error = pool.submit(tasks.author, source).exception(30)
        assert isinstance(error, CapabilityDenied), (name, error)
        assert said in str(error), name
        assert "FileNotFoundError: [Errno 2]" in str(error.__cause__), name
        assert _line_of(source) in str(error.__cause__), (name, error.__cause__)


def test_what_keeps_its_type_gets_a_note(pool: Pool) -> None:
    """A library's own exception, a limit, a refusal that nothing is known of."""
    for name, (source, kind, said) in _NOTED.items():
        error = pool.submit(tasks.author, source).exception(30)
        assert isinstance(error, kind) and not isinstance(error, CapabilityDenied), (name, error)
        assert any(said in note for note in error.__notes__), (name, error.__notes__)
        if said.startswith("the sandbox refused: "):
            denied = error.__context__
            assert isinstance(denied, CapabilityDenied), name
            assert f'grant it with capabilities=["{denied.needs}"]' in error.__notes__[0], name


def test_a_callback_for_c_code_is_no_lack_of_memory(pool: Pool) -> None:
    """ctypes says MemoryError: it is native:jit that lacks, unless this libffi does without; and all works with it."""
    is_refused = pool.submit(tasks.author, "import ctypes\nctypes.CFUNCTYPE(None)(print)").exception(30) is not None
    for name, line in (_CALLBACKS | _UNSURE).items():
        error = pool.submit(tasks.author, _WORKS.format(line)).exception(30)
        if not is_refused:
            assert error is None, (name, error)
        elif name in _CALLBACKS:
            assert isinstance(error, CapabilityDenied), (name, error)
            assert "ctypes.CFUNCTYPE needs native:jit; this worker has nothing of the kind" in str(error), name
            assert "memory that is both written and run" in str(error), name
            assert error.__notes__ == ['grant it with capabilities=["native:jit"]'], name
            assert "MemoryError" in str(error.__cause__), name
        else:
            assert isinstance(error, MemoryExceeded), (name, error)
            assert "needs native:jit, which this worker lacks" in error.__notes__[0], name
    with Pool(1, capabilities=["native:jit"]) as made:
        for name, line in (_CALLBACKS | _UNSURE).items():
            assert made.submit(tasks.author, _WORKS.format(line)).result(30) == "made", name


def _with_executable_stack(library: str, path: Path) -> None:
    """Copy a 64-bit shared object; the copy's PT_GNU_STACK asks for a stack that code is run from."""
    made = bytearray(Path(library).read_bytes())
    (at,), (size, count) = struct.unpack_from("<Q", made, 32), struct.unpack_from("<HH", made, 54)
    for header in range(at, at + size * count, size):
        if struct.unpack_from("<I", made, header)[0] == 0x6474E551:
            struct.pack_into("<I", made, header + 4, 7)
    path.write_bytes(made)


@pytest.mark.skipif(not hasattr(_queue, "__file__"), reason="this interpreter has no extension modules as files")
def test_a_library_that_wants_its_stack_run_is_told_of(everyones: Path) -> None:
    """With the grant that lets it, where the C library lets it; as something to load, and as a module."""
    everyones.chmod(0o755)
    _with_executable_stack(_queue.__file__, everyones / "_queue.so")
    lines = {
        "ctypes.CDLL": f"import ctypes\nctypes.CDLL({str(everyones / '_queue.so')!r})",
        "import": f"import sys\nsys.path.insert(0, {str(everyones)!r})\nimport _queue",
    }
    reading = f"fs:read={everyones}"
    with Pool(1, capabilities=[reading]) as pool, Pool(1, capabilities=[reading, "native:jit"]) as granted:
        for operation, source in lines.items():
            lifted = granted.submit(tasks.author, source).exception(30)
            if lifted is not None:  # from glibc 2.41 on no library gets such a stack any more
                assert "executable stack" in str(lifted) and not isinstance(lifted, CapabilityDenied)
                continue
            error = pool.submit(tasks.author, source).exception(30)
            assert isinstance(error, CapabilityDenied) and error.needs == "native:jit", error
            assert f"{operation}('{everyones}/_queue.so') needs native:jit" in str(error)
            assert "an executable stack" in str(error)


def test_a_lack_of_memory_is_no_callback(pool: Pool) -> None:
    """Whoever has loaded ctypes and asks for too much, of a text of its own or of none, is told so."""
    for line in ("raise MemoryError", "import numpy\nnumpy.ones(1 << 28)"):
        error = pool.submit(tasks.author, f"import ctypes\n{line}").exception(30)
        assert isinstance(error, MemoryExceeded) and not getattr(error, "__notes__", []), (line, error)
    error = pool.submit(tasks.author, "import ctypes\nbytearray(1 << 30)").exception(30)
    assert isinstance(error, MemoryExceeded) and "more than its 256 MiB" in str(error)


def test_what_is_not_the_sandboxs_doing_stays_as_it_is(pool: Pool) -> None:
    """No other type, no note."""
    for name, source in _ORDINARY.items():
        error = pool.submit(tasks.author, source).exception(30)
        assert error is not None and not isinstance(error, CapabilityDenied), name
        assert not getattr(error, "__notes__", []), name


def test_with_the_grant_the_same_line_works(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the sentence names is enough."""
    lines = "import os, pwd, tempfile, sqlite3, mmap\nopen('/etc/passwd').close(); os.stat('/etc/passwd')\n"
    lines += "pwd.getpwuid(0); mmap.mmap(-1, 4096, prot=7)\n"
    folder = "tempfile.TemporaryFile(); sqlite3.connect('x.db').execute('create table t (a)')\nresult = os.listdir('.')"
    with Pool(1, capabilities=["fs:read=/etc/passwd", "fs:write", "native:jit"]) as pool:
        if _HIDES:
            assert pool.submit(tasks.author, lines + folder).result(30) == ["x.db"]
        else:  # there is no folder to bring
            assert pool.submit(tasks.author, lines).exception(30) is None
            assert "no private folder" in next(iter(pool.reports().values()))["namespaces"].detail
            error = pool.submit(tasks.author, "import tempfile\ntempfile.TemporaryFile()").exception(30)
            assert isinstance(error, FileNotFoundError) and "grant fs:write=FOLDER" in error.__notes__[0]


def test_plugins_are_told_in_their_own_words(everyones: Path) -> None:
    """Whose grants they are, and how its author asks for what is missing; of its own folder, the unscoped grant."""
    everyones.chmod(0o755)
    folder = everyones / "plugin"
    write_plugin(folder, "def look(path):\n    return open(path).read()\n", name="p", exports=["look"])
    with PluginRuntime() as runtime:
        plugin = runtime.load(folder)
        with pytest.raises(CapabilityDenied) as caught:
            plugin.call("look", ["/etc/passwd"])
        assert "open('/etc/passwd') needs fs:read=/etc/passwd; this plugin has nothing of the kind" in str(caught.value)
        assert 'scopes = { "fs:read" = ["/etc/passwd"] }' in caught.value.__notes__[0]
        assert 'main.py", line 2, in look' in str(caught.value.__cause__)
        with pytest.raises(CapabilityDenied, match=r"needs fs:read; this plugin has nothing"):
            plugin.call("look", [str(folder / "plugin.toml")])
        assert runtime.audit.events("p", allowed=False)[0].target == "/etc/passwd"


def test_a_plugins_callback_is_no_lack_of_memory(everyones: Path) -> None:
    """As in a pool: it is told what its manifest lacks, or its libffi does without."""
    everyones.chmod(0o755)
    source = "import ctypes\n\ndef make():\n    ctypes.CFUNCTYPE(None)(print)\n    return 'made'\n"
    source += "\ndef hold():\n    bytearray(1 << 40)\n"
    write_plugin(everyones / "plugin", source, name="p", exports=["make", "hold"])
    with PluginRuntime() as runtime:
        plugin = runtime.load(everyones / "plugin")
        with pytest.raises(MemoryExceeded):
            plugin.call("hold")
        try:
            assert plugin.call("make") == "made"
        except CapabilityDenied as denied:
            assert "ctypes.CFUNCTYPE needs native:jit; this plugin has nothing of the kind" in str(denied)
            assert denied.__notes__ and "native:jit" in denied.__notes__[0]


def test_a_plugin_that_has_something_else_is_told_what(everyones: Path) -> None:
    """In these words, and, from the command, with the author's own line and no frame of ours."""
    everyones.chmod(0o755)
    write_plugin(
        everyones / "plugin", "def look():\n    return open('/etc/passwd').read()\n", name="p", exports=["look"],
        capabilities=["fs:read"], more='[scopes]\n"fs:read" = ["/usr/share/doc"]',
    )  # fmt: skip
    command = [sys.executable, "-c", "from ringfence.cli import main; main()", "plugin", "call", "./plugin", "look"]
    ended = subprocess.run(
        [*command, "--yes", "--store", str(everyones / "store")],
        cwd=everyones, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = "open('/etc/passwd') needs fs:read=/etc/passwd; this plugin has fs:read=/usr/share/doc\n"
    assert ended.returncode == 1
    assert f"CapabilityDenied: {said}" in ended.stderr and f"ringfence: {said}" in ended.stderr
    assert 'main.py", line 2, in look' in ended.stderr and "/ringfence/worker/" not in ended.stderr
