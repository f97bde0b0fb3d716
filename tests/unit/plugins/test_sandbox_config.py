"""SandboxConfig: questions, copies and what makes no sense."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins.errors import InvalidConfig, SandboxViolation
from ringfence.plugins.reach import NetPolicy, PathPolicy
from ringfence.plugins.sandbox_config import IsolationMode, NamespaceConfig, ResourceLimits, SandboxConfig


def test_everything_is_denied_by_default() -> None:
    """A configuration nobody made allows no path, no host, no variable: saying nothing never means all."""
    config = SandboxConfig()
    assert config == SandboxConfig.locked()
    assert not config.can_read("/") and not config.can_write("/tmp") and not config.can_connect("example.com")
    assert not config.can_listen(80) and not config.can_access_env("PATH")
    assert config.isolate_temp and config.isolation is IsolationMode.SANDBOX


def test_a_permissive_one_leaves_it_to_the_capabilities() -> None:
    """All paths and hosts; variables are still named one by one."""
    config = SandboxConfig.permissive()
    assert config.can_read("/etc/passwd") and config.can_write("/x") and config.can_connect("a.b", 1)
    assert config.can_listen(80) and not config.can_access_env("PATH")


def test_what_is_named_is_allowed(tmp_path: Path) -> None:
    """Lists of paths, hosts and variables."""
    config = (
        SandboxConfig()
        .with_read_paths([tmp_path])
        .with_write_paths([tmp_path / "out"])
        .with_allowed_hosts(["*.trusted.org"])
        .with_net_incoming(NetPolicy.allow([":8080"]))
        .with_env_vars(["LANG"])
    )
    assert config.can_read(tmp_path / "x") and not config.can_write(tmp_path / "x")
    assert config.can_write(tmp_path / "out" / "x")
    assert config.can_connect("API.trusted.org") and not config.can_connect("evil.com")
    assert config.can_listen(8080) and not config.can_listen(8081)
    assert config.can_access_env("LANG") and not config.can_access_env("HOME")


def test_checks_say_what_was_denied() -> None:
    """A violation names the kind of access and its target."""
    config = SandboxConfig()
    for check, said in [
        (lambda: config.check_read("/etc/passwd"), "read access denied: /etc/passwd"),
        (lambda: config.check_write(Path("/etc")), "write access denied: /etc"),
        (lambda: config.check_connect("evil.com", 443), "network access denied: evil.com:443"),
        (lambda: config.check_connect("evil.com"), "network access denied: evil.com"),
        (lambda: config.check_env("HOME"), "environment access denied: HOME"),
    ]:
        with pytest.raises(SandboxViolation, match=said):
            check()
    free = SandboxConfig.permissive().with_env_vars(["HOME"])
    free.check_read("/x")
    free.check_write("/x")
    free.check_connect("x.y", 1)
    free.check_env("HOME")


def test_a_plugin_reads_its_own_folder(tmp_path: Path) -> None:
    """for_plugin adds the folder to what may be read, and nothing to what may be written."""
    own = SandboxConfig().with_read_paths(["/data"]).for_plugin(tmp_path)
    assert own.can_read(tmp_path / "x") and own.can_read("/data") and not own.can_write(tmp_path / "x")
    assert SandboxConfig().for_plugin(None) == SandboxConfig()
    free = SandboxConfig.permissive()
    assert free.for_plugin(tmp_path) is free


def test_the_settings_of_the_multi_process_guide() -> None:
    """The compatible host's example reads as printed."""
    config = (
        SandboxConfig()
        .with_max_memory(50 * 1024 * 1024)
        .with_max_cpu_percent(25.0)
        .with_timeout(timedelta(seconds=30))
        .with_process_isolation(True)
        .with_namespaces(NamespaceConfig(pid=True, net=True, ipc=True, mnt=False, uts=False))
        .with_resource_limits(ResourceLimits(memory_bytes=100 * 1024 * 1024, cpu_shares=512, io_weight=100))
        .drop_capabilities(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_MODULE"])
        .keep_capabilities(["CAP_NET_BIND_SERVICE"])
    )
    assert (config.max_memory, config.max_cpu_percent, config.timeout) == (50 * 2**20, 25.0, 30.0)
    assert config.isolation is IsolationMode.SANDBOX
    assert config.namespaces.demanded == ("pid", "net", "ipc")
    assert config.resource_limits.cpu_shares == 512
    assert config.dropped_capabilities[0] == "CAP_SYS_ADMIN" and config.kept_capabilities == ("CAP_NET_BIND_SERVICE",)
    assert config.with_process_isolation(False).isolation is IsolationMode.IN_PROCESS


def test_the_remaining_copies() -> None:
    """Each setting has its copy."""
    config = (
        SandboxConfig()
        .with_fs_read(PathPolicy.allow_all())
        .with_fs_write(PathPolicy.deny_all())
        .with_net_outgoing(NetPolicy.allow_all())
        .with_working_dir("/data/")
        .with_temp_isolation(False)
        .with_isolation(IsolationMode.PROCESS, trusted=True)
        .with_best_effort()
    )
    assert config.working_dir == "/data" and not config.isolate_temp and config.best_effort
    assert (config.isolation, config.trusted) == (IsolationMode.PROCESS, True)
    assert config.with_working_dir(None).working_dir is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: SandboxConfig(env_vars=("A=B",)),
        lambda: SandboxConfig(working_dir="data"),
        lambda: SandboxConfig(max_memory=-1),
        lambda: SandboxConfig(max_cpu_percent=0),
        lambda: SandboxConfig(max_cpu_percent=float("nan")),
        lambda: SandboxConfig(timeout=0),
        lambda: SandboxConfig(dropped_capabilities=("SYS_ADMIN",)),
        lambda: SandboxConfig(isolate_temp="no"),  # type: ignore[arg-type]
        lambda: SandboxConfig(isolation="none"),  # type: ignore[arg-type]
        lambda: NamespaceConfig(pid="yes"),  # type: ignore[arg-type]
        lambda: ResourceLimits(cpu_shares=0),
        lambda: ResourceLimits(io_weight=10001),
    ],
)
def test_nonsense_is_refused(make: Any) -> None:
    """A slip is an error where it is made."""
    with pytest.raises(InvalidConfig):
        make()
