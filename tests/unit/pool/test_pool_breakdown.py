"""The errors of broken pools become BrokenProcessPools in time, whatever is in the way."""

import subprocess
import sys

_EARLY = """
import sys
from ringfence.pool import errors
assert "concurrent.futures.process" not in sys.modules
made = {made}
from concurrent.futures.process import BrokenProcessPool
assert isinstance(made, BrokenProcessPool) and isinstance(made, errors.RingfenceError), type(made).__mro__
assert issubclass(errors.WorkerCrashed, BrokenProcessPool) and issubclass(errors.BrokenPool, BrokenProcessPool)
"""
_NO_DESCRIPTOR = """
import os, resource, sys
from concurrent.futures import BrokenExecutor
from ringfence.pool import errors
held = os.open("/", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (held, 64))
early = errors.BrokenPool("early")
assert isinstance(early, BrokenExecutor), type(early).__mro__
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
late = errors.WorkerCrashed("late")
from concurrent.futures.process import BrokenProcessPool
assert isinstance(early, BrokenProcessPool) and isinstance(late, BrokenProcessPool)
"""
_FORK = """
import os, sys, threading, time
from ringfence.pool.breakdown import become_process_pools

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "concurrent.futures.process":
            importing.set()
            time.sleep(0.2)

importing = threading.Event()
sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=become_process_pools)
thread.start()
importing.wait()
pid = os.fork()
if pid == 0:
    import concurrent.futures.process
    os._exit(0)
thread.join()
end = time.monotonic() + 20
while os.waitpid(pid, os.WNOHANG) == (0, 0):
    if time.monotonic() > end:
        os.kill(pid, 9)
        sys.exit("the child waits for an import that nobody goes on with")
    time.sleep(0.01)
"""


def _run(program: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_instance_is_a_broken_process_pool() -> None:
    """Whoever catches BrokenProcessPool catches ours, however early it was made."""
    _run(_EARLY.format(made="errors.BrokenPool('why')"))
    _run(_EARLY.format(made="errors.ProtocolViolation('why')"))


def test_without_a_descriptor_the_error_is_said_all_the_same() -> None:
    """Where the import fails, the error is a BrokenExecutor, and a BrokenProcessPool as soon as it can be."""
    _run(_NO_DESCRIPTOR)


def test_a_fork_waits_for_the_import() -> None:
    """A child forked while a pool's thread imports can import the same."""
    _run(_FORK)


def test_an_idle_pool_imports_what_its_errors_derive_from() -> None:
    """Before there is anything to report, in the pool's thread, and once: afterwards it sleeps."""
    _run(
        """
import sys, time
from ringfence import Pool
from ringfence.pool import breakdown
with Pool(1) as pool:
    assert pool.submit(pow, 2, 3).result(60) == 8
    end = time.monotonic() + 40
    while breakdown._is_put_off or breakdown.BrokenExecutor in breakdown.Breakdown.__bases__:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "concurrent.futures.process" in sys.modules
    assert pool.submit(pow, 2, 4).result(60) == 16
"""
    )


def test_whoever_cannot_import_it_now_does_not_wait() -> None:
    """A finalizer that runs during the import, and one who has a lock that the importing thread wants, go on."""
    _run(
        """
from ringfence.pool import breakdown, errors
with breakdown._importing:
    early = errors.BrokenPool("early")
breakdown.become_process_pools()
from concurrent.futures.process import BrokenProcessPool
assert isinstance(early, BrokenProcessPool)
"""
    )


def test_a_pool_that_ends_with_the_interpreter() -> None:
    """Then nothing can be imported any more that has to be told of the end; the pool ends as it should."""
    _run(
        """
import sys, threading
from ringfence import Pool
from ringfence.pool import breakdown, errors
pool = Pool(1)

def last():
    breakdown.become_process_pools()
    errors.BrokenPool("late")

threading._register_atexit(last)
assert "concurrent.futures.process" not in sys.modules
"""
    )
