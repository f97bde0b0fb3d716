"""Compiles a plugin's source into a bytecode container: the compiler runs in a worker, the host only packs.

    result = compile_source(Path("plugin.py").read_text(), CompileOptions.production())
    result.write("plugin.plb")

A container is for the interpreter that made it (see bytecode.py); another one asks for it to be compiled again.
"""

import __future__

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

from ringfence.plugins.bytecode import SUFFIX, CompiledModule, ExportInfo, Metadata, pack_container
from ringfence.plugins.errors import CompilationError, InvalidConfig
from ringfence.plugins.inspection import Diagnostic, Inspection, inspect_source, inspection_pool
from ringfence.plugins.signatures import Function
from ringfence.plugins.suggestions import suggest_capabilities
from ringfence.pool.executor import Pool
from ringfence.sandbox.capabilities import Capabilities, GrantLike

__all__ = [
    "CompileOptions",
    "CompileResult",
    "CompileStats",
    "SourceModule",
    "compile_file",
    "compile_modules",
    "compile_source",
    "read_signatures",
    "validate_source",
]

# (name, source, file name, is a package), as LOAD carries it.
SourceModule = tuple[str, bytes | str, str, bool]

# Level to what compile() takes: 1 leaves out assertions, 2 docstrings too, 3 besides the line numbers.
_OPTIMIZE: Final = (0, 1, 2, 2)
_OLDEST: Final = (3, 7)  # what ast.parse can still hold a source to
_FLAGS: Final[Mapping[str, int]] = {
    name: getattr(__future__, name).compiler_flag for name in __future__.all_feature_names
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """How to compile.

    Attributes:
        opt_level: 0 keeps everything, 1 leaves out assertions, 2 docstrings too, 3 line numbers as well.
        debug_info: keep line numbers, so that tracebacks have them.
        strip: leave out docstrings, line numbers, and the folders of file names.
        target_version: the oldest Python, such as "3.11", whose syntax the source must keep to.
        flags: features of `__future__` that are on as if the source imported them.
        source_name: what errors and tracebacks call the source.

    Raises:
        InvalidConfig: a level, a version or a flag that there is not.
    """

    opt_level: int = 0
    debug_info: bool = True
    strip: bool = False
    target_version: str | None = None
    flags: tuple[str, ...] = ()
    source_name: str = "<plugin>"

    def __post_init__(self) -> None:
        if type(self.opt_level) is not int or not 0 <= self.opt_level < len(_OPTIMIZE):
            raise InvalidConfig(f"opt_level {self.opt_level!r} is none of 0, 1, 2 and 3")
        object.__setattr__(self, "flags", tuple(self.flags))
        for flag in self.flags:
            if flag not in _FLAGS:
                raise InvalidConfig(f"flag {flag!r} is no feature of __future__; there are {', '.join(_FLAGS)}")
        if self.target_version is not None:
            self._target()

    @classmethod
    def development(cls, **changes: Any) -> "CompileOptions":
        """Return options that keep everything for debugging."""
        return cls(**changes)

    @classmethod
    def production(cls, **changes: Any) -> "CompileOptions":
        """Return options for code that ships: no assertions, no docstrings; tracebacks keep their line numbers."""
        return cls(**{"opt_level": 2, **changes})

    def with_(self, **changes: Any) -> "CompileOptions":
        """Return these options with some changed."""
        return replace(self, **changes)

    @property
    def keeps_lines(self) -> bool:
        """Whether the code will know its line numbers."""
        return self.debug_info and not self.strip and self.opt_level < 3

    def _target(self) -> tuple[int, int] | None:
        if self.target_version is None:
            return None
        parts = self.target_version.split(".")
        if len(parts) not in (2, 3) or not all(part.isascii() and part.isdecimal() and len(part) < 4 for part in parts):
            raise InvalidConfig(f"target_version {self.target_version!r} is no version such as '3.11'")
        target = int(parts[0]), int(parts[1])
        if not _OLDEST <= target <= sys.version_info[:2]:
            here = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise InvalidConfig(
                f"target_version {self.target_version!r}: this interpreter, Python {here}, compiles for 3.7 to {here}"
            )
        return target


@final
@dataclass(frozen=True, slots=True)
class CompileStats:
    """What compiling came to: bytes and lines of source, bytes of the container, and what was in it."""

    source_size: int
    lines: int
    bytecode_size: int
    modules: int
    functions: int
    classes: int
    seconds: float


@final
@dataclass(frozen=True, slots=True)
class CompileResult:
    """A container, what it says of itself, what the compiler warned of, and the functions of the main module."""

    bytecode: bytes = field(repr=False)
    metadata: Metadata
    warnings: tuple[Diagnostic, ...]
    stats: CompileStats
    functions: Mapping[str, Function] = field(repr=False)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the container to a file, which is whole at every moment."""
        target = Path(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            beside.write_bytes(self.bytecode)
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def compile_source(
    source: str | bytes,
    options: CompileOptions | None = None,
    *,
    name: str | None = None,
    version: str = "0.0.0",
    capabilities: Iterable[GrantLike] = (),
    exports: Sequence[str] | None = None,
    custom: Mapping[str, str] | None = None,
    pool: Pool | None = None,
    clock: Callable[[], float] = time.time,
) -> CompileResult:
    """Compile a plugin of one module.

    Args:
        source: its text or bytes.
        options: how; by default as for development.
        name, version: the plugin's; by default the stem of the options' source name, and "0.0.0".
        capabilities: what it is declared to need. Nothing is added to it: what its imports hint at is in the
            metadata's `suggested_capabilities`.
        exports: the functions that it exports; by default its `__all__`, or all whose names have no underscore first.
        custom: more to write into the metadata.
        pool: a pool of `inspection_pool`, shared by several calls.
        clock: the time for `compiled_at`.

    Raises:
        CompilationError: it is empty, does not compile, or ended the compiler.
        InvalidBytecode: the container would be larger than one may be.
    """
    options = options or CompileOptions()
    main = _module_name(options.source_name)
    module: SourceModule = (main, source, options.source_name, False)
    return compile_modules(
        [module], options, name=name or main, version=version, capabilities=capabilities, exports=exports,
        custom=custom, pool=pool, clock=clock,
    )  # fmt: skip


def compile_file(path: str | os.PathLike[str], options: CompileOptions | None = None, **settings: Any) -> CompileResult:
    """Compile the plugin in a file; see `compile_source` for the settings.

    Raises:
        CompilationError: also when its name does not end in .py.
        OSError: it cannot be read.
    """
    file = Path(path)
    if file.suffix != ".py":
        raise CompilationError(
            f"source files end in .py, and this one in {file.suffix or 'nothing'}"
            + ("; it is compiled already" if file.suffix == SUFFIX else ""),
            str(file),
        )
    options = options or CompileOptions()
    if options.source_name == CompileOptions().source_name:
        options = options.with_(source_name=str(file))
    return compile_source(file.read_bytes(), options, **{"name": file.stem, **settings})


def compile_modules(
    modules: Sequence[SourceModule],
    options: CompileOptions | None = None,
    *,
    name: str,
    version: str = "0.0.0",
    capabilities: Iterable[GrantLike] = (),
    exports: Sequence[str] | None = None,
    custom: Mapping[str, str] | None = None,
    pool: Pool | None = None,
    clock: Callable[[], float] = time.time,
) -> CompileResult:
    """Compile a plugin of several modules, the one that exports first; otherwise as `compile_source`."""
    options = options or CompileOptions()
    started = time.perf_counter()
    if not modules:
        raise CompilationError("no source to compile")
    found: list[Inspection] = []
    with nullcontext(pool) if pool is not None else inspection_pool() as asked:
        for position, module in enumerate(modules):
            found.append(_compile(module, options, asked, must_hold=position == 0))
    main = found[0]
    names = main.public if exports is None else tuple(exports)
    used = frozenset().union(*(each.used for each in found))
    imports = {each for inspection in found for each in inspection.imports}
    metadata = Metadata(
        name=name,
        version=str(version),
        language_version=options.target_version or f"{sys.version_info[0]}.{sys.version_info[1]}",
        compiler_version=f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}",
        source_name=_shown(options, modules[0][2]),
        source_hash=_hash(modules),
        compiled_at=clock(),
        required_capabilities=tuple(Capabilities(capabilities).to_names()),
        suggested_capabilities=tuple(each.value for each in suggest_capabilities(imports, used)),
        exports=tuple(_export(each, main) for each in names),
        imports=tuple(sorted(imports)),
        flags=options.flags,
        custom=dict(custom or {}),
    )
    packed = pack_container(
        metadata,
        [
            CompiledModule(module, inspection.code or b"", _shown(options, filename), is_package)
            for (module, _, filename, is_package), inspection in zip(modules, found, strict=True)
        ],
    )
    warnings = [problem for inspection in found for problem in inspection.problems]
    warnings += _missing(names, main, modules[0][2])
    stats = CompileStats(
        source_size=sum(len(_bytes(source)) for _, source, _, _ in modules),
        lines=sum(each.lines for each in found),
        bytecode_size=len(packed),
        modules=len(modules),
        functions=sum(len(each.functions) for each in found),
        classes=sum(each.classes for each in found),
        seconds=time.perf_counter() - started,
    )
    return CompileResult(packed, metadata, tuple(warnings), stats, main.functions)


def validate_source(
    source: str | bytes,
    source_name: str = "<plugin>",
    *,
    exports: Iterable[str] = (),
    pool: Pool | None = None,
) -> list[Diagnostic]:
    """Return what is wrong with a source, errors first; an empty list when it compiles without a warning.

    `exports` that its source does not show to be there are warned of: it may make them when it runs.
    """
    if not _bytes(source).strip():
        return [Diagnostic("error", "empty source", source_name)]
    found = inspect_source(source, source_name, pool=pool, optimize=0)
    if found.error is not None:
        return [found.error]
    return [*found.problems, *_missing(tuple(exports), found, source_name)]


def read_signatures(
    source: str | bytes, source_name: str = "<plugin>", *, pool: Pool | None = None
) -> dict[str, Function]:
    """Return the functions that a source exports by itself, as its annotations describe them; none of it runs.

    Raises:
        CompilationError: it cannot be parsed.
    """
    found = inspect_source(source, source_name, pool=pool)
    if found.error is not None:
        raise found.error.to_error()
    return {name: found.functions[name] for name in found.public if name in found.functions}


def _compile(module: SourceModule, options: CompileOptions, pool: Pool, *, must_hold: bool) -> Inspection:
    _, source, filename, _ = module
    if must_hold and not _bytes(source).strip():
        raise CompilationError("empty source", filename)
    found = inspect_source(
        source,
        _shown(options, filename),
        pool=pool,
        optimize=2 if options.strip else _OPTIMIZE[options.opt_level],
        flags=sum({_FLAGS[flag] for flag in options.flags}),
        target=options._target(),
        lines=options.keeps_lines,
    )
    if found.error is not None:
        raise found.error.to_error()
    return found


def _bytes(source: str | bytes) -> bytes:
    return source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source


def _hash(modules: Sequence[SourceModule]) -> str:
    """Return a digest of all sources with their names; each length goes before, so that no two lists are alike."""
    digest = hashlib.sha256()
    for name, source, _, is_package in modules:
        for part in (name.encode("utf-8", "surrogatepass"), _bytes(source), bytes([is_package])):
            digest.update(len(part).to_bytes(8, "big") + part)
    return f"sha256:{digest.hexdigest()}"


def _shown(options: CompileOptions, filename: str) -> str:
    return os.path.basename(filename) if options.strip else filename


def _module_name(source_name: str) -> str:
    stem = Path(source_name).stem
    return stem if stem.isidentifier() else "plugin"


def _export(name: str, main: Inspection) -> ExportInfo:
    function = main.functions.get(name)
    if function is None:
        return ExportInfo(name)
    count = len(function.parameters) if function.is_known else None
    return ExportInfo(name, count, function.is_async, function.doc, str(function.signature))


def _missing(exports: Sequence[str], found: Inspection, path: str) -> list[Diagnostic]:
    return [
        Diagnostic("warning", f"export {name!r} is not defined as a function at the top level", path)
        for name in exports
        if name not in found.functions
    ]
