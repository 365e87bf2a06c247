"""The members of an uncompressed zip archive, whose checksums are verified as they are read.

Python's `zipfile` finds the members; their bytes are read in place. A zip file describes each
member twice, in its table and before its bytes: the two must agree, and the bytes must have the
CRC-32 that the table says. On a disk, a large member is verified whole when any of it is first
read, by all cores; over a network, when all of it has been read, so that nothing is read twice.
An archive whose table says 0 for every member has no checksums: torch writes such ones where it is
told to (`torch.serialization.set_crc32_options(False)`), and itself verifies none. It is read, and
what is read from it says so. Where one member has a checksum, 0 is that of the others.
Sources: APPNOTE.TXT of PKWARE, 4.3; https://github.com/madler/zlib (`crc32_combine`).
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from saturation.checkpoints.disk_array import Box, DiskArray, FileArray, box_shape
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

# What finding the members may take: their directory has about a hundred bytes for each.
_LARGEST_DIRECTORY = 8 * 1024 * 1024
# Large enough that starting a thread costs nothing beside it, and small enough for its cache.
_PIECE = 4 * 1024 * 1024
_POLYNOMIAL = 0xEDB88320
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_SIZES_FOLLOW, _ENCRYPTED = 0x8, 0x1
_IN_ZIP64 = 2**32 - 1


class Refused(Exception):
    """Something in an archive is not as it must be."""


class Archive:
    """The table of an archive.

    Raises:
      Refused, zipfile.BadZipFile: it is damaged.
    """

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name = folder, name
        file = _File(folder, name)
        with zipfile.ZipFile(io.BufferedReader(file)) as archive:
            entries = archive.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise Refused("two of its members have one name")
        self._summed = any(entry.CRC for entry in entries)
        self._opened: dict[str, Member] = {}

    def __iter__(self):
        return iter(self._entries)

    def size(self, name: str) -> int | None:
        """Return the size in bytes of a member, or None where there is no such member."""
        return self._entries[name].file_size if name in self._entries else None

    def member(self, name: str) -> Member:
        """Return a member, whose two descriptions agree."""
        if name not in self._opened:
            entry = self._entries[name]
            start = self._start(entry)
            where = f"{self._folder.where(self._name)}: its member {name!r}"
            checksum = entry.CRC if self._summed else None
            self._opened[name] = Member(
                self._folder, self._name, start, entry.file_size, checksum, where
            )
        return self._opened[name]

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Return the byte at which a member begins, by the header before it."""
        name = entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise Refused(f"its member {name!r} is compressed or encrypted")
        if entry.compress_size != entry.file_size:
            raise Refused(f"its member {name!r} has two sizes in the table")
        begin = entry.header_offset
        raw = self._folder.read(self._name, begin, begin + _LOCAL.size)
        signature, _, flags, method, _, _, checksum, packed, size, named, extra = _LOCAL.unpack(raw)
        if signature != b"PK\x03\x04":
            raise Refused(f"its member {name!r} does not lie where the table says")
        begin += _LOCAL.size
        written = self._folder.read(self._name, begin, begin + named)
        encoding = "utf-8" if flags & 0x800 else "cp437"
        agree = written.decode(encoding, "replace") == entry.orig_filename
        agree &= (flags, method) == (entry.flag_bits, entry.compress_type)
        if not flags & _SIZES_FOLLOW:
            agree &= checksum == entry.CRC
            agree &= {size, packed} <= {entry.file_size, _IN_ZIP64}
        if not agree:
            raise Refused(f"the table and the header before it say different things of {name!r}")
        return begin + named + extra


