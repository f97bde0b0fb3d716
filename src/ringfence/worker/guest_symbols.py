"""Which capability a C function takes that a plugin looks up with ctypes: a table, and what to say of a look-up.

What C code does is not announced to Python; that a plugin gets hold of the function is.
"""

from typing import Final

from ringfence.sandbox.capabilities import Capabilities, Capability
from ringfence.sandbox.errors import CapabilityDenied

__all__ = ["OPERATION", "ends_the_worker", "judge_symbol"]

OPERATION: Final = "ctypes.dlsym"

# By what each needs; a grant with any scope will do, since what the function is called with is not known.
_NEEDS: Final[dict[str, Capability]] = {
    **dict.fromkeys(
        (
            "system", "popen", "fork", "vfork", "clone", "execl", "execle", "execlp", "execv", "execve", "execvp",
            "execvpe", "fexecve", "execveat", "posix_spawn", "posix_spawnp", "kill", "killpg", "tgkill", "sigqueue",
            "pidfd_open", "pidfd_send_signal",
        ),
        Capability.PROCESS_EXEC,
    ),
    **dict.fromkeys(("connect", "sendto", "sendmsg", "sendmmsg"), Capability.NET_REQUEST),
    **dict.fromkeys(("bind", "listen", "accept", "accept4"), Capability.NET_LISTEN),
    **dict.fromkeys(("getaddrinfo", "gethostbyname", "gethostbyname2", "gethostbyname_r"), Capability.NET_DNS),
    **dict.fromkeys(("chmod", "fchmodat", "chown", "lchown", "fchownat", "setxattr", "lsetxattr"),
                    Capability.FS_METADATA),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir", "remove"), Capability.FS_DELETE),
    **dict.fromkeys(("mkdir", "mkdirat", "mknod", "mkfifo", "truncate", "truncate64", "creat"), Capability.FS_WRITE),
}  # fmt: skip
# No capability opens these, and the kernel ends the whole process for trying (`sandbox.rulesets`).
_NEVER: Final = frozenset(
    (
        "ptrace", "process_vm_readv", "process_vm_writev", "mount", "umount", "umount2", "pivot_root", "chroot",
        "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr", "unshare", "setns",
        "open_by_handle_at", "pidfd_getfd", "iopl", "ioperm", "init_module", "finit_module", "delete_module",
        "reboot", "swapon", "swapoff", "quotactl", "acct", "settimeofday", "clock_settime",
        "klogctl", "fanotify_init",
    )
)  # fmt: skip


def judge_symbol(name: object, grants: Capabilities) -> CapabilityDenied | None:
    """Return what calling the C function `name` would need besides what is granted; None if nothing, or not known."""
    if type(name) is not str:
        return None
    if name in _NEVER:
        note = "no capability opens it, and a call would have ended the whole worker"
        return CapabilityDenied(Capability.PROCESS_EXEC, OPERATION, name, needs="a trusted profile", note=note)
    needed = _NEEDS.get(name)
    if needed is None or any(grant.capability is needed for grant in grants):
        return None
    held = [str(grant) for grant in grants]
    return CapabilityDenied(needed, OPERATION, name, granted=held)


def ends_the_worker(name: object) -> bool:
    """Whether the process that calls this C function is killed, so that nothing is left to explain."""
    return name in _NEVER
