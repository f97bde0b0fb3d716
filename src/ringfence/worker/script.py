"""Runs a whole script inside a worker, as `python script.py` would have run it.

The script arrives as bytes, its modules with it. What a program expects of its interpreter is put in place: it is
`__main__`, `sys.argv`, `exit()`, tracebacks with its own lines, exit handlers, and none of our frames anywhere.
"""

import atexit
import builtins
import contextlib
import linecache
import os
import sys
import traceback
import types
from importlib.util import decode_source
from typing import Any, Final

from ringfence.worker import modules as shipped
from ringfence.worker import tracebacks
from ringfence.worker.modules import ShippedModules

__all__ = ["ScriptSource", "run_script"]

# (name, source, file name, is a package) of one module that is sent along.
ScriptSource = tuple[str, str, str, bool]

# What python itself leaves behind after KeyboardInterrupt: 128 + SIGINT.
_INTERRUPTED: Final = 130
# What python answers when the last flush of stdout fails (Py_RunMain).
_FLUSH_FAILED: Final = 120

_OURS: Final = frozenset(
    {__file__, shipped.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}
)


def run_script(
    source: bytes,
    filename: str,
    argv: list[str],
    folder: str,
    modules: list[ScriptSource],
    working_folder: str | None,
) -> int:
    """Run a script as `__main__` and return its exit code, 0 to 255.

    Args:
        source: the file's bytes; an encoding cookie counts.
        filename: its absolute path, for `__file__` and tracebacks.
        argv: `sys.argv`, the script's name first.
        folder: the script's folder, which leads `sys.path`. The worker need not be able to see it.
        modules: what it can import besides the library and what `folder` shows.
        working_folder: the folder to start in, or None to stay in the worker's private one.

    Raises:
        BaseException: what the script did not catch, once its traceback is on stderr: the worker says why the
            sandbox refused, if it did.
    """
    _furnish(filename, argv, folder, modules)
    if working_folder is not None:
        with contextlib.suppress(OSError):  # visible, yet not open to this user
            os.chdir(working_folder)
    try:
        code = _run(source, filename)
    finally:
        _finish()
    return code or _flush()


def _furnish(filename: str, argv: list[str], folder: str, modules: list[ScriptSource]) -> None:
    """Put in place what a program expects of its interpreter."""
    import site  # with -S it does nothing by itself; exit() and help() live there

    site.setquit()
    site.sethelper()
    sys.argv[:] = argv
    sys.path.insert(0, folder)
    finder = ShippedModules()
    for module in modules:
        finder.add(*module)
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=filename, __cached__=None)
    main.__annotations__ = {}
    sys.modules["__main__"] = main


def _run(source: bytes, filename: str) -> int:
    """Run the script's code; return the exit code it asked for."""
    try:
        # Without a modification time the entry is never checked against a file that is not there.
        with contextlib.suppress(SyntaxError, UnicodeDecodeError):
            text = decode_source(source)
            linecache.cache[filename] = (len(source), None, text.splitlines(keepends=True), filename)
        code = compile(source, filename, "exec", dont_inherit=True)
        exec(code, sys.modules["__main__"].__dict__)
    except SystemExit as error:
        return _asked(error.code)
    except BaseException as error:
        tracebacks.clean(error, _is_ours)
        _report(error)
        if isinstance(error, KeyboardInterrupt):
            return _INTERRUPTED
        raise
    return 0


def _is_ours(filename: str) -> bool:
    return filename in _OURS or tracebacks.is_machinery(filename)


def _asked(code: object) -> int:
    """Return the status for what was given to sys.exit, as the interpreter reads it."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it may have closed its stderr
        print(code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> None:
    """Let the script's excepthook, or ours if that fails, write the traceback."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    try:
        # The interpreter's own hook reads source lines from disk (until 3.13), where the script is not.
        if sys.excepthook is not sys.__excepthook__:
            sys.excepthook(type(error), error, error.__traceback__)
        else:
            traceback.print_exception(error)
    except BaseException:  # noqa: BLE001  # foreign code; python prints the original in that case too
        sys.__excepthook__(type(error), error, error.__traceback__)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()


def _finish() -> None:
    """Do what the interpreter does at its end: wait for threads, then call exit handlers."""
    threading: Any = sys.modules.get("threading")
    if threading is not None:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.current_thread():
                thread.join()
    atexit._run_exitfuncs()


def _flush() -> int:
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except (OSError, ValueError):
        return _FLUSH_FAILED
    return 0
