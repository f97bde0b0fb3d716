"""What a manifest must keep to beyond the types of its fields, found in one pass so that all of it is told at once."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic_core import ValidationError

from ringfence.plugins.beneath import name_problem
from ringfence.plugins.kinds import metadata_problems
from ringfence.plugins.manifest_fields import MOST_ITEMS, Dependency, limit_name, shown
from ringfence.plugins.manifest_lines import Path
from ringfence.sandbox.capabilities import Capability, Grant
from ringfence.sandbox.errors import PolicyError
from ringfence.sandbox.limits import Limits

__all__ = [
    "FILE_SYSTEM",
    "SCOPED",
    "Given",
    "Problem",
    "broken_rules",
    "is_relative",
    "normalise",
    "of_pydantic",
]

_MOST_NOTES: Final = 100
_DEPENDENCY_KEYS: Final = ("name", "version", "optional")
FILE_SYSTEM: Final = frozenset(
    {
        Capability.FS_READ,
        Capability.FS_WRITE,
        Capability.FS_DELETE,
        Capability.FS_METADATA,
        Capability.FS_EXECUTE,
    }
)
SCOPED: Final = FILE_SYSTEM | {
    Capability.NET_REQUEST,
    Capability.NET_LISTEN,
    Capability.NET_DNS,
    Capability.PROCESS_EXEC,
    Capability.ENV_READ,
    Capability.ENV_WRITE,
    Capability.PLUGIN_CALL,
    Capability.PLUGIN_MESSAGE,
}


class Problem(NamedTuple):
    """One thing that is wrong: where, what, and for a field that is not there its name."""

    path: Path
    text: str
    missing: str | None = None


@dataclass
class Given:
    """A manifest's data under the fields' own names, and what came up on the way there."""

    fields: dict[str, Any] = field(default_factory=dict)
    written: dict[str, Path] = field(default_factory=dict)  # field -> the path under which the author wrote it
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is accepted, and better written otherwise
    legacy_api_version: bool = False

    def path(self, name: str, *rest: str | int) -> Path:
        """Return where `rest` of the field `name` was written."""
        return (*self.written.get(name, (name.replace("_", "-"),)), *rest)


def normalise(data: Mapping[str, Any], known: Iterable[str], strict: bool) -> Given:
    """Sort a manifest's keys out: both spellings of each, the table [plugin], unknown ones.

    Args:
        data: as parsed.
        known: the names of the fields.
        strict: whether an unknown key is a problem; it is a note otherwise, and left out.
    """
    given = Given()
    names = {spelling: name for name in known for spelling in (name, name.replace("_", "-"))}
    for key, value in data.items():
        if key == "$schema":  # for editors, in JSON
            continue
        if key == "plugin" and isinstance(value, Mapping):
            for inner, table in value.items():
                _take(given, {"scopes": "scopes", "limits": "limits"}, inner, table, ("plugin", inner), strict)
        else:
            _take(given, names, key, value, (key,), strict)
    _unknown_in_dependencies(given, strict)
    if isinstance(given.fields.get("metadata"), Mapping):
        given.fields["metadata"] = dict(_coerced(given, given.fields["metadata"]))
    if isinstance(given.fields.get("api_version"), str):
        given.legacy_api_version = True
        given.notes.append(
            "api-version: text is the spelling of old manifests; write a table { major, minor, patch } "
            "(`ringfence plugin migrate` does)"
        )
    return given


def _take(given: Given, names: Mapping[str, str], key: str, value: Any, path: Path, strict: bool) -> None:
    name = names.get(key)
    if name is None:
        spellings = sorted({spelling.replace("_", "-") for spelling in names})
        _unknown(given, path, "key", key, spellings, strict)
    elif name in given.fields:
        other = ".".join(str(part) for part in given.written[name])
        given.problems.append(Problem(path, f"{'.'.join(map(str, path))}: is given twice; it is there as {other} too"))
    else:
        given.fields[name] = value
        given.written[name] = path


def _unknown(given: Given, path: Path, what: str, key: str, known: Iterable[str], strict: bool) -> None:
    # The search takes half a millisecond, and a hostile manifest has room for 40,000 keys.
    told = len(given.problems) + len(given.notes)
    near = difflib.get_close_matches(key[:60].replace("_", "-"), list(known), n=1) if told < 50 else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    text = f"unknown {what}: {shown(key)}{hint}"
    if strict:
        given.problems.append(Problem(path, text))
    elif told < _MOST_NOTES:
        given.notes.append(text)


def _unknown_in_dependencies(given: Given, strict: bool) -> None:
    items = given.fields.get("dependencies")
    if not isinstance(items, list):
        return
    cleaned = []
    for at, item in enumerate(items[: MOST_ITEMS + 1]):
        if isinstance(item, Mapping):
            for key in item:
                if key not in _DEPENDENCY_KEYS:
                    path = given.path("dependencies", at, key)
                    _unknown(given, path, "key of a dependency", key, _DEPENDENCY_KEYS, strict)
            item = {key: item[key] for key in item if key in _DEPENDENCY_KEYS}
        cleaned.append(item)
    given.fields["dependencies"] = cleaned


def _coerced(given: Given, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in metadata.items():
        text: str | None = None
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63):
            text = repr(value)
        if text is not None and isinstance(key, str):
            label = _label("metadata", [key])
            if len(given.notes) < _MOST_NOTES:
                given.notes.append(f"{label}: {text} is taken as the text '{text}'; metadata values are strings")
        yield key, value if text is None else text


def broken_rules(given: Given) -> Iterator[Problem]:
    """Return every rule that the fields break together. They may be of any type: types are judged elsewhere."""
    yield from given.problems
    yield from _entry_points(given)
    yield from _duplicates(given)
    yield from _scopes(given)
    yield from _limits(given)
    metadata = given.fields.get("metadata")
    if isinstance(metadata, Mapping):
        texts = {key: value for key, value in metadata.items() if isinstance(key, str) and isinstance(value, str)}
        for key, text in metadata_problems(texts):
            yield Problem(given.path("metadata", key), f"metadata.{key}: {text}")


def _entry_points(given: Given) -> Iterator[Problem]:
    source, bytecode, program = (given.fields.get(name) is not None for name in ("source", "bytecode", "program"))
    executable = given.fields.get("runtime", "python") == "executable"
    if executable:
        if not program:
            yield Problem(given.path("runtime"), 'runtime = "executable" needs the field program')
        if source or bytecode:
            name = "source" if source else "bytecode"
            yield Problem(given.path(name), f'cannot specify {name} with runtime = "executable"')
        return
    if program:
        yield Problem(given.path("program"), 'cannot specify program without runtime = "executable"')
    elif not source and not bytecode:
        yield Problem((), "manifest must specify either 'source' or 'bytecode'")
    if source and bytecode:
        yield Problem(given.path("bytecode"), "cannot specify both source and bytecode")
    if given.fields.get("protocol", "msgpack") == "json":
        yield Problem(given.path("protocol"), 'protocol = "json" is for runtime = "executable" only')


def _canonical(name: str, text: str) -> str:
    if name == "capabilities":
        found = Capability.from_name(text)
        return found.value if found is not None else text
    return text


def _duplicates(given: Given) -> Iterator[Problem]:
    for name in ("capabilities", "exports", "tags", "authors", "python_dependencies"):
        items = given.fields.get(name)
        seen: set[str] = set()
        for at, item in enumerate(items if isinstance(items, list | tuple) else ()):
            if not isinstance(item, str):
                continue
            if _canonical(name, item) in seen:
                also = "" if _canonical(name, item) == item else f" (as {_canonical(name, item)!r})"
                yield Problem(given.path(name, at), f"{name.replace('_', '-')}: {shown(item)} is there twice{also}")
            seen.add(_canonical(name, item))
    names: set[str] = set()
    dependencies = given.fields.get("dependencies")
    for at, item in enumerate(dependencies if isinstance(dependencies, list | tuple) else ()):
        other = item.name if isinstance(item, Dependency) else item.get("name") if isinstance(item, Mapping) else None
        if not isinstance(other, str):
            continue
        if other in names:
            yield Problem(given.path("dependencies", at), f"dependencies: {shown(other)} is there twice")
        if other == given.fields.get("name"):
            yield Problem(given.path("dependencies", at), "dependencies: the plugin depends on itself")
        names.add(other)


def _scopes(given: Given) -> Iterator[Problem]:
    scopes, declared = given.fields.get("scopes"), given.fields.get("capabilities", ())
    if not isinstance(scopes, Mapping) or not isinstance(declared, list | tuple):
        return
    held = {Capability.from_name(name) for name in declared if isinstance(name, str)}
    seen: set[Capability] = set()
    for key, values in scopes.items():
        capability = Capability.from_name(key) if isinstance(key, str) else None
        if capability is None:
            continue  # told as an unknown capability already
        path = given.path("scopes", key)
        if capability not in held:
            yield Problem(path, f"scopes: {key} is not in capabilities; add it there, or drop its scopes")
        if capability in seen:
            yield Problem(path, f"scopes: {key} is there twice, as another spelling of {capability.value!r}")
        seen.add(capability)
        listed = [values] if isinstance(values, str) else values if isinstance(values, list | tuple) else None
        if listed is not None and not listed:
            yield Problem(path, f"scopes: {key} has an empty list; drop it, and the capability if nothing is needed")
        for at, scope in enumerate(listed or ()):
            if isinstance(scope, str) and (text := scope_problem(capability, scope)):
                yield Problem((*path, at), f"scopes: {text}")


def is_relative(capability: Capability, scope: str) -> bool:
    """Whether a scope is a path in the plugin's own folder."""
    return capability in FILE_SYSTEM and not scope.startswith("/")


