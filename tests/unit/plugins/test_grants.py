"""What a plugin is granted: declared, allowed, approved, and never more than one of the three."""

from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins import profiles
from ringfence.plugins.config import EngineConfig, LoaderConfig
from ringfence.plugins.errors import ApprovalRequired, IncompatibleProfile, InvalidManifest, MissingCapability
from ringfence.plugins.grants import Effective, effective
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.profiles import HostProfile
from ringfence.plugins.reach import NetPolicy, PathPolicy
from ringfence.plugins.sandbox_config import ResourceLimits, SandboxConfig
from ringfence.plugins.versions import ApiVersion
from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits


def manifest(*capabilities: str, **more: Any) -> Manifest:
    """Return a manifest that declares these."""
    fields = {"name": "example", "version": "1.0.0", "api_version": ApiVersion(0, 21, 0), "source": "main.py"}
    return Manifest(**fields, capabilities=capabilities, **more)


def allowed(*capabilities: str, sandbox: SandboxConfig | None = None, limits: Limits | None = None) -> LoaderConfig:
    """Return a loader's settings that allow these."""
    engine = EngineConfig().with_capabilities(capabilities)
    engine = engine if sandbox is None else engine.with_sandbox(sandbox)
    return LoaderConfig().with_engine_config(engine if limits is None else engine.with_limits(limits))


def names(found: Effective) -> list[str]:
    """Return the grants as text."""
    return found.grants.to_names()


def test_only_what_is_declared_is_granted() -> None:
    """A host that allows everything still gives a plugin what its manifest says, and no more."""
    config = LoaderConfig().with_engine_config(EngineConfig.permissive().with_sandbox(None))
    assert names(effective(manifest("random"), None, config)) == ["random"]
    assert names(effective(manifest(), None, config)) == []


def test_the_first_thing_that_is_missing_is_named_in_the_manifests_order() -> None:
    """The example of the guide: fs:read is allowed, fs:write is not, so that the plugin does not load."""
    caps = Capabilities.none()
    caps.grant(Capability.FILE_READ)
    caps.grant(Capability.TIME_READ)
    config = LoaderConfig().with_engine_config(EngineConfig().with_capabilities(caps))
    with pytest.raises(MissingCapability) as caught:
        effective(manifest("fs:read", "fs:write", "fs:delete"), None, config)
    assert caught.value.capability == "fs:write" and caught.value.plugin == "example"
    with pytest.raises(MissingCapability) as caught:
        effective(manifest("net:request", "fs:delete", "fs:write"), None, config)
    assert caught.value.capability == "net:request"
    with pytest.raises(MissingCapability):
        effective(manifest("random"), None)


def test_bare_read_is_the_plugins_own_folder(tmp_path: Path) -> None:
    """fs:read reaches the folder of the plugin, by its real path; fs:write reaches no folder of the host."""
    (tmp_path / "link").symlink_to(tmp_path / "plugin")
    (tmp_path / "plugin").mkdir()
    config = allowed("fs:read", "fs:write")
    real = str(tmp_path / "plugin")
    assert names(effective(manifest("fs:read"), tmp_path / "plugin", config)) == ["fs:read", f"fs:read={real}"]
    assert names(effective(manifest("fs:read"), tmp_path / "link", config)) == ["fs:read", f"fs:read={real}"]
    assert names(effective(manifest("fs:write"), tmp_path / "plugin", config)) == ["fs:write"]
    assert names(effective(manifest("fs:read"), None, config)) == ["fs:read"]


def test_a_wider_path_needs_a_grant_that_covers_it(tmp_path: Path) -> None:
    """A scope beyond the own folder is granted only where the host names a path above it."""
    data = tmp_path / "data"
    data.mkdir()
    wish = manifest("fs:read", scopes={"fs:read": [str(data / "in")]})
    with pytest.raises(MissingCapability) as caught:
        effective(wish, None, allowed("fs:read"))
    assert caught.value.capability == f"fs:read={data}/in"
    with pytest.raises(MissingCapability):
        effective(wish, None, allowed("fs:read", f"fs:read={data}/other"))
    assert names(effective(wish, None, allowed("fs:read", f"fs:read={data}"))) == ["fs:read", f"fs:read={data}/in"]
    assert names(effective(wish, None, allowed("fs:read=/"))) == ["fs:read", f"fs:read={data}/in"]


