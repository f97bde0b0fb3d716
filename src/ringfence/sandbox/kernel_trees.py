"""What has a path and is no file: the kernel's own trees, and the devices that harm nobody."""

from typing import Final

__all__ = ["DEVICES", "KERNEL_TREES", "PROCESSES_AND_DEVICES"]

DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# A write here reaches the kernel or a device.
KERNEL_TREES: Final = ("/proc", "/sys", "/dev")

# What whoever may read everything still does not read: other processes, disks, terminals.
PROCESSES_AND_DEVICES: Final = ("/proc", "/dev")
