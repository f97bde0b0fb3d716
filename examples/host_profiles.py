"""Choose what kind of host you are, and plugins that ask for more than that are refused before any of them runs.

python examples/host_profiles.py
"""

import threading
from pathlib import Path

from ringfence import PluginRuntime
from ringfence.errors import IncompatibleProfile
from ringfence.plugins import profiles

PLUGINS = Path(__file__).parent / "plugins"


def main():
    with PluginRuntime(profile=profiles.observability()) as rt:
        collector = rt.load_manifest(PLUGINS / "log-processor/plugin.toml")
        print(f"loaded: {collector} with", ", ".join(collector.manifest.capabilities))
        try:
            rt.load_manifest(PLUGINS / "deployer/plugin.toml")
        except IncompatibleProfile as error:
            print("refused:", error)

        # It says of itself that it is a daemon: the runtime calls its `collect` every 0.2 s, until it is stopped.
        collected = threading.Semaphore(0)
        rt.on_call(lambda plugin, function, seconds: collected.release() if function == "collect" else None)
        print("counted:", rt.call("log-processor", "process", [["GET /", "GET /a", "POST /b"]]))
        print("collected by itself:", all(collected.acquire(timeout=20) for _ in range(3)))
        rt.stop("log-processor")

        # Another host might let the deployer in.
        print("by name:", rt.load_for_profile(PLUGINS / "deployer", "orchestration"))


if __name__ == "__main__":
    main()
