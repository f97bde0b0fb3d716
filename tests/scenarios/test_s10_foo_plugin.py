# ruff: noqa: D102  # the hooks: PluginEXT says what they are for
"""S10: an extension as the guide prints it, and the six steps of an instance's life in strict order."""

import gc
import subprocess
import sys
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringfence.api import ApplicationInfo, InstanceCreateInfo, Version, create_instance
from ringfence.errors import DuplicatedKey, InstanceCreateError, PluginNotFound
from ringfence.ext import (
    CATALOG,
    DynPluginEXT,
    OpaqueList,
    PluginEXT,
    StaticPluginEXT,
    define_plugin,
    load_plugin_by_name,
)


@define_plugin
class FooPlugin(StaticPluginEXT, PluginEXT):
    UUID = uuid.UUID("cdb726aa-8656-486f-a5b5-ff09f37a83fb")
    NAME = "__EXT_FOO"
    DESCRIPTION = "Provides foo-related features"

    # fmt: off
    def __init__(self):                 self.instance = None
    @classmethod
    def new(cls, _ext: OpaqueList):     return cls()
    def attach_to(self, instance):      self.instance = instance      # a weakref.ref
    def initialize(self):               assert self.instance() is not None
    def teardown(self):                 pass
    # fmt: on


trace: list[str] = []
# (letter, step) -> what that step does besides being traced.
deeds: dict[tuple[str, str], Callable[[Any], None]] = {}


class Tracing(StaticPluginEXT, PluginEXT):
    """Writes down each step."""

    letter: str

    def __init__(self) -> None:
        self.instance: Any = None

    @classmethod
    def new(cls, ext: OpaqueList) -> "Tracing":
        cls.step(None, cls.letter, "new")
        return cls()

    @staticmethod
    def step(self: Any, letter: str, name: str) -> None:
        trace.append(f"{name} {letter}")
        deeds.get((letter, name), lambda _: None)(self)

    def attach_to(self, instance: Any) -> None:
        self.instance = instance
        self.step(self, self.letter, "attach")

    def initialize(self) -> None:
        self.step(self, self.letter, "init")

    def teardown(self) -> None:
        self.step(self, self.letter, "teardown")


def variant(letter: str, number: int) -> type[Tracing]:
    """Return a tracing extension with a UUID of this number."""
    return type(
        f"Tracing{letter}",
        (Tracing,),
        {
            "UUID": uuid.UUID(int=number),
            "NAME": f"__EXT_S10_{letter}",
            "DESCRIPTION": "Traces",
            "letter": letter,
            "__qualname__": f"Tracing{letter}",
        },
    )


