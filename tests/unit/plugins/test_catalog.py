"""The inventory: entries by kind, name and UUID; entry points that stay metadata until they are asked for."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from ringfence._version import __version__
from ringfence.errors import CompatibilityCheckFailed, DuplicatedKey, PluginNotFound
from ringfence.plugins.application import InstanceEXT
from ringfence.plugins.catalog import (
    CATALOG,
    EXTENSION,
    ExtensionKind,
    PluginCatalog,
    PluginEntry,
    PluginRegistryEntry,
    define_plugin,
)
from ringfence.plugins.extension import PluginEXT, StaticPluginEXT
from ringfence.plugins.opaque import OpaqueList


def made(name: str, number: int, qualname: str = "Made", requires: str | None = None) -> type:
    """Return an extension's class."""
    return type(
        qualname,
        (StaticPluginEXT, PluginEXT),
        {
            "UUID": UUID(int=number),
            "NAME": name,
            "DESCRIPTION": name,
            "REQUIRES_HOST": requires,
            "new": classmethod(lambda cls, ext: cls()),
            "__module__": __name__,
            "__qualname__": qualname,
        },
    )


@pytest.fixture
def catalog() -> PluginCatalog:
    """An empty one."""
    return PluginCatalog()


def test_a_defined_class_is_found_by_name_and_uuid(catalog: PluginCatalog) -> None:
    """Its entry says who it is and where it is from; `load` makes a new one each time."""
    cls = define_plugin(catalog=catalog)(made("__EXT_A", 1))
    entry = catalog.get("__EXT_A")
    assert entry is catalog.by_uuid(UUID(int=1))
    assert (entry.uuid, entry.name, entry.description) == (UUID(int=1), "__EXT_A", "__EXT_A")
    assert entry.origin == f"{__name__}.Made"
    assert type(catalog.load("__EXT_A", OpaqueList())) is cls
    assert PluginRegistryEntry is PluginEntry


def test_importing_a_module_again_replaces_its_class(catalog: PluginCatalog) -> None:
    """The same module and name is the same class, even if its NAME or UUID has changed since."""
    define_plugin(catalog=catalog)(made("__EXT_A", 1))
    define_plugin(catalog=catalog)(made("__EXT_A", 1))
    again = define_plugin(catalog=catalog)(made("__EXT_A", 2))
    assert len(catalog) == 1
    assert catalog.by_uuid(UUID(int=1)) is None
    assert type(catalog.load("__EXT_A", OpaqueList())) is again


@pytest.mark.parametrize(("name", "number"), [("__EXT_A", 2), ("__EXT_B", 1)])
def test_another_class_with_the_name_or_uuid_is_refused(catalog: PluginCatalog, name: str, number: int) -> None:
    """The error names both classes, and the first one stays."""
    define_plugin(catalog=catalog)(made("__EXT_A", 1))
    with pytest.raises(DuplicatedKey, match=r"\.Made and .*\.Other$"):
        define_plugin(catalog=catalog)(made(name, number, "Other"))
    assert [entry.origin for entry in catalog] == [f"{__name__}.Made"]


def test_kinds_are_apart(catalog: PluginCatalog) -> None:
    """A name and a UUID may be used once in each kind; where a kind allows it, a UUID more often."""
    strategies = ExtensionKind("strategy", unique_uuid=False)
    define_plugin(catalog=catalog)(made("__EXT_A", 1))
    define_plugin(kind=strategies, catalog=catalog)(made("__EXT_A", 1))
    define_plugin(kind=strategies, catalog=catalog)(made("__EXT_B", 1, "Other"))
    define_plugin(kind="renderer", catalog=catalog)(made("__EXT_A", 1))
    assert catalog.names(strategies) == ["__EXT_A", "__EXT_B"]
    assert [entry.kind for entry in catalog.entries()] == [EXTENSION]
    assert "__EXT_B" not in catalog
    with pytest.raises(PluginNotFound, match="__EXT_C"):
        catalog.get("__EXT_C", strategies)


