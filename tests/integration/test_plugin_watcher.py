"""The watcher on a real file system, with real reports of the kernel."""

import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until
from watched import QUICK, Watched, by_rename, plugin_of

from ringfence.plugins import kernel_watch
from ringfence.plugins.errors import WatchError
from ringfence.plugins.watch_config import WatchConfig
from ringfence.plugins.watch_events import Created, Modified, Removed, Renamed, WatchEvent
from ringfence.plugins.watcher import PluginWatcher


def in_place(path: Path, text: str) -> None:
    """As most programs do."""
    path.write_text(text)


def by_rename_of_the_same_kind(path: Path, text: str) -> None:
    """The same, by a name that counts."""
    temporary = path.with_name(f"new_{path.name}")
    temporary.write_text(text)
    temporary.replace(path)


def like_vim(path: Path, text: str) -> None:
    """A probe, a swap file, the old file renamed away."""
    probe = path.with_name("4913")
    probe.write_text("")
    probe.unlink()
    swap = path.with_name(f".{path.name}.swp")
    swap.write_text("swap")
    backup = path.with_name(path.name + "~")
    path.rename(backup)
    path.write_text(text)
    backup.unlink()
    swap.unlink()


def like_emacs(path: Path, text: str) -> None:
    """A lock that is a dangling link, a backup copy, in place."""
    lock = path.with_name(f".#{path.name}")
    lock.symlink_to("user@host.1234")
    shutil.copy2(path, path.with_name(path.name + "~"))
    path.write_text(text)
    lock.unlink()


def with_sed(path: Path, text: str) -> None:
    """In place, as sed understands it."""
    subprocess.run(["sed", "-i", f"1c {text}", str(path)], check=True)


def by_removal(path: Path, text: str) -> None:
    """Away, and made anew."""
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize(
    "save", [in_place, by_rename, by_rename_of_the_same_kind, like_vim, like_emacs, with_sed, by_removal]
)
def test_a_save_is_one_modified(watched: Watched, save: Callable[[Path, str], None]) -> None:
    """However an editor writes a file, a save is one event; twice, so that the second is seen like the first."""
    watched.watch(QUICK.with_debounce(0.2))
    for text in ("version = 2", "version = 3"):
        save(watched.main, text)
        watched.expect_only(Modified(watched.main))


def test_each_kind_of_change_is_told(watched: Watched) -> None:
    """Created, renamed, removed; in sub-folders too."""
    watched.watch()
    new, other = watched.plugin / "new.py", watched.plugin / "sub" / "other.py"
    new.write_text("x")
    watched.wait_for(Created(new))
    new.rename(other)
    watched.wait_for(Renamed(new, other))
    other.unlink()
    watched.wait_for(Removed(other))


def test_a_burst_is_told_once(watched: Watched) -> None:
    """Many writes within the debounce time are one event for each file."""
    watched.watch(QUICK.with_debounce(0.5))
    part = watched.plugin / "sub" / "part.py"
    for number in range(20):
        watched.main.write_text(f"version = {number}\n")
        part.write_text(f"part = {number}\n")
    watched.wait_for(Modified(watched.main), Modified(part))


def test_what_does_not_count_is_not_told(watched: Watched) -> None:
    """Other extensions, and what editors and version control leave."""
    watched.watch()
    for name in (".git/x.py", "a.tmp", "a.swp", "main.py~", "notes.txt", "__pycache__/main.py", "4913"):
        path = watched.plugin / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    watched.expect_only()


