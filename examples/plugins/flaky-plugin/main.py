import ctypes

from ringfence.guest import host


def work():
    # Nothing here outlives a crash, so the host keeps count.
    if host.attempt() <= 2:
        ctypes.string_at(0)
    return "done"
