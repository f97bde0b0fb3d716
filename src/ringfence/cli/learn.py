"""``ringfence learn``: what a program that you trust needs, found by running it, and proven by running it locked in."""

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = ["register"]

_USAGE: Final = 2
_UNPROVEN: Final = 3
_NOT_STARTED: Final = 125


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("learn", context_settings={"allow_interspersed_args": False})(learn)


def learn(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="script.py ARGS, -m MODULE ARGS (after --), or a Python program such as pytest.",
                       show_default=False),
    ] = None,
    plugin: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Learn what a plugin needs; COMMAND is then a function and its arguments."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put it into this plugin.toml, or into a profile for run.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what --write names.")] = False,
    proof: Annotated[bool, typer.Option(help="Run it again, locked in, with what was found.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
) -> None:
    """Find out what a program needs, by running it.

    It runs with all your rights: learn from code that you trust. Recorded is what Python announces: files, folders,
    hosts, variables, programs. Then it runs again, locked in with just what was found; what that run is refused is
    added, and it runs again. Both runs are real: what the program changes, it changes twice.

    \b
    Examples:
      ringfence learn report.py --month 3
      ringfence learn --json -- -m http.server --help
      ringfence learn --plugin ./words top

    Exit code: 0 proven; 1 the program failed by itself; 2 usage; 3 the locked-in run ended otherwise; 125 the program
    could not be run.
    """
    try:
        _learn(command, plugin, write, force=force, proof=proof, as_json=as_json)
    except OSError as error:
        print(f"ringfence: cannot learn from it: {error}", file=sys.stderr)
        raise typer.Exit(_NOT_STARTED) from None


def _learn(
    command: list[str] | None, plugin: Path | None, write: Path | None, *, force: bool, proof: bool, as_json: bool
) -> None:
    from ringfence.cli import learn_output as output
    from ringfence.cli.learn_program import NotFound, plugin_program, program
    from ringfence.cli.learn_proof import prove
    from ringfence.cli.learn_record import record

    try:
        if plugin is not None:
            made = plugin_program(plugin, command or [])
        elif command:
            made = program(command)
        else:
            raise NotFound("name a script, -m MODULE, or --plugin FOLDER")
        if write is not None:
            output.check_writable(write, force=force)
    except NotFound as error:
        print(f"ringfence: {error}", file=sys.stderr)
        raise typer.Exit(_USAGE) from None
    output.say(f"running {made.name} with all your rights, to see what it touches")
    with made.stdin() as stdin:
        recorded = record(made, stdin)
        lesson, limits = recorded.lesson, recorded.limits
        proven = prove(made, recorded, stdin, output.say) if proof else None
    if proven is not None:
        lesson, limits = proven.lesson, proven.limits
    if as_json:
        output.print_data(made, recorded, lesson, limits, proven)
    else:
        output.print_text(made, recorded, lesson, limits, proven)
    if write is not None:
        output.write(write, made, lesson, limits)
        output.say(f"wrote {os.fspath(write)}")
    if recorded.code != 0:
        raise typer.Exit(1)
    if proven is not None and not proven.same:
        raise typer.Exit(_UNPROVEN)
