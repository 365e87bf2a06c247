"""Measures of groups of arrays: attention by attention through the steps, on the host.

What a group needs at the next step is read by other threads while one is computed on. The matrices
are small, so that cores are kept busy by as many groups at a time, not within one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from saturation.errors import Stopped
from saturation.measures.base import GroupMeasure, ModelShapes
from saturation.results.folder import RunFolder, part_name
from saturation.results.parts import part_content
from saturation.runs.blocks import blocks_ahead, cores, in_order
from saturation.runs.plan import GroupJob
from saturation.runtime.processes import gather, on_every_process
from saturation.runtime.progress import Progress

if TYPE_CHECKING:
    from saturation.checkpoints.base import Parameter
    from saturation.trajectory.trajectory import Trajectory

Arrays = dict[str, np.ndarray]  # {role: array}


def measure_groups(
    trajectory: Trajectory,
    parameters: dict[str, Parameter],
    todo: Sequence[GroupJob],
    folder: RunFolder,
    described: Mapping[str, Any],
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Do all jobs and write a part for each; after an error or a stop, begin no other.

    Several processes take the jobs in turn, and the first one writes them all.

    Raises:
      CheckpointFormatError: a checkpoint is damaged; what was written before is intact.
      Stopped: `stop` was set before everything was done.
    """
    shapes = ModelShapes.of_run(described)
    this, processes = jax.process_index(), jax.process_count()
    progress.start(sum(job.nbytes(parameters) for job in todo[this::processes]))
    halt = threading.Event()

    def unless_halted(job: GroupJob, readers: Executor) -> bytes:
        if stop.is_set() or halt.is_set():
            return b""
        try:
            rows: list[tuple[int, str, dict[str, Any]]] = []
            for step, arrays in _through_steps(trajectory, job, readers):
                observed = job.measure.observe(job.group, arrays, shapes)
                rows += [(step, scope, found) for scope, found in observed.items()]
                progress.advance(sum(array.nbytes for array in arrays.values()))
        except BaseException:
            halt.set()
            raise
        span = trajectory.steps[job.start], trajectory.steps[job.stop - 1]
        columns = _columns(job.measure, rows)
        return part_content(described, job.measure.name, job.group, span, columns)

    errors, halted = [], False
    with ThreadPoolExecutor(cores(), "read") as readers, ThreadPoolExecutor(cores()) as pool:
        waiting = [
            pool.submit(unless_halted, job, readers) if turn % processes == this else None
            for turn, job in enumerate(todo)
        ]
        for turn, (job, future) in enumerate(zip(todo, waiting, strict=True)):
            try:
                content = on_every_process(future.result if future is not None else bytes)
                if content := gather(content)[turn % processes]:
                    folder.write(_part_name(job, trajectory), content)
            except Exception as error:
                errors.append(error)
                content = b""
            if not content:
                halted = True
                halt.set()
    if errors:
        raise errors[0]
    if halted:
        raise Stopped(
            f"Stopped by a signal. What was finished is in {folder.path}; "
            "run the same command again to compute the rest."
        )


def _part_name(job: GroupJob, trajectory: Trajectory) -> str:
    first, last = trajectory.steps[job.start], trajectory.steps[job.stop - 1]
    return part_name(job.measure.name, job.group, first, last)


def _through_steps(
    trajectory: Trajectory, job: GroupJob, readers: Executor
) -> Iterator[tuple[int, Arrays]]:
    """Yield each step of a job with the group's arrays, the next steps' being read meanwhile."""
    steps = trajectory.steps[job.start : job.stop]

    def read(number: int) -> tuple[int, Arrays]:
        checkpoint = trajectory[steps[number]]
        return steps[number], {role: checkpoint.read(name) for role, name in job.arrays.items()}

    return in_order(read, len(steps), blocks_ahead(trajectory), readers)


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
