"""One model's pass over tokens: stage by stage, all batches in every forward pass asked for.

No more of the model is in memory than a stage, and the next one that is being read; what stays
between stages are the streams of every batch.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from saturation.measures.base import COMBINE, ActivationMeasure, Found, expand_wildcards
from saturation.models.base import Arrays, ModelConfig, Stage
from saturation.models.outputs import (
    Asked,
    layers_left,
    needed_stages,
    nothing_in_range,
    stage_outputs,
)
from saturation.models.variants import Variants, advance, start
from saturation.runs.blocks import cores
from saturation.runs.reduce import accumulation
from saturation.runs.settings import ActivationSettings
from saturation.runs.stage_programs import StagePrograms
from saturation.runtime.progress import Progress
from saturation.runtime.sharding import DATA, make_mesh, over_data, parameter_sharding, place
from saturation.storage.parallel import map_in_threads

if TYPE_CHECKING:
    from saturation.checkpoints.base import Checkpoint
    from saturation.checkpoints.disk_array import Box

Observed = dict[str, dict[str, dict[str, np.ndarray]]]  # {measure: {scope: {statistic: scalar}}}


@dataclass
class _Batch:
    """A batch of tokens on its way through the stages.

    Attributes:
      tokens: {stack: ids}, on the devices.
      iterated: of which sequences `smoothing` iterates each layer's own operator.
      variants: the streams in front of the next stage.
      in_range: by c, whether all squares of a sequence's scaled states are finite so far.
      found: {measure: {scope: {statistic: array}}} of the stages behind it.
    """

    tokens: Arrays
    iterated: jax.Array
    variants: Variants
    in_range: Mapping[float, jax.Array]
    found: dict[str, Found] = field(default_factory=dict)


class StagePass:
    """The pass of some measures over models of one configuration, on a mesh of devices.

    Its programs are kept, so that of all checkpoints only the first is compiled for.
    """

    def __init__(
        self,
        config: ModelConfig,
        measures: Sequence[ActivationMeasure],
        settings: ActivationSettings,
    ) -> None:
        self._config, self.measures, self._settings = config, tuple(measures), settings
        self._needs = reduce(or_, (m.needs(settings.limits, settings.scale) for m in measures))
        self._joint_sequences = settings.joint_sequences_of(config)
        corpus = any(measure.needs_corpus for measure in measures)
        self._key_kinds = settings.key_kinds(config.vocab_size) if corpus else None
        self.stages = needed_stages(config, self._needs)
        axes, shapes = config.parameter_axes(), config.parameter_shapes()
        sizes = (sum(math.prod(shapes[n]) for n in s.parameters.values()) for s in self.stages)
        self._mesh = make_mesh(settings.mesh, 4 * max(sizes))
        self._shardings = {
            name: parameter_sharding(self._mesh, axes[name], shape)
            for name, shape in shapes.items()
        }
        self._observed_first: dict[Any, Stage] = {}
        self._programs: StagePrograms | None = None

    @property
    def programs_compiled(self) -> int:
        """How many programs were compiled: a number that depth does not change."""
        return 0 if self._programs is None else self._programs.count

    def place(self, checkpoint: Checkpoint, stage: Stage, at_once: int = 1) -> Arrays:
        """Return a stage's parameters in float32; each process reads the slices that it holds.

        Args:
          checkpoint: of the model that this pass is of.
          stage: one of `stages`.
          at_once: how many arrays are read at a time.
        """

        def placed(name: str) -> jax.Array:
            def read(box: Box) -> np.ndarray:
                return np.ascontiguousarray(checkpoint.read(name, box), np.float32)

            return place(checkpoint.parameters[name].shape, self._shardings[name], read)

        arrays = map_in_threads(placed, stage.parameters.values(), at_once)
        return dict(zip(stage.parameters, arrays, strict=True))

    def on_devices(self, name: str, array: Any) -> jax.Array:
        """Return a parameter that is in memory, laid out as `place` does."""
        with self._numerics():
            return jax.device_put(array, self._shardings[name])

    def observe(self, parameters: Iterator[Arrays], progress: Progress) -> Observed:
        """Return the statistics of a checkpoint, summed over all sequences in float64.

        Args:
          parameters: of each of `stages` in turn, as `place` returns them.
          progress: told when a program is compiled.
        """
        with self._numerics(), _HostWork(self._numerics) as host:
            batches = list(self._batches())
            programs = self._programs_for(batches[0], progress)
            # Not by a name: a stage's parameters would stay while the next one's are read.
            for stage in self.stages:
                self._through(programs, stage, next(parameters), batches, host)
        return self._summed(batches)

    def _through(
        self,
        programs: StagePrograms,
        stage: Stage,
        parameters: Arrays,
        batches: Sequence[_Batch],
        host: _HostWork,
    ) -> None:
        """Move every batch behind a stage, and let the measures take what they need of it."""
        left = jnp.asarray(layers_left(self._config, stage), jnp.int32)
        for batch in batches:
            before = Variants(batch.variants.model) if stage.head else batch.variants
            terms = self._settings.terms
            after, taps = advance(stage, before, parameters, batch.tokens, terms, programs)
            # Expansions stay outside: what is asked of the limit is among the taps.
            shown = replace(after, parameter=None)
            observed = (before.model, shown, taps, batch.in_range, left, batch.iterated)
            key = ("observe", stage.key, stage.stack, tuple(map(_last, stage.scopes)))
            first = self._observed_first.setdefault(key, stage)
            seen, batch.in_range = programs.call(
                key, self._observation(first), parameters, batch.tokens, *observed, whole=True
            )
            batch.variants = after
            host.take(self.measures, jax.device_get(seen), _names(stage, first), batch.found)

    def _observation(self, stage: Stage) -> Any:
        """The function that lets every measure observe a stage, from arrays alone."""

        def observe(
            parameters: Arrays,
            tokens: Arrays,
            before: Any,
            after: Any,
            taps: Any,
            in_range: Any,
            left: jax.Array,
            iterated: jax.Array,
        ) -> Any:
            settings = self._settings
            asked = Asked(
                self._config,
                tokens,
                self._config.valid_tokens(tokens),
                settings.limits,
                settings.scale,
                settings.terms,
                self._key_kinds,
                iterated,
            )
            outputs, in_range = stage_outputs(
                asked, stage, parameters, before, after, taps, in_range, left
            )
            return {m.name: m.observe(outputs) for m in self.measures}, in_range

        return observe

    def _batches(self) -> Iterator[_Batch]:
        """Yield the batches of tokens, before the first stage."""
        names = [*(stack.name for stack in self._config.stacks), "targets"]
        sharding, rows = over_data(self._mesh), self._mesh.shape[DATA]
        for *tables, iterated in self._settings.batches(rows, self._joint_sequences):
            placed = [place(each.shape, sharding, each.__getitem__) for each in (*tables, iterated)]
            tokens = dict(zip(names, placed[:-1], strict=False))
            in_range = nothing_in_range(self._needs, len(iterated))
            yield _Batch(tokens, placed[-1], start(self._needs), in_range)

    def _programs_for(self, batch: _Batch, progress: Progress) -> StagePrograms:
        if self._programs is None:
            self._programs = StagePrograms(self._mesh, len(batch.iterated))
        self._programs.progress = progress
        return self._programs

    @contextmanager
    def _numerics(self) -> Iterator[None]:
        """Parameters stay float32, and so the model; its limits and all sums are float64."""
        with ExitStack() as stack:
            stack.enter_context(jax.enable_x64(accumulation(jax.default_backend()) == "float64"))
            if not self._settings.fast:
                stack.enter_context(jax.default_matmul_precision("highest"))
            yield

    def _summed(self, batches: Sequence[_Batch]) -> Observed:
        """Return the sums over all batches, by every scope's own name."""
        total: Observed = {measure.name: {} for measure in self.measures}
        for batch in batches:
            for measure in self.measures:
                found = batch.found.get(measure.name, {})
                found = found if measure.finish is None else measure.finish(found)
                filled = {scope: measure.filled(sums) for scope, sums in found.items()}
                _accumulate(total[measure.name], expand_wildcards(filled), measure)
        return total


