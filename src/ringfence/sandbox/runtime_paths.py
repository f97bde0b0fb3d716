"""What an interpreter must be able to read to go on running, computed for this one."""

import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from typing import Final, final

from ringfence.records import dataclass
from ringfence.sandbox.kernel_trees import DEVICES

__all__ = ["RuntimePaths", "runtime_paths"]

# With these, 31 kinds of pure workload ran on CPython 3.11 to 3.13. Shared objects, the loader's cache, time
# zones, and the number of processors, which NumPy's threads ask for.
_SYSTEM: Final = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/ssl/openssl.cnf",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/possible",
)
_NAME_SERVICE: Final = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/gai.conf",
    "/etc/ssl/certs",
    "/usr/share/ca-certificates",
    "/etc/pki",
)
_PROGRAMS: Final = ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/etc/alternatives")
_LOADERS: Final = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimePaths:
    """Paths that are readable under every policy, and those that come with a capability.

    Attributes:
        read: for every worker.
        network: for workers that may use the network: name service and certificates.
        programs: for workers that may start any program.
        loaders: the dynamic loaders, which the kernel executes with every program.
        devices: harmless device files.
        closed: the members of `read` that an unprivileged user cannot reach or read.
        top: what lies in the root of the file system.
        sealed: where those of `closed` lead that could not be read even if they could be reached.
    """

    read: tuple[str, ...]
    network: tuple[str, ...] = _NAME_SERVICE
    programs: tuple[str, ...] = _PROGRAMS
    loaders: tuple[str, ...] = _LOADERS
    devices: tuple[str, ...] = DEVICES
    closed: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()
    top: tuple[str, ...] = ()


def runtime_paths(extra: Iterable[str] = ()) -> RuntimePaths:
    """Return the paths for this interpreter and this installation of ringfence.

    Args:
        extra: more absolute paths that every worker may read, such as folders on `sys.path`.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    base = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    found = [
        base["stdlib"],
        base["platstdlib"],
        *_shared_library(),
        os.path.join(sys.base_prefix, "lib"),  # with shared objects that the library's and NumPy's need, as of conda
        *_site_folders(),
        package,
        *extra,
        *_SYSTEM,
    ]
    read = _outermost(path for path in found if os.path.exists(path))
    closed = tuple(path for path in read if not _open_to_all(path))
    sealed = tuple(real for real in map(os.path.realpath, closed) if not _readable_by_all(real))
    top = tuple(f"/{name}" for name in sorted(os.listdir("/")))
    return RuntimePaths(read=read, closed=closed, sealed=sealed, top=top)


def _site_folders() -> list[str]:
    folders = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    return [*folders, *site.getsitepackages(), site.getusersitepackages()]


def _shared_library() -> list[str]:
    """Return libpython's folder and the interpreter's own shared objects, where they are not the system's."""
    folder = sysconfig.get_config_var("LIBDIR") or ""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    return [os.path.join(folder, name)] if name.startswith("libpython") and ".so" in name else []


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the absolute paths without those that lie below another one, in a stable order."""
    kept: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths}):
        if not any(path.startswith(outer + "/") for outer in kept):
            kept.append(path)
    return tuple(kept)


def _open_to_all(path: str) -> bool:
    """Say whether every user can walk to ``path`` and read it."""
    real = os.path.realpath(path)
    if not _readable_by_all(real):
        return False
    while real != "/":
        real = os.path.dirname(real)
        if not os.stat(real).st_mode & 0o001:
            return False
    return True


def _readable_by_all(real: str) -> bool:
    mode = os.stat(real).st_mode
    return bool(mode & 0o004) and (not os.path.isdir(real) or bool(mode & 0o001))
