"""Which capabilities a source seems to need, by the modules it imports and the names it uses: a hint, never a grant."""

from collections.abc import Iterable, Mapping
from typing import Final

from ringfence.sandbox.capabilities import Capability

__all__ = ["suggest_capabilities"]

_C = Capability

# By module or dotted name; what lies below one of these is meant too.
_HINTS: Final[Mapping[str, tuple[Capability, ...]]] = {
    "builtins.open": (_C.FS_READ,),
    "builtins.input": (_C.STDIN_READ,),
    "builtins.print": (_C.STDOUT_WRITE,),
    "io.open": (_C.FS_READ,),
    "fileinput": (_C.FS_READ,),
    "glob": (_C.FS_READ,),
    "linecache": (_C.FS_READ,),
    "mmap": (_C.FS_READ,),
    "os.listdir": (_C.FS_READ,),
    "os.open": (_C.FS_READ,),
    "os.scandir": (_C.FS_READ,),
    "os.walk": (_C.FS_READ,),
    "pathlib.Path": (_C.FS_READ,),
    "sqlite3": (_C.FS_READ, _C.FS_WRITE, _C.FS_DELETE),
    "tarfile": (_C.FS_READ,),
    "zipfile": (_C.FS_READ,),
    "os.makedirs": (_C.FS_WRITE,),
    "os.mkdir": (_C.FS_WRITE,),
    "os.rename": (_C.FS_WRITE,),
    "os.replace": (_C.FS_WRITE,),
    "shutil": (_C.FS_READ, _C.FS_WRITE),
    "tempfile": (_C.FS_WRITE, _C.FS_DELETE),
    "os.remove": (_C.FS_DELETE,),
    "os.rmdir": (_C.FS_DELETE,),
    "os.unlink": (_C.FS_DELETE,),
    "shutil.rmtree": (_C.FS_DELETE,),
    "os.path.getsize": (_C.FS_METADATA,),
    "os.stat": (_C.FS_METADATA,),
    "os.chmod": (_C.FS_METADATA,),
    "os.utime": (_C.FS_METADATA,),
    "aiohttp": (_C.NET_REQUEST, _C.NET_DNS),
    "ftplib": (_C.NET_REQUEST, _C.NET_DNS),
    "http.client": (_C.NET_REQUEST, _C.NET_DNS),
    "http.server": (_C.NET_LISTEN,),
    "httpx": (_C.NET_REQUEST, _C.NET_DNS),
    "imaplib": (_C.NET_REQUEST, _C.NET_DNS),
    "poplib": (_C.NET_REQUEST, _C.NET_DNS),
    "requests": (_C.NET_REQUEST, _C.NET_DNS),
    "smtplib": (_C.NET_REQUEST, _C.NET_DNS),
    "socket": (_C.NET_REQUEST, _C.NET_DNS),
    "socketserver": (_C.NET_LISTEN,),
    "ssl": (_C.NET_REQUEST,),
    "urllib.request": (_C.NET_REQUEST, _C.NET_DNS),
    "urllib3": (_C.NET_REQUEST, _C.NET_DNS),
    "wsgiref.simple_server": (_C.NET_LISTEN,),
    "xmlrpc.client": (_C.NET_REQUEST, _C.NET_DNS),
    "concurrent.futures.ProcessPoolExecutor": (_C.PROCESS_EXEC,),
    "multiprocessing": (_C.PROCESS_EXEC,),
    "os.fork": (_C.PROCESS_EXEC,),
    "os.popen": (_C.PROCESS_EXEC,),
    "os.posix_spawn": (_C.PROCESS_EXEC,),
    "os.system": (_C.PROCESS_EXEC,),
    "pty": (_C.PROCESS_EXEC,),
    "subprocess": (_C.PROCESS_EXEC,),
    "os.environ": (_C.ENV_READ,),
    "os.getenv": (_C.ENV_READ,),
    "os.putenv": (_C.ENV_WRITE,),
    "os.unsetenv": (_C.ENV_WRITE,),
    "datetime": (_C.TIME_READ,),
    "time": (_C.TIME_READ,),
    "numpy.random": (_C.RANDOM,),
    "os.urandom": (_C.RANDOM,),
    "random": (_C.RANDOM,),
    "secrets": (_C.RANDOM,),
    "uuid": (_C.RANDOM,),
    "sys.stdin": (_C.STDIN_READ,),
    "sys.stdout": (_C.STDOUT_WRITE,),
    "sys.stderr": (_C.STDERR_WRITE,),
    "logging": (_C.LOGGING,),
    "asyncio": (_C.ASYNC_SPAWN,),
    "concurrent.futures": (_C.ASYNC_SPAWN,),
    "threading": (_C.ASYNC_SPAWN,),
    "hashlib": (_C.CRYPTO,),
    "hmac": (_C.CRYPTO,),
    "cryptography": (_C.CRYPTO,),
    "json": (_C.SERIALIZE,),
    "marshal": (_C.SERIALIZE,),
    "msgpack": (_C.SERIALIZE,),
    "pickle": (_C.SERIALIZE,),
    "numba": (_C.NATIVE_JIT,),
    "torch": (_C.NATIVE_JIT,),
}


def suggest_capabilities(imports: Iterable[str], used: Iterable[str] = ()) -> tuple[Capability, ...]:
    """Return the capabilities that these imported modules and used dotted names hint at, sorted."""
    found: set[Capability] = set()
    for name in {*imports, *used}:
        # Each of a, a.b, a.b.c: what is said of a package holds for what is in it.
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            found.update(_HINTS.get(".".join(parts[:end]), ()))
    return tuple(sorted(found))
