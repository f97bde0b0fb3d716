"""The schema for editors agrees with the parser and is stable."""

import json

from ringfence.plugins.manifest import Manifest
from ringfence.plugins.manifest_rules import SCOPED
from ringfence.plugins.manifest_schema import SCHEMA_ID, manifest_schema, manifest_schema_text
from ringfence.sandbox.capabilities import Capability, Grant
from ringfence.sandbox.errors import PolicyError


def test_stable() -> None:
    """It is JSON, the same each time."""
    assert json.loads(manifest_schema_text()) == manifest_schema()
    assert manifest_schema_text() == manifest_schema_text()
    assert manifest_schema()["$id"] == SCHEMA_ID


def test_every_field_described() -> None:
    """Each field of a manifest is in it under its key in a file, with a sentence about it."""
    schema = manifest_schema()
    properties = schema["properties"]
    assert set(properties) == {"$schema", *(name.replace("_", "-") for name in Manifest.model_fields)}
    assert all(value["description"].endswith((".", "'.")) for value in properties.values())
    assert schema["required"] == ["name", "version", "api-version"]
    assert schema["additionalProperties"] is False
    assert set(schema["$defs"]["Dependency"]["properties"]) == {"name", "version", "optional"}
    assert set(properties["capabilities"]["items"]["enum"]) == {capability.value for capability in Capability}
    assert "null" not in json.dumps(properties)


def test_scoped_capabilities() -> None:
    """Exactly the capabilities that take a scope may have one."""
    taking = set()
    for capability in Capability:
        try:
            Grant(capability, "?")
        except PolicyError as error:
            if "takes no scope" not in str(error):
                taking.add(capability)
    assert taking == SCOPED
    assert set(manifest_schema()["properties"]["scopes"]["properties"]) == {capability.value for capability in SCOPED}
