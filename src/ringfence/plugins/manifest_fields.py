"""The types of a manifest's fields: each reads one value, or says in one sentence what it has to be."""

import keyword
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sized
from typing import Annotated, Any, ClassVar, Final, Self, final, overload

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic.types import StrictBool, StrictStr
from pydantic_core import PydanticCustomError, ValidationError

from ringfence.plugins.beneath import name_problem
from ringfence.plugins.errors import InvalidManifest
from ringfence.plugins.versions import ApiVersion, VersionReq, check_semver
from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.errors import UnknownCapability
from ringfence.sandbox.limits import Limits

__all__ = [
    "MOST_ITEMS",
    "MOST_NAME",
    "NAME_PATTERN",
    "UNKNOWN_CAPABILITY",
    "ApiVersionField",
    "CapabilityName",
    "Counted",
    "Dependency",
    "Digest",
    "Distribution",
    "Export",
    "File",
    "LimitsField",
    "Line",
    "MetadataKey",
    "MetadataText",
    "Paragraph",
    "PluginName",
    "PluginVersion",
    "PythonRequirement",
    "Scopes",
    "SourceFile",
    "limit_name",
    "python_matches",
    "shown",
]

NAME_PATTERN: Final = "[a-z0-9][a-z0-9-]*"
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)
MOST_NAME: Final = 64
MOST_LINE: Final = 1000
MOST_DESCRIPTION: Final = 10_000
MOST_ITEMS: Final = 200

# Characters that reorder what a reader sees: what is printed for approval must be what is there.
_REORDERING: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shown(text: object) -> str:
    """Return foreign text quoted, in ASCII, and short enough for a message."""
    whole = text if isinstance(text, str) else type(text).__name__
    return f"{whole[:60]!a}" + ("..." if len(whole) > 60 else "")


def _reported(text: str) -> PydanticCustomError:
    """An error whose text is a whole sentence, before which no field's name is put."""
    # Through the context, so that braces in the text stay as they are.
    return PydanticCustomError("whole", "{text}", {"text": text})


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or len(text) > MOST_NAME:
        raise ValueError(
            f"{shown(text)} is no name: small letters, digits and '-', a letter or digit first, "
            f"at most {MOST_NAME} characters ({NAME_PATTERN})"
        )
    return text


def _text(most: int, allowed: str = "") -> Callable[[str], str]:
    def check(text: str) -> str:
        if not text.strip():
            raise ValueError("must not be empty")
        return check_plain(text, most, allowed)

    return check


def check_plain(text: str, most: int, allowed: str = "") -> str:
    """Return text without control characters, of at most `most` characters. Raises ValueError."""
    if len(text) > most:
        raise ValueError(f"must have at most {most} characters, not {len(text)}")
    for char in text:
        if char not in allowed and (unicodedata.category(char) in ("Cc", "Cs") or char in _REORDERING):
            raise ValueError(f"must not hold the control character U+{ord(char):04X}")
    return text


# How the problem begins; the name follows.
UNKNOWN_CAPABILITY: Final = "unknown capability: "


def _capability(text: str) -> str:
    name, equals, scope = text.partition("=")
    try:
        found = Capability.parse(name)
    except UnknownCapability as error:
        near = " or ".join(map(repr, error.suggestions))
        hint = f"; did you mean {near}?" if near else ""
        raise _reported(f"{UNKNOWN_CAPABILITY}{shown(text).strip(chr(39))}{hint}") from None
    if equals:
        raise _reported(
            f"capabilities: {shown(text)} has a scope; write {found.value!r} here and "
            f"\"{found.value}\" = [{shown(scope)}] in the table [scopes]"
        )
    return found.value


def _export(text: str) -> str:
    if not text.isidentifier() or not text.isascii() or len(text) > MOST_NAME * 2 or keyword.iskeyword(text):
        raise ValueError(f"{shown(text)} is no name of a function")
    return text


def _version(text: str) -> str:
    return check_semver(text)


def _requirement(text: str) -> str:
    return str(VersionReq.parse(text))


def _file(suffix: str = "") -> Callable[[str], str]:
    def check(text: str) -> str:
        problem = name_problem(text)
        if problem is None and suffix and not text.endswith(suffix):
            problem = f"must end in {suffix!r}"
        if problem is not None:
            raise ValueError(f"{shown(text)} {problem}")
        return text

    return check


