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
# A page with this in it is a session: each block finds what those before it have left. There, a block that begins with
# a file's name in a folder is that file, and a text block is what the block before it prints.
ONE_FOLDER = "<!-- the blocks of this page run in one folder, one after the other -->"
FILE = re.compile(r"# (\w[\w.-]*/[\w./-]+)\n")


def _blocks() -> list[object]:
    found = []
    for page in PAGES:
        text = page.read_text()
        if ONE_FOLDER in text:
            continue
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
    assert _run(language, code, tmp_path), "a block that shows nothing explains nothing"


@pytest.mark.timeout(240)  # a dozen programs, one after the other
@pytest.mark.parametrize(
    "page", [page for page in PAGES if ONE_FOLDER in page.read_text()], ids=lambda page: str(page.relative_to(ROOT))
)
def test_page_runs(page: Path, tmp_path: Path) -> None:
    """A reader who follows this page from its top sees what it says."""
    tmp_path.chmod(0o755)
    text, printed = page.read_text(), ""
    for match in BLOCK.finditer(text):
        skip, language, code = match.groups()
        where = f"line {text[: match.start()].count(chr(10)) + 1}"
        if skip is not None:
            continue
        if file := FILE.match(code):
            (tmp_path / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file[1]).write_text(code)
        elif language == "text":
            for line in code.splitlines():
                # What differs from run to run is left out: "…".
                assert all(part.strip() in printed for part in line.split("…")), f"{where}: {line}\n{printed}"
        else:
            printed = _run(language, code, tmp_path, where)


def _run(language: str, code: str, folder: Path, where: str = "") -> str:
    """Run a block and return what it printed, on both streams; one that prints nothing on stdout returns nothing."""
    if language == "python":
        (folder / "block.py").write_text(code)
        command = [sys.executable, "-W", "error", "block.py"]
    elif language == "sh":
        command = ["bash", "-euo", "pipefail", "-c", code]
    elif language == "toml":
        (folder / "profile.toml").write_text(code)
        check = "from ringfence.sandbox.profiles import load_profile; print(load_profile('./profile.toml').name)"
        command = [sys.executable, "-c", check]
    else:
        pytest.fail(f"a block in {language}, which nothing here can run")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    # What a page installs and approves is in its own folder, not in the home of whoever runs the tests.
    environment = {**os.environ, "PATH": path, "RINGFENCE_HOME": str(folder / ".home")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
    return done.stdout and done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of this project finds it."""
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target
