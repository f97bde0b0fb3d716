"""Plugins that are programs of their own: started in the sandbox, spoken to, and seen to their end."""

import datetime
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from ringfence import Pool
from ringfence.ipc import guest_messages as g
from ringfence.ipc.channel import Channel
from ringfence.ipc.codec import Codec
from ringfence.ipc.errors import ChannelClosed
from ringfence.plugins.config import LoaderConfig
from ringfence.plugins.errors import ExecutionFailed, FunctionNotFound
from ringfence.plugins.loader import PluginLoader
from ringfence.plugins.programs import describe_program
from ringfence.pool.session import Session
from ringfence.worker.program import run_program

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"

needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
needs_make = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler or no make")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node")


class Talk:
    """The host's side of one conversation."""

    def __init__(self, session: Session, channel: Channel) -> None:
        self.session = session
        self._channel = channel
        self._codec = Codec()
        self._dialogue = g.Dialogue()

    def say(self, *message: Any) -> None:
        """Send a message."""
        self._channel.send(self._codec.pack(list(message)))

    def hear(self) -> list[Any]:
        """Return the next message, checked as the host checks it."""
        return self._dialogue.hear(self._codec.unpack(self._channel.recv(time.monotonic() + 30)))

    def ask(self, *message: Any) -> list[Any]:
        """Send a message and return the next one."""
        self.say(*message)
        return self.hear()

    def load(self) -> dict[str, Any]:
        """Greet and load; return what the program says it has."""
        assert self.hear()[:2] == [g.HELLO, g.PROTOCOL_VERSION]
        tag, told = self.ask(g.LOAD, {"name": "program", "version": "1.0.0", "config": {}})
        assert tag == g.LOADED
        return dict(told["functions"])

    def hang_up(self) -> None:
        """Close the host's end."""
        self._channel.close()

    def ended(self) -> dict[str, Any]:
        """Return how the program ended."""
        return dict(self.session.ended.result(30))


@contextmanager
def running(
    path: Path, wire: str = "msgpack", *arguments: str, output: list[bytes] | None = None, **environment: str
) -> Iterator[Talk]:
    """Start the program in a worker that has the grants it takes, and no other."""
    path.parent.chmod(0o755)
    program = describe_program(path, path.parent)
    with Pool(1, isolation="session", capabilities=program.grants) as pool:
        session = pool.open_session(
            run_program,
            [*program.argv, *arguments],
            str(path.parent),
            environment,
            wire,
            on_output=lambda _, data: output.append(data) if output is not None else None,
        )
        with Channel(session.fd) as channel:
            yield Talk(session, channel)
        session.kill()


def script(folder: Path, text: str) -> Path:
    """Write a shell script, which speaks JSON with what the shell itself can do."""
    path = folder / "plugin.sh"
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """The C example, built by its own Makefile."""
    folder = tmp_path / "shout-c"
    shutil.copytree(EXAMPLES / "shout-c", folder)
    subprocess.run(["make", "-s"], cwd=folder, check=True, timeout=60)
    return folder / "shout"


@needs_make
def test_a_program_in_c(compiled: Path) -> None:
    """It greets, loads, answers calls, refuses what it does not know, and stops when told to."""
    with running(compiled) as talk:
        assert talk.load() == {"shout": "(text: str) -> str"}
        assert talk.ask(g.CALL, 1, "shout", ["hello, world"], {}) == [g.RESULT, 1, "HELLO, WORLD"]
        assert talk.ask(g.CALL, 2, "shout", ["x" * 300_000], {}) == [g.RESULT, 2, "X" * 300_000]
        for args in ([], [1], ["a", "b"], [None]):
            tag, call, record = talk.ask(g.CALL, 3, "shout", args, {})
            assert (tag, call, record["type"]) == (g.ERROR, 3, "TypeError")
        assert talk.ask(g.CALL, 4, "whisper", ["a"], {})[2]["type"] == "LookupError"
        for number in range(5, 50):  # several at a time: answered in order
            talk.say(g.CALL, number, "shout", [f"a{number}"], {})
        assert [talk.hear()[2] for _ in range(5, 50)] == [f"A{number}" for number in range(5, 50)]
        assert talk.ask(g.STOP) == [g.BYE]
        assert talk.ended() == {"exit_code": 0, "signal": None, "violation": None}


@needs_make
@pytest.mark.parametrize("body", [b"\x90", b"\x91\xc0", b"\x93\x02\x01", b"\x95\x02\x01\xa9sho", b"\xc1", b"\xdd"])
def test_the_c_example_survives_no_nonsense(compiled: Path, body: bytes) -> None:
    """A frame that makes no sense ends it with an error of its own, and not with a signal."""
    near, far = socket.socketpair()
    with near, far:
        near.sendall(len(body).to_bytes(4, "big") + body)
        # The shell puts the socket where the program looks for it.
        command = ["sh", "-c", f"exec {compiled} 3<&0"]
        done = subprocess.run(command, stdin=far, stderr=subprocess.PIPE, check=False, timeout=30)
    assert done.returncode == 70
    assert done.stderr.decode().removeprefix("shout: a ").strip() in (
        "frame that ends too soon", "frame that is no message", "call without its number or name",
    )  # fmt: skip


