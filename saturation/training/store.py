"""Checkpoints of a pretraining, written and read back through Orbax."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from saturation.errors import ResultsError
from saturation.training.folder import OutputPath, in_bucket, writing_to
from saturation.training.step import TrainState

RESUME = "resume"

_REFUSAL = re.compile(
    r"no space left on device|disk quota exceeded|read-only|permission.denied", re.IGNORECASE
)


class CheckpointWriter:
    """The trajectory in a folder, and beside it the place where an interrupted run stopped.

    Saving returns when the checkpoint is complete: Orbax writes under a temporary name and
    renames, in a bucket it adds a file that says so. It is not asynchronous, since the next update
    overwrites the arrays it would be reading.

    Args:
        folder: of the pretraining; made where it does not exist.

    Attributes:
        folder: the same.
    """

    def __init__(self, folder: OutputPath) -> None:
        self.folder = folder
        self._trajectory = self._open(folder, max_to_keep=None)
        self._resume: ocp.CheckpointManager | None = None
        if (folder / RESUME).is_dir():
            self._resume = self._open(folder / RESUME, max_to_keep=1)

    def _open(self, folder: OutputPath, max_to_keep: int | None) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep, enable_async_checkpointing=False, create=True
        )
        with writing_to(self.folder):
            place = folder if in_bucket(folder) else folder.resolve()
            return ocp.CheckpointManager(place, options=options)

    @property
    def steps(self) -> tuple[int, ...]:
        """Complete checkpoints of the trajectory, ascending."""
        return tuple(sorted(self._trajectory.all_steps()))

    @property
    def latest(self) -> int | None:
        """The last step that a run can go on from, if any."""
        stopped = self._resume.all_steps() if self._resume else ()
        return max([*self._trajectory.all_steps(), *stopped], default=None)

    def save(self, state: TrainState) -> None:
        """Add a checkpoint to the trajectory; where an earlier session stopped is forgotten."""
        self._write(self._trajectory, state)
        if self._resume:
            self._resume.close()
            self._resume = None
            epath.Path(self.folder / RESUME).rmtree()

    def save_to_resume(self, state: TrainState) -> None:
        """Keep a state to go on from without making it part of the trajectory."""
        step = int(state["step"])
        if step == self.latest:
            return
        self._resume = self._resume or self._open(self.folder / RESUME, max_to_keep=1)
        self._write(self._resume, state)

    def _write(self, manager: ocp.CheckpointManager, state: TrainState) -> None:
        with writing_to(self.folder), _without_orbax_tracebacks():
            try:
                manager.save(int(state["step"]), args=ocp.args.StandardSave(state))
            except ValueError as error:  # TensorStore's, which holds the operating system's text
                reason = _REFUSAL.search(str(error))
                if reason is None:
                    raise
                raise OSError(reason[0]) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at `step`.

        Args:
            step: one of `steps`, or `latest`.
            like: a state of the same shapes, dtypes and placement.

        Raises:
            ResultsError: when the checkpoint does not hold such a state.
        """
        manager = self._trajectory if step in self.steps else self._resume
        if manager is None:
            raise ResultsError(f"{self.folder}: there is no checkpoint of step {step}.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            saved: Any = manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise ResultsError(
                f"{self.folder}: the checkpoint of step {step} cannot be resumed from; remove its "
                "folder to go on from the one before."
            ) from error
        return saved

    def close(self) -> None:
        """Release Orbax's threads."""
        self._trajectory.close()
        if self._resume:
            self._resume.close()


@contextlib.contextmanager
def _without_orbax_tracebacks() -> Iterator[None]:
    """Orbax logs the traceback of each of its threads that fails, and then raises the error too."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
