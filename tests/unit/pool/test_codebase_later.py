"""pool/codebase: what was not there the first time it was looked for."""

import importlib
import sys
from pathlib import Path

import pytest

from ringfence.pool.codebase import needed_by


def test_a_module_that_appears_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a name led to no module once is not remembered against it."""
    (tmp_path / "asks_first.py").write_text("def later():\n    import comes_later\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("asks_first")
    try:
        assert [module.name for module in needed_by("asks_first")] == ["asks_first"]
        (tmp_path / "comes_later.py").write_text("X = 1\n")
        importlib.invalidate_caches()
        importlib.import_module("comes_later")
        assert sorted(module.name for module in needed_by("asks_first")) == ["asks_first", "comes_later"]
        assert [module.name for module in needed_by("comes_later")] == ["comes_later"]
    finally:
        for name in ("asks_first", "comes_later"):
            sys.modules.pop(name, None)
