"""Measures of activations: checkpoint by checkpoint, one jitted pass over batches of tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from saturation.errors import Stopped
from saturation.measures.base import COMBINE, ActivationMeasure, expand_wildcards
from saturation.results.folder import RunFolder
from saturation.results.parts import ACTIVATIONS, write_part
from saturation.runs.blocks import cores, in_order
from saturation.runs.reduce import accumulation, enable_x64
from saturation.runs.settings import ActivationSettings
from saturation.runtime.processes import any_process, on_every_process
from saturation.runtime.progress import Progress
from saturation.runtime.sharding import (
    DATA,
    make_mesh,
    over_data,
    parameter_sharding,
    place,
    replicated,
)
from saturation.storage.parallel import AT_ONCE, map_in_threads

if TYPE_CHECKING:
    from saturation.checkpoints.base import Checkpoint
    from saturation.checkpoints.disk_array import Box
    from saturation.models import T5Config
    from saturation.trajectory.trajectory import Trajectory


Observed = dict[str, dict[str, dict[str, np.ndarray]]]  # {measure: {scope: {statistic: scalar}}}


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
      MeasureError: the checkpoints are of no T5, or the tokens lie outside its vocabulary.
      Stopped: `stop` was set; the step at hand is written.
    """
    kept: dict[tuple[Any, ...], _Pass] = {}
    # Here and not by the reader: processes agree on a mesh, for which only the main thread speaks.
    passes = [
        _pass_of(trajectory[step], measures, settings, kept) for step, measures in todo.items()
    ]
    steps, at_once = list(todo), AT_ONCE if trajectory.remote else cores()

    def placed(number: int) -> Any:
        return passes[number].place(trajectory[steps[number]], at_once)

    progress.start(sum(_nbytes(trajectory[step]) for step in todo))
    # A CPU has no time to read ahead, nor memory beside the device's; others wait for the network.
    ahead = trajectory.remote or jax.default_backend() != "cpu"
    with ThreadPoolExecutor(1, "read") if ahead else nullcontext() as reader:
        read = in_order(placed, len(steps), 1, reader)
        for (step, measures), one_pass in zip(todo.items(), passes, strict=True):
            if any_process(stop.is_set()):
                raise Stopped(
                    f"Stopped by a signal before step {step}. What was finished is in "
                    f"{folder.path}; run the same command again to compute the rest."
                )
            # Not by a name: this step's parameters would stay while the next one's are read.
            observed = observe(
                one_pass, on_every_process(lambda: next(read)), measures, settings, progress
            )
            for measure in measures:
                columns = _columns(measure, observed)
                write_part(folder, described, measure.name, ACTIVATIONS, (step, step), columns)
            progress.advance(_nbytes(trajectory[step]), f"step {step}")


def observe_checkpoint(
    checkpoint: Checkpoint, measures: Sequence[ActivationMeasure], settings: ActivationSettings
) -> Observed:
    """Return the statistics of one checkpoint, summed over all sequences in float64.

    Args:
      checkpoint: of a T5.
      measures: share one jitted pass.
      settings: the tokens and how they are run.
    """
    one_pass = _pass_of(checkpoint, measures, settings, {})
    return observe(one_pass, one_pass.place(checkpoint), measures, settings)


def observe(
    one_pass: _Pass,
    parameters: Any,
    measures: Sequence[ActivationMeasure],
    settings: ActivationSettings,
    progress: Progress | None = None,
) -> Observed:
    """Return the statistics that a pass over all tokens gives with these parameters.

    Args:
      one_pass: of the model.
      parameters: as it places them.
      measures: share the pass.
      settings: the tokens and how they are run.
      progress: told when the pass is compiled.
    """
    total: Observed = {}
    with ExitStack() as stack:
        # Parameters stay float32, and so the model; its limits and all sums are float64.
        stack.enter_context(enable_x64(accumulation(jax.default_backend()) == "float64"))
        if not settings.fast:
            stack.enter_context(jax.default_matmul_precision("highest"))
        for partial in one_pass.observe(parameters, progress or Progress("", "B", quiet=True)):
            _accumulate(total, partial, measures)
    return total


