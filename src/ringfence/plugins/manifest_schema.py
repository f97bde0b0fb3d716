"""The manifest's JSON Schema, for editors that complete and check while somebody writes one."""

import json
from typing import Any, Final

from ringfence.plugins.manifest import Manifest
from ringfence.plugins.manifest_rules import SCOPED
from ringfence.sandbox.limits import Limits

__all__ = ["SCHEMA_ID", "manifest_schema", "manifest_schema_text"]

SCHEMA_ID: Final = "urn:ringfence:plugin-manifest:1"

_ENTRY_POINTS: Final[list[dict[str, Any]]] = [
    {"required": ["source"], "not": {"anyOf": [{"required": ["bytecode"]}, {"required": ["program"]}]}},
    {"required": ["bytecode"], "not": {"anyOf": [{"required": ["source"]}, {"required": ["program"]}]}},
    {
        "required": ["program", "runtime"],
        "properties": {"runtime": {"const": "executable"}},
        "not": {"anyOf": [{"required": ["source"]}, {"required": ["bytecode"]}]},
    },
]


def manifest_schema() -> dict[str, Any]:
    """Return a JSON Schema (draft 2020-12) of manifests, the same for every call, keys as files spell them.

    What it accepts and the parser refuses is what a schema cannot say, such as that scopes belong to a capability
    that is declared; what it refuses, the parser refuses too, except for spellings kept for old manifests.
    """
    schema = Manifest.model_json_schema(by_alias=True, mode="validation")
    properties = {key.replace("_", "-"): _trimmed(value) for key, value in schema["properties"].items()}
    for value in properties.values():
        if not isinstance(value.get("default"), str):
            value.pop("default", None)  # empty, which leaving the key out says as well
    names = sorted(capability.value for capability in SCOPED)
    scopes = {"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "string"}]}
    properties["scopes"] |= {
        "properties": {name: {"$ref": "#/$defs/Scopes"} for name in names},
        "additionalProperties": False,
    }
    properties["scopes"].pop("propertyNames", None)
    limits = [name for name in Limits.__dataclass_fields__ if name != "given"]
    properties["limits"] |= {"properties": {name: {"type": ["string", "number"]} for name in limits}}
    properties["metadata"]["additionalProperties"] = {"type": ["string", "boolean", "number"]}
    properties["metadata"].pop("propertyNames", None)
    for name in ("capabilities", "exports", "tags", "authors", "python-dependencies"):
        properties[name]["uniqueItems"] = True
    properties["$schema"] = {"type": "string", "description": "Where this schema is, for editors."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": schema["title"],
        "description": "What a plugin says about itself: plugin.toml or plugin.json.",
        "type": "object",
        "properties": properties,
        "required": [key.replace("_", "-") for key in schema["required"]],
        "additionalProperties": False,
        "oneOf": _ENTRY_POINTS,
        "$defs": {"Scopes": scopes} | {name: _trimmed(value) for name, value in schema["$defs"].items()},
    }


def manifest_schema_text() -> str:
    """Return the schema as JSON, byte for byte the same each time."""
    return json.dumps(manifest_schema(), indent=2, sort_keys=True) + "\n"


def _trimmed(value: Any) -> Any:
    """Leave out the titles that pydantic makes of names, and "or null": a file leaves a key out instead."""
    if isinstance(value, list):
        return [_trimmed(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: _trimmed(item) for key, item in value.items() if key != "title" or not isinstance(item, str)}
    options = [option for option in made.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del made["anyOf"]
        made |= options[0]
        made.pop("default", None)
    return made
