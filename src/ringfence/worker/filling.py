"""Fills what is left free between the objects of a zygote, so that each worker's new ones lie close together."""

from typing import Final

__all__ = ["fill"]

# CPython takes memory for small objects from pools, of one size class each: from 16 to 512 bytes in steps of 16
# (Objects/obmalloc.c). A new object goes to a pool that has room, and the pools with room are those out of which
# something was freed: a few in each class, all over the memory.
_SMALLEST: Final = 48
_LARGEST: Final = 512
_STEP: Final = 16
# Bytes of a bytes object besides its own.
_HEADER: Final = 33
# The size of a pool, and where its first object lies in it. A new pool is filled from there, one after the other.
_POOL: Final = 16 * 1024
_FIRST: Final = 48

_fillers: Final[list[bytes]] = []


def fill() -> None:
    """Take what is free in pools that are in use; a class is done when two objects in a row begin a new pool.

    Where memory is handed out in another way, this takes 32 KiB for each class, a megabyte in all, and gains nothing.
    """
    for size in range(_SMALLEST, _LARGEST + 1, _STEP):
        before = 0
        for _ in range(2 * _POOL // size):
            filler = bytes(size - _HEADER)
            _fillers.append(filler)
            if before % _POOL == _FIRST and id(filler) == before + size:
                break
            before = id(filler)
