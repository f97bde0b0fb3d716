"""Survive a plugin that crashes for real, with a segmentation fault: restart it, wait a little longer each time.

python examples/flaky_retry.py
"""

import itertools
import time
from pathlib import Path

from ringfence import PluginRuntime, RuntimeConfig
from ringfence.errors import PluginError

PLUGINS = Path(__file__).parent / "plugins"


def main():
    runtime = PluginRuntime(RuntimeConfig())
    attempts = itertools.count(1)
    runtime.host_fn(name="attempt")(lambda: next(attempts))
    runtime.load_manifest(PLUGINS / "flaky-plugin/plugin.toml")
    max_retries, retries = 3, 0
    while True:
        try:
            print(f"Success: {runtime.call('flaky-plugin', 'work')!r}")
            break
        except PluginError as error:
            if retries >= max_retries:
                raise
            retries += 1
            print(f"Attempt {retries} failed: {str(error).partition(';')[0]}")
            runtime.restart_plugin("flaky-plugin")
            time.sleep(2**retries / 10)
    runtime.shutdown()
    # The loop is there to be seen: RuntimeConfig().with_restart_policy(RestartPolicy()) does the same by itself.


if __name__ == "__main__":
    main()
