"""``ringfence plugin check``: everything that is wrong with a plugin, told at once, without running it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from ringfence.cli.plugin_access import Access, AllowOption, ProfileOption, YesOption
from ringfence.cli.plugin_home import Home, JsonOption, StoreOption, Target
from ringfence.cli.plugin_output import error_document, placed, print_json, show

if TYPE_CHECKING:
    from ringfence.plugins.folder import Code
    from ringfence.plugins.inspection import Diagnostic, Inspection
    from ringfence.plugins.manifest import Manifest
    from ringfence.pool.executor import Pool

__all__ = ["Checked", "Finding", "register"]

_FOUND: Final = 1
_BY_HAND: Final = frozenset({"builtins.globals", "builtins.vars", "builtins.exec", "builtins.setattr", "sys.modules"})
_STYLES: Final = {"error": "red", "warning": "yellow"}


class Finding(NamedTuple):
    """One thing that is wrong, or may be."""

    severity: str
    message: str
    path: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.path, self.line, self.column) if part is not None)
        return f"{place}: {self.severity}: {self.message}" if place else f"{self.severity}: {self.message}"


class Checked:
    """One plugin and what was found about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name: str | None = None
        self.version: str | None = None
        self.findings: list[Finding] = []
        self.has_run = False

    def is_ok(self, *, strict: bool) -> bool:
        """Whether nothing was found that counts."""
        return not any(strict or each.severity == "error" for each in self.findings)

    def to_data(self, *, strict: bool) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "path": str(self.path), "name": self.name, "version": self.version, "ok": self.is_ok(strict=strict),
            "loaded": self.has_run, "problems": [each._asdict() for each in self.findings],
        }  # fmt: skip


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("check")(check)


