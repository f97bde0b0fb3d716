"""The settings of engines, loaders, registries and runtimes, as frozen models with `with_*` copies."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, final

from pydantic import AliasChoices, BeforeValidator, Field, InstanceOf, field_validator

from ringfence.plugins.approval import Approver, CallbackApprover
from ringfence.plugins.audit import AuditLevel
from ringfence.plugins.model import Count, Flag, FrozenModel, Seconds
from ringfence.plugins.profiles import HostProfile
from ringfence.plugins.profiles import profile as read_profile
from ringfence.plugins.restart import RestartPolicy
from ringfence.plugins.sandbox_config import SandboxConfig
from ringfence.plugins.versions import HOST_API_VERSION, ApiVersion
from ringfence.sandbox.capabilities import Capabilities, GrantLike
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits

__all__ = ["EngineConfig", "LoaderConfig", "RegistryConfig", "RuntimeConfig"]

# Counting instructions costs far more than running them: only who asks for it gets it.
_DEFAULT_LIMITS: Final = Limits.plugin_defaults().with_instructions(None)


def _capabilities(value: object) -> Capabilities:
    """Return a sealed copy: what the host granted is what it had in hand at this moment."""
    if isinstance(value, Capabilities):
        return value.sealed()
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PolicyError(f"Capabilities or a list of their names is needed, not {value!r}")
    return Capabilities(value).sealed()


def _limits(value: object) -> Limits:
    if isinstance(value, Limits):
        return value
    if isinstance(value, Mapping):
        return Limits.from_mapping(value)
    raise PolicyError(f"Limits or a table of them is needed, not {value!r}")


def _api_version(value: object) -> ApiVersion:
    if isinstance(value, ApiVersion):
        return value
    if isinstance(value, str):
        return ApiVersion.parse(value)
    raise PolicyError(f"an ApiVersion such as ApiVersion(0, 21, 0) is needed, not {value!r}")


def _approver(value: object) -> Approver | None:
    if value is None or isinstance(value, Approver):
        return value
    if callable(value):
        return CallbackApprover(value)
    raise PolicyError(f"an Approver, or a function that takes an ApprovalRequest, is needed, not {value!r}")


def _profile(value: object) -> HostProfile | None:
    return value if value is None or isinstance(value, HostProfile) else read_profile(value)  # type: ignore[arg-type]


@final
class EngineConfig(FrozenModel):
    """What a plugin's worker may do and use, at most.

    Attributes:
        capabilities: what plugins may be granted; nothing by default. A plugin gets of these what its manifest
            declares. A path of the file system needs a grant here that contains it (``fs:read=/data``) or a policy in
            `sandbox`; a plugin's own folder comes with ``fs:read``.
        limits: the ceilings. A manifest may ask for less.
        sandbox: what is reached and by what means; without one the capabilities alone decide.
        debug: each call, and each call of the host by a plugin, is logged at DEBUG level.
        metadata: words of the host's own.
    """

    capabilities: Annotated[Capabilities, BeforeValidator(_capabilities)] = Capabilities().sealed()
    limits: Annotated[InstanceOf[Limits], BeforeValidator(_limits)] = _DEFAULT_LIMITS
    sandbox: SandboxConfig | None = None
    debug: Flag = False
    metadata: Mapping[str, str] = Field(default_factory=dict)

    @classmethod
    def strict(cls) -> "EngineConfig":
        """Return settings for plugins that compute and do nothing else, within tight limits."""
        return cls(capabilities=Capabilities(), limits=Limits.strict(), sandbox=SandboxConfig.locked())

    @classmethod
    def permissive(cls) -> "EngineConfig":
        """Return settings under which a plugin gets whatever its manifest declares, without limits, still locked in."""
        return cls(capabilities=Capabilities.all(), limits=Limits.unlimited(), sandbox=SandboxConfig.permissive())

    def with_capabilities(self, capabilities: Iterable[GrantLike]) -> Self:
        """Return a copy with other capabilities; it holds a copy of the set."""
        return self._with(capabilities=capabilities)

    def with_limits(self, limits: Limits) -> Self:
        """Return a copy with other limits."""
        return self._with(limits=limits)

    def with_sandbox(self, sandbox: SandboxConfig | None) -> Self:
        """Return a copy with another sandbox."""
        return self._with(sandbox=sandbox)

    with_sandbox_config = with_sandbox

    def with_debug(self, debug: bool = True) -> Self:
        """Return a copy with debugging on or off."""
        return self._with(debug=debug)

    def with_metadata(self, metadata: Mapping[str, str]) -> Self:
        """Return a copy with other words of the host's own."""
        return self._with(metadata=dict(metadata))


