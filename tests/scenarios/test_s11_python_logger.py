"""S11: the logger, configured as the guide prints it."""

import subprocess
import sys
import threading
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ringfence.api import (
    ApplicationInfo,
    InstanceCreateInfo,
    InstanceEXT,
    UnconsumedConfigWarning,
    Version,
    create_instance,
)
from ringfence.api.ext.hylog import (
    LogCreateInfoEXT,
    LogLevelEXT,
    LogMessageEXT,
    hydebug,
    hyerror,
    hyinfo,
    hytrace,
    hywarn,
)
from ringfence.ext import OpaqueList, PluginEXT, StaticPluginEXT, define_plugin
from ringfence.plugins.log_message import discard

PRINTED = """
from ringfence.api import ApplicationInfo, InstanceCreateInfo, InstanceEXT, Version, create_instance
from ringfence.api.ext.hylog import LogCreateInfoEXT, LogLevelEXT

create_info = InstanceCreateInfo(
    application_info=ApplicationInfo(
        application_name="Notebook",
        application_version=Version.parse("0.1.0"),
        engine_name="Hyperion",
        engine_version=Version.parse("0.1.1"),
    ),
    enabled_extensions=[InstanceEXT.LOGGER.value],
    ext=[LogCreateInfoEXT(level=LogLevelEXT.DEBUG, callback=lambda msg: print(msg.message))],
)
instance = create_instance(create_info)
"""


@define_plugin
class LastWords(StaticPluginEXT, PluginEXT):
    """Logs while it is torn down."""

    UUID = uuid.UUID("5a8b6ed7-43fb-4b61-a4f0-a7fd4d6c54ef")
    NAME = "__EXT_S11_LAST_WORDS"
    DESCRIPTION = "Logs while it is torn down"

    @classmethod
    def new(cls, ext: OpaqueList) -> "LastWords":
        """Make one."""
        return cls()

    def attach_to(self, instance: Any) -> None:
        """Keep the reference."""
        self.instance = instance

    def teardown(self) -> None:
        """Say so."""
        hyinfo(self.instance, "last words of {}", self.name)


def info(*ext: object, names: tuple[str, ...] = (InstanceEXT.LOGGER,), **more: Any) -> InstanceCreateInfo:
    """Return a create info with these extensions and configuration objects."""
    return InstanceCreateInfo(
        application_info=ApplicationInfo("Notebook", Version.parse("0.1.0"), "Hyperion", Version.parse("0.1.1")),
        enabled_extensions=list(names),
        ext=list(ext),
        **more,
    )


