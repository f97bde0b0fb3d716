"""Argument parsing, one public call, an exit code."""

import sys
from importlib import import_module
from typing import Final

__all__ = ["main"]

# Command to the module that registers it. A command's module is imported when the command is asked for, all
# of them only for --help: typer and rich alone take longer to import than a worker takes to start.
_COMMANDS: Final = {
    "run": "ringfence.cli.run",
    "learn": "ringfence.cli.learn",
    "demo": "ringfence.cli.demo",
    "doctor": "ringfence.cli.doctor",
    "explain": "ringfence.cli.explain",
    "plugin": "ringfence.cli.plugin",
}


def main() -> None:
    """Run the ``ringfence`` command; leaves with its exit code."""
    if sys.argv[1:] == ["--version"]:
        _print_version()
        return
    import inspect

    import typer

    from ringfence.cli.flowing import flowing

    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    app = typer.Typer(
        no_args_is_help=True,
        # Its two options stand before any command; a shell that asks what there is names none.
        add_completion=asked not in _COMMANDS,
        # A traceback with all local variables would print what people pass in: secrets among it.
        pretty_exceptions_enable=False,
    )

    def show_version(asked: bool) -> None:
        if asked:
            _print_version()
            raise typer.Exit

    # With a callback a lone command keeps its name.
    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version.", is_eager=True, callback=show_version
        ),
    ) -> None:
        """Run code you do not trust, locked in."""

    for name, module in _COMMANDS.items():
        if asked == name or asked not in _COMMANDS:
            import_module(module).register(app)
    for command in app.registered_commands:
        command.help = flowing(inspect.getdoc(command.callback) or "")
    app(prog_name="ringfence")


def _print_version() -> None:
    from ringfence._version import __version__

    print(f"ringfence {__version__}")
