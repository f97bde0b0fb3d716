"""What changed below watched folders, told by comparison. No kernel reports: the test says where to look."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ringfence.plugins import watched_tree
from ringfence.plugins.watch_config import WatchConfig
from ringfence.plugins.watch_events import Created, Modified, Removed, Renamed
from ringfence.plugins.watched_tree import WatchedTree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plugin with a sub-package, and a folder beside it."""
    root = tmp_path / "plugins"
    (root / "a" / "sub").mkdir(parents=True)
    (root / "a" / "plugin.toml").write_text("x")
    (root / "a" / "main.py").write_text("1")
    (root / "a" / "sub" / "m.py").write_text("1")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "o.py").write_text("1")
    return root


def tree_of(*roots: Path, **settings: Any) -> WatchedTree:
    """A tree of these roots."""
    tree = WatchedTree(WatchConfig(**settings))
    for root in roots:
        tree.add_root(str(root))
    return tree


def looked_at(tree: WatchedTree, *paths: Path) -> set[Any]:
    """What changed, after reports of these paths."""
    return set(tree.refresh({str(path) for path in paths}))


def save_by_rename(path: Path, text: str) -> Path:
    """Write beside it, rename over it."""
    temporary = path.with_name(path.name + ".t123")
    temporary.write_text(text)
    temporary.replace(path)
    return temporary


def test_what_is_there_at_first_is_no_change(folder: Path) -> None:
    """Only files with the extensions count."""
    (folder / "a" / "notes.txt").write_text("x")
    tree = tree_of(folder)
    assert {Path(path).name for path in tree.files} == {"plugin.toml", "main.py", "m.py"}
    assert tree.reconcile() == []


def test_each_kind_of_change(folder: Path) -> None:
    """Made, changed and removed files."""
    tree = tree_of(folder)
    new, main, sub = folder / "b.py", folder / "a" / "main.py", folder / "a" / "sub" / "m.py"
    new.write_text("1")
    main.write_text("22")
    sub.unlink()
    assert looked_at(tree, new, main, sub) == {Created(new), Modified(main), Removed(sub)}
    assert tree.reconcile() == []


def test_reconcile_needs_no_reports(folder: Path) -> None:
    """All changes since the last look are found."""
    tree = tree_of(folder)
    (folder / "b.py").write_text("1")
    (folder / "a" / "main.py").write_text("22")
    shutil.rmtree(folder / "a" / "sub")
    assert set(tree.reconcile()) == {
        Created(folder / "b.py"),
        Modified(folder / "a" / "main.py"),
        Removed(folder / "a" / "sub" / "m.py"),
    }


def test_a_report_counts_though_nothing_looks_different(folder: Path) -> None:
    """Two writes within one tick of the clock look the same."""
    tree = tree_of(folder)
    main = folder / "a" / "main.py"
    assert looked_at(tree, main) == {Modified(main)}


def test_a_save_by_rename_is_one_modified(folder: Path) -> None:
    """Whatever the temporary file is called."""
    tree = tree_of(folder)
    main = folder / "a" / "main.py"
    assert looked_at(tree, save_by_rename(main, "22"), main) == {Modified(main)}
    temporary = folder / "a" / "new_main.py"
    temporary.write_text("333")
    assert looked_at(tree, temporary) == {Created(temporary)}
    temporary.replace(main)
    assert looked_at(tree, temporary, main) == {Removed(temporary), Modified(main)}


def test_a_renamed_file_is_known_again(folder: Path) -> None:
    """Within a folder, and with its folder."""
    tree = tree_of(folder)
    main, other = folder / "a" / "main.py", folder / "a" / "other.py"
    main.rename(other)
    assert looked_at(tree, main, other) == {Renamed(main, other)}
    (folder / "a").rename(folder / "b")
    assert looked_at(tree, folder / "a", folder / "b") == {
        Renamed(folder / "a" / name, folder / "b" / name) for name in ("other.py", "plugin.toml", "sub/m.py")
    }


def test_a_removed_file_and_a_new_one_are_two(folder: Path) -> None:
    """Though the new one may have taken the inode of the old."""
    tree = tree_of(folder)
    main, other = folder / "a" / "main.py", folder / "a" / "other.py"
    main.unlink()
    other.write_text("something else")
    assert looked_at(tree, main, other) == {Removed(main), Created(other)}


def test_a_new_folder_is_looked_into(folder: Path) -> None:
    """Reports of what was in it before the kernel watched it do not come."""
    tree = tree_of(folder)
    made = folder / "n" / "o"
    made.mkdir(parents=True)
    (made / "q.py").write_text("1")
    assert looked_at(tree, folder / "n") == {Created(made / "q.py")}
    shutil.rmtree(folder / "n")
    assert looked_at(tree, folder / "n") == {Removed(made / "q.py")}


@pytest.mark.parametrize(
    "name", [".git/x.py", "a/.git/hooks/x.py", "a.tmp", "a.swp", "a/main.py~", ".#a.py", "4913", "__pycache__/a.py",
             "a/target/x.py", "a/x.tmp/y.py"]
)  # fmt: skip
def test_excluded_files_do_not_count(folder: Path, name: str) -> None:
    """Neither when reported, nor when everything is looked at, nor after."""
    tree = tree_of(folder, extensions=())
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    assert not tree.concerns(str(path))
    assert looked_at(tree, path, path.parent) == set()
    assert tree.reconcile() == []


def test_a_root_in_an_excluded_folder_counts(tmp_path: Path) -> None:
    """Exclusions are about what is below the watched folder."""
    root = tmp_path / "target" / "plugins"
    root.mkdir(parents=True)
    tree = tree_of(root)
    (root / "a.py").write_text("1")
    assert tree.concerns(str(root / "a.py"))
    assert looked_at(tree, root / "a.py") == {Created(root / "a.py")}


