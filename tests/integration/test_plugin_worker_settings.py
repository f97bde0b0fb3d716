"""What a plugin is granted, held in a real worker."""

from pathlib import Path

import pytest

from ringfence.errors import CapabilityDenied
from ringfence.plugins.config import EngineConfig, LoaderConfig
from ringfence.plugins.errors import InvalidConfig
from ringfence.plugins.grants import effective
from ringfence.plugins.manifest import Manifest
from ringfence.plugins.sandbox_config import IsolationMode, SandboxConfig
from ringfence.plugins.versions import ApiVersion
from ringfence.plugins.worker_settings import worker_settings
from ringfence.pool.executor import Pool
from ringfence.sandbox.capabilities import Capabilities
from ringfence.sandbox.errors import UnsupportedError


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str) -> None:
    with open(path, "w") as file:
        file.write("x")


def _temporary() -> tuple[str, list[str]]:
    import os
    import tempfile

    folder = tempfile.gettempdir()
    there = os.listdir(folder)
    with tempfile.NamedTemporaryFile() as file:
        return file.name, there


def _manifest(*capabilities: str) -> Manifest:
    return Manifest(
        name="example", version="1.0.0", api_version=ApiVersion(0, 21, 0), source="main.py", capabilities=capabilities
    )


def test_a_plugin_reads_its_own_folder_and_what_the_host_names(tmp_path: Path) -> None:
    """The grants reach the kernel: own folder and a named path work, everything else is refused, writing too."""
    own, named, other = (tmp_path / name for name in ("own", "named", "other"))
    for folder in (own, named, other):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    engine = EngineConfig().with_capabilities(Capabilities(["fs:read"]))
    config = LoaderConfig().with_engine_config(engine.with_sandbox(SandboxConfig().with_read_paths([named])))
    settings = worker_settings(effective(_manifest("fs:read"), own, config))
    with Pool(max_workers=1, **settings.pool_arguments()) as pool:
        assert pool.submit(_read, str(own / "file")).result() == "own"
        assert pool.submit(_read, str(named / "file")).result() == "named"
        for refused in (other / "file", Path("/etc/passwd")):
            with pytest.raises((CapabilityDenied, FileNotFoundError)):
                pool.submit(_read, str(refused)).result()
        with pytest.raises(CapabilityDenied):
            pool.submit(_write, str(own / "file")).result()
    assert (own / "file").read_text() == "own"


def test_each_worker_has_a_temporary_folder_of_its_own() -> None:
    """Two workers never see each other's temporary files, and nothing of them is on the host."""
    config = LoaderConfig().with_engine_config(EngineConfig().with_capabilities(["fs:write", "random"]))
    settings = worker_settings(effective(_manifest("fs:write", "random"), None, config))
    with Pool(max_workers=1, isolation="call", **settings.pool_arguments()) as pool:
        found = [pool.submit(_temporary).result() for _ in range(2)]
    assert all(not there for _, there in found)
    assert all(not Path(name).exists() for name, _ in found)


def test_a_host_insists_on_a_level() -> None:
    """What a SandboxConfig requires reaches the pool: less is refused before a worker exists."""
    box = SandboxConfig().with_require(["confined"])
    mine = box.with_isolation(IsolationMode.PROCESS, trusted=True)
    for settings, refused in ((box, False), (mine, True)):
        config = LoaderConfig().with_sandbox_config(settings)
        arguments = worker_settings(effective(_manifest(), None, config)).pool_arguments()
        if refused:
            with pytest.raises(UnsupportedError, match="confined is required"):
                Pool(max_workers=1, **arguments)
        else:
            Pool(max_workers=1, **arguments).shutdown()
    with pytest.raises(InvalidConfig, match="'secure' is no level"):
        SandboxConfig(require="secure")  # type: ignore[arg-type]
