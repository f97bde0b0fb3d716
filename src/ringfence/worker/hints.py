"""Stands in for typing while a zygote imports what its first workers need: typing takes a tenth of that time.

Nobody looks at annotations there: the names are here, and mean nothing, but for NamedTuple. What is imported later,
what is foreign above all, finds typing itself.
"""

import sys
from importlib import import_module

__all__ = ["make_room", "stand_in"]

_TYPING = "typing"

# Not typing's: this must not import it. To type checkers every name of this kind is true.
TYPE_CHECKING = False


def stand_in() -> None:
    """Be what `import typing` finds, where nothing has imported that."""
    if sys.version_info < (3, 14):  # from there on a class has no annotations while it is made
        sys.modules.setdefault(_TYPING, sys.modules[__name__])


def make_room() -> None:
    """Let `import typing` find typing."""
    if sys.modules.get(_TYPING) is sys.modules[__name__]:
        del sys.modules[_TYPING]


def __getattr__(name: str) -> object:
    """Find what is not here in typing itself: of a library, or a Python, that needs more than we do."""
    if name.startswith("__"):  # what the import system asks of any module
        raise AttributeError(name)
    make_room()
    return getattr(import_module(_TYPING), name)


class _Hint(type):
    """A name that is of use in annotations only, with or without brackets."""

    def __getitem__(cls, _: object) -> "_Hint":
        return cls


class Any(metaclass=_Hint):
    """See typing."""


class ClassVar(metaclass=_Hint):
    """See typing."""


class Final(metaclass=_Hint):
    """See typing."""


class NoReturn(metaclass=_Hint):
    """See typing."""


def TypeVar(name: str) -> type:  # noqa: N802  # its name there
    """See typing."""
    return Any


def final(made: object) -> object:
    """See typing."""
    return made


class _Fields(type):
    """Makes a class of fields a tuple with names, as typing does."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, object]) -> type:
        if not bases:
            return super().__new__(cls, name, bases, body)
        from collections import namedtuple

        hints = body["__annotations__"]
        assert bases == (NamedTuple,) and isinstance(hints, dict)
        defaults = [body.pop(field) for field in hints if field in body]
        base = namedtuple(name, hints, defaults=defaults)  # type: ignore[misc]  # it has their types
        return type(name, (base,), {**body, "__slots__": ()})


class NamedTuple(metaclass=_Fields):
    """See typing."""
