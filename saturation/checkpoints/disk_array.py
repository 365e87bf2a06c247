"""Arrays as a format stores them, of which any slice can be read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np

from saturation.checkpoints.arrays import bounds
from saturation.errors import CheckpointFormatError, SaturationError
from saturation.storage.folder import Folder

Box = tuple[slice, ...]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The formats' own spellings differ; these are the types that weights and their companions have.
DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "bfloat16": BFLOAT16,
        **{
            name: np.dtype(getattr(ml_dtypes, name))
            for name in (
                *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
                *("float8_e4m3b11fnuz", "float8_e4m3", "float8_e3m4"),
            )
        },
        **{
            name: np.dtype(name)
            for name in (
                *("float16", "float32", "float64", "complex64", "complex128", "bool"),
                *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
            )
        },
    }
)
FLOAT8 = frozenset(dtype for name, dtype in DTYPES.items() if name.startswith("float8_"))
_WEIGHTS = FLOAT8 | {DTYPES[name] for name in ("bfloat16", "float16", "float32", "float64")}


class DiskArray(ABC):
    """One array as a format stores it.

    Attributes:
      unsummed: the file whose writer left out the checksums that its format has, else "".
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    unsummed: str = ""

    @abstractmethod
    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Return the slice `box` (of `box_shape(box)`), in `out` where one is given.

        `out` is C-contiguous and has the slice's shape and the array's dtype.
        """

    def verify(self) -> None:  # noqa: B027 (most formats verify what they read, as they read it)
        """Read and verify all of it where the format keeps a checksum that covers more.

        Raises:
          CheckpointFormatError: the bytes are damaged.
        """

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """How many positions of each axis are read at once, whichever of them is asked for."""
        return (1,) * len(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_weight(self) -> bool:
        """Whether this can be a parameter: real floating point, no scalar, with elements."""
        return len(self.shape) > 0 and 0 not in self.shape and self.dtype in _WEIGHTS


class UnreadArray(DiskArray):
    """An array that is there and whose elements are not read here.

    Attributes:
      reason: what is not read, such as "the type 'int4' is not read here".
    """

    def __init__(self, where: str, shape: tuple[int, ...], reason: str):
        # Its elements have no type here, so that it can never be taken for a weight.
        self.shape, self.dtype = bounds.array_shape(where, shape, 1), np.dtype(np.void)
        self._where, self.reason = where, reason

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        raise CheckpointFormatError(f"{self._where}: {self.reason}.")


class MemoryArray(DiskArray):
    """An array that is in memory already: small leaves written into an index file."""

    def __init__(self, values: np.ndarray):
        self.shape, self.dtype = values.shape, values.dtype
        self._values = values

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        out = _buffer(box, self.dtype, out)
        np.copyto(out, self._values[box])
        return out


class FileArray(DiskArray):
    """An array that lies in one file, uncompressed, little-endian and in C order.

    Raises:
      CheckpointFormatError: the array would reach beyond the end of the file.
    """

    # Skipping fewer bytes than this costs more than reading them.
    _GAP = 32 * 1024

    def __init__(
        self, folder: Folder, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype
    ):
        self.shape = bounds.array_shape(folder.where(name), shape, dtype.itemsize)
        self.dtype = dtype
        self._folder, self._name, self._offset = folder.folder_that_reads(name), name, offset
        end = offset + self.nbytes
        if offset < 0 or end > folder.size(name):
            raise CheckpointFormatError(
                f"{folder.where(name)} is truncated or its index is wrong: an array of shape "
                f"{shape} and type {dtype} is said to lie in bytes {offset} to {end} and the file "
                f"has {folder.size(name)}."
            )

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        out = _buffer(box, self.dtype, out)
        if out.size:
            self._fill(box, out, self._offset)
        return out

    def _fill(self, box: Box, out: np.ndarray, offset: int) -> None:
        """Fill `out` with the slice `box` of the array that begins at byte `offset`."""
        shape = self.shape[len(self.shape) - len(box) :]
        tail = math.prod(shape[1:]) * self.dtype.itemsize
        if box_shape(box)[1:] == shape[1:]:
            start = offset + (box[0].start * tail if box else 0)
            self._folder.read_into(self._name, start, _bytes_of(out))
        elif tail - out[0].nbytes <= self._GAP:
            # One row at a time keeps the buffer for the unwanted columns small.
            row = np.empty(shape[1:], self.dtype)
            for position, target in zip(range(box[0].start, box[0].stop), out, strict=True):
                self._folder.read_into(self._name, offset + position * tail, _bytes_of(row))
                np.copyto(target, row[box[1:]])
        else:
            for position, target in zip(range(box[0].start, box[0].stop), out, strict=True):
                self._fill(box[1:], target, offset + position * tail)


class SplitArray(DiskArray):
    """An array of which one axis is seen as several, as `numpy.reshape` would part it.

    Args:
      array: the array.
      axis: the axis that is parted.
      sizes: those of the axes in its place, the major one first.
    """

    def __init__(self, array: DiskArray, axis: int, sizes: tuple[int, ...]):
        self.shape = (*array.shape[:axis], *sizes, *array.shape[axis + 1 :])
        self.dtype, self.unsummed = array.dtype, array.unsummed
        self._array, self._axis, self._sizes = array, axis, sizes

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        out = _buffer(box, self.dtype, out)
        first, last = self._axis, self._axis + len(self._sizes) - 1
        before, behind, run = box[:first], box[last + 1 :], box[last]
        everything = (slice(None),) * len(before)
        for index in np.ndindex(box_shape(box)[first:last]):
            places = (part.start + i for part, i in zip(box[first:last], index, strict=True))
            start = 0
            for place, size in zip(places, self._sizes, strict=False):
                start = start * size + place
            start *= self._sizes[-1]
            rows = slice(start + run.start, start + run.stop)
            np.copyto(out[(*everything, *index)], self._array.read((*before, rows, *behind)))
        return out


def as_box(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    """Return `index` as one slice with start and stop for each axis of `shape`.

    Raises:
      SaturationError: more slices than axes, or a step other than 1.
    """
    index = () if index is None else index
    if len(index) > len(shape) or any(part.step not in (None, 1) for part in index):
        raise SaturationError(
            f"{index} does not index an array of shape {shape}: a slice of step 1 for each axis, "
            "at most, is expected."
        )
    full = (*index, *(slice(None),) * (len(shape) - len(index)))
    ranges = (part.indices(size) for part, size in zip(full, shape, strict=True))
    return tuple(slice(start, max(start, stop)) for start, stop, _ in ranges)


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the shape of the slice `box`."""
    return tuple(part.stop - part.start for part in box)


def _buffer(box: Box, dtype: np.dtype, out: np.ndarray | None) -> np.ndarray:
    return np.empty(box_shape(box), dtype) if out is None else out


def _bytes_of(values: np.ndarray) -> memoryview:
    # Through uint8, since the buffer protocol does not know bfloat16.
    return values.reshape(-1).view(np.uint8).data
