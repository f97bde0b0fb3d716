"""Objects by value with dill, and enums, which dill cannot."""

import contextlib
import dis
import enum
import io
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Any, ClassVar, Final

from ringfence.ipc.enums import make_enum
from ringfence.locks import Lock
from ringfence.pool.anywhere import dill
from ringfence.pool.codebase import is_library, needed_by
from ringfence.pool.serialise import names_in

__all__ = ["dumps_by_value"]


class _Pickler(dill.Pickler):  # type: ignore[misc]  # dill has no types
    """dill's pickler, with a table of its own: dill's is shared by the whole process."""

    dispatch: ClassVar[dict[Any, Any]] = dict(dill.Pickler.dispatch)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The modules that went by name.
        self.modules: set[str] = set()


def _save_enum(pickler: Any, cls: type[enum.Enum]) -> None:
    module = sys.modules.get(cls.__module__)
    found: object = module
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is cls and cls.__module__ != "__main__":
        pickler.save_global(cls)
        return
    members = {name: member.value for name, member in cls.__members__.items()}
    methods = {
        name: value
        for name, value in vars(cls).items()
        if isinstance(value, types.FunctionType | property | staticmethod | classmethod)
        and not (name.startswith("_") and name in vars(enum.Enum) and name != "_missing_")
    }
    state = (cls.__name__, cls.__qualname__, cls.__module__, cls.__bases__, members, methods)
    pickler.save_reduce(make_enum, state, obj=cls)


def _save_module(pickler: Any, module: types.ModuleType) -> None:
    name = module.__name__
    if sys.modules.get(name) is not module or not (is_library(name) or needed_by(name)):
        dill.Pickler.dispatch[types.ModuleType](pickler, module)
        return
    # By name alone: dill sends all that a module of the caller's own holds at the moment.
    pickler.modules.add(name)
    pickler.save_reduce(import_module, (name,), obj=module)


_Pickler.dispatch[types.ModuleType] = _save_module

for _metaclass in {type(cls) for cls in (enum.Enum, enum.IntEnum, enum.StrEnum, enum.Flag, enum.IntFlag)}:
    _Pickler.dispatch[_metaclass] = _save_enum


# What refers to a global by its name; a class body, which is code inside a function's, uses LOAD_NAME.
_GLOBAL_OPCODES: Final = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"})
_patching = Lock()


def _global_names(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBAL_OPCODES:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _globals_used(function: types.FunctionType, recurse: bool = True, builtin: bool = False) -> dict[str, Any]:
    """Return the globals that `function` itself uses: what dill.detect.globalvars is asked for while pickling.

    The original follows functions into each other without end when they are mutually recursive, or recursive through a
    closure; and it swaps sys.stdout while it disassembles, so that what another thread prints is lost. Nothing
    has to be followed here: the functions found are pickled in their turn, with the globals that they use.
    """
    namespace = function.__globals__
    used = {name: namespace[name] for name in _global_names(function.__code__) if name in namespace}
    packages = [
        value
        for value in (*used.values(), *_closed_over(function))
        if isinstance(value, types.ModuleType) and hasattr(value, "__path__")
    ]
    if packages:
        words = set(names_in(function.__code__))
        used.update((module.__name__, module) for package in packages for module in _submodules(package, words))
    return used


def _closed_over(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty as yet
            yield cell.cell_contents


def _submodules(package: types.ModuleType, words: set[str]) -> Iterator[types.ModuleType]:
    """Yield the modules below `package` that code with these words may mean: `import a.b` binds only `a`.

    Among a function's globals they have dotted names, which no code can ask for; but they are imported with them.
    """
    above = f"{package.__name__}."
    for name, module in list(sys.modules.items()):
        if name.startswith(above) and words.issuperset(name[len(above) :].split(".")) and module is not None:
            yield module


def dumps_by_value(value: object) -> tuple[bytes, set[str]]:
    """Return `value` pickled, and the modules that went by name. What only exists in this process goes by value.

    Raises whatever dill raises.
    """
    out = io.BytesIO()
    # recurse: only the globals that a function uses, not all of its module's.
    with _patching:
        original, dill.detect.globalvars = dill.detect.globalvars, _globals_used
        try:
            pickler = _Pickler(out, protocol=5, byref=False, recurse=True)
            pickler.dump(value)
        finally:
            dill.detect.globalvars = original
    return out.getvalue(), pickler.modules
