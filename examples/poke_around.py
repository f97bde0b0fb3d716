"""A script to run locked in: it tells what it can see.

ringfence run examples/poke_around.py
ringfence run examples/poke_around.py --allow fs:read=/etc
"""

import os
import socket
import subprocess


def attempt(name, function, *args):
    try:
        print(f"{name:22} {str(function(*args))[:60]!r}")
    except OSError as error:
        print(f"{name:22} {type(error).__name__}: {error}")


attempt("the environment", lambda: dict(os.environ))
attempt("this folder", os.getcwd)
attempt("/etc", lambda: f"{len(os.listdir('/etc'))} entries")
attempt("an outside host", socket.create_connection, ("192.0.2.1", 80), 1)
attempt("another program", subprocess.check_output, ["/bin/uname"])
attempt("all processes", os.kill, -1, 0)  # 0: may it be done? Nobody is hurt where nothing forbids it
attempt("a sum", sum, range(10))