@needs_node
def test_a_program_in_javascript(tmp_path: Path) -> None:
    """The example that speaks lines of JSON: calls, errors of its own kinds, a log record, the end."""
    path = Path(shutil.copy(EXAMPLES / "shout-node" / "shout.js", tmp_path))
    with running(path, "json") as talk:
        assert talk.load() == {"shout": "(text: str) -> str", "count": "(items: list) -> int"}
        assert talk.ask(g.CALL, 1, "shout", ["h\xe9llo \u2028\n"], {}) == [g.RESULT, 1, "H\xc9LLO \u2028\n"]
        assert talk.ask(g.CALL, 2, "count", [[1, 2.5, None, b"\xff", {"a": True}]], {})[:2] == [g.LOG, 2]
        assert talk.hear() == [g.RESULT, 2, 5]
        assert talk.ask(g.CALL, 3, "shout", [1], {})[2]["type"] == "TypeError"
        assert talk.ask(g.CALL, 4, "constructor", [], {})[2]["type"] == "RangeError"
        assert talk.ask(g.STOP) == [g.BYE]
        assert talk.ended() == {"exit_code": 0, "signal": None, "violation": None}


GREETING = """
echo '{"type":"hello","protocol":1,"runtime":"sh"}' >&3
while read -r line <&3; do
    case $line in
    *'"type":"load"'*) echo '{"type":"loaded","functions":["act"]}' >&3 ;;
    *'"type":"stop"'*) echo '{"type":"bye"}' >&3; exit 0 ;;
    *'"type":"call"'*) ACT ;;
    esac
done
exit 4
"""


def acting(folder: Path, action: str) -> Path:
    """Return a shell script that does something when it is called."""
    return script(folder, GREETING.replace("ACT", action))


def test_a_shell_script(tmp_path: Path) -> None:
    """Answers need no number when there is one call at a time; the script asks its host in between."""
    path = acting(
        tmp_path,
        'echo \'{"type":"host_call","id":1,"call":1,"function":"add","args":[{"Int":2},{"Int":3}]}\' >&3; '
        'read -r line <&3; case $line in *\'"Int":5\'*) '
        'echo \'{"type":"result","value":{"String":"processed"}}\' >&3 ;; esac',
    )
    with running(path, "json") as talk:
        assert talk.load() == {"act": None}
        assert talk.ask(g.CALL, 1, "act", ["data"], {}) == [g.HOST_CALL, 1, 1, "add", [2, 3], {}]
        assert talk.ask(g.HOST_RESULT, 1, 5) == [g.RESULT, 1, "processed"]
        assert talk.ask(g.STOP) == [g.BYE]
        assert talk.ended()["exit_code"] == 0


