"""What the plugins of a runtime share: where their log records go."""

import logging

import pytest

from ringfence.plugins.config import RuntimeConfig
from ringfence.plugins.records import PluginLog, on_one_line
from ringfence.plugins.surroundings import Surroundings


def test_a_record_cannot_pass_for_a_line_of_the_hosts_log(caplog: pytest.LogCaptureFixture) -> None:
    """Line breaks, carriage returns and escape sequences of a plugin are shown, and do nothing."""
    around = Surroundings(RuntimeConfig())
    try:
        with caplog.at_level(logging.INFO, logger="ringfence.plugin.sly"):
            around.log(PluginLog("sly", 2, "a\nroot: \x1b[31mall is lost\r\u2028b", "l\nx", "m", None, None, None, 0.0))
    finally:
        around.close()
    assert [record.getMessage() for record in caplog.records] == [r"l\nx: a\nroot: \x1b[31mall is lost\r\u2028b"]


def test_honest_text_stays_as_it_is() -> None:
    """Letters of any script, and what is between them."""
    assert on_one_line("naïve 日本 → ok") == "naïve 日本 → ok"