def test_the_own_folder_may_be_read_in_part_and_not_written(tmp_path: Path) -> None:
    """A relative scope is in the plugin's folder; for writing there it takes the host's word."""
    (tmp_path / "assets").mkdir()
    reads = manifest("fs:read", scopes={"fs:read": ["assets"]})
    assert f"fs:read={tmp_path}/assets" in names(effective(reads, tmp_path, allowed("fs:read")))
    writes = manifest("fs:write", scopes={"fs:write": ["assets"]})
    with pytest.raises(MissingCapability, match="assets"):
        effective(writes, tmp_path, allowed("fs:write"))
    found = effective(writes, tmp_path, allowed("fs:write", f"fs:write={tmp_path}"))
    assert names(found) == ["fs:write", f"fs:write={tmp_path}/assets"]


def test_links_do_not_widen_a_grant(tmp_path: Path) -> None:
    """A link in the plugin's folder, or in a granted one, is judged by where it leads."""
    plugin, data, secret = tmp_path / "plugin", tmp_path / "data", tmp_path / "secret"
    for folder in (plugin, data, secret):
        folder.mkdir()
    (plugin / "out").symlink_to(secret)
    (data / "out").symlink_to(secret)
    config = allowed("fs:read", f"fs:read={data}")
    for scope in (plugin / "out", data / "out", data / "out" / "new"):
        with pytest.raises((MissingCapability, InvalidManifest)):
            effective(manifest("fs:read", scopes={"fs:read": [str(scope)]}), plugin, config)
    with pytest.raises(InvalidManifest):
        effective(manifest("fs:read", scopes={"fs:read": ["out"]}), plugin, config)
    # The host's own links are the host's to make.
    (tmp_path / "alias").symlink_to(data)
    wish = manifest("fs:read", scopes={"fs:read": [str(data / "x")]})
    assert effective(wish, None, allowed(f"fs:read={tmp_path}/alias")).grants.has(f"fs:read={data}/x")


def test_asked_for_all_granted_in_part() -> None:
    """A bare wish for variables, ports or programs is met as far as the host allows, if it allows any."""
    config = allowed("env:read=LANG", "env:read=TERM", "net:request=:443", "process:exec=/usr/bin")
    found = effective(manifest("env:read", "net:request", "process:exec"), None, config)
    assert names(found) == ["env:read=LANG", "env:read=TERM", "net:request=:443", "process:exec=/usr/bin"]
    with pytest.raises(MissingCapability, match="env:read=HOME"):
        effective(manifest("env:read", scopes={"env:read": ["HOME"]}), None, config)
    term = manifest("env:read", scopes={"env:read": ["TERM"]})
    assert names(effective(term, None, config)) == ["env:read=TERM"]
    assert names(effective(term, None, allowed("env:read"))) == ["env:read=TERM"]


def test_programs_are_judged_by_where_links_lead(tmp_path: Path) -> None:
    """A program's path is compared as the kernel would find it."""
    (tmp_path / "tool").symlink_to("/usr/bin/env")
    wish = manifest("process:exec", scopes={"process:exec": [str(tmp_path / "tool")]})
    with pytest.raises(MissingCapability):
        effective(wish, None, allowed(f"process:exec={tmp_path}"))
    assert effective(wish, None, allowed("process:exec")).grants.has(f"process:exec={tmp_path}/tool")