# In the order of their UUIDs: B, C, A.
A, B, C = (define_plugin(variant(letter, number)) for letter, number in (("A", 3), ("B", 1), ("C", 2)))
ALL = [A.NAME, B.NAME, C.NAME]
CREATION = ["new A", "new B", "new C", "attach A", "attach B", "attach C", "init A", "init B", "init C"]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Each test has a trace of its own."""
    trace.clear()
    deeds.clear()
    yield
    deeds.clear()


def info(*names: str) -> InstanceCreateInfo:
    """Return a create info with these extensions."""
    version = Version.parse("0.1.0")
    return InstanceCreateInfo(ApplicationInfo("Notebook", version, "Hyperion", version), list(names))


def fail(error: BaseException) -> Callable[[Any], None]:
    """Return a deed that raises."""

    def deed(_: Any) -> None:
        raise error

    return deed


def test_the_printed_extension_works() -> None:
    """FooPlugin, as printed, is made, attached, initialised, found by its class, and torn down."""
    instance = create_instance(info("__EXT_FOO"))
    found = instance.get_plugin_ext(FooPlugin)
    assert type(found) is FooPlugin
    assert isinstance(found, DynPluginEXT)
    assert (found.uuid, found.name, found.description) == (FooPlugin.UUID, "__EXT_FOO", "Provides foo-related features")
    assert isinstance(found.instance, weakref.ref)
    assert found.instance() is instance
    instance.close()
    assert instance.get_plugin_ext(FooPlugin) is None


def test_by_name_a_new_one_is_made() -> None:
    """load_plugin_by_name makes an object each time; an unknown name is PluginNotFound, with names that are near."""
    first, second = load_plugin_by_name("__EXT_FOO", OpaqueList()), load_plugin_by_name("__EXT_FOO", OpaqueList())
    assert type(first) is type(second) is FooPlugin
    assert first is not second
    with pytest.raises(PluginNotFound, match=r"^Plugin with name '__EXT_BAR' not found") as caught:
        load_plugin_by_name("__EXT_BAR", OpaqueList())
    assert isinstance(caught.value, LookupError)
    with pytest.raises(PluginNotFound, match="did you mean '__EXT_FOO'"):
        load_plugin_by_name("__EXT_FO0", OpaqueList())


def test_the_six_steps_have_barriers_and_teardown_is_the_reverse_of_insertion() -> None:
    """All new, all attach, all init; then C, B, A, though by UUID it would be A, C, B."""
    instance = create_instance(info(*ALL))
    assert trace == CREATION
    instance.close()
    assert trace == [*CREATION, "teardown C", "teardown B", "teardown A"]
    assert instance.extensions == ()


def test_leaving_the_block_closes() -> None:
    """`with` is the same, and nothing is torn down twice by close, nor by the garbage collector."""
    with create_instance(info(*ALL)) as instance:
        assert instance.extensions == tuple(ALL)
    instance.close()
    del instance
    gc.collect()
    assert trace.count("teardown A") == trace.count("teardown B") == trace.count("teardown C") == 1


def test_an_installed_package_is_found_by_name_and_no_other_is_imported(tmp_path: Path) -> None:
    """Entry points are metadata until one is asked for; then that module, alone, is imported."""
    for number, package in enumerate(("wanted", "other")):
        (tmp_path / f"{package}.py").write_text(
            "import uuid\n"
            "from ringfence.ext import define_plugin, PluginEXT, StaticPluginEXT\n"
            "@define_plugin\n"
            "class Installed(StaticPluginEXT, PluginEXT):\n"
            f"    UUID = uuid.UUID(int={number + 10})\n"
            f"    NAME = '__EXT_{package.upper()}'\n"
            "    DESCRIPTION = 'installed'\n"
            "    @classmethod\n"
            "    def new(cls, ext): return cls()\n"
        )
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(
            f"[ringfence.extensions]\n__EXT_{package.upper()} = {package}:Installed\n"
        )
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from ringfence.api import ApplicationInfo, InstanceCreateInfo, Version, create_instance\n"
        "v = Version.parse('0.1.0')\n"
        "info = InstanceCreateInfo(ApplicationInfo('a', v, 'e', v), ['__EXT_WANTED'])\n"
        "with create_instance(info) as instance: print(*instance.extensions)\n"
        "print('wanted' in sys.modules, 'other' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr) == ("__EXT_WANTED\nTrue False\n", "")


def test_a_failing_initialize_tears_down_all_that_were_attached() -> None:
    """B's initialize raises: C, B and A are torn down, and B's error is what the caller sees."""
    error = RuntimeError("B cannot")
    deeds["B", "init"] = fail(error)
    with pytest.raises(InstanceCreateError, match="__EXT_S10_B failed in initialize: RuntimeError: B cannot") as caught:
        create_instance(info(*ALL))
    assert caught.value.__cause__ is error
    assert (caught.value.extension, caught.value.step) == (B.NAME, "initialize")
    assert trace[-4:] == ["init B", "teardown C", "teardown B", "teardown A"]
    assert "init C" not in trace


def test_a_failing_new_tears_down_nothing() -> None:
    """B's new raises: nothing was attached, so there is nothing to tear down."""
    deeds["B", "new"] = fail(RuntimeError("B cannot"))
    with pytest.raises(InstanceCreateError, match="B cannot"):
        create_instance(info(*ALL))
    gc.collect()
    assert trace == ["new A", "new B"]


def test_a_failing_attach_tears_down_what_was_attached_so_far() -> None:
    """B's attach_to raises: B, whose attach_to was called, and A are torn down; C was only made."""
    deeds["B", "attach"] = fail(RuntimeError("B cannot"))
    with pytest.raises(InstanceCreateError, match="attach_to"):
        create_instance(info(*ALL))
    assert trace[-3:] == ["attach B", "teardown B", "teardown A"]


def test_a_teardown_that_fails_after_a_failed_creation_is_a_note() -> None:
    """The first error stays the one that is raised."""
    deeds["B", "init"] = fail(RuntimeError("B cannot"))
    deeds["A", "teardown"] = fail(ValueError("A neither"))
    with pytest.raises(InstanceCreateError, match="B cannot") as caught:
        create_instance(info(*ALL))
    assert any("A neither" in note and A.NAME in note for note in caught.value.__notes__)


