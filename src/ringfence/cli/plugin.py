"""``ringfence plugin``: write, check, install, call and watch plugins."""

import inspect
import logging
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

from ringfence.cli.flowing import flowing
from ringfence.cli.plugin_output import NotStarted, report

__all__ = ["PluginGroup", "register"]

_USAGE: Final = 2
_INTERRUPTED: Final = 130

# typer brings its own copy of click or uses the one that is installed, by its version: this one is right for both.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]

# In the order of the help: what somebody needs who writes a plugin, then somebody who uses one.
_PARTS: Final = ("new", "check", "inspect", "files", "call", "watch", "installed")


class PluginGroup(TyperGroup):
    """The group of commands, and the one place where their errors become a sentence or an object, and an exit code."""

    _args: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember what was typed: a wrong command line is told of as JSON too where that was asked for."""
        self._args = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An error that is somebody's fault ends it with a message and no traceback."""
        from ringfence.errors import RingfenceError

        typed = self._args[: self._args.index("--")] if "--" in self._args else self._args
        as_json = "--json" in typed
        # What the library logs about a plugin is in the errors that are told here.
        logging.getLogger("ringfence").addHandler(logging.NullHandler())
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            if not as_json:
                raise  # typer shows it, with the command's usage
            report(error, as_json=True)
            raise typer.Exit(_USAGE) from None
        except (RingfenceError, NotStarted, OSError, ExceptionGroup) as error:
            if isinstance(error, BrokenPipeError):
                raise  # whoever read our output has gone; typer ends quietly
            raise typer.Exit(report(error, as_json=as_json)) from None
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(cls=PluginGroup, no_args_is_help=True, help=flowing(_HELP), pretty_exceptions_enable=False)
    for part in _PARTS:
        import_module(f"ringfence.cli.plugin_{part}").register(group)
    for command in group.registered_commands:
        command.help = flowing(inspect.getdoc(command.callback) or "")
    app.add_typer(group, name="plugin")


_HELP: Final = """\
Write, check, install, call and watch plugins.

A plugin is a folder with a plugin.toml, a Python file, a compiled plugin (.plb) or, once it is installed, a name.
Its code runs in a locked-in process and nowhere else; check, inspect and compile do not run it at all.

Installed plugins are kept in $RINGFENCE_HOME, else in the data folder of the user ($XDG_DATA_HOME/ringfence, which
is ~/.local/share/ringfence), beside what was approved and what is in quarantine. Most commands take --store
to use another place, and --json to print one JSON document on stdout; an error is {"error": {...}} then.

Exit code: 0, 1 a problem was found or the plugin failed, 2 usage, 124 a call ran out of time, 125 the plugin could
not be started, 130 Ctrl-C.
"""