def test_a_sandbox_widens_what_bare_file_capabilities_reach(tmp_path: Path) -> None:
    """A path in the SandboxConfig reaches plugins that hold the capability, and only those."""
    box = SandboxConfig().with_read_paths([tmp_path]).with_write_paths([tmp_path / "out"])
    config = allowed("fs:read", "fs:write", "fs:delete", sandbox=box)
    assert names(effective(manifest("fs:read"), None, config)) == ["fs:read", f"fs:read={tmp_path}"]
    assert names(effective(manifest("fs:write", "fs:delete"), None, config)) == [
        "fs:delete",
        f"fs:delete={tmp_path}/out",
        "fs:write",
        f"fs:write={tmp_path}/out",
    ]
    assert names(effective(manifest(), None, config)) == []
    wish = manifest("fs:read", scopes={"fs:read": [str(tmp_path / "in")]})
    assert effective(wish, None, config).grants.has(f"fs:read={tmp_path}/in")


def test_with_a_sandbox_both_have_to_allow(tmp_path: Path) -> None:
    """Capabilities that name paths and a SandboxConfig hold together; saying nothing in one is no permission."""
    data = tmp_path / "data"
    wish = manifest("fs:read", scopes={"fs:read": [str(data)]})
    with pytest.raises(MissingCapability, match="SandboxConfig's fs_read"):
        effective(wish, None, allowed("fs:read", f"fs:read={data}", sandbox=SandboxConfig()))
    box = SandboxConfig().with_read_paths([tmp_path])
    found = effective(manifest("fs:read"), None, allowed(f"fs:read={data}", sandbox=box))
    assert names(found) == ["fs:read"], "the capability names less than the sandbox"
    everything = effective(manifest("fs:read"), None, allowed("fs:read", sandbox=SandboxConfig.permissive()))
    assert names(everything) == ["fs:read", "fs:read=/"]


@pytest.mark.parametrize(
    ("capability", "setting"),
    [
        ("net:request", "net_outgoing"),
        ("net:dns", "net_outgoing"),
        ("net:listen", "net_incoming"),
        ("env:read", "env_vars"),
    ],
)
def test_a_sandbox_that_says_nothing_denies(capability: str, setting: str) -> None:
    """Not naming hosts or variables means none, and the refusal names the setting."""
    with pytest.raises(MissingCapability, match=setting) as caught:
        effective(manifest(capability), None, allowed(capability, sandbox=SandboxConfig()))
    assert caught.value.capability == capability
    box = SandboxConfig.permissive().with_env_vars(["LANG"])
    assert names(effective(manifest(capability), None, allowed(capability, sandbox=box)))[0].startswith(capability)


def test_a_sandboxs_lists_become_scopes() -> None:
    """What the sandbox names is what a bare capability is held to."""
    box = (
        SandboxConfig()
        .with_net_outgoing(NetPolicy.allow([":443", "api.example.com:80"]))
        .with_net_incoming(NetPolicy.allow([":8080"]))
        .with_env_vars(["LANG", "TERM"])
    )
    config = allowed("net:request", "net:listen", "net:dns", "env:read", sandbox=box)
    assert names(effective(manifest("net:request", "net:listen", "net:dns", "env:read"), None, config)) == [
        "env:read=LANG",
        "env:read=TERM",
        "net:dns",
        "net:listen=8080",
        "net:request=:443",
        "net:request=api.example.com:80",
    ]
    wish = manifest("net:request", scopes={"net:request": ["api.example.com:80"]})
    assert names(effective(wish, None, config)) == ["net:request=api.example.com:80"]
    with pytest.raises(MissingCapability, match="net_outgoing"):
        effective(manifest("net:request", scopes={"net:request": ["evil.com:80"]}), None, config)
    with pytest.raises(MissingCapability, match="env_vars"):
        effective(manifest("env:read", scopes={"env:read": ["HOME"]}), None, config)


def test_what_a_sandbox_does_not_speak_of_is_left_alone() -> None:
    """Clocks, logs and a variable that is named on both sides pass."""
    config = allowed("random", "logging", "env:read", sandbox=SandboxConfig().with_env_vars(["LANG"]))
    wish = manifest("random", "logging", "env:read", scopes={"env:read": ["LANG"]})
    assert names(effective(wish, None, config)) == ["env:read=LANG", "logging", "random"]


