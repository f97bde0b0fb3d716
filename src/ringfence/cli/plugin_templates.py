"""The files of a new plugin, as text: functions for each kind, and around them a module, a package or a program."""

import json
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from ringfence.cli.plugin_program import PROGRAM_HEAD, PROGRAM_TAIL
from ringfence.plugins.versions import HOST_API_VERSION

__all__ = ["EXECUTABLE", "package_name", "plugin_files"]

EXECUTABLE: Final = "plugin"
"""What the program of an executable plugin is called; it has to be executable."""


class _Kind(NamedTuple):
    """What a kind of plugin does in its first version: a description, exports, code, its test, and metadata."""

    description: str
    exports: tuple[str, ...]
    code: str
    test: str
    metadata: Mapping[str, str]
    example: str


_GREET: Final = '''\
def greet(name: str = "world") -> str:
    """Return a greeting."""
    return f"Hello, {name}!"
'''

_SCREEN: Final = '''\
keys: list[str] = []


def render(width: int, height: int) -> list[str]:
    """Return the lines to show, as many and as wide as there is room for."""
    shown = " ".join(keys[-width:]) or "press a key"
    return [line[:width] for line in ("NAME", shown)][:height]


def on_key(key: str) -> bool:
    """Take a key that was pressed; return whether there is something new to show."""
    keys.append(key)
    return True
'''

_COUNTING: Final = '''\
runs = 0


def collect() -> int:
    """Do one round of work; the host calls it every `interval` seconds. Return how many there were."""
    global runs
    runs += 1
    return runs


def report() -> dict[str, int]:
    """Return what has been done so far."""
    return {"runs": runs}


def health_check() -> bool:
    """Return whether all is well; a plugin that says False is started again."""
    return True
'''

_TEST_GREET: Final = '''\
def test_greets(plugin: PluginHandle) -> None:
    """It greets whoever is named."""
    assert plugin.call("greet", ["you"]) == "Hello, you!"
'''

_TEST_SCREEN: Final = '''\
def test_shows_what_was_pressed(plugin: PluginHandle) -> None:
    """A key that was pressed is on the screen, which is no larger than it was asked to be."""
    assert plugin.call("on_key", ["x"]) is True
    assert plugin.call("render", [20, 5]) == ["NAME", "x"]
    assert plugin.call("render", [2, 1]) == ["NAME"[:2]]
'''

_TEST_COUNTING: Final = '''\
def test_counts_its_rounds(plugin: PluginHandle) -> None:
    """Each round is counted, and it says that it is well."""
    assert plugin.call("collect") == 1
    assert plugin.call("report") == {"runs": 1}
    assert plugin.call("health_check") is True
'''

_KINDS: Final[Mapping[str, _Kind]] = {
    "generic": _Kind("Says hello.", ("greet",), _GREET, _TEST_GREET, {}, "greet you"),
    "ui": _Kind(
        "Shows which keys were pressed.",
        ("render", "on_key"),
        _SCREEN,
        _TEST_SCREEN,
        {"category": "ui", "interactive": "true"},
        "render 20 5",
    ),
    "daemon": _Kind(
        "Counts its rounds.",
        ("collect", "report", "health_check"),
        _COUNTING,
        _TEST_COUNTING,
        {"category": "daemon", "interactive": "false", "run-mode": "background", "interval": "60"},
        "report",
    ),
    "hybrid": _Kind(
        "Counts its rounds, and shows which keys were pressed.",
        ("collect", "report", "health_check", "render", "on_key"),
        f"{_COUNTING}\n\n{_SCREEN}",
        f"{_TEST_COUNTING}\n\n{_TEST_SCREEN}",
        {"category": "hybrid", "supports-ui": "true", "supports-daemon": "true", "interval": "60"},
        "render 20 5",
    ),
}

