"""What each capability lets a plugin do, in words for somebody who has to decide."""

from collections.abc import Mapping
from typing import Final

from ringfence.sandbox.capabilities import Capability, Grant

__all__ = ["meaning"]

_C = Capability

_WORDS: Final[Mapping[Capability, str]] = {
    _C.FS_READ: "read the files in its own folder",
    _C.FS_WRITE: "write files in a private folder that is gone afterwards",
    _C.FS_DELETE: "delete files in a private folder that is gone afterwards",
    _C.FS_METADATA: "see names, sizes and times of files",
    _C.FS_EXECUTE: "delete files, and list folders (an old name)",
    _C.NET_REQUEST: "connect to any host: what it knows can leave this machine",
    _C.NET_LISTEN: "accept connections from others",
    _C.NET_DNS: "look up names of hosts, which can carry data out as well",
    _C.PROCESS_EXEC: "start other programs",
    _C.ENV_READ: "read every environment variable, secrets among them",
    _C.ENV_WRITE: "change its own environment variables",
    _C.TIME_READ: "know the time",
    _C.RANDOM: "draw random numbers",
    _C.STDIN_READ: "read the host's standard input",
    _C.STDOUT_WRITE: "print",
    _C.STDERR_WRITE: "print errors",
    _C.METRICS: "report figures to the host",
    _C.LOGGING: "log through the host",
    _C.ASYNC_SPAWN: "run threads and tasks of its own",
    _C.CRYPTO: "use the library's cryptography",
    _C.SERIALIZE: "write and read data formats",
    _C.PLUGIN_CALL: "call other plugins",
    _C.PLUGIN_MESSAGE: "send messages to other plugins",
    _C.NATIVE_JIT: "make machine code while it runs, which gives up one hardening",
}

_SCOPED: Final[Mapping[Capability, str]] = {
    _C.FS_READ: "read everything below {}",
    _C.FS_WRITE: "write below {}",
    _C.FS_DELETE: "delete below {}",
    _C.FS_METADATA: "see names, sizes and times of files below {}",
    _C.FS_EXECUTE: "delete files and list folders below {}",
    _C.NET_REQUEST: "connect to {}: what it knows can leave this machine",
    _C.NET_LISTEN: "accept connections on {}",
    _C.NET_DNS: "look up {}",
    _C.PROCESS_EXEC: "start {}",
    _C.ENV_READ: "read the environment variable {}",
    _C.ENV_WRITE: "change its own environment variable {}",
    _C.PLUGIN_CALL: "call the plugin {}",
    _C.PLUGIN_MESSAGE: "send messages to the plugin {}",
}


def meaning(grant: Grant) -> str:
    """Return what a grant means, in words."""
    if grant.scope is None:
        return _WORDS[grant.capability]
    return _SCOPED.get(grant.capability, f"{_WORDS[grant.capability]}: {{}}").format(grant.scope)