_HASH: Final = re.compile("sha256:[0-9a-f]{64}", re.ASCII)


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise ValueError("must be 'sha256:' and 64 small hexadecimal digits; `ringfence plugin hash` prints it")
    return text


# The part of PEP 508 that names a distribution, extras, versions and a marker; no URLs.
_CLAUSE: Final = r"(?:===|~=|==|!=|<=|>=|<|>)[ ]*[A-Za-z0-9.*+!_-]+[ ]*"
_DISTRIBUTION: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?[ ]*(?:\[[A-Za-z0-9._, -]*\])?[ ]*"
    rf"(?:\(?{_CLAUSE}(?:,[ ]*{_CLAUSE})*\)?)?[ ]*(?:;[^\n]+)?",
    re.ASCII,
)


def _distribution(text: str) -> str:
    if len(text) > 300 or not _DISTRIBUTION.fullmatch(text):
        raise ValueError(f"{shown(text)} is no requirement such as 'numpy>=1.26' (PEP 508, without a URL)")
    return text


_PYTHON_TERM: Final = re.compile(r"(>=|<=|==|!=|>|<|~=)[ ]*([0-9]{1,4}(?:\.[0-9]{1,4}){0,3})(\.\*)?", re.ASCII)


def _python_terms(text: str) -> list[tuple[str, tuple[int, ...], bool]]:
    terms = []
    for written in text.split(",") if len(text) <= 200 else [""]:
        match = _PYTHON_TERM.fullmatch(written.strip(" "))
        if match is None or (match[3] and match[1] not in ("==", "!=")) or (match[1] == "~=" and "." not in match[2]):
            raise ValueError(f"{shown(text)} is no requirement such as '>=3.11' or '>=3.11,<4'")
        terms.append((match[1], tuple(int(part) for part in match[2].split(".")), match[3] is not None))
    return terms


def _python(text: str) -> str:
    _python_terms(text)
    return text


def python_matches(requirement: str, version: tuple[int, ...] = tuple(sys.version_info[:3])) -> bool:
    """Whether a Python of this version meets a requirement such as ``>=3.11,<4`` (PEP 440, releases only).

    Raises:
        ValueError: the requirement is none.
    """
    return all(_python_term_holds(term, version) for term in _python_terms(requirement))


def _python_term_holds(term: tuple[str, tuple[int, ...], bool], version: tuple[int, ...]) -> bool:
    operator, wanted, wild = term
    width = max(len(wanted), len(version))
    have, want = (*version, *(0,) * width)[:width], (*wanted, *(0,) * width)[:width]
    if operator == "~=":
        return have >= want and have[: len(wanted) - 1] == wanted[:-1]
    if wild:
        return (have[: len(wanted)] == wanted) == (operator == "==")
    return {
        ">=": have >= want,
        "<=": have <= want,
        "==": have == want,
        "!=": have != want,
        ">": have > want,
        "<": have < want,
    }[operator]


def _api_version(value: object) -> ApiVersion:
    if isinstance(value, ApiVersion):
        return value
    if isinstance(value, str):
        return ApiVersion.parse(value)
    if not isinstance(value, Mapping):
        raise ValueError("must be a table: { major = 0, minor = 21, patch = 0 }")
    unknown = [key for key in value if key not in ("major", "minor", "patch")]
    if unknown:
        raise ValueError(f"has an unknown key {shown(unknown[0])}; it has major, minor and patch")
    missing = [key for key in ("major", "minor") if key not in value]
    if missing:
        raise ValueError(f"lacks {' and '.join(missing)}")
    return ApiVersion(value["major"], value["minor"], value.get("patch", 0))


def limit_name(key: str) -> str:
    """Return a limit's name as `Limits` spells it, from either spelling."""
    return key.replace("-", "_")


def _limits(value: object) -> Limits:
    if isinstance(value, Limits):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("must be a table")
    try:
        return Limits.from_mapping({limit_name(str(key)): amount for key, amount in value.items()})
    except (ValueError, OverflowError) as error:
        # Each wrong limit is reported with its own line by the rules; this only keeps the model from being made.
        raise PydanticCustomError("reported", "{text}", {"text": str(error)}) from None