def scope_problem(capability: Capability, scope: str) -> str | None:
    """Return what is wrong with a scope as a manifest writes it, or None."""
    if is_relative(capability, scope):
        problem = name_problem(scope)
        return f"{capability.value} {shown(scope)} {problem}" if problem else None
    try:
        Grant(capability, scope)
    except PolicyError as error:
        return _plain(error)
    return None


def _limits(given: Given) -> Iterator[Problem]:
    limits = given.fields.get("limits")
    if not isinstance(limits, Mapping):
        return
    before: dict[str, Any] = {}
    for key, value in limits.items():
        name, label = limit_name(str(key)), _label("limits", [key])
        text = _amount_problem(value)
        if text is None:
            try:
                Limits.from_mapping({name: value})
                Limits.from_mapping({**before, name: value})
            except PolicyError as error:
                text = _plain(error).removeprefix("limits: ")
            else:
                before[name] = value
        else:
            text = f"{label}: {text}"
        if text is not None:
            yield Problem(given.path("limits", key), text)


def _amount_problem(value: object) -> str | None:
    if value is None:
        return "must be a number or text; leave it out for the host's own limit"
    # The sizes of numbers that the readers of limits are made for.
    if (isinstance(value, int) and abs(value) >= 1 << 63) or (isinstance(value, str) and len(value) > 64):
        return "is out of range"
    return None


