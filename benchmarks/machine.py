"""What a run ran on, in one line."""

import multiprocessing
import os
import platform


def describe() -> dict[str, object]:
    """Return the machine and interpreter as plain data."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _model(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "start_method": multiprocessing.get_start_method(),
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
        "load": round(os.getloadavg()[0], 2),
    }


def line(machine: dict[str, object]) -> str:
    """Return that as text."""
    return (
        f"{machine['cpus']} CPUs ({machine['cpu']}), Linux {machine['kernel']}, {machine['python']}, as "
        f"{machine['user']}, load {machine['load']} before"
    )


def _model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for text in lines:
                if text.startswith("model name"):
                    return " ".join(text.partition(":")[2].split())
    except OSError:
        pass
    return platform.machine()
