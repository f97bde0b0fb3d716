"""What a plugin's functions take and return, by their own annotations: plain data from a worker, checked, then typed.

The worker read them from the syntax tree (ringfence.worker.annotations); none of the plugin's code ran. Only types of
a fixed table are known here. Every other annotation is Any, so an annotation can neither name nor bring in anything.
"""

import collections.abc
import datetime
import decimal
import fractions
import inspect
import pathlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from keyword import iskeyword
from typing import Any, Final, NamedTuple, final

from ringfence.plugins.errors import IpcError, ValueConversionError

__all__ = ["ANY", "KNOWN_TYPES", "Function", "Parameter", "Type", "is_name", "read_functions", "written"]

KNOWN_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "builtins.object": (object,),
    "builtins.bool": (bool,),
    "builtins.int": (int,),
    # As type checkers read it: whoever takes a float takes an int.
    "builtins.float": (float, int),
    "builtins.complex": (complex, float, int),
    "builtins.str": (str,),
    "builtins.bytes": (bytes, bytearray, memoryview),  # the others arrive as bytes
    "builtins.list": (list,),
    "builtins.dict": (dict,),
    "builtins.tuple": (tuple,),
    "builtins.set": (set,),
    "builtins.frozenset": (frozenset,),
    "builtins.range": (range,),
    "collections.abc.Collection": (collections.abc.Collection,),
    "collections.abc.Iterable": (collections.abc.Iterable,),
    "collections.abc.Mapping": (collections.abc.Mapping,),
    "collections.abc.MutableMapping": (collections.abc.MutableMapping,),
    "collections.abc.MutableSequence": (collections.abc.MutableSequence,),
    "collections.abc.Sequence": (collections.abc.Sequence,),
    "collections.abc.Set": (collections.abc.Set,),
    "datetime.date": (datetime.date,),
    "datetime.datetime": (datetime.datetime,),
    "datetime.time": (datetime.time,),
    "datetime.timedelta": (datetime.timedelta,),
    "datetime.timezone": (datetime.timezone,),
    "decimal.Decimal": (decimal.Decimal,),
    "fractions.Fraction": (fractions.Fraction,),
    "pathlib.Path": (pathlib.Path,),
    "pathlib.PurePath": (pathlib.PurePath,),
    "uuid.UUID": (uuid.UUID,),
}
"""The types that annotations may name, and what is accepted for each."""

# How many arguments stand in the brackets of a generic type.
_ARITY: Final[Mapping[str, int]] = {
    "builtins.list": 1,
    "builtins.dict": 2,
    "builtins.set": 1,
    "builtins.frozenset": 1,
    **{
        f"collections.abc.{name}": 2 if "Mapping" in name else 1
        for name in ("Collection", "Iterable", "Mapping", "MutableMapping", "MutableSequence", "Sequence", "Set")
    },
}
_OLD_NAMES: Final[Mapping[str, str]] = {
    **{name.replace("collections.abc", "typing"): name for name in _ARITY if name.startswith("collections")},
    # After those: typing.Set is the builtin one.
    **{f"typing.{name}": f"builtins.{name.lower()}" for name in ("List", "Dict", "Tuple", "Set", "FrozenSet")},
    "typing.AbstractSet": "collections.abc.Set",
    "typing.Text": "builtins.str",
}

_MAX_NAME: Final = 255
_MAX_FUNCTIONS: Final = 1000
_MAX_PARAMETERS: Final = 255
_MAX_DEPTH: Final = 40
_MAX_ARGUMENTS: Final = 200
_MAX_DOC: Final = 2000
# Elements of a container that are looked at; a list of a million is checked as a list.
_LOOKED_AT: Final = 100


