"""How a grant of each capability is written: what a scope is, what none means, and examples."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from ringfence.sandbox.capabilities import Capability

__all__ = ["SCOPES", "Scoping"]

_C = Capability


class Scoping(NamedTuple):
    """What may stand behind the ``=``, what it means when nothing does, and scopes to show as examples."""

    scope: str
    without: str
    examples: tuple[str, ...]


_TREE: Final = "an absolute path: that file, or the tree below that folder"
_OWN: Final = "the worker's private folder, which is gone afterwards"
_FOLDERS: Final = ("/data", "/var/lib/app")
_PLUGIN: Final = "the name of a plugin"
_ANY_HOST: Final = "any address and port"

# Examples that a pool would refuse on this version are not shown: `explain` asks before.
SCOPES: Final[Mapping[Capability, Scoping]] = {
    _C.FS_READ: Scoping(_TREE, f"{_OWN}; for a plugin, its own folder", ("/data", "/etc/hosts", "/")),
    _C.FS_WRITE: Scoping(_TREE, _OWN, _FOLDERS),
    _C.FS_DELETE: Scoping(_TREE, _OWN, _FOLDERS),
    _C.FS_METADATA: Scoping("none can be kept", "of what may be written", ()),
    _C.FS_EXECUTE: Scoping(_TREE, _OWN, ()),
    _C.NET_REQUEST: Scoping(
        "host:port, host or :port; a host is a name, a pattern such as *.example.org, an address or a range",
        _ANY_HOST,
        (":443", "api.example.com:443", "*.example.org:443", "192.0.2.7:5432", "192.0.2.0/24:443"),
    ),
    _C.NET_LISTEN: Scoping("port or address:port; port 0 is any free one", _ANY_HOST, ("8080", "127.0.0.1:8080", "0")),
    _C.NET_DNS: Scoping("a name, or a pattern such as *.example.org", "any name", ("api.example.com", "*.example.org")),
    _C.PROCESS_EXEC: Scoping(
        "the absolute path of a program, or of a folder with programs",
        "every program that can be seen",
        ("/usr/bin/git", "/opt/tools/bin"),
    ),
    _C.ENV_READ: Scoping("the name of a variable", "every variable that is set", ("HOME", "TZ")),
    _C.ENV_WRITE: Scoping("the name of a variable", "every variable", ("TZ",)),
    _C.PLUGIN_CALL: Scoping(_PLUGIN, "every plugin", ("resizer",)),
    _C.PLUGIN_MESSAGE: Scoping(_PLUGIN, "every plugin", ("resizer",)),
}
