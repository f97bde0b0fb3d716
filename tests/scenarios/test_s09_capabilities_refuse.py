"""S9: what a plugin did not declare it cannot have, at load and while it runs; and whoever tries is on record."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
from scenario_plugins import write_plugin
from waiting import is_alive

from ringfence import (
    Capabilities,
    Capability,
    EngineConfig,
    IsolationMode,
    LoaderConfig,
    PluginHandle,
    PluginLoader,
    PluginRuntime,
    RuntimeConfig,
    SandboxConfig,
    UnknownCapability,
    UnsupportedError,
)
from ringfence.plugins import blueprint
from ringfence.plugins.audit import AuditEvent
from ringfence.plugins.errors import MissingCapability, PluginCrashed
from ringfence.pool import opening
from ringfence.sandbox.features import probe
from ringfence.sandbox.policy import Layer
from ringfence.sandbox.report import Status

PRINTED = """\
caps = Capabilities.none()
caps.grant(Capability.FILE_READ)
caps.grant(Capability.TIME_READ)
config = LoaderConfig().with_engine_config(EngineConfig().with_capabilities(caps))
loader = PluginLoader(config)
with pytest.raises(MissingCapability) as e:
    loader.load_from_manifest("restricted-plugin.toml")      # capabilities = ["fs:read", "fs:write"]
assert e.value.capability == "fs:write"
"""

HOSTILE: Final = (Path(__file__).parents[1] / "data/plugins/hostile.py").read_text()


class World:
    """What there is to attack, and whether it is as it was."""

    def __init__(self, folder: Path) -> None:
        self.plugin = folder / "plugins" / "hostile"
        self.manifest = write_plugin(self.plugin, HOSTILE, exports=("attempt",), capabilities=("fs:read",))
        (self.plugin / "notes.txt").write_text("for the plugin")
        self.outside = folder / "outside"
        self.outside.mkdir()
        self.file = self.outside / "file"
        self.file.write_text("the host's")
        self.allowed = folder / "allowed"
        self.allowed.mkdir()
        # Only the sandbox is in the way: the worker may have a user of its own, to whom all this is open.
        for each in (self.plugin, self.outside, self.allowed):
            each.chmod(0o777)
        for each in (self.file, self.plugin / "main.py"):
            each.chmod(0o666)
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True)
        self.key = self.home / ".ssh" / "id_ed25519"
        self.key.write_text("the key")
        low = os.open(self.file, os.O_RDWR)
        # Far from the numbers that a worker's own descriptors have, to which it may write.
        self.fd = fcntl.fcntl(low, fcntl.F_DUPFD, 200)
        os.close(low)
        os.set_inheritable(self.fd, True)
        self.victim = subprocess.Popen(["sleep", "600"])
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.outside / "socket"))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0ringfence-s9-{os.getpid()}")
        self.unix.listen()
        self.abstract.listen()
        for each in self.sockets:
            each.setblocking(False)
        self.before = self.files()

    @property
    def sockets(self) -> list[socket.socket]:
        """Where somebody might connect to, or send."""
        return [self.tcp, self.udp, self.unix, self.abstract]

    def files(self) -> dict[str, tuple[int, str]]:
        """Return mode and content of everything below the folders that are no plugin's to change."""
        found = {}
        for top in (self.plugin, self.outside, self.allowed, self.home):
            for path in sorted(top.rglob("*")):
                mode = path.lstat().st_mode
                found[str(path)] = (mode, path.read_text() if path.is_file() else "")
        return found

    def heard(self) -> list[str]:
        """Return which sockets somebody has reached, and let go of who it was."""
        reached = []
        for listener in self.sockets:
            try:
                if listener is self.udp:
                    listener.recv(100)
                else:
                    listener.accept()[0].close()
            except BlockingIOError:
                continue
            reached.append(str(listener.getsockname()))
        return reached

    def untouched(self) -> None:
        """Fail unless all is as it was."""
        assert self.files() == self.before
        assert self.heard() == []
        assert self.victim.poll() is None
        assert is_alive(self.victim.pid)
        status = Path(f"/proc/{self.victim.pid}/status").read_text()
        assert "TracerPid:\t0\n" in status
        assert not os.path.ismount(self.outside)

    def close(self) -> None:
        """End what was started."""
        self.victim.kill()
        self.victim.wait()
        os.close(self.fd)
        for each in self.sockets:
            each.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Gone in the end."""
    made = World(tmp_path)
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("RINGFENCE_S9_SECRET", "told to nobody")
    yield made
    made.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack: the function and its arguments; the record that it leaves; what makes it succeed.

    `proof`, `proof_function`: what to do for that instead, where success must do no harm, or takes a file of its own.
    `recorded`: operation and the end of the target; None where there is nothing that could be refused, so that
    nothing is on record. `granted`: grants with which it succeeds, or None when it takes a plugin without a sandbox.
    """

    name: str
    function: str
    args: Callable[[World], list[Any]]
    recorded: tuple[str, str] | None
    error: str = "PermissionError"
    granted: Callable[[World], list[str]] | None = None
    proof: Callable[[World], list[Any]] | None = None
    proof_function: str | None = None


