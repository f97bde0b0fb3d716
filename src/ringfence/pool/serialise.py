"""Functions and arguments as bytes for a worker: the trusted direction, so pickle, and dill where pickle cannot.

A function that a worker can import travels by name, once per worker. Everything else (lambdas, closures, what
`__main__` defines) travels by value with the globals it uses, as they are when it is submitted.
"""

import io
import itertools
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ringfence.pool.beforehand import importable
from ringfence.pool.codebase import Module, is_library, library_of, needed_by
from ringfence.pool.sources import SourceFiles

__all__ = ["Function", "Serialiser", "Shipment", "names_in", "plain_size"]

# A worker keeps every function it was sent. A pool that sees more different ones than this sends further
# ones inside their tasks.
MAX_FUNCTIONS = 4096
# Bytes of one function with the sources of its modules: a quarter of what one message may hold by default.
MAX_CODE = 16 * 1024 * 1024
# What a worker imports for the modules that it is sent, and where a task fails.
_BESIDE = ("linecache", "traceback")
# From here on a buffer inside an argument travels beside the pickle, uncopied on the worker's side.
_OUT_OF_BAND = 128 * 1024  # below, the way there and back for the memfd costs more than the copies (measured)
# Items of a chunk up to which it is worth looking for large ones: chunks with such are small.
_FEW = 64


class Function(NamedTuple):
    """A function that workers keep: its number, its pickle, the modules it needs there.

    `library`: those that it finds there, and that may be imported before it comes.
    """

    number: int
    payload: bytes
    modules: tuple[Module, ...]
    library: tuple[str, ...] = ()


class Shipment(NamedTuple):
    """A task as bytes. `function` None means that the payload holds the function too; `buffers` lie beside it."""

    function: Function | None
    payload: bytes
    modules: tuple[Module, ...]
    buffers: tuple[memoryview, ...] = ()

    @property
    def size(self) -> int:
        """How many bytes it is, the function and its modules apart."""
        return len(self.payload) + sum(buffer.nbytes for buffer in self.buffers)


