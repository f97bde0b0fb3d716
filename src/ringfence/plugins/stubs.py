"""Stubs: a .pyi for a plugin's exports, which a type checker reads.

    if TYPE_CHECKING:
        from my_plugin_stub import Exports
    exports = cast("Exports", handle.exports)

Nothing of the plugin's text is pasted: names are identifiers, types come out of a table, and docstrings and literals
are written as ASCII literals of Python.
"""

import inspect
from collections.abc import Iterable, Iterator

from ringfence.plugins.signatures import Function, Parameter, Type, is_name, written

__all__ = ["write_stub"]

_ANYTHING = (
    Parameter("args", inspect.Parameter.VAR_POSITIONAL, is_annotated=True),
    Parameter("kwargs", inspect.Parameter.VAR_KEYWORD, is_annotated=True),
)


def write_stub(functions: Iterable[Function], *, plugin: str = "plugin", class_name: str = "Exports") -> str:
    """Return the text of a stub with one class, whose methods are the plugin's functions.

    Args:
        functions: those that are exported; names that begin with two underscores are left out.
        plugin: the plugin's name, for the comment at the top.
        class_name: what to call the class.

    Raises:
        ValueError: `class_name` is no name.
    """
    if not is_name(class_name):
        raise ValueError(f"{class_name!r} cannot be the name of a class")
    listed = {function.name: function for function in functions if not function.name.startswith("__")}
    writer = _Writer(frozenset(listed))
    methods = [line for name in sorted(listed) for line in writer.method(listed[name])] or ["    ..."]
    return "\n".join(
        [
            f"# The functions of plugin {plugin!a}, by its own annotations. Written by ringfence; do not edit.",
            *writer.imports(),
            "",
            f"class {class_name}({writer.reference('typing.Protocol')}):",
            *methods,
            "",
        ]
    )


class _Writer:
    """Writes methods, and notes what has to be imported for their types."""

    def __init__(self, taken: frozenset[str]) -> None:
        # Inside the class, a method called `list` hides the type: then the type is reached through its module.
        self._taken = taken
        self._typing: set[str] = {"Protocol"}
        self._modules: dict[str, str] = {}

    def imports(self) -> list[str]:
        lines = [
            f"import {module}" if module == name else f"import {module} as {name}"
            for module, name in sorted(self._modules.items())
        ]
        return [*lines, f"from typing import {', '.join(sorted(self._typing))}"]

    def method(self, function: Function) -> Iterator[str]:
        parameters = function.parameters if function.is_known else _ANYTHING
        names = {parameter.name for parameter in parameters}
        own = "self"
        while own in names:
            own = f"_{own}"
        inside = ", ".join([own, *written(parameters, self._parameter)])
        head = f"    def {function.name}({inside}) -> {self.type(function.returns)}:"
        if not function.doc:
            yield f"{head} ..."
            return
        yield head
        yield f"        {function.doc!a}"

    def _parameter(self, parameter: Parameter) -> str:
        rest = " = ..." if parameter.has_default else ""
        return f"{parameter.stars}{parameter.name}: {self.type(parameter.type)}{rest}"

    def type(self, type_: Type) -> str:
        if type_.name in ("None", "..."):
            return type_.name
        if type_.name == "Union":
            return " | ".join(map(self.type, type_.arguments))
        if type_.name == "Any":
            return self.reference("typing.Any")
        if type_.name == "Literal":
            return f"{self.reference('typing.Literal')}[{', '.join(map(ascii, type_.arguments))}]"
        inside = f"[{', '.join(map(self.type, type_.arguments))}]" if type_.arguments else self._open(type_.name)
        return self.reference(type_.name) + inside

    def _open(self, name: str) -> str:
        """Return what strict checkers want behind a generic type whose elements nobody declared."""
        count = {"list": 1, "set": 1, "frozenset": 1, "dict": 2}.get(name.rpartition(".")[2])
        if name == "builtins.tuple":
            return f"[{self.reference('typing.Any')}, ...]"
        if name.startswith("collections.abc."):
            count = 2 if "Mapping" in name else 1
        return f"[{', '.join([self.reference('typing.Any')] * count)}]" if count else ""

    def reference(self, qualified: str) -> str:
        module, _, name = qualified.rpartition(".")
        if name not in self._taken:
            if module == "builtins":
                return name
            if module == "typing":
                self._typing.add(name)
                return name
        alias = module
        if alias.partition(".")[0] in self._taken or module in ("builtins", "typing"):
            alias = f"_{module.replace('.', '_')}"
            while alias in self._taken:
                alias = f"_{alias}"
        self._modules[module] = alias
        return f"{alias}.{name}"