@pytest.mark.parametrize(
    ("capability", "box"),
    [
        ("fs:read", SandboxConfig().with_fs_read(PathPolicy.deny(["/etc"]))),
        ("fs:delete", SandboxConfig().with_fs_write(PathPolicy.deny(["/etc"]))),
        ("net:request", SandboxConfig().with_net_outgoing(NetPolicy.deny(["evil.com"]))),
    ],
)
def test_a_list_of_what_is_denied_is_refused(capability: str, box: SandboxConfig) -> None:
    """No worker can be held to everything but; it is said, not widened."""
    with pytest.raises(PolicyError, match="cannot be kept from"):
        effective(manifest(capability), None, allowed(capability, sandbox=box))


def test_a_profile_decides_where_nothing_else_was_said() -> None:
    """The operator's example: the processor loads, the deployer is refused with the first thing too many."""
    host = profiles.observability()
    found = effective(manifest("fs:read", "net:request", "sys:time"), None, LoaderConfig(), host)
    assert names(found) == ["fs:read", "net:request", "time:read"]
    assert (found.profile, found.call_timeout, found.limits) == ("observability", 5.0, host.limits)
    deployer = Manifest(
        name="deployer",
        version="1.0.0",
        api_version=ApiVersion(0, 21, 0),
        source="main.py",
        capabilities=("fs:read", "fs:write", "fs:delete", "net:request", "sys:exec"),
    )
    with pytest.raises(IncompatibleProfile) as caught:
        effective(deployer, None, LoaderConfig(), host)
    error = caught.value
    assert (error.plugin, error.profile, error.capability) == ("deployer", "observability", "fs:write")


def test_a_profile_and_an_engine_have_to_agree() -> None:
    """Where both were said, what the profile allows and the engine does not is missing, and the other way round."""
    host = profiles.observability()
    with pytest.raises(MissingCapability):
        effective(manifest("net:request"), None, allowed("fs:read"), host)
    with pytest.raises(IncompatibleProfile):
        effective(manifest("fs:write"), None, allowed("fs:write"), host)
    with pytest.raises(MissingCapability):
        effective(manifest("time:read"), None, allowed(), host)
    limited = effective(manifest("fs:read"), None, allowed("fs:read", limits=Limits(memory="8MiB")), host)
    assert limited.limits.memory == 8 * 2**20 and limited.limits.file_size == 0
    with pytest.raises(MissingCapability, match="in common"):
        effective(
            manifest("process:exec"),
            None,
            allowed("process:exec=/opt"),
            HostProfile(name="mine", capabilities=Capabilities(["process:exec=/usr/bin"])),
        )


def test_the_sandboxes_of_profile_and_engine_both_hold(tmp_path: Path) -> None:
    """A path that only one of them allows is not reached, and does not stop the plugin that did not ask for it."""
    host = HostProfile(
        name="mine",
        capabilities=Capabilities(["fs:read"]),
        sandbox=SandboxConfig().with_read_paths([tmp_path / "a", tmp_path / "b"]),
    )
    config = LoaderConfig().with_sandbox_config(SandboxConfig().with_read_paths([tmp_path / "b", tmp_path / "c"]))
    found = effective(manifest("fs:read"), None, config, host)
    assert names(found) == ["fs:read", f"fs:read={tmp_path}/b"]
    assert len(found.sandboxes) == 2


