"""What is known of a kernel is plain data, and asking leaves this process as it was."""

import errno
import json
import marshal
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ringfence.sandbox import features
from ringfence.sandbox.features import CgroupFeature, Features, probe


def test_features_survive_pickle_and_json() -> None:
    """They cross processes unchanged."""
    made = Features(
        machine="x86_64",
        namespaces=frozenset({"mnt", "pid"}),
        cgroup=CgroupFeature(path="/x", controllers=("pids",), kill=True, freeze=False, writable=True),
        reasons={"seccomp": "because"},
    )
    assert pickle.loads(pickle.dumps(made)) == made
    assert Features.from_data(json.loads(json.dumps(made.to_data()))) == made
    bare = Features(machine="aarch64")
    assert Features.from_data(bare.to_data()) == bare


def test_probing_changes_nothing_here() -> None:
    """After a probe this process has the namespaces, the filter and the limits it had."""
    before = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    found = probe()
    assert found.machine == os.uname().machine
    assert {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")} == before
    assert probe() is found


def test_what_is_missing_has_a_reason() -> None:
    """Every absent feature says why it is absent."""
    found = probe()
    absent = {
        "landlock_abi": not found.landlock_abi,
        "seccomp": not found.seccomp,
        "user_namespaces": not found.user_namespaces,
        "mount_api": not found.mount_api,
        "pidfd": not found.pidfd,
        "close_range": not found.close_range,
    }
    absent |= {f"namespace.{kind}": kind not in found.namespaces for kind in ("mnt", "pid", "net", "ipc", "uts")}
    for name, missing in absent.items():
        assert not missing or found.reasons[name]


def test_a_probe_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the probe cannot run nothing is known: that is no answer, and no bare host either."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    features.forget()
    try:
        with pytest.raises(OSError, match="probe"):
            probe()
    finally:
        features.forget()


def test_elsewhere_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another operating system there are no features, and the reason is the system."""
    monkeypatch.setattr(sys, "platform", "darwin")
    features.forget()
    try:
        found = probe()
    finally:
        features.forget()
    assert not found.seccomp
    assert "darwin" in found.reasons["platform"]


def test_a_child_that_dies_is_a_refusal() -> None:
    """A trial that is answered by a kill counts as refused, with a reason."""

    def trial() -> None:
        os.kill(os.getpid(), 9)

    assert "kill" in str(features._in_child(trial))
    assert features._in_child(lambda: None) is None


def test_a_trial_that_breaks_is_a_refusal() -> None:
    """An unexpected error in a trial counts as refused too."""

    def trial() -> None:
        raise RuntimeError("odd")

    assert "odd" in str(features._in_child(trial))


def test_what_a_zygote_answers_is_known_here() -> None:
    """A process that is fresh anyway answers through a pipe; a broken answer says nothing, a shortage is an error."""
    program = "import os, sys; from ringfence.sandbox import features as f; f.answer(int(sys.argv[1])); os.wait()"
    asked = probe()
    reader, writer = os.pipe()
    with open(reader, "rb") as answer, subprocess.Popen(
        [sys.executable, "-c", program, str(writer)],
        pass_fds=[writer],
    ) as zygote:
        os.close(writer)
        told = answer.read()
        assert zygote.wait(30) == 0
    features.forget()
    try:
        assert features.learn(told) == asked == probe()
        assert features.learn(told[:-1]) is None
        with pytest.raises(OSError, match="while this kernel was probed") as caught:
            features.learn(marshal.dumps({"errno": 11, "why": "short"}))
        assert caught.value.errno == errno.EAGAIN
        assert probe() == asked
    finally:
        features.forget()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_shortage_is_no_answer(number: int) -> None:
    """What a host lacks for a moment, in the probe or in the child of a trial, is an error, not a missing feature."""

    def short() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        features._in_child(short)
    assert caught.value.errno == number
    with pytest.raises(OSError, match=os.strerror(number)):
        features._ask({}, "memfd", short, None)


def test_a_lasting_refusal_is_an_answer() -> None:
    """A trial that the kernel forbids counts as a missing feature, with the kernel's word as the reason."""

    def forbidden() -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    assert features._in_child(forbidden) == os.strerror(errno.EPERM)
    reasons: dict[str, str] = {}
    assert features._ask(reasons, "memfd", forbidden, None) is None
    assert reasons == {"memfd": os.strerror(errno.EPERM)}


def test_inventing_a_host_is_easy() -> None:
    """Features can be changed field by field: tests need no such host."""
    assert replace(probe(), landlock_abi=3).landlock_abi == 3


def test_a_trial_that_was_refused_beside_others_is_repeated_alone(tmp_path: Path) -> None:
    """What is refused only because others are at it as well is offered; what is refused alone is not."""

    def at_most_one() -> None:
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            raise OSError(errno.ENOSPC, "one too many")

    def never() -> None:
        raise OSError(errno.EPERM, "never")

    trials = features._Trials()
    trials.begin(at_most_one)
    trials.begin(never)
    trials.begin(lambda: None)
    pids = [pid for pid, _ in trials._begun.values()]
    assert trials.refusal(at_most_one) is None
    assert trials.refusal(never) == "never"
    trials.end()
    for pid in pids:
        with pytest.raises(ChildProcessError):  # it was waited for
            os.waitpid(pid, os.WNOHANG)
