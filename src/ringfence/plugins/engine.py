"""Engine: one locked-in worker with a plugin's code in it."""

import time
from concurrent.futures import Future
from typing import Any, Final, final

from ringfence.errors import PluginError
from ringfence.ipc.errors import NotSerializable
from ringfence.plugins.blueprint import Blueprint
from ringfence.plugins.connection import Connection, Host, Line
from ringfence.plugins.errors import InitializationFailed, InvalidManifest, IpcError
from ringfence.plugins.guest_call import GuestCall
from ringfence.plugins.surroundings import Surroundings
from ringfence.pool.executor import Pool
from ringfence.sandbox.report import Report

__all__ = ["Engine"]

# What a guest may say that it offers.
_MAX_FUNCTIONS: Final = 10_000
_MAX_SIGNATURE: Final = 4096


@final
class Engine:
    """A guest that has loaded its plugin. Made by `start`.

    Attributes:
        functions: what there is to call, by name, each with its signature as text or None.
        pid: of the worker. report: what came true of its lock-in.
        ended: resolves, once the worker is gone, to why; to None when it left in good order.
    """

    def __init__(
        self, connection: Connection, functions: dict[str, str | None], pid: int, report: Report | None
    ) -> None:
        self._connection = connection
        self.functions = functions
        self.pid = pid
        self.report = report
        self.ended: Future[PluginError | None] = connection.ended

    @classmethod
    def start(
        cls,
        blueprint: Blueprint,
        pool: Pool,
        host: Host,
        around: Surroundings,
        timeout: float,
        line: Line | None = None,
    ) -> "Engine":
        """Start a worker, lock it in, and have it load the plugin; `timeout` seconds for all of it.

        With a `line` it runs one call after the other.

        Raises:
            CompilationError, InvalidManifest, InitializationFailed, PluginCrashed, LimitExceeded: it did not come up.
        """
        limits = blueprint.effective.limits
        session = blueprint.open_session(pool)
        connection = Connection(around.board, session, host, memory=limits.memory, output=limits.output, line=line)
        settings = blueprint.settings(
            threads=blueprint.threads(around.config.max_concurrent_calls) if line is None else 1,
            host_functions=around.host_functions.names(blueprint.grants),
            private_root=pool.hides_paths,
            may_look=session.may_look,
        )
        try:
            try:
                loading = connection.load(settings)
            except NotSerializable as error:
                raise IpcError(f"plugin {blueprint.name!r} is too large to send to its worker: {error}") from error
            try:
                described = loading.result(timeout)
            except TimeoutError as error:
                if loading.done():
                    raise
                late = InitializationFailed(blueprint.name, f"its code had not run through within {timeout:g} s")
                raise late from error
            functions = _functions(described, blueprint)
        except BaseException as error:
            connection.kill(error if isinstance(error, PluginError) else IpcError(str(error)))
            connection.ended.exception(10.0)
            raise
        worker = session.worker
        return cls(connection, functions, worker[0] if worker else 0, worker[1] if worker else None)

    def call(self, function: str, args: list[Any], kwargs: dict[str, Any], timeout: float | None) -> "Future[Any]":
        """Call a function; see `Connection.call`."""
        return self._connection.call(function, args, kwargs, timeout)

    def begin(self, *calls: GuestCall) -> None:
        """Send calls that were made before; see `Connection.begin`."""
        self._connection.begin(*calls)

    def recall(self, calls: list[GuestCall]) -> None:
        """Ask for calls that have not begun; see `Connection.recall`."""
        self._connection.recall(calls)

    def run(self, function: str, args: list[Any], timeout: float) -> Any:
        """Call a function and return its result."""
        return self._connection.call(function, args, {}, timeout).result()

    def stop(self, grace: float) -> None:
        """Let it leave in good order, for at most `grace` seconds. Not from the switchboard's thread."""
        if not self.ended.done():
            self._connection.stop(grace)

    def kill(self, error: PluginError) -> None:
        """End it now, and wait until it is gone; calls under way fail with `error`."""
        self._connection.kill(error)
        deadline = time.monotonic() + 10.0
        self.ended.exception(max(0.0, deadline - time.monotonic()))

    @property
    def is_alive(self) -> bool:
        """Whether the worker is there."""
        return not self.ended.done()


def _functions(described: dict[str, Any], blueprint: Blueprint) -> dict[str, str | None]:
    """Check what a guest says that it offers: foreign data. Raises IpcError, InvalidManifest."""
    functions, missing = described.get("functions"), described.get("missing", [])
    if (
        type(functions) is not dict
        or len(functions) > _MAX_FUNCTIONS
        or not all(type(name) is str and len(name) <= 255 and (sign is None or type(sign) is str)
                   for name, sign in functions.items())
        or type(missing) is not list
        or not all(type(name) is str for name in missing)
    ):  # fmt: skip
        raise IpcError(f"plugin {blueprint.name!r} does not say which functions it offers")
    if blueprint.exports is not None:
        missing = [*missing, *(name for name in blueprint.exports if name not in functions and name not in missing)]
    if missing:
        path = blueprint.manifest.path
        raise InvalidManifest(
            [f"exports: there is no function {name[:255]!r} in {blueprint.code.main}" for name in missing[:20]],
            None if path is None else str(path),
        )
    return {name: None if sign is None else sign[:_MAX_SIGNATURE] for name, sign in functions.items()}