def test_a_program_knows_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts in its folder; its environment has the descriptor, the protocol, what it was given, and no more."""
    monkeypatch.setenv("RINGFENCE_TEST_SECRET", "s3cret")
    output: list[bytes] = []
    path = script(tmp_path, 'pwd; echo "$RINGFENCE_FD $RINGFENCE_PROTOCOL $GIVEN-$RINGFENCE_TEST_SECRET-$1"; set\n')
    with running(path, "json", "argument", output=output, GIVEN="yes") as talk:
        assert talk.ended()["exit_code"] == 0
    text = b"".join(output).decode()
    assert text.startswith(f"{tmp_path}\n3 1 yes--argument\n")
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("action", "ended"),
    [
        ("exit 7", {"exit_code": 7, "signal": None, "violation": None}),
        ("kill -TERM $$", {"exit_code": None, "signal": signal.SIGTERM, "violation": None}),
    ],
)
def test_how_it_ended_is_told(tmp_path: Path, action: str, ended: dict[str, Any]) -> None:
    """In the middle of a call: the host sees the end of the stream, and then the exit code or the signal."""
    with running(acting(tmp_path, action), "json") as talk:
        talk.load()
        talk.say(g.CALL, 1, "act", [], {})
        with pytest.raises(ChannelClosed):
            talk.hear()
        assert talk.ended() == ended


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("no json at all", "no JSON"),
        ('{"type":"call","id":1}', "a message is a map"),
        ('{"type":"result","id":1,"value":"bare"}', "a value is a map"),
        ('{"type":"log","level":"loud","message":"m"}', "level"),
    ],
)
def test_a_wrong_line_ends_the_program(tmp_path: Path, line: str, what: str) -> None:
    """It is killed, and what was wrong with its line is told."""
    with running(acting(tmp_path, f"echo '{line}' >&3; read -r line <&3; read -r line"), "json") as talk:
        talk.load()
        talk.say(g.CALL, 1, "act", [], {})
        with pytest.raises(ChannelClosed):
            talk.hear()
        ended = talk.ended()
        assert what in ended["violation"]


def test_a_value_without_json_is_answered_in_its_place(tmp_path: Path) -> None:
    """The program is not asked: the call fails with the type that JSON does not have; the next one works."""
    path = acting(tmp_path, 'echo \'{"type":"result","value":{"Int":1}}\' >&3')
    with running(path, "json") as talk:
        talk.load()
        tag, call, record = talk.ask(g.CALL, 1, "act", [datetime.date.today()], {})
        assert (tag, call, record["type"]) == (g.ERROR, 1, "TypeError")
        assert "date" in record["message"]
        assert talk.ask(g.CALL, 2, "act", [], {}) == [g.RESULT, 2, 1]


@pytest.mark.parametrize("wire", ["msgpack", "json"])
def test_a_host_that_hangs_up_ends_the_stream(tmp_path: Path, wire: str) -> None:
    """The program reads its end, and may leave by the book."""
    with running(script(tmp_path, "read -r line <&3; exit 5\n"), wire) as talk:
        talk.hang_up()
        assert talk.ended() == {"exit_code": 5, "signal": None, "violation": None}


def test_a_program_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    """One that the grants do not reach is refused by the sandbox, as the session's own failure."""
    path = script(tmp_path, "exit 0\n")
    tmp_path.chmod(0o755)
    with Pool(1, isolation="session", capabilities=["process:exec=/bin/sh", f"fs:read={tmp_path}"]) as pool:
        session = pool.open_session(run_program, [str(path)], None, {}, "msgpack")
        os.close(session.fd)
        with pytest.raises(PermissionError):
            session.ended.result(30)
    with Pool(1, isolation="session") as pool:
        session = pool.open_session(run_program, ["/bin/sh", "-c", "exit 0"], None, {}, "json")
        os.close(session.fd)
        with pytest.raises(PermissionError, match="process:exec"):
            session.ended.result(30)


@pytest.mark.parametrize(
    "name", [pytest.param("shout-c", marks=needs_make), pytest.param("shout-node", marks=needs_node)]
)
def test_the_examples_load_as_plugins(tmp_path: Path, name: str) -> None:
    """From their manifests, under the default configuration, they are called as any plugin is."""
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder)
    if (folder / "Makefile").exists():
        subprocess.run(["make", "-s"], cwd=folder, check=True, timeout=60)
    tmp_path.chmod(0o755)
    folder.chmod(0o755)
    loader = PluginLoader(LoaderConfig())
    plugin = loader.load_from_manifest(folder / "plugin.toml")
    try:
        assert plugin.call("shout", ["hello"]) == "HELLO"
        with pytest.raises(ExecutionFailed, match="one text"):
            plugin.call("shout", [3])
        with pytest.raises(FunctionNotFound):
            plugin.call("whisper", ["hello"])
    finally:
        plugin.lifecycle.unload()
        loader.around.close()


PROBE = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count > 1 && strcmp(words[1], "flood") == 0) {
        char piece[65536];
        memset(piece, 'x', sizeof piece);
        while (write(3, piece, sizeof piece) > 0);
        return 9;
    }
    for (int fd = 0; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0) printf("%d ", fd);
    printf("| %d %d", open("/etc/passwd", O_RDONLY), socket(AF_INET, SOCK_STREAM, 0));
    printf(" %d\n", execl("/bin/true", "true", (char *)0));
    return 0;
}
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A program that says what it can reach, or floods its host."""
    (tmp_path / "probe.c").write_text(PROBE)
    subprocess.run(["cc", "-w", "-o", tmp_path / "probe", tmp_path / "probe.c"], check=True, timeout=60)
    return tmp_path / "probe"


@needs_cc
@pytest.mark.parametrize("wire", ["msgpack", "json"])
def test_a_program_has_the_socket_and_nothing_else(probe: Path, wire: str) -> None:
    """Descriptors 0 to 3 and no other; no file of the host's, no network, no other program."""
    output: list[bytes] = []
    with running(probe, wire, output=output) as talk:
        assert talk.ended()["exit_code"] == 0
    wait_until(lambda: b"".join(output) == b"0 1 2 3 | -1 -1 -1\n")  # another thread may be about to tell it


@needs_cc
def test_a_line_without_end_is_cut_off(probe: Path) -> None:
    """The worker keeps no more of it than a line may have, and ends the program; the host hears nothing of it."""
    with running(probe, "json", "flood") as talk:
        with pytest.raises(ChannelClosed):
            talk.hear()
        ended = talk.ended()
        assert "a line of more than" in ended["violation"]
