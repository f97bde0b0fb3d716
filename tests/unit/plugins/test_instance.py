"""Instances: what they are created of, what they warn about, and how they end."""

import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import UUID

import pytest

from ringfence.api import (
    ApplicationInfo,
    InstanceContext,
    InstanceCreateInfo,
    InstanceEXT,
    KnownUuids,
    SlowInitializeWarning,
    UuidChanged,
    Version,
    create_instance,
)
from ringfence.errors import (
    CompatibilityCheckFailed,
    DuplicatedKey,
    InstanceCreateError,
    PluginNotFound,
    PluginStateError,
)
from ringfence.plugins.catalog import PluginCatalog, define_plugin
from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.events import EventBus
from ringfence.plugins.extension import PluginEXT, StaticPluginEXT
from ringfence.plugins.identity import UuidSource
from ringfence.plugins.lockfile import LockFile
from ringfence.plugins.log_message import LogMessageEXT
from ringfence.plugins.opaque import OpaqueList
from ringfence.plugins.states import LifecycleState

APP = ApplicationInfo("app", Version.parse("1.2.3"), "engine", Version.parse("0.0.1"))


class Extension(StaticPluginEXT, PluginEXT):
    """Does in each step what the test wants."""

    deeds: dict[str, Callable[[Any], None]]

    def __init__(self) -> None:
        self.instance: Any = None

    @classmethod
    def new(cls, ext: OpaqueList) -> "Extension":
        """Make one."""
        made = cls()
        made.do("new")
        return made

    def do(self, step: str) -> None:
        """Do it."""
        if step in self.deeds:
            self.deeds[step](self)

    def attach_to(self, instance: Any) -> None:
        """Keep the reference."""
        self.instance = instance
        self.do("attach_to")

    def initialize(self) -> None:
        """Do it."""
        self.do("initialize")

    def teardown(self) -> None:
        """Do it."""
        self.do("teardown")


@pytest.fixture
def catalog() -> PluginCatalog:
    """An empty one."""
    return PluginCatalog()


def define(catalog: PluginCatalog, name: str, number: int = 0, **deeds: Callable[[Any], None]) -> type[Extension]:
    """Define an extension of this name."""
    cls = type(
        f"Extension{name}",
        (Extension,),
        {
            "UUID": UUID(int=number or len(catalog) + 1),
            "NAME": name,
            "DESCRIPTION": name,
            "deeds": deeds,
            "REQUIRES_HOST": deeds.pop("requires", None),
            "__qualname__": f"Extension{name}",
        },
    )
    return define_plugin(catalog=catalog)(cls)


def create(
    catalog: PluginCatalog, *names: str, uuids: Any = None, events: Any = None, **settings: Any
) -> InstanceContext:
    """Create an instance of these extensions."""
    info = InstanceCreateInfo(APP, list(names), **settings)
    return create_instance(info, catalog=catalog, uuids=uuids, events=events)


def raising(error: BaseException) -> Callable[[Any], None]:
    """Return a deed that raises."""

    def deed(_: Any) -> None:
        raise error

    return deed


# What it is created of


@pytest.mark.parametrize(
    "settings",
    [
        {"application_info": "app"},
        {"enabled_extensions": "__EXT_A"},
        {"enabled_extensions": [3]},
        {"node_id": "1"},
        {"node_id": True},
        {"ext": 3},
        {"ext": "text"},
        {"strict": 1},
        {"init_budget": "1 s"},
    ],
)
def test_wrong_types_are_type_errors(settings: dict[str, Any]) -> None:
    """Of each field."""
    with pytest.raises(TypeError):
        InstanceCreateInfo(**{"application_info": APP, **settings})


@pytest.mark.parametrize("settings", [{"node_id": -1}, {"node_id": 2**32}, {"init_budget": -1.0}, {"no_such": 1}])
def test_wrong_values_are_value_errors(settings: dict[str, Any]) -> None:
    """A number out of range, a field that there is not."""
    with pytest.raises(ValueError):
        InstanceCreateInfo(APP, **settings)


