"""Load a plugin and call it: the code that answers runs in a process of its own, locked in.

python examples/plugins_quick_start.py
"""

import os
from pathlib import Path

from ringfence import PluginRuntime, RuntimeConfig

PLUGINS = Path(__file__).parent / "plugins"


def main():
    runtime = PluginRuntime(RuntimeConfig())
    plugin = runtime.load_manifest(PLUGINS / "example/plugin.toml")
    result = runtime.call("example", "process", ["data"])
    print(f"Result: {result!r}")
    print(f"Another process than this one: {plugin.info().pid != os.getpid()}")
    # No shutdown: the worker ends when the runtime is forgotten, or with the program.


if __name__ == "__main__":
    main()
