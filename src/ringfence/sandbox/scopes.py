"""What may stand behind the ``=`` of a grant: paths, variables and plugins (addresses have their own module)."""

import os.path
import re

from ringfence.sandbox.errors import PolicyError

__all__ = [
    "path_contains",
    "read_path",
    "read_plugin",
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
