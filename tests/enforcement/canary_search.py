"""Searches a process from inside for a secret that it knows by a digest only: it must not bring it along."""

import ctypes
import gc
import hashlib
import json
import mmap
import os
import re

# The secret is this, and sixty-four hexadecimal digits.
MARK = b"yranac"[::-1] + b":"
_PAGE = mmap.PAGESIZE
_LENGTH = 64
_SIZE = len(MARK) + _LENGTH
# Bytes of memory to look through at most: more than any worker has.
_MOST = 512 << 20


_kept: list[str] = []


def keep(secret: str) -> None:
    """Keep what a worker was given."""
    _kept.append(secret)


def is_it(text: bytes, digest: str) -> bool:
    """Say whether the secret is somewhere in `text`."""
    for match in re.finditer(rb"[0-9a-f]{%d}" % _LENGTH, text):
        if hashlib.sha256(match[0]).hexdigest() == digest:
            return True
    # A run of digits longer than the secret may have it in its midst.
    at = text.find(MARK)
    while at >= 0:
        if hashlib.sha256(text[at + len(MARK) : at + len(MARK) + _LENGTH]).hexdigest() == digest:
            return True
        at = text.find(MARK, at + 1)
    return False


def search(digest: str, folders: list[str]) -> list[str]:
    """Return where the secret with this SHA-256 is: memory, objects, descriptors, environment, files."""
    places = {
        "objects": _in_objects,
        "environment": _in_environment,
        "descriptors": _in_descriptors,
        "files": lambda digest: _in_files(digest, folders),
        "memory": _in_memory,
    }
    return [name for name, look in places.items() if look(digest)]


def _in_objects(digest: str) -> bool:
    """Look at every object that the collector knows, and one step further."""
    for known in gc.get_objects():
        for value in (known, *gc.get_referents(known)):
            if type(value) is str and len(value) >= _LENGTH and is_it(value.encode(errors="replace"), digest):
                return True
            if type(value) in (bytes, bytearray) and len(value) >= _LENGTH and is_it(bytes(value), digest):
                return True
    return False


def _in_environment(digest: str) -> bool:
    libc = ctypes.CDLL(None)
    entries = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    texts, at = [], 0
    while entries and entries[at]:
        texts.append(entries[at] or b"")
        at += 1
    return is_it(b"\n".join([*texts, *(f"{k}={v}".encode() for k, v in os.environ.items())]), digest)


def _in_descriptors(digest: str) -> bool:
    """Read what every descriptor gives without waiting, except the three that a worker talks over."""
    for fd in range(1024):
        try:
            if is_it(os.pread(fd, 1 << 16, 0), digest):
                return True
            continue
        except OSError:
            pass
        try:
            if not os.get_blocking(fd):
                continue
            os.set_blocking(fd, False)
        except OSError:
            continue
        try:
            if is_it(os.read(fd, 1 << 16), digest):
                return True
        except OSError:
            pass
        finally:
            os.set_blocking(fd, True)
    return False


def _in_files(digest: str, folders: list[str]) -> bool:
    places = [*folders, ".", "/tmp", "/proc/self", "/proc/1", f"/proc/{os.getppid()}"]
    for folder in places:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name in ("mem", "kmsg", "clear_refs", "pagemap") or not os.path.isfile(os.path.join(folder, name)):
                continue
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    if is_it(file.read(1 << 20), digest):
                        return True
            except OSError:
                continue
    return False


def _in_memory(digest: str) -> bool:
    """Look at every page around what we know the address of; a write to a pipe says which pages there are."""
    reader, writer = os.pipe()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    left = _MOST
    seen: set[int] = set()
    anchors = [ctypes.addressof(ctypes.c_int()), id(os), *(id(value) for value in gc.get_objects()[::50])]
    for anchor in anchors:
        for step in (1, -1):
            page = anchor & -_PAGE
            if step < 0:
                page -= _PAGE
            while page not in seen and left > 0:
                seen.add(page)
                left -= _PAGE
                if libc.write(writer, page, _PAGE) != _PAGE:
                    break
                text = os.read(reader, _PAGE)
                at = text.find(MARK)
                while at >= 0:
                    # It may go on in the next page.
                    if libc.write(writer, page + at, _SIZE) == _SIZE and is_it(os.read(reader, _SIZE), digest):
                        return True
                    at = text.find(MARK, at + 1)
                page += step * _PAGE
    os.close(reader)
    os.close(writer)
    return False


def session(fd: int, digest: str, folders: list[str]) -> None:
    """Search in a session's worker."""
    os.write(fd, json.dumps(search(digest, folders)).encode())
    os.close(fd)
