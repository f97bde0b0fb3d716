"""The page on system calls is the tables': what a reader audits is what the filter is made from."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import system_calls_page

from ringfence.sandbox.capabilities import Capability
from ringfence.sandbox.grant_rulesets import BUNDLES
from ringfence.sandbox.rulesets import BASE


def test_the_page_is_what_the_tables_say() -> None:
    """Where it differs: run tests/unit/sandbox/system_calls_page.py, and read what has changed."""
    assert system_calls_page.PAGE.read_text() == system_calls_page.page()


def test_the_page_names_every_call_and_capability() -> None:
    """Nothing that is allowed, killed or pretended is left out, and no capability."""
    text = system_calls_page.page()
    for bundle in (*BASE, *BUNDLES.values()):
        for rule in bundle.rules:
            assert all(f"`{call}`" in text for call in rule.calls.split())
    assert all(f"`{capability.value}`" in text for capability in Capability)


def test_links_lead_to_headings() -> None:
    """Each anchor on the page is one of its headings."""
    text = system_calls_page.page()
    anchors = {system_calls_page._anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors
