"""Annotations as plain data, read from a module's syntax tree: `list[int] | None` becomes nested lists of words.

A type is `["any"]`, `["none"]`, `["name", "datetime.date"]`, `["of", "builtins.list", [types]]`, `["union", [types]]`,
`["literal", [values]]` or `["..."]` (inside a tuple). Names are resolved through the module's imports, no further: of
its own classes only TypedDicts are followed, to the dicts that they are. What is not understood is `["any"]`.
"""

import ast
import builtins
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["Annotations"]

_ANY: Final = ["any"]
# Aliases may use aliases, each twice: without a budget thirty lines describe a billion nodes.
_BUDGET: Final = 20_000
_DEPTH: Final = 12
_MAX_STRING: Final = 1000
_MAX_LITERAL: Final = 200
_MAX_DOTS: Final = 8

_TYPING: Final = ("typing.", "typing_extensions.")


class Annotations:
    """Reads the annotations of one module."""

    def __init__(self, statements: Iterable[ast.stmt]) -> None:
        """Learn from the module's top-level statements what its names mean."""
        # Name -> dotted name it was imported as.
        self._imported: dict[str, str] = {}
        # Name -> what was assigned to it, which may be a type.
        self._aliases: dict[str, ast.expr] = {}
        # Names that are its own otherwise: no builtin is meant by them.
        self._own: set[str] = set()
        # Its functions. None is a type: `def list() -> list[int]` is about the builtin one.
        self._functions: set[str] = set()
        self._typed_dicts: set[str] = set()
        self._left = _BUDGET
        for node in statements:
            self._learn(node)

    def qualified(self, node: ast.expr, *, of_type: bool = False) -> str | None:
        """Return the dotted name that an expression like `dt.date` stands for, or None for the module's own.

        With `of_type` it stands for a type.
        """
        parts: list[str] = []
        while isinstance(node, ast.Attribute) and len(parts) < _MAX_DOTS:
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        found = self._imported.get(node.id)
        is_own = node.id in self._own or node.id in self._aliases or (not of_type and node.id in self._functions)
        if found is None and not is_own and hasattr(builtins, node.id):
            found = f"builtins.{node.id}"
        return None if found is None else ".".join((found, *reversed(parts)))

    def read(self, node: ast.expr) -> list[Any]:
        """Return the type that an annotation means."""
        return self._read(node, 0)

    def _learn(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                self._imported[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = alias.asname or alias.name
                if node.level:
                    self._own.add(name)
                else:
                    self._imported[name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ClassDef):
            self._own.add(node.name)
            if any(_bare(self.qualified(base)) == "TypedDict" for base in node.bases):
                self._typed_dicts.add(node.name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._functions.add(node.name)
        elif isinstance(node, ast.Assign):
            self._aliases |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            self._aliases[node.target.id] = node.value
        elif type(node).__name__ == "TypeAlias":  # from 3.12 on
            self._aliases[node.name.id] = node.value  # type: ignore[attr-defined]  # 3.11's ast has no such node

    def _read(self, node: ast.expr, depth: int) -> list[Any]:
        self._left -= 1
        if self._left <= 0 or depth > _DEPTH:
            return _ANY
        if isinstance(node, ast.Constant):
            return self._constant(node.value, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return ["union", [self._read(node.left, depth + 1), self._read(node.right, depth + 1)]]
        if isinstance(node, ast.Name) and node.id in self._aliases and node.id not in self._imported:
            return self._read(self._aliases[node.id], depth + 1)
        if isinstance(node, ast.Name) and node.id in self._typed_dicts:
            return ["of", "builtins.dict", [["name", "builtins.str"], _ANY]]
        if isinstance(node, ast.Subscript):
            return self._subscript(node, depth)
        name = self.qualified(node, of_type=True)
        return _ANY if name is None else ["name", name[:_MAX_STRING]]

    def _constant(self, value: object, depth: int) -> list[Any]:
        if value is None:
            return ["none"]
        if value is Ellipsis:
            return ["..."]
        if isinstance(value, str) and len(value) <= _MAX_STRING:
            try:
                return self._read(ast.parse(value.strip(), mode="eval").body, depth + 1)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                pass
        return _ANY

    def _subscript(self, node: ast.Subscript, depth: int) -> list[Any]:
        name = self.qualified(node.value, of_type=True)
        if name is None:
            return _ANY
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        bare = _bare(name)
        if bare == "Literal":
            return _literal(inside)
        if bare in ("Annotated", "Required", "NotRequired", "Final"):
            return self._read(inside[0], depth + 1)
        arguments = [self._read(each, depth + 1) for each in inside]
        if bare == "Union":
            return ["union", arguments]
        if bare == "Optional":
            return ["union", [*arguments, ["none"]]]
        return ["of", name[:_MAX_STRING], arguments]


def _bare(name: str | None) -> str:
    """Return a name of the typing modules without its module, and of any other nothing."""
    return name.rpartition(".")[2] if name is not None and name.startswith(_TYPING) else ""


def _literal(inside: list[ast.expr]) -> list[Any]:
    values: list[Any] = []
    for each in inside:
        value = -each.operand.value if _is_negative(each) else getattr(each, "value", _ANY)  # type: ignore[attr-defined]  # it says so
        if not (value is None or isinstance(value, str | bytes | int)) or len(str(value)) > _MAX_LITERAL:
            return _ANY
        values.append(value)
    return ["literal", values[:_MAX_LITERAL]]


def _is_negative(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
        and isinstance(node.operand.value, int)
    )
