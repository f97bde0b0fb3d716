"""Records: classes of named fields, as `dataclasses` makes them, without the time it takes to make them.

`dataclasses` imports `inspect`, and compiles the methods of each class from text: both together were a third of what a
zygote does before its first fork. Here the methods are closures over the names of the fields. To type checkers, and to
whoever asks for `__dataclass_fields__` (`dataclasses.replace`, `asdict`, pprint), records are dataclasses.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace

__all__ = ["as_dict", "dataclass", "field", "fields_of", "replace"]

# Stands for a default that there is not.
_NONE: Any = object()


class _Field:
    """What `field` was told of one."""

    __slots__ = ("compare", "default", "default_factory", "hash", "name", "repr")

    def __init__(
        self, *, default: Any = _NONE, default_factory: Any = _NONE, compare: bool = True,
        hash: bool | None = None, repr: bool = True,  # noqa: A002  # as dataclasses.field has them
    ) -> None:  # fmt: skip
        self.name = ""
        self.default = default
        self.default_factory = default_factory
        self.compare = compare
        self.hash = compare if hash is None else hash
        self.repr = repr


def fields_of(record: Any) -> tuple[str, ...]:
    """Return the names of the fields of a record or of its class, in their order."""
    names: tuple[str, ...] = record.__slots__
    return names


def as_dict(record: Any) -> dict[str, Any]:
    """Return a record's values by the names of its fields."""
    return {name: getattr(record, name) for name in record.__slots__}


def _record(*, slots: bool, frozen: bool = False, kw_only: bool = False, init: bool = True) -> Any:
    """Return a class decorator. Records have slots and no base class."""
    assert slots

    def make(cls: type) -> type:
        return _made(cls, frozen=frozen, kw_only=kw_only, init=init)

    return make


def _made(cls: type, *, frozen: bool, kw_only: bool, init: bool) -> type:
    body = dict(cls.__dict__)
    # What no record has needed yet is refused, rather than done otherwise than by dataclasses.
    assert cls.__bases__ == (object,)
    assert not body.keys() & {"__eq__", "__hash__"}
    fields = []
    for name in cls.__annotations__:
        given = body.pop(name, _NONE)
        one = given if isinstance(given, _Field) else _Field(default=given)
        one.name = name
        fields.append(one)
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)
    names = tuple(one.name for one in fields)
    body["__slots__"] = names
    body["__match_args__"] = () if kw_only else names
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        body[name] = _Lazily(name, fields, {"frozen": frozen, "kw_only": kw_only, "init": init})
    body.setdefault("__repr__", _repr_of(tuple(one.name for one in fields if one.repr)))
    body["__eq__"] = _eq_of(tuple(one.name for one in fields if one.compare))
    body["__hash__"] = _hash_of(tuple(one.name for one in fields if one.hash)) if frozen else None
    body["__replace__"] = _replace
    if frozen:
        body["__setattr__"], body["__delattr__"] = _refuse_set, _refuse_delete
    made: Any = type(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    # Past a frozen record's own __setattr__.
    setters = tuple(made.__dict__[name].__set__ for name in names)
    if init:
        made.__init__ = _init_of(made, fields, setters, kw_only=kw_only)
    made.__getstate__ = _getstate
    made.__setstate__ = _setstate_of(setters)
    return made  # type: ignore[no-any-return]


def _init_of(cls: type, fields: list[_Field], setters: tuple[Any, ...], *, kw_only: bool) -> Any:
    entries = tuple((one.name, put, one.default, one.default_factory) for one, put in zip(fields, setters, strict=True))
    most = 0 if kw_only else len(entries)
    post = getattr(cls, "__post_init__", None)

    def __init__(self: Any, /, *values: Any, **given: Any) -> None:  # noqa: N807
        if len(values) > most:
            raise TypeError(f"{cls.__name__}() takes {most} positional arguments but {len(values)} were given")
        for put, value in zip(setters, values):  # noqa: B905  # the rest is given by name, or has a default
            put(self, value)
        for name, put, default, factory in entries[len(values) :]:
            if name in given:
                put(self, given.pop(name))
            elif default is not _NONE:
                put(self, default)
            elif factory is not _NONE:
                put(self, factory())
            else:
                raise TypeError(f"{cls.__name__}() missing a required argument: {name!r}")
        if given:
            name = next(iter(given))
            what = "multiple values for" if name in cls.__slots__ else "an unexpected"  # type: ignore[attr-defined]
            raise TypeError(f"{cls.__name__}() got {what} argument {name!r}")
        if post is not None:
            post(self)

    return __init__


def _repr_of(names: tuple[str, ...]) -> Any:
    def __repr__(self: Any) -> str:  # noqa: N807
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _eq_of(names: tuple[str, ...]) -> Any:
    def __eq__(self: Any, other: object) -> Any:  # noqa: N807
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in names)

    return __eq__


def _hash_of(names: tuple[str, ...]) -> Any:
    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(tuple([getattr(self, name) for name in names]))

    return __hash__


def _refuse_set(self: object, name: str, _: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: object, name: str) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, name) for name in self.__slots__]


def _setstate_of(setters: tuple[Any, ...]) -> Any:
    def __setstate__(self: Any, state: list[Any]) -> None:  # noqa: N807
        for put, value in zip(setters, state, strict=True):
            put(self, value)

    return __setstate__


def _replace(record: Any, /, **changes: Any) -> Any:
    """Return a copy of `record` with other values in the fields named in `changes`."""
    return type(record)(**as_dict(record) | changes)


class _Lazily:
    """Stands in a record for what `dataclasses` keeps in its classes, until somebody asks for it."""

    def __init__(self, name: str, fields: list[_Field], options: dict[str, Any]) -> None:
        self._name = name
        self._fields = fields
        self._options = options

    def __get__(self, record: object, cls: type) -> Any:
        import dataclasses

        described = []
        for one in self._fields:
            told: dict[str, Any] = {"compare": one.compare, "hash": one.hash, "repr": one.repr}
            told |= {key: value for key in ("default", "default_factory") if (value := getattr(one, key)) is not _NONE}
            described.append((one.name, cls.__annotations__[one.name], dataclasses.field(**told)))
        made = dataclasses.make_dataclass(cls.__name__, described, **self._options)
        value = getattr(made, self._name)
        setattr(cls, self._name, value)
        return value


if not TYPE_CHECKING:
    dataclass, field, replace = _record, _Field, _replace
