"""``ringfence run``: a Python script, locked in, as if it had been started by hand."""

import errno
import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ringfence.cli.ending import Ending
    from ringfence.cli.source import Script
    from ringfence.sandbox.limits import Limits
    from ringfence.sandbox.policy import Policy
    from ringfence.sandbox.refusal import Refusal

__all__ = ["Request", "grant_of", "register", "supervise"]

_USAGE: Final = 2
# As env(1), timeout(1) and the shells have them.
_NOT_STARTED: Final = 125
_NOT_READABLE: Final = 126
_NOT_FOUND: Final = 127
_INTERRUPTED: Final = 130

_UNLIMITED: Final = "none"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    script: Annotated[str, typer.Argument(help="The script's file; - reads it from stdin.", show_default=False)],
    args: Annotated[
        list[str] | None, typer.Argument(help="Its arguments; put -- before them if they look like options.")
    ] = None,
    profile: Annotated[str, typer.Option(help="What it may do to begin with: a name, or a TOML file.")] = "untrusted",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CAPABILITY", help="Grant more, such as fs:read=DATA or net:request=:443. May be repeated."
        ),
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Such as 512MiB; none for no limit.")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="By the clock: 10s, 2m, none.")] = None,
    cpu: Annotated[str | None, typer.Option(metavar="TIME", help="CPU time of all threads: 5s, none.")] = None,
    processes: Annotated[str | None, typer.Option(metavar="N", help="Processes and threads, itself included.")] = None,
    files: Annotated[str | None, typer.Option(metavar="N", help="Open files.")] = None,
    file_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Of any file it writes.")] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEVEL", help="Refuse to run it locked in less: private, confined, limited, or a layer's name."
        ),
    ] = None,
) -> None:
    """Run a Python script locked in.

    It may import the library and the modules beside it, use stdin, stdout and stderr, and nothing else that is
    not granted. It starts in this folder if that is granted, else in an empty one. What it prints reaches the
    terminal as it is; what ringfence says of it is one line that begins with "ringfence:".

    Exit code: the script's own; 124 it ran out of time; 128+N signal N ended it (137: ringfence did, at a limit);
    125 it could not be started; 126 it cannot be read; 127 there is no such file; 130 Ctrl-C; 2 usage.
    """
    logging.getLogger("ringfence").addHandler(logging.NullHandler())
    _hold_standard_descriptors()
    given = {
        "memory": memory, "wall": timeout, "cpu": cpu, "processes": processes, "open_files": files,
        "file_size": file_size,
    }  # fmt: skip
    try:
        code = _run(script, args or [], profile, allow or [], given, require or [])
    except KeyboardInterrupt:
        code = _INTERRUPTED
    raise typer.Exit(code)


