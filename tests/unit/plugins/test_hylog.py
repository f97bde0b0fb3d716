"""The logger: what it passes on, what it prints, and the ways from and to the logging module."""

import io
import logging
import sys
import threading
from dataclasses import FrozenInstanceError
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ringfence.api.ext.hylog import (
    InstanceHandler,
    LogCreateInfoEXT,
    LogLevelEXT,
    LogMessageEXT,
    PluginLogMessageEXT,
    hyinfo,
    log,
    print_message,
    to_logging,
)
from ringfence.plugins.hylog import LogPluginEXT
from ringfence.plugins.log_message import InstanceStateEXT, deliver, discard, level_of
from ringfence.plugins.opaque import OpaqueList


class Instance:
    """As much of an instance as logging needs."""

    def __init__(self) -> None:
        self.ext = InstanceStateEXT()
        self.heard: list[LogMessageEXT] = []
        self.ext.log_callback = self.heard.append


@pytest.fixture
def instance() -> Instance:
    """One that keeps what it hears."""
    return Instance()


def record(**changes: Any) -> Any:
    """Return a plugin's log record."""
    fields = {"plugin": "p", "level": 3, "message": "m", "logger": "l", "module": "mod", "file": "f.py", "line": 1}
    return SimpleNamespace(**{**fields, "thread": "t", "at": 0.0, **changes})


def message(text: str, plugin: str | None = None) -> LogMessageEXT:
    """Return a message, of a plugin if one is named."""
    fields = (LogLevelEXT.WARN, datetime(2024, 1, 2, 3, 4, 5), text, "module")
    return LogMessageEXT(*fields) if plugin is None else PluginLogMessageEXT(*fields, plugin=plugin)


def test_levels_have_their_numbers() -> None:
    """From TRACE, 0, to ERROR, 4."""
    assert [(level.name, level.value) for level in LogLevelEXT] == [
        *(("TRACE", 0), ("DEBUG", 1), ("INFO", 2), ("WARN", 3), ("ERROR", 4))
    ]


def test_the_configuration_has_defaults_and_does_not_change() -> None:
    """INFO, and a callback that does nothing."""
    config = LogCreateInfoEXT()
    assert (config.level, config.callback) == (LogLevelEXT.INFO, discard)
    with pytest.raises(FrozenInstanceError):
        config.level = LogLevelEXT.WARN  # type: ignore[misc]


@pytest.mark.parametrize("level", ["warn", "WARN", 3, LogLevelEXT.WARN])
def test_a_level_may_be_a_name_or_number(level: Any) -> None:
    """As configuration from text has it."""
    assert LogCreateInfoEXT(level=level).level is LogLevelEXT.WARN


@pytest.mark.parametrize(
    ("level", "error"), [("loud", ValueError), (5, ValueError), (True, TypeError), (2.0, TypeError)]
)
def test_what_is_no_level_is_refused(level: Any, error: type[Exception]) -> None:
    """And so is what only compares equal to one."""
    with pytest.raises(error):
        LogCreateInfoEXT(level=level)


@pytest.mark.parametrize("callback", [None, 3, "print"])
def test_what_cannot_be_called_is_refused(callback: Any) -> None:
    """With the documented text."""
    with pytest.raises(TypeError, match=r"^Expected a callable object$"):
        LogCreateInfoEXT(callback=callback)


def test_the_extension_restores_the_callback_that_was_there(instance: Instance) -> None:
    """Unless somebody else took its place meanwhile."""
    before = instance.ext.log_callback
    plugin = LogPluginEXT.new(OpaqueList([LogCreateInfoEXT()]))
    plugin.attach_to(lambda: instance)  # type: ignore[arg-type]
    plugin.initialize()
    assert instance.ext.log_callback == plugin.log_message
    plugin.teardown()
    assert instance.ext.log_callback == before
    plugin.initialize()
    instance.ext.log_callback = discard
    plugin.teardown()
    assert instance.ext.log_callback is discard


def test_an_instance_that_is_gone_is_no_trouble() -> None:
    """Neither for the extension nor for who logs."""
    plugin = LogPluginEXT.new(OpaqueList())
    plugin.attach_to(lambda: None)  # type: ignore[arg-type]
    plugin.initialize()
    plugin.teardown()
    hyinfo(None, "unheard")
    hyinfo(object(), "unheard")


class Awkward:
    """Can be neither formatted nor shown."""

    def __format__(self, spec: str) -> str:
        raise ValueError("no")

    def __repr__(self) -> str:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("text", "args", "shown"),
    [
        ("{} and {}", ("a", "b"), "a and b"),
        ("{} and {}", ("a",), "{} and {} ('a',)"),
        ("{", ("a",), "{ ('a',)"),
        ("{}", (Awkward(),), "{} (arguments that cannot be shown)"),
        ("100 %{}", (), "100 %{}"),
    ],
)
def test_a_message_that_cannot_be_formatted_is_passed_on(
    instance: Instance, text: str, args: tuple[object, ...], shown: str
) -> None:
    """Logging never raises."""
    hyinfo(instance, text, *args)
    assert instance.heard[0].message == shown


def test_depth_names_another_caller(instance: Instance) -> None:
    """For functions that log on behalf of who called them."""

    def inner() -> None:
        log(instance, 99, "text", depth=2)

    inner()
    assert instance.heard[0].level is LogLevelEXT.ERROR
    assert instance.heard[0].line == inner.__code__.co_firstlineno + 3


