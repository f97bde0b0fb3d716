"""Granted paths that only their owner may use: they work for workers that root starts, or are refused by name."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from levels import STANDINGS, Starter

from ringfence import BrokenPool, Limits, PolicyError, Pool
from ringfence.pool import preflight

SOMEBODY = 1234
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts workers as another user")


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that is closed all through: ``in/f`` and ``out`` are root's, ``theirs/f`` belongs to somebody else."""
    for name in ("in", "out", "theirs"):
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / "f").write_text(name)
        (tmp_path / name / "f").chmod(0o600)
    if os.geteuid() == 0:
        for path in (tmp_path / "theirs", tmp_path / "theirs/f"):
            os.chown(path, SOMEBODY, SOMEBODY)
    tmp_path.chmod(0o700)
    yield tmp_path


def _use(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {"uid": os.getuid()}
    for name in ("in", "theirs"):
        found[name] = Path(folder, name, "f").read_text()
    Path(folder, "out/new").write_text("new")
    Path(folder, "out/new").replace(Path(folder, "out/moved"))
    found["mine"] = os.stat(Path(folder, "out/moved")).st_uid == os.getuid()
    try:
        Path(folder, "in/f").write_text("changed")
    except OSError as error:
        found["writing"] = type(error).__name__
    found["rest"] = os.path.exists(Path(folder).parent / "beside")
    return found


def _threads() -> int:
    """Return how many threads can be started; they all end."""
    done, threads = threading.Event(), []
    try:
        for _ in range(100):
            threads.append(threading.Thread(target=done.wait))
            threads[-1].start()
    except RuntimeError:
        threads.pop()
    done.set()
    for thread in threads:
        thread.join()
    return len(threads)


@as_root
@pytest.mark.needs("mnt", "landlock", "own_uids")
def test_closed_folders_work_behind_a_private_root(closed: Path) -> None:
    """Root's and others' closed folders are read and written as their owners would; on the disk they stay theirs."""
    grants = [f"fs:read={closed}/in", f"fs:read={closed}/theirs", f"fs:write={closed}/out", f"fs:delete={closed}/out"]
    with Pool(2, capabilities=grants, limits=Limits(processes=24), require="private") as pool:
        found = pool.submit(_use, str(closed)).result(30)
        # Each worker's threads are counted for it alone, though they are one user.
        counts = [future.result(30) for future in [pool.submit(_threads) for _ in range(4)]]
        reports = pool.reports()
    assert found == {
        "uid": found["uid"], "in": "in", "theirs": "theirs", "mine": True, "writing": "OSError", "rest": False,
    }  # fmt: skip
    assert found["uid"] >= 0x70000000
    assert (closed / "out/moved").stat().st_uid == 0
    assert len(set(counts)) == 1 and 15 < counts[0] < 24
    assert all(report["rlimits"].status == "full" for report in reports.values())


@as_root
@pytest.mark.needs("mnt", "landlock", "own_uids")
def test_what_cannot_be_mapped_is_named(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system maps no owners the pool is not made; the text names grant, path, reason and mode."""
    monkeypatch.setattr(preflight, "why_not_mapped", lambda paths: ["Invalid argument" for _ in paths])
    with pytest.raises(PolicyError, match=rf"fs:read={closed}/in: .*list {closed}/in .*Invalid argument.*chmod o\+rx"):
        Pool(1, capabilities=[f"fs:read={closed}/in"])


@as_root
def test_without_a_root_of_its_own_the_closed_folder_is_named(starter: Starter) -> None:
    """In a container that forbids namespaces a closed path, or one behind a closed folder, is refused by name."""
    program = (
        "import json, os, sys\n"
        "from ringfence import Pool, PolicyError\n"
        "said = []\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        Pool(1, capabilities=['fs:read=' + path]).shutdown()\n"
        "        said.append(None)\n"
        "    except PolicyError as error:\n"
        "        said.append(str(error))\n"
        "print(json.dumps(said))\n"
    )
    container = next(standing for standing in STANDINGS if standing.name == "container-root")
    with starter.folder(container) as folder:
        for name, mode in (("closed", 0o700), ("open", 0o755)):
            (folder / name / "within").mkdir(parents=True)
            (folder / name / "within").chmod(0o755)
            (folder / name).chmod(mode)
        paths = [str(folder / name) for name in ("closed", "closed/within", "open", "open/within")]
    ended = starter.run(container, "-c", program, *paths)
    assert ended.returncode == 0, ended.stderr
    closed, within, *fine = json.loads(ended.stdout)
    assert f"may not list {paths[0]}" in closed and "chmod o+rx" in closed
    assert f"may not pass {paths[0]}" in within and "chmod o+x" in within
    assert fine == [None, None]


def test_what_one_may_not_use_oneself_is_said_at_once(starter: Starter) -> None:
    """An ordinary user who grants what is not theirs learns of it when the pool is made."""
    program = (
        "import os, sys\n"
        "from ringfence import Pool, PolicyError\n"
        "os.mkdir('shut'); os.chmod('shut', 0)\n"
        "for grant in ('fs:read', 'fs:write'):\n"
        "    try:\n"
        "        Pool(1, capabilities=[grant + '=' + os.path.abspath('shut')])\n"
        "    except PolicyError as error:\n"
        "        print(error)\n"
        "Pool(1, capabilities=['fs:read=/', 'fs:write=/']).shutdown()\n"
        "with Pool(1, profile='trusted') as pool:\n"
        "    assert pool.submit(os.path.isdir, '/').result(30)\n"
    )
    user = next(standing for standing in STANDINGS if standing.name == "user")
    ended = starter.run(user, "-c", program)
    assert ended.returncode == 0, ended.stderr
    assert "you may not read" in ended.stdout and "you may not write to" in ended.stdout, ended.stdout


def test_a_link_that_is_changed_after_the_decision_gains_nothing(tmp_path: Path) -> None:
    """The pool is told where the paths led: what leads elsewhere by then is neither looked at nor given."""
    for name in ("meant", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
        (tmp_path / name / "f").write_text(name)
        (tmp_path / name / "f").chmod(0o644)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to("meant")
    places = {str(link): str(tmp_path / "meant")}
    with Pool(1, capabilities=[f"fs:read={link}"], places=places) as pool:
        assert pool.submit(Path.read_text, link / "f").result(30) == "meant"
    link.unlink()
    link.symlink_to("other")
    pool = Pool(1, capabilities=[f"fs:read={link}"], places=places)
    try:
        with pytest.raises((BrokenPool, OSError)):
            pool.submit(Path.read_text, link / "f").result(30)
    finally:
        pool.kill_workers()
        pool.shutdown()