def test_two_failing_teardowns_are_both_reported_and_all_run() -> None:
    """An ExceptionGroup holds both errors; the third extension is torn down all the same."""
    deeds["C", "teardown"] = fail(ValueError("C"))
    deeds["A", "teardown"] = fail(KeyError("A"))
    instance = create_instance(info(*ALL))
    with pytest.raises(ExceptionGroup) as caught:
        instance.close()
    assert [type(error) for error in caught.value.exceptions] == [ValueError, KeyError]
    assert C.NAME in caught.value.exceptions[0].__notes__[0]
    assert trace[-3:] == ["teardown C", "teardown B", "teardown A"]


def test_dropping_the_last_reference_closes() -> None:
    """With a ResourceWarning; each teardown runs once, and the extensions' reference is dead afterwards."""
    instance = create_instance(info(*ALL))
    kept = instance.get_plugin_ext(A)
    assert kept is not None
    ref = weakref.ref(instance)
    with pytest.warns(ResourceWarning, match="unclosed <InstanceContext of Notebook"):
        del instance
        gc.collect()
    assert trace[-3:] == ["teardown C", "teardown B", "teardown A"]
    assert ref() is None
    assert kept.instance() is None


def test_an_extension_that_holds_its_instance_does_not_keep_it() -> None:
    """A cycle of instance and extension is collected, and torn down, like any other."""
    deeds["A", "attach"] = lambda self: setattr(self, "held", self.instance())
    instance = create_instance(info(*ALL))
    with pytest.warns(ResourceWarning, match="unclosed"):
        del instance
        gc.collect()
    assert trace[-3:] == ["teardown C", "teardown B", "teardown A"]


def test_the_reference_is_dead_after_close_though_the_instance_is_held() -> None:
    """An extension sees the instance in its teardown, and None after close."""
    seen: list[object] = []
    deeds["A", "teardown"] = lambda self: seen.append(self.instance())
    instance = create_instance(info(*ALL))
    kept = instance.get_plugin_ext(A)
    instance.close()
    assert seen == [instance]
    assert kept is not None
    assert kept.instance() is None


@pytest.mark.parametrize("same", ["UUID", "NAME"])
def test_a_second_class_with_the_same_key_is_refused(same: str) -> None:
    """DuplicatedKey names both classes, and the first stays."""

    class Second(FooPlugin):
        UUID = FooPlugin.UUID if same == "UUID" else uuid.uuid4()
        NAME = FooPlugin.NAME if same == "NAME" else "__EXT_S10_SECOND"

    with pytest.raises(DuplicatedKey, match=r"test_s10_foo_plugin\.FooPlugin and .*test_s10_foo_plugin\..*Second"):
        define_plugin(Second)
    assert CATALOG.get("__EXT_FOO").loader == FooPlugin.new


def test_the_end_of_the_program_closes_what_nobody_closed() -> None:
    """Before threads are waited for, with a ResourceWarning, and only once; one that fails does not stop the others."""
    program = (
        "import uuid, threading\n"
        "from ringfence.api import ApplicationInfo, InstanceCreateInfo, Version, create_instance\n"
        "from ringfence.ext import define_plugin, PluginEXT, StaticPluginEXT\n"
        "stop = threading.Event()\n"
        "@define_plugin\n"
        "class Foo(StaticPluginEXT, PluginEXT):\n"
        "    UUID, NAME, DESCRIPTION = uuid.UUID(int=5), '__EXT_FOO', 'foo'\n"
        "    @classmethod\n"
        "    def new(cls, ext): return cls()\n"
        "    def initialize(self): threading.Thread(target=stop.wait).start()\n"
        "    def teardown(self): print('teardown'); stop.set()\n"
        "v = Version.parse('0.1.0')\n"
        "instance = create_instance(InstanceCreateInfo(ApplicationInfo('a', v, 'e', v), ['__EXT_FOO']))\n"
    )
    command = [sys.executable, "-W", "default::ResourceWarning", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "teardown\n")
    assert ended.stderr.count("ResourceWarning: unclosed <InstanceContext of a 0.1.0: __EXT_FOO>") == 1
    failing = program.replace("print('teardown');", "print('teardown'); stop.set(); 1 / 0;") + (
        "another = create_instance(InstanceCreateInfo(ApplicationInfo('a', v, 'e', v), ['__EXT_FOO']))\n"
    )
    ended = subprocess.run([*command[:-1], failing], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "teardown\nteardown\n"
    assert ended.stderr.count("| ZeroDivisionError: division by zero") == 2
