"""``ringfence plugin call``: one function of a plugin, in a locked-in process, and what it returns."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ringfence.cli.plugin_access import Access, AllowOption, ProfileOption, YesOption
from ringfence.cli.plugin_home import Home, JsonOption, PluginArgument, StoreOption, Target, found
from ringfence.cli.plugin_output import NotStarted, escaped, note, print_json, report
from ringfence.cli.plugin_values import as_data, as_text, keywords, value_of

if TYPE_CHECKING:
    from ringfence.plugins.config import RuntimeConfig
    from ringfence.plugins.handle import PluginHandle
    from ringfence.plugins.records import PluginLog
    from ringfence.plugins.runtime import PluginRuntime

__all__ = ["call_until_interrupted", "print_result", "register", "running", "seconds_of", "show_log"]

_LEVELS: Final = ("trace", "debug", "info", "warn", "error")
_DEBUG: Final = 1
_PRINTED: Final = ("stdout", "stderr")


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("call")(call)


def call(
    plugin: PluginArgument,
    function: Annotated[str, typer.Argument(help="The function to call.")] = "main",
    args: Annotated[
        list[str] | None,
        typer.Argument(help="Its arguments as JSON; what is no JSON is a text. Put -- before negative numbers."),
    ] = None,
    kwarg: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument by name. May be repeated.")
    ] = None,
    allow: AllowOption = None,
    profile: ProfileOption = None,
    yes: YesOption = False,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Of the call: 10s, 2m, none.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call a function of a plugin and print what it returns.

    What the plugin declares has to be approved once: at the terminal, with --yes, or for this time with --allow or
    --profile. Answers are kept until its code changes or it declares more. Without a terminal the answer is no.

    The result goes to stdout: a text as it is, everything else as JSON. What the plugin prints and logs goes to stderr.

    \b
    Examples:
      ringfence plugin call greeter greet you
      ringfence plugin call ./stats.py mean '[1, 2, 3]' --kwarg digits=2
      ringfence plugin call collector@1.2.0 report --json --timeout 5s

    Exit code: 0, 1 the function failed, 2 usage, 124 it ran out of time, 125 the plugin could not be started.
    """
    from ringfence.errors import RingfenceError

    values = [value_of(text) for text in args or ()]
    named = keywords(kwarg)
    limit = seconds_of(timeout)
    access, home = Access(allow, profile), Home.of(store)
    with ExitStack() as stack:
        try:
            target = stack.enter_context(found(plugin, home))
            config = access.runtime_config(target.manifest(), home, yes=yes, call_timeout=limit)
        except (RingfenceError, OSError) as error:
            raise NotStarted(error) from error
        with running(target, config) as (_, handle):
            result = call_until_interrupted(handle, function, values, named)
            if as_json:
                print_json({"plugin": handle.name, "version": handle.version, "function": function,
                            "result": as_data(result)})  # fmt: skip
            else:
                print_result(result)


def call_until_interrupted(
    handle: "PluginHandle", function: str, args: list[Any], kwargs: dict[str, Any] | None = None
) -> Any:
    """Call a function as `PluginHandle.call` does; Ctrl-C ends it at once, and its worker with it."""
    from ringfence.plugins.errors import Cancelled

    try:
        return handle.call(function, args, kwargs)
    except KeyboardInterrupt:
        # Not asked to end: whoever presses Ctrl-C does not wait for what may never come.
        engine = handle.steps.engine
        if engine is not None:
            engine.kill(Cancelled(f"{handle.name}.{function} was interrupted"))
        raise


def seconds_of(text: str | None) -> float | None:
    """Return the seconds that a --timeout means: by default 30, for "none" no end. Raises BadParameter."""
    from ringfence.sandbox.amounts import parse_duration
    from ringfence.sandbox.errors import PolicyError

    if text is None:
        return 30.0
    try:
        return None if text == "none" else parse_duration(text, what="timeout")
    except PolicyError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from None


@contextmanager
def running(target: Target, config: "RuntimeConfig") -> "Iterator[tuple[PluginRuntime, PluginHandle]]":
    """Yield a runtime and the plugin in it; afterwards both have ended, and what the plugin did wrong then is told.

    Raises NotStarted when it does not come up.
    """
    from ringfence.errors import RingfenceError
    from ringfence.plugins.runtime import PluginRuntime

    runtime = PluginRuntime(config, on_log=show_log)
    try:
        try:
            handle = target.load(runtime)
        except (RingfenceError, OSError) as error:
            raise NotStarted(error) from error
        yield runtime, handle
    finally:
        try:
            runtime.shutdown()
        except ExceptionGroup as group:
            report(group, as_json=False)


def show_log(record: "PluginLog") -> None:
    """Print what a plugin printed or logged, on stderr: stdout is for results."""
    if record.logger in _PRINTED:
        note(record.message)
    elif record.level > _DEBUG:
        level = _LEVELS[record.level] if 0 <= record.level < len(_LEVELS) else "info"
        note(f"[{level}] {record.logger}: {record.message}" if record.logger else f"[{level}] {record.message}")


def print_result(result: Any) -> None:
    """Print what a function returned: at a terminal harmlessly, into a pipe byte for byte."""
    text = as_text(result)
    if text is None:
        return
    if sys.stdout.isatty():
        text = escaped(text)
    try:
        print(text)
    except UnicodeEncodeError:  # a lone surrogate, or a terminal of few letters
        print(text.encode(sys.stdout.encoding or "ascii", "backslashreplace").decode(sys.stdout.encoding or "ascii"))