def _writes(world: World) -> list[str]:
    return [f"fs:write={world.outside}", f"fs:read={world.outside}", f"fs:delete={world.outside}", "fs:metadata"]


def _processes(world: World) -> list[str]:
    return [*_writes(world), "process:exec"]


HIDDEN: Final = "PermissionError|FileNotFoundError"

ATTACKS: Final = [
    Attack(name="write a file", function="write", args=lambda w: [str(w.file)], recorded=("open", "outside/file"),
           granted=_writes),
    Attack(name="append to a file", function="append", args=lambda w: [str(w.file)], recorded=("open", "outside/file"),
           granted=_writes),
    Attack(name="make a file", function="write", args=lambda w: [str(w.outside / "new")], recorded=("open", "new"),
           granted=_writes),
    Attack(name="write into its own folder", function="write", args=lambda w: [str(w.plugin / "main.py")],
           recorded=("open", "hostile/main.py"), granted=lambda w: [f"fs:write={w.plugin}"]),
    Attack(name="write out of an allowed folder", function="write",
           args=lambda w: [f"{w.allowed}/../outside/new"], recorded=("open", "/../outside/new"),
           granted=lambda w: [*_writes(w), f"fs:read={w.allowed}"]),
    Attack(name="remove a file", function="remove", args=lambda w: [str(w.file)], recorded=("os.remove", "file"),
           granted=_writes),
    Attack(name="move a file", function="move", args=lambda w: [str(w.file), str(w.outside / "moved")],
           recorded=("os.rename", "moved"), granted=_writes),
    Attack(name="change a mode", function="chmod", args=lambda w: [str(w.file)], recorded=("os.chmod", "file"),
           granted=_writes, proof_function="chmod_own", proof=lambda w: [str(w.outside / "new")]),
    Attack(name="read a file", function="read", args=lambda w: [str(w.file)], recorded=("open", "outside/file"),
           error=HIDDEN, granted=lambda w: [f"fs:read={w.outside}"]),
    Attack(name="list a folder", function="listing", args=lambda w: [str(w.outside)],
           recorded=("os.listdir", "outside"), error=HIDDEN, granted=lambda w: [f"fs:read={w.outside}"]),
    Attack(name="read by a link", function="read_by_symlink",
           args=lambda w: [str(w.file), str(w.plugin / "link")],
           recorded=("os.symlink", "link")),
    Attack(name="plant a link", function="symlink", args=lambda w: [str(w.file), str(w.plugin / "link")],
           recorded=("os.symlink", "link")),
    Attack(name="make a hard link", function="hard_link", args=lambda w: [str(w.file), str(w.plugin / "link")],
           recorded=("os.link", "link")),
    Attack(name="read the key", function="read", args=lambda w: [str(w.key)], recorded=("open", "id_ed25519"),
           error=HIDDEN, granted=lambda w: [f"fs:read={w.home}"]),
    Attack(name="read the host's memory", function="open_only", args=lambda _: [f"/proc/{os.getpid()}/mem"],
           recorded=("open", "/mem"), error=HIDDEN),
    Attack(name="read the host's environment", function="open_only", args=lambda _: [f"/proc/{os.getpid()}/environ"],
           recorded=("open", "/environ"), error=HIDDEN),
    Attack(name="TCP", function="tcp", args=lambda w: [w.tcp.getsockname()[1]], recorded=("socket.socket", "AF_INET"),
           granted=lambda _: ["net:request"]),
    Attack(name="UDP", function="udp", args=lambda w: [w.udp.getsockname()[1]],
           recorded=("socket.socket", "SOCK_DGRAM"), granted=lambda _: ["net:dns", "net:request"]),
    Attack(name="a Unix socket", function="unix", args=lambda w: [str(w.outside / "socket")],
           recorded=("socket.socket", "AF_UNIX")),
    Attack(name="an abstract socket", function="abstract", args=lambda _: [f"ringfence-s9-{os.getpid()}"],
           recorded=("socket.socket", "AF_UNIX")),
    Attack(name="DNS", function="dns", args=lambda _: ["example.org"], recorded=("socket.getaddrinfo", "example.org"),
           error="gaierror", granted=lambda _: ["net:dns", "fs:read=/etc"], proof=lambda _: ["localhost"]),
    Attack(name="subprocess", function="run", args=lambda w: [str(w.file)], recorded=("subprocess.Popen", "/bin/sh"),
           granted=_processes),
    Attack(name="execv", function="execv", args=lambda w: [str(w.file)], recorded=("os.execv", "/bin/sh")),
    Attack(name="system by ctypes", function="system", args=lambda w: [str(w.file)],
           recorded=("ctypes.dlsym", "system"), error="OSError", granted=_processes),
    Attack(name="a fork bomb", function="bomb", args=lambda _: [], recorded=("os.fork", "")),
    Attack(name="fork", function="fork", args=lambda _: [], recorded=("os.fork", ""),
           granted=lambda _: ["process:exec"]),
    Attack(name="ptrace", function="ptrace", args=lambda w: [w.victim.pid], recorded=("ctypes.dlsym", "ptrace"),
           error="CapabilityDenied"),
    Attack(name="kill", function="kill", args=lambda w: [w.victim.pid, int(signal.SIGKILL)], recorded=("os.kill", ""),
           error="PermissionError|ProcessLookupError", proof=lambda w: [w.victim.pid, 0]),
    Attack(name="kill the host", function="kill", args=lambda _: [os.getpid(), 0], recorded=("os.kill", ""),
           error="PermissionError|ProcessLookupError"),
    Attack(name="kill by ctypes", function="kill_by_libc", args=lambda w: [w.victim.pid, int(signal.SIGKILL)],
           recorded=("ctypes.dlsym", "kill"), error="PermissionError|ProcessLookupError",
           proof=lambda w: [w.victim.pid, 0]),
    Attack(name="mount", function="mount", args=lambda w: [str(w.outside)], recorded=("ctypes.dlsym", "mount"),
           error="CapabilityDenied"),
    Attack(name="unshare", function="unshare", args=lambda _: [0x10000000], recorded=("ctypes.dlsym", "unshare"),
           error="CapabilityDenied", proof=lambda _: [0x200]),
    Attack(name="a variable", function="variable", args=lambda _: ["RINGFENCE_S9_SECRET"], recorded=None,
           error="KeyError", granted=lambda _: ["env:read=RINGFENCE_S9_SECRET"]),
    Attack(name="a variable by ctypes", function="variable_by_libc", args=lambda _: ["RINGFENCE_S9_SECRET"],
           recorded=None, error="LookupError", granted=lambda _: ["env:read=RINGFENCE_S9_SECRET"]),
    Attack(name="an inherited descriptor", function="inherited", args=lambda w: [w.fd], recorded=None,
           error="OSError"),
    Attack(name="whatever descriptor leads there", function="every_fd", args=lambda w: [str(w.file)], recorded=None,
           error="LookupError"),
    Attack(name="the host's objects", function="search", args=lambda _: ["only-the-host-knows-it"], recorded=None,
           error="LookupError"),
]  # fmt: skip
# Those for which being caught would take more than a plugin: their control is elsewhere in this file.
CONTROLLED_ELSEWHERE: Final = {
    "an inherited descriptor", "whatever descriptor leads there", "the host's objects", "a fork bomb", "ptrace",
    "mount", "execv",
}  # fmt: skip

