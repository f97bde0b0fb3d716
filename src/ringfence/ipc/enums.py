"""Makes an enum again that travelled by value."""

import enum
from collections.abc import Mapping
from typing import Any

__all__ = ["make_enum"]


def make_enum(
    name: str,
    qualname: str,
    module: str,
    bases: tuple[type, ...],
    members: Mapping[str, Any],
    methods: Mapping[str, Any],
) -> type[enum.Enum]:
    """Return an enum class with these members (aliases included, in order) and methods."""
    metaclass: Any = type(bases[-1])
    namespace = metaclass.__prepare__(name, bases)
    namespace["__module__"] = module
    namespace["__qualname__"] = qualname
    for each in (methods, members):
        for key, value in each.items():
            namespace[key] = value
    made: type[enum.Enum] = metaclass(name, bases, namespace)
    return made