def test_an_application_has_versions_and_not_texts() -> None:
    """Version.parse is the caller's to call."""
    with pytest.raises(TypeError, match="expected a Version, not str"):
        ApplicationInfo("app", "1.2.3", "engine", "0.0.1")  # type: ignore[arg-type]


def test_an_instance_knows_its_application(catalog: PluginCatalog) -> None:
    """And shows it; without extensions it is of little use, but one."""
    with create(catalog, node_id=7) as instance:
        assert (instance.application_info, instance.node_id) == (APP, 7)
        assert repr(instance) == "<InstanceContext of app 1.2.3: no extensions>"
    assert repr(instance) == "<InstanceContext of app 1.2.3: closed>"
    assert instance.closed
    with pytest.raises(PluginStateError), instance:
        pass


# What cannot be enabled


def test_a_wrong_name_costs_nothing(catalog: PluginCatalog) -> None:
    """Every name is looked up before one extension is made."""
    made: list[Any] = []
    define(catalog, "A", new=made.append)
    with pytest.raises(PluginNotFound, match="'B'"):
        create(catalog, "A", "B")
    with pytest.raises(DuplicatedKey, match="A and A are both enabled"):
        create(catalog, "A", "A")
    assert made == []


def test_another_version_required_is_said_as_it_is(catalog: PluginCatalog) -> None:
    """CompatibilityCheckFailed goes through."""
    define(catalog, "A", requires=">99.0.0")  # type: ignore[arg-type]  # an attribute, not a deed
    with pytest.raises(CompatibilityCheckFailed):
        create(catalog, "A")


def test_ctrl_c_while_creating_tears_down_and_stays_ctrl_c(catalog: PluginCatalog) -> None:
    """It is nobody's error, so it is not wrapped."""
    torn: list[str] = []
    define(catalog, "A", teardown=lambda self: torn.append("A"))
    define(catalog, "B", initialize=raising(KeyboardInterrupt()), teardown=lambda self: torn.append("B"))
    with pytest.raises(KeyboardInterrupt):
        create(catalog, "A", "B")
    assert torn == ["B", "A"]


# What it holds


def test_states_and_events_follow_each_extension(catalog: PluginCatalog) -> None:
    """Created, initialised, started, unloaded; a failure is an Error."""
    seen: list[str] = []
    bus = EventBus()
    bus.subscribe(lambda event: seen.append(f"{event.event_name()} {event.name}"))
    states: list[Any] = []
    define(catalog, "A", initialize=lambda self: states.append(dict(self.instance().states)))
    define(catalog, "B", teardown=raising(ValueError("b")))
    instance = create(catalog, "A", "B", events=bus)
    assert states == [{"A": LifecycleState.CREATED, "B": LifecycleState.CREATED}]
    assert set(instance.states.values()) == {LifecycleState.RUNNING}
    with pytest.raises(ExceptionGroup):
        instance.close()
    assert seen == [
        *("created A", "created B", "initialized A", "initialized B", "started A", "started B"),
        *("error B", "unloaded B", "unloaded A"),
    ]


def test_what_an_extension_provides_is_found_by_its_class(catalog: PluginCatalog) -> None:
    """The object itself; and None for a class that nobody provides."""
    thing = LogMessageEXT.__new__(LogMessageEXT)
    define(catalog, "A", initialize=lambda self: setattr(self, "provides", thing))
    with create(catalog, "A") as instance:
        assert instance.get_plugin_ext(LogMessageEXT) is thing
        assert instance.get_plugin_ext(EventBus) is None
        assert instance.get_plugin_ext(Extension) is None


def test_uuids_have_version_six_the_node_id_and_increase(catalog: PluginCatalog) -> None:
    """Also when the clock stands still or goes back."""
    with create(catalog, node_id=2**32 - 1) as instance:
        made = [instance.generate_uuid() for _ in range(100)]
    assert made == sorted(set(made))
    assert {(one.version, one.variant, one.node & 0xFFFF_FFFF) for one in made} == {
        (6, "specified in RFC 4122", 2**32 - 1)
    }
    times = iter([5_000, 5_000, 3_000, 9_000])
    source = UuidSource(1, clock=lambda: next(times))
    four = [source() for _ in range(4)]
    assert four == sorted(set(four))