def _hold_standard_descriptors() -> None:
    """Open what the caller closed of fds 0, 1 and 2, lest a pipe of ours becomes the script's stdout."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _say(text: str) -> None:
    try:
        print(f"ringfence: {text}", file=sys.stderr, flush=True)
    except (OSError, AttributeError):  # nobody listens: the exit code remains
        pass


def _run(
    path: str, args: list[str], profile: str, allow: list[str], given: dict[str, str | None], require: list[str]
) -> int:
    from ringfence.cli.ending import visible
    from ringfence.cli.source import TooLarge, read_script
    from ringfence.errors import RingfenceError
    from ringfence.sandbox.errors import PolicyError

    try:
        wanted = Request(profile, allow, given, require)
    except PolicyError as error:
        _say(str(error))
        return _USAGE
    try:
        script = read_script(path)
    except (OSError, TooLarge) as error:
        _say(f"cannot read the script {visible(repr(path))}: {getattr(error, 'strerror', None) or error}")
        return _NOT_FOUND if getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR) else _NOT_READABLE
    try:
        ending = supervise(wanted, script, [path, *args])[0]
    except (RingfenceError, TooLarge, OSError) as error:
        _say(f"cannot start the script: {error}")
        return _NOT_STARTED
    if ending.sentence is not None:
        _say(visible(ending.sentence))
    return ending.code


class Request:
    """What the command line asks for. Raises PolicyError for what is misspelt."""

    def __init__(
        self, profile: str, allow: list[str], given: dict[str, str | None], require: list[str]
    ) -> None:
        from ringfence.sandbox.profiles import load_profile
        from ringfence.sandbox.requirement import Requirement

        self.profile = load_profile(profile)
        # Whoever runs a script sits at its stdin.
        self.grants = [grant_of(text) for text in (*allow, "stdin:read")]
        self.limits = _limits(given)
        self.requirement = Requirement.read(require)

    def policy(self) -> "Policy":
        """Return the whole policy. Raises PolicyError for what cannot be kept."""
        from ringfence.sandbox.errors import PolicyError
        from ringfence.sandbox.policy import Policy

        for grant in self.grants:
            if grant.capability.value.startswith("fs:") and grant.scope and not os.path.exists(grant.scope):
                raise PolicyError(f"--allow {grant}: there is no such file or folder; create it, or grant one above")
        return Policy.build(self.profile, self.grants, self.limits)


def _limits(given: dict[str, str | None]) -> "Limits":
    from ringfence.sandbox.errors import PolicyError
    from ringfence.sandbox.limits import Limits

    values: dict[str, Any] = {
        name: None if text == _UNLIMITED else text for name, text in given.items() if text is not None
    }
    try:
        return Limits(**values)
    except PolicyError as error:
        options = {"wall": "timeout", "open_files": "files", "file_size": "file-size"}
        name, _, rest = str(error).removeprefix("limits.").partition(":")
        raise PolicyError(f"--{options.get(name, name)}:{rest}") from None


def grant_of(text: str) -> Any:
    """Return the grant that an --allow asks for; a path in it may be relative, or begin with ~. Raises PolicyError."""
    from ringfence.sandbox.capabilities import Capability, Grant

    name, equals, scope = text.partition("=")
    capability = Capability.parse(name)
    is_path = capability.value.startswith("fs:") or capability is Capability.PROCESS_EXEC
    if equals and scope and is_path:
        scope = os.path.abspath(os.path.expanduser(scope))
    return Grant.parse(f"{capability}{equals}{scope}")


def supervise(
    wanted: Request, script: "Script", argv: list[str], on_refusal: "Callable[[Refusal], object] | None" = None
) -> "tuple[Ending, BaseException | None]":
    """Run the script to its end, in a pool of one worker; return how it ended, and with which error, if with one.

    `on_refusal` is told of what it was refused. Raises RingfenceError, TooLarge or OSError when it cannot be started.
    """
    from ringfence.cli.ending import Ending, ending_of
    from ringfence.cli.source import imported_names, modules_for
    from ringfence.pool.codebase import Module
    from ringfence.pool.errors import BrokenPool
    from ringfence.pool.executor import Pool
    from ringfence.worker.script import run_script

    policy = wanted.policy()
    with Pool(
        1, profile=wanted.profile, capabilities=wanted.grants, limits=wanted.limits, isolation="call", stdout="inherit",
        require=wanted.requirement, on_refusal=on_refusal,
    ) as pool:  # fmt: skip

        def names_in(modules: list[Module]) -> list[str]:
            error = (future := pool.submit(imported_names, modules)).exception()
            if isinstance(error, BrokenPool):
                raise error
            # A source that a worker cannot even parse will say so when it runs.
            return [] if error is not None else [str(name) for name in future.result()]

        found = modules_for(script, names_in)
        modules = [(each.name, each.source, each.filename, each.is_package) for each in found]
        future = pool.submit(
            run_script, script.source, script.filename, argv, script.folder, modules, _working_folder(policy)
        )
        error = future.exception()
    if error is not None:
        return ending_of(error, policy.capabilities, policy.limits), error
    code = future.result()
    # The worker is the script's own by now: whatever it sent is only a number if it is one.
    return Ending(code if type(code) is int and 0 <= code <= 255 else 1), None


def _working_folder(policy: "Policy") -> str | None:
    """Return this folder if the script is granted it, or anything in it; else None: its private one."""
    from ringfence.sandbox.capabilities import Grant
    from ringfence.sandbox.scopes import path_contains

    try:
        here = os.getcwd()
    except FileNotFoundError:
        return None  # it has been removed under us
    kinds = ("fs:read", "fs:write", "fs:delete")
    if any(policy.capabilities.has(Grant.parse(f"{kind}={here}")) for kind in kinds):
        return here
    scopes = [each.scope for each in policy.capabilities if each.capability.value in kinds and each.scope]
    return here if any(path_contains(here, scope) for scope in scopes) else None