def test_an_unknown_name_says_so_with_names_that_are_near(catalog: PluginCatalog) -> None:
    """Ours are known without an import."""
    with pytest.raises(PluginNotFound, match=r"^Plugin with name '__EXT_BAR' not found"):
        catalog.get("__EXT_BAR")
    with pytest.raises(PluginNotFound, match="did you mean '__EXT_hyperion_logger'"):
        catalog.get("__EXT_hyperion_loger")


@pytest.mark.parametrize("name", InstanceEXT)
def test_our_own_extensions_are_found_by_name(name: InstanceEXT) -> None:
    """Each is imported when it is asked for."""
    assert CATALOG.get(name).name == name.value
    assert name in CATALOG.names()


@pytest.mark.parametrize("requires", [None, "*", f"={__version__}", ">=0.0.1"])
def test_a_version_of_ringfence_may_be_required(catalog: PluginCatalog, requires: str | None) -> None:
    """One that this is, is no trouble."""
    define_plugin(catalog=catalog)(made("__EXT_A", 1, requires=requires))
    catalog.load("__EXT_A", OpaqueList())


def test_a_version_that_this_is_not_is_refused(catalog: PluginCatalog) -> None:
    """CompatibilityCheckFailed names the extension, what it requires and what there is; nothing of it runs."""
    define_plugin(catalog=catalog)(made("__EXT_A", 1, requires=">=999.0"))
    with pytest.raises(CompatibilityCheckFailed, match=f"__EXT_A requires ringfence >=999.0, this is {__version__}"):
        catalog.load("__EXT_A", OpaqueList())


def test_an_entry_can_be_removed(catalog: PluginCatalog) -> None:
    """Its name and UUID are free again."""
    define_plugin(catalog=catalog)(made("__EXT_A", 1))
    assert catalog.remove("__EXT_A") is not None
    assert catalog.remove("__EXT_A") is None
    define_plugin(catalog=catalog)(made("__EXT_A", 1, "Other"))


CODE = """
import uuid
from ringfence.ext import PluginEXT, StaticPluginEXT
class Installed(StaticPluginEXT, PluginEXT):
    UUID = uuid.UUID(int=77)
    NAME = "__EXT_INSTALLED"
    DESCRIPTION = "installed"
    @classmethod
    def new(cls, ext): return cls()
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install packages: module name and code, and the entry points of a distribution of that name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(package: str, code: str, **points: str) -> None:
        (tmp_path / f"{package}.py").write_text(code)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (metadata / "entry_points.txt").write_text(f"[ringfence.extensions]\n{lines}")

    yield install
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_installed_class_needs_no_decorator(catalog: PluginCatalog, install: Any) -> None:
    """The entry point is enough; what else is installed is not imported, though its names are known."""
    install("rf_wanted", CODE, __EXT_INSTALLED="rf_wanted:Installed")
    install("rf_other", "raise SystemExit('imported')", __EXT_OTHER="rf_other:Other")
    assert {"__EXT_INSTALLED", "__EXT_OTHER"} <= set(catalog.names())
    assert "rf_wanted" not in sys.modules
    assert catalog.get("__EXT_INSTALLED").origin == "rf_wanted.Installed"
    assert "rf_other" not in sys.modules


def test_two_packages_with_one_name_are_refused(catalog: PluginCatalog, install: Any) -> None:
    """Neither is imported."""
    install("rf_one", CODE, __EXT_INSTALLED="rf_one:Installed")
    install("rf_two", CODE, __EXT_INSTALLED="rf_two:Installed")
    with pytest.raises(DuplicatedKey, match="rf_one:Installed and rf_two:Installed"):
        catalog.get("__EXT_INSTALLED")
    assert not {"rf_one", "rf_two"} & set(sys.modules)


def test_an_entry_point_to_something_else_is_refused(catalog: PluginCatalog, install: Any) -> None:
    """The error names the entry point."""
    install("rf_wrong", CODE, __EXT_WRONG="rf_wrong:Installed")
    with pytest.raises(TypeError, match="__EXT_WRONG = rf_wrong:Installed leads to no extension"):
        catalog.get("__EXT_WRONG")
