"""Builds a root file system of bind mounts that shows what was granted and nothing else."""

import os
from collections.abc import Iterable, Iterator
from errno import ELOOP
from stat import S_ISDIR
from typing import TYPE_CHECKING, Final, NamedTuple

from ringfence.sandbox.errors import EnforcementError
from ringfence.sandbox.kernel_trees import KERNEL_TREES, PROCESSES_AND_DEVICES
from ringfence.sandbox.landlock import Access, PathGrant, open_place
from ringfence.sandbox.owners import open_map

if TYPE_CHECKING:
    from ringfence.sandbox.namespaces import NamespacePlan

__all__ = ["Tree", "build_private_root", "choose_trees", "follow"]

# The kernel's own bound on links in one path (MAXSYMLINKS).
_MAX_LINKS: Final = 40
# Any folder will do to build on: the mount is in a namespace nobody else sees, and is gone after the pivot.
_BUILDING_SITES: Final = ("/tmp", "/mnt", "/run", "/var", "/usr")
_CHANGES: Final = Access.WRITE | Access.DELETE
# Folders and mount points only; the root becomes read-only once it stands.
_ROOT_OPTIONS: Final = "size=1m,nr_inodes=4096,mode=0755"


class Tree(NamedTuple):
    """One bind mount: a real path, whether it may be written, is a device, shows its owner's files as the worker's."""

    path: str
    writable: bool
    device: bool = False
    mapped: bool = False


class _Source(NamedTuple):
    tree: Tree
    fd: int
    is_folder: bool


