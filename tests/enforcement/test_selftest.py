"""The self-test finds nothing where all is well, and a hole for every layer that is switched off in silence."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from jail import RUNTIME, Caller, Sender, in_process
from levels import REFUSED_CALLS

from ringfence import EnforcementError, Pool, SandboxHole
from ringfence.ipc.codec import Codec
from ringfence.pool import proof
from ringfence.pool import zygote as pool_zygote
from ringfence.sandbox import _syscalls, enforce, selftest
from ringfence.sandbox.landlock import Access, PathGrant
from ringfence.sandbox.outside import Contradiction, Witness
from ringfence.sandbox.plan import make_plan
from ringfence.sandbox.policy import Policy
from ringfence.sandbox.profiles import list_profiles
from ringfence.sandbox.rulesets import Bundle, Rule
from ringfence.sandbox.seccomp import build_program, choose_bundles
from ringfence.sandbox.steps import Plan, SeccompPlan
from ringfence.worker.selftest import Trials

MACHINE = os.uname().machine


def is_filtered() -> bool:
    """Say whether a filter is in force here already, as in a container."""
    return _syscalls.prctl(_syscalls.PR_GET_SECCOMP) != 0


def holes(
    caller: Caller, plan: Plan, policy: Policy, mutate: Callable[[], None] = bool, *, tried: Plan | None = None
) -> list[str]:
    """Return the names of the holes that the self-test finds; `mutate` is called in the process that is the zygote."""
    probes = selftest.choose(plan, policy.capabilities, MACHINE)

    def be_zygote(send: Sender) -> None:
        caller.become()
        mutate()
        prepared = enforce.prepare(tried or plan)
        trials = Trials(prepared, Codec(), selftest.batches(probes))
        while (pid := trials.start()) is not None:
            trials.ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        send(["value", [trials.answers, trials.failure]])

    outcome = in_process(be_zygote)
    assert outcome, outcome
    answers, failure = outcome.value
    if failure is not None:
        return [f"{failure['type']}: {failure['message']}"]
    return [finding.probe.name for finding in selftest.judge(probes, answers[0]) if finding.is_hole]


@pytest.mark.parametrize("profile", list_profiles())
def test_no_profile_has_a_hole(caller: Caller, profile: str) -> None:
    """Each shipped profile stands every attempt, whoever starts it."""
    policy = Policy.build(profile)
    plan = make_plan(policy, caller.features, runtime=RUNTIME)
    assert holes(caller, plan, policy) == []


@pytest.mark.parametrize(("kills", "found"), [(1, []), (3, []), (4, ["killed"])])
def test_an_attempt_that_is_killed_from_outside_is_repeated(caller: Caller, kills: int, found: list[str]) -> None:
    """The host may be short of memory for a moment; a worker that never gets through has proven nothing."""
    policy = Policy.build("untrusted")
    plan = make_plan(policy, caller.features, runtime=RUNTIME)
    probes = selftest.choose(plan, policy.capabilities, MACHINE)

    def be_zygote(send: Sender) -> None:
        caller.become()
        trials = Trials(enforce.prepare(plan), Codec(), selftest.batches(probes))
        left = kills
        # Those to be killed do nothing until then: else one may be done before.
        os.register_at_fork(after_in_child=lambda: time.sleep(60 if left else 0))
        while (pid := trials.start()) is not None:
            if left:
                left -= 1
                os.kill(pid, signal.SIGKILL)
            trials.ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        send(["value", trials.answers])

    outcome = in_process(be_zygote)
    assert outcome, outcome
    assert ["killed" for finding in selftest.judge(probes, outcome.value[0]) if finding.is_hole][:1] == found


def test_an_answer_that_cannot_be_written_down_is_no_hole(caller: Caller) -> None:
    """The kernel may have no memory for a pipe's page: the attempts are made again."""
    policy = Policy.build("untrusted")
    plan = make_plan(policy, caller.features, runtime=RUNTIME)
    probes = selftest.choose(plan, policy.capabilities, MACHINE)

    def be_zygote(send: Sender) -> None:
        caller.become()
        write, zygote, left = os.write, os.getpid(), [1]

        def short(fd: int, data: bytes) -> int:
            if os.getpid() != zygote and left and len(data) == 8:
                raise OSError(12, "Cannot allocate memory")
            return write(fd, data)

        os.write = short  # type: ignore[assignment]
        trials = Trials(enforce.prepare(plan), Codec(), selftest.batches(probes))
        while (pid := trials.start()) is not None:
            trials.ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            left.clear()
        send(["value", trials.answers])

    found = selftest.judge(probes, in_process(be_zygote).value[0])
    assert [finding.probe.name for finding in found if finding.is_hole] == []