_TEST_HEAD: Final = '''\
"""The plugin does what its README says, locked in as it will be in its host."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringfence import PluginHandle, PluginRuntime


@pytest.fixture
def plugin() -> Iterator[PluginHandle]:
    """The plugin, running."""
    with PluginRuntime() as runtime:
        yield runtime.load_manifest(Path(__file__).parents[1])


'''

_README: Final = """\
# NAME

DESCRIPTION

| | |
| --- | --- |
| `plugin.toml` | what the plugin is called, offers and needs |
| `CODE` | WHAT |
| `tests/` | run with `pytest` |

```sh
ringfence plugin check .          # is everything in order?
ringfence plugin call . EXAMPLE
ringfence plugin watch .          # load it again whenever a file changes
ringfence plugin install .
```

The plugin runs in a locked-in process. It can read or reach nothing of the host until `capabilities` in `plugin.toml`
declares what it needs and whoever runs it grants that.
"""


def package_name(name: str) -> str:
    """Return the name of the package for a plugin: no module of the standard library may be called so."""
    made = name.replace("-", "_").strip("_")
    made = made if made.isidentifier() else f"_{made}"
    return f"{made}_plugin" if made in sys.stdlib_module_names or made in ("tests", "ringfence") else made


def plugin_files(name: str, kind: str, *, package: bool, executable: bool) -> dict[str, str]:
    """Return the files of a new plugin, by their names in its folder.

    Args:
        name: the plugin's, which keeps the rules for names.
        kind: generic, ui, daemon or hybrid.
        package: whether its code is a package of two modules.
        executable: whether it is a program instead.
    """
    chosen = _KINDS[kind]
    files: dict[str, str] = {}
    if executable:
        code = EXECUTABLE
        tail = PROGRAM_TAIL.replace("EXPORTS", ", ".join(chosen.exports) + ("," if len(chosen.exports) == 1 else ""))
        files[code] = PROGRAM_HEAD + chosen.code + tail
        what = "the program"
    elif package:
        folder = package_name(name)
        code, what = f"{folder}/__init__.py", "what it exports; the work is in `work.py` beside it"
        listed = ", ".join(f'"{export}"' for export in chosen.exports)
        names = ", ".join(sorted(chosen.exports))
        files[code] = f'"""NAME: {chosen.description}"""\n\nfrom .work import {names}\n\n__all__ = [{listed}]\n'
        files[f"{folder}/work.py"] = f'"""What the plugin does."""\n\n{_spaced(chosen.code)}'
    else:
        code, what = "plugin.py", "its functions"
        files[code] = f'"""NAME: {chosen.description}"""\n\n{_spaced(chosen.code)}'
    files["plugin.toml"] = _manifest(name, chosen, code, executable=executable)
    files["README.md"] = (
        _README.replace("DESCRIPTION", chosen.description).replace("CODE", code).replace("WHAT", what)
        .replace("EXAMPLE", chosen.example)
    )  # fmt: skip
    files["tests/test_plugin.py"] = _TEST_HEAD + chosen.test
    return {path: text.replace("NAME", name) for path, text in files.items()}


def _spaced(code: str) -> str:
    # Two lines before a function, one before anything else.
    return f"\n{code}" if code.startswith("def ") else code


def _manifest(name: str, kind: _Kind, code: str, *, executable: bool) -> str:
    api = HOST_API_VERSION
    lines = [
        f'name = "{name}"',
        'version = "0.1.0"',
        f'description = "{kind.description}"',
        f"api-version = {{ major = {api.major}, minor = {api.minor}, patch = {api.patch} }}",
    ]
    if executable:
        lines += ['runtime = "executable"', f'program = "{code}"', 'protocol = "json"']
    else:
        lines += [f'source = "{code}"']
    lines += [f"exports = {json.dumps(kind.exports)}", "capabilities = []"]
    if kind.metadata:
        lines += ["", "[metadata]", *(f'{key} = "{value}"' for key, value in kind.metadata.items())]
    return "\n".join(lines) + "\n"
