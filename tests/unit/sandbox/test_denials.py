"""Denials: the right name for a refusal, and silence for everything else."""

import errno
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

import pytest

from ringfence.sandbox.announced import install_audit_hook
from ringfence.sandbox.denials import Event, Refusals
from ringfence.sandbox.errors import CapabilityDenied


def _refused(number: int, filename: Any = None, kind: type[OSError] | None = None) -> OSError:
    """Raise and catch, so that the error has a place it came from."""
    try:
        if kind is not None:
            raise kind(number, "refused")
        raise OSError(number, os.strerror(abs(number)), filename)
    except OSError as error:
        return error


def _event(error: OSError, name: str, *args: Any) -> Event:
    """Return an announcement made by the instruction that raised."""
    trace = error.__traceback__
    assert trace is not None
    return Event(name, args, trace.tb_frame.f_code, trace.tb_lasti)


def _refusals(*grants: str, private_root: bool = False) -> Refusals:
    return Refusals(grants, private_root=private_root, own=("/own",), readable=("/lib/python",))


_CASES = [
    ("open", ("/etc/x", "r", 0), "/etc/x", errno.EACCES, "open('/etc/x') needs fs:read=/etc/x"),
    ("open", ("/etc/x", "w", 0), "/etc/x", errno.EPERM, "open('/etc/x') needs fs:write=/etc/x"),
    ("open", ("/etc/x", "r+", 0), "/etc/x", errno.EROFS, "open('/etc/x') needs fs:write=/etc/x"),
    ("open", ("/etc/x", None, os.O_CREAT), "/etc/x", errno.EPERM, "open('/etc/x') needs fs:write=/etc/x"),
    ("open", ("/own/x", "w", 0), "/own/x", errno.EPERM, "open('/own/x') needs fs:write;"),
    ("os.listdir", ("/etc",), "/etc", errno.EACCES, "os.listdir('/etc') needs fs:read=/etc"),
    ("os.scandir", (b"/etc",), b"/etc", errno.EACCES, "os.scandir('/etc') needs fs:read=/etc"),
    ("os.mkdir", ("/srv/x", 511, -1), "/srv/x", errno.EPERM, "os.mkdir('/srv/x') needs fs:write=/srv/x"),
    ("os.rename", ("/srv/x", "/srv/y", -1, -1), "/srv/x", errno.EPERM, "needs fs:write=/srv/y"),
    ("os.remove", ("/srv/x", -1), "/srv/x", errno.EPERM, "os.remove('/srv/x') needs fs:delete=/srv/x"),
    ("os.rmdir", ("/srv/x", -1), "/srv/x", errno.EPERM, "os.rmdir('/srv/x') needs fs:delete=/srv/x"),
    ("os.symlink", ("/a", "/srv/x", -1), "/a", errno.EPERM, "no capability makes links"),
    ("os.chmod", ("/srv/x", 420, -1), "/srv/x", errno.EPERM, "os.chmod('/srv/x') needs fs:metadata"),
    ("socket.__new__", (-1, -1), None, errno.EPERM, "socket.socket('AF_INET') needs net:request"),
    ("socket.__new__", (2, 2), None, errno.EPERM, "socket.socket('AF_INET, SOCK_DGRAM') needs net:dns"),
    ("socket.__new__", (1, 1), None, errno.EPERM, "no capability opens AF_UNIX sockets"),
    ("socket.__new__", (2, 3), None, errno.EPERM, "no capability opens such sockets"),
    ("socket.connect", (("1.2.3.4", 443),), None, errno.EACCES, "'1.2.3.4:443') needs net:request=:443"),
    ("socket.bind", (("", 80),), None, errno.EACCES, "needs net:listen=80"),
    ("socket.getaddrinfo", ("example.com",), None, -3, "'example.com') needs net:dns"),
    ("subprocess.Popen", ("ls",), None, errno.EPERM, "subprocess.Popen('ls') needs process:exec"),
    ("os.exec", ("/bin/ls",), "/bin/ls", errno.EACCES, "os.execv('/bin/ls') needs process:exec=/"),
    ("os.fork", (), None, errno.EAGAIN, "os.fork needs process:exec"),
    ("os.fork", (), None, errno.ENOSYS, "os.fork needs process:exec"),
    ("os.kill", (1,), None, errno.EPERM, "os.kill('1') needs process:exec"),
]


