"""Blocks of an array through the steps, read ahead by threads into aligned buffers."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from saturation.checkpoints.base import Box
    from saturation.trajectory import Trajectory

BLOCK_BYTES = 32 * 2**20
AHEAD = 1  # blocks that are read while the one before is computed on
# Over a network a block takes many times as long to come as to be computed on.
AHEAD_REMOTE = 4
_ALIGNMENT = 64  # as JAX needs it to use a NumPy buffer where it lies, on the CPU


def blocks(
    shape: Sequence[int], itemsize: int, axis: int, multiple: int = 1, limit: int = BLOCK_BYTES
) -> list[Box]:
    """Return slices along `axis` that cover an array, each of at most `limit` bytes.

    Each has a multiple of `multiple` rows, and that many at least: a compressed chunk that two
    blocks shared would have to be unpacked for both.
    """
    row = itemsize * math.prod(shape) // max(shape[axis], 1)
    rows = max(limit // max(row, 1) // multiple, 1) * multiple
    return [
        tuple(
            slice(start, min(start + rows, size)) if number == axis else slice(0, size)
            for number, size in enumerate(shape)
        )
        for start in range(0, max(shape[axis], 1), rows)
    ]


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised C-contiguous array that begins at a multiple of 64 bytes."""
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + nbytes].view(dtype).reshape(shape)


def blocks_ahead(trajectory: Trajectory) -> int:
    """Return how many blocks of an array are being read while one is computed on."""
    return AHEAD_REMOTE if trajectory.remote else AHEAD


def read_through(
    trajectory: Trajectory, name: str, box: Box, steps: Sequence[int], readers: Executor
) -> Iterator[np.ndarray]:
    """Yield one block of an array at each step, flat, its elements in the same order at every step.

    The next blocks are being read while the caller uses one. A yielded array stays untouched until
    the caller has asked for the second one after it; the first stays untouched throughout.
    """
    shape = tuple(part.stop - part.start for part in box)
    dtype = trajectory[steps[0]].parameters[name].dtype
    ahead = blocks_ahead(trajectory)
    buffers = itertools.chain(
        [aligned_empty(shape, dtype)],
        itertools.cycle([aligned_empty(shape, dtype) for _ in range(ahead + 2)]),
    )

    def read(step: int, buffer: np.ndarray) -> np.ndarray:
        checkpoint = trajectory[step]
        fits = checkpoint.parameters[name].dtype == buffer.dtype
        return checkpoint.read(name, box, buffer if fits else None)

    requests = ((step, next(buffers)) for step in steps)
    order: Literal["C", "F"] | None = None
    pending: deque[Future[np.ndarray]] = deque()
    try:
        for _ in steps:
            while len(pending) <= ahead and (request := next(requests, None)):
                pending.append(readers.submit(read, *request))
            block = pending.popleft().result()
            order = order or ("C" if block.flags.c_contiguous else "F")
            yield block.reshape(-1, order=order)
    finally:
        for future in pending:
            future.cancel()