def test_a_uuid_tells_when_it_was_made() -> None:
    """As RFC 9562 lays the time out: its example, but for clock sequence and node."""
    # 2022-02-22 19:22:22 UTC.
    made = UuidSource(0, clock=lambda: 1645557742_000000000)()
    assert str(made).startswith("1ec9414c-232a-6b00-")


# What it warns about


def test_a_slow_initialize_is_warned_about_and_measured(catalog: PluginCatalog) -> None:
    """By the clock that it is given; the warning points at the caller."""
    define(catalog, "A")
    define(catalog, "B")
    times = iter([0.0, 0.5, 1.0, 4.0])
    info = InstanceCreateInfo(APP, ["A", "B"])
    with pytest.warns(SlowInitializeWarning, match=r"B took 3\.00 s to initialize, the budget is 1 s") as caught:
        instance = create_instance(info, catalog=catalog, clock=lambda: next(times))
    assert instance.init_times == {"A": 0.5, "B": 3.0}
    assert caught[0].filename == __file__
    instance.close()


def test_a_warning_that_is_an_error_tears_down(catalog: PluginCatalog) -> None:
    """With warnings as errors, creation fails as it would for any other error."""
    torn: list[str] = []
    define(catalog, "A", teardown=lambda self: torn.append("A"))
    with pytest.raises(UserWarning, match="no extension took"), warnings.catch_warnings():
        warnings.simplefilter("error")
        create(catalog, "A", ext=[1j])
    assert torn == ["A"]


@pytest.mark.parametrize("lasting", [False, True])
def test_a_changed_uuid_is_warned_about_and_strictly_refused(
    catalog: PluginCatalog, tmp_path: Path, lasting: bool
) -> None:
    """The UUID that was seen first stays the known one, in memory or in a lock file."""
    uuids: Any = LockFile(tmp_path / "ringfence.lock") if lasting else KnownUuids()
    define(catalog, "A", 1)
    for _ in range(2):
        create(catalog, "A", uuids=uuids).close()
    define(catalog, "A", 2)
    for _ in range(2):
        with pytest.warns(UuidChanged, match=str(UUID(int=1))):
            create(catalog, "A", uuids=uuids).close()
    with pytest.raises(UuidChanged):
        create(catalog, "A", uuids=uuids, strict=True)


# How it ends


def test_the_block_s_own_error_stays_the_one_that_is_raised(catalog: PluginCatalog) -> None:
    """What teardowns raise then is in its notes."""
    define(catalog, "A", teardown=raising(ValueError("torn")))
    with pytest.raises(ZeroDivisionError) as caught, create(catalog, "A"):
        raise ZeroDivisionError
    assert "torn" in caught.value.__notes__[0]
    assert "teardown of the extension A" in caught.value.__notes__[0]


def test_ctrl_c_in_a_teardown_is_raised_after_the_others_ran(catalog: PluginCatalog) -> None:
    """Alone, with the others' errors in its notes."""
    define(catalog, "A", teardown=raising(ValueError("a")))
    define(catalog, "B", teardown=raising(KeyboardInterrupt()))
    instance = create(catalog, "A", "B")
    with pytest.raises(KeyboardInterrupt) as caught:
        instance.close()
    assert any("ValueError('a')" in note for note in caught.value.__notes__)
    assert instance.closed


def test_closing_from_a_teardown_does_nothing(catalog: PluginCatalog) -> None:
    """Each teardown runs once."""
    torn: list[str] = []

    def again(self: Any) -> None:
        torn.append("A")
        self.instance().close()

    define(catalog, "A", teardown=again)
    create(catalog, "A").close()
    assert torn == ["A"]