@pytest.mark.parametrize(("name", "args", "filename", "number", "said"), _CASES)
def test_refusal_is_named(name: str, args: tuple[Any, ...], filename: Any, number: int, said: str) -> None:
    """Each kind of refused operation names itself, its target, and the grant it takes."""
    error = _refused(number, filename, socket.gaierror if number < 0 else None)
    denied = _refusals("fs:read=/data").explain(error, [_event(error, name, *args)])
    assert isinstance(denied, CapabilityDenied)
    assert said in str(denied)


@pytest.mark.parametrize(("name", "args", "filename", "number", "said"), _CASES)
def test_trusted_worker_has_no_denials(
    name: str, args: tuple[Any, ...], filename: Any, number: int, said: str
) -> None:
    """Where everything is granted, a refusal is the host's own and stays what it is."""
    from ringfence.sandbox.profiles import load_profile

    error = _refused(number, filename, socket.gaierror if number < 0 else None)
    refusals = Refusals(load_profile("trusted").capabilities)
    assert refusals.explain(error, [_event(error, name, *args)]) is None


def test_message_lists_what_is_granted_instead() -> None:
    """The message shows the grants of the same kind."""
    error = _refused(errno.EACCES, "/etc/passwd")
    denied = _refusals("fs:read=/data").explain(error, [_event(error, "open", "/etc/passwd", "r", 0)])
    assert str(denied) == "open('/etc/passwd') needs fs:read=/etc/passwd; this worker has fs:read=/data"


@pytest.mark.parametrize(
    ("grant", "name", "args", "filename", "number"),
    [
        ("fs:read=/data", "open", ("/data/x", "r", 0), "/data/x", errno.EACCES),
        ("fs:read", "open", ("/own/x", "r", 0), "/own/x", errno.EACCES),
        ("random", "open", ("/lib/python/x.py", "r", 0), "/lib/python/x.py", errno.EACCES),
        ("fs:write", "os.remove", ("/own/x", -1), "/own/x", errno.EPERM),
        ("fs:write=/out", "open", ("/out/x", "w", 0), "/out/x", errno.EACCES),
        ("net:request=:443", "socket.connect", (("h", 443),), None, errno.EACCES),
        ("net:request=:443", "socket.__new__", (2, 1), None, errno.EACCES),
        ("net:listen", "socket.__new__", (2, 1), None, errno.EPERM),
        ("net:dns", "socket.getaddrinfo", ("nope.example",), None, -2),
        ("random", "socket.getaddrinfo", ("127.0.0.1",), None, -2),
        ("random", "socket.getaddrinfo", ("example.com",), None, -8),
        ("process:exec", "os.fork", (), None, errno.EAGAIN),
        ("process:exec=/usr/bin/git", "subprocess.Popen", ("git",), None, errno.EACCES),
        ("random", "open", ("/etc/x", "r", 0), "/etc/x", errno.ENOENT),
        ("random", "open", (3, "r", 0), 3, errno.EACCES),
        ("random", "open", ("x", None, 0), "x", errno.EACCES),
        ("random", "os.remove", ("x", 7), "x", errno.EACCES),
        ("random", "socket.connect", ("/run/x.sock",), None, errno.EACCES),
        ("random", "socket.bind", (("", 99999),), None, errno.EACCES),
        ("random", "open", ("/a\0b", "r", 0), "/a\0b", errno.EACCES),
    ],
)
def test_ordinary_errors_stay_ordinary(
    grant: str, name: str, args: tuple[Any, ...], filename: Any, number: int
) -> None:
    """What is granted, unknown, or no refusal at all is never blamed on the sandbox."""
    error = _refused(number, filename, socket.gaierror if number < 0 else None)
    assert _refusals(grant).explain(error, [_event(error, name, *args)]) is None


