"""What becomes of a plugin's exceptions and results: records, whatever the plugin tries."""

import signal
from typing import Any

import pytest
from guest_peer import Peer, settings

from ringfence.ipc import guest_messages as g

_SOURCE = """
    import asyncio, enum, os, sys
    class Mute(Exception):
        def __str__(self): raise RuntimeError("no")
    class Huge(Exception):
        def __str__(self): return "x" * 10**7
    class Base(BaseException): pass
    class Frozen(BaseException):
        __slots__ = ()
        def __getattribute__(self, name): raise Frozen(name)
        def __setattr__(self, name, value): raise Frozen(name)
        @property
        def __notes__(self): raise Frozen()
    def fail(name): raise globals()[name]()
    def builtin(name, *args):
        import builtins
        raise getattr(builtins, name)(*args)
    def quits(): sys.exit(3)
    def noted():
        error = ValueError("bad", 3); error.add_note("look here"); raise error
    def grouped(): raise ExceptionGroup("several", [ValueError(1), ExceptionGroup("more", [KeyError("x")])])
    def chained():
        try: inner()
        except KeyError as error: raise ValueError("outer") from error
    def inner(): {}["x"]
    async def failing():
        await asyncio.sleep(0)
        inner()
    def result(kind):
        class Shade(enum.Enum): RED = 1
        nested = value = []
        for _ in range(200): nested.append([]); nested = nested[0]
        circle = []; circle.append(circle)
        return {"generator": (n for n in ()), "object": {"a": [1, object()]}, "int": 2**200, "deep": value,
                "circle": circle, "subclass": {"x": True and type("S", (str,), {})()}, "function": result,
                "coroutine": [failing], "surrogate": "\\ud800", "enum": Shade.RED, "module": sys}[kind]
    def large(size): return b"x" * size
    def ok(): return "fine"
    def memory(): return bytearray(1 << 62)
    def crash():
        import faulthandler
        faulthandler._sigsegv()
    def leave(): os._exit(7)
"""


def _line(text: str) -> int:
    """Return the number of the plugin's line that contains this."""
    return next(number for number, line in enumerate(_SOURCE.splitlines(), 1) if text in line)


@pytest.fixture(scope="module")
def module_peer() -> Any:
    """Return one guest for all tests here: none of its failures may end it."""
    with Peer(settings(_SOURCE)) as made:
        assert made.loaded[0] == g.LOADED, made.loaded
        yield made


@pytest.fixture
def peer(module_peer: Peer) -> Any:
    """Return the guest, which answers after each test as before it."""
    yield module_peer
    assert module_peer.call("ok") == "fine"


def test_an_exception_is_told_with_the_plugins_frames_only(peer: Peer) -> None:
    """Class, arguments, notes; file and line of the plugin, nothing of ours."""
    record = peer.fail("noted")
    assert (record["kind"], record["type"], record["args"]) == ("exception", "ValueError", ["bad", 3])
    assert record["notes"] == ["look here"]
    lines = record["traceback"].splitlines()
    assert [line for line in lines if line.startswith("  File")] == [
        f'  File "/plugins/example/plugin.py", line {_line("look here")}, in noted'
    ]
    assert lines[-2:] == ["ValueError: ('bad', 3)", "look here"]


def test_causes_are_kept(peer: Peer) -> None:
    """`raise ... from` reads as it would have at home."""
    text = peer.fail("chained")["traceback"]
    assert "KeyError: 'x'" in text
    assert "direct cause" in text
    assert "ringfence" not in text


def test_groups_are_kept(peer: Peer) -> None:
    """With their members, as records."""
    record = peer.fail("grouped")
    assert record["type"] == "ExceptionGroup"
    assert [member["type"] for member in record["group"]] == ["ValueError", "ExceptionGroup"]
    assert record["group"][1]["group"][0]["args"] == ["x"]


def test_a_coroutines_traceback_begins_in_the_plugin(peer: Peer) -> None:
    """Not in the event loop."""
    lines = [line for line in peer.fail("failing")["traceback"].splitlines() if line.startswith("  File")]
    assert lines == [
        f'  File "/plugins/example/plugin.py", line {_line("async def failing") + 2}, in failing',
        f'  File "/plugins/example/plugin.py", line {_line("def inner")}, in inner',
    ]


@pytest.mark.parametrize("name", ["Mute", "Huge", "Base", "Frozen"])
def test_hostile_exceptions_end_their_call_only(peer: Peer, name: str) -> None:
    """One that has no text, or far too much, or is not even an Exception."""
    record = peer.fail("fail", name)
    assert record["type"] == name
    assert len(record["message"]) < 100_000


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration"])
def test_exceptions_that_end_programs_end_a_call(peer: Peer, name: str) -> None:
    """They are told like any other."""
    assert peer.fail("builtin", name)["type"] == name


def test_exit_ends_a_call(peer: Peer) -> None:
    """sys.exit() in a function of a plugin is not the plugin's end."""
    record = peer.fail("quits")
    assert (record["type"], record["args"]) == ("SystemExit", [3])


def test_no_memory_is_a_kind_of_its_own(peer: Peer) -> None:
    """The host knows the limit that it stands for."""
    assert peer.fail("memory")["kind"] == "memory"


def test_arguments_that_do_not_fit_are_a_type_error(peer: Peer) -> None:
    """Without a traceback: no line of the plugin was run."""
    record = peer.fail("ok", 1)
    assert record["type"] == "TypeError"
    assert record["traceback"] == f"TypeError: {record['message']}\n"


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("generator", "result (generator)"),
        ("object", "result['a'][1] (object)"),
        ("deep", "nested deeper"),
        ("circle", "result"),
        ("subclass", "result['x']"),
        ("function", "result (function)"),
        ("coroutine", "result[0] (function)"),
        ("enum", "result"),
        ("module", "result (module)"),
    ],
)
def test_results_that_are_no_plain_values_are_named(peer: Peer, kind: str, path: str) -> None:
    """The part that is at fault, and nothing of how it was found."""
    record = peer.fail("result", kind)
    assert (record["kind"], record["type"]) == ("unserializable", "NotSerializable")
    assert path in record["message"]
    assert len(record["traceback"].splitlines()) == 1


@pytest.mark.parametrize("kind", ["int", "surrogate"])
def test_results_that_the_codec_takes_arrive(peer: Peer, kind: str) -> None:
    """Large integers and lone surrogates do."""
    assert peer.call("result", kind) == {"int": 2**200, "surrogate": "\ud800"}[kind]


def test_a_result_larger_than_a_frame_is_named(peer: Peer) -> None:
    """It is answered with an error, and not left unanswered."""
    record = peer.fail("large", 65 << 20)
    assert record["kind"] == "unserializable"
    assert "larger than the limit" in record["message"]
    assert len(peer.call("large", 1 << 20)) == 1 << 20


def test_a_crash_leaves_its_stack_on_stderr() -> None:
    """The last that it writes, so that the host can show it."""
    with Peer(settings(_SOURCE)) as peer:
        peer.start("crash")
        text = peer.stderr_until("in crash")
        assert "Fatal Python error: Segmentation fault" in text
        assert 'File "/plugins/example/plugin.py"' in text
        assert peer.process.wait(20) == -signal.SIGSEGV


def test_exiting_by_force_is_the_hosts_to_see() -> None:
    """The process is gone, with its code."""
    with Peer(settings(_SOURCE)) as peer:
        peer.start("leave")
        assert peer.process.wait(20) == 7