def test_a_profile_without_paths_leaves_them_to_the_hosts_settings(tmp_path: Path) -> None:
    """The shipped profiles grant fs:read and name no folder: the one host's sandbox or capabilities do."""
    host = profiles.observability()
    box = LoaderConfig().with_sandbox_config(SandboxConfig().with_read_paths([tmp_path]))
    assert names(effective(manifest("fs:read"), None, box, host)) == ["fs:read", f"fs:read={tmp_path}"]
    wish = manifest("fs:read", scopes={"fs:read": [str(tmp_path / "x")]})
    assert effective(wish, None, box, host).grants.has(f"fs:read={tmp_path}/x")
    assert effective(wish, None, allowed(f"fs:read={tmp_path}"), host).grants.has(f"fs:read={tmp_path}/x")
    assert names(effective(manifest("fs:read"), None, allowed(f"fs:read={tmp_path}"), host)) == ["fs:read"]
    with pytest.raises(MissingCapability):
        effective(wish, None, allowed("fs:read"), host)
    with pytest.raises(IncompatibleProfile):
        effective(wish, None, LoaderConfig(), host)
    scoped = HostProfile(name="mine", capabilities=Capabilities([f"fs:read={tmp_path}/x"]))
    with pytest.raises(IncompatibleProfile):
        effective(manifest("fs:read", scopes={"fs:read": [str(tmp_path)]}), None, box, scoped)


def test_limits_are_the_tightest_and_what_is_not_given_is_noted() -> None:
    """A manifest may ask for less; asking for more is cut down and said."""
    config = allowed(limits=Limits(memory="64MiB", wall=30, processes=16))
    found = effective(manifest(limits=Limits(memory="1GiB", wall=5, fs_ops=3)), None, config)
    assert found.limits.to_mapping() == {"memory": 64 * 2**20, "wall": 5.0, "processes": 16, "fs_ops": 3}
    assert found.call_timeout == 5.0
    assert found.notes == ("limits.memory: the plugin asks for 1073741824, the host gives 67108864",)
    box = SandboxConfig(timeout=2, max_memory="8MiB", resource_limits=ResourceLimits(memory_bytes="4MiB"))  # type: ignore[arg-type]
    boxed = effective(manifest(), None, allowed(limits=Limits(memory="64MiB"), sandbox=box))
    assert (boxed.limits.memory, boxed.call_timeout) == (4 * 2**20, 2.0)
    assert effective(manifest(), None, allowed(limits=Limits.unlimited())).call_timeout is None


def test_what_was_not_approved_is_not_granted() -> None:
    """The third of the three: everything declared has to be approved, scopes included."""
    config = allowed("fs:read=/", "random", "net:request")
    wish = manifest("fs:read", "random", "net:request", scopes={"fs:read": ["/data"]})
    with pytest.raises(ApprovalRequired) as caught:
        effective(wish, None, config, approved=Capabilities(["fs:read", "random"]))
    assert caught.value.capabilities == ("fs:read=/data", "net:request")
    found = effective(wish, None, config, approved=Capabilities(["fs:read=/", "random", "net:request", "crypto"]))
    assert found.declared == ("fs:read", "fs:read=/data", "random", "net:request")
    with pytest.raises(ApprovalRequired):
        effective(manifest("random"), None, config, approved=Capabilities.none())


def test_what_was_decided_does_not_change() -> None:
    """The grants of a plugin are sealed."""
    with pytest.raises(PolicyError):
        effective(manifest("random"), None, allowed("random")).grants.grant("fs:write=/")


def test_a_path_stays_where_it_led(tmp_path: Path) -> None:
    """A link is judged by its target; a path that leads elsewhere by the time a worker starts is an error."""
    data, secret = (tmp_path / name for name in ("data", "secret"))
    for folder in (data, data / "sub", secret):
        folder.mkdir()
    wish = manifest("fs:read", scopes={"fs:read": [f"{data}/sub"]})
    found = effective(wish, None, allowed("fs:read", f"fs:read={data}"))
    found.require_places()
    assert found.places == {f"{data}/sub": str((data / "sub").resolve())}
    (data / "sub").rename(data / "old")
    (data / "sub").symlink_to(secret)
    with pytest.raises(PolicyError, match=r"led to .*/data/sub.* and leads to .*/secret"):
        found.require_places()
    with pytest.raises(MissingCapability):
        effective(wish, None, allowed("fs:read", f"fs:read={data}"))
    (data / "sub").unlink()
    (data / "sub").symlink_to("old")
    linked = effective(wish, None, allowed("fs:read", f"fs:read={data}"))
    assert linked.places == {f"{data}/sub": str((data / "old").resolve())}
    linked.require_places()
