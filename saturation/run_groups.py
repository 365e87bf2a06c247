"""Measures of groups of arrays: attention by attention through the steps, on the host.

What a group needs at the next step is read by other threads while one is computed on. The matrices
are small, so that cores are kept busy by as many groups at a time, not within one of them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.errors import Stopped
from saturation.measures.base import GroupMeasure
from saturation.parts import write_part
from saturation.plan import GroupJob
from saturation.progress import Progress
from saturation.runfolder import RunFolder
from saturation.stream import blocks_ahead

if TYPE_CHECKING:
    from saturation.checkpoints.base import Parameter
    from saturation.trajectory import Trajectory

Arrays = dict[str, np.ndarray]  # {role: array}


def measure_groups(
    trajectory: Trajectory,
    parameters: dict[str, Parameter],
    todo: Sequence[GroupJob],
    folder: RunFolder,
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Do all jobs and write a part for each; after an error or a stop, begin no other.

    Raises:
      CheckpointFormatError: a checkpoint is damaged; what was written before is intact.
      Stopped: `stop` was set before everything was done.
    """
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    progress.start(sum(job.nbytes(parameters) for job in todo))
    failed = threading.Event()

    def unless_halted(job: GroupJob, readers: Executor) -> bool:
        if stop.is_set() or failed.is_set():
            return False
        try:
            rows: list[tuple[int, str, dict[str, Any]]] = []
            for step, arrays in _read_ahead(trajectory, job, readers):
                observed = job.measure.observe(job.group, arrays, shapes)
                rows += [(step, scope, found) for scope, found in observed.items()]
                progress.advance(sum(array.nbytes for array in arrays.values()))
        except BaseException:
            failed.set()
            raise
        span = trajectory.steps[job.start], trajectory.steps[job.stop - 1]
        write_part(folder, job.measure.name, job.group, span, _columns(job.measure, rows))
        return True

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(workers, "read") as readers, ThreadPoolExecutor(workers) as pool:
        finished = [pool.submit(unless_halted, job, readers) for job in todo]
    completed = [future.result() for future in finished]  # raises the first error there was
    if not all(completed):
        raise Stopped(
            f"Stopped by a signal. What was finished is in {folder.path}; "
            "run the same command again to compute the rest."
        )


def _read_ahead(
    trajectory: Trajectory, job: GroupJob, readers: Executor
) -> Iterator[tuple[int, Arrays]]:
    """Yield each step of a job with the group's arrays, the next steps' being read meanwhile."""

    def read(step: int) -> Arrays:
        return {role: trajectory[step].read(name) for role, name in job.arrays.items()}

    steps = iter(trajectory.steps[job.start : job.stop])
    pending: deque[tuple[int, Future[Arrays]]] = deque()
    try:
        for _ in range(job.stop - job.start):
            while (
                len(pending) <= blocks_ahead(trajectory) and (step := next(steps, None)) is not None
            ):
                pending.append((step, readers.submit(read, step)))
            step, arrays = pending.popleft()
            yield step, arrays.result()
    finally:
        for _, future in pending:
            future.cancel()


def _columns(
    measure: GroupMeasure, rows: Sequence[tuple[int, str, dict[str, Any]]]
) -> dict[str, Any]:
    """Return the part's columns: a row a step and scope, vectors as lists."""
    steps, scopes, found = zip(*rows, strict=True)
    return {
        "step": np.array(steps, np.int64),
        "scope": list(scopes),
        **{name: np.array([float(one[name]) for one in found]) for name in measure.statistics},
        **{name: [one[name] for one in found] for name in measure.vectors},
    }
