"""Modules that travelled as source, as the worker imports them."""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence.worker.modules import ShippedModules

NAME = "shipped_for_these"


@pytest.fixture
def shipped() -> Iterator[ShippedModules]:
    """The importer, in place; gone afterwards."""
    modules = ShippedModules()
    yield modules
    sys.meta_path.remove(modules)
    sys.modules.pop(NAME, None)


def test_tracebacks_show_the_lines_that_were_sent(shipped: ShippedModules, tmp_path: Path) -> None:
    """Also where a file of that name can be seen: it may be closed to this worker, or have changed since."""
    file = tmp_path / f"{NAME}.py"
    file.write_text("# not\n# what was sent\n")
    shipped.add(NAME, "def fail():\n    raise ValueError('shown')\n", str(file), False)
    module = __import__(NAME)
    with pytest.raises(ValueError) as caught:
        module.fail()
    text = "".join(traceback.format_exception(caught.value))
    assert f'File "{file}", line 2, in fail\n    raise ValueError(' in text


def test_what_was_sent_comes_before_what_is_installed(
    shipped: ShippedModules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another module of the same name may lie in the library: the function was written for the caller's."""
    (tmp_path / f"{NAME}.py").write_text("whose = 'installed'\n")
    monkeypatch.syspath_prepend(tmp_path)
    shipped.add(NAME, "whose = 'sent'\n", "/home/somebody/module.py", False)
    assert __import__(NAME).whose == "sent"
