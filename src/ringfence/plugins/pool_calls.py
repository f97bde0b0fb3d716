"""What can be said of a pool's call before it is made: how long it may take, and whether it can be one."""

from collections.abc import Sequence
from typing import Any

from ringfence.plugins.blueprint import Blueprint
from ringfence.plugins.connection import CHAIN
from ringfence.plugins.errors import FunctionNotFound, InvalidConfig, ReentrantCall, ValueConversionError
from ringfence.plugins.handle import Timeout, _Unset
from ringfence.sandbox.amounts import parse_duration
from ringfence.sandbox.errors import PolicyError

__all__ = ["call_seconds", "check_call"]


def call_seconds(timeout: Timeout, default: float | None) -> float | None:
    """Return how long a call may take, in seconds. Raises InvalidConfig."""
    if isinstance(timeout, _Unset):
        return default
    if timeout is None:
        return None
    value = getattr(timeout, "total_seconds", None)
    try:
        return parse_duration(timeout if value is None else value(), what="timeout")
    except PolicyError as error:
        raise InvalidConfig(str(error)) from error


def check_call(blueprint: Blueprint, function: str, args: Sequence[Any]) -> None:
    """Refuse what cannot be called.

    Raises:
        ReentrantCall: a call of this plugin led here.
        FunctionNotFound: it is not among the exports.
        ValueConversionError: the arguments are a text, not a list.
    """
    chain = CHAIN.get()
    if blueprint.name in chain:
        raise ReentrantCall(blueprint.name, chain)
    exports = blueprint.exports
    if exports is not None and function not in exports and function != "main":
        raise FunctionNotFound(function, blueprint.name, exports)
    if isinstance(args, str | bytes):
        what = f"{blueprint.name}.{function}"
        raise ValueConversionError(f"args of {what}: a list is needed, not a text; write [{args!r}]")