class Serialiser:
    """Makes Shipments, and remembers the functions it has seen. Safe to use from many threads."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.sources = SourceFiles()
        # Found by name: kept as long as the pool, since their modules keep them as well.
        self._named: dict[Any, tuple[Function, Mapping[str, Any], str]] = {}
        # By value, and proven to depend on nothing that changes: kept as long as the function lives.
        self._frozen: weakref.WeakKeyDictionary[Any, tuple[Function, tuple[Any, ...]]] = weakref.WeakKeyDictionary()
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def task(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shipment:
        """Return a call as bytes. Raises pickle.PicklingError when a part of it cannot be pickled."""
        known = self.function(function)
        beside = (_beside(args), dict(zip(kwargs, _beside(kwargs.values()), strict=True)) if kwargs else kwargs)
        if known is None:
            payload, modules, buffers = dumps((function, beside), plain=(function, (args, kwargs)))
            return Shipment(None, payload, modules, buffers)
        payload, modules, buffers = dumps(beside, plain=(args, kwargs))
        return Shipment(known, payload, modules, buffers)

    def value(self, value: object) -> Shipment:
        """Return any value as bytes. Raises as `task` does."""
        payload, modules, _ = dumps(value, out_of_band=False)
        return Shipment(None, payload, modules)

    def chunk(self, function: Callable[..., Any], items: Sequence[Any]) -> Shipment:
        """Return many calls of one function as bytes. Raises as `task` does."""
        known = self.function(function)
        beside = items
        if len(items) <= _FEW:
            beside = [_beside(item) if type(item) is tuple else _beside((item,))[0] for item in items]
        if known is None:
            payload, modules, buffers = dumps((function, beside), plain=(function, items))
        else:
            payload, modules, buffers = dumps(beside, plain=items)
        return Shipment(known, payload, modules, buffers)

    def function(self, function: Callable[..., Any]) -> Function | None:
        """Return `function` as one that workers keep, or None when it must travel inside each task."""
        try:
            entry = self._named.get(function)
        except TypeError:  # not hashable: travels inside the task
            return None
        if entry is not None:
            made, namespace, name = entry
            if namespace.get(name) is function:
                return made
            self._named.pop(function, None)  # another thread may have done so
        if isinstance(function, types.FunctionType | types.BuiltinFunctionType):
            return self._by_name(function) or self._by_value(function)
        return None

    def _by_name(self, function: Any) -> Function | None:
        module, name = function.__module__, function.__qualname__
        namespace = vars(sys.modules[module]) if module in sys.modules else {}
        if module == "__main__" or namespace.get(name) is not function or len(self._named) >= MAX_FUNCTIONS:
            return None
        if not is_library(module) and not needed_by(module):
            return None
        library = importable({*library_of(module), *_BESIDE})
        made = _fit(Function(next(self._numbers), pickle.dumps(function, 5), needed_by(module), library))
        self._named[function] = (made, namespace, name)
        return made

    def _by_value(self, function: Any) -> Function | None:
        if not isinstance(function, types.FunctionType):
            return None
        known = self._frozen.get(function)
        if known is not None:
            made, dependencies = known
            if _unchanged(dependencies):
                return made
            self._frozen.pop(function, None)
        self.sources.add(function)
        # The first time it may be one of a kind (a lambda made in a loop): only what comes back is worth keeping.
        if function not in self._seen:
            self._seen.add(function)
            return None
        found = _dependencies(function)
        return None if found is None else self._freeze(function, found)

    def _freeze(self, function: Any, dependencies: tuple[Any, ...]) -> Function | None:
        if len(self._frozen) >= MAX_FUNCTIONS:
            return None
        payload, modules, _ = dumps(function, out_of_band=False)
        named = {value.__name__ for _, _, value in dependencies if isinstance(value, types.ModuleType)}
        names = named.union(module.name for module in modules)
        library = importable(set(_BESIDE).union(*map(library_of, names)))
        made = _fit(Function(next(self._numbers), payload, modules, library))
        self._frozen[function] = (made, dependencies)
        return made


def _fit(function: Function) -> Function:
    size = len(function.payload) + sum(len(module.source) for module in function.modules)
    if size > MAX_CODE:
        raise pickle.PicklingError(f"the function and the modules it needs are {size} bytes, more than {MAX_CODE}")
    return function


def plain_size(args: tuple[Any, ...]) -> int:
    """Return about how many bytes `args` take in a message, or -1 if one of them must be pickled."""
    size = 0
    for value in args:
        kind = type(value)
        if kind is int:
            if not -(1 << 63) <= value < 1 << 64:  # what msgpack can hold
                return -1
            size += 9
        elif kind is str:
            size += 4 * len(value) + 5  # UTF-8 takes up to four bytes a character
        elif kind is bytes:
            size += len(value) + 5
        elif kind is float or kind is bool or value is None:
            size += 9
        else:
            return -1
    return size


# What a function by value may refer to without the copy in a worker ever growing stale.
_CONSTANT = (int, str, float, complex, bool, bytes, types.NoneType, types.ModuleType, types.BuiltinFunctionType)


def _dependencies(function: types.FunctionType) -> tuple[Any, ...] | None:
    """Return (namespace, name, value) triples that `function`'s pickle depends on, or None if it may go stale."""
    found: list[tuple[Any, str, Any]] = []
    todo, done = [function], set()
    while todo:
        current = todo.pop()
        if current in done:
            continue
        done.add(current)
        if current.__dict__ or current.__kwdefaults__:
            return None
        found.append((current, "__code__", current.__code__))
        found.append((current, "__defaults__", current.__defaults__))
        values = list(current.__defaults__ or ())
        for cell in current.__closure__ or ():
            try:
                values.append(cell.cell_contents)
            except ValueError:
                return None
            found.append((cell, "cell_contents", values[-1]))
        for name in names_in(current.__code__):
            if name in current.__globals__:
                values.append(current.__globals__[name])
                found.append((current.__globals__, name, values[-1]))
        for value in values:
            if isinstance(value, types.FunctionType):
                todo.append(value)
            elif isinstance(value, type):
                if value.__module__ == "__main__":
                    return None
            elif not isinstance(value, _CONSTANT):
                return None
    return tuple(found)