class Member:
    """The bytes of one member, verified once.

    Attributes:
      start: the byte of the file at which it begins.
      size: how many bytes it has.
      unsummed: the archive's name where it has no checksums, else "".
    """

    def __init__(
        self, folder: Folder, name: str, start: int, size: int, checksum: int | None, where: str
    ):
        self.start, self.size = start, size
        self.unsummed = name if checksum is None else ""
        self._folder, self._name = folder, name
        self._checksum, self._where = checksum, where
        self._lock = threading.Lock()
        self._verified = checksum is None
        self._pieces: dict[int, tuple[int, int]] = {}

    def read(self) -> bytes:
        """Return all its bytes, verified."""
        data = self._folder.read(self._name, self.start, self.start + self.size)
        self.saw(0, np.frombuffer(data, np.uint8))
        return data

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> DiskArray:
        """Return the array that begins at a byte of the member."""
        return _MemberArray(
            self, FileArray(self._folder, self._name, self.start + offset, shape, dtype), offset
        )

    def saw(self, begin: int, data: np.ndarray) -> None:
        """Take note of bytes that were read, and verify the member as far as that allows."""
        with self._lock:
            if self._verified or not data.size:
                return
            if begin == 0 and data.size == self.size:
                self._compare(_crc(data))
            elif self._folder.remote:
                self._pieces[begin] = data.size, _crc(data)
                self._combine()
            else:
                self._verify()

    def verify(self) -> None:
        """Read and verify all of it, unless that was done.

        Raises:
          CheckpointFormatError: its bytes do not have the checksum that the table says.
        """
        with self._lock:
            if not self._verified:
                self._verify()

    def _verify(self) -> None:
        starts = range(0, self.size, _PIECE)
        found = 0
        if len(starts) < 2:
            found = self._piece(0)
        else:
            for start, checksum in zip(starts, _cores().map(self._piece, starts), strict=True):
                size = min(_PIECE, self.size - start)
                found = combine_crc32(found, checksum, size) if start else checksum
        self._compare(found)

    def _piece(self, start: int) -> int:
        buffer = np.empty(min(_PIECE, self.size - start), np.uint8)
        self._folder.read_into(self._name, self.start + start, buffer.data)
        return _crc(buffer)

    def _combine(self) -> None:
        """Put together what was read in pieces, once they are the whole without a gap."""
        at = found = 0
        while at in self._pieces:
            size, checksum = self._pieces[at]
            found = combine_crc32(found, checksum, size) if at else checksum
            at += size
        if at == self.size:
            self._pieces.clear()
            self._compare(found)

    def _compare(self, found: int) -> None:
        if found != self._checksum:
            raise CheckpointFormatError(
                f"{self._where} is damaged: its bytes have the checksum {found:#010x} and "
                f"{self._checksum:#010x} was written. Copy the file again."
            )
        self._verified = True


class _MemberArray(DiskArray):
    """An array in a member of an archive, verified with it."""

    def __init__(self, member: Member, stored: FileArray, offset: int):
        self.shape, self.dtype, self.unsummed = stored.shape, stored.dtype, member.unsummed
        self._member, self._stored, self._offset = member, stored, offset

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        values = self._stored.read(box, out)
        if box_shape(box)[1:] == self.shape[1:]:
            row = self.nbytes // self.shape[0] if self.shape and self.shape[0] else 0
            begin = self._offset + (box[0].start * row if box else 0)
            self._member.saw(begin, values.reshape(-1).view(np.uint8))
        else:
            self._member.verify()
        return values

    def verify(self) -> None:
        self._member.verify()


@cache
def _cores() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "checksum")


def _crc(data: np.ndarray) -> int:
    # Lets go of the interpreter lock.
    return zlib.crc32(data.data)


def combine_crc32(first: int, second: int, size: int) -> int:
    """Return the CRC-32 of two texts, one behind the other, from those of each.

    A checksum is a remainder modulo a polynomial over GF(2), whose bits are kept lowest last; the
    `size` bytes behind the first text multiply its remainder by x^(8·size).

    >>> combine_crc32(zlib.crc32(b"ab"), zlib.crc32(b"cde"), 3) == zlib.crc32(b"abcde")
    True
    """
    power, square, bits = 1 << 31, 1 << 30, 8 * size  # 1 and x
    while bits:
        if bits & 1:
            power = _times(square, power)
        square, bits = _times(square, square), bits >> 1
    return _times(power, first) ^ second


def _times(a: int, b: int) -> int:
    """Return the product of two polynomials modulo that of CRC-32."""
    product = 0
    for place in range(31, -1, -1):
        if a >> place & 1:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


class _File(io.RawIOBase):
    """A file in a folder as zipfile wants one."""

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name, self._at = folder, name, 0
        self._size = folder.size(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the file's beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        if count > _LARGEST_DIRECTORY:
            raise Refused(f"its table of members has {count} bytes")
        self._folder.read_into(self._name, self._at, view[:count])
        self._at += count
        return count