def test_extensions(folder: Path) -> None:
    """Others do not count; none given means all count."""
    tree, all_files = tree_of(folder), tree_of(folder, extensions=())
    path = folder / "a" / "data.csv"
    path.write_text("1")
    assert not tree.concerns(str(path))
    assert looked_at(tree, path) == set()
    assert looked_at(all_files, path) == {Created(path)}


def test_not_recursive(folder: Path) -> None:
    """Files in sub-folders do not count."""
    tree = tree_of(folder, recursive=False)
    (folder / "top.py").write_text("1")
    (folder / "a" / "main.py").write_text("22")
    assert looked_at(tree, folder / "top.py", folder / "a" / "main.py", folder / "a") == {Created(folder / "top.py")}


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    """What is behind a link to a folder does not count, by whichever name it is reported."""
    tree = tree_of(folder)
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "inner").symlink_to(folder / "a")
    assert looked_at(tree, folder / "link", folder / "inner") == set()
    (tmp_path / "outside" / "o.py").write_text("22")
    (folder / "a" / "main.py").write_text("22")
    assert looked_at(tree, folder / "link" / "o.py") == set()
    # The kernel knows a folder by one name, perhaps by that of the link.
    assert looked_at(tree, folder / "inner" / "main.py") == {Modified(folder / "a" / "main.py")}


def test_links_are_followed_when_asked(folder: Path, tmp_path: Path) -> None:
    """Folders and files behind links count by their names below the root; circles are no trouble."""
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "file.py").symlink_to(tmp_path / "outside" / "o.py")
    (folder / "circle").symlink_to(folder)
    (folder / "dangling.py").symlink_to(tmp_path / "nowhere")
    tree = tree_of(folder, follow_symlinks=True)
    names = {os.path.relpath(path, folder) for path in tree.files}
    assert names == {"link/o.py", "file.py", "a/main.py", "a/plugin.toml", "a/sub/m.py"}
    (tmp_path / "outside" / "o.py").write_text("22")
    assert looked_at(tree, folder / "link" / "o.py") == {
        Modified(folder / "link" / "o.py"),
        Modified(folder / "file.py"),
    }


def test_a_swapped_link_changes_what_is_behind_it(tmp_path: Path) -> None:
    """As deployments do that replace a link to a folder."""
    root = tmp_path / "root"
    root.mkdir()
    for version in ("v1", "v2"):
        (root / version).mkdir()
        (root / version / "main.txt").write_text(version)
    (root / "now").symlink_to(root / "v1")
    (root / "main.py").symlink_to(root / "now" / "main.txt")
    tree = tree_of(root, follow_symlinks=True)
    (root / "next").symlink_to(root / "v2")
    (root / "next").replace(root / "now")
    assert looked_at(tree, root / "now") == {Modified(root / "main.py")}


def test_a_root_reached_by_a_link(folder: Path, tmp_path: Path) -> None:
    """A watched link is followed, and two roots may be one folder."""
    alias = tmp_path / "alias"
    alias.symlink_to(folder)
    tree = tree_of(folder, alias)
    (folder / "a" / "main.py").write_text("22")
    assert looked_at(tree, alias / "a" / "main.py") == {
        Modified(folder / "a" / "main.py"),
        Modified(alias / "a" / "main.py"),
    }


def test_a_single_file(folder: Path) -> None:
    """Watched whatever its extension; its neighbours are not."""
    file = folder / "a" / "list.txt"
    file.write_text("1")
    tree = tree_of(file)
    (folder / "a" / "main.py").write_text("22")
    save_by_rename(file, "22")
    assert looked_at(tree, file, folder / "a" / "main.py") == {Modified(file)}
    file.unlink()
    assert tree.reconcile() == [Removed(file)]


def test_roots_come_and_go(folder: Path) -> None:
    """An overlapping root keeps what it covers when another goes."""
    tree = tree_of(folder, folder / "a" / "sub")
    assert tree.drop_root(str(folder))
    assert not tree.drop_root(str(folder))
    assert list(tree.files) == [str(folder / "a" / "sub" / "m.py")]
    assert tree.roots == (str(folder / "a" / "sub"),)


def test_many_changed_folders_are_looked_at_together(folder: Path) -> None:
    """The result is the same as one by one."""
    tree = tree_of(folder)
    made = [folder / f"n{number}" for number in range(40)]
    for place in made:
        place.mkdir()
        (place / "q.py").write_text("1")
    assert looked_at(tree, *made) == {Created(place / "q.py") for place in made}


def test_memory_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A plugin that fills its folder is told once that this is too much."""
    monkeypatch.setattr(watched_tree, "_MAX_FILES", 5)
    tree = tree_of(folder)
    for number in range(10):
        (folder / f"{number}.py").write_text("1")
    assert len(tree.reconcile()) == 2
    assert len(tree.files) == 5
    assert len(caplog.records) == 1


def test_pipes_and_odd_names_are_no_trouble(folder: Path) -> None:
    """A pipe is no file; bytes that are no UTF-8 are a name like another."""
    tree = tree_of(folder)
    os.mkfifo(folder / "pipe.py")
    odd = os.fsdecode(os.fsencode(folder) + b"/\xff.py")
    with open(odd, "w") as file:
        file.write("1")
    assert looked_at(tree, folder / "pipe.py", Path(odd)) == {Created(Path(odd))}
    assert tree.refresh({"/nowhere", "relative", "nul\0.py"}) == []
