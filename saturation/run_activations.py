"""Measures of activations: checkpoint by checkpoint, one jitted pass over batches of tokens."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from saturation.batches import BUILTIN, TokenBatch, is_ids, read_corpus_tokens, read_tokens
from saturation.checkpoints.parallel import AT_ONCE, each
from saturation.errors import MeasureError, Stopped
from saturation.measures import needs_corpus, needs_tokens
from saturation.measures.base import COMBINE, ActivationMeasure, without_stars
from saturation.measures.cooccurrence import key_kinds
from saturation.measures.reduce import accumulation, enable_x64
from saturation.measures.saturation import LIMITS, checked_limits
from saturation.measures.smoothing import affordable_sequences
from saturation.parts import ACTIVATIONS, write_part
from saturation.processes import any_of, everywhere
from saturation.progress import Progress
from saturation.runfolder import RunFolder
from saturation.sharding import (
    DATA,
    make_mesh,
    over_data,
    parameter_sharding,
    place,
    replicated,
)
from saturation.stream import cores, in_order
from saturation.training.tokens import BYTES
from saturation.vocabularies import refuse_bytes, vocabulary_beside

if TYPE_CHECKING:
    from saturation.checkpoints.base import Box, Checkpoint, Parameter
    from saturation.models import T5Config
    from saturation.trajectory import Trajectory

# What no attention sees, whatever is measured: `models.t5`.
MASKS = "the encoder's padding (id 0), in self- and cross-attention; in the decoder later positions"

Observed = dict[str, dict[str, dict[str, np.ndarray]]]  # {measure: {scope: {statistic: scalar}}}


@dataclass(frozen=True)
class ActivationSettings:
    """What measures of activations are taken on, and how.

    Attributes:
      tokens: the sequences; by default 32 windows of the text that ships with Python, as bytes,
        which a model of more than 400 ids refuses.
      batch_size: sequences in one forward pass.
      scale: the finite c of f(x; cθ).
      terms: terms of the series that computes the parameter limit.
      joint_sequences: of how many `smoothing` iterates each layer's own operator: the first that
        have two tokens or more; None: as many as cost little (`smoothing.affordable_sequences`).
      fast: let matrix products run at the device's default precision, not the highest.
      limits: what `saturation` compares the network with, of "attention", "parameter" and
        "scaled"; what is left out costs nothing and its metrics are absent.
      mesh: sizes of the mesh of devices, as `make_mesh` takes them; by default as the model fits.
      corpus: by which `scan` tells common from distinct tokens; by default the tokens themselves.
    """

    tokens: TokenBatch = field(default_factory=read_tokens)
    batch_size: int = 8
    scale: float = 1000.0
    terms: int = 4
    fast: bool = False
    limits: tuple[str, ...] = LIMITS
    mesh: Mapping[str, int] | None = None
    corpus: TokenBatch | None = None
    joint_sequences: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", checked_limits(self.limits))
        if not 0 < self.scale < math.inf:
            raise MeasureError(
                f"The scale c of f(x; cθ) is a positive number, such as 1000; found {self.scale}."
            )

    def describe(self) -> dict[str, Any]:
        """Return what `run.json` records, by which runs and steps are comparable."""
        return {
            "tokens": self.tokens.describe(),
            "masks": MASKS,
            "scale": self.scale,
            "terms": self.terms,
            "limits": list(self.limits),
            "joint_sequences": self.joint_sequences,
            "matmul_precision": "default" if self.fast else "highest",
        }

    def describe_corpus(self) -> dict[str, Any]:
        """Return what `run.json` records where a measure tells common from distinct tokens."""
        return (self.corpus or self.tokens).describe()

    def key_kinds(self, vocab_size: int) -> np.ndarray:
        """Return which ids are common and which distinct, int8 (vocab,)."""
        return key_kinds((self.corpus or self.tokens).texts(), vocab_size)

    def joint_sequences_of(self, config: T5Config) -> int:
        """Return of how many sequences a model's layers are iterated."""
        if self.joint_sequences is not None:
            return self.joint_sequences
        tables = (self.tokens.encoder_input_tokens, self.tokens.decoder_input_tokens)
        return affordable_sequences(config, *(table.shape[1] for table in tables))

    def batches(
        self, multiple: int, left: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield encoder and decoder tokens, and which sequences are iterated, a batch at a time.

        Args:
          multiple: the number of devices that share a batch.
          left: how many sequences are iterated.
        """
        for encoder, decoder in self.tokens.batches(self.batch_size, multiple):
            whole = (encoder > 0).sum(axis=1) > 1
            iterated = whole & (np.cumsum(whole) <= left)
            left -= int(iterated.sum())
            yield encoder, decoder, iterated

    def refuse_other_models(self, parameters: Mapping[str, Parameter], path: str) -> None:
        """Raise where the parameters are of no T5, or of one that does not know all the tokens."""
        from saturation.models import T5Config

        self.refuse_other_vocabulary(T5Config.from_parameters(parameters).vocab_size, path)

    def refuse_other_vocabulary(self, vocab_size: int, path: str) -> None:
        """Raise `MeasureError` where tokens or corpus are of another vocabulary than the model."""
        self.tokens.refuse_unknown(vocab_size, path)
        if self.corpus is not None:
            self.corpus.refuse_unknown(vocab_size, path)


def read_settings(
    measures: Sequence[str],
    *,
    trajectory: Trajectory | None = None,
    tokens: str = BUILTIN,
    vocabulary: str | None = None,
    sequences: int = 32,
    length: int = 128,
    decoder_input: str = "shifted",
    corpus: str | None = None,
    limits: Sequence[str] = LIMITS,
    batch_size: int = 8,
    scale: float = 1000.0,
    terms: int = 4,
    joint_sequences: int | None = None,
    fast: bool = False,
    mesh: Mapping[str, int] | None = None,
) -> ActivationSettings | None:
    """Return what these measures are taken on; None where none of them runs a model.

    Args:
      measures: their names.
      trajectory: whose models are run; beside its checkpoints the vocabulary is looked for.
      tokens: what `read_tokens` reads, with `vocabulary`, `sequences`, `length` and
        `decoder_input`; without a `vocabulary`, the one found, or else bytes.
      corpus: what `read_corpus_tokens` reads, if one of the measures needs it; by default all of
        `tokens`.
      limits: and the others as in `ActivationSettings`.

    Raises:
      ConfigError: the tokens cannot be read.
      MeasureError: an unknown measure or limit, or a scale that is none.
    """
    if not needs_tokens(measures):
        return None
    texts = [source for source in (tokens, corpus or tokens) if not is_ids(source)]
    vocabulary = _vocabulary_of(vocabulary, texts, trajectory)
    batch, text = read_tokens(tokens, vocabulary, sequences, length, decoder_input), None
    if needs_corpus(measures):
        text = read_corpus_tokens(corpus or tokens, vocabulary, length)
    return ActivationSettings(
        batch, batch_size, scale, terms, fast, tuple(limits), mesh, text, joint_sequences
    )


def _vocabulary_of(asked: str | None, texts: Sequence[str], trajectory: Trajectory | None) -> str:
    """Return the vocabulary for these texts: what is asked for, or found, or else bytes.

    Raises:
      MeasureError: that is bytes, and the trajectory's models are of pieces.
    """
    if trajectory is None or not texts:
        return asked or BYTES
    from saturation.models import T5Config

    found = asked or vocabulary_beside(trajectory) or BYTES
    if found == BYTES:
        # Before a text is read, which may be too short in bytes and long enough in pieces.
        first = trajectory[trajectory.steps[0]]
        refuse_bytes(texts[0], T5Config.from_parameters(first.parameters).vocab_size, first.path)
    return found


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
            if any_of(stop.is_set()):
                raise Stopped(
                    f"Stopped by a signal before step {step}. What was finished is in "
                    f"{folder.path}; run the same command again to compute the rest."
                )
            # Not by a name: this step's parameters would stay while the next one's are read.
            observed = observe(
                one_pass, everywhere(lambda: next(read)), measures, settings, progress
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
        from saturation.models.axes import parameter_axes

        self._settings = settings
        self._joint_sequences = settings.joint_sequences_of(config)
        self._mesh = make_mesh(settings.mesh, 4 * config.num_parameters)
        axes = parameter_axes(config)
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
            yield {name: without_stars(scopes) for name, scopes in observed.items()}

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

        arrays = each(placed, self._shardings, at_once)
        return unflatten_dict(dict(zip(self._shardings, arrays, strict=True)), sep="/")


def _traced(
    config: T5Config, measures: Sequence[ActivationMeasure], settings: ActivationSettings
) -> Callable[..., Any]:
    from saturation.measures.forwards import Forwards

    asked = any(measure.needs_corpus for measure in measures)
    kinds = settings.key_kinds(config.vocab_size) if asked else None

    def observe(
        parameters: Any, encoder_tokens: jax.Array, decoder_tokens: jax.Array, iterated: jax.Array
    ) -> Any:
        forwards = Forwards(
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
