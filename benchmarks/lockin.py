"""What locking one worker in costs, step by step.

Run it as root and as an ordinary user; --user drops to "nobody" first, as an ordinary user would start.
"""

import argparse
import json
import os
import statistics
import time

from ringfence.sandbox import (
    enforce,
    profiles,  # noqa: F401 - before the change of user
)
from ringfence.sandbox._syscalls import PR_SET_DUMPABLE, prctl
from ringfence.sandbox.features import probe_here
from ringfence.sandbox.plan import make_plan
from ringfence.sandbox.policy import Layer, Policy
from ringfence.sandbox.runtime_paths import runtime_paths


def one_round(prepared: enforce.Prepared) -> dict[str, float]:
    reader, writer = os.pipe()
    start = time.perf_counter()
    pid = enforce.fork(prepared)
    if pid == 0:
        timings = enforce.Timings()
        timings.mark("start")
        forked = time.perf_counter()
        enforce.enter(prepared, [writer], timings=timings)
        done = time.perf_counter()
        steps = dict(timings.steps) | {"fork": forked - start, "total": done - start}
        os.write(writer, json.dumps(steps).encode())
        os._exit(0)
    parent = time.perf_counter() - start
    os.close(writer)
    with os.fdopen(reader) as pipe:
        steps = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return steps | {"fork returns": parent, "until reaped": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--user", action="store_true")
    parser.add_argument("--no-namespaces", action="store_true")
    parser.add_argument("--allow", action="append", default=[])
    options = parser.parse_args()
    runtime = runtime_paths()
    Policy.build("untrusted", options.allow)  # imports what an ordinary user may not be able to read
    if options.user:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        prctl(PR_SET_DUMPABLE, 1)
    policy = Policy.build("untrusted", options.allow)
    if options.no_namespaces:
        demands = dict(policy.demands) | {Layer.NAMESPACES: "off"}
        policy = Policy(policy.name, policy.capabilities, policy.limits, demands, None, {})
    plan = make_plan(policy, probe_here(), runtime=runtime)
    print(plan.report)
    start = time.perf_counter()
    prepared = enforce.prepare(plan)
    print(f"\nprepare {(time.perf_counter() - start) * 1e3:.2f} ms, once per zygote\n")
    rounds = [one_round(prepared) for _ in range(options.rounds)]
    for step in rounds[0]:
        values = sorted(r[step] * 1e3 for r in rounds)
        p99 = values[int(len(values) * 0.99)]
        print(f"{step:<14} {statistics.median(values):7.3f} ms   p99 {p99:7.3f}")


if __name__ == "__main__":
    main()