def names_in(code: types.CodeType) -> Iterable[str]:
    """Yield the names of globals, attributes and modules that `code`, and the code within it, mentions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


_MISSING = object()


def _unchanged(dependencies: tuple[Any, ...]) -> bool:
    for place, name, value in dependencies:
        now = place.get(name, _MISSING) if type(place) is dict else getattr(place, name, _MISSING)
        if now is not value:
            return False
    return True


def _beside(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return `values` with large bytes put so that they travel beside the pickle: that saves a copy on each side."""
    return tuple(
        pickle.PickleBuffer(value) if type(value) is bytes and len(value) >= _OUT_OF_BAND else value for value in values
    )


def dumps(
    value: object, *, out_of_band: bool = True, plain: object = None
) -> tuple[bytes, tuple[Module, ...], tuple[memoryview, ...]]:
    """Return `value` pickled, the modules a worker needs to read it, and its large buffers.

    `plain` is the same value with nothing put beside, if that differs. Raises pickle.PicklingError, with the first
    cause attached, when neither pickle nor dill can.
    """
    out = io.BytesIO()
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _OUT_OF_BAND or not out_of_band:
            return True
        buffers.append(view)
        return False

    pickler = _Pickler(out, 5, buffer_callback=keep_in_band)
    try:
        pickler.dump(value)
        return out.getvalue(), _modules(pickler.modules), tuple(buffers)
    except Exception as error:  # noqa: BLE001  # __reduce__ of the caller's objects: anything may come
        return *_dill_dumps(value if plain is None else plain, error), ()


def _modules(names: Iterable[str]) -> tuple[Module, ...]:
    found = {module.name: module for name in names for module in needed_by(name)}
    return tuple(found.values())


class _ByValue(Exception):
    """A function or class in the object tree has to travel by value."""


class _Pickler(pickle.Pickler):
    """The C pickler, which notes the modules it refers to and gives up on what only exists here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.modules: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType | type):
            module = getattr(obj, "__module__", None)
            if module == "__main__" or (module is not None and module not in sys.modules):
                raise _ByValue
            if module is not None and not is_library(module):
                if not needed_by(module):
                    raise _ByValue
                self.modules.add(module)
        return NotImplemented


def _dill_dumps(value: object, first: Exception) -> tuple[bytes, tuple[Module, ...]]:
    # Here: most tasks never need it, and it takes longer to import than all of ringfence.
    from ringfence.pool.by_value import dumps_by_value

    try:
        payload, modules = dumps_by_value(value)
    except Exception as error:  # noqa: BLE001  # as above
        cause = error if isinstance(first, _ByValue) else first
        if isinstance(cause, pickle.PicklingError):
            raise cause from None
        raise pickle.PicklingError(f"cannot send this task to a worker: {type(cause).__name__}: {cause}") from cause
    return payload, _modules(_referenced(payload) | modules)


def _referenced(payload: bytes) -> set[str]:
    """Return the modules that a pickle's globals come from."""
    import pickletools  # here: builtins and what every worker has do not need it

    found: set[str] = set()
    memo: dict[int, str | None] = {}
    strings: list[str | None] = []
    fresh = False  # the opcode before pushed a string
    for opcode, argument, _ in pickletools.genops(payload):
        name = opcode.name
        pushed, fresh = fresh, "UNICODE" in name
        if fresh:
            strings.append(str(argument))
        elif name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if pushed else None
        elif name in ("BINGET", "LONG_BINGET"):
            strings.append(memo.get(int(str(argument))))
        elif name == "STACK_GLOBAL":
            found.add(strings[-2] or "")
            strings.append(None)
        elif name == "GLOBAL":
            found.add(str(argument).partition(" ")[0])
    return found