def test_what_a_callback_causes_is_dropped(instance: Instance) -> None:
    """On its own thread; another thread is heard meanwhile."""
    heard: list[str] = []

    def callback(message: LogMessageEXT) -> None:
        heard.append(message.message)
        hyinfo(instance, "from the callback")
        if message.message == "one":
            other = threading.Thread(target=hyinfo, args=(instance, "two"))
            other.start()
            other.join()

    instance.ext.log_callback = callback
    hyinfo(instance, "one")
    hyinfo(instance, "three")
    assert heard == ["one", "two", "three"]


@pytest.mark.parametrize("broken", [None, "closed"])
def test_without_a_stderr_a_raising_callback_is_harmless(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, broken: str | None
) -> None:
    """There is nobody to tell."""
    stderr = io.StringIO() if broken else None
    if stderr is not None:
        stderr.close()

    def callback(message: LogMessageEXT) -> None:
        raise ZeroDivisionError

    instance.ext.log_callback = callback
    monkeypatch.setattr(sys, "stderr", stderr)
    hyinfo(instance, "text")


def test_printing_has_the_documented_form(capsys: pytest.CaptureFixture[str]) -> None:
    """[{level}] {timepoint} - {message}"""
    print_message(message("the text"))
    assert capsys.readouterr().out == "[WARN] 2024-01-02 03:04:05 - the text\n"


def test_a_plugin_s_message_cannot_pass_for_another(capsys: pytest.CaptureFixture[str]) -> None:
    """It follows the plugin's name, on one line, with nothing that a terminal would act on."""
    print_message(message("a\n[ERROR] 2024 - forged\x1b[2J\u202e", plugin="p"))
    assert capsys.readouterr().out == ("[WARN] 2024-01-02 03:04:05 - p: a\\n[ERROR] 2024 - forged\\x1b[2J\\u202e\n")


def test_a_plugin_s_record_is_delivered_with_its_name(instance: Instance) -> None:
    """Level, place, thread and time are the record's; the module begins with the plugin's name."""
    deliver(instance, record(at=86400.0))
    heard = instance.heard[0]
    assert isinstance(heard, PluginLogMessageEXT)
    assert (heard.plugin, heard.logger, heard.message, heard.level) == ("p", "l", "m", LogLevelEXT.WARN)
    assert (heard.module, heard.file, heard.line, heard.thread_name) == ("p:mod", "f.py", 1, "t")
    assert heard.timepoint == datetime.fromtimestamp(86400.0)


@pytest.mark.parametrize(
    "changes", [{"at": 1e300}, {"at": float("nan")}, {"level": 77}, {"level": -5}, {"module": None}]
)
def test_odd_records_are_delivered_too(instance: Instance, changes: dict[str, Any]) -> None:
    """A plugin can make no record that raises in its host."""
    deliver(instance.ext, record(**changes))
    assert len(instance.heard) == 1


@pytest.mark.parametrize(
    ("number", "level"),
    [
        (5, LogLevelEXT.TRACE),
        (logging.DEBUG, LogLevelEXT.DEBUG),
        (25, LogLevelEXT.INFO),
        (logging.WARNING, LogLevelEXT.WARN),
        (logging.CRITICAL, LogLevelEXT.ERROR),
    ],
)
def test_levels_of_logging_have_a_counterpart(number: int, level: LogLevelEXT) -> None:
    """The highest that is not above it."""
    assert level_of(number) is level


def test_records_of_logging_reach_the_instance(instance: Instance) -> None:
    """With logger, place and traceback; nothing once the instance is gone."""
    logger = logging.Logger("app.part")
    handler = InstanceHandler(instance)  # type: ignore[arg-type]
    logger.addHandler(handler)
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("it is %d", 3)
    logger.warning("%d", "not a number")
    first, second = instance.heard
    assert (first.level, first.module, first.file) == (LogLevelEXT.ERROR, "app.part", __file__)
    assert first.message.startswith("it is 3\nTraceback")
    assert first.message.endswith("ValueError: wrong")
    assert second.message == "%d (('not a number',),)"
    handler._instance = lambda: None  # type: ignore[assignment]
    logger.warning("unheard")
    assert len(instance.heard) == 2


def test_messages_reach_the_logging_module(caplog: pytest.LogCaptureFixture) -> None:
    """With their own module, file, line and time; a format in the text is none."""
    callback = to_logging()
    with caplog.at_level(logging.INFO):
        callback(message("100 %s", plugin="p"))
        callback(LogMessageEXT(LogLevelEXT.DEBUG, datetime.now(), "too low", "module"))
    (heard,) = caplog.records
    assert (heard.name, heard.levelno, heard.getMessage()) == ("module", logging.WARNING, "100 %s")
    assert heard.created == datetime(2024, 1, 2, 3, 4, 5).timestamp()
    assert heard.__dict__["plugin"] == "p"


def test_a_plugins_message_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """It can neither begin a line that looks like one of the host's, nor recolour a terminal; ours stay as they are."""
    callback = to_logging()
    with caplog.at_level(logging.INFO):
        callback(message("a\nroot: \x1b[31mb", plugin="p"))
        callback(message("a\nb"))
    assert [heard.getMessage() for heard in caplog.records] == [r"a\nroot: \x1b[31mb", "a\nb"]


def test_both_bridges_at_once_do_not_go_round(instance: Instance) -> None:
    """A message to logging that comes back is dropped."""
    logger = logging.Logger("ring")
    logger.addHandler(InstanceHandler(instance))  # type: ignore[arg-type]
    passed: list[LogMessageEXT] = []
    forward = to_logging(logger)

    def callback(message: LogMessageEXT) -> None:
        passed.append(message)
        forward(message)

    instance.ext.log_callback = callback
    hyinfo(instance, "round")
    logger.warning("and round")
    assert [one.message for one in passed] == ["round", "and round"]