only_the_host_knows_it = "only_the_host_knows_it"


def declare(world: World, grants: Iterable[str]) -> None:
    """Have the manifest of the hostile plugin declare these."""
    scopes: dict[str, list[str]] = {}
    for grant in grants:
        name, _, scope = grant.partition("=")
        scopes.setdefault(name, []).extend([scope] if scope else [])
    table = "[scopes]\n" + "".join(f'"{name}" = {each}\n' for name, each in scopes.items() if each)
    write_plugin(world.plugin, HOSTILE, exports=("attempt",), capabilities=scopes, more=table)


def runtime_with(grants: Iterable[str], sandbox: SandboxConfig | None = None) -> PluginRuntime:
    """Return a runtime that allows these."""
    engine = EngineConfig(capabilities=Capabilities(grants), sandbox=sandbox)
    return PluginRuntime(RuntimeConfig(loader_config=LoaderConfig(engine_config=engine)))


def denials(runtime: PluginRuntime) -> list[AuditEvent]:
    """Return what is on record as refused."""
    return runtime.audit.events("hostile", allowed=False)


# --- at load ------------------------------------------------------------------------------------------------


def test_a_plugin_that_wants_more_than_it_may_have_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed; and nothing of it has run."""
    monkeypatch.chdir(tmp_path)
    write_plugin(
        tmp_path, "raise SystemExit('it ran')\n", name="restricted", manifest="restricted-plugin.toml",
        capabilities=("fs:read", "fs:write"),
    )  # fmt: skip
    names: dict[str, Any] = {
        "Capabilities": Capabilities, "Capability": Capability, "LoaderConfig": LoaderConfig,
        "EngineConfig": EngineConfig, "PluginLoader": PluginLoader, "MissingCapability": MissingCapability,
        "pytest": pytest,
    }  # fmt: skip
    exec(PRINTED, names)
    assert names["e"].value.plugin == "restricted"
    names["loader"].around.close()


def test_a_capability_that_does_not_exist_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    """Not something to be granted, and not something to be overlooked."""
    manifest = write_plugin(tmp_path / "p", "def process(data): return data\n", capabilities=("fs:reed",))
    with runtime_with(["fs:read"]) as runtime:
        with pytest.raises(UnknownCapability, match="fs:read") as caught:
            runtime.load_manifest(manifest)
        assert "fs:reed" in str(caught.value)


# --- while it runs ------------------------------------------------------------------------------------------


def test_every_attack_is_refused_catchably_recorded_and_in_vain(world: World) -> None:
    """One worker lives through all of them."""
    with runtime_with(["fs:read", "time:read"]) as runtime:
        handle = runtime.load_manifest(world.manifest)
        pid = handle.info().pid
        for attack in ATTACKS:
            before = len(denials(runtime))
            args = attack.args(world)
            ended, error, text = handle.call("attempt", [attack.function, args], timeout=20)
            assert ended == "refused", attack.name
            assert error in attack.error.split("|"), (attack.name, error, text)
            new = denials(runtime)[before:]
            if attack.recorded is None:
                assert new == [], attack.name
            else:
                operation, target = attack.recorded
                mine = [each for each in new if each.operation == operation and (each.target or "").endswith(target)]
                assert mine, (attack.name, new)
                assert all(each.plugin == "hostile" and each.capability and each.at for each in mine)
            world.untouched()
        assert handle.info().pid == pid
        # What it may do works, and is no refusal.
        before = len(denials(runtime))
        assert handle.call("attempt", ["read", [str(world.plugin / "notes.txt")]]) == ["done", "for the plugin"]
        assert len(denials(runtime)) == before


def proves(world: World, attack: Attack, handle: PluginHandle) -> None:
    """Fail unless the attack succeeds."""
    args = (attack.proof or attack.args)(world)
    answer = handle.call("attempt", [attack.proof_function or attack.function, args], timeout=20)
    assert answer[0] == "done", (attack.name, answer)


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.granted], ids=lambda each: each.name)
def test_the_same_plugin_with_the_capability_succeeds(world: World, attack: Attack) -> None:
    """So the gate has held it, and nothing else."""
    assert attack.granted is not None
    grants = attack.granted(world)
    declare(world, ["fs:read", *grants])
    with runtime_with(["fs:read", *grants]) as runtime:
        handle = runtime.load_manifest(world.manifest)
        proves(world, attack, handle)
        assert denials(runtime) == []


def test_without_a_sandbox_the_rest_succeeds_too(world: World) -> None:
    """What no capability opens works in a plugin that its host trusts; there nothing is refused, nor recorded."""
    sandbox = SandboxConfig.permissive().with_isolation(IsolationMode.PROCESS, trusted=True)
    with runtime_with(["fs:read"], sandbox) as runtime:
        handle = runtime.load_manifest(world.manifest)
        for attack in ATTACKS:
            if attack.granted is None and attack.name not in CONTROLLED_ELSEWHERE:
                (world.plugin / "link").unlink(missing_ok=True)
                proves(world, attack, handle)
        assert len(world.heard()) == 2
        assert world.victim.poll() is None
        assert denials(runtime) == []


def test_the_searches_find_what_is_there(world: World) -> None:
    """In the host, where there is something to be found; so in a worker they do not fail for want of looking."""
    names: dict[str, Any] = {}
    exec(HOSTILE, names)
    with runtime_with([]):
        assert names["attempt"]("search", ["only-the-host-knows-it"])[0] == "done"
    assert names["attempt"]("every_fd", [str(world.file)])[0] == "done"
    code = f"import os; os.write({world.fd}, b'was here')"
    assert subprocess.run([sys.executable, "-c", code], close_fds=False, check=False).returncode == 0


def test_a_neighbours_temporary_folder_is_not_there(world: World, tmp_path: Path) -> None:
    """Neither by the path that the neighbour has for it, nor through /proc."""
    code = "import os\ndef keep(text):\n    open('kept', 'w').write(text)\n    return os.path.abspath('kept')\n"
    neighbour = write_plugin(tmp_path / "neighbour", code, exports=("keep",), capabilities=("fs:write",))
    with runtime_with(["fs:read", "fs:write"]) as runtime:
        there = runtime.load_manifest(neighbour)
        path = there.call("keep", ["the neighbour's"])
        handle = runtime.load_manifest(world.manifest)
        assert handle.call("attempt", ["read", [path]])[0] == "refused"
        for way in (f"/proc/{there.info().pid}/root{path}", f"/proc/{there.info().pid}/cwd/kept"):
            before = len(denials(runtime))
            assert handle.call("attempt", ["read", [way]])[0] == "refused"
            assert [(each.operation, each.target) for each in denials(runtime)[before:]] == [("open", way)]
        assert there.call("keep", ["still there"]) == path


def test_an_allowed_folder_is_no_way_out(world: World) -> None:
    """With one folder to write in: not by dots, not by a link that lies there, not by one of its own."""
    (world.allowed / "door").symlink_to(world.outside)
    declare(world, ["fs:read", f"fs:write={world.allowed}"])
    with runtime_with(["fs:read", f"fs:write={world.allowed}"]) as runtime:
        handle = runtime.load_manifest(world.manifest)
        world.before = world.files()
        for way in ("../outside/new", "door/new", "door/file", "../plugins/hostile/main.py"):
            before = len(denials(runtime))
            path = f"{world.allowed}/{way}"
            assert handle.call("attempt", ["write", [path]])[0] == "refused", way
            assert [(each.operation, each.target) for each in denials(runtime)[before:]] == [("open", path)]
            world.untouched()
        for function in ("symlink", "hard_link"):
            assert handle.call("attempt", [function, [str(world.file), str(world.allowed / "link")]])[0] == "refused"
        world.untouched()
        assert handle.call("attempt", ["write", [str(world.allowed / "new")]]) == ["done", None]


def test_a_call_past_ctypes_names_is_on_record_by_the_host(world: World) -> None:
    """By its number a system call is announced by nobody; what the kernel ends the worker for, the host records."""
    with runtime_with(["fs:read"]) as runtime:
        handle = runtime.load_manifest(world.manifest)
        with pytest.raises(PluginCrashed) as caught:
            handle.call("attempt", ["raw_unshare", []])
        assert caught.value.signal == signal.SIGSYS
        assert [(each.operation, each.detail) for each in denials(runtime)] == [
            ("system call", "no capability opens it; the kernel ended the worker")
        ]


# --- without the layers -------------------------------------------------------------------------------------


def test_a_host_that_can_enforce_nothing_loads_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the layer that is missing and what would bring it; nothing of the plugin has run."""
    bare = replace(probe(), landlock_abi=0, seccomp=False, namespaces=frozenset(), user_namespaces=False)
    for module in (blueprint, opening):
        monkeypatch.setattr(module, "probe", lambda: bare)
    with runtime_with(["fs:read"]) as runtime:
        with pytest.raises(UnsupportedError) as caught:
            runtime.load_manifest(world.manifest)
        assert caught.value.layer in tuple(Layer)
        assert caught.value.reason
        assert caught.value.fix
        assert runtime.list_plugins() == []
    world.untouched()


