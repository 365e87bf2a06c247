"""Arrays that lie on disk in one dimension: cut into pieces, or seen through strides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from saturation.checkpoints.disk_array import Box, DiskArray, box_shape


class JoinedArray(DiskArray):
    """An array whose elements, in C order, lie in one-dimensional pieces one after another.

    Args:
      shape: the array's shape, of as many elements as the pieces have together.
      pieces: one-dimensional arrays of one type.
    """

    def __init__(self, shape: tuple[int, ...], pieces: Sequence[DiskArray]):
        self.shape, self.dtype = shape, pieces[0].dtype
        self._pieces = pieces

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        row = math.prod(self.shape[1:])
        whole_rows = box_shape(box)[1:] == self.shape[1:]
        target = np.empty(box_shape(box), self.dtype) if out is None else out
        rows = range(box[0].start, box[0].stop) if box else range(1)
        flat = target.reshape(-1) if whole_rows else np.empty(len(rows) * row, self.dtype)
        self._fill(rows.start * row, flat)
        if not whole_rows:
            values = flat.reshape(len(rows), *self.shape[1:])
            np.copyto(target, values[(slice(None), *box[1:])])
        return target

    def _fill(self, start: int, flat: np.ndarray) -> None:
        """Fill `flat` with the elements from `start` on."""
        begin = 0
        for piece in self._pieces:
            end = begin + piece.shape[0]
            first, last = max(start, begin), min(start + flat.size, end)
            if first < last:
                box = (slice(first - begin, last - begin),)
                piece.read(box, flat[first - start : last - start])
            begin = end


class StridedArray(DiskArray):
    """An array whose element (i, j, ...) is element i·stride₀ + j·stride₁ + ... of a flat one.

    Args:
      flat: a one-dimensional array that reaches as far as the strides do.
      shape: the array's shape.
      strides: for each axis, in elements, none negative.
    """

    def __init__(self, flat: DiskArray, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.shape, self.dtype, self.unsummed = shape, flat.dtype, flat.unsummed
        self._flat, self._strides = flat, strides

    def verify(self) -> None:  # noqa: D102
        self._flat.verify()

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:  # noqa: D102
        target = np.empty(box_shape(box), self.dtype) if out is None else out
        if target.size:
            first = sum(p.start * s for p, s in zip(box, self._strides, strict=True))
            last = sum((p.stop - 1) * s for p, s in zip(box, self._strides, strict=True))
            flat = self._flat.read((slice(first, last + 1),))
            steps = tuple(stride * self.dtype.itemsize for stride in self._strides)
            np.copyto(target, np.lib.stride_tricks.as_strided(flat, target.shape, steps))
        return target
