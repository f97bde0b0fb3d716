"""``ringfence plugin watch``: a plugin that is loaded again whenever its files change, one line for each time."""

import logging
import queue
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ringfence.cli.plugin_access import Access, AllowOption, Approver, ProfileOption, YesOption
from ringfence.cli.plugin_call import call_until_interrupted, print_result, running, seconds_of
from ringfence.cli.plugin_home import Home, JsonOption, StoreOption, Target
from ringfence.cli.plugin_output import NotStarted, error_document, note, report, show
from ringfence.cli.plugin_values import as_data, value_of

if TYPE_CHECKING:
    from ringfence.plugins.handle import PluginHandle
    from ringfence.plugins.reload_driver import ReloadAttempt

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("watch")(watch)


def watch(
    path: Annotated[Path, typer.Argument(help="A folder, manifest or .py file.")],
    args: Annotated[list[str] | None, typer.Argument(help="Arguments for --call, as JSON.")] = None,
    function: Annotated[
        str | None,
        typer.Option("--call", metavar="FUNCTION", help="Call it after each load and print what it returns."),
    ] = None,
    allow: AllowOption = None,
    profile: ProfileOption = None,
    yes: YesOption = False,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Of each call: 10s, 2m, none.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a plugin and load it again whenever one of its files changes, until Ctrl-C.

    New code is proven beside the old before it takes its place: until it loads, the version before goes on.
    Each reload is one line, as is each that failed. With --json each line is an object.

    \b
    Examples:
      ringfence plugin watch greeter
      ringfence plugin watch greeter --call greet you

    Exit code: 0 ended by Ctrl-C, 2 usage, 125 the plugin could not be started.
    """
    from ringfence.errors import RingfenceError

    values = [value_of(text) for text in args or ()]
    if values and function is None:
        raise typer.BadParameter("arguments are for --call FUNCTION", param_hint="ARGS")
    access, home, target, limit = Access(allow, profile), Home.of(store), Target(path), seconds_of(timeout)
    approver = Approver(access, yes=yes)
    try:
        config = access.runtime_config(target.manifest(), home, yes=yes, call_timeout=limit)
        config = config.with_loader_config(config.loader_config.with_approval(approver))
    except (RingfenceError, OSError) as error:
        raise NotStarted(error) from error
    before = signal.signal(signal.SIGTERM, _interrupt)
    heard = _Heard()
    logging.getLogger("ringfence.plugins").addHandler(heard)
    try:
        _watch(target, config, approver, _Reporter(function, values, as_json=as_json))
    except KeyboardInterrupt:
        pass  # which is how it ends
    finally:
        logging.getLogger("ringfence.plugins").removeHandler(heard)
        signal.signal(signal.SIGTERM, before)


class _Heard(logging.Handler):
    """Passes on what goes wrong by itself, such as a daemon's round; reloads are told of in lines of their own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        if record.module not in ("reload_driver", "watcher"):
            note(f"ringfence: {record.getMessage()}")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _watch(target: Target, config: Any, approver: Approver, reporter: "_Reporter") -> None:
    from ringfence.plugins.backoff import BackoffConfig
    from ringfence.plugins.watch_config import WatchConfig
    from ringfence.plugins.watcher import PluginWatcher

    # Reloads are told of in this thread, which Ctrl-C reaches, and which may call the plugin.
    attempts: queue.SimpleQueue[ReloadAttempt] = queue.SimpleQueue()
    with running(target, config) as (runtime, handle):
        approver.remember(handle.steps.blueprint.effective.declared)
        # Whoever edits is there to see what is wrong: nothing is tried again before the next change, and each counts.
        once = BackoffConfig.exponential(max_retries=0)
        watching = WatchConfig.development().with_backoff(once).with_breaker(threshold=1_000_000)
        watcher = PluginWatcher(watching, runtime, plugin_of=lambda _: handle.name)
        watcher.on_attempt(attempts.put)
        folder = target.path if target.path.is_dir() else target.path.parent
        with watcher.watch(folder if target.suffix != ".py" else target.path):
            reporter.loaded(handle)  # now: whoever reads that and edits is seen
            while True:
                reporter.attempted(handle, attempts.get())


class _Reporter:
    """Says what happened, a line each time, and makes the call that was asked for."""

    def __init__(self, function: str | None, args: list[Any], *, as_json: bool) -> None:
        self._function, self._args, self._as_json = function, args, as_json

    def loaded(self, handle: "PluginHandle") -> None:
        """It is up for the first time."""
        self._say({"event": "loaded", "plugin": handle.name, "version": handle.version},
                  f"{handle.name} {handle.version} is loaded; Ctrl-C ends this", "bold green")  # fmt: skip
        self._call(handle)

    def attempted(self, handle: "PluginHandle", attempt: "ReloadAttempt") -> None:
        """Its files have changed, and this came of it."""
        if attempt.ok:
            result = attempt.result
            self._say({"event": "reloaded", "plugin": handle.name, "version": handle.version,
                       "count": getattr(result, "reload_count", None)},
                      f"{handle.name} {handle.version} is reloaded", "bold green")  # fmt: skip
            self._call(handle)
            return
        error = attempt.error
        document = error_document(error) if isinstance(error, Exception) else {}
        # What a ReloadFailed says besides is said here already.
        why = " ".join((getattr(error, "message", None) or str(error or attempt.outcome.value)).split())
        self._say({"event": attempt.outcome.value, "plugin": handle.name, "version": handle.version, **document},
                  f"{handle.name} is not reloaded, {handle.version} goes on: {why}", "red")  # fmt: skip

    def _call(self, handle: "PluginHandle") -> None:
        from ringfence.errors import RingfenceError

        if self._function is None:
            return
        try:
            result = call_until_interrupted(handle, self._function, self._args)
        except RingfenceError as error:
            if self._as_json:
                self._say({"event": "failed call", "plugin": handle.name, **error_document(error)}, "", None)
            else:
                report(error, as_json=False)
            return
        if self._as_json:
            self._say({"event": "called", "plugin": handle.name, "result": as_data(result)}, "", None)
        else:
            print_result(result)

    def _say(self, data: dict[str, Any], text: str, style: str | None) -> None:
        import json

        if self._as_json:
            print(json.dumps(data, allow_nan=False), flush=True)
        else:
            show(f"{time.strftime('%H:%M:%S')} {text}", style)