@pytest.mark.parametrize("name", ["being root", "RLIMIT_FSIZE"])
def test_a_hole_is_said_in_a_few_words(name: str) -> None:
    """Where thousands of millions of answers would be right, too: they are not all gone through."""
    policy = Policy.build("untrusted")
    root = replace(_features(), is_root=True, can_setuid=True)  # who else is not asked whether it is root
    plan = make_plan(policy, root, runtime=replace(RUNTIME, closed=()))
    (probe,) = (each for each in selftest.choose(plan, policy.capabilities, MACHINE) if each.name == name)
    wide = probe._replace(expected=range(1, 1 << 63))
    said = selftest.hole(selftest.judge([wide], [0]))
    assert said is not None
    assert "should make it 1 or 2 or 3 or 4" in str(said)


def nothing(*_: Any, **__: Any) -> None:
    """Do nothing, and say nothing."""


def blind() -> None:
    """Switch off the look that each worker takes at itself: the self-test has to find things alone."""
    enforce._self_test = nothing  # type: ignore[assignment]


def without(*places: tuple[Any, str]) -> Callable[[], None]:
    """Return what switches off functions of the lock-in."""

    def mutate() -> None:
        blind()
        for module, name in places:
            setattr(module, name, nothing)

    return mutate


def an_open_file() -> None:
    """Leave a descriptor open that no worker should have."""
    enforce.close_gaps = nothing
    os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)


def a_variable() -> None:
    """Leave the environment as it is."""
    os.environ["RINGFENCE_TEST_SECRET"] = "secret"
    enforce.empty_environment = nothing


def an_extra_path() -> None:
    """Let the rule-set allow more than the plan says."""
    blind()
    build = enforce.build_ruleset
    enforce.build_ruleset = lambda plan, grants: build(plan, [*grants, PathGrant("/", Access.READ | Access.LIST)])


def a_shared_file_system() -> None:
    """Enter no namespace at all."""
    enforce.enter_shared = enforce.enter_own = nothing
    enforce.fork_worker = lambda plan, home: os.fork()
    blind()


def a_dumpable_worker() -> None:
    """Set no_new_privs, but leave the memory to be read by others of its uid."""
    forbid = enforce.forbid_regain
    enforce.forbid_regain = lambda dumpable=False: forbid(dumpable=True)


def a_root_worker() -> None:
    """Change no user."""
    enforce.worker_uid = lambda plan, pid: None


SILENT = {
    "no filter": (without((_syscalls, "seccomp_load")), "a filter in force"),
    "no Landlock domain": (without((_syscalls, "landlock_restrict")), "listing /"),
    "one more path": (an_extra_path, "listing /"),
    "no namespaces": (a_shared_file_system, "seeing /etc/passwd"),
    "no rlimits": (without((enforce, "apply_rlimits")), "RLIMIT_CORE"),
    "capabilities kept": (without((_syscalls, "capset")), "capabilities"),
    "bounding set kept": (without((enforce, "drop_bounding_set")), "capabilities to regain"),
    "readable by its uid": (a_dumpable_worker, "readable memory"),
    "a descriptor too many": (an_open_file, "descriptors besides its own"),
    "the host's environment": (a_variable, "variables of the environment besides its own"),
}


# Started as root, the change of user does these as well.
REDUNDANT = ("capabilities kept", "readable by its uid")
# A user has capabilities in a namespace of their own only.
IN_NAMESPACES = ("capabilities kept", "bounding set kept")


def is_off_anyway(caller: Caller, what: str) -> bool:
    """Say whether this layer has nothing to do for this caller on this host."""
    if caller.name == "root" and what in REDUNDANT:
        return True
    if caller.features.namespaces:
        return False
    return what == "no namespaces" or (caller.name == "user" and what in IN_NAMESPACES)


@pytest.mark.parametrize("what", SILENT)
def test_a_layer_that_is_off_in_silence_is_found(caller: Caller, what: str) -> None:
    """For each layer: the step answers as if it were done and is not, and the self-test names what is open."""
    mutate, expected = SILENT[what]
    policy = Policy.build("untrusted")
    found = holes(caller, make_plan(policy, caller.features, runtime=RUNTIME), policy, mutate)
    if is_off_anyway(caller, what):
        assert found == []
    elif what == "no filter" and is_filtered():
        assert {"a Unix socket", "openat2", "a file in memory"} <= set(found)
    else:
        assert expected in found or found[0].startswith("EnforcementError")  # a later step needs it, and failed


def test_a_worker_that_stays_root_is_found(caller: Caller) -> None:
    """Started as root, a worker that keeps its uid is found; started by anybody else, it has none to change."""
    policy = Policy.build("untrusted")
    found = holes(caller, make_plan(policy, caller.features, runtime=RUNTIME), policy, a_root_worker)
    assert ("being root" in found) == (caller.name == "root")