def _pass_of(
    checkpoint: Checkpoint,
    measures: Sequence[ActivationMeasure],
    settings: ActivationSettings,
    kept: dict[tuple[Any, ...], _Pass],
) -> _Pass:
    """Return the pass for a checkpoint, the one in `kept` where there is one, compiled once."""
    from saturation.models import T5Config

    config = T5Config.from_checkpoint(checkpoint)
    settings.refuse_other_vocabulary(config.vocab_size, checkpoint.path)
    key = (config, tuple(measure.name for measure in measures))
    if key not in kept:
        kept[key] = _Pass(config, measures, settings)
    return kept[key]


class _Pass:
    """The jitted pass of some measures over one model, on a mesh of devices."""

    def __init__(
        self, config: T5Config, measures: Sequence[ActivationMeasure], settings: ActivationSettings
    ) -> None:

        self._settings = settings
        self._joint_sequences = settings.joint_sequences_of(config)
        self._mesh = make_mesh(settings.mesh, 4 * config.num_parameters)
        axes = config.parameter_axes()
        self._shardings = {
            name: parameter_sharding(self._mesh, axes[name], shape)
            for name, shape in config.parameter_shapes().items()
        }
        self._jitted = jax.jit(
            _traced(config, measures, settings), out_shardings=replicated(self._mesh)
        )
        self._compiled: Any = None

    def observe(self, parameters: Any, progress: Progress) -> Iterator[Any]:
        """Yield {measure: {scope: {statistic: scalar}}} of each batch of the tokens."""
        rows = self._mesh.shape[DATA]
        sharding = over_data(self._mesh)
        for batch in self._settings.batches(rows, self._joint_sequences):
            placed = [place(each.shape, sharding, each.__getitem__) for each in batch]
            if self._compiled is None:  # apart, so that it is in no rate
                with progress.compiling():
                    self._compiled = self._jitted.lower(parameters, *placed).compile()
            observed = jax.device_get(self._compiled(parameters, *placed))
            yield {name: expand_wildcards(scopes) for name, scopes in observed.items()}

    def place(self, checkpoint: Checkpoint, at_once: int = 1) -> dict[str, Any]:
        """Return the nested parameters in float32; each process reads the slices that it holds.

        Args:
          checkpoint: of the model that this pass is of.
          at_once: how many arrays are read at a time.
        """
        from flax.traverse_util import unflatten_dict

        def placed(name: str) -> jax.Array:
            def read(box: Box) -> np.ndarray:
                return np.ascontiguousarray(checkpoint.read(name, box), np.float32)

            return place(checkpoint.parameters[name].shape, self._shardings[name], read)

        arrays = map_in_threads(placed, self._shardings, at_once)
        return unflatten_dict(dict(zip(self._shardings, arrays, strict=True)), sep="/")


def _traced(
    config: T5Config, measures: Sequence[ActivationMeasure], settings: ActivationSettings
) -> Callable[..., Any]:
    from saturation.models.forwards import ModelOutputs

    asked = any(measure.needs_corpus for measure in measures)
    kinds = settings.key_kinds(config.vocab_size) if asked else None

    def observe(
        parameters: Any, encoder_tokens: jax.Array, decoder_tokens: jax.Array, iterated: jax.Array
    ) -> Any:
        forwards = ModelOutputs(
            config,
            parameters,
            encoder_tokens,
            decoder_tokens,
            settings.scale,
            settings.terms,
            settings.limits,
            kinds,
            iterated,
        )
        return {measure.name: measure.observe(forwards) for measure in measures}

    return observe


def _accumulate(total: Observed, partial: Observed, measures: Sequence[ActivationMeasure]) -> None:
    for measure in measures:
        scopes = total.setdefault(measure.name, {})
        for scope, statistics in partial[measure.name].items():
            sums = scopes.setdefault(scope, {})
            for name, rule in measure.statistics.items():
                value = np.asarray(statistics[name], np.float64)
                both = COMBINE[rule](sums[name], value) if name in sums else value
                sums[name] = np.asarray(both)


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


def _nbytes(checkpoint: Checkpoint) -> int:
    return sum(parameter.nbytes for parameter in checkpoint.parameters.values())
