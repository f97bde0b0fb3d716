"""Save a plugin's file, and the next call is answered by the new code; save a mistake, and the old code goes on.

python examples/hot_reload.py
"""

import logging
import shutil
import tempfile
import threading
from pathlib import Path

from ringfence import PluginRuntime, PluginWatcher, WatchConfig
from ringfence.plugins.backoff import BackoffConfig

EXAMPLE = Path(__file__).parent / "plugins/example"


def main():
    logging.getLogger("ringfence").setLevel(logging.ERROR)  # what goes wrong is printed below
    with tempfile.TemporaryDirectory() as folder, PluginRuntime() as runtime:
        shutil.copytree(EXAMPLE, Path(folder, "example"))
        source = Path(folder, "example/main.py")
        runtime.load_manifest(Path(folder, "example/plugin.toml"))
        print("before:", runtime.call("example", "process", ["Data"]))

        # After a tenth of a second without a further change, and without trying again after a mistake. (By default it
        # is half a second, as suits an editor, and five times.)
        config = WatchConfig().with_debounce(0.1).with_backoff(BackoffConfig.exponential(max_retries=0))
        watcher = PluginWatcher(config, runtime=runtime)
        attempted = threading.Semaphore(0)

        @watcher.on_after_reload
        def _(name, attempt):
            why = "" if attempt.error is None else f", {str(attempt.error).rpartition(': ')[2]}"
            print(f"reload of {name}: {attempt.outcome}{why}")
            attempted.release()

        watcher.watch(folder).start()

        code = source.read_text()
        for title, text in (
            ("changed", code.replace("upper", "lower")),
            ("broken", code.replace("data.upper()", "data.upper(")),
            ("mended", code.replace("upper", "title")),
        ):
            source.write_text(text)
            attempted.acquire(timeout=20)
            print(f"{title}:", runtime.call("example", "process", ["Data"]))
        # The runtime stops its watcher, too.


if __name__ == "__main__":
    main()
