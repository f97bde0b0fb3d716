"""S8: a developer saves a plugin's files, and the next call runs what was saved; calls under way notice nothing."""

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from scenario_plugins import write_plugin
from waiting import descendants, wait_until

from ringfence import (
    PluginRuntime,
    PluginWatcher,
    RuntimeConfig,
    WatchConfig,
    WatchEvent,
    extract_plugin_name,
)
from ringfence.errors import PluginError
from ringfence.plugins.backoff import BackoffConfig
from ringfence.plugins.debounce import Debouncer
from ringfence.plugins.errors import ReloadFailed
from ringfence.plugins.events import Error, LifecycleEvent, Reloaded
from ringfence.plugins.reload_driver import ReloadAttempt, ReloadDriver, ReloadKind, ReloadOutcome
from ringfence.plugins.states import LifecycleState, Running

PRINTED = """\
def watch_plugins(runtime):
    watcher = PluginWatcher(WatchConfig())
    @watcher.on_change
    def _(event):
        match event:
            case WatchEvent.Modified(path=path):
                if plugin_name := extract_plugin_name(path):
                    print(f"Reloading {plugin_name}")
                    with contextlib.suppress(PluginError):
                        runtime.reload_plugin(plugin_name)
            case _: pass
    watcher.watch("plugins/")
    watcher.start()
    return watcher
"""


def watch_plugins(runtime: PluginRuntime) -> PluginWatcher:
    """Do what the scenario prints."""
    names: dict[str, Any] = {
        "PluginWatcher": PluginWatcher, "WatchConfig": WatchConfig, "WatchEvent": WatchEvent,
        "PluginError": PluginError, "extract_plugin_name": extract_plugin_name, "contextlib": contextlib,
    }  # fmt: skip
    exec(PRINTED, names)
    watcher = names["watch_plugins"](runtime)
    assert isinstance(watcher, PluginWatcher)
    return watcher


def says(version: object) -> str:
    """Return the code of a plugin whose `process` answers `version`."""
    return f"def process(data):\n    return [{version!r}, data]\n"


# Two modules, each with its number; a call takes a while, and looks at both at both its ends.
SLOW = """\
import time
import part
NUMBER = {number}
def process(data):
    before = [NUMBER, part.NUMBER]
    time.sleep(0.02)
    return [before, [NUMBER, part.NUMBER], data]
"""