def test_an_error_from_elsewhere_is_not_explained_by_an_old_event() -> None:
    """Only the instruction that announced the operation can have been refused it."""
    first, second = _refused(errno.EPERM), _refused(errno.EPERM)
    other = _event(first, "os.fork")._replace(instruction=-5)
    assert _refusals().explain(second, [other]) is None
    assert _refusals().explain(second, [_event(second, "open", "/etc/x", "r", 0)._replace(code=None)]) is None
    named = _refused(errno.EACCES, "/etc/one")
    assert _refusals().explain(named, [_event(named, "open", "/etc/other", "r", 0)]) is None


def test_later_events_do_not_hide_the_refusal() -> None:
    """Clean-up on the way out announces operations too; the one that was refused is still found."""
    error = _refused(errno.EACCES, "/etc/x")
    events = [Event("os.remove", ("/own/tmp", -1)), _event(error, "open", "/etc/x", "r", 0)]
    assert _refusals().explain(error, events) is not None


@pytest.mark.parametrize("error", [ValueError("x"), OSError("no errno"), KeyboardInterrupt()])
def test_other_exceptions_are_left_alone(error: BaseException) -> None:
    """Only operating-system errors and those in the table are refusals."""
    assert _refusals().explain(error, []) is None
    assert _refusals().hint(error, []) is None


def test_a_denial_explains_itself_and_travels() -> None:
    """A denial is passed on as it is, and survives pickling whole."""
    denied = CapabilityDenied("fs:read", "open", "/x", needs="fs:read=/x", granted=["fs:read"], note="n")
    assert _refusals().explain(denied) is denied
    copy = pickle.loads(pickle.dumps(denied))
    assert (str(copy), copy.capability, copy.operation, copy.target) == (str(denied), "fs:read", "open", "/x")
    assert copy.errno == errno.EPERM and copy.filename == "/x"
    assert isinstance(copy, PermissionError)


def test_hidden_path_is_refused_only_behind_a_private_root() -> None:
    """There an ungranted path does not exist, which says nothing of what is outside: the grant is what is missing."""
    error = _refused(errno.ENOENT, "/etc/passwd")
    event = [_event(error, "open", "/etc/passwd", "r", 0)]
    hidden = _refusals("fs:read=/data", private_root=True)
    assert str(hidden.explain(error, event)).endswith("needs fs:read=/etc/passwd; this worker has fs:read=/data")
    visible = _refusals("fs:read=/data")
    assert visible.explain(error, event) is None and visible.hint(error, event) is None


def test_a_missing_file_that_code_itself_reports_is_left_alone() -> None:
    """Who raises FileNotFoundError in Python has a reason of its own; a note says what may be behind it."""
    error = _refused(errno.ENOENT, "/etc/passwd")
    hidden = _refusals("fs:read=/data", private_root=True)
    assert hidden.explain(error, []) is None
    assert "reading it needs fs:read=/etc/passwd" in str(hidden.hint(error, []))


@pytest.mark.parametrize("path", ["/data/x", "relative", "/own/x", "/lib/python/x", 3, None])
def test_ordinary_missing_files_get_no_hint(path: Any) -> None:
    """A file that is missing where everything is visible is just missing."""
    assert _refusals("fs:read=/data", private_root=True).hint(_refused(errno.ENOENT, path), []) is None


def test_hint_finds_the_refusal_inside_another_exception() -> None:
    """A library's own exception keeps its type; the refusal it was made of is told in a note."""
    inner = _refused(errno.EPERM)
    outer = RuntimeError("fetch failed", inner)
    assert "socket.socket('AF_INET') needs net:request" in str(
        _refusals().hint(outer, [_event(inner, "socket.__new__", -1, -1)])
    )
    outer.__cause__ = outer
    assert _refusals().hint(outer, []) is None


