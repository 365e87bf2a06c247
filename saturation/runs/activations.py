"""Measures of activations: checkpoint by checkpoint, and in each stage by stage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.errors import Stopped
from saturation.measures.base import ActivationMeasure
from saturation.models.base import Arrays, ModelConfig, Stage, model_config
from saturation.results.folder import RunFolder
from saturation.results.parts import ACTIVATIONS, write_part
from saturation.runs.blocks import cores, in_order
from saturation.runs.settings import ActivationSettings
from saturation.runs.stage_pass import Observed, StagePass
from saturation.runtime.processes import any_process, on_every_process
from saturation.runtime.progress import Progress
from saturation.runtime.tuning import give_memory_back
from saturation.storage.parallel import AT_ONCE

if TYPE_CHECKING:
    from saturation.checkpoints.base import Checkpoint
    from saturation.trajectory.trajectory import Trajectory


def measure_activations(
    trajectory: Trajectory,
    todo: Mapping[int, Sequence[ActivationMeasure]],
    settings: ActivationSettings,
    folder: RunFolder,
    described: Mapping[str, Any],
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Measure each step of `todo` and write a part for each of its measures.

    Raises:
      MeasureError: the checkpoints are of no known model, or the tokens lie outside its vocabulary.
      Stopped: `stop` was set; the step at hand is written.
    """
    give_memory_back()
    kept: dict[tuple[Any, ...], StagePass] = {}
    # Here and not by the reader: processes agree on a mesh, for which only the main thread speaks.
    passes = [
        _passes_of(trajectory[step], measures, settings, kept) for step, measures in todo.items()
    ]
    steps, at_once = list(todo), AT_ONCE if trajectory.remote else cores()
    read_in_turn = [
        (step, one_pass, stage)
        for step, several in zip(steps, passes, strict=True)
        for one_pass in several
        for stage in one_pass.stages
    ]

    def placed(number: int) -> Arrays:
        step, one_pass, stage = read_in_turn[number]
        return one_pass.place(trajectory[step], stage, at_once)

    progress.start(sum(_nbytes(trajectory[step], stage) for step, _, stage in read_in_turn))
    with ThreadPoolExecutor(1, "read") as reader:
        read = in_order(placed, len(read_in_turn), 1, reader)

        def parameters(step: int, one_pass: StagePass) -> Iterator[Arrays]:
            """Yield those of each stage; the next one's, or the next step's, are read meanwhile."""
            for stage in one_pass.stages:
                yield on_every_process(lambda: next(read))
                progress.advance(_nbytes(trajectory[step], stage), f"step {step}")

        for (step, measures), several in zip(todo.items(), passes, strict=True):
            if any_process(stop.is_set()):
                raise Stopped(
                    f"Stopped by a signal before step {step}. What was finished is in "
                    f"{folder.path}; run the same command again to compute the rest."
                )
            observed: Observed = {}
            for one_pass in several:
                observed |= one_pass.observe(parameters(step, one_pass), progress)
            for measure in measures:
                columns = _columns(measure, observed)
                write_part(folder, described, measure.name, ACTIVATIONS, (step, step), columns)


def observe_checkpoint(
    checkpoint: Checkpoint, measures: Sequence[ActivationMeasure], settings: ActivationSettings
) -> Observed:
    """Return the statistics of one checkpoint, summed over all sequences in float64.

    Args:
      checkpoint: of a model of a known family.
      measures: share one pass through its stages, but for those on tokens of their own.
      settings: the tokens and how they are run.
    """
    observed: Observed = {}
    for one_pass in _passes_of(checkpoint, measures, settings, {}):
        parameters = (one_pass.place(checkpoint, stage) for stage in one_pass.stages)
        observed |= one_pass.observe(parameters, Progress("", "B", quiet=True))
    return observed


def observe_arrays(
    config: ModelConfig,
    arrays: Mapping[str, Any],
    measures: Sequence[ActivationMeasure],
    settings: ActivationSettings,
) -> Callable[[], Observed]:
    """Return the function that observes a model whose parameters are in memory, compiled once.

    Args:
      config: of the model.
      arrays: {name of a parameter: array}; the model computes in their dtype.
      measures: share one pass through its stages.
      settings: the tokens and how they are run.
    """
    one_pass, quiet = StagePass(config, measures, settings), Progress("", "B", quiet=True)

    def parameters() -> Iterator[Arrays]:
        for stage in one_pass.stages:
            yield {
                local: one_pass.on_devices(n, arrays[n]) for local, n in stage.parameters.items()
            }

    return lambda: one_pass.observe(parameters(), quiet)


def _passes_of(
    checkpoint: Checkpoint,
    measures: Sequence[ActivationMeasure],
    settings: ActivationSettings,
    kept: dict[tuple[Any, ...], StagePass],
) -> list[StagePass]:
    """Return the passes for a checkpoint: one on the tokens, one for each measure on its own."""
    config = model_config(checkpoint)
    settings.refuse_other_vocabulary(config.vocab_size, checkpoint.path)
    own = {measure.name: settings.on_own_tokens(measure, config) for measure in measures}
    shared = [measure for measure in measures if own[measure.name] is settings]
    apart = [[measure] for measure in measures if own[measure.name] is not settings]
    return [
        _pass_of(config, group, own[group[0].name], kept) for group in (shared, *apart) if group
    ]


def _pass_of(
    config: ModelConfig,
    measures: Sequence[ActivationMeasure],
    settings: ActivationSettings,
    kept: dict[tuple[Any, ...], StagePass],
) -> StagePass:
    """Return the pass for a model, the one in `kept` where there is one, compiled once."""
    key = (config, tuple(measure.name for measure in measures))
    if key not in kept:
        kept[key] = StagePass(config, measures, settings)
    return kept[key]


def _columns(
    measure: ActivationMeasure, observed: Observed
) -> dict[str, np.ndarray | Sequence[str]]:
    scopes = observed[measure.name]
    return {
        "scope": list(scopes),
        **{
            name: np.array([float(statistics[name]) for statistics in scopes.values()])
            for name in measure.statistics
        },
    }


def _nbytes(checkpoint: Checkpoint, stage: Stage) -> int:
    return sum(checkpoint.parameters[name].nbytes for name in stage.parameters.values())
