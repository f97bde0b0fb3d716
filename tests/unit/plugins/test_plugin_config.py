"""The configuration models: spellings, copies, and what is refused."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins import profiles
from ringfence.plugins.approval import Approval, CallbackApprover, DenyAll
from ringfence.plugins.audit import AuditLevel
from ringfence.plugins.config import EngineConfig, LoaderConfig, RegistryConfig, RuntimeConfig
from ringfence.plugins.errors import InvalidConfig, UnknownCapability
from ringfence.plugins.restart import RestartPolicy
from ringfence.plugins.sandbox_config import SandboxConfig
from ringfence.plugins.versions import HOST_API_VERSION, ApiVersion
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits


def test_the_configuration_of_the_guide_reads_as_printed() -> None:
    """The example of the compatible host's guide builds what it says."""
    config = (
        LoaderConfig()
        .with_host_api_version(ApiVersion(0, 18, 0))
        .with_engine_config(
            EngineConfig()
            .with_capabilities(Capabilities.safe_defaults())
            .with_limits(Limits(max_memory=10 * 1024 * 1024, max_call_depth=100, max_instructions=1_000_000))
        )
        .with_manifest_dir("plugins/")
    )
    runtime = (
        RuntimeConfig()
        .with_loader_config(config)
        .with_registry_config(RegistryConfig().with_max_plugins(50).with_allow_duplicates(False))
        .with_max_concurrent_calls(100)
        .with_call_timeout(timedelta(seconds=30))
    )
    assert runtime.loader_config.host_api_version == ApiVersion(0, 18, 0)
    assert runtime.loader_config.engine_config.limits.memory == 10 * 2**20
    assert runtime.loader_config.engine_config.capabilities == Capabilities.safe_defaults()
    assert runtime.loader_config.manifest_dir == Path("plugins")
    assert (runtime.registry_config.max_plugins, runtime.registry_config.allow_duplicates) == (50, False)
    assert (runtime.max_concurrent_calls, runtime.call_timeout) == (100, 30.0)


def test_nothing_is_allowed_unless_it_is_said() -> None:
    """Settings that nobody made grant nothing and limit everything but what is slow to count."""
    engine = LoaderConfig().engine_config
    assert engine.capabilities.is_empty and engine.sandbox is None
    assert engine.limits.instructions is None
    assert (engine.limits.memory, engine.limits.fs_ops, engine.limits.net_ops) == (64 * 2**20, 100, 10)
    assert LoaderConfig().host_api_version == HOST_API_VERSION
    assert (LoaderConfig().auto_start, LoaderConfig().strict_validation) == (True, True)


def test_presets() -> None:
    """Strict grants nothing and starts nothing; permissive grants everything and limits nothing."""
    strict, free = EngineConfig.strict(), EngineConfig.permissive()
    assert strict.capabilities.is_empty and strict.limits == Limits.strict()
    assert strict.sandbox == SandboxConfig.locked()
    assert free.capabilities == Capabilities.all() and free.limits.to_mapping() == {}
    loader = LoaderConfig.strict()
    assert loader.engine_config == strict
    assert (loader.auto_start, loader.strict_validation, loader.compile_mode) == (False, True, "production")


def test_an_engine_is_not_widened_by_the_set_it_was_made_from() -> None:
    """Both the set that was given and the set that is held leave the configuration as it was checked."""
    caps = Capabilities.none().grant(Capability.FILE_READ)
    engine = EngineConfig().with_capabilities(caps)
    loader = LoaderConfig().with_capabilities(caps)
    caps.grant("fs:write=/")
    assert engine.capabilities.to_names() == loader.engine_config.capabilities.to_names() == ["fs:read"]
    with pytest.raises(PolicyError):
        engine.capabilities.grant("fs:write=/")
    with pytest.raises(PolicyError):
        EngineConfig().capabilities.grant("fs:write=/")
    assert EngineConfig().capabilities.is_empty


def test_capabilities_and_limits_in_other_spellings() -> None:
    """Lists of names and tables of limits are read too."""
    assert EngineConfig(capabilities=["sys:time", Capability.RANDOM]).capabilities.to_names() == ["random", "time:read"]  # type: ignore[arg-type]
    assert EngineConfig(limits={"max_memory": "2MiB"}).limits == Limits(memory="2MiB")  # type: ignore[arg-type]


def test_other_names_of_settings() -> None:
    """base_path and allow_overwrite are the compatible host's names."""
    loader: Any = LoaderConfig
    registry: Any = RegistryConfig
    assert loader(base_path="plugins").manifest_dir == Path("plugins") == loader(base_path="plugins").base_path
    assert LoaderConfig().with_base_path("x").with_auto_start(False).manifest_dir == Path("x")
    assert registry(allow_overwrite=True).allow_duplicates
    assert RegistryConfig().with_allow_overwrite(True).with_max_plugins(3).allow_overwrite


