"""Compiles the modules that are sent to one worker after the other: once here, instead of once in each of them."""

import marshal
import sys
from importlib.util import MAGIC_NUMBER

from ringfence.pool.codebase import Module

__all__ = ["code_of"]

# By name: the module that was sent last, and its code once it was sent before.
_known: dict[str, tuple[Module, bytes | None]] = {}


def code_of(module: Module) -> bytes:
    """Return a module's code for workers that have this interpreter, or nothing where they shall compile it.

    The first time it is nothing: where it is sent once, nobody waits for us. And only what this program has
    itself imported is compiled here.
    """
    known, code = _known.get(module.name, (None, None))
    if known is not module:
        _known[module.name] = module, None
        return b""
    if code is None:
        code = _compile(module) if module.name in sys.modules else b""
        _known[module.name] = module, code
    return code


def _compile(module: Module) -> bytes:
    try:
        # Workers run without -O, whatever this interpreter was started with.
        made = compile(module.source, module.filename, "exec", dont_inherit=True, optimize=0)
        return MAGIC_NUMBER + marshal.dumps(made)
    except Exception:  # noqa: BLE001  # whatever it is: the worker says what is wrong with it
        return b""
