"""The README and the docs: every block of code in them runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run[^\n]*-->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def _blocks() -> list[object]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            skip, language, code = match.groups()
            line = text[: match.start()].count("\n") + 1
            if skip is None and language != "text":
                found.append(pytest.param(language, code, id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize(("language", "code"), _blocks())
def test_block_runs(language: str, code: str, tmp_path: Path) -> None:
    """A reader who copies this block sees it work."""
    tmp_path.chmod(0o755)
    if language == "python":
        (tmp_path / "block.py").write_text(code)
        command = [sys.executable, "-W", "error", "block.py"]
    elif language == "sh":
        command = ["bash", "-euo", "pipefail", "-c", code]
    elif language == "toml":
        (tmp_path / "profile.toml").write_text(code)
        check = "from ringfence.sandbox.profiles import load_profile; print(load_profile('./profile.toml').name)"
        command = [sys.executable, "-c", check]
    else:
        pytest.fail(f"a block in {language}, which nothing here can run")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, "a block that shows nothing explains nothing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of this project finds it."""
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target