@final
class LoaderConfig(FrozenModel):
    """How plugins are loaded.

    Attributes:
        host_api_version: the API that this host offers.
        engine_config: what plugins may do.
        manifest_dir: where relative manifest paths start; also written `base_path`.
        auto_start: a plugin that was loaded is RUNNING, else CREATED.
        strict_validation: unknown keys in a manifest are errors, else warnings.
        approval: who is asked about a plugin's capabilities: an Approver, or a function that takes an ApprovalRequest
            and returns an Approval or a bool. None: nobody, the capabilities here are the decision.
        lockfile: where decisions that are to last are kept. Without `approval`, only what stands there is loaded.
        compile_mode: "development" keeps line numbers and assertions, "production" optimises.
    """

    host_api_version: Annotated[InstanceOf[ApiVersion], BeforeValidator(_api_version)] = HOST_API_VERSION
    engine_config: EngineConfig = EngineConfig()
    manifest_dir: Path | None = Field(default=None, validation_alias=AliasChoices("manifest_dir", "base_path"))
    auto_start: Flag = True
    strict_validation: Flag = True
    approval: Annotated[Any, BeforeValidator(_approver)] = None
    lockfile: Path | None = None
    compile_mode: Literal["development", "production"] = "development"

    @classmethod
    def strict(cls) -> "LoaderConfig":
        """Return settings for production: a strict engine, optimised code, nothing started by itself."""
        return cls(engine_config=EngineConfig.strict(), auto_start=False, compile_mode="production")

    @property
    def base_path(self) -> Path | None:
        """The same as `manifest_dir`."""
        return self.manifest_dir

    def with_host_api_version(self, version: ApiVersion) -> Self:
        """Return a copy with another version of the host's API."""
        return self._with(host_api_version=version)

    def with_engine_config(self, engine: EngineConfig) -> Self:
        """Return a copy with another engine."""
        return self._with(engine_config=engine)

    def with_capabilities(self, capabilities: Iterable[GrantLike]) -> Self:
        """Return a copy whose engine has other capabilities."""
        return self._with(engine_config=self.engine_config.with_capabilities(capabilities))

    def with_limits(self, limits: Limits) -> Self:
        """Return a copy whose engine has other limits."""
        return self._with(engine_config=self.engine_config.with_limits(limits))

    def with_sandbox_config(self, sandbox: SandboxConfig | None) -> Self:
        """Return a copy whose engine has another sandbox."""
        return self._with(engine_config=self.engine_config.with_sandbox(sandbox))

    def with_manifest_dir(self, folder: "str | os.PathLike[str] | None") -> Self:
        """Return a copy with another folder for relative paths."""
        return self._with(manifest_dir=folder)

    with_base_path = with_manifest_dir

    def with_auto_start(self, auto_start: bool) -> Self:
        """Return a copy that starts plugins by itself, or does not."""
        return self._with(auto_start=auto_start)

    def with_strict_validation(self, strict: bool) -> Self:
        """Return a copy that refuses unknown keys, or warns."""
        return self._with(strict_validation=strict)

    def with_approval(self, approval: object) -> Self:
        """Return a copy that asks somebody else: an Approver, a function, or None for nobody."""
        return self._with(approval=approval)

    def with_lockfile(self, path: "str | os.PathLike[str] | None") -> Self:
        """Return a copy with another lock file."""
        return self._with(lockfile=path)

    def with_compile_mode(self, mode: Literal["development", "production"]) -> Self:
        """Return a copy that compiles in another way."""
        return self._with(compile_mode=mode)


@final
class RegistryConfig(FrozenModel):
    """What a registry holds.

    Attributes:
        max_plugins: how many plugins at most.
        allow_duplicates: a second registration of a name replaces the first, else it is refused; also written
            `allow_overwrite`.
        auto_unload_stopped: a plugin that was stopped is unloaded when room is needed for another.
    """

    max_plugins: Count = 100
    allow_duplicates: Flag = Field(
        default=False, validation_alias=AliasChoices("allow_duplicates", "allow_overwrite")
    )
    auto_unload_stopped: Flag = False

    @property
    def allow_overwrite(self) -> bool:
        """The same as `allow_duplicates`."""
        return self.allow_duplicates

    def with_max_plugins(self, count: int) -> Self:
        """Return a copy with another number of plugins."""
        return self._with(max_plugins=count)

    def with_allow_duplicates(self, allow: bool) -> Self:
        """Return a copy that replaces plugins of the same name, or refuses them."""
        return self._with(allow_duplicates=allow)

    with_allow_overwrite = with_allow_duplicates

    def with_auto_unload_stopped(self, unload: bool) -> Self:
        """Return a copy that unloads stopped plugins when room is needed, or does not."""
        return self._with(auto_unload_stopped=unload)