def test_each_required_layer_that_is_missing_is_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock alone, or seccomp alone, does not make a plugin's sandbox."""
    for missing in ({"seccomp": False}, {"landlock_abi": 0, "namespaces": frozenset(), "user_namespaces": False}):
        lesser = replace(probe(), **missing)  # type: ignore[arg-type]
        for module in (blueprint, opening):
            monkeypatch.setattr(module, "probe", lambda lesser=lesser: lesser)  # type: ignore[misc]
        with runtime_with(["fs:read"]) as runtime, pytest.raises(UnsupportedError, match="cannot enforce"):
            runtime.load_manifest(world.manifest)


def test_what_is_missing_and_not_required_is_in_the_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer namespaces a plugin runs, held by the rest; its report says so, and the attacks are as vain."""
    if probe().landlock_abi < 1:
        pytest.skip(str(probe().reasons))
    lesser = replace(probe(), namespaces=probe().namespaces - {"net", "ipc", "uts"})
    for module in (blueprint, opening):
        monkeypatch.setattr(module, "probe", lambda: lesser)
    with runtime_with(["fs:read"]) as runtime:
        handle = runtime.load_manifest(world.manifest)
        report = handle.report
        assert report is not None
        assert report["namespaces"].status in (Status.NONE, Status.PARTIAL)
        assert "net" in str(report["namespaces"])
        assert report["seccomp"].status is Status.FULL
        for attack in ATTACKS:
            ended = handle.call("attempt", [attack.function, attack.args(world)], timeout=20)
            assert ended[0] == "refused", attack.name
            world.untouched()
