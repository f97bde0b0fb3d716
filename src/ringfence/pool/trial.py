"""Puts a profile to the test on this host: every attempt of the self-test, and a pool that runs one task."""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ringfence.ipc import messages as m
from ringfence.ipc.errors import ChannelClosed
from ringfence.pool import outcome
from ringfence.pool.config import PoolConfig
from ringfence.pool.executor import Pool
from ringfence.pool.terms import terms_of
from ringfence.pool.zygote import Zygote
from ringfence.records import dataclass
from ringfence.sandbox.errors import EnforcementError, UnsupportedError
from ringfence.sandbox.profiles import Profile
from ringfence.sandbox.selftest import Finding

__all__ = ["Trial", "put_to_the_test"]

# Seconds for all attempts together: sixty workers, one after the other, on a loaded machine.
_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it: the profile's name, the level that its workers reached (in words), every finding.

    `error` is why a pool of the profile could not run a task, seen from outside; empty when it could.
    """

    profile: str
    level: str
    findings: tuple[Finding, ...]
    error: str = ""

    @property
    def holes(self) -> tuple[Finding, ...]:
        """The findings that are no refusal, or no success, as they must be."""
        return tuple(finding for finding in self.findings if finding.is_hole)

    @property
    def holds(self) -> bool:
        """Whether the sandbox of this profile holds here."""
        return not self.holes and not self.error


def put_to_the_test(profile: Profile) -> Trial:
    """Try everything that a profile's workers must not be able to do, and what they must; run one task in a pool.

    Raises OSError and ChannelClosed when no zygote can be started.
    """
    try:
        with Pool(1, profile=profile) as pool:
            config = pool._supervisor.config
            level, error = "none", ""
            try:
                pool.submit(abs, 0).result(_PATIENCE)
                (report,) = pool.reports().values()
                level = str(report.level)
            except EnforcementError as refused:
                error = str(refused)
        return Trial(profile.name, level, _try_all(config), error)
    except (EnforcementError, UnsupportedError) as refused:
        return Trial(profile.name, "none", (), str(refused))


def _try_all(config: PoolConfig) -> tuple[Finding, ...]:
    with _zygote() as zygote:
        zygote.configure(config, terms_of(config), thorough=True)
        assert zygote.proof is not None
        if not zygote.proof.pending:
            return ()
        return zygote.proof.findings(_await_answers(zygote))


@contextmanager
def _zygote() -> Iterator[Zygote]:
    zygote = Zygote(inherit=False)
    try:
        yield zygote
    finally:
        zygote.abandon()


def _await_answers(zygote: Zygote) -> list[Any]:
    deadline = time.monotonic() + _PATIENCE
    poll = select.poll()
    poll.register(zygote.channel.fileno(), select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        poll.poll(left * 1000)
        for message, _ in zygote.hear():
            if message[0] == m.PROVEN:
                answers: list[Any] = message[1]
                return answers
            if message[0] == m.FAILED:
                raise outcome.exception_from(message[2])
    raise ChannelClosed(f"the self-test was not over after {_PATIENCE:g} s")