def test_no_new_privs_cannot_be_missing(caller: Caller) -> None:
    """Without it the kernel takes no filter and no domain: the lock-in itself fails, and says so."""
    policy = Policy.build("untrusted")
    plan = make_plan(policy, caller.features, runtime=RUNTIME)
    (found,) = holes(caller, plan, policy, without((enforce, "forbid_regain")))
    assert found.startswith("EnforcementError: enter the Landlock domain")


def test_a_path_too_many_in_the_private_root_is_found(caller: Caller) -> None:
    """A bind mount that the plan did not have is found."""
    policy = Policy.build("untrusted")
    plan = make_plan(policy, caller.features, runtime=RUNTIME)
    more = replace(plan, grants=(*plan.grants, PathGrant("/etc", Access.READ | Access.LIST)))
    seen = {"seeing /etc/passwd"} if plan.namespaces is not None else set()  # else everything can be seen anyway
    assert {"listing /etc", *seen} <= set(holes(caller, plan, policy, tried=more))


def weakened(plan: Plan, call: str) -> Plan:
    """Return the plan with a filter that lets one more call through, whatever its arguments."""
    assert plan.seccomp is not None
    bundles = []
    for bundle in choose_bundles(Policy.build("untrusted").capabilities):
        rules = [
            rule._replace(calls=" ".join(name for name in rule.calls.split() if name != call)) for rule in bundle.rules
        ]
        bundles.append(bundle._replace(rules=tuple(rule for rule in rules if rule.calls)))
    program = build_program(MACHINE, [*bundles, Bundle("hole", "a test", (Rule(call),))], pid=1)
    return replace(plan, seccomp=SeccompPlan(code=program.to_bytes(), pid_slots=()))


LEAKY = {
    "socket": "a Unix socket",
    "socketpair": "a pair of datagram sockets",
    "sendto": "sending to an address",
    "openat": "opening for writing",
    "openat2": "openat2",
    "mmap": "memory to write and run",
    "mprotect": "making memory executable",
    "memfd_create": "a file in memory",
    "clone": "a process in new namespaces",
    "clone3": "clone3",
    "kill": "a signal to all",
    "tgkill": "a signal to another's thread",
    "prlimit64": "raising a limit",
    "fcntl": "signals to an owner",
    "ioctl": "typing into the terminal",
    "shmget": "System V shared memory",
    "io_uring_setup": "io_uring",
    "unshare": "the filter kills",
}


@pytest.mark.parametrize("call", LEAKY)
def test_a_rule_that_is_missing_is_found(caller: Caller, call: str) -> None:
    """A filter that lets one call through that it should not is found by the attempt that is made for it."""
    policy = Policy.build("untrusted")
    plan = make_plan(policy, caller.features, runtime=RUNTIME)
    found = holes(caller, plan, policy, tried=weakened(plan, call))
    assert LEAKY[call] in found or (is_filtered() and LEAKY[call] in answered_alike(caller))


def answered_alike(caller: Caller) -> set[str]:
    """Return the attempts that fail for this caller as they would in a worker, without any sandbox of ours."""

    def unsandboxed(send: Sender) -> None:
        caller.become()
        numbers = selftest._numbers(MACHINE)
        same = [
            call.words
            for call in selftest._REFUSED
            if call.name in numbers and _syscalls.attempt(numbers[call.name], call.arguments) == -call.errno
        ]
        send(["value", same])

    return set(in_process(unsandboxed).value)


def test_every_attempt_can_fail(caller: Caller) -> None:
    """Outside a sandbox no call of the table is answered as the filter answers it: each attempt tells them apart."""
    # What needs a right that an ordinary user lacks is refused to them anyway, in the filter's own word.
    privileged = {"a packet socket", "a raw IP socket", "a fast packet socket"} if caller.name == "user" else set()
    # And so is what a container's own filter refuses.
    refused = {call.words for call in selftest._REFUSED if call.name in REFUSED_CALLS} if is_filtered() else set()
    assert answered_alike(caller) <= privileged | refused


# In a pool


@pytest.fixture
def unproven() -> Iterator[None]:
    """A process in which nothing is proven."""
    before = set(proof._proven)
    proof._proven.clear()
    yield
    proof._proven.clear()
    proof._proven.update(before)