class _HostWork:
    """What measures compute on the host, beside the next stages, on all cores.

    Args:
      numerics: the context that every thread computes in.
    """

    def __init__(self, numerics: Any) -> None:
        self._numerics = numerics
        self._pool = ThreadPoolExecutor(cores(), "host")
        self._under_way: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    def take(
        self,
        measures: Sequence[ActivationMeasure],
        seen: Mapping[str, Found],
        names: Mapping[str, str],
        found: dict[str, Found],
    ) -> None:
        """Add what a stage gave to what was found, under the stage's own names."""
        for measure in measures:
            ours = {_renamed(scope, names): each for scope, each in seen[measure.name].items()}
            scopes = found.setdefault(measure.name, {})
            if measure.on_host is None or not ours:
                with self._lock:
                    _merge(scopes, ours)
                continue
            # No more are kept than cores can soon take: matrices of a stage are many.
            while len(self._under_way) > 2 * cores():
                self._under_way.popleft().result()
            self._under_way.append(self._pool.submit(self._work, measure.on_host, ours, scopes))

    def _work(self, on_host: Any, ours: Found, scopes: Found) -> None:
        with self._numerics():
            given = on_host(ours)
        with self._lock:
            _merge(scopes, given)

    def __enter__(self) -> _HostWork:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            while self._under_way and kind is None:
                self._under_way.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def _last(scope: str) -> str:
    return scope.rpartition("/")[2].rstrip("0123456789")


def _names(stage: Stage, first: Stage) -> dict[str, str]:
    """What the scopes of the first stage of this kind are called in another one."""
    names = dict(zip(first.scopes, stage.scopes, strict=True))
    if stage.attention is not None and first.attention is not None:
        names[first.attention.path] = stage.attention.path
        names[first.attention.layer] = stage.attention.layer
    return names


def _renamed(scope: str, names: Mapping[str, str]) -> str:
    ours = max((n for n in names if scope == n or scope.startswith(f"{n}/")), key=len, default="")
    return names.get(ours, "") + scope.removeprefix(ours)


def _merge(scopes: Found, ours: Found) -> None:
    for scope, sums in ours.items():
        scopes[scope] = scopes.get(scope, {}) | sums


def _accumulate(
    total: dict[str, dict[str, np.ndarray]], partial: Found, measure: ActivationMeasure
) -> None:
    for scope, statistics in partial.items():
        sums = total.setdefault(scope, {})
        for name, rule in measure.statistics.items():
            value = np.asarray(statistics[name], np.float64)
            both = COMBINE[rule](sums[name], value) if name in sums else value
            sums[name] = np.asarray(both)