def follow(path: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the real path, and the symbolic links on the way as (where, target).

    Raises:
        OSError: something on the way does not exist, or the links go in a circle.
    """
    links: list[tuple[str, str]] = []
    real, rest = "/", [part for part in path.split("/") if part]
    while rest:
        part = rest.pop(0)
        if part == "..":
            real = os.path.dirname(real)
            continue
        step = os.path.join(real, part)
        try:
            target = os.readlink(step)
        except OSError as error:
            if error.errno != 22:  # EINVAL: it is no link
                raise
            real = step
            continue
        links.append((step, target))
        if len(links) > _MAX_LINKS:
            raise OSError(40, os.strerror(40), path)  # ELOOP
        if target.startswith("/"):
            real = "/"
        rest = [p for p in target.split("/") if p not in ("", ".")] + rest
    return real, tuple(links)


def choose_trees(wanted: Iterable[Tree]) -> tuple[Tree, ...]:
    """Return the mounts that are needed, outer ones first, without what an outer one already shows."""
    by_path: dict[str, Tree] = {}
    for tree in wanted:
        known = by_path.get(tree.path)
        if known is not None:
            tree = known._replace(writable=known.writable or tree.writable, mapped=known.mapped or tree.mapped)
        by_path[tree.path] = tree
    chosen: dict[str, Tree] = {}
    for path in sorted(by_path, key=lambda p: p.rstrip("/").split("/")):
        tree = by_path[path]
        outer = [chosen[up] for up in _parents(path) if up in chosen]
        covered = outer and outer[0].writable >= tree.writable and outer[0].mapped >= tree.mapped
        if not covered or tree.device:
            chosen[path] = tree
    return tuple(chosen.values())


def _parents(path: str) -> Iterator[str]:
    """Yield the folders above ``path``, the nearest first."""
    while path != "/":
        path = os.path.dirname(path)
        yield path


def build_private_root(
    plan: "NamespacePlan", grants: Iterable[PathGrant], scratch: str | None, worker: tuple[int | None, int] = (None, -1)
) -> None:
    """Replace the root of this mount namespace.

    Args:
        plan: what is planned.
        grants: what is to be seen.
        scratch: where a private folder is to be mounted later, or `None`.
        worker: the uid of all workers, for the plan's mapped paths, and an fd of /proc.

    Raises:
        EnforcementError: the kernel refused a step, or a path that the caller granted does not exist.
    """
    from ringfence.sandbox import _syscalls as sys

    wanted, links = _resolve(plan, grants)
    step = "stop mounts from spreading"
    sources: list[_Source] = []
    try:
        sys.mount("none", "/", None, sys.MS_REC | sys.MS_PRIVATE)
        # All sources first: the building site may cover some of them.
        for tree in choose_trees(wanted):
            step = f"clone the mount of {tree.path}"
            sources.append(_open_source(tree, plan.run_programs, worker))
        step = "build the private root"
        site = next(path for path in _BUILDING_SITES if os.path.isdir(path))
        sys.mount("root", site, "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, _ROOT_OPTIONS)
        step = "fill the private root"
        # What this program's user lets nobody see by default would be closed to workers, who are not this user.
        mask = os.umask(0o022)
        _fill(site, sources, links, scratch)
        os.umask(mask)
        step = "enter the private root"
        _pivot(site)
    except OSError as error:
        raise EnforcementError(step, error.errno or 0, str(error.filename or "")) from error
    finally:
        for source in sources:
            os.close(source.fd)


def _resolve(plan: "NamespacePlan", grants: Iterable[PathGrant]) -> tuple[list[Tree], dict[str, str]]:
    trees: list[Tree] = []
    links: dict[str, str] = {}
    for grant in _spread(grants):
        try:
            real, found = follow(grant.path)
            os.lstat(real)
        except OSError as error:
            if grant.demanded:
                raise EnforcementError(f"grant access to {grant.path}", error.errno or 0) from error
            continue
        if grant.demanded and real != grant.place:
            raise EnforcementError(f"grant access to {grant.path}: it led to {grant.place} before", ELOOP)
        links.update(found)
        device = grant.path in plan.devices
        trees.append(Tree(real, bool(grant.access & _CHANGES) and not device, device, real in plan.mapped))
    return trees, links


def _spread(grants: Iterable[PathGrant]) -> Iterator[PathGrant]:
    """Replace a grant of ``/`` by one for each entry there: the root itself is always our own.

    The host's processes and devices are no files and are left out; what may be written leaves out /sys as well.
    """
    for grant in grants:
        if grant.path == "/":
            kernel = KERNEL_TREES if grant.access & _CHANGES else PROCESSES_AND_DEVICES
            tops = (f"/{name}" for name in os.listdir("/"))
            yield from (PathGrant(top, grant.access) for top in tops if top not in kernel)
        else:
            yield grant


def _open_source(tree: Tree, run_programs: bool, worker: tuple[int | None, int]) -> _Source:
    from ringfence.sandbox import _syscalls as sys

    place = open_place(tree.path)
    try:
        fd = sys.open_tree(place)
        found = os.fstat(place)
    finally:
        os.close(place)
    attributes = sys.MOUNT_ATTR_NOSUID
    if not tree.writable:
        attributes |= sys.MOUNT_ATTR_RDONLY
    elif not run_programs:
        attributes |= sys.MOUNT_ATTR_NOEXEC
    if not tree.device:
        attributes |= sys.MOUNT_ATTR_NODEV
    owners, (uid, proc) = None, worker
    try:
        if tree.mapped and uid is not None:
            owners = open_map((found.st_uid, found.st_gid), uid, proc)
        sys.mount_setattr(fd, attributes, owners)
        return _Source(tree, fd, S_ISDIR(found.st_mode))
    except OSError:
        os.close(fd)
        raise
    finally:
        if owners is not None:
            os.close(owners)


def _fill(site: str, sources: list[_Source], links: dict[str, str], scratch: str | None) -> None:
    from ringfence.sandbox import _syscalls as sys

    for source in sources:
        target = site + source.tree.path
        # Parents that are closed on the host (a home of mode 0700) are open here: they hold nothing else.
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if not os.path.lexists(target):
            if source.is_folder:
                os.mkdir(target, 0o755)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
        sys.move_mount(source.fd, target)
    for where, to in links.items():
        if not os.path.lexists(site + where):
            os.makedirs(os.path.dirname(site + where), 0o755, exist_ok=True)
            os.symlink(to, site + where)
    if scratch is not None:
        _add_scratch(site, scratch)
    elif not os.path.lexists(site + "/tmp"):
        os.mkdir(site + "/tmp", 0o755)


def _add_scratch(site: str, scratch: str) -> None:
    """Make the mount point of the private folder, and lead the usual temporary paths there."""
    os.makedirs(site + scratch, 0o755, exist_ok=True)
    for usual in ("/tmp", "/var/tmp", "/dev/shm"):
        if not os.path.lexists(site + usual):
            os.makedirs(os.path.dirname(site + usual), 0o755, exist_ok=True)
            os.symlink(scratch, site + usual)


def _pivot(site: str) -> None:
    from ringfence.sandbox import _syscalls as sys

    flags = sys.MS_REMOUNT | sys.MS_BIND | sys.MS_NOSUID | sys.MS_NODEV | sys.MS_RDONLY
    os.chdir(site)
    sys.mount("none", ".", None, flags)
    # The old root comes to lie over the new one, from where it is detached.
    sys.pivot_root(".", ".")
    sys.umount(".", sys.MNT_DETACH)
    os.chdir("/")
