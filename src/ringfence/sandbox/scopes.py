"""What may stand behind the ``=`` of a grant: reading scopes, and telling which contains which."""

import os.path
import re

from ringfence.sandbox.errors import PolicyError

__all__ = [
    "address_contains",
    "path_contains",
    "read_address",
    "read_host",
    "read_path",
    "read_plugin",
    "read_port",
    "read_variable",
]

# Each reader returns the canonical spelling or raises PolicyError.


def read_path(scope: str) -> str:
    """Read an absolute path."""
    if not scope.startswith("/"):
        raise PolicyError(
            f"{scope!r} is not an absolute path; write {os.path.abspath(scope)!r} if that is meant"
        )
    # Collapsing ".." here would name another folder than the kernel would when a part of the path is a
    # symbolic link.
    if ".." in scope.split("/"):
        raise PolicyError(f"{scope!r} contains '..'; write the path it leads to")
    return "/" + "/".join(part for part in scope.split("/") if part not in ("", "."))


_HOST_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_HOST_LABEL}(?:\.{_HOST_LABEL})*\.?|\[[0-9a-f:.%]+\]", re.ASCII)


def _port(text: str, *, least: int) -> str:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not least <= int(text) <= 65535:
        raise PolicyError(f"{text!r} is not a port ({least} to 65535)")
    return str(int(text))


def read_host(text: str) -> str:
    """Read a host name, a pattern such as ``*.example.com``, or an address."""
    host = text.lower()
    if not _HOST.fullmatch(host):
        raise PolicyError(f"{text!r} is not a host name or address; an IPv6 address goes in brackets")
    return host.rstrip(".")


def read_address(scope: str) -> str:
    """Read ``host``, ``host:port`` or ``:port``."""
    if scope.isdecimal():
        raise PolicyError(f"{scope!r} could be a port or a host; write ':{scope}' for the port")
    head, colon, tail = scope.rpartition(":")
    if not colon or scope.endswith("]"):
        return read_host(scope)
    port = _port(tail, least=1)
    return f"{read_host(head)}:{port}" if head else f":{port}"


def read_port(scope: str) -> str:
    """Read ``port``, ``:port`` or ``host:port``; port 0 is "any free one"."""
    head, _, tail = scope.rpartition(":")
    port = _port(tail, least=0)
    return f"{read_host(head)}:{port}" if head else port


def read_variable(scope: str) -> str:
    """Read the name of an environment variable."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", scope, re.ASCII):
        raise PolicyError(f"{scope!r} is not the name of an environment variable")
    return scope


def read_plugin(scope: str) -> str:
    """Read the name of a plugin."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", scope, re.ASCII):
        raise PolicyError(f"{scope!r} is not a plugin name (small letters, digits and '-')")
    return scope


def path_contains(outer: str, inner: str) -> bool:
    """Whether path `inner` is `outer` or lies below it; both are canonical."""
    return outer in ("/", inner) or inner.startswith(outer + "/")


def _split_address(scope: str) -> tuple[str, str]:
    head, colon, tail = scope.rpartition(":")
    if not colon or scope.endswith("]"):
        return scope, ""
    return head, tail


def address_contains(outer: str, inner: str) -> bool:
    """Whether every address of `inner` is one of `outer`; a part left out is any."""
    outer_host, outer_port = _split_address(outer)
    inner_host, inner_port = _split_address(inner)
    if outer_port and outer_port != inner_port:
        return False
    if outer_host.startswith("*."):
        # As in the compatible hosts: the pattern covers the bare domain too.
        return inner_host.removeprefix("*.") == outer_host[2:] or inner_host.endswith(outer_host[1:])
    return not outer_host or outer_host == inner_host
