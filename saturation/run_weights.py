"""Measures of weights: array by array through all steps.

Each array is read at the first selected step, then at the next, and so on; only the previous step's
values (and the first's) are kept. So every byte is read once, each pair of neighbours meets in
memory, and memory is a few blocks of 32 MB, whatever the size of the model or the number of steps.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import jax
import numpy as np

from saturation.errors import Stopped
from saturation.measures.reduce import NEUTRAL, block_statistics, combine, enable_x64
from saturation.parts import write_part
from saturation.plan import Job, bytes_to_read
from saturation.progress import Progress
from saturation.runfolder import RunFolder
from saturation.stream import blocks, blocks_ahead, read_through

if TYPE_CHECKING:
    from saturation.checkpoints.base import Box, Parameter
    from saturation.trajectory import Trajectory

Totals = dict[str, dict[str, np.ndarray]]  # {measure: {statistic: float64 (steps,)}}


class WeightStream:
    """Streams jobs through the device, an array to a worker thread, and writes a part for each."""

    def __init__(
        self,
        trajectory: Trajectory,
        parameters: dict[str, Parameter],
        folder: RunFolder,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self.trajectory, self.parameters, self.folder = trajectory, parameters, folder
        self.progress, self.stop = progress, stop
        self.nonfinite: list[tuple[int, str, int]] = []
        self._failed = threading.Event()

    def run(self, todo: Sequence[Job]) -> None:
        """Do all jobs; after an error or a stop, finish the arrays at hand and begin no other."""
        self.progress.start(bytes_to_read(todo, self.parameters))
        workers = _workers(jax.default_backend())
        readers_each = 1 + blocks_ahead(self.trajectory)
        with (
            ThreadPoolExecutor(workers * readers_each, "read") as readers,
            ThreadPoolExecutor(workers, "measure") as pool,
        ):
            finished = [pool.submit(self._unless_halted, job, readers) for job in todo]
        completed = [future.result() for future in finished]  # raises the first error there was
        if not all(completed):
            raise Stopped(
                f"Stopped by a signal. What was finished is in {self.folder.path}; "
                "run the same command again to compute the rest."
            )

    def _unless_halted(self, job: Job, readers: Executor) -> bool:
        if self.stop.is_set() or self._failed.is_set():
            return False
        try:
            self._measure(job, readers)
        except BaseException:
            self._failed.set()
            raise
        return True

    def _measure(self, job: Job, readers: Executor) -> None:
        """Stream one array through all steps that its measures lack, and write their parts."""
        steps = self.trajectory.steps[job.start : job.stop]
        totals: Totals = {
            measure.name: {
                name: np.full(len(steps), NEUTRAL[rule])
                for name, rule in measure.statistics.items()
            }
            for measure in job.measures
        }
        parameter = self.parameters[job.name]
        checkpoint = self.trajectory[steps[0]]
        axis, multiple = checkpoint.block_axis(job.name), checkpoint.block_multiple(job.name)
        for box in blocks(parameter.shape, parameter.dtype.itemsize, axis, multiple):
            for position, partial in enumerate(self._block(job, box, readers)):
                for measure in job.measures:
                    for name, rule in measure.statistics.items():
                        values = totals[measure.name][name]
                        parts = np.append(partial[measure.name][name], values[position])
                        values[position] = combine(rule, parts)
        for measure in job.measures:
            columns = {"step": np.array(steps, np.int64), **totals[measure.name]}
            write_part(self.folder, measure.name, job.name, (steps[0], steps[-1]), columns)
            self._note_nonfinite(job.name, steps, totals[measure.name].get("nonfinite"))

    def _block(
        self, job: Job, box: Box, readers: Executor
    ) -> Iterator[dict[str, dict[str, np.ndarray]]]:
        """Yield the statistics of one block at each step to do."""
        device = jax.local_devices()[0]
        kernel = block_statistics(job.measures, device.platform)
        positions = (*job.earlier, *range(job.start, job.stop))
        steps = [self.trajectory.steps[position] for position in positions]
        first = previous = None
        for position, block in enumerate(
            read_through(self.trajectory, job.name, box, steps, readers)
        ):
            partial = None
            with enable_x64(True):
                x = jax.device_put(block, device, may_alias=True)
                first = x if first is None else first
                if position >= len(job.earlier):
                    partial = kernel(x, x if previous is None else previous, first)
                    partial = jax.device_get(partial)
            previous = x
            self.progress.advance(block.nbytes)
            if partial is not None:
                yield partial

    def _note_nonfinite(self, name: str, steps: Sequence[int], counts: np.ndarray | None) -> None:
        for step, count in zip(steps, counts if counts is not None else (), strict=False):
            if count:
                self.nonfinite.append((step, name, int(count)))


def _workers(platform: str) -> int:
    """Return how many arrays are streamed at once: one a core, two to keep an accelerator busy."""
    if platform != "cpu":
        return 2
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
