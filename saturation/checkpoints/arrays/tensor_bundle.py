"""TensorFlow's V2 checkpoints: a sorted table `<prefix>.index` and shards with the arrays' bytes.

The table is LevelDB's: blocks of prefix-compressed (key, value) entries, an index block, a footer.
A value is a small protocol buffer that says an array's type, shape, shard, offset, size and
checksum. Sources: https://github.com/google/leveldb/blob/main/doc/table_format.md;
`tensorflow/core/protobuf/tensor_bundle.proto`, `tensor_shape.proto`, `types.proto`.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Iterator

import numpy as np

from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.arrays.checksum import crc32c
from saturation.checkpoints.disk_array import (
    DTYPES,
    Box,
    DiskArray,
    FileArray,
    box_shape,
)
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

_FOOTER = 48
_MASK_DELTA = 0xA282EAD8
_MAGIC = 0xDB4775248B80FB57
_LARGEST_INDEX = 64 * 1024 * 1024
# Keys share beginnings with the one before, so that a small table could unfold into a huge one.
_MAX_ENTRIES = 50_000
# The numbers that types.proto gives to the types read here.
_DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}


class _Damaged(Exception):
    """Something in the table is not as it must be."""


class BundleArray(DiskArray):
    """An array in a shard, whose checksum is verified when all of it is read from front to back."""

    def __init__(self, where: str, stored: FileArray, checksum: int):
        self.shape, self.dtype = stored.shape, stored.dtype
        self._where, self._stored, self._checksum = where, stored, checksum
        self._lock = threading.Lock()
        self._rows_so_far = self._checksum_so_far = 0

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        values = self._stored.read(box, out)
        if box_shape(box)[1:] == self.shape[1:]:
            rows = box[0] if box else slice(0, 1)
            self._verify(rows.start, rows.stop, values.reshape(-1).view(np.uint8))
        return values

    def _verify(self, start: int, stop: int, data: np.ndarray) -> None:
        """Take in rows that follow those before; after the last ones, raise if they are damaged."""
        with self._lock:
            if start == 0:
                self._rows_so_far = self._checksum_so_far = 0
            if start != self._rows_so_far:
                return
            self._checksum_so_far = crc32c(data, self._checksum_so_far)
            self._rows_so_far = stop
            found, whole = self._checksum_so_far, stop == (self.shape[0] if self.shape else 1)
        if whole and found != self._checksum:
            raise CheckpointFormatError(
                f"{self._where} is damaged: its bytes have the checksum {found:#010x} and "
                f"{self._checksum:#010x} was written. Copy the file again."
            )


def is_index(folder: Folder, name: str) -> bool:
    """Say whether a file ends as such a table does."""
    size = folder.size(name)
    return size >= _FOOTER and folder.read(name, size - 8, size) == struct.pack("<Q", _MAGIC)


def read_index(folder: Folder, name: str) -> dict[str, DiskArray]:
    """Return the arrays of the bundle whose table is the file `name` (`<prefix>.index`).

    Raises:
      CheckpointFormatError: the table is damaged, or a shard is missing or too short.
    """
    where, size = folder.where(name), folder.size(name)
    folder.head(name, 64)
    if size > _LARGEST_INDEX:
        raise CheckpointFormatError(f"{where} is too large for the table of a checkpoint: {size}.")
    try:
        table = list(itertools.islice(_table(folder.read(name)), _MAX_ENTRIES + 1))
        if len(table) > _MAX_ENTRIES:
            raise _Damaged(f"it has more than {_MAX_ENTRIES} entries")
        if not table or table[0][0] != b"":
            raise _Damaged("it has no header")
        header = dict(_fields(table[0][1]))
        shards = _number(header.get(1))
        if header.get(2):
            raise _Damaged("its arrays are big-endian, which is not read here")
        return dict(_arrays(folder, name.removesuffix(".index"), shards, table[1:]))
    except (_Damaged, struct.error, IndexError) as error:
        raise CheckpointFormatError(
            f"{where} is truncated or damaged: {error or 'it ends too early'}."
        ) from error


def _arrays(
    folder: Folder, prefix: str, shards: int, table: list[tuple[bytes, bytes]]
) -> Iterator[tuple[str, DiskArray]]:
    for key, value in table:
        name = key.decode(errors="replace")
        entry = dict(_fields(value))
        dtype = _DTYPES.get(_number(entry.get(1)))
        if dtype is None:
            # Strings (a saver's own bookkeeping) and the like.
            continue
        if 7 in entry:
            raise _Damaged(f"{name!r} is stored in slices, which are not read here")
        shape = bounds.sizes(folder.where(f"{prefix}.index"), "shape", _shape(entry.get(2, b"")))
        shard = f"{prefix}.data-{_number(entry.get(3)):05d}-of-{shards:05d}"
        stored = FileArray(folder, shard, _number(entry.get(4)), shape, DTYPES[dtype])
        if stored.nbytes != _number(entry.get(5)):
            raise _Damaged(f"{name!r} of shape {shape} has {_number(entry.get(5))} bytes")
        checksum = _unmasked(_number(entry.get(6)))
        yield name, BundleArray(f"{folder.where(shard)}: the array {name!r}", stored, checksum)


def _unmasked(stored: int) -> int:
    """Return the checksum that was stored masked, as TensorFlow and LevelDB do.

    A checksum of data that holds its own checksum would be a constant.
    """
    rotated = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17) | (rotated << 15) & 0xFFFFFFFF


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) entries of a table."""
    footer = data[-_FOOTER:]
    if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise _Damaged("it does not end as a table does")
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    end = 0
    for _, handle in _block(data, *index):
        (start, size), _ = _handle(handle, 0)
        # In a table blocks follow each other; going back would let a small file unfold for ever.
        if start < end:
            raise _Damaged("its blocks overlap")
        end = start + size
        yield from _block(data, start, size)


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    end = start + size
    if size < 4 or end + 5 > len(data):
        raise _Damaged(f"a block is said to lie at {start} to {end} of {len(data)} bytes")
    if data[end] != 0:
        raise _Damaged("it is compressed, which TensorFlow never does")
    if crc32c(data[start : end + 1]) != _unmasked(struct.unpack_from("<I", data, end + 1)[0]):
        raise _Damaged(f"the checksum of the block at {start} is wrong")
    at, stop = start, end - 4 - 4 * struct.unpack_from("<I", data, end - 4)[0]
    key = b""
    while at < stop:
        shared, at = _varint(data, at)
        fresh, at = _varint(data, at)
        length, at = _varint(data, at)
        if shared > len(key) or at + fresh + length > stop:
            raise _Damaged(f"an entry at {at} reaches out of its block")
        if shared + fresh > bounds.LONGEST_NAME:
            raise _Damaged(f"an entry at {at} has a name of {shared + fresh} bytes")
        key = key[:shared] + data[at : at + fresh]
        yield key, data[at + fresh : at + fresh + length]
        at += fresh + length


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    start, at = _varint(data, at)
    size, at = _varint(data, at)
    return (start, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Damaged(f"a number at {at} does not end")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of each field of a protocol buffer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise _Damaged("a field reaches out of its entry")
            value, at = data[at : at + length], at + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value = int.from_bytes(data[at : at + width], "little")
            if at + width > len(data):
                raise _Damaged("a field reaches out of its entry")
            at += width
        else:
            raise _Damaged(f"a field is of the unknown kind {kind}")
        yield tag >> 3, value


def _shape(data: int | bytes) -> tuple[int, ...]:
    return tuple(
        _number(dict(_fields(_text(dimension))).get(1))
        for number, dimension in _fields(_text(data))
        if number == 2
    )


def _number(value: int | bytes | None) -> int:
    # A field that is 0 is not written.
    if isinstance(value, bytes):
        raise _Damaged("a field holds text where a number was expected")
    return value or 0


def _text(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _Damaged("a field holds a number where text was expected")
    return value