class Type(NamedTuple):
    """A type: Any, None, ..., Union or Literal, or a name of `KNOWN_TYPES`.

    `arguments` are the types in its brackets, or a Literal's values.
    """

    name: str
    arguments: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.name == "Union":
            return " | ".join(map(str, self.arguments))
        name = self.name.removeprefix("builtins.").removeprefix("collections.abc.")
        show = ascii if self.name == "Literal" else str
        return f"{name}[{', '.join(map(show, self.arguments))}]" if self.arguments else name

    def accepts(self, value: object) -> bool:
        """Whether a value is of this type. Of a container the first hundred elements are looked at."""
        if self.name == "Any":
            return True
        if self.name == "None":
            return value is None
        if self.name == "Union":
            return any(each.accepts(value) for each in self.arguments)
        if self.name == "Literal":
            return any(type(each) is type(value) and each == value for each in self.arguments)
        return isinstance(value, KNOWN_TYPES[self.name]) and (not self.arguments or self._holds(value))

    def _holds(self, value: Any) -> bool:
        """Whether the elements of a container are of the types in the brackets."""
        arguments = self.arguments
        if self.name == "builtins.tuple":
            if len(arguments) == 2 and arguments[1].name == "...":
                return all(map(arguments[0].accepts, islice(value, _LOOKED_AT)))
            return len(value) == len(arguments) and all(map(Type.accepts, arguments, value))
        if not isinstance(value, collections.abc.Collection):
            return True  # an iterator, which looking at would use up
        if len(arguments) == 2:
            key, item = arguments
            return all(key.accepts(k) and item.accepts(v) for k, v in islice(value.items(), _LOOKED_AT))  # type: ignore[attr-defined]  # a Mapping
        return all(map(arguments[0].accepts, islice(value, _LOOKED_AT)))


ANY: Final = Type("Any")
_NONE: Final = Type("None")
_REST: Final = Type("...")


class Parameter(NamedTuple):
    """One parameter; `kind` is one of inspect.Parameter's."""

    name: str
    kind: inspect._ParameterKind
    type: Type = ANY
    has_default: bool = False
    is_annotated: bool = False

    @property
    def stars(self) -> str:
        """What stands before its name in a definition."""
        if self.kind is inspect.Parameter.VAR_KEYWORD:
            return "**"
        return "*" if self.kind is inspect.Parameter.VAR_POSITIONAL else ""

    def __str__(self) -> str:
        text = f"{self.stars}{self.name}" + (f": {self.type}" if self.is_annotated else "")
        return text + (" = ..." if self.has_default else "")


@final
@dataclass(frozen=True)
class Function:
    """A function as its source declares it.

    `is_known` is False under a decorator that may have changed it: then nothing is said of its parameters.
    `returns` is what a call gives: Any where it is not declared, and for generators.
    """

    name: str
    parameters: tuple[Parameter, ...] = ()
    returns: Type = ANY
    is_async: bool = False
    is_generator: bool = False
    is_known: bool = True
    doc: str = ""
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.name}{self.signature}"

    @property
    def signature(self) -> str:
        """The parameters and the result as they are written in a definition."""
        if not self.is_known:
            return "(*args, **kwargs) -> Any"
        return f"({', '.join(written(self.parameters, str))}) -> {self.returns}"

    @cached_property
    def binder(self) -> inspect.Signature:
        """The parameters as `inspect` has them, without their types."""
        return inspect.Signature(
            [
                inspect.Parameter(p.name, p.kind, default=None if p.has_default else inspect.Parameter.empty)
                for p in self.parameters
            ]
        )

    def check(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        """Do nothing if the function can be called with these arguments.

        Raises:
            ValueConversionError: too many, too few, or one of another type than is declared.
        """
        if not self.is_known:
            return
        try:
            bound = self.binder.bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise ValueConversionError(f"{self.name}{self.signature}: {error}") from None
        for parameter in self.parameters:
            if parameter.name not in bound.arguments:
                continue
            value = bound.arguments[parameter.name]
            values: tuple[Any, ...] = (value,)
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                values = value
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                values = tuple(value.values())
            for each in values:
                if not parameter.type.accepts(each):
                    raise ValueConversionError(
                        f"{self.name}: argument {parameter.name!r} must be {parameter.type}, not {type(each).__name__}"
                    )


def written(parameters: Iterable[Parameter], show: Callable[[Parameter], str]) -> Iterator[str]:
    """Yield what stands between the parentheses of a definition: each parameter as `show` writes it, `/` and `*`."""
    before: inspect._ParameterKind | None = None
    for parameter in parameters:
        if before is inspect.Parameter.POSITIONAL_ONLY and parameter.kind is not before:
            yield "/"
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and before not in _STARRED:
            yield "*"
        before = parameter.kind
        yield show(parameter)
    if before is inspect.Parameter.POSITIONAL_ONLY:
        yield "/"


# After these no `*` is needed before a keyword-only parameter.
_STARRED: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)


