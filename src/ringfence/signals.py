"""What an interpreter that we start does first about signals, whatever it inherited."""

from typing import Final

__all__ = ["STANDARD_SIGNALS"]

# A caller may ignore SIGCHLD: then the kernel reaps, and waitpid(2) says ECHILD for each child. A caller's thread may
# block signals: then a worker's alarm would never ring. What else is ignored stays so: SIGHUP after nohup, SIGINT in a
# shell's background. `_signal` is there before any import; `signal` takes a millisecond, for its enums.
STANDARD_SIGNALS: Final = (
    "import _signal; _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL); "
    "_signal.pthread_sigmask(_signal.SIG_SETMASK, ()); "
)
