"""The one driver: measures a trajectory into a run folder, as far as it is missing there.

Measures of weights go array by array through all steps (`run_weights`), those of several arrays
together group by group (`run_groups`), measures of activations checkpoint by checkpoint
(`run_activations`).
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saturation.errors import MeasureError, ResultsError
from saturation.measures import find_measures, needs_corpus, needs_tokens
from saturation.measures.base import Measure
from saturation.results.folder import RunFolder
from saturation.results.state import RunState
from saturation.runs.activations import measure_activations
from saturation.runs.groups import measure_groups
from saturation.runs.plan import Shard, Work, shared_parameters, work_left
from saturation.runs.run_json import describe_run
from saturation.runs.settings import ActivationSettings, read_settings
from saturation.runs.shared_folder import SharedRunFolder
from saturation.runs.weights import WeightStream
from saturation.runtime.processes import on_every_process, refuse_difference
from saturation.runtime.progress import Progress
from saturation.runtime.sharding import make_mesh
from saturation.runtime.signals import interrupt_requested
from saturation.runtime.tuning import streaming

if TYPE_CHECKING:
    from saturation.checkpoints.base import Parameter
    from saturation.trajectory.trajectory import Trajectory


@dataclass(frozen=True)
class Outcome:
    """What one call of `measure` did.

    Attributes:
      computed, reused: parts written now, and parts that an earlier call had written.
      nonfinite: (step, array, count) of NaN and ±∞ met now, in the order of steps.
    """

    computed: int
    reused: int
    nonfinite: tuple[tuple[int, str, int], ...]

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON holds them."""
        return dataclasses.asdict(self)

    def refuse_nonfinite(self, out: str) -> None:
        """Raise `MeasureError` where NaN or ±∞ were met; the table is written all the same."""
        if self.nonfinite:
            step, name, count = self.nonfinite[0]
            more = f" (and {len(self.nonfinite) - 1} more such)" if len(self.nonfinite) > 1 else ""
            raise MeasureError(
                f"Checkpoint {step} has {count} NaN or infinite values in {name}{more}. The table "
                f"in {out} is complete: `nonfinite` counts them, and the norms of their scopes are "
                "not finite there."
            )


@streaming()
def measure(
    trajectory: Trajectory,
    measures: Sequence[str],
    out: str,
    shard: Shard | None = None,
    common_arrays: bool = False,
    activations: ActivationSettings | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Measure a trajectory into the run folder `out`, computing only what is missing there.

    Args:
      trajectory: what `open_trajectory` returns; its selected steps are measured.
      measures: names from `saturation.measures.MEASURES`.
      out: a folder or a URL; several shards and a restarted run share it.
      shard: the part of the work to do, by arrays or groups of them for weights and by steps for
        activations; all of it by default.
      common_arrays: where checkpoints differ, measure the arrays they share.
      activations: the tokens that measures of activations are taken on, and how; by default those
        of `read_settings`: the text that ships with Python, in the vocabulary that lies beside the
        checkpoints.
      progress: shows the bytes read.
      stop: when set, the arrays or the step at hand are finished and written, and `Stopped` raised;
        by default an interrupt (Ctrl-C, a notebook's stop) does that.

    Raises:
      MeasureError: an unknown measure, checkpoints that differ, or no T5 where one must run.
      ResultsError: `out` cannot be written, holds another run, or is a checkpoint's place.
      CheckpointFormatError: a checkpoint is damaged; what was written before is intact.
      Stopped: `stop` was set before everything was done.
    """
    asked = find_measures(tuple(measures))
    settings = None
    if needs_tokens(measures):
        settings = activations or read_settings(measures, trajectory=trajectory)
    folder, shard = SharedRunFolder(out), shard or Shard()
    progress = progress or Progress("", "B", quiet=True)
    _refuse_out_of_checkpoint(out, trajectory)
    parameters, described = on_every_process(
        lambda: _prepare(trajectory, asked, common_arrays, settings)
    )
    refuse_difference(
        "checkpoints, tokens or settings",
        {key: value for key, value in described.items() if key != "environment"},
    )

    def left_of(state: RunState) -> Work:
        return work_left(state, trajectory.steps, parameters, asked, shard)

    state = RunState.read(folder).joined(described)
    left = left_of(state)  # which refuses models that a measure does not know, before a run begins
    state.write()
    state.verify(asked)
    progress.say(
        f"{left.parts} parts to compute, {left.reused} reused from an earlier run of {folder.path}"
    )
    with interrupt_requested() if stop is None else nullcontext(stop) as stop:
        shared = folder, state.described, progress, stop
        stream = WeightStream(trajectory, parameters, *shared)
        if left.weights:
            stream.run(left.weights)
        if left.groups:
            measure_groups(trajectory, parameters, left.groups, *shared)
        if left.steps and settings is not None:
            measure_activations(trajectory, left.steps, settings, *shared)
    on_every_process(trajectory.refuse_changed)
    # Another command may have written `run.json` when this one did, and known nothing of it.
    after = RunState.read(folder).joined(described)
    if not after.found or left_of(after).parts:
        raise _deleted(folder)
    after.write()
    return Outcome(left.parts, left.reused, tuple(sorted(stream.nonfinite)))


def _deleted(folder: RunFolder) -> ResultsError:
    return ResultsError(
        f"{folder.path} was deleted, in whole or in part, while it was written. Run the same "
        "command again, and let nothing else write to that folder."
    )


def _refuse_out_of_checkpoint(out: str, trajectory: Trajectory) -> None:
    """Raise where the run would lie in a checkpoint, or look like one that is damaged."""
    place, root = (
        path if "://" in path else os.path.realpath(os.path.expanduser(path))
        for path in (os.fspath(out), trajectory.path)
    )
    if not place.startswith(f"{root.rstrip('/')}/"):
        return
    name = place[len(root.rstrip("/")) :].strip("/").split("/")[0]
    if trajectory.is_checkpoint_name(name):
        raise ResultsError(
            f"{out} lies in {trajectory.path} under {name}, the name of a checkpoint; choose "
            "another --out, best one outside the trajectory."
        )


def _prepare(
    trajectory: Trajectory,
    asked: Sequence[Measure],
    common_arrays: bool,
    settings: ActivationSettings | None,
) -> tuple[dict[str, Parameter], dict[str, Any]]:
    """Return the parameters to measure and `run.json`."""
    parameters = shared_parameters(trajectory, common_arrays)
    described = describe_run(trajectory, asked, parameters)
    if settings is not None:
        settings.refuse_trajectory(trajectory)
        if settings.mesh:
            make_mesh(settings.mesh)  # refuses what does not fit the devices
        described["activations"] = settings.fingerprint()
        described |= settings.describe_own_tokens(asked, trajectory)
        if needs_corpus([one.name for one in asked]):
            described["corpus"] = settings.describe_corpus()
    return parameters, described