def _counted(value: Any) -> Any:
    if isinstance(value, Sized) and not isinstance(value, str) and len(value) > MOST_ITEMS:
        raise ValueError(f"has more than {MOST_ITEMS} entries")
    return value


def _one_or_many(value: Any) -> Any:
    return _counted((value,) if isinstance(value, str) else value)


PluginName = Annotated[StrictStr, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{NAME_PATTERN}$"})]
PluginVersion = Annotated[StrictStr, AfterValidator(_version)]
Requirement = Annotated[StrictStr, AfterValidator(_requirement)]
Line = Annotated[StrictStr, AfterValidator(_text(MOST_LINE))]
Paragraph = Annotated[StrictStr, AfterValidator(_text(MOST_DESCRIPTION, "\n\t"))]
CapabilityName = Annotated[
    StrictStr, AfterValidator(_capability), Field(json_schema_extra={"enum": sorted(c.value for c in Capability)})
]
Export = Annotated[StrictStr, AfterValidator(_export), Field(json_schema_extra={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})]
SourceFile = Annotated[StrictStr, AfterValidator(_file(".py")), Field(json_schema_extra={"pattern": r"\.py$"})]
File = Annotated[StrictStr, AfterValidator(_file())]
Digest = Annotated[StrictStr, AfterValidator(_hash), Field(json_schema_extra={"pattern": "^sha256:[0-9a-f]{64}$"})]
Distribution = Annotated[StrictStr, AfterValidator(_distribution)]
PythonRequirement = Annotated[StrictStr, AfterValidator(_python)]
MetadataKey = Annotated[StrictStr, AfterValidator(_text(MOST_NAME))]
MetadataText = Annotated[StrictStr, AfterValidator(lambda text: check_plain(text, MOST_DESCRIPTION, "\n\t"))]
# Before the entries are looked at: a wrong name among them costs a search for the nearest right one.
Counted = BeforeValidator(_counted)
Scopes = Annotated[tuple[Line, ...], BeforeValidator(_one_or_many)]

ApiVersionField = Annotated[
    ApiVersion,
    PlainValidator(_api_version),
    PlainSerializer(lambda v: {"major": v.major, "minor": v.minor, "patch": v.patch}),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                part: {"type": "integer", "minimum": 0, "maximum": 65535} for part in ("major", "minor", "patch")
            },
            "required": ["major", "minor"],
            "additionalProperties": False,
        }
    ),
]
LimitsField = Annotated[
    Limits,
    PlainValidator(_limits),
    PlainSerializer(lambda limits: limits.to_mapping()),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "number"]}}),
]


@final
class _Optional:
    """`Dependency.optional(name, version)` makes one; `dependency.optional` tells whether it is one."""

    @overload
    def __get__(self, instance: None, owner: type["Dependency"]) -> Callable[[str, str], "Dependency"]: ...
    @overload
    def __get__(self, instance: "Dependency", owner: type["Dependency"]) -> bool: ...
    def __get__(self, instance: "Dependency | None", owner: type["Dependency"]) -> object:
        if instance is not None:
            return instance.is_optional
        return lambda name, version: owner._made(name, version, True)


@final
class Dependency(BaseModel):
    """Another plugin that has to be there first: `name`, the `version` required, and whether it is `optional`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: PluginName = Field(description="The name of the other plugin.")
    version: Requirement = Field(
        description="What its version must be: '1.0.0' (exactly), '^1.0', '~1.2', '>=1.0.0', several with commas."
    )
    is_optional: StrictBool = Field(default=False, alias="optional", description="Whether the plugin works without it.")
    optional: ClassVar[_Optional] = _Optional()

    @classmethod
    def required(cls, name: str, version: str) -> Self:
        """Return a dependency that must be there. Raises InvalidManifest for a wrong name or requirement."""
        return cls._made(name, version, False)

    @classmethod
    def _made(cls, name: str, version: str, optional: bool) -> Self:
        try:
            return cls.model_validate({"name": name, "version": version, "optional": optional})
        except ValidationError as error:
            raise InvalidManifest([f"dependency {e['loc'][0]}: {e['msg']}" for e in error.errors()]) from None

    @property
    def requirement(self) -> VersionReq:
        """The required version, to match others against."""
        return VersionReq.parse(self.version)
