"""Has the machine's free memory ready before something is measured.

A virtual machine may give memory that is free back to its host (Linux: free page reporting, blocks of 2 MiB and more,
after two seconds). Who touches it next waits for the host, for each page of 4 KiB some microseconds: a thousand
processes that start then measure the host.
"""

import mmap
import os

# Bytes for one measurement that does not say how much it needs.
USUAL = 512 << 20


def free_memory(size: int = USUAL) -> None:
    """Touch that many bytes of free memory once, at most a quarter of what there is, and free them again."""
    available = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    size = min(size, available // 4) // mmap.PAGESIZE * mmap.PAGESIZE
    if size:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