def test_names_that_are_no_utf8_are_told(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """Names that are no UTF-8 end the reports of the kernel, not the watching; the log says so, a few times."""
    watched.watch()
    folder = Path(os.fsdecode(os.fsencode(watched.plugin) + b"/\xff"))
    folder.mkdir()
    file = Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.py"))
    file.write_text("1")
    watched.wait_for(Created(file))
    file.write_text("22")
    watched.wait_for(Modified(file))
    watched.main.write_text("version = 2")
    watched.wait_for(Modified(watched.main))
    assert 0 < len(caplog.records) < 5


def test_folders_come_and_go(watched: Watched) -> None:
    """New ones with all that is in them, removed ones, and ones that are moved away and back."""
    watched.watch()
    deep = watched.root / "new" / "a" / "b"
    deep.mkdir(parents=True)
    file = deep / "q.py"
    file.write_text("1")
    watched.wait_for(Created(file))
    file.write_text("22")
    watched.wait_for(Modified(file))
    shutil.rmtree(watched.root / "new")
    watched.wait_for(Removed(file))
    deep.mkdir(parents=True)
    file.write_text("1")
    watched.wait_for(Created(file))
    file.write_text("22")
    watched.wait_for(Modified(file))
    away = watched.root.parent / "away"
    (watched.root / "new").rename(away)
    watched.wait_for(Removed(file))
    (away / "a" / "b" / "q.py").write_text("333")
    watched.expect_only()
    away.rename(watched.root / "new")
    watched.wait_for(Created(file))
    file.write_text("4444")
    watched.wait_for(Modified(file))


def test_a_watched_folder_may_be_replaced(watched: Watched) -> None:
    """When the watched folder itself goes and comes back, what is in it is told, and watched."""
    watched.watch()
    old = watched.root.with_name("old")
    watched.root.rename(old)
    wait_until(lambda: Removed(watched.main) in watched.events)
    watched.events.clear()
    shutil.copytree(old, watched.root)
    wait_until(lambda: Created(watched.main) in watched.events)
    watched.events.clear()
    (old / "example" / "main.py").write_text("nobody watches this")
    watched.expect_only()
    watched.main.write_text("version = 2\n")
    watched.wait_for(Modified(watched.main))


def test_a_single_file_is_watched_through_replacements(watched: Watched) -> None:
    """Its inode changes with each save; its neighbours do not matter."""
    watched.watch(QUICK, watched.main)
    for number in range(3):
        by_rename(watched.main, f"version = {number}\n" + "#" * number)
        (watched.plugin / "sub" / "part.py").write_text(f"part = {number}")
        wait_until(lambda: watched.events)
        assert set(watched.events) == {Modified(watched.main)}
        watched.events.clear()


def test_links_are_followed_only_when_asked(watched: Watched, tmp_path: Path) -> None:
    """Folders and files behind links, also behind links made later, and links that are swapped."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.py").write_text("1")
    (watched.plugin / "link").symlink_to(outside)
    (watched.plugin / "file.py").symlink_to(outside / "o.py")
    watched.watch()
    (outside / "o.py").write_text("22")
    (outside / "p.py").write_text("22")
    watched.expect_only()
    assert watched.watcher is not None
    watched.watcher.stop()

    watched.watch(QUICK.with_follow_symlinks(True))
    (outside / "o.py").write_text("333")
    watched.wait_for(Modified(watched.plugin / "link" / "o.py"), Modified(watched.plugin / "file.py"))
    by_rename(outside / "o.py", "4444")
    watched.wait_for(Modified(watched.plugin / "link" / "o.py"), Modified(watched.plugin / "file.py"))
    later = tmp_path / "later"
    later.mkdir()
    (later / "l.py").write_text("1")
    (watched.plugin / "link2").symlink_to(later)
    watched.wait_for(Created(watched.plugin / "link2" / "l.py"))
    (later / "l.py").write_text("22")
    watched.wait_for(Modified(watched.plugin / "link2" / "l.py"))


def test_paths_can_be_added_and_dropped_while_it_runs(watched: Watched, tmp_path: Path) -> None:
    """Before and after start; nothing is told of what is no longer watched."""
    other = tmp_path / "other"
    other.mkdir()
    watcher = watched.watch()
    watcher.watch(other)
    assert watcher.watched_paths() == [watched.root, other]
    (other / "x.py").write_text("1")
    watched.wait_for(Created(other / "x.py"))
    assert watcher.unwatch(str(other) + "/")
    assert not watcher.unwatch(other)
    (other / "x.py").write_text("22")
    watched.expect_only()
    assert watcher.watched_paths() == [watched.root]


def test_nothing_watched_yet_is_no_trouble(watched: Watched) -> None:
    """start() before any watch()."""
    watched.watcher = PluginWatcher(QUICK, plugin_of=plugin_of)
    watched.watcher.on_event(watched.events.append)
    watched.watcher.start().watch(watched.root)
    watched.main.write_text("version = 2\n")
    watched.wait_for(Modified(watched.main))


def test_changes_while_nobody_watches_are_not_told(watched: Watched) -> None:
    """Neither between watch() and start(), nor between stop() and start()."""
    watcher = PluginWatcher(QUICK, plugin_of=plugin_of)
    watched.watcher = watcher
    watcher.on_change(watched.events.append)
    watcher.watch(watched.root)
    watched.main.write_text("version = 2\n")
    watcher.start()
    watched.expect_only()
    watcher.stop()
    watched.main.write_text("version = 333\n")
    watcher.start()
    watched.expect_only()


def test_a_path_that_is_not_there_is_a_watch_error(tmp_path: Path) -> None:
    """The error names the path; what was watched before it stays."""
    watcher = PluginWatcher(QUICK)
    with pytest.raises(WatchError, match="nowhere"):
        watcher.watch_all([tmp_path, tmp_path / "nowhere"])
    with pytest.raises(WatchError):
        watcher.watch("nul\0byte")
    assert watcher.watched_paths() == [tmp_path]


def test_relative_paths_are_made_absolute(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of the working directory changes nothing."""
    monkeypatch.chdir(watched.root.parent)
    watched.watch(QUICK, Path("plugins/"))
    monkeypatch.chdir("/")
    assert watched.watcher is not None
    assert watched.watcher.watched_paths() == [watched.root]
    watched.main.write_text("version = 2\n")
    watched.wait_for(Modified(watched.main))


def test_start_and_stop_may_be_repeated(watched: Watched) -> None:
    """A second start or stop does nothing; the context manager does both."""
    watcher = watched.watch()
    threads = threading.active_count()
    assert watcher.start() is watcher
    assert threading.active_count() == threads
    assert watcher.is_running()
    assert "running" in repr(watcher)
    watcher.stop()
    watcher.stop()
    assert not watcher.is_running()
    with watcher as entered:
        assert entered is watcher and watcher.is_running()
        watched.main.write_text("version = 2\n")
        watched.wait_for(Modified(watched.main))
    assert not watcher.is_running()


def test_nothing_grows_over_many_starts_and_saves(watched: Watched) -> None:
    """Threads and fds are as before, each time."""

    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    watched.watch()
    watched.expect_only()
    assert watched.watcher is not None
    running = held()
    for number in range(5):
        watched.watcher.watch(watched.plugin)
        watched.watcher.unwatch(watched.plugin)
        by_rename(watched.main, f"version = {number}")
        watched.expect_only(Modified(watched.main))
    wait_until(lambda: held() == running, what=f"{running}")
    watched.watcher.stop()
    stopped = held()
    for _ in range(5):
        watched.watcher.start().stop()
    wait_until(lambda: held() <= stopped, what=f"{stopped}")


def test_handlers_run_on_one_other_thread_and_fail_alone(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises is logged; the ones after it, and later events, are told all the same."""
    threads = set()

    def fail(event: WatchEvent) -> None:
        threads.add(threading.current_thread().name)
        raise SystemExit("from a handler")

    watched.watcher = PluginWatcher(QUICK, plugin_of=plugin_of)
    assert watched.watcher.on_change(fail) is fail

    @watched.watcher.on_change
    def record(event: WatchEvent) -> None:
        watched.events.append(event)

    watched.watcher.watch(watched.root).start()
    with caplog.at_level(logging.ERROR, "ringfence.plugins"):
        for text in ("2", "33"):
            watched.main.write_text(text)
            watched.wait_for(Modified(watched.main))
    assert threads == {"ringfence-watch-handlers"}
    assert "from a handler" in caplog.text


def test_a_handler_may_use_the_watcher(watched: Watched, tmp_path: Path) -> None:
    """No lock is held while it runs: it watches, unwatches, adds handlers, stops and starts again."""
    other = tmp_path / "other"
    other.mkdir()
    done = threading.Event()
    watched.watcher = watcher = PluginWatcher(QUICK, plugin_of=plugin_of)

    @watcher.on_change
    def use(event: WatchEvent) -> None:
        if not done.is_set():
            watcher.watch(other)
            watcher.unwatch(other)
            thread = threading.Thread(target=watcher.watched_paths)
            thread.start()
            thread.join()
            watcher.on_change(watched.events.append)
            watcher.stop()
            watcher.start()
            done.set()

    watcher.watch(watched.root).start()
    watched.main.write_text("22")
    wait_until(done.is_set)
    watched.events.clear()
    watched.main.write_text("333")
    wait_until(lambda: Modified(watched.main) in watched.events)


def test_a_slow_handler_loses_nothing(watched: Watched) -> None:
    """What changes while a handler runs is told after it, once."""
    entered, release = threading.Event(), threading.Event()
    watched.watcher = PluginWatcher(QUICK, plugin_of=plugin_of)

    @watched.watcher.on_change
    def slow(event: WatchEvent) -> None:
        watched.events.append(event)
        entered.set()
        assert release.wait(30)

    watched.watcher.watch(watched.root).start()
    watched.main.write_text("22")
    assert entered.wait(30)
    part = watched.plugin / "sub" / "part.py"
    part.write_text("22")
    part.write_text("333")
    release.set()
    watched.wait_for(Modified(watched.main), Modified(part))


def test_polling_takes_over_where_the_kernel_lends_no_watches(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, and changes are told."""
    import watchfiles

    real = watchfiles.watch

    def limited(*paths: Any, **options: Any) -> Any:
        if not options["force_polling"]:
            raise OSError(28, "OS file watch limit reached")
        return real(*paths, **options)

    monkeypatch.setattr(watchfiles, "watch", limited)
    watched.watch()
    watched.main.write_text("version = 22\n")
    watched.wait_for(Modified(watched.main))
    assert "polling instead" in caplog.text


def test_a_failing_kernel_watch_is_begun_anew(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while listening costs no change."""
    from ringfence.plugins import watcher

    real, failures = kernel_watch.reports, [OSError("gone"), RuntimeError("odd"), OSError("again")]

    def flaky(*args: Any, **options: Any) -> Iterator[set[str]]:
        if failures:
            raise failures.pop()
        yield from real(*args, **options)

    monkeypatch.setattr(watcher, "reports", flaky)
    watched.watch()
    watched.main.write_text("version = 22\n")
    watched.wait_for(Modified(watched.main))
    assert not failures


def test_the_documented_watcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example of the guide, with plugins found by their manifests: one line for each save."""
    from ringfence.plugins.folder import extract_plugin_name

    plugin = tmp_path / "plugins" / "example"
    plugin.mkdir(parents=True)
    (plugin / "plugin.toml").write_text(
        'name = "example"\nversion = "1.0.0"\nsource = "main.py"\n[api-version]\nmajor = 0\nminor = 21\npatch = 0\n'
    )
    (plugin / "main.py").write_text("version = 1")
    reloaded: list[str] = []

    watcher = PluginWatcher(WatchConfig())

    @watcher.on_change
    def _(event: WatchEvent) -> None:
        match event:
            case WatchEvent.Modified(path=path):
                if plugin_name := extract_plugin_name(path):
                    print(f"Reloading {plugin_name}")
                    reloaded.append(plugin_name)
            case _:
                pass

    watcher.watch(tmp_path / "plugins")
    watcher.start()
    try:
        like_vim(plugin / "main.py", "version = 2")
        wait_until(lambda: len(reloaded) == 1)
        with_sed(plugin / "main.py", "version = 3")
        wait_until(lambda: len(reloaded) == 2)
    finally:
        watcher.stop()
    assert capsys.readouterr().out == "Reloading example\nReloading example\n"
