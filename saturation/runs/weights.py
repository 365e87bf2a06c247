"""Measures of weights: array by array through all steps.

Each array is read at the first selected step, then at the next, and so on; only the previous step's
values (and the first's) are kept. So every byte is read once, each pair of neighbours meets in
memory, and memory is a few blocks of 3 MB a core, whatever the size of the model or the number of
steps.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from saturation.errors import Stopped
from saturation.measures.base import COMBINE, Rule, WeightMeasure
from saturation.results.folder import RunFolder
from saturation.results.parts import write_part
from saturation.runs.blocks import Buffers, block_limit, blocks, blocks_ahead, cores, read_through
from saturation.runs.plan import Job, bytes_to_read
from saturation.runs.reduce import (
    NEUTRAL,
    bfloat16_as_bits,
    block_statistics,
    capacity,
    statistic_rules,
    tile,
)
from saturation.runs.shortcuts import Totals, accumulation, completed
from saturation.runtime.processes import any_process, gather, on_every_process
from saturation.runtime.progress import Progress

if TYPE_CHECKING:
    from saturation.checkpoints.base import Parameter
    from saturation.checkpoints.disk_array import Box
    from saturation.trajectory.trajectory import Trajectory

Tiles = Sequence[jax.Array | np.ndarray]  # the pieces of a buffer that a pass takes, on the CPU


class WeightStream:
    """Streams jobs through the device, one to a worker thread, and writes their parts."""

    def __init__(
        self,
        trajectory: Trajectory,
        parameters: dict[str, Parameter],
        folder: RunFolder,
        described: Mapping[str, Any],
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self.trajectory, self.parameters, self.folder = trajectory, parameters, folder
        self.described = described
        self.progress, self.stop = progress, stop
        self.nonfinite: list[tuple[int, str, int]] = []
        self._platform = _platform()
        self._local = _ThreadResources(self._platform)
        self._halt = threading.Event()
        self._turn = {name: number for number, name in enumerate(parameters)}

    def run(self, todo: Sequence[Job]) -> None:
        """Do all jobs; after an error or a stop, finish the jobs at hand and begin no other."""
        self.progress.start(bytes_to_read(todo, self.parameters) / jax.process_count())
        workers = _workers(self._platform)
        ahead = blocks_ahead(self.trajectory)
        reading = ThreadPoolExecutor(workers * (1 + ahead), "read") if ahead else nullcontext()
        errors, halted = [], False
        with reading as readers, ThreadPoolExecutor(workers, "measure") as pool:
            if todo and self._platform == "cpu":
                steps = len(todo[0].earlier) + todo[0].stop - todo[0].start
                # Made here; else each thread would make, and compile, one of its own.
                block_statistics(todo[0].measures, self._platform)
                for position in reversed(range(min(steps, 3))):
                    pool.submit(self._compile, todo[0], position)
            waiting = [pool.submit(self._unless_halted, job, readers) for job in todo]
            # Several processes must speak of the same job at a time.
            for future in as_completed(waiting) if jax.process_count() == 1 else waiting:
                try:
                    halted |= not self._write(future)
                except Exception as error:
                    self._halt.set()
                    errors.append(error)
        if errors:
            raise errors[0]
        if halted:
            raise Stopped(
                f"Stopped by a signal. What was finished is in {self.folder.path}; "
                "run the same command again to compute the rest."
            )

    def _compile(self, job: Job, position: int) -> None:
        """Compile what reduces a tile at a position: 2 is any from there on.

        Each thread another one; else all would compile the same one at a time.
        """
        dtype = self.parameters[job.names[0]].dtype
        with jax.enable_x64(accumulation(self._platform) == "float64"):
            taken = self._local.buffers.take(3, tile(dtype), dtype)
            first, second, third = (tiles[0] for _, tiles in taken)
            now, previous = ((first, first), (second, first), (third, second))[position]
            block_statistics(job.measures, self._platform)(_scalar(0), now, previous, first)

    def _unless_halted(self, job: Job, readers: Executor | None) -> tuple[Job, Totals] | None:
        if self.stop.is_set() or self._halt.is_set():
            return None
        with jax.enable_x64(accumulation(self._platform) == "float64"):
            return job, self._measure(job, readers)

    def _write(self, finished: Future[tuple[Job, Totals] | None]) -> bool:
        """Write the parts of a finished job; return whether it was begun at all, everywhere."""
        result = on_every_process(finished.result)
        if any_process(result is None):
            self._halt.set()
            return False
        job, totals = cast(tuple[Job, Totals], result)
        on_every_process(lambda: self._refuse_changed(job))
        _add_processes(totals, job.measures)
        totals = {name: values[:, len(job.earlier) :] for name, values in totals.items()}
        steps = np.array(self.trajectory.steps[job.start : job.stop], np.int64)
        names = np.repeat(np.array(job.names), len(steps))
        for measure in job.measures:
            columns = {"array": names, "step": np.tile(steps, len(job.names))}
            columns |= {statistic: totals[statistic].ravel() for statistic in measure.statistics}
            span = int(steps[0]), int(steps[-1])
            write_part(self.folder, self.described, measure.name, job.bundle, span, columns)
        if "nonfinite" in totals:
            for array, position in np.argwhere(totals["nonfinite"]):
                count = int(totals["nonfinite"][array, position])
                self.nonfinite.append((int(steps[position]), job.names[array], count))
        return True

    def _refuse_changed(self, job: Job) -> None:
        read = (*job.earlier, *range(job.start, job.stop))
        steps = [self.trajectory.steps[position] for position in read]
        self.trajectory.refuse_changed(steps, unwatched=True)

    def _measure(self, job: Job, readers: Executor | None) -> Totals:
        """Stream a job's arrays through its steps, and return the statistics at all it reads."""
        positions = (*job.earlier, *range(job.start, job.stop))
        steps = [self.trajectory.steps[position] for position in positions]
        rules = statistic_rules(job.measures, self._platform)
        neutral = np.array([NEUTRAL[rule] for rule in rules.values()])
        rows_of: dict[Rule, np.ndarray] = {
            rule: np.flatnonzero([other == rule for other in rules.values()])
            for rule in set(rules.values())
        }
        totals = np.tile(neutral[:, None, None], (len(job.names), len(steps)))
        for number, name in enumerate(job.names):
            for found in self._array(job, name, steps, readers):
                for rule, rows in rows_of.items():
                    of_block = COMBINE[rule].reduce(found[rows], axis=2)
                    totals[rows, number] = COMBINE[rule](totals[rows, number], of_block)
        return completed(dict(zip(rules, totals, strict=True)), job.measures, self._platform)

    def _array(
        self, job: Job, name: str, steps: Sequence[int], readers: Executor | None
    ) -> Iterator[np.ndarray]:
        """Yield the statistics of each block of an array that is this process's.

        They are (statistics, steps, parts).
        """
        parameter, checkpoint = self.parameters[name], self.trajectory[steps[0]]
        axis, multiple = checkpoint.block_axis(name), checkpoint.block_multiple(name)
        limit = min(block_limit(self.trajectory), -(-parameter.nbytes // jax.process_count()))
        boxes = blocks(parameter.shape, parameter.dtype.itemsize, axis, multiple, limit)
        # Arrays of one block are dealt to the processes in turn, as the blocks of larger ones are.
        turn = self._turn[name]
        dtype = _common_dtype({self.trajectory[step].parameters[name].dtype for step in steps})
        for box in boxes[(jax.process_index() - turn) % jax.process_count() :: jax.process_count()]:
            yield np.stack([*self._block(job, name, dtype, box, steps, readers)], axis=1)

    def _block(
        self,
        job: Job,
        name: str,
        dtype: np.dtype,
        box: Box,
        steps: Sequence[int],
        readers: Executor | None,
    ) -> Iterator[np.ndarray]:
        """Yield the statistics of one block at each step, (statistics, parts)."""
        size = math.prod(part.stop - part.start for part in box)
        length = capacity(size, self._platform, dtype)
        number = 3 + blocks_ahead(self.trajectory) + (self._platform != "cpu")
        taken = self._local.buffers.take(number, length, dtype)
        buffers = [buffer for buffer, _ in taken]
        read = read_through(self.trajectory, name, box, steps, buffers, readers)
        if self._platform == "cpu":
            tiles = {id(buffer): of_buffer for buffer, of_buffer in taken}
            found = self._where_they_lie((tiles[id(buffer)] for buffer in read), job, size, dtype)
        else:
            found = self._on_device((buffer[:length] for buffer in read), job, size)
        for statistics in found:
            self.progress.advance(size * dtype.itemsize)
            yield statistics

    def _where_they_lie(
        self, read: Iterator[Tiles], job: Job, size: int, dtype: np.dtype
    ) -> Iterator[np.ndarray]:
        """Yield the statistics of blocks on the CPU, of each tile apart."""
        kernel = block_statistics(job.measures, self._platform)
        starts = range(0, size, tile(dtype)) or [0]
        counts = [_scalar(min(size - start, tile(dtype))) for start in starts]
        first = previous = None
        for now in read:
            first, previous = first or now, previous or now
            operands = zip(counts, now, previous, first, strict=False)
            found = [np.asarray(kernel(*each)) for each in operands]
            yield found[0] if len(found) == 1 else np.concatenate(found, axis=1)
            previous = now

    def _on_device(self, read: Iterator[np.ndarray], job: Job, size: int) -> Iterator[Any]:
        """Yield the statistics of blocks that the device works on while the next one is read."""
        kernel = block_statistics(job.measures, self._platform)
        under_way: deque[Any] = deque()
        first = previous = None
        for block in read:
            now = jax.device_put(block, self._local.device)
            if first is None:
                first = previous = now
            under_way.append(kernel(np.int32(size), now, previous, first))
            previous = now
            if len(under_way) > 1:
                yield np.asarray(under_way.popleft(), np.float64)
        yield from (np.asarray(rest, np.float64) for rest in under_way)


class _ThreadResources(threading.local):
    """What a worker thread has of its own: buffers, and a device, dealt out in turn."""

    def __init__(self, platform: str) -> None:
        devices = jax.local_devices()
        self.device = devices[next(_threads) % len(devices)]
        self.buffers = Buffers(_tiles if platform == "cpu" else lambda buffer: [])


_threads = itertools.count()


def _tiles(buffer: np.ndarray) -> Tiles:
    """Return the tiles of a buffer as arrays of the CPU's, which are the same memory.

    They hold whatever is read into it. Given a buffer itself, each call would make such an array
    anew. Where JAX does not take memory of this alignment as it is, the tile is NumPy's.
    """
    length = tile(buffer.dtype)
    given = bfloat16_as_bits(buffer)
    tiles = [given[start : start + length] for start in range(0, given.size, length)]
    arrays = [jax.device_put(each, may_alias=True) for each in tiles]
    same = all(
        array.unsafe_buffer_pointer() == each.ctypes.data
        for array, each in zip(arrays, tiles, strict=True)
    )
    return arrays if same else tiles


@lru_cache(256)  # most blocks have the same few sizes
def _scalar(count: int) -> jax.Array:
    return jax.device_put(np.int32(count))


def _add_processes(totals: Totals, measures: Sequence[WeightMeasure]) -> None:
    """Combine the statistics of the blocks that each process took, in place; all get the same."""
    rules: dict[str, Rule] = {}
    for measure in measures:
        rules |= measure.statistics
    ours = np.stack([*totals.values()])
    everyones = np.stack([np.frombuffer(given) for given in gather(ours.tobytes())])
    everyones = everyones.reshape(-1, *ours.shape)
    for number, name in enumerate(totals):
        totals[name] = COMBINE[rules[name]].reduce(everyones[:, number])


def _common_dtype(dtypes: set[np.dtype]) -> np.dtype:
    """The dtype that holds the values of all these exactly."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def _platform() -> str:
    return jax.local_devices()[0].platform


def _workers(platform: str) -> int:
    """Return how many arrays are streamed at once: one a core, two to keep an accelerator busy."""
    if platform != "cpu":
        return 2 * jax.local_device_count()
    return cores()
