"""Keep what was compiled from an installed version beside it, under a name that says from what and how it was made."""

import hashlib
import importlib.util
import os
from typing import TYPE_CHECKING, Final

from ringfence.plugins.locks import writer_lock
from ringfence.plugins.sources import read_manifest
from ringfence.plugins.store_files import StoreFiles

if TYPE_CHECKING:
    from ringfence.plugins.compile import CompileOptions

__all__ = ["compiled_file"]

# Seconds to wait for another process that compiles the same plugin: compiling has limits of its own, below this.
_PATIENCE: Final = 120.0


def compiled_file(
    files: StoreFiles, name: str, version: str, digest: str, options: "CompileOptions | None" = None
) -> str:
    """Return the bytecode of a version that is in use, made now unless it is there.

    It runs on the interpreter that asks. Where the manifest names bytecode itself, that is returned.

    Raises CompilationError, InvalidManifest for a program, StoreReadOnly where it is not there and cannot be written.
    """
    from ringfence.plugins.bytecode import SUFFIX
    from ringfence.plugins.compile import CompileOptions, compile_modules
    from ringfence.plugins.errors import InvalidManifest
    from ringfence.plugins.folder import modules_of

    options = options or CompileOptions()
    _, manifest = read_manifest(files.folder(name, version))
    if manifest.bytecode is not None:
        return os.path.join(files.folder(name, version), manifest.bytecode)
    if not manifest.uses_source():
        raise InvalidManifest(f"the plugin {name!r} is a program, which is not compiled")
    key = hashlib.sha256(b"\0".join((digest.encode(), importlib.util.MAGIC_NUMBER, repr(options).encode())))
    folder = files.bytecode(name, version)
    path = os.path.join(folder, key.hexdigest() + SUFFIX)
    if os.path.lexists(path):
        return path
    layout = files.layout
    layout.require_writable()
    # One compiles, those who waited for it find what it made.
    lock = writer_lock(os.path.join(layout.locks, f"{name}.compile"), _PATIENCE, f"compiling the plugin {name!r}")
    with lock:
        if not os.path.lexists(path):
            made = compile_modules(
                modules_of(manifest),
                options,
                name=name,
                version=version,
                capabilities=manifest.capabilities,
                exports=manifest.exports or None,
            )
            layout.ensure(os.path.dirname(folder))
            layout.ensure(folder)
            with layout.scratch() as scratch:
                layout.replace(path, made.bytecode, scratch)
    return path
