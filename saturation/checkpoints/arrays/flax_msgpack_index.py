"""Finds the arrays in a flax msgpack file without loading them.

`flax.serialization` writes a nested map whose leaves are extension types: 1 an array, 3 a numpy
scalar (each holding a shape, the name of a type, and the bytes), 2 a complex number. The walk below
notes where the bytes of each array lie and steps over them, so a file of many gigabytes costs a
few reads, and nothing in the file can make it allocate more than the file could hold.
Format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import math
import struct
from typing import Any

from saturation.checkpoints.arrays import bounds
from saturation.checkpoints.arrays.flat_arrays import JoinedArray
from saturation.checkpoints.disk_array import DTYPES, DiskArray, FileArray, UnreadArray
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

# What is read at once: little after an array was stepped over, more and more where it goes on.
_WINDOW, _LARGEST_WINDOW = 1024, 64 * 1024
_MAX_DEPTH = 64
# Several times what the largest T5 has with its optimizer, and a hundredth of what memory holds.
_MAX_NODES = 100_000
_MAX_TEXT = 1024 * 1024

# First byte -> (struct format of the length that follows, what it is the length of).
_LENGTHS = {
    0xC4: (">B", "bytes"),
    0xC5: (">H", "bytes"),
    0xC6: (">I", "bytes"),
    0xC7: (">B", "extension"),
    0xC8: (">H", "extension"),
    0xC9: (">I", "extension"),
    0xD9: (">B", "text"),
    0xDA: (">H", "text"),
    0xDB: (">I", "text"),
    0xDC: (">H", "list"),
    0xDD: (">I", "list"),
    0xDE: (">H", "map"),
    0xDF: (">I", "map"),
}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_CHUNKED = "__msgpack_chunked_array__"


def first_key(folder: Folder, name: str) -> str | None:
    """Return the first key of the map that the file `name` begins with, or None if it does not."""
    head = folder.heads.get(name, b"")
    if not head or not _is_map(head[0]):
        return None
    try:
        walk = _Walk(folder, name, head)
        kind, count = walk.header()
        key = walk.value(0) if kind == "map" and count else None
    except CheckpointFormatError:
        return None
    return key if isinstance(key, str) else None


def _is_map(first: int) -> bool:
    return 0x80 <= first < 0x90 or first in (0xDE, 0xDF)


def read_index(folder: Folder, name: str) -> dict[Any, Any]:
    """Return the tree in the msgpack file `name`, each array in it as a `FileArray`.

    Raises:
      CheckpointFormatError: the file is a Git-LFS pointer, truncated, or not of this kind.
    """
    folder.head(name, 256)
    walk = _Walk(folder, name)
    tree = walk.value(0)
    if not isinstance(tree, dict):
        raise walk.error("it does not begin with a map")
    if walk.position != walk.size:
        raise walk.error(f"{walk.size - walk.position} bytes follow its end")
    return tree


class _Walk:
    """One pass over a msgpack file through a small window."""

    def __init__(self, folder: Folder, name: str, beginning: bytes = b""):
        self._folder, self._name = folder, name
        self.size = folder.size(name)
        self.position = 0
        self._nodes = 0
        self._start, self._window, self._reach = 0, beginning, _WINDOW

    def error(self, what: str) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"{self._folder.where(self._name)} is truncated or no msgpack file of flax: {what} "
            f"(at byte {self.position} of {self.size})."
        )

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise self.error(f"{count} bytes were expected and it ends")
        begin = self.position - self._start
        if begin < 0 or begin + count > len(self._window):
            goes_on = 0 <= begin <= len(self._window)
            self._reach = min(2 * self._reach, _LARGEST_WINDOW) if goes_on else _WINDOW
            stop = min(self.size, self.position + max(count, self._reach))
            self._window = self._folder.read(self._name, self.position, stop)
            self._start, begin = self.position, 0
        self.position += count
        return self._window[begin : begin + count]

    def header(self) -> tuple[str, Any]:
        """Read one value's first bytes: its kind, and its length (or the value of a scalar)."""
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "scalar", first if first < 0x80 else first - 256
        if first < 0xC0:
            kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
            return kind, first & (0x1F if kind == "text" else 0x0F)
        if first in _CONSTANTS:
            return "scalar", _CONSTANTS[first]
        if first in _NUMBERS:
            return "scalar", self._number(_NUMBERS[first])
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << (first - 0xD4)
        if first not in _LENGTHS:
            raise self.error(f"a value begins with {first:#x}, which msgpack never writes")
        layout, kind = _LENGTHS[first]
        return kind, self._number(layout)

    def value(self, depth: int) -> Any:
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise self.error(f"more than {_MAX_DEPTH} levels or {_MAX_NODES} values")
        kind, count = self.header()
        if kind == "scalar":
            return count
        if kind == "extension":
            return self._extension(count)
        # Each value takes at least a byte, so a larger count is a lie.
        if count > self.size - self.position:
            raise self.error(f"a {kind} of {count} entries or bytes does not fit in the file")
        if kind == "map":
            return self._map(count, depth)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(count)]
        return self._text(kind, count)

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def _text(self, kind: str, count: int) -> str | bytes:
        if count > _MAX_TEXT:
            raise self.error(f"a name or text of {count} bytes")
        try:
            raw = self.take(count)
            return raw if kind == "bytes" else raw.decode()
        except UnicodeDecodeError as error:
            raise self.error("a text is not in UTF-8") from error

    def _map(self, count: int, depth: int) -> dict[Any, Any] | JoinedArray:
        found: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if isinstance(key, (dict, list, DiskArray)) or key in found:
                raise self.error(f"the key {bounds.shown(key)} is not a name or stands twice")
            found[key] = self.value(depth + 1)
        return self._joined(found) if _CHUNKED in found else found

    def _joined(self, parts: dict[Any, Any]) -> JoinedArray:
        """Return the one array that flax cut into chunks because of its size."""
        shape, chunks = parts.get("shape"), parts.get("chunks")
        if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
            raise self.error("a chunked array has no shape or no chunks")
        where = self._folder.where(self._name)
        found = [shape.get(str(axis)) for axis in range(len(shape))]
        sizes = bounds.sizes(where, "shape", found)
        pieces = [chunks.get(str(place)) for place in range(len(chunks))]
        flat = [p for p in pieces if isinstance(p, FileArray) and len(p.shape) == 1]
        if (
            len(flat) != len(pieces)
            or len({piece.dtype for piece in flat}) != 1
            or sum(piece.shape[0] for piece in flat) != math.prod(sizes)
        ):
            raise self.error(f"the chunks of an array of shape {sizes} do not make it up")
        return JoinedArray(bounds.array_shape(where, sizes, flat[0].dtype.itemsize), flat)

    def _extension(self, count: int) -> Any:
        kind = self.take(1)[0]
        end = self.position + count
        if end > self.size:
            raise self.error(f"an extension of {count} bytes does not fit in the file")
        if kind not in (1, 3):
            # Complex numbers and whatever else is never a parameter.
            self.position = end
            return None
        array = self._array()
        if self.position != end:
            raise self.error("an array does not fill its place")
        return array

    def _array(self) -> DiskArray:
        if self.header() != ("list", 3):
            raise self.error("an array is not (shape, type, bytes)")
        kind, rank = self.header()
        if kind != "list" or rank > bounds.MAX_RANK:
            raise self.error("an array has no shape")
        shape = tuple(self.header() for _ in range(rank))
        kind, length = self.header()
        named = self._text(kind, length) if kind == "text" else None
        if not isinstance(named, str) or any(kind != "scalar" for kind, _ in shape):
            raise self.error(
                f"an array has no shape of sizes or no type: {bounds.shown(shape)}, "
                f"{bounds.shown(named)}"
            )
        sizes = bounds.sizes(self._folder.where(self._name), "shape", [n for _, n in shape])
        dtype = DTYPES.get(named)
        kind, length = self.header()
        if dtype is None and kind == "bytes" and length <= self.size - self.position:
            self.position += length
            where, reason = (
                self._folder.where(self._name),
                f"the type {bounds.shown(named)} is not read",
            )
            return UnreadArray(where, sizes, f"{reason} here")
        if dtype is None or kind != "bytes" or length != math.prod(sizes) * dtype.itemsize:
            raise self.error(f"an array of shape {sizes} and type {dtype} has {length} bytes")
        array = FileArray(self._folder, self._name, self.position, sizes, dtype)
        self.position += length
        return array