def test_the_printed_program_prints_the_start_up_lines() -> None:
    """Run as it stands: the lines of the start reach the callback, and those of the end, which nobody wrote, too."""
    ended = subprocess.run([sys.executable, "-c", PRINTED], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    first, second = ended.stdout.splitlines()[:2]
    assert first.startswith("extension __EXT_hyperion_logger initialized in ")
    assert second == "instance of Notebook 0.1.0 on Hyperion 0.1.1 created with __EXT_hyperion_logger"


def test_levels_are_filtered_and_messages_say_where_they_come_from() -> None:
    """TRACE is below DEBUG; the others arrive with level, time, thread, and the caller's module, file and line."""
    heard: list[LogMessageEXT] = []
    with create_instance(info(LogCreateInfoEXT(level=LogLevelEXT.DEBUG, callback=heard.append))) as instance:
        assert heard
        assert {message.level for message in heard} == {LogLevelEXT.INFO}
        heard.clear()
        before = datetime.now()
        for function in (hytrace, hydebug, hyinfo, hywarn, hyerror):
            function(instance, "{} of {:.1f}", function.__name__, 1.25)
        hyinfo(instance, "{} is no format without arguments")
        assert [message.message for message in heard] == [
            "hydebug of 1.2",
            "hyinfo of 1.2",
            "hywarn of 1.2",
            "hyerror of 1.2",
            "{} is no format without arguments",
        ]
    message = heard[0]
    assert message.level is LogLevelEXT.DEBUG
    assert message.timepoint.tzinfo is None
    assert before <= message.timepoint <= datetime.now()
    assert (message.module, message.file) == (__name__, __file__)
    assert "function(instance" in Path(__file__).read_text().splitlines()[(message.line or 0) - 1]
    assert message.thread_name == threading.current_thread().name


def test_the_enum_itself_is_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """InstanceEXT.LOGGER works as its value does."""
    with create_instance(info(LogCreateInfoEXT(), names=(InstanceEXT.LOGGER,))) as instance:
        assert instance.extensions == ("__EXT_hyperion_logger",)
    assert capsys.readouterr() == ("", "")


def test_configuration_is_taken_once_and_what_is_left_is_reported() -> None:
    """Of two configs the first is taken; the second is warned about, and what is foreign stays, in order."""
    first, second, foreign = LogCreateInfoEXT(), LogCreateInfoEXT(level=LogLevelEXT.ERROR), object()
    ext_list = OpaqueList([foreign, first, second])
    create_info = InstanceCreateInfo(info().application_info, [InstanceEXT.LOGGER], ext=ext_list)
    with pytest.warns(UnconsumedConfigWarning, match=r"builtins\.object, .*LogCreateInfoEXT") as caught:
        instance = create_instance(create_info)
    assert caught[0].filename == __file__
    assert ext_list.remaining() == instance.unconsumed == (foreign, second)
    instance.close()


def test_a_list_is_left_as_it_is() -> None:
    """The same create info makes several instances, all configured."""
    heard: list[LogMessageEXT] = []
    create_info = info(LogCreateInfoEXT(callback=heard.append))
    with create_instance(create_info) as one, create_instance(create_info) as two:
        assert one.unconsumed == two.unconsumed == ()
        heard.clear()
        hyinfo(one, "one")
        hyinfo(two, "two")
        assert [message.message for message in heard] == ["one", "two"]


def test_strict_refuses_what_nobody_takes() -> None:
    """The instance is not made, and what was attached is torn down."""
    heard: list[LogMessageEXT] = []
    config = LogCreateInfoEXT(callback=heard.append)
    names = (InstanceEXT.LOGGER, LastWords.NAME)
    with pytest.raises(UnconsumedConfigWarning, match="complex"):
        create_instance(info(config, 1j, names=names, strict=True))
    assert "last words of __EXT_S11_LAST_WORDS" in [message.message for message in heard]


def test_without_configuration_all_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Level TRACE, in the documented form."""
    with create_instance(info()) as instance:
        capsys.readouterr()
        hytrace(instance, "a small thing")
        level, day, time, dash, *words = capsys.readouterr().out.split()
        assert (level, dash, words) == ("[TRACE]", "-", ["a", "small", "thing"])
        datetime.fromisoformat(f"{day} {time}")


def test_without_the_extension_logging_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """No error, no output; nor with an instance that is gone."""
    with create_instance(info(names=())) as instance:
        hyinfo(instance, "unheard")
    hyinfo(instance, "unheard")
    hyinfo(None, "unheard")
    assert capsys.readouterr() == ("", "")


def test_the_logger_goes_last_and_leaves_nothing_behind() -> None:
    """What others say while they are torn down is heard; afterwards the slot is the default again."""
    heard: list[LogMessageEXT] = []
    names = (InstanceEXT.LOGGER, LastWords.NAME)
    instance = create_instance(info(LogCreateInfoEXT(callback=heard.append), names=names))
    assert instance.ext.log_callback is not discard
    instance.close()
    texts = [message.message for message in heard]
    assert texts[-2:] == ["last words of __EXT_S11_LAST_WORDS", "extension __EXT_S11_LAST_WORDS torn down"]
    assert instance.ext.log_callback is discard
    hyinfo(instance, "unheard")
    assert len(heard) == len(texts)


def test_a_callback_that_raises_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """It is reported to stderr, once."""

    def callback(message: LogMessageEXT) -> None:
        raise ZeroDivisionError("in the callback")

    with create_instance(info(LogCreateInfoEXT(callback=callback))) as instance:
        hyinfo(instance, "one")
        hyinfo(instance, "two")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("ZeroDivisionError: in the callback") == 1


def test_what_is_wrong_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, node ids, callbacks, create infos and configuration from text; and nothing is printed."""
    with pytest.raises(ValueError):
        Version.parse("1.2")
    with pytest.raises(ValueError):
        info(node_id=2**32)
    with pytest.raises(TypeError, match="Expected a callable object"):
        LogCreateInfoEXT(callback=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="create_instance takes an InstanceCreateInfo, not str"):
        create_instance("Notebook")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^No loader registered for type 'os\.path'\. Possible types are: \['"):
        OpaqueList.from_toml('[[ext]]\ntype = "os.path"\n')
    assert capsys.readouterr() == ("", "")


def test_configuration_may_come_from_text() -> None:
    """The logger's, by its public name; a level by its name."""
    text = '[[ext]]\ntype = "ringfence.api.ext.hylog.LogCreateInfoEXT"\nlevel = "debug"\n'
    (config,) = OpaqueList.from_toml(text)
    assert config == LogCreateInfoEXT(level=LogLevelEXT.DEBUG)
