"""Blocks of an array through the steps, read into aligned buffers that are used again and again."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    from saturation.checkpoints.disk_array import Box
    from saturation.trajectory.trajectory import Trajectory

T = TypeVar("T")

# Short enough for a block at three steps to stay in the last-level cache, so that memory is read
# once; long enough for a call to cost little beside it. Measured by benchmarks/streaming.py.
BLOCK_BYTES = 3 * 2**20
# Over a network a block takes many times as long to come as to be computed on, and each is a
# request: they are larger, and several are under way for each array.
REMOTE_BLOCK_BYTES = 32 * 2**20
AHEAD_REMOTE = 4
_ALIGNMENT = 64  # as JAX needs it to use a NumPy buffer where it lies, on the CPU


def blocks(
    shape: Sequence[int], itemsize: int, axis: int, multiple: int = 1, limit: int = BLOCK_BYTES
) -> list[Box]:
    """Return slices along `axis` that cover an array, each of at most `limit` bytes.

    Each has a multiple of `multiple` rows, and that many at least: a compressed chunk that two
    blocks shared would have to be unpacked for both. They are as alike as that allows: a call costs
    the same for a short rest.
    """
    if not math.prod(shape):  # nothing to cut, however long the other axes are
        return [tuple(slice(0, size) for size in shape)]
    row = itemsize * math.prod(shape) // max(shape[axis], 1)
    most = max(limit // max(row, 1) // multiple, 1)
    units = -(-shape[axis] // multiple)
    rows = -(-units // -(-units // most)) * multiple if units else multiple
    return [
        tuple(
            slice(start, min(start + rows, size)) if number == axis else slice(0, size)
            for number, size in enumerate(shape)
        )
        for start in range(0, max(shape[axis], 1), rows)
    ]


def block_limit(trajectory: Trajectory) -> int:
    """Return the most bytes of a block."""
    return REMOTE_BLOCK_BYTES if trajectory.remote else BLOCK_BYTES


def blocks_ahead(trajectory: Trajectory) -> int:
    """Return how many blocks of an array are being read while one is computed on.

    None of a local disk: as many arrays are streamed at once as there are cores, and a block is
    computed on by the core that read it, in whose cache it still lies.
    """
    return AHEAD_REMOTE if trajectory.remote else 0


def aligned_empty(count: int, dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array (count,) that begins at a multiple of 64 bytes."""
    nbytes = count * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + nbytes].view(dtype)


class Buffers(threading.local, Generic[T]):
    """The buffers of a thread: new memory costs a page fault every 4 KB, as much as reading it.

    Args:
      view: what to make of each buffer, once.
    """

    def __init__(self, view: Callable[[np.ndarray], T]) -> None:
        self._view = view
        self._kept: list[tuple[np.ndarray, T]] = []

    def take(self, number: int, count: int, dtype: np.dtype) -> list[tuple[np.ndarray, T]]:
        """Return `number` arrays of `count` elements or more, and their views.

        Earlier calls may have returned them too.
        """
        if any(kept.dtype != dtype or kept.size < count for kept, _ in self._kept):
            self._kept = []
        while len(self._kept) < number:
            buffer = aligned_empty(count, dtype)
            self._kept.append((buffer, self._view(buffer)))
        return self._kept[:number]


def read_through(
    trajectory: Trajectory,
    name: str,
    box: Box,
    steps: Sequence[int],
    buffers: Sequence[np.ndarray],
    readers: Executor | None = None,
) -> Iterator[np.ndarray]:
    """Yield one block of an array at each step, flat, its elements in the same order at every step.

    Args:
      trajectory: where the array is.
      name: of the array.
      box: the block.
      steps: in which order to read it.
      buffers: of one dtype, each with room for the block; three more than are read ahead, or four.
      readers: where blocks are read ahead, as many as `blocks_ahead` says.

    Yields:
      A buffer that begins with the block. It stays untouched until the caller asks for the second
      one after it, with four buffers the third; the first stays untouched throughout.
    """
    shape = tuple(part.stop - part.start for part in box)
    ring = buffers[1:]

    def read(number: int) -> tuple[np.ndarray, Literal["C", "F"]]:
        buffer = buffers[0] if number == 0 else ring[(number - 1) % len(ring)]
        return buffer, _read_block(trajectory, name, steps[number], box, shape, buffer)

    order: Literal["C", "F"] | None = None
    for buffer, found in in_order(read, len(steps), blocks_ahead(trajectory), readers):
        order = order or found
        if found != order:
            count = math.prod(shape)
            buffer[:count] = buffer[:count].reshape(shape, order=found).reshape(-1, order=order)
        yield buffer


def _read_block(
    trajectory: Trajectory,
    name: str,
    step: int,
    box: Box,
    shape: tuple[int, ...],
    buffer: np.ndarray,
) -> Literal["C", "F"]:
    """Read a block into the beginning of a buffer and return the order its elements lie in."""
    checkpoint = trajectory[step]
    room = buffer[: math.prod(shape)]
    if checkpoint.parameters[name].dtype == buffer.dtype:
        block = checkpoint.read_box(name, box, room.reshape(shape))
        order = "C" if block.flags.c_contiguous else "F"
    else:
        block = checkpoint.read_box(name, box)
        order = "C" if block.flags.c_contiguous else "F"
        room[:] = block.reshape(-1, order=order)
    return order


def in_order(
    read: Callable[[int], T], number: int, ahead: int, readers: Executor | None
) -> Iterator[T]:
    """Yield read(0) … read(number − 1), with `ahead` of them under way while one is used.

    Args:
      read: what to do.
      number: how often.
      ahead: how many are begun before they are asked for.
      readers: where; None for no reading ahead.
    """
    if readers is None:
        yield from map(read, range(number))
        return
    pending: deque[Future[T]] = deque()
    asked = iter(range(number))
    try:
        for _ in range(number):
            while len(pending) <= ahead and (following := next(asked, None)) is not None:
                pending.append(readers.submit(read, following))
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
