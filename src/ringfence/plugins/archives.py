"""Unpack a zip or a wheel that nobody vouches for, entry by entry, under limits.

The archive's own words about sizes are used to refuse early, never to allow: what comes out is counted.
"""

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Final

from ringfence.plugins.archive_names import TreeLimits
from ringfence.plugins.store_errors import ArchiveRefused
from ringfence.plugins.trees import TreeWriter

__all__ = ["unpack"]

_CHUNK: Final = 1 << 16
# Others make the reader allocate what the archive asks for (LZMA: a dictionary of up to 4 GiB).
_METHODS: Final = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
# Bytes of an archive's table per entry that is allowed: names, and room for extra fields and comments.
_TABLE_ROW: Final = 512
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
# What the reader of the standard library raises for bytes that are no zip, or not the one their table describes.
_UNREADABLE: Final = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)


def unpack(file: IO[bytes], size: int, writer: TreeWriter, limits: TreeLimits, source: str | None = None) -> None:
    """Unpack the zip of `size` bytes that is open as `file`, and stays the caller's.

    Raises ArchiveRefused, which names the entry and says what is wrong with it, and OSError for what is written.
    """
    try:
        with zipfile.ZipFile(_Bounded(file, size, limits.entries * _TABLE_ROW, source)) as archive:
            entries = archive.infolist()
            _check_whole(entries, size, limits, source)
            for entry in entries:
                _check(entry, limits, source)
            for entry in entries:
                _unpack_one(archive, entry, size, writer, limits, source)
    except ArchiveRefused:
        raise
    except _UNREADABLE as error:
        raise ArchiveRefused(None, f"is no readable zip archive: {ascii(str(error))[1:-1][:200]}", source) from error


class _Bounded(io.BufferedIOBase):
    """A file of which no single read is larger than `most`: the table of a zip is read, and parsed, at one go."""

    def __init__(self, file: IO[bytes], size: int, most: int, source: str | None) -> None:
        self._file, self._size, self._most, self._source = file, size, max(most, 2 * _CHUNK), source

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = self._most + 1
        if size <= self._most:
            return self._file.read(size)
        data = self._file.read(self._most + 1)
        if len(data) > self._most:
            raise ArchiveRefused(None, f"its table of entries is larger than {self._most} bytes", self._source)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        # Offsets are the archive's own word, and may be of any size.
        if whence == os.SEEK_SET and not 0 <= offset <= self._size:
            raise zipfile.BadZipFile("an entry lies outside the file")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _check_whole(entries: list[zipfile.ZipInfo], size: int, limits: TreeLimits, source: str | None) -> None:
    if len(entries) > limits.entries:
        raise ArchiveRefused(None, f"has {len(entries)} entries; {limits.entries} are the most", source)
    said = sum(entry.file_size for entry in entries)
    if said > limits.total:
        raise ArchiveRefused(None, f"unpacks to {said} bytes; {limits.total} are the most", source)
    if said > limits.slack and said > limits.ratio * size:
        raise ArchiveRefused(None, f"unpacks to more than {limits.ratio} times its size", source)
    starts = [entry.header_offset for entry in entries]
    if len(set(starts)) < len(starts):
        raise ArchiveRefused(None, "two of its entries are the same bytes", source)


def _check(entry: zipfile.ZipInfo, limits: TreeLimits, source: str | None) -> None:
    """Raise ArchiveRefused for what the table says about one entry, apart from its name."""
    name = entry.orig_filename  # as it is in the table: `filename` ends at a NUL
    kind = stat.S_IFMT(entry.external_attr >> 16)
    folder = name.endswith("/")
    if kind == stat.S_IFLNK:
        why = "is a link"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        why = "is a device, a pipe or a socket"
    elif kind and folder != (kind == stat.S_IFDIR):
        why = "is a file by its name and a folder by its mode, or the other way round"
    elif entry.flag_bits & _ENCRYPTED:
        why = "is encrypted"
    elif folder and (entry.file_size or entry.compress_size > 2):  # some tools deflate nothing into two bytes
        why = "is a folder with content of its own"
    elif entry.compress_type not in _METHODS:
        why = f"is compressed by method {entry.compress_type}; only {' and '.join(_METHODS.values())} are read"
    elif entry.file_size > limits.file:
        why = f"unpacks to {entry.file_size} bytes; {limits.file} are the most"
    else:
        return
    raise ArchiveRefused(name, why, source)


def _unpack_one(
    archive: zipfile.ZipFile,
    entry: zipfile.ZipInfo,
    size: int,
    writer: TreeWriter,
    limits: TreeLimits,
    source: str | None,
) -> None:
    name = entry.orig_filename
    if name.endswith("/"):
        writer.folder(name[:-1])
        return
    most = max(limits.slack, limits.ratio * min(entry.compress_size, size))
    try:
        writer.file(name, _content(archive, entry), executable=bool(entry.external_attr >> 16 & 0o100), most=most)
    except _UNREADABLE as error:
        if isinstance(error, ArchiveRefused):
            raise
        raise ArchiveRefused(name, f"cannot be unpacked: {ascii(str(error))[1:-1][:200]}", source) from error
    if writer.written > limits.slack and writer.written > limits.ratio * size:
        raise ArchiveRefused(name, f"the archive unpacks to more than {limits.ratio} times its size", source)


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(entry) as content:
        while chunk := content.read(_CHUNK):
            yield chunk
