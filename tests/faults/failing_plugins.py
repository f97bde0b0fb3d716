"""One plugin's life, or one store's, run again and again with one system call failing: as failing_calls.py for pools.

Usage: python failing_plugins.py plugin|store, and then as failing_calls.py.
"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from failing_calls import judged, serve
from scenario_plugins import write_plugin

from ringfence import PluginRuntime
from ringfence.plugins.store import PluginStore

_PLUGIN = "def echo(number): return number\n"


def use_plugin(folder: Path) -> list[str]:
    """Load a plugin, call it, unload it; return what was raised, and what was wrong."""
    told: list[str] = []
    runtime = None
    try:
        runtime = PluginRuntime()
        plugin = runtime.load_manifest(folder / "plugin" / "plugin.toml")
        if (said := plugin.call("echo", [7])) != 7:
            told.append(f"WRONG: {said!r:.60} is no answer")
        runtime.unload(plugin.name)
    except BaseException as error:  # all is judged
        told.append(judged(error))
    try:
        if runtime is not None:
            runtime.shutdown()
    except BaseException as error:
        told.append(judged(error))
    return told


def use_store(folder: Path) -> list[str]:
    """Install a plugin, use it, remove it; return what was raised, and what was wrong: of what is left, too."""
    told: list[str] = []
    try:
        root = Path(tempfile.mkdtemp(dir=folder))
        store = PluginStore(root, timeout=0.2)
        installed = store.install(folder / "plugin")
        store.use(installed.name).release()
        store.pin(installed.name, installed.version)
        store.remove(installed.name)
    except BaseException as error:  # all is judged
        told.append(judged(error))
    return told


def use_store_again(folder: Path) -> list[str]:
    """Do it with every store that is there: whatever happened to it, it is whole, and no lock is in the way."""
    told = []
    for root in folder.iterdir():
        if root.name == "plugin":
            continue
        store = PluginStore(root, timeout=0.2)
        store.sweep()
        for installed in store.installed():
            store.verify(installed.name, installed.version)
            store.remove(installed.name)
        installed = store.install(folder / "plugin")
        store.use(installed.name).release()
        store.remove(installed.name)
        told += [f"left: {path}" for path in root.rglob("*.py")]
    return told


def main() -> None:
    """See above."""
    folder = Path(tempfile.mkdtemp())
    write_plugin(folder / "plugin", _PLUGIN, exports=("echo",))
    try:
        if sys.argv[1] == "plugin":
            assert use_plugin(folder) == []
            serve(sys.argv[2:], lambda: use_plugin(folder), lambda: use_plugin(folder))
        else:
            assert use_store(folder) == []
            serve(sys.argv[2:], lambda: use_store(folder), lambda: use_store_again(folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
