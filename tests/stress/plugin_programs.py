"""Runs random programs over the plugin runtime, each in a process of its own: `programs.py` with other steps.

It is started in the folder that the plugins were written into.
"""

import sys

import programs
from plugin_steps import PluginRun

if __name__ == "__main__":
    programs.Run = PluginRun  # type: ignore[misc]
    lines = iter([sys.argv[2]] * int(sys.argv[3] if len(sys.argv) > 3 else 1)) if len(sys.argv) > 2 else sys.stdin
    programs.main(lambda: next(iter(lines), ""), float(sys.argv[1]))