@final
class RuntimeConfig(FrozenModel):
    """How a runtime loads, calls and ends plugins. Times are seconds; timedeltas and texts such as "1.5s" are read.

    Attributes:
        loader_config, registry_config: see there.
        profile: a HostProfile, or the name of one; None leaves everything to the engine's settings.
        max_concurrent_calls: of all plugins together; further callers wait, and the wait counts against the timeout.
        call_timeout: for a call, unless it says otherwise; None for no end.
        load_timeout: for a plugin to come up. drain_timeout: for calls under way when a plugin is to stop.
        plugin_dirs, plugin_patterns, auto_discover: where plugins are looked for, by which file names, and whether at
            the start.
        restart_policy: what to do when a plugin's worker dies; None leaves a plugin crashed, and starts one again whose
            worker was killed because a call went beyond its limits.
        quarantine_file: where plugins that crash too often are noted, with the reason; None notes them in memory.
        audit_file: where uses of capabilities are written, one JSON object a line. audit_level: which of them; None
            leaves it to the profile.
    """

    loader_config: LoaderConfig = LoaderConfig()
    registry_config: RegistryConfig = RegistryConfig()
    profile: Annotated[HostProfile | None, BeforeValidator(_profile)] = None
    max_concurrent_calls: Count = 100
    call_timeout: Seconds | None = 30.0
    load_timeout: Seconds = 30.0
    drain_timeout: Seconds = 10.0
    plugin_dirs: tuple[Path, ...] = ()
    plugin_patterns: tuple[str, ...] = ("*.toml", "plugin.toml")
    auto_discover: Flag = False
    restart_policy: RestartPolicy | None = None
    quarantine_file: Path | None = None
    audit_file: Path | None = None
    audit_level: AuditLevel | None = None

    @field_validator("plugin_dirs", "plugin_patterns", mode="before")
    @classmethod
    def _no_lone_text(cls, value: object) -> object:
        if isinstance(value, str | os.PathLike):
            raise PolicyError(f"a list is needed, not {value!r}")
        return value

    def with_loader_config(self, config: LoaderConfig) -> Self:
        """Return a copy that loads in another way."""
        return self._with(loader_config=config)

    def with_registry_config(self, config: RegistryConfig) -> Self:
        """Return a copy with another registry."""
        return self._with(registry_config=config)

    def with_profile(self, profile: HostProfile | str | None) -> Self:
        """Return a copy under another profile."""
        return self._with(profile=profile)

    def with_max_concurrent_calls(self, count: int) -> Self:
        """Return a copy with another number of calls at once."""
        return self._with(max_concurrent_calls=count)

    def with_call_timeout(self, timeout: object) -> Self:
        """Return a copy with another timeout of calls: seconds, a timedelta, text, or None for no end."""
        return self._with(call_timeout=timeout)

    def with_load_timeout(self, timeout: object) -> Self:
        """Return a copy with another timeout for plugins to come up."""
        return self._with(load_timeout=timeout)

    def with_drain_timeout(self, timeout: object) -> Self:
        """Return a copy with another time for calls under way when a plugin is to stop."""
        return self._with(drain_timeout=timeout)

    def with_plugin_dirs(self, folders: "Iterable[str | os.PathLike[str]]") -> Self:
        """Return a copy that looks for plugins in other folders."""
        return self._with(plugin_dirs=folders if isinstance(folders, str) else tuple(folders))

    def with_plugin_dir(self, folder: "str | os.PathLike[str]") -> Self:
        """Return a copy that looks in one folder more."""
        return self._with(plugin_dirs=(*self.plugin_dirs, Path(folder)))

    def with_plugin_patterns(self, patterns: Iterable[str]) -> Self:
        """Return a copy that looks for files of other names."""
        return self._with(plugin_patterns=patterns if isinstance(patterns, str) else tuple(patterns))

    def with_auto_discover(self, discover: bool = True) -> Self:
        """Return a copy that looks for plugins at the start, or does not."""
        return self._with(auto_discover=discover)

    def with_restart_policy(self, policy: RestartPolicy | None) -> Self:
        """Return a copy that does something else about crashes."""
        return self._with(restart_policy=policy)

    def with_quarantine_file(self, path: "str | os.PathLike[str] | None") -> Self:
        """Return a copy that keeps the names of plugins that crash too often elsewhere."""
        return self._with(quarantine_file=path)

    def with_audit_file(self, path: "str | os.PathLike[str] | None") -> Self:
        """Return a copy that writes its audit log elsewhere."""
        return self._with(audit_file=path)

    def with_audit_level(self, level: AuditLevel | None) -> Self:
        """Return a copy that records other events."""
        return self._with(audit_level=level)
