"""Reads and compiles a module's source inside a throw-away worker, and describes it as plain data; nothing of it runs.

The compiler is C code with a stack: sources are known that end its process. That is why it works here. What is
answered is checked by the host (ringfence.plugins.inspection): from here on it is as foreign as the source.
"""

import ast
import marshal
import warnings
from importlib.util import decode_source
from types import CodeType
from typing import Any, Final

from ringfence.worker.annotations import Annotations

__all__ = ["examine"]

# Beyond these a description helps nobody; the code itself is not bounded by them.
_MAX_FUNCTIONS: Final = 1000
_MAX_PROBLEMS: Final = 200
_MAX_NAMES: Final = 2000
_MAX_TEXT: Final = 2000

# A function under one of these has the parameters that its definition shows; under any other decorator nobody knows.
_HARMLESS: Final = frozenset({"functools.cache", "functools.lru_cache", "typing.final", "typing.no_type_check"})
_GUEST: Final = "ringfence."


def examine(source: bytes | str, filename: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return what there is to say of one module.

    Args:
        source: its bytes, whose encoding cookie counts, or its text.
        filename: what tracebacks will show.
        options: "optimize" (0 to 2, or None to compile nothing), "flags" (of `__future__`), "target" (None, or the
            [major, minor] whose syntax it must keep to), "lines" (False: without line numbers in the code).

    Returns:
        "problems": [[severity, message, line, column, text of the line], ...], the first an error if it does not
        compile, and then nothing else; "code": marshalled, or None; "functions", "exported", "bound", "imports",
        "used", "lines", "classes": what it holds.
    """
    problems: list[list[Any]] = []
    answer: dict[str, Any] = {"problems": problems, "code": None}
    lines = _lines(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tree = _parse(source, filename, options["target"])
            answer |= _describe(tree) | {"lines": len(lines)}
            if options["optimize"] is not None:
                code = compile(
                    tree, filename, "exec", options["flags"], dont_inherit=True, optimize=options["optimize"]
                )
                answer["code"] = marshal.dumps(code if options["lines"] else _without_lines(code))
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError, LookupError) as error:
            return {"problems": [_error(error, lines)], "code": None}
    for each in caught[:_MAX_PROBLEMS]:
        problems.append(["warning", str(each.message)[:_MAX_TEXT], each.lineno, None, _line(lines, each.lineno)])
    return answer


def _parse(source: bytes | str, filename: str, target: list[int] | None) -> ast.Module:
    version = None if target is None else (target[0], target[1])
    return ast.parse(source, filename, feature_version=version)


def _lines(source: bytes | str) -> list[str]:
    try:
        return (source if isinstance(source, str) else decode_source(source)).split("\n")
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return []


def _line(lines: list[str], number: int | None) -> str | None:
    return lines[number - 1][:_MAX_TEXT] if number is not None and 0 < number <= len(lines) else None


def _error(error: BaseException, lines: list[str]) -> list[Any]:
    if isinstance(error, SyntaxError):
        line, column = _from_one(error.lineno), _from_one(error.offset)
        text = _line(lines, line) if lines else (error.text or "")[:_MAX_TEXT] or None
        return ["error", str(error.msg)[:_MAX_TEXT], line, column, text]
    if isinstance(error, RecursionError | MemoryError):
        return ["error", "too large or too deeply nested for the compiler", None, None, None]
    return ["error", f"{type(error).__name__}: {error}"[:_MAX_TEXT], None, None, None]


def _from_one(number: int | None) -> int | None:
    return number if number is not None and number > 0 else None  # 0 and -1 stand for "not known"


def _without_lines(code: CodeType) -> CodeType:
    """Return the code without its line table, and so all code in it."""
    constants = tuple(_without_lines(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_linetable=b"", co_consts=constants)


def _describe(tree: ast.Module) -> dict[str, Any]:
    statements = _top_level(tree)
    annotations = Annotations(statements)
    functions: dict[str, dict[str, Any]] = {}
    exported: list[str] | None = None
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [annotations.qualified(each) for each in map(_called, node.decorator_list)]
            if "typing.overload" not in decorators and len(functions) < _MAX_FUNCTIONS:
                functions[node.name] = _function(node, decorators, annotations)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            names = [target.id for target in _targets(node) if isinstance(target, ast.Name)]
            if "__all__" in names:
                exported = _texts(node.value, exported if isinstance(node, ast.AugAssign) else None)
            elif isinstance(node.value, ast.Lambda) and not isinstance(node, ast.AugAssign):
                functions |= {name: _lambda(name, node.value) for name in names}
    imports, used = _reached(tree, annotations)
    return {
        "functions": list(functions.values())[:_MAX_FUNCTIONS],
        "exported": exported,
        "bound": sorted(_bound(statements))[:_MAX_NAMES],
        "imports": imports,
        "used": used,
        "classes": sum(isinstance(node, ast.ClassDef) for node in statements),
    }


def _top_level(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements that run when the module does, in order, those inside `if`, `try` and `with` included."""
    found: list[ast.stmt] = []
    waiting: list[ast.stmt] = tree.body[::-1]
    while waiting:
        node = waiting.pop()
        found.append(node)
        inner: list[ast.stmt] = []
        for name in ("body", "handlers", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for each in getattr(node, name, ()):
                    inner += each.body if isinstance(each, ast.ExceptHandler) else [each]
        waiting += inner[::-1]
    return found


def _bound(statements: list[ast.stmt]) -> set[str]:
    """Return the names that these statements define or import; an asterisk among them where nobody can say which."""
    found: set[str] = set()
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        else:
            # `for`, `with` and := at the top level bind, too.
            names = (each for each in ast.walk(node) if isinstance(each, ast.Name))
            found.update(each.id for each in names if isinstance(each.ctx, ast.Store))
    return found


def _targets(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _called(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _texts(node: ast.expr | None, before: list[str] | None) -> list[str] | None:
    """Return the strings of a literal list or tuple, after those before; None when it is anything else."""
    if not isinstance(node, ast.List | ast.Tuple):
        return None
    texts = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if len(texts) != len(node.elts):
        return None
    return list(dict.fromkeys([*(before or ()), *(text[:_MAX_TEXT] for text in texts)]))[:_MAX_NAMES]


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, decorators: list[str | None], annotations: Annotations
) -> dict[str, Any]:
    return {
        "name": node.name,
        "line": node.lineno,
        "async": isinstance(node, ast.AsyncFunctionDef),
        "generator": _yields(node),
        "known": all(name in _HARMLESS or (name or "").startswith(_GUEST) for name in decorators),
        "doc": (ast.get_docstring(node) or "")[:_MAX_TEXT],
        "parameters": _parameters(node.args, annotations),
        "returns": None if node.returns is None else annotations.read(node.returns),
    }


def _lambda(name: str, node: ast.Lambda) -> dict[str, Any]:
    return {
        "name": name, "line": node.lineno, "async": False, "generator": _yields(node), "known": True, "doc": "",
        "parameters": _parameters(node.args, None), "returns": None,
    }  # fmt: skip


def _parameters(arguments: ast.arguments, annotations: Annotations | None) -> list[list[Any]]:
    """Return `[name, kind, annotation or None, has a default]` for each; kinds as inspect.Parameter counts them."""
    made: list[list[Any]] = []

    def add(each: ast.arg, kind: int, *, default: bool = False) -> None:
        known = annotations is not None and each.annotation is not None
        made.append([each.arg, kind, annotations.read(each.annotation) if known else None, default])  # type: ignore[union-attr,arg-type]  # known says so

    plain = [(each, 0) for each in arguments.posonlyargs] + [(each, 1) for each in arguments.args]
    first_default = len(plain) - len(arguments.defaults)
    for position, (each, kind) in enumerate(plain):
        add(each, kind, default=position >= first_default)
    if arguments.vararg is not None:
        add(arguments.vararg, 2)
    for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        add(each, 3, default=value is not None)
    if arguments.kwarg is not None:
        add(arguments.kwarg, 4)
    return made


def _yields(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> bool:
    """Whether calling it makes a generator: a yield that is its own, not of a function inside it."""
    waiting: list[ast.AST] = list(function.body) if isinstance(function.body, list) else [function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return False


def _reached(tree: ast.Module, annotations: Annotations) -> tuple[list[str], list[str]]:
    """Return the modules it imports anywhere, and the dotted names it uses of them or of the builtins."""
    imports: dict[str, None] = {}
    used: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports["." * node.level + (node.module or "")] = None
            if not node.level:
                used |= dict.fromkeys(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Name) and (name := annotations.qualified(node)) is not None:
            used[name] = None
    return sorted(imports)[:_MAX_NAMES], sorted(used)[:_MAX_NAMES]