COUNTER = """\
import threading
lock, count = threading.Lock(), 0
def process(data):
    global count
    with lock:
        count += 1
        return [{number}, count]
def total():
    return count
def save_state():
    return {{"count": count}}
def restore_state(state):
    global count
    count = state["count"]
"""


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def runtime() -> Iterator[PluginRuntime]:
    """Shut down in the end."""
    with PluginRuntime(RuntimeConfig()) as runtime:
        yield runtime


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of the plugin ``example``, below the folder ``plugins`` in the current one."""
    monkeypatch.chdir(tmp_path)
    return write_plugin(tmp_path / "plugins/example", says(1)).with_name("main.py")


@pytest.fixture
def manifest(main: Path) -> Path:
    """Its manifest."""
    return main.with_name("plugin.toml")


# --- saving -------------------------------------------------------------------------------------------------


def in_place(path: Path, text: str) -> None:
    """As most programs do."""
    path.write_text(text)


def by_rename(path: Path, text: str) -> None:
    """Write beside it, rename over it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def with_vim(path: Path, text: str) -> None:
    """With a swap file and a backup, as it does by default."""
    line = text.splitlines()[-1]
    subprocess.run(
        ["vim", "-E", "-s", "-u", "NONE", "-c", "set nocompatible backup writebackup backupcopy=no swapfile",
         "-c", f"call setline(line('$'), {line!r})".replace('"', "'"), "-c", "wq", str(path)],
        check=True, timeout=30, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip


def with_sed(path: Path, text: str) -> None:
    """In place, as sed understands it: a new file under the old name."""
    subprocess.run(["sed", "-i", f"$c\\{text.splitlines()[-1]}", str(path)], check=True, timeout=30)


def test_the_next_call_after_a_save_is_the_new_code(
    runtime: PluginRuntime, main: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However an editor saves; each save is told and reloaded once."""
    saves: list[Callable[[Path, str], None]] = [in_place, by_rename, with_sed]
    if shutil.which("vim"):
        saves.append(with_vim)
    runtime.load_manifest(manifest)
    reloads: list[LifecycleEvent] = []
    runtime.on_event(lambda event: reloads.append(event) if isinstance(event, Reloaded) else None)
    printed = ""
    watcher = watch_plugins(runtime)
    try:
        for number, save in enumerate(saves, 2):
            assert runtime.call("example", "process", ["x"]) == [number - 1, "x"]
            save(main, says(number))
            wait_until(lambda number=number: runtime.call("example", "process", ["x"]) == [number, "x"])  # type: ignore[misc]
            # Longer than the watcher waits for silence: what it had to say of this save, it has said.
            time.sleep(0.8)
            printed += capsys.readouterr().out
            assert printed == "Reloading example\n" * (number - 1), save.__name__
            assert len(reloads) == number - 1
    finally:
        watcher.stop()
    assert runtime.get("example").state is LifecycleState.RUNNING


def test_what_editors_and_version_control_leave_beside_it_is_no_change(
    runtime: PluginRuntime, main: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``.git/x``, ``a.tmp`` and ``a.swp`` are not told; a changed submodule is, and a plugin may go and come back."""
    (main.parent / "part.py").write_text("WORD = 'old'\n")
    main.write_text("import part\ndef process(data):\n    return part.WORD\n")
    (main.parent / ".git").mkdir()
    runtime.load_manifest(manifest)
    watcher = watch_plugins(runtime)
    told: list[WatchEvent] = []
    watcher.on_change(told.append)
    try:
        for name in (".git/x", ".git/y.py", "a.tmp", "a.swp"):
            (main.parent / name).write_text("noise")
        (main.parent / "part.py").write_text("WORD = 'new'\n")
        wait_until(lambda: runtime.call("example", "process", ["x"]) == "new")
        wait_until(lambda: told)
        assert told == [WatchEvent.Modified(main.parent / "part.py")]
        assert capsys.readouterr().out == "Reloading example\n"

        aside = main.parents[2] / "aside"
        main.parent.rename(aside)
        wait_until(lambda: any(isinstance(event, WatchEvent.Removed) for event in told))
        assert runtime.call("example", "process", ["x"]) == "new"  # its files are gone, it is not
        aside.rename(main.parent)
        wait_until(lambda: any(isinstance(event, WatchEvent.Created) and event.path == main for event in told))
        (main.parent / "part.py").write_text("WORD = 'again'\n")
        wait_until(lambda: runtime.call("example", "process", ["x"]) == "again")
    finally:
        watcher.stop()


def test_three_writes_within_200_ms_are_one_event_at_700_ms(tmp_path: Path) -> None:
    """Half a second after the last one: by the clock exactly, in a real folder give or take a tenth."""
    clock = Clock()
    debouncer = Debouncer(WatchConfig().effective_debouncer(), clock=clock)
    path = tmp_path / "main.py"
    reported = []
    for milliseconds in range(2000):
        clock.now = 1000 + milliseconds / 1000
        if milliseconds in (0, 100, 200):
            debouncer.add(WatchEvent.Modified(path), "example")
        reported += [(milliseconds, events) for events in debouncer.ready()]
    assert reported == [(700, [WatchEvent.Modified(path)])]

    path.write_text("0")
    events: list[tuple[float, WatchEvent]] = []
    watcher = PluginWatcher(WatchConfig())
    watcher.on_change(lambda event: events.append((time.monotonic(), event)))
    seen = []
    with watcher.watch(tmp_path):
        for _attempt in range(8):  # a machine that stalls is no fault of the watcher's
            events.clear()
            began = time.monotonic()
            for number in range(3):
                time.sleep(max(0.0, began + number / 10 - time.monotonic()))
                path.write_text(str(number))
            late = time.monotonic() - began - 0.2
            wait_until(lambda: events)
            time.sleep(0.8)
            seen.append(events[0][0] - began)
            if late >= 0.05:
                continue
            assert [event for _, event in events] == [WatchEvent.Modified(path)]
            if 0.6 <= seen[-1] <= 0.8:
                return
    pytest.fail(f"the event came after {seen} seconds")


# --- broken saves -------------------------------------------------------------------------------------------


class Driven:
    """A driver of reloads of a real runtime, by a clock that is turned; and what came of it."""

    def __init__(self, runtime: PluginRuntime) -> None:
        self.clock = Clock()
        self.attempts: list[ReloadAttempt] = []
        self.driver = ReloadDriver(
            runtime, WatchConfig().backoff, clock=self.clock, record=self.attempts.append
        )

    def save(self) -> None:
        """Report a change, and do what is due at once."""
        self.driver.changed("example")
        while self.driver.pump():
            pass

    def run(self, seconds: float) -> list[float]:
        """Turn the clock on by so much; return when something was done meanwhile, from now, in milliseconds."""
        began, moments = self.clock.now, []
        while (due := self.driver.next_due()) is not None and due <= began + seconds:
            self.clock.now = due
            if self.driver.pump():
                moments.append(round((due - began) * 1000, 6))
        self.clock.now = began + seconds
        return moments

    def outcomes(self) -> list[ReloadOutcome]:
        """Return what came of the attempts since the last time."""
        attempts, self.attempts[:] = list(self.attempts), []
        return [attempt.outcome for attempt in attempts]


FAILED, SUCCEEDED, SKIPPED = ReloadOutcome.FAILED, ReloadOutcome.SUCCEEDED, ReloadOutcome.SKIPPED


def test_a_syntax_error_keeps_the_old_version_and_is_tried_five_times_more(
    runtime: PluginRuntime, main: Path, manifest: Path
) -> None:
    """After 100, 200, 400, 800 and 1600 ms, and not a sixth time; the next save begins anew."""
    assert WatchConfig().backoff == BackoffConfig.exponential(0.1, 30.0, 2.0, 5)
    runtime.load_manifest(manifest)
    pid = runtime.get("example").info().pid
    driven = Driven(runtime)
    main.write_text("def process(data)\n    return 2\n")
    for _save in range(2):
        driven.save()
        assert runtime.call("example", "process", ["x"]) == [1, "x"]
        (first,) = driven.attempts
        assert isinstance(first.error, ReloadFailed)
        assert "main.py:1:18: error: expected ':'" in str(first.error)
        assert driven.run(3600) == [100, 300, 700, 1500, 3100]  # each after the one before it
        assert [attempt.retry_in for attempt in driven.attempts] == [0.1, 0.2, 0.4, 0.8, 1.6, None]
        assert driven.outcomes() == [FAILED] * 6
    assert runtime.call("example", "process", ["x"]) == [1, "x"]
    assert runtime.get("example").info().pid == pid
    main.write_text(says(2))
    driven.save()
    assert driven.outcomes() == [SUCCEEDED]
    assert runtime.call("example", "process", ["x"]) == [2, "x"]


def test_a_failed_reload_is_an_event_whatever_is_wrong(runtime: PluginRuntime, main: Path, manifest: Path) -> None:
    """Code that does not compile, does not run through, has no export, does not start, or says that it is not well."""
    handle = runtime.load_manifest(manifest)
    events: list[LifecycleEvent] = []
    runtime.on_event(events.append)
    pid = handle.info().pid
    there = descendants(os.getpid())
    broken = [
        "def process(data)\n",
        "1 / 0\n",
        "def other(): pass\n",
        says(2) + "def init():\n    raise OSError('no init')\n",
        says(2) + "def start():\n    raise OSError('no start')\n",
        says(2) + "def health_check():\n    return False\n",
        says(2) + "def init():\n    import os; os._exit(3)\n",
    ]
    for code in broken:
        events.clear()
        main.write_text(code)
        with pytest.raises(ReloadFailed) as caught:
            runtime.reload_plugin("example")
        assert caught.value.plugin == "example"
        assert [type(event) for event in events] == [Error], code
        assert "reload of plugin 'example' failed" in events[0].message  # type: ignore[attr-defined]
        assert handle.call("process", ["x"]) == [1, "x"]
        assert handle.info().pid == pid
    assert handle.info().reload_count == 0
    wait_until(lambda: descendants(os.getpid()) <= there, what="the end of the workers that were no good")


def test_after_three_broken_saves_the_breaker_skips_and_after_60_s_it_tries_again(
    runtime: PluginRuntime, main: Path, manifest: Path
) -> None:
    """The version before answers all the while."""
    runtime.load_manifest(manifest)
    driven = Driven(runtime)
    main.write_text("def\n")
    for _save in range(3):
        driven.save()
    assert driven.outcomes() == [FAILED] * 3
    main.write_text(says(2))
    driven.save()
    assert driven.outcomes() == [SKIPPED]
    assert runtime.call("example", "process", ["x"]) == [1, "x"]
    assert driven.run(59) == []
    assert driven.outcomes() == []
    driven.run(2)
    assert driven.outcomes() == [SUCCEEDED]
    assert runtime.call("example", "process", ["x"]) == [2, "x"]
    assert driven.driver.health("example").failures == 3


def test_a_watcher_with_a_runtime_reloads_by_itself(runtime: PluginRuntime, main: Path, manifest: Path) -> None:
    """Source is compiled first, a manifest is reloaded in full; what is broken is told and tried again."""
    handle = runtime.load_manifest(manifest)
    attempts: list[ReloadAttempt] = []
    config = WatchConfig().with_debounce(0.05).with_backoff(BackoffConfig.exponential(0.05, 1.0, 2.0, 2))
    watcher = PluginWatcher(config, runtime).on_after_reload(lambda _name, attempt: attempts.append(attempt))
    with watcher.watch("plugins/"):
        by_rename(main, says(2))  # else what is half written may be looked at
        wait_until(lambda: len(attempts) == 1)
        assert (attempts[0].outcome, attempts[0].kind) == (SUCCEEDED, ReloadKind.SOURCE)
        assert handle.call("process", ["x"]) == [2, "x"]
        by_rename(main, "def process(data:\n")
        wait_until(lambda: len(attempts) == 4)
        assert [(attempt.outcome, type(attempt.error)) for attempt in attempts[1:]] == [(FAILED, ReloadFailed)] * 3
        assert handle.call("process", ["x"]) == [2, "x"]
        by_rename(main, says(3))
        wait_until(lambda: len(attempts) == 5)
        by_rename(manifest, manifest.read_text().replace("1.0.0", "1.1.0"))
        wait_until(lambda: len(attempts) == 6)
        assert [(attempt.outcome, attempt.kind) for attempt in attempts[4:]] == [
            (SUCCEEDED, ReloadKind.SOURCE), (SUCCEEDED, ReloadKind.FULL)]  # fmt: skip
    assert handle.call("process", ["x"]) == [3, "x"]
    assert handle.version == "1.1.0"


# --- calls and state meanwhile ------------------------------------------------------------------------------


def write_pair(folder: Path, number: int) -> None:
    """Write both modules with the same number, so that nobody reads one of each."""
    for name, text in (("part.py", f"NUMBER = {number}\n"), ("main.py", SLOW.format(number=number))):
        by_rename(folder / name, text)


def test_calls_in_flight_during_reloads_are_neither_lost_nor_mixed(
    runtime: PluginRuntime, main: Path, manifest: Path
) -> None:
    """A hundred at any time, during twenty reloads: each result is that of the version before or of the one after."""
    write_pair(main.parent, 0)
    handle = runtime.load_manifest(manifest)
    version = done = 0
    failures: list[BaseException] = []
    torn: list[object] = []
    counts = [0] * 100

    def keep_calling(who: int) -> None:
        number = 0
        while not done:
            earliest, number = version, number + 1
            try:
                before, after, echo = runtime.call("example", "process", [[who, number]])
            except BaseException as error:
                failures.append(error)
                return
            # A reload may have switched and not yet returned: the result may be one ahead of what we know.
            if before != after or before[0] != before[1] or not earliest <= before[0] <= version + 1:
                torn.append((earliest, before, after, version))
            if echo != [who, number]:
                torn.append((echo, who, number))
            counts[who] += 1

    threads = [threading.Thread(target=keep_calling, args=(who,)) for who in range(100)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: handle.lifecycle.calls_in_flight >= 90)
        for number in range(1, 21):
            write_pair(main.parent, number)
            assert handle.lifecycle.calls_in_flight > 0
            runtime.reload_plugin("example")
            version = number
        served = sum(counts)
        wait_until(lambda: sum(counts) > served + 100)  # calls still get through afterwards
    finally:
        done = 1
        for thread in threads:
            thread.join()
    assert failures == []
    assert torn == []
    assert handle.info().reload_count == 20
    assert handle.info().invocation_count == sum(counts)  # what was asked was answered, once
    assert min(counts) > 0
    assert handle.call("process", ["x"])[0] == [20, 20]


def test_a_counter_loses_no_increment_in_reloads(runtime: PluginRuntime, main: Path) -> None:
    """The state goes from each version to the next, with calls coming in all the while."""
    manifest = write_plugin(main.parent, COUNTER.format(number=0), exports=("process", "total"))
    runtime.load_manifest(manifest)
    done = False
    answers: list[list[list[int]]] = [[] for _ in range(16)]
    failures: list[BaseException] = []

    def keep_counting(mine: list[list[int]]) -> None:
        try:
            while not done:
                mine.append(runtime.call("example", "process", ["x"]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_counting, args=(mine,)) for mine in answers]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(answers))
        for number in range(1, 11):
            main.write_text(COUNTER.format(number=number))
            runtime.reload_plugin("example")
            time.sleep(random.Random(number).uniform(0, 0.02))
    finally:
        done = True
        for thread in threads:
            thread.join()
    assert failures == []
    counted = sorted(count for mine in answers for _, count in mine)
    assert counted == list(range(1, len(counted) + 1))  # each increment is there, none twice
    assert runtime.call("example", "total") == len(counted)
    # Nobody was answered by a version that had been replaced.
    assert all(mine == sorted(mine) for mine in answers)


def test_a_state_that_does_not_fit_keeps_the_old_version(runtime: PluginRuntime, main: Path) -> None:
    """It answers with its state as if nothing had been tried."""
    manifest = write_plugin(main.parent, COUNTER.format(number=0), exports=("process", "total"))
    runtime.load_manifest(manifest)
    assert runtime.call("example", "process", ["x"]) == [0, 1]
    main.write_text(COUNTER.format(number=1).replace('state["count"]', 'state["counts"]'))
    with pytest.raises(ReloadFailed, match="counts"):
        runtime.reload_plugin("example")
    assert runtime.call("example", "process", ["x"]) == [0, 2]


# --- many reloads -------------------------------------------------------------------------------------------


def reload_often(runtime: PluginRuntime, main: Path, manifest: Path, times: int) -> None:
    """Reload, and hold what the host has to what it had after the first few."""
    handle = runtime.load_manifest(manifest)
    own = psutil.Process()
    workers = 0
    for number in range(1, times + 1):
        main.write_text(says(number))
        runtime.reload_plugin("example")
        assert handle.call("process", ["x"]) == [number, "x"]
        pid = handle.info().pid
        assert pid is not None and handle.status() == Running(pid)
        if number == times // 4:
            fds, threads, memory = own.num_fds(), threading.active_count(), own.memory_info().rss
            workers = len(descendants(os.getpid()))
    wait_until(lambda: own.num_fds() <= fds, what="the end of descriptors")
    wait_until(lambda: threading.active_count() <= threads, what="the end of threads")
    wait_until(lambda: len(descendants(os.getpid())) <= workers, what="the end of the replaced workers")
    assert own.memory_info().rss - memory < 4 * 1024 * 1024
    assert handle.info().reload_count == times


@pytest.mark.parametrize("times", [60, pytest.param(200, marks=pytest.mark.soak)])
def test_many_reloads_leave_the_host_as_it_was(
    runtime: PluginRuntime, main: Path, manifest: Path, times: int
) -> None:
    """Descriptors, threads and memory stay flat, and there is one worker."""
    reload_often(runtime, main, manifest, times)