def test_a_failed_creation_needs_no_close(catalog: PluginCatalog) -> None:
    """No ResourceWarning, no second teardown."""
    torn: list[str] = []
    define(catalog, "A", initialize=raising(ValueError("a")), teardown=lambda self: torn.append("A"))
    with pytest.raises(InstanceCreateError):
        create(catalog, "A")
    gc.collect()
    assert torn == ["A"]


def test_a_copy_in_a_forked_process_tears_nothing_down(catalog: PluginCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to who made it: another process must not stop its plugins."""
    torn: list[str] = []
    define(catalog, "A", teardown=lambda self: torn.append("A"))
    instance = create(catalog, "A")
    monkeypatch.setattr("ringfence.plugins.instance.os.getpid", lambda: -1)
    instance.close()
    del instance
    gc.collect()
    assert torn == []


# The plugin runtime as an extension


class Runtime:
    """Stands for the plugin runtime: what its extension uses of it."""

    made: ClassVar["list[Runtime]"] = []
    trace: ClassVar[list[str]] = []

    def __init__(self, config: RuntimeConfig, *, on_log: Callable[[Any], None], events: EventBus) -> None:
        self.config, self.on_log, self.events = config, on_log, events
        self.metrics = SimpleNamespace(to_prometheus=lambda: "ringfence_plugin_loaded_total 2\n")
        self.made.append(self)

    def running(self) -> list[str]:
        """Two plugins."""
        return ["one", "two"]

    def shutdown(self) -> None:
        """Stop, and log about it."""
        self.trace.append("plugins")
        self.on_log(
            SimpleNamespace(
                plugin="one", level=2, message="bye", logger=None, module="m", file=None, line=3, thread="t", at=0.0
            )
        )


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Runtime]]:
    """Put it in the place of the real one."""
    monkeypatch.setitem(sys.modules, "ringfence.plugins.runtime", SimpleNamespace(PluginRuntime=Runtime))  # type: ignore[arg-type]
    Runtime.made, Runtime.trace = [], []
    yield Runtime
    Runtime.made = []


def joined(catalog: PluginCatalog, heard: list[LogMessageEXT], *ext: object) -> InstanceContext:
    """Create an instance with the logger, the runtime, and an extension that notes its teardown."""
    from ringfence.api.ext.hylog import LogCreateInfoEXT, LogPluginEXT
    from ringfence.plugins.runtime_extension import RuntimeEXT

    define_plugin(catalog=catalog)(LogPluginEXT)
    define_plugin(catalog=catalog)(RuntimeEXT)
    define(catalog, "__EXT_FOO", 99, teardown=lambda self: Runtime.trace.append("FOO"))
    names = (InstanceEXT.LOGGER, InstanceEXT.PLUGIN_RUNTIME, "__EXT_FOO")
    return create(catalog, *names, ext=[LogCreateInfoEXT(callback=heard.append), *ext])


def test_the_runtime_is_configured_found_and_stopped_before_all_else(
    catalog: PluginCatalog, runtime: type[Runtime]
) -> None:
    """Plugins go first, then extensions, the logger last: it hears all of it, and which plugins were still live."""
    heard: list[LogMessageEXT] = []
    config = RuntimeConfig().with_call_timeout(7)
    with joined(catalog, heard, config) as instance:
        found = instance.get_plugin_ext(runtime)
        assert found is runtime.made[0]
        assert found.config is config
        heard.clear()
    assert runtime.trace == ["plugins", "FOO"]
    texts = [message.message for message in heard]
    assert texts == [
        "closing with live plugins: one, two",
        "bye",
        "extension __EXT_FOO torn down",
        "extension __EXT_ringfence_plugin_runtime torn down",
    ]
    assert heard[1].module == "one:m"


def test_a_dropped_instance_names_its_live_plugins(catalog: PluginCatalog, runtime: type[Runtime]) -> None:
    """In the ResourceWarning."""
    instance = joined(catalog, [])
    with pytest.warns(ResourceWarning, match="with live plugins: one, two"):
        del instance
        gc.collect()
    assert runtime.trace == ["plugins", "FOO"]
