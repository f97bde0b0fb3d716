"""SandboxConfig: how a host wants its plugins' workers held, on top of capabilities and limits."""

import os
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Final, Self, final

from pydantic import BeforeValidator, Field, InstanceOf, field_validator

from ringfence.plugins.errors import SandboxViolation
from ringfence.plugins.model import Bytes, Flag, FrozenModel, Seconds
from ringfence.plugins.reach import NetPolicy, PathPolicy, Reach
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.requirement import NO_REQUIREMENT, Requirement, RequirementLike
from ringfence.sandbox.scopes import read_path, read_variable

__all__ = ["IsolationMode", "NamespaceConfig", "ResourceLimits", "SandboxConfig"]

_KERNEL_CAPABILITY: Final = re.compile(r"CAP_[A-Z][A-Z_]{1,30}", re.ASCII)


class IsolationMode(StrEnum):
    """Where a plugin runs.

    `SANDBOX`: in a process that locks itself in. `PROCESS`: in a process of its own that is held to its limits and
    nothing else: for code of yours that may crash. `IN_PROCESS`: in the host itself, which plugins never do; that is
    what extensions are for.
    """

    IN_PROCESS = "in-process"
    PROCESS = "process"
    SANDBOX = "sandbox"


@final
class NamespaceConfig(FrozenModel):
    """Which kernel namespaces a worker must have to itself.

    True: without it the plugin is not loaded. False: nobody insists; the worker has it all the same where the host can
    give it.
    """

    pid: Flag = False
    net: Flag = False
    mnt: Flag = False
    ipc: Flag = False
    uts: Flag = False
    user: Flag = False

    @property
    def demanded(self) -> tuple[str, ...]:
        """The names of those that are insisted on."""
        return tuple(name for name in type(self).model_fields if getattr(self, name))


@final
class ResourceLimits(FrozenModel):
    """Shares of the machine, as control groups count them; None leaves one alone.

    `memory_bytes`: bytes or text. `cpu_shares`: a weight out of 1024. `io_weight`: a weight from 1 to 10000, where 100
    is usual. Weights are no ceilings: see `SandboxConfig.best_effort`.
    """

    memory_bytes: Bytes | None = None
    cpu_shares: Annotated[int, Field(strict=True, ge=2, le=262144)] | None = None
    io_weight: Annotated[int, Field(strict=True, ge=1, le=10000)] | None = None


