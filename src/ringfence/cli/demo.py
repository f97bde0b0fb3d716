"""``ringfence demo``: honest work and hostile code in the same pool, and what came of both."""

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from ringfence.cli.attacks import Attempt, Target, attempts
from ringfence.cli.stopped import Stop, what_stopped
from ringfence.cli.survey import Totals, add_up, analyse, library_files

if TYPE_CHECKING:
    from ringfence.cli.demo_view import View
    from ringfence.pool.executor import Pool
    from ringfence.sandbox.report import Report

__all__ = ["Attack", "Findings", "Honest", "register"]

_NOT_HELD: Final = 1
_NOT_STARTED: Final = 125

# Honest tasks that are handed in before and after each hostile one.
_BESIDE: Final = 5
# Bytes of the largest file among them: enough to be work, small enough that the demo stays short.
_SMALL: Final = 40_000
_VARIABLE: Final = "RINGFENCE_DEMO_SECRET"


class Attack(NamedTuple):
    """One attempt: what stopped it (None: nothing did), the error its author saw, and seconds until then."""

    title: str
    stop: Stop | None
    error: str
    seconds: float


class Honest(NamedTuple):
    """The honest tasks during the attacks: handed in, done, and done with another result than before."""

    submitted: int
    completed: int
    wrong: int


class Findings(NamedTuple):
    """Everything the demo found out."""

    folder: str
    workers: int
    totals: Totals
    seconds: float
    attacks: list[Attack]
    honest: Honest
    leaked: bool
    connections: int
    report: "Report | None"

    @property
    def held(self) -> bool:
        """Whether every attempt was stopped and nothing was lost."""
        return not (
            self.leaked
            or self.connections
            or any(attack.stop is None for attack in self.attacks)
            or self.honest.completed != self.honest.submitted
            or self.honest.wrong
        )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; by default one for each CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Measure Python's own library in locked-in workers while hostile functions try to get out.

    Exit code: 0 everything held, 1 an attempt succeeded or work was lost, 125 this host cannot lock workers in.
    """
    from ringfence.cli.demo_view import View, as_data
    from ringfence.errors import RingfenceError

    logging.getLogger("ringfence").addHandler(logging.NullHandler())
    view = View(quiet=as_json)
    try:
        # Two at least: hostile and honest code are to run side by side.
        findings = _demonstrate(workers or max(2, len(os.sched_getaffinity(0))), view)
    except (RingfenceError, OSError) as error:
        print(f"ringfence demo: {error}", file=sys.stderr)
        raise typer.Exit(_NOT_STARTED) from None
    if as_json:
        print(json.dumps(as_data(findings), indent=2))
    else:
        view.show(findings)
    raise typer.Exit(0 if findings.held else _NOT_HELD)


def _demonstrate(workers: int, view: "View") -> Findings:
    from ringfence.pool.executor import Pool

    folder = os.path.realpath(sysconfig.get_path("stdlib"))
    paths = library_files(folder)
    token = secrets.token_hex(16)
    with (
        _bait(token) as (target, listener),
        Pool(
            workers,
            profile="untrusted",
            capabilities=[f"fs:read={folder}"],
            preload=["ringfence.cli.survey"],
        ) as pool,
    ):
        began = time.monotonic()
        with view.progress("measuring the library", len(paths)) as advance:
            results = {}
            for result in pool.imap_unordered(analyse, paths):
                results[result["path"]] = result
                advance()
        seconds = time.monotonic() - began
        report = next(iter(pool.reports().values()), None)
        attacks, honest, seen = _fend_off(pool, attempts(target), results, report, view)
        connections = _connections(listener)
    return Findings(
        folder, workers, add_up(results.values()), seconds, attacks, honest, token in seen, connections, report
    )


@contextlib.contextmanager
def _bait(token: str) -> Iterator[tuple[Target, socket.socket]]:
    """Lay out what the hostile functions are after: a secret file, a variable, a port that listens."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ringfence-demo-"))
        # Open to every user of this host: what keeps the workers out is the sandbox alone.
        os.chmod(folder, 0o755)
        secret = os.path.join(folder, "secret.txt")
        with open(secret, "w", encoding="utf-8") as file:
            file.write(token)
        os.chmod(secret, 0o644)
        os.environ[_VARIABLE] = token
        stack.callback(os.environ.pop, _VARIABLE, None)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        home = os.path.expanduser("~")
        port: int = listener.getsockname()[1]
        yield Target(secret, _VARIABLE, home if os.path.isdir(home) else "/", port, os.getpid()), listener


def _fend_off(
    pool: "Pool",
    hostile: list[Attempt],
    known: dict[str, dict[str, Any]],
    report: "Report | None",
    view: "View",
) -> tuple[list[Attack], Honest, str]:
    """Let every attempt be made among honest tasks. Return also all that came out of the workers, as one text."""
    work = _some_work(known)
    honest: list[tuple[str, Future[dict[str, Any]]]] = []

    def hand_in() -> None:
        honest.extend((path, pool.submit(analyse, path)) for path in (next(work) for _ in range(_BESIDE)))

    attacks, seen = [], []
    with view.progress("fending off attacks", len(hostile)) as advance:
        for attempt in hostile:
            hand_in()
            began = time.monotonic()
            future = pool.options(timeout=attempt.seconds or 30).submit(attempt.function, *attempt.args)
            hand_in()
            error = future.exception()
            attacks.append(_judge(attempt, future, time.monotonic() - began, report))
            # All that the world outside the worker ever gets to see of it.
            value = future.result() if error is None else None
            seen.append(f"{value!r} {error!r} {error.__cause__ if error else ''} {getattr(future, 'output', None)}")
            advance()
    completed = wrong = 0
    for path, future in honest:
        if (failure := future.exception()) is None:
            completed += 1
            wrong += future.result() != known[path]
        seen.append(repr(failure or future.result()))
    return attacks, Honest(len(honest), completed, wrong), "\n".join(seen)


def _some_work(known: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield small files that have been measured before, over and over."""
    small = sorted(path for path, result in known.items() if 1000 < result["bytes"] < _SMALL)
    while True:
        yield from small


def _judge(attempt: Attempt, future: Future[Any], seconds: float, report: "Report | None") -> Attack:
    error = future.exception()
    if error is None:
        return Attack(attempt.title, None, f"none: it got {future.result()!r}", seconds)
    # The first line: what follows it is the end of the worker's stderr.
    text = (str(error).splitlines() or [""])[0]
    return Attack(attempt.title, what_stopped(error, report), f"{type(error).__name__}: {text}", seconds)


def _connections(listener: socket.socket) -> int:
    """Return how many connections have reached the listening socket."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count