def is_name(text: object) -> bool:
    """Whether it is a word that a function or parameter can be called: an identifier, and no keyword."""
    return type(text) is str and len(text) <= _MAX_NAME and text.isidentifier() and not iskeyword(text)


def read_functions(data: object) -> dict[str, Function]:
    """Return the functions that a worker described, by name.

    Raises IpcError, naming the function, for what is no description.
    """
    if type(data) is not list or len(data) > _MAX_FUNCTIONS:
        raise IpcError(f"a source's functions are described by a list of at most {_MAX_FUNCTIONS}")
    functions = map(_function, data)
    return {function.name: function for function in functions}


def _function(data: object) -> Function:
    if type(data) is not dict or not is_name(data.get("name")):
        raise IpcError("the description of a function without a name")
    name = data["name"]
    flags = [data.get(key) for key in ("async", "generator", "known")]
    line, doc, listed = data.get("line"), data.get("doc"), data.get("parameters")
    if any(type(flag) is not bool for flag in flags) or type(line) is not int or not 0 < line < 1 << 31:
        raise IpcError(f"the description of {name} lacks a flag or its line")
    if type(doc) is not str or len(doc) > _MAX_DOC or type(listed) is not list or len(listed) > _MAX_PARAMETERS:
        raise IpcError(f"the description of {name} has no docstring or no parameters")
    is_async, is_generator, is_known = flags
    returns = ANY if data.get("returns") is None or is_generator or not is_known else _type(data["returns"])
    parameters = tuple(_parameter(name, each) for each in listed)
    made = Function(name, parameters, returns, bool(is_async), bool(is_generator), bool(is_known), doc, line)
    try:
        made.binder  # noqa: B018  # it refuses parameters in an order that none can have, and one name twice
    except ValueError as error:
        raise IpcError(f"the description of {name}: {error}") from None
    return made


def _parameter(function: str, data: object) -> Parameter:
    if type(data) is not list or len(data) != 4 or not is_name(data[0]):
        raise IpcError(f"the description of {function} has a parameter without a name")
    name, kind, annotation, has_default = data
    if type(kind) is not int or not 0 <= kind <= 4 or type(has_default) is not bool:
        raise IpcError(f"the description of {function} has a parameter of no kind")
    kind = inspect._ParameterKind(kind)
    if annotation is None:
        return Parameter(name, kind, ANY, has_default)
    return Parameter(name, kind, _type(annotation), has_default, is_annotated=True)


def _type(data: object, depth: int = 0, *, in_tuple: bool = False) -> Type:
    """Return the type that a description means; whatever is not known, or no description, is Any."""
    match data:
        case _ if depth > _MAX_DEPTH:
            return ANY
        case ["none"]:
            return _NONE
        case ["..."] if in_tuple:
            return _REST
        case ["name", str(name)]:
            name = _OLD_NAMES.get(name, name)
            return Type(name) if name in KNOWN_TYPES else ANY
        case ["of", str(name), list(arguments)] if 0 < len(arguments) <= _MAX_ARGUMENTS:
            return _generic(_OLD_NAMES.get(name, name), arguments, depth)
        case ["union", list(members)] if 0 < len(members) <= _MAX_ARGUMENTS:
            return _union([_type(each, depth + 1) for each in members])
        case ["literal", list(values)] if 0 < len(values) <= _MAX_ARGUMENTS:
            if all(each is None or type(each) in (str, bytes, int, bool) for each in values):
                return Type("Literal", tuple(values))
    return ANY


def _generic(name: str, arguments: list[Any], depth: int) -> Type:
    if name == "builtins.tuple":
        types = tuple(_type(each, depth + 1, in_tuple=True) for each in arguments)
        # `...` means something in second place of two only.
        if _REST in types and (len(types) != 2 or types[0] == _REST or types[1] != _REST):
            return Type(name)
        return Type(name, types)
    if _ARITY.get(name) != len(arguments):
        return Type(name) if name in KNOWN_TYPES else ANY
    return Type(name, tuple(_type(each, depth + 1) for each in arguments))


def _union(members: list[Type]) -> Type:
    flat: dict[str, Type] = {}  # by its text: Literal[1] and Literal[True] are equal
    for each in members:
        flat |= {str(one): one for one in (each.arguments if each.name == "Union" else (each,))}
    if "Any" in flat:
        return ANY
    return next(iter(flat.values())) if len(flat) == 1 else Type("Union", tuple(flat.values()))