def test_links_are_judged_by_where_they_lead(tmp_path: Any) -> None:
    """A link out of a granted folder is not granted; a granted link's target is."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    out = tmp_path / "real" / "out"
    out.symlink_to("/etc/passwd")
    refusals = _refusals(f"fs:read={tmp_path}/link")
    inside = _refused(errno.EACCES, f"{tmp_path}/real/x")
    assert refusals.explain(inside, [_event(inside, "open", inside.filename, "r", 0)]) is None
    outside = _refused(errno.EACCES, str(out))
    denied = refusals.explain(outside, [_event(outside, "open", outside.filename, "r", 0)])
    assert denied is not None and denied.needs == "fs:read=/etc/passwd"


def _call_into_refusal(call: Callable[[], Any], number: int) -> OSError:
    """Let the real call fail as it does here, then make its errno that of a refusal."""
    try:
        call()
    except OSError as error:
        error.errno = number
        return error
    raise AssertionError("the call should fail")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: open("/nonexistent/x").close(), "needs fs:read=/nonexistent/x"),
        (lambda: os.mkdir("/nonexistent/x/y"), "needs fs:write=/nonexistent/x/y"),
        (lambda: os.scandir("/nonexistent"), "needs fs:read=/nonexistent"),
        (lambda: os.unlink("/nonexistent/x"), "needs fs:delete=/nonexistent/x"),
        (lambda: os.rename("/nonexistent/a", "/nonexistent/b"), "needs fs:write=/nonexistent/b"),
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 255), "needs net:request"),
        (lambda: os.kill(2**22 + 1, 0), "needs process:exec"),
    ],
)
def test_the_real_announcement_matches_the_real_error(call: Callable[[], Any], said: str) -> None:
    """The audit event and the traceback of one real call name the same instruction."""
    install_audit_hook()
    install_audit_hook()
    denied = _refusals().explain(_call_into_refusal(call, errno.EPERM))
    assert said in str(denied)


def test_popen_is_matched_though_it_announces_itself_elsewhere() -> None:
    """subprocess announces itself some lines before it fails, where it does not use posix_spawn."""
    import subprocess

    install_audit_hook()
    error = _call_into_refusal(lambda: subprocess.Popen(["/nonexistent/x"], cwd="/"), errno.EPERM)
    assert "subprocess.Popen('/nonexistent/x') needs process:exec" in str(_refusals().explain(error))


def test_relative_path_without_a_folder_needs_the_bare_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has no folder yet is told of the grant that brings one, not of a path below the root."""
    monkeypatch.setattr(os, "getcwd", lambda: "/")
    monkeypatch.delenv("TMPDIR", raising=False)
    error = _refused(errno.EPERM, "notes.txt")
    events = [_event(error, "open", "notes.txt", "w", 0)]
    denied = Refusals(["random"], private_root=True).explain(error, events)
    assert denied is not None and denied.needs == "fs:write"
    assert "capabilities" in denied.__notes__[0]


def test_without_a_private_root_no_grant_without_a_path_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """There fs:write brings no folder: whoever has it, or might ask for it, is told what would help."""
    monkeypatch.setattr(os, "getcwd", lambda: "/")
    monkeypatch.delenv("TMPDIR", raising=False)
    error = _refused(errno.EPERM, "notes.txt")
    for held in ("random", "fs:write"):
        denied = Refusals([held]).explain(error, [_event(error, "open", "notes.txt", "w", 0)])
        assert denied is not None and "only at level private: grant fs:write=FOLDER" in str(denied)
        assert not hasattr(denied, "__notes__")
    unusable = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert Refusals(["fs:write"]).explain(unusable, []) is None
    hint = Refusals(["fs:write"]).hint(unusable, [])
    assert hint is not None and hint.startswith("this worker has fs:write; without a path it brings a folder only at")


def test_worker_whose_folder_is_gone_can_still_be_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explaining must not fail where the current directory was removed."""

    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "getcwd", gone)
    error = _refused(errno.EPERM, "/etc/x")
    assert Refusals([]).explain(error, [_event(error, "open", "/etc/x", "w", 0)]) is not None


def test_cffi_says_what_it_could_not_make() -> None:
    """Its words name memory that is written and executed; the same words from where that is granted stay."""
    error = MemoryError("Cannot allocate write+execute memory for ffi.callback(). You might be running on a system")
    denied = _refusals().explain(error, [])
    assert isinstance(denied, CapabilityDenied) and "ffi.callback needs native:jit" in str(denied)
    assert _refusals("native:jit").explain(error, []) is None
    assert _refusals().explain(MemoryError("Unable to allocate 2.00 GiB for an array"), []) is None
