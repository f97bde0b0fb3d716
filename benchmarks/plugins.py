"""Plugins: how long it takes to load a hundred, and what a reload under load costs its callers."""

import itertools
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.model import Contender, Figure, Measured, Parameters, Row

_MANIFEST = """name = "{name}"
version = "1.0.0"
api-version = {{ major = 0, minor = 21, patch = 0 }}
source = "main.py"
exports = ["work", "save_state", "restore_state"]
"""

_SOURCE = """VERSION = {version}
count = 0

def work():
    global count
    count += 1
    return [VERSION, count]

def save_state():
    return count

def restore_state(state):
    global count
    count = state
"""


def _write(folder: Path, name: str, version: int) -> Path:
    home = folder / name
    home.mkdir(exist_ok=True)
    (home / "main.py").write_text(_SOURCE.format(version=version))
    manifest = home / "plugin.toml"
    manifest.write_text(_MANIFEST.format(name=name))
    return manifest


def _load(parameters: Parameters) -> Measured:
    """Load plugins one after the other, as `load_directory` does, then call each, then end them all."""
    from ringfence import PluginRuntime

    with tempfile.TemporaryDirectory() as folder:
        for number in range(parameters["plugins"]):
            _write(Path(folder), f"plugin-{number}", 1)
        start = time.perf_counter()
        with PluginRuntime() as runtime:
            loaded = runtime.load_directory(folder)
            if loaded.failures:
                raise RuntimeError(str(loaded.failures))
            ready = time.perf_counter()
            for handle in loaded:
                handle.call("work")
            called = time.perf_counter()
        end = time.perf_counter()
    count = parameters["plugins"]
    return {"load": (ready - start) / count, "first": (called - ready) / count, "end": (end - called) / count}


def _reload(parameters: Parameters) -> Measured:
    """Call from several threads while the plugin is reloaded again and again; every call must be answered."""
    from ringfence import PluginRuntime

    with tempfile.TemporaryDirectory() as folder, PluginRuntime() as runtime:
        runtime.load_manifest(_write(Path(folder), "busy", 0))
        stop, pauses, failures, answers = threading.Event(), [], [], itertools.count()

        def call_on() -> None:
            longest = 0.0
            while not stop.is_set():
                start = time.perf_counter()
                try:
                    runtime.call("busy", "work")
                except Exception as error:
                    failures.append(error)
                next(answers)
                longest = max(longest, time.perf_counter() - start)
            pauses.append(longest)

        with ThreadPoolExecutor(parameters["threads"]) as threads:
            for _ in range(parameters["threads"]):
                threads.submit(call_on)
            times = []
            for version in range(1, parameters["reloads"] + 1):
                _write(Path(folder), "busy", version)
                start = time.perf_counter()
                runtime.reload_plugin("busy")
                times.append(time.perf_counter() - start)
            stop.set()
        made = next(answers)
        version, count = runtime.call("busy", "work")
    # State was handed over each time: a call that was lost, or counted twice, would show.
    lost = len(failures) + abs(made + 1 - count) + (version != parameters["reloads"])
    return {"reload": statistics.median(times), "pause": max(pauses), "lost": float(lost)}


LOAD = Row(
    name="plugins-load",
    title="{plugins} plugins loaded from a folder, each into a locked-in worker of its own",
    figures=(
        Figure("load", "load, for each", "ms"),
        Figure("first", "first call, for each", "ms"),
        Figure("end", "stop and unload, for each", "ms"),
    ),
    contenders=(Contender("PluginRuntime.load_directory", _load),),
    full={"plugins": 100},
    quick={"plugins": 4},
    rounds=3,
    budget=60.0,
    by_figure=True,
)

RELOAD = Row(
    name="plugins-reload",
    title="{reloads} reloads with hand-over of state while {threads} threads call the plugin",
    figures=(
        Figure("reload", "one reload", "ms"),
        Figure("pause", "the longest that a call took", "ms"),
        Figure("lost", "calls lost, failed or counted twice", "count"),
    ),
    contenders=(Contender("PluginRuntime.reload_plugin", _reload),),
    full={"reloads": 20, "threads": 8},
    quick={"reloads": 2, "threads": 2},
    rounds=3,
    budget=60.0,
    by_figure=True,
)
