"""The classes of an application that may cross the wire, by name."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ringfence.ipc.errors import LocalProtocolError, RemoteProtocolError, UnregisteredType

if TYPE_CHECKING:
    import enum

__all__ = ["REGISTERED", "Registration", "TypeRegistry", "register_type"]

_MAX_NAME = 512  # characters of a registered name; a qualified name of Python is far shorter


class Registration(NamedTuple):
    """How one registered class crosses the wire."""

    name: str
    """What stands for the class on the wire."""

    fields: Callable[[Any], list[Any]]
    """Returns an instance's state as a list of values."""

    build: Callable[[list[Any]], object]
    """Makes an instance of such a list; any exception says that the list is wrong."""

    labels: tuple[str, ...]
    """Names of the values in the list, for error messages."""


class TypeRegistry:
    """Enums, dataclasses and pydantic models that both sides know by the same name.

    Register the same classes under the same names on both sides. An enum member arrives as that member. A
    dataclass instance arrives with the fields it had, set as pickle sets them: neither ``__init__`` nor
    ``__post_init__`` runs and nothing is validated. A pydantic model is validated again on arrival.
    Attributes beside the fields do not travel.
    """

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._by_class: dict[type, Registration] = {}
        self._by_name: dict[str, Registration] = {}
        # The registered classes whose instances hold other values.
        self.containers: frozenset[type] = frozenset()
        # Classes that are registered when they turn up: ``module:qualname`` to the name on the wire.
        self._expected: Mapping[str, str] = {}
        for cls in classes:
            self.register(cls)

    def register(self, cls: type, name: str | None = None) -> type:
        """Let instances of exactly `cls` cross the wire as `name` (default ``module:qualname``); return
        `cls`.

        Raises LocalProtocolError for a class of another kind, or a name that another class has.
        """
        if name is None:
            name = f"{cls.__module__}:{cls.__qualname__}"
        if not 0 < len(name) <= _MAX_NAME:
            raise LocalProtocolError(f"a type's name must have 1 to {_MAX_NAME} characters")
        known = self._by_class.get(cls)
        if known is not None and known.name == name:
            return cls
        if known is not None or name in self._by_name:
            raise LocalProtocolError(f"{cls!r} cannot be {name!r}: the class or the name is taken")
        made = _registration(cls, name)
        self._by_class[cls] = self._by_name[name] = made
        if not issubclass(cls, _enum_bases()):
            self.containers |= {cls}
        return cls

    def find(self, cls: type) -> Registration | None:
        """Return how instances of exactly `cls` travel, or None."""
        known = self._by_class.get(cls)
        if known is None and self._expected:
            name = self._expected.get(f"{cls.__module__}:{cls.__qualname__}")
            if name is not None:
                known = self._by_class[cls] = _registration(cls, name)
                if not issubclass(cls, _enum_bases()):
                    self.containers |= {cls}
        return known

    def expect(self, names: Mapping[str, str]) -> None:
        """Register, when they turn up for packing, classes known by ``module:qualname``; `names` says as what.

        For a worker, which may hold several copies of a class that travelled there by value.
        """
        self._expected = names

    def names(self) -> dict[str, str]:
        """Return ``module:qualname`` to the name on the wire, for each registered class."""
        return {f"{cls.__module__}:{cls.__qualname__}": made.name for cls, made in self._by_class.items()}

    def build(self, values: list[Any]) -> object:
        """Return the object that `values` (its type's name, then its state) describe; for the codec.

        Raises UnregisteredType for an unknown name and RemoteProtocolError for a state that the type cannot
        have.
        """
        if not values or type(values[0]) is not str:
            raise RemoteProtocolError("a registered type without a name")
        name = values[0]
        made = self._by_name.get(name)
        if made is None:
            raise UnregisteredType(name[:_MAX_NAME])
        try:
            return made.build(values[1:])
        except Exception as error:
            # Whatever a class of the application raises here, it was the peer's state that made it.
            raise RemoteProtocolError(f"not a state of {name}: {type(error).__name__}") from error


def _enum_bases() -> tuple[type, ...]:
    # Not imported: an enum cannot exist without the module.
    enums = sys.modules.get("enum")
    return () if enums is None else (enums.Enum,)


REGISTERED = TypeRegistry()
"""The classes that this process takes from its workers; see register_type."""


def register_type(cls: type, name: str | None = None) -> type:
    """Let tasks return instances of `cls`, an enum, dataclass or pydantic model; return `cls`, as a decorator does.

    Counts for pools made afterwards. `name` is what stands for it on the wire, by default ``module:qualname``.
    Raises LocalProtocolError for a class of another kind, or a name that another class has.
    """
    return REGISTERED.register(cls, name)


def _registration(cls: type, name: str) -> Registration:
    if issubclass(cls, _enum_bases()):
        return _enum_registration(cls, name)
    if "__dataclass_fields__" in cls.__dict__:
        return _dataclass_registration(cls, name)
    if "__pydantic_fields__" in cls.__dict__ and hasattr(cls, "model_validate"):
        return _model_registration(cls, name)
    raise LocalProtocolError(f"{cls!r} is no enum, dataclass or pydantic model")


def _enum_registration(cls: Any, name: str) -> Registration:
    members: Mapping[str, enum.Enum] = cls.__members__
    is_flag = issubclass(cls, sys.modules["enum"].Flag)

    def fields(member: "enum.Enum") -> list[Any]:
        # By name: the value need not be serialisable. Only combinations of flags have none.
        known = member._name_ in members and members[member._name_] is member
        return [member._name_ if known else member._value_]

    def build(values: list[Any]) -> object:
        (key,) = values
        if type(key) is str:
            return members[key]
        if not is_flag or type(key) is not int:
            raise ValueError(key)
        member: enum.Enum = cls(key)
        return member

    return Registration(name, fields, build, ("value",))


def _dataclass_registration(cls: type, name: str) -> Registration:
    import dataclasses

    names = tuple(field.name for field in dataclasses.fields(cls))

    def fields(instance: object) -> list[Any]:
        return [getattr(instance, name) for name in names]

    def build(values: list[Any]) -> object:
        made: object = object.__new__(cls)
        for field, value in zip(names, values, strict=True):
            # Past a frozen dataclass's own __setattr__, as its __init__ does it.
            object.__setattr__(made, field, value)
        return made

    return Registration(name, fields, build, names)


def _model_registration(cls: Any, name: str) -> Registration:
    import inspect

    by_name = "by_name" in inspect.signature(cls.model_validate).parameters  # since pydantic 2.11

    def wire_key(field: str) -> str:
        info = cls.__pydantic_fields__.get(field)
        alias = None if by_name or info is None else info.validation_alias
        return alias if isinstance(alias, str) else field

    def fields(model: Any) -> list[Any]:
        state = {**model.__dict__, **(model.__pydantic_extra__ or {})}
        return [state, sorted(model.__pydantic_fields_set__)]

    def build(values: list[Any]) -> object:
        state, given = values
        options = {"by_name": True, "by_alias": False} if by_name else {}
        made = cls.model_validate({wire_key(key): value for key, value in state.items()}, **options)
        object.__setattr__(made, "__pydantic_fields_set__", set(given) & set(state))
        return made

    return Registration(name, fields, build, ("__dict__", "__pydantic_fields_set__"))
