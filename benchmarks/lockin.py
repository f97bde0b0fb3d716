"""What locking one worker in costs, step by step, in a zygote as fresh as a pool's.

As root, --user drops to "nobody" before the zygote prepares, as if an ordinary user had started it.
"""

import argparse
import json
import pickle
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ringfence.sandbox.features import Features, probe
from ringfence.sandbox.plan import Plan, make_plan
from ringfence.sandbox.policy import Demand, Layer, Policy
from ringfence.sandbox.runtime_paths import runtime_paths

SOURCE = str(Path(__file__).resolve().parent.parent / "src")

ZYGOTE = """
import gc, json, os, pickle, sys, time
sys.path.insert(0, sys.argv[1])
from ringfence.sandbox import enforce, _syscalls, features

def one_round(prepared):
    reader, writer = os.pipe()
    start = time.perf_counter()
    pid = enforce.fork(prepared)
    if pid == 0:
        timings = enforce.Timings()
        forked = time.perf_counter()
        enforce.enter(prepared, [writer], timings=timings)
        done = time.perf_counter()
        steps = {"fork to first line": forked - start, **dict(timings.steps), "locked in after": done - start}
        os.write(writer, json.dumps(steps).encode())
        os._exit(0)
    parent = time.perf_counter() - start
    os.close(writer)
    steps = json.loads(os.read(reader, 65536))
    os.close(reader)
    os.waitpid(pid, 0)
    return steps | {"fork returns after": parent, "reaped after": time.perf_counter() - start}

def bare():
    reader, writer = os.pipe()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(time.perf_counter() - start).encode())
        os._exit(0)
    os.close(writer)
    seconds = float(os.read(reader, 100))
    os.close(reader)
    os.waitpid(pid, 0)
    return {"bare os.fork": seconds}

rounds, user = int(sys.argv[2]), sys.argv[3] == "user"
if user:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    _syscalls.prctl(_syscalls.PR_SET_DUMPABLE, 1)
if sys.argv[4] == "probe":
    print(json.dumps(features.probe_here().to_data()))
    sys.exit()
plan = pickle.load(sys.stdin.buffer)
gc.collect()
gc.freeze()
gc.disable()
floor = [bare() for _ in range(rounds)]
start = time.perf_counter()
prepared = enforce.prepare(plan)
once = {"prepare, once": time.perf_counter() - start}
results = [one_round(prepared) for _ in range(rounds)]
print(json.dumps([floor, [once], results]))
"""


def zygote(arguments: list[str], data: bytes = b"") -> str:
    command = [sys.executable, "-I", "-S", "-c", ZYGOTE, SOURCE, *arguments]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout.decode()


def measure(
    rounds: int, *, namespaces: bool = True, user: bool = False, allow: Sequence[str] = ()
) -> tuple[Plan, list[list[dict[str, float]]]]:
    """Return the plan, and seconds by step: of bare forks, of preparing, of each round."""
    who = "user" if user else "self"
    features = Features.from_data(json.loads(zygote(["0", who, "probe"]))) if user else probe()
    runtime = runtime_paths()
    policy = Policy.build("untrusted", allow)
    if not namespaces:
        policy = replace(policy, demands={**policy.demands, Layer.NAMESPACES: Demand.OFF})
        # The cost does not depend on who may read the interpreter; without a private root root needs it open.
        runtime = replace(runtime, closed=())
    plan = make_plan(policy, features, runtime=runtime)
    return plan, json.loads(zygote([str(rounds), who, "run"], pickle.dumps(plan)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--user", action="store_true")
    parser.add_argument("--no-namespaces", action="store_true")
    parser.add_argument("--allow", action="append", default=[])
    options = parser.parse_args()
    plan, groups = measure(options.rounds, namespaces=not options.no_namespaces, user=options.user, allow=options.allow)
    print(plan.report, end="\n\n")
    for group in groups:
        for step in group[0]:
            values = sorted(found[step] * 1e3 for found in group)
            p99 = values[int(len(values) * 0.99)]
            print(f"{step:<19} p50 {statistics.median(values):6.3f} ms   p99 {p99:6.3f} ms")


if __name__ == "__main__":
    main()