def _plain(error: PolicyError) -> str:
    # Its text holds what was given as it is; here that may be anything.
    return str(error)[:300].encode("ascii", "backslashreplace").decode()


# What pydantic calls a wrong type, in the words of a manifest.
_WANTED: Final[Mapping[str, str]] = {
    "string_type": "must be a string",
    "string_unicode": "must be a string of whole characters",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "mapping_type": "must be a table",
    "model_type": "must be a table with name and version",
    "model_attributes_type": "must be a table with name and version",
    "bool_type": "must be true or false",
}
_TOML_TYPES: Final[Mapping[type, str]] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
    type(None): "null",
}


def of_pydantic(error: ValidationError, given: Given) -> Iterator[Problem]:
    """Return the problems that the fields' types found, in a manifest's words."""
    for found in error.errors(include_url=False):
        name, *rest = found["loc"] or ("",)
        # A wrong key of a table is located by pydantic as (field, key, "[key]").
        places = [part for part in rest if part != "[key]"]
        path = given.path(str(name), *places)
        label = _label(str(name).replace("_", "-"), places)
        kind = found["type"]
        if kind == "reported":
            continue
        if kind == "missing" and not rest:
            field_name = str(name).replace("_", "-")
            yield Problem((), f"missing required manifest field: {field_name}", field_name)
        elif kind == "missing":
            yield Problem(path, f"{_label(str(name), places[:-1])}: {places[-1]!r} is missing")
        elif kind == "whole":
            yield Problem(path, str(found["ctx"]["text"]))
        elif kind == "value_error":
            yield Problem(path, f"{label}: {found['ctx']['error']}")
        elif kind == "literal_error":
            yield Problem(path, f"{label}: must be {found['ctx']['expected']}, not {shown(found['input'])}")
        elif kind in _WANTED:
            is_now = _TOML_TYPES.get(type(found["input"]), type(found["input"]).__name__)
            yield Problem(path, f"{label}: {_WANTED[kind]}, not {is_now}")
        else:
            yield Problem(path, f"{label}: {found['msg']}")


def _label(name: str, places: Iterable[object]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{str(part)[:60]}" for part in places]
    return (name + "".join(parts)).encode("ascii", "backslashreplace").decode()