@pytest.mark.usefixtures("unproven")
def test_a_pool_with_a_hole_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole breaks the pool before any task, with an error that names the attempt, the layer and what was seen."""
    real = make_plan
    monkeypatch.setattr(
        "ringfence.pool.opening.make_plan", lambda *args, **options: weakened(real(*args, **options), "socket")
    )
    with Pool(2) as pool:
        futures = [pool.submit(abs, -1) for _ in range(3)]
        for future in futures:
            with pytest.raises(SandboxHole) as caught:
                future.result(30)
    assert (caught.value.probe, caught.value.layer, caught.value.expected) == ("a Unix socket", "seccomp", "EPERM")
    assert isinstance(caught.value, EnforcementError)
    assert pool.statistics().completed == 0


@pytest.mark.usefixtures("unproven")
def test_a_policy_is_proven_once_in_a_process() -> None:
    """The first pool of a policy puts it to the test; the second knows; another policy is another matter."""
    found = []
    for grants in ((), (), ("fs:read=/usr/share",)):
        before = len(proof._proven)
        with Pool(1, capabilities=grants) as pool:
            assert pool.submit(abs, -1).result(30) == 1
        found.append(len(proof._proven) - before)
    assert found == [1, 0, 1]


@pytest.mark.usefixtures("unproven")
def test_a_trusted_pool_has_nothing_to_prove() -> None:
    """A profile without layers is not put to the test."""
    with Pool(1, profile="trusted") as pool:
        assert pool.submit(abs, -1).result(30) == 1
    assert not proof._proven


def dropping(**layers: None) -> Callable[..., bytes]:
    """Return a dumps() that leaves layers out of the plan that the zygote gets."""
    from pickle import dumps

    return lambda value, *rest: dumps(replace(value, **layers) if isinstance(value, Plan) else value, *rest)


@pytest.mark.parametrize(
    ("layers", "seen"),
    [
        # In a container there is one filter already.
        ({"seccomp": None}, "as many as it has inherited" if is_filtered() else "seccomp: Seccomp:\t0, not 2"),
        ({"privileges": None}, "privileges: Cap"),
        # A user's worker has no rights to give up then, and cannot: it fails by itself.
        pytest.param(
            {"namespaces": None, "landlock": None},
            "namespaces: " if os.geteuid() == 0 else "could not lock itself in",
            marks=pytest.mark.needs("mnt"),
        ),
    ],
    ids=["seccomp", "privileges", "namespaces"],
)
def test_a_worker_is_looked_at_from_outside(
    monkeypatch: pytest.MonkeyPatch, layers: dict[str, None], seen: str
) -> None:
    """A worker that says it is locked in, and is not, gets no task: the kernel knows better."""
    if os.geteuid() != 0 and "privileges" in layers:
        pytest.skip("an ordinary user has no capabilities to begin with")
    monkeypatch.setattr(pool_zygote.pickle, "dumps", dropping(**layers))
    monkeypatch.setattr(proof.Proof, "attempts", lambda self: setattr(self, "pending", False) or [])
    with Pool(1) as pool, pytest.raises(EnforcementError) as caught:
        pool.submit(abs, -1).result(30)
    assert seen in str(caught.value)
    assert pool.statistics().completed == 0


STATUS = (
    "Name:\tpython\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{uid}\t{uid}\t{uid}\t{uid}\nGroups:\t{groups}\nNSpid:\t{pids}\n"
    "CapInh:\t0000000000000000\nCapPrm:\t{caps:016x}\nCapEff:\t{caps:016x}\nCapBnd:\t{bound:016x}\n"
    "CapAmb:\t0000000000000000\nNoNewPrivs:\t{nnp}\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n"
)
GOOD = {"uid": 0x70000123, "groups": " ", "pids": "4133\t1", "caps": 0, "bound": 0, "nnp": 1, "seccomp": 2}


@pytest.mark.parametrize(
    "lie",
    [
        {"seccomp": 0},
        {"seccomp": 1},
        {"nnp": 0},
        {"caps": 1 << 21},
        {"bound": 1},
        {"uid": 0},
        {"uid": 1000},
        {"groups": "0 "},
        {"pids": "4133"},
        {"pids": "4133\t7"},
    ],
    ids=str,
)
def test_each_line_of_a_status_counts(lie: dict[str, Any]) -> None:
    """A status in which one thing is wrong contradicts the plan; one in which all is right does not."""
    kinds = frozenset({"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"})
    rights = dict.fromkeys(("is_root", "can_setuid", "own_uids", "user_namespaces", "mount_api"), True)
    features = replace(_features(), namespaces=kinds, **rights)
    witness = Witness(make_plan(Policy.build("untrusted"), features, runtime=RUNTIME))
    witness.judge(STATUS.format(**GOOD).encode())
    with pytest.raises(Contradiction):
        witness.judge(STATUS.format(**{**GOOD, **lie}).encode())


def _features() -> Any:
    from ringfence.sandbox.features import probe

    return probe()
