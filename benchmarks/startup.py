"""From nothing to the first result: the import, and the import with a pool and one call."""

import json
import subprocess
import sys

from benchmarks.model import Aim, Contender, Figure, Measured, Parameters, Row, Unavailable

_PROGRAM = """
import time
start = time.perf_counter()
{imports}
imported = time.perf_counter() - start
pool = {pool}
assert {call} == 8
first = time.perf_counter() - start
{end}
import json
print(json.dumps({{"import": imported, "first": first}}))
"""
_EXECUTOR = "from concurrent.futures import ProcessPoolExecutor"


def _measure(
    imports: str, pool: str, call: str = "pool.submit(pow, 2, 3).result()", end: str = "pool.shutdown()"
) -> Measured:
    program = _PROGRAM.format(imports=imports, pool=pool, call=call, end=end)
    # The first run is not counted: it reads from the disk what the others, or the host, have driven out of memory.
    for _ in range(2):
        # -I: neither the current folder nor the environment has a say in what is imported.
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(last)
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def _executor(method: str, _: Parameters) -> Measured:
    imports = f"{_EXECUTOR}\nfrom multiprocessing import get_context"
    return _measure(imports, f"ProcessPoolExecutor(2, mp_context=get_context({method!r}))")


ROW = Row(
    name="start",
    title="A fresh interpreter, from its first line: import, and the first result; 2 workers",
    figures=(Figure("first", "import and first result", "ms"), Figure("import", "import of the pool alone", "ms")),
    contenders=(
        Contender("ringfence, untrusted", lambda _: _measure("from ringfence import Pool", "Pool(2)")),
        Contender("ringfence, trusted", lambda _: _measure("from ringfence import Pool", "Pool(2, profile='trusted')")),
        Contender("ProcessPoolExecutor, fork", lambda p: _executor("fork", p)),
        Contender("ProcessPoolExecutor, forkserver", lambda p: _executor("forkserver", p)),
        Contender("ProcessPoolExecutor, spawn", lambda p: _executor("spawn", p), quick=False),
        Contender(
            "multiprocessing.Pool",
            lambda _: _measure(
                "import multiprocessing", "multiprocessing.Pool(2)", "pool.apply(pow, (2, 3))", "pool.terminate()"
            ),
        ),
        Contender(
            "pebble.ProcessPool",
            lambda _: _measure(
                "from pebble import ProcessPool",
                "ProcessPool(max_workers=2)",
                "pool.schedule(pow, args=(2, 3)).result()",
                "pool.close(); pool.join()",
            ),
        ),
        Contender(
            "loky", lambda _: _measure("from loky import ProcessPoolExecutor", "ProcessPoolExecutor(2)"), quick=False
        ),
    ),
    aims=(
        Aim(figure="first", kind="within", bound=1.5, beside="ProcessPoolExecutor, fork"),
        Aim(figure="import", kind="at most", bound=0.025),
    ),
    full={},
    quick={},
    rounds=9,
    budget=20.0,
)
