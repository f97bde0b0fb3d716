"""Runs one call of a plugin's function and answers it."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import CoroutineType
from typing import Any

from ringfence.ipc import guest_messages as g
from ringfence.ipc.errors import ChannelClosed, FrameTooLarge, NotSerializable
from ringfence.sandbox.denials import Refusals
from ringfence.worker.guest_failure import failed
from ringfence.worker.guest_limits import Limits
from ringfence.worker.guest_state import CURRENT, Call
from ringfence.worker.guest_talk import Talk
from ringfence.worker.guest_watch import Watch

__all__ = ["Calls", "flush"]


class Calls:
    """Runs calls of `functions`; all but them, and what was said in LOAD, is the same for each."""

    def __init__(self, limits: Limits, refusals: Refusals, watch: Watch) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}
        # Set once there is one, before the first call.
        self.talk: Talk
        self._limits = limits
        # Those whose errors are told apart, the kernel's among them.
        self.told: Mapping[str, int | None] = {}
        self._refusals = refusals
        self._watch = watch

    def perform(self, call: Call, message: list[Any]) -> None:
        """Run a CALL and answer it; nothing is raised, whatever the plugin does."""
        token = CURRENT.set(call)
        try:
            body = self._body(call, message)
        finally:
            CURRENT.reset(token)
        flush()
        call.answered = True
        try:
            if call.denials:
                self._watch.summarise(call)
            self.talk.send_packed(body)
        except ChannelClosed:
            pass
        except FrameTooLarge as error:
            self._answer_too_large(call, error)

    def _body(self, call: Call, message: list[Any]) -> bytes:
        codec = self.talk.codec
        try:
            try:
                function = self.functions.get(message[2])
                if function is None:
                    known = ", ".join(self.functions) or "none"
                    raise _NoSuchFunction(f"there is no function {message[2]!r}; there are: {known}")
                if self._limits.any:
                    with self._limits.of(call):
                        value = function(*message[3], **message[4])
                        if type(value) is CoroutineType:
                            value = _run(value)
                else:
                    value = function(*message[3], **message[4])
                    if type(value) is CoroutineType:
                        value = _run(value)
            except BaseException as error:  # noqa: BLE001  # the call's failure, whatever it is, is its answer
                return self._failed(call, error)
            if call.over is not None:
                return self._failed(call, RuntimeError("the call went on after it had reached a limit"))
            try:
                return codec.pack([g.RESULT, call.id, value])
            except NotSerializable:
                try:
                    codec.pack(value, name="result")
                except NotSerializable as named:
                    return self._failed(call, named, kind="unserializable")
                raise
        except BaseException as error:  # noqa: BLE001  # MemoryError for one: what is said of it is small
            return self._failed(call, error)

    def _failed(self, call: Call, error: BaseException, kind: str = "exception") -> bytes:
        if type(error) is _NoSuchFunction:
            kind, error = "missing", LookupError(*error.args)
        codec = self.talk.codec
        with self._watch.paused():
            record = failed(error, codec, call, refusals=self._refusals, limits=self.told, kind=kind)
        try:
            error.__traceback__ = None  # its frames hold the call's arguments
        except BaseException:  # noqa: BLE001  # a __setattr__ of the plugin's
            pass
        return codec.pack([g.ERROR, call.id, record])

    def _answer_too_large(self, call: Call, error: FrameTooLarge) -> None:
        named = NotSerializable("result", "?", str(error))
        try:
            self.talk.send_packed(self._failed(call, named, kind="unserializable"))
        except ChannelClosed:
            pass


class _NoSuchFunction(Exception):
    """The host asked for a function that the plugin does not offer."""


def _run(coroutine: "CoroutineType[Any, Any, Any]") -> Any:
    # By name: only plugins that have coroutines pay for it (and bring it with them, most of the time).
    return import_module("asyncio").run(coroutine)


def flush() -> None:
    """Flush stdout and stderr, so that what a call printed is out before its answer."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed or replaced: the plugin has only itself to blame
            pass
