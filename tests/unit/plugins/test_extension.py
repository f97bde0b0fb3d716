"""What a class must have to be an extension."""

import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest

from ringfence.plugins.catalog import EXTENSION, PluginCatalog, define_plugin
from ringfence.plugins.extension import DynPluginEXT, PluginEXT, StaticPluginEXT, check_extension
from ringfence.plugins.opaque import OpaqueList

GOOD: dict[str, Any] = {
    "UUID": UUID(int=1),
    "NAME": "__EXT_GOOD",
    "DESCRIPTION": "Is as it should be",
    "new": classmethod(lambda cls, ext: cls()),
}


def made(bases: tuple[type, ...] = (StaticPluginEXT, PluginEXT), **changes: Any) -> type:
    """Return a class with these attributes; one that is given as ... is left out."""
    attributes = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    return type(StaticPluginEXT)("Made", bases, attributes) if len(bases) == 1 else type("Made", bases, attributes)


def test_a_class_with_all_of_it_passes() -> None:
    """Hooks that are not defined are inherited, and do nothing; its objects are what an instance holds."""
    cls = made()
    assert define_plugin(catalog=PluginCatalog())(cls) is cls
    plugin: Any = cls.new(OpaqueList())  # type: ignore[attr-defined]
    assert isinstance(plugin, DynPluginEXT)
    assert (plugin.uuid, plugin.name, plugin.description) == (UUID(int=1), "__EXT_GOOD", "Is as it should be")
    assert plugin.initialize() is plugin.teardown() is None


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("UUID", ...),
        ("UUID", "cdb726aa-8656-486f-a5b5-ff09f37a83fb"),
        ("NAME", ...),
        ("NAME", 3),
        ("NAME", ""),
        ("NAME", "a\nb"),
        ("DESCRIPTION", ...),
        ("DESCRIPTION", b"bytes"),
        ("REQUIRES_HOST", 1.0),
        ("new", ...),
        ("new", lambda self, ext: None),
        ("new", 3),
        ("initialize", 3),
        ("teardown", None),
    ],
)
def test_what_is_missing_or_wrong_is_named(attribute: str, value: Any) -> None:
    """Registration fails with a TypeError that names the class and the attribute."""
    with pytest.raises(TypeError, match=rf"Made.*\b{attribute}\b"):
        define_plugin(catalog=PluginCatalog())(made(**{attribute: value}))


def test_hooks_are_asked_for_where_the_kind_has_them() -> None:
    """StaticPluginEXT alone is no extension, but may be of another kind."""
    cls = made(bases=(StaticPluginEXT,))
    with pytest.raises(TypeError, match="attach_to"):
        check_extension(cls, EXTENSION.hooks)
    check_extension(cls)


@pytest.mark.parametrize("value", [3, int, "text", None])
def test_what_is_no_such_class_is_refused(value: Any) -> None:
    """Neither another class, nor no class."""
    with pytest.raises(TypeError, match="StaticPluginEXT"):
        check_extension(value)


def test_the_public_module_is_light() -> None:
    """A worker that runs an extension's class imports ringfence.ext, and with it nothing but the standard library."""
    heavy = "pydantic semver filelock psutil msgpack dill importlib.metadata concurrent.futures multiprocessing asyncio"
    ours = "ringfence.pool ringfence.sandbox ringfence.plugins.errors ringfence.plugins.instance"
    for module in ("ringfence.ext", "ringfence.api.ext.hylog"):
        program = f"import sys, {module}; print(*({{*{f'{heavy} {ours}'.split()}}} & set(sys.modules)))"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        assert ended.stdout.split() == []