def test_conveniences_of_a_loader_reach_its_engine() -> None:
    """with_capabilities, with_limits and with_sandbox_config keep the rest of the engine."""
    box = SandboxConfig().with_max_memory("50MB")
    loader = LoaderConfig().with_capabilities(["random"]).with_limits(Limits(wall=1)).with_sandbox_config(box)
    engine = loader.engine_config
    assert (engine.capabilities.to_names(), engine.limits, engine.sandbox) == (["random"], Limits(wall=1), box)


@pytest.mark.parametrize("timeout", [1.5, "1.5s", timedelta(milliseconds=1500)])
def test_times(timeout: Any) -> None:
    """Seconds, texts and timedeltas are the same."""
    config = RuntimeConfig().with_call_timeout(timeout).with_load_timeout(timeout).with_drain_timeout(timeout)
    assert config.call_timeout == config.load_timeout == config.drain_timeout == 1.5
    assert RuntimeConfig().with_call_timeout(None).call_timeout is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RuntimeConfig(call_timeot=1), "call_timeot: there is no such setting"),  # type: ignore[call-arg]
        (lambda: RuntimeConfig(call_timeout=-1), "call_timeout: .*-1 is out of range"),
        (lambda: RuntimeConfig(load_timeout=None), "load_timeout"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(max_concurrent_calls=0), "max_concurrent_calls"),
        (lambda: RuntimeConfig(plugin_dirs="plugins"), "plugin_dirs: a list is needed, not 'plugins'"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig().with_plugin_patterns("*.toml"), "plugin_patterns: a list is needed"),
        (lambda: RuntimeConfig(profile="termnal"), "did you mean 'terminal'"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(profile=3), "profile: a HostProfile"),  # type: ignore[arg-type]
        (lambda: RuntimeConfig(restart_policy=3), "restart_policy"),  # type: ignore[arg-type]
        (lambda: RegistryConfig(max_plugins=True), "max_plugins"),
        (lambda: RegistryConfig(allow_duplicates="no"), "allow_duplicates"),  # type: ignore[arg-type]
        (lambda: EngineConfig(capabilities="fs:read"), "list of their names"),  # type: ignore[arg-type]
        (lambda: EngineConfig(capabilities=["fs:read=data"]), "not an absolute path"),  # type: ignore[arg-type]
        (lambda: EngineConfig(limits=3), "Limits or a table"),  # type: ignore[arg-type]
        (lambda: EngineConfig(limits={"memroy": 1}), "memroy"),  # type: ignore[arg-type]
        (lambda: LoaderConfig(approval=3), "an Approver"),
        (lambda: LoaderConfig(host_api_version="x"), "host_api_version"),  # type: ignore[arg-type]
        (lambda: LoaderConfig(host_api_version=1), "ApiVersion"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused_by_name(make: Any, said: str) -> None:
    """A misspelt or impossible setting never counts as none."""
    with pytest.raises(InvalidConfig, match=said):
        make()


def test_a_misspelt_capability_keeps_its_suggestions() -> None:
    """Naming an unknown capability is its own error."""
    with pytest.raises(UnknownCapability, match="fs:read"):
        EngineConfig().with_capabilities(["fs:reed"])


def test_settings_do_not_change() -> None:
    """A configuration is changed by copying it."""
    config = RegistryConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.max_plugins = 3  # type: ignore[misc]
    assert config.with_auto_unload_stopped(True) != config == RegistryConfig()


def test_copies_of_a_runtime() -> None:
    """Each setting has its copy, and copies add up."""
    config = (
        RuntimeConfig()
        .with_plugin_dirs(["a"])
        .with_plugin_dir("b")
        .with_plugin_patterns(["plugin.toml"])
        .with_auto_discover()
        .with_profile("observability")
        .with_restart_policy(RestartPolicy(max_retries=5))
        .with_quarantine_file("quarantine.json")
        .with_audit_file("audit.jsonl")
        .with_audit_level(AuditLevel.EVERYTHING)
    )
    assert config.plugin_dirs == (Path("a"), Path("b")) and config.plugin_patterns == ("plugin.toml",)
    assert config.restart_policy == RestartPolicy().with_max_retries(5)
    assert config.quarantine_file == Path("quarantine.json")
    assert config.auto_discover and config.profile == profiles.observability()
    assert (config.audit_file, config.audit_level) == (Path("audit.jsonl"), AuditLevel.EVERYTHING)


def test_copies_of_an_engine_and_a_loader() -> None:
    """The smaller settings have copies too."""
    engine = EngineConfig().with_debug().with_metadata({"a": "b"}).with_sandbox_config(None)
    assert engine.debug and dict(engine.metadata) == {"a": "b"}
    loader = LoaderConfig().with_strict_validation(False).with_lockfile("x.lock").with_compile_mode("production")
    assert (loader.strict_validation, loader.lockfile, loader.compile_mode) == (False, Path("x.lock"), "production")


def test_an_approval_may_be_a_function() -> None:
    """A function is as good as an Approver."""
    loader = LoaderConfig().with_approval(lambda request: Approval.DENY)
    assert isinstance(loader.approval, CallbackApprover)
    assert isinstance(LoaderConfig(approval=DenyAll()).approval, DenyAll)
    assert LoaderConfig().with_approval(None).approval is None