@final
class SandboxConfig(FrozenModel):
    """How plugins' workers are held: what they reach, what they use, and by what means.

    What they reach is narrowed to this, whatever the capabilities say; nothing by default. ``fs:read`` always reaches
    the plugin's own folder, ``fs:write`` a private scratch folder.

    Attributes:
        fs_read, fs_write: paths that plugins which hold ``fs:read`` or ``fs:write`` reach.
        net_outgoing: where plugins which hold ``net:request`` may connect to. net_incoming: the same for
            ``net:listen``, with entries such as ``":8080"``.
        env_vars: names of variables that plugins which hold ``env:read`` see.
        working_dir: the folder a plugin's code finds itself in; it must be one it may read.
        isolate_temp: each worker has a temporary folder of its own, which is gone with it. Always so; False is refused
            when a plugin is loaded.
        max_memory, timeout: ceilings, beside those of `Limits`.
        max_cpu_percent: of one processor, from 5; `Limits.cpu_share` by another name.
        isolation, trusted: see `IsolationMode`; PROCESS needs ``trusted=True`` too, so that no slip opens a sandbox.
        namespaces, resource_limits: see there.
        dropped_capabilities, kept_capabilities: of the kernel, ``CAP_...``. Workers keep none, whatever is said here.
        require: the least that must come true of the lock-in, else no plugin is loaded: a level (``"private"``,
            ``"confined"``, ``"limited"``), layers by name that must be there whole, or a list of such.
        best_effort: what cannot be enforced and is no boundary (shares of the machine) is reported, not refused.
    """

    fs_read: PathPolicy = PathPolicy()
    fs_write: PathPolicy = PathPolicy()
    net_outgoing: NetPolicy = NetPolicy()
    net_incoming: NetPolicy = NetPolicy()
    env_vars: tuple[str, ...] = ()
    working_dir: str | None = None
    isolate_temp: Flag = True
    max_memory: Bytes | None = None
    max_cpu_percent: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    timeout: Seconds | None = None
    isolation: IsolationMode = IsolationMode.SANDBOX
    trusted: Flag = False
    namespaces: NamespaceConfig = NamespaceConfig()
    resource_limits: ResourceLimits = ResourceLimits()
    dropped_capabilities: tuple[str, ...] = ()
    kept_capabilities: tuple[str, ...] = ()
    require: Annotated[InstanceOf[Requirement], BeforeValidator(Requirement.read)] = NO_REQUIREMENT
    best_effort: Flag = False

    @classmethod
    def locked(cls) -> "SandboxConfig":
        """Return the configuration under which nothing outside the worker is reached; the default."""
        return cls()

    @classmethod
    def permissive(cls) -> "SandboxConfig":
        """Return the configuration that leaves everything to the capabilities: all paths, all hosts."""
        return cls(
            fs_read=PathPolicy.allow_all(),
            fs_write=PathPolicy.allow_all(),
            net_outgoing=NetPolicy.allow_all(),
            net_incoming=NetPolicy.allow_all(),
        )

    @field_validator("env_vars")
    @classmethod
    def _variables(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(read_variable(name) for name in names))

    @field_validator("working_dir")
    @classmethod
    def _folder(cls, path: str | None) -> str | None:
        return None if path is None else read_path(path)

    @field_validator("dropped_capabilities", "kept_capabilities")
    @classmethod
    def _kernel_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _KERNEL_CAPABILITY.fullmatch(name):
                raise PolicyError(f"{name!r} is no capability of the kernel; they are written CAP_NET_ADMIN")
        return names

    # Questions that the host's own functions ask before they do something for a plugin.

    def can_read(self, path: "str | os.PathLike[str]") -> bool:
        """Whether `path` may be read."""
        return self.fs_read.allows(path)

    def can_write(self, path: "str | os.PathLike[str]") -> bool:
        """Whether `path` may be written."""
        return self.fs_write.allows(path)

    def can_connect(self, host: str, port: int | None = None) -> bool:
        """Whether a connection to `host` may be made; with no port given, to any port of it."""
        return self.net_outgoing.allows(host, port)

    def can_listen(self, port: int) -> bool:
        """Whether connections to `port` may be accepted."""
        return self.net_incoming.reach is Reach.ALLOW_ALL or f":{port}" in self.net_incoming.hosts

    def can_access_env(self, name: str) -> bool:
        """Whether the variable `name` may be read. None is by default."""
        return name in self.env_vars

    def check_read(self, path: "str | os.PathLike[str]") -> None:
        """Return if `path` may be read. Raises SandboxViolation otherwise."""
        _check(self.can_read(path), "read", path)

    def check_write(self, path: "str | os.PathLike[str]") -> None:
        """Return if `path` may be written. Raises SandboxViolation otherwise."""
        _check(self.can_write(path), "write", path)

    def check_connect(self, host: str, port: int | None = None) -> None:
        """Return if `host` may be connected to. Raises SandboxViolation otherwise."""
        _check(self.can_connect(host, port), "network", host if port is None else f"{host}:{port}")

    def check_env(self, name: str) -> None:
        """Return if the variable `name` may be read. Raises SandboxViolation otherwise."""
        _check(self.can_access_env(name), "environment", name)

    def for_plugin(self, folder: "str | os.PathLike[str] | None") -> "SandboxConfig":
        """Return the configuration as it holds for a plugin in `folder`, which it may read."""
        if folder is None or self.fs_read.reach in (Reach.ALLOW_ALL, Reach.DENY_LIST):
            return self
        return self._with(fs_read=PathPolicy.allow((*self.fs_read.paths, os.path.abspath(folder))))

    # Copies with one setting changed.

    def with_fs_read(self, policy: PathPolicy) -> Self:
        """Return a copy with another policy for reading."""
        return self._with(fs_read=policy)

    def with_fs_write(self, policy: PathPolicy) -> Self:
        """Return a copy with another policy for writing."""
        return self._with(fs_write=policy)

    def with_read_paths(self, paths: "Iterable[str | os.PathLike[str]]") -> Self:
        """Return a copy under which these trees may be read."""
        return self._with(fs_read=PathPolicy.allow(paths))

    def with_write_paths(self, paths: "Iterable[str | os.PathLike[str]]") -> Self:
        """Return a copy under which these trees may be written."""
        return self._with(fs_write=PathPolicy.allow(paths))

    def with_net_outgoing(self, policy: NetPolicy) -> Self:
        """Return a copy with another policy for connections made."""
        return self._with(net_outgoing=policy)

    def with_net_incoming(self, policy: NetPolicy) -> Self:
        """Return a copy with another policy for connections accepted."""
        return self._with(net_incoming=policy)

    def with_allowed_hosts(self, hosts: Iterable[str]) -> Self:
        """Return a copy under which these hosts may be connected to."""
        return self._with(net_outgoing=NetPolicy.allow(hosts))

    def with_env_vars(self, names: Iterable[str]) -> Self:
        """Return a copy under which these variables may be read."""
        return self._with(env_vars=tuple(names))

    def with_working_dir(self, folder: "str | os.PathLike[str] | None") -> Self:
        """Return a copy with another working folder."""
        return self._with(working_dir=None if folder is None else os.fspath(folder))

    def with_temp_isolation(self, isolate: bool) -> Self:
        """Return a copy with this said about temporary folders."""
        return self._with(isolate_temp=isolate)

    def with_max_memory(self, memory: int | str | None) -> Self:
        """Return a copy with another ceiling of memory, in bytes or as text."""
        return self._with(max_memory=memory)

    def with_max_cpu_percent(self, percent: float | None) -> Self:
        """Return a copy with another share of one processor."""
        return self._with(max_cpu_percent=percent)

    def with_timeout(self, timeout: object) -> Self:
        """Return a copy with another timeout of a call: seconds, a timedelta or text."""
        return self._with(timeout=timeout)

    def with_isolation(self, mode: IsolationMode, *, trusted: bool = False) -> Self:
        """Return a copy with another place to run."""
        return self._with(isolation=mode, trusted=trusted)

    def with_process_isolation(self, isolate: bool = True) -> Self:
        """Return a copy that runs plugins in sandboxed processes, or, when false, in the host: refused at load."""
        return self._with(isolation=IsolationMode.SANDBOX if isolate else IsolationMode.IN_PROCESS)

    def with_namespaces(self, namespaces: NamespaceConfig) -> Self:
        """Return a copy with other namespaces insisted on."""
        return self._with(namespaces=namespaces)

    def with_resource_limits(self, limits: ResourceLimits) -> Self:
        """Return a copy with other shares of the machine."""
        return self._with(resource_limits=limits)

    def drop_capabilities(self, names: Iterable[str]) -> Self:
        """Return a copy that names kernel capabilities to drop. Workers keep none anyway."""
        return self._with(dropped_capabilities=tuple(names))

    def keep_capabilities(self, names: Iterable[str]) -> Self:
        """Return a copy that names kernel capabilities to keep, which is refused when a plugin is loaded."""
        return self._with(kept_capabilities=tuple(names))

    def with_require(self, wanted: RequirementLike) -> Self:
        """Return a copy that insists on this level or these layers."""
        return self._with(require=wanted)

    def with_best_effort(self, best_effort: bool = True) -> Self:
        """Return a copy that reports, and does not refuse, shares of the machine that nothing here can enforce."""
        return self._with(best_effort=best_effort)


def _check(allowed: bool, what: str, target: object) -> None:
    if not allowed:
        raise SandboxViolation(f"{what} access denied: {target}")