def check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders, manifests, .py or .plb files.")],
    allow: AllowOption = None,
    profile: ProfileOption = None,
    run: Annotated[bool, typer.Option("--run", help="Also load it, locked in: its code runs through once.")] = False,
    yes: YesOption = False,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings count as errors.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell everything that is wrong with a plugin, without running it.

    Its manifest is checked, all problems at once with their lines; that its files are there and its sources compile
    (in a throw-away worker); that what it exports is defined; and with --allow or --profile, that these grant what it
    declares. --run loads it as well, which asks for approval as "call" does.

    \b
    Examples:
      ringfence plugin check greeter
      ringfence plugin check plugins/* --strict --json
      ringfence plugin check collector --profile observability --run

    Exit code: 0 all is well, 1 something was found, 2 usage, 125 this host cannot start workers.
    """
    from ringfence.plugins.inspection import inspection_pool

    access = Access(allow, profile)
    home = Home.of(store)
    with inspection_pool() as pool:
        results = [_check(path, access, pool) for path in paths]
    if run:
        for each in results:
            if each.is_ok(strict=False):
                _load(each, access, home, yes=yes)
    fine = all(each.is_ok(strict=strict) for each in results)
    if as_json:
        print_json({"ok": fine, "plugins": [each.to_data(strict=strict) for each in results]})
    else:
        for each in results:
            _show(each, strict=strict)
    raise typer.Exit(0 if fine else _FOUND)


def _show(result: Checked, *, strict: bool) -> None:
    for finding in result.findings:
        show(str(finding), _STYLES[finding.severity])
    what = f"{result.name} {result.version}" if result.name else str(result.path)
    counts = [f"{count} {severity}{'s' if count > 1 else ''}" for severity in _STYLES
              if (count := sum(each.severity == severity for each in result.findings))]  # fmt: skip
    found = ", ".join(counts) or ("fine, and it loads" if result.has_run else "fine")
    show(f"{what}: {found}", "bold green" if result.is_ok(strict=strict) else "bold red")


# Without running anything of it


def _check(path: Path, access: Access, pool: "Pool") -> Checked:
    from ringfence.errors import RingfenceError
    from ringfence.plugins.blueprint import draw
    from ringfence.plugins.folder import read_code

    result = Checked(path)
    try:
        manifest = Target(path).manifest()
    except (RingfenceError, OSError) as error:
        result.findings += _of_error(error, path)
        return result
    result.name, result.version = manifest.name, manifest.version
    shown = str(manifest.path or path)
    result.findings += [Finding("warning", text, shown, line) for line, text in map(placed, manifest.lint())]
    try:
        manifest.validate_for()
        code = read_code(manifest)
        result.findings += _of_code(manifest, code, pool)
        # With nothing said about it, everything that is declared is granted: what no worker could be held to is left.
        draw(manifest, access.loader_config(manifest, strictly=access.is_given), access.profile, code=code)
    except (RingfenceError, OSError) as error:
        result.findings += _of_error(error, Path(shown))
    result.findings.sort(key=lambda each: (each.severity, each.path or "", each.line or 0))
    return result


def _of_error(error: Exception, path: Path) -> list[Finding]:
    said = error_document(error)["error"]
    place = said.get("path") or str(path)
    if "problems" in said:
        return [Finding("error", each["message"], place, each["line"]) for each in said["problems"]]
    # Errors that carry their place put it first in their text; here it is told beside it.
    message = getattr(error, "message", None)
    text = message if isinstance(message, str) and "path" in said else said["message"]
    return [Finding("error", text, place, said.get("line"), said.get("column"))]


def _of_code(manifest: "Manifest", code: "Code", pool: "Pool") -> list[Finding]:
    from ringfence.plugins.bytecode import read_header
    from ringfence.plugins.inspection import inspect_source
    from ringfence.plugins.programs import describe_program

    if code.bytecode is not None:
        offered = read_header(code.bytecode).exports
        missing = [name for name in manifest.exports if name not in offered]
        return [Finding("error", f"exports: the bytecode has no {name!r}", str(manifest.path)) for name in missing]
    if manifest.runtime == "executable":
        assert manifest.folder is not None
        describe_program(manifest.folder.resolve() / manifest.entry_point(), manifest.folder)
        return []
    # An empty __init__.py is as good as any.
    filled = [module for module in code.modules if module.source.strip() or module is code.modules[0]]
    seen = [inspect_source(module.source, module.filename, pool=pool) for module in filled]
    found = [_of_diagnostic(problem) for each in seen for problem in each.problems]
    if seen[0].error is None:
        found += _of_exports(manifest, seen[0], code.modules[0].filename)
    return found + _of_suggestions(manifest, seen)


def _of_diagnostic(problem: "Diagnostic") -> Finding:
    return Finding(problem.severity, problem.message, problem.path, problem.line, problem.column)


def _of_exports(manifest: "Manifest", main: "Inspection", file: str) -> list[Finding]:
    # Whoever writes into the module's names by hand, or imports all of another's, may well define what is not seen.
    severity = "warning" if "*" in main.bound or main.used & _BY_HAND else "error"
    found = [
        Finding(severity, f"exports: {name!r} is not defined", file)
        for name in manifest.exports
        if name not in main.bound
    ]
    if not manifest.exports and not main.public and manifest.extension is None:
        found.append(Finding("warning", "exports: there is no function that a host could call", file))
    return found


def _of_suggestions(manifest: "Manifest", seen: "list[Inspection]") -> list[Finding]:
    """Warn of what is imported or used and will be refused for want of a capability that is not even declared."""
    from ringfence.plugins.suggestions import suggest_capabilities

    hints = suggest_capabilities(
        {name for each in seen for name in each.imports}, {name for each in seen for name in each.used}
    )
    lacking = [hint for hint in hints if hint.value not in manifest.capabilities and hint.risk.value != "low"]
    return [
        Finding("warning", f"capabilities: the code looks as if it needs {hint.value}, which is not declared",
                str(manifest.path))
        for hint in lacking
    ]  # fmt: skip


# Running it, locked in


def _load(result: Checked, access: Access, home: Home, *, yes: bool) -> None:
    from ringfence.errors import RingfenceError
    from ringfence.plugins.runtime import PluginRuntime

    target = Target(result.path)
    try:
        with PluginRuntime(access.runtime_config(target.manifest(), home, yes=yes)) as runtime:
            target.load(runtime)
            result.has_run = True
    except ExceptionGroup as group:
        result.findings += [Finding("error", f"as it ended: {error}", str(result.path)) for error in group.exceptions]
    except RingfenceError as error:
        result.findings += _of_error(error, result.path)
