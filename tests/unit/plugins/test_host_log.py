"""What the host's log says of a plugin's errors is one record, whatever their texts are."""

import logging

import pytest

from ringfence.plugins.host_log import log

HOSTILE = "no\nERROR root: all is lost \x1b[2J\u202e"


def test_a_text_of_a_plugin_begins_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does it reach the terminal: as an argument, an error, or an argument that cannot be shown."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    log.warning("plugin %r raised %s, %s, %d: %s", "p", HOSTILE, ValueError(HOSTILE), 3, Mute())
    (text,) = [record.getMessage() for record in caplog.records]
    assert text.isprintable()
    assert text.startswith("plugin 'p' raised no\\nERROR root") and "3: (Mute, whose text cannot be made)" in text


def test_a_traceback_stays_behind_its_margin(caplog: pytest.LogCaptureFixture) -> None:
    """Each line of it; and the error is still there for handlers that want it."""
    error = ValueError(HOSTILE)
    log.error("it failed", exc_info=error)
    (record,) = caplog.records
    first, *lines = logging.Formatter("%(message)s").format(record).split("\n")
    assert first == "it failed"
    assert len(lines) > 1 and all(line.startswith("  | ") and line.isprintable() for line in lines)
    assert record.exc_info is not None and record.exc_info[1] is error
