"""What tokens are taken and how forwards run, for the command line, experiment files and Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.config.options import described
from saturation.errors import MeasureError
from saturation.measures import needs_corpus, needs_tokens
from saturation.measures.base import ActivationMeasure, Measure
from saturation.measures.scan.cooccurrence import key_kinds
from saturation.measures.smoothing.measure import affordable_sequences
from saturation.models.base import ModelConfig, model_config
from saturation.runs.options import activation_options, measure_options
from saturation.text.beside import refuse_bytes, vocabulary_beside
from saturation.text.sequences import TokenBatch, is_ids, read_corpus_tokens, read_tokens
from saturation.text.vocabulary import BYTES

if TYPE_CHECKING:
    from saturation.trajectory.trajectory import Trajectory


# What no attention sees, whatever is measured: `models.t5`, and `models.lm`.
MASKS = "the encoder's padding (id 0), in self- and cross-attention; in the decoder later positions"
MASKS_OF_ONE_STACK = "padding, on either side; where the model is causal, later positions"


class ActivationSettings:
    """What measures of activations are taken on, and how.

    Args:
      tokens: the sequences; by default 32 windows of the text that ships with Python, as bytes,
        which a model of more than 400 ids refuses.
      corpus: by which `scan` tells common from distinct tokens; by default the tokens themselves.
      options: what `activation_options` returns; or
      asked: some of them by name, such as `limits=("attention",)`. Each is an attribute of the
        settings too: `settings.limits`.

    Raises:
      ConfigError, MeasureError: an option cannot be used.
    """

    def __init__(
        self,
        tokens: TokenBatch | None = None,
        *,
        corpus: TokenBatch | None = None,
        options: Any = None,
        **asked: Any,
    ) -> None:
        self.tokens = read_tokens() if tokens is None else tokens
        self.corpus = corpus
        self.options = activation_options(**asked) if options is None else options

    def __getattr__(self, name: str) -> Any:
        if name == "options":  # of a copy that has none yet
            raise AttributeError(name)
        return getattr(self.options, name)

    def fingerprint(self) -> dict[str, Any]:
        """Return what `run.json` records, by which runs and steps are comparable."""
        own = {
            one.name: getattr(self.options, one.name)
            for kind in measure_options().values()
            for one in described(kind)
            if one.option.recorded
        }
        return {
            "tokens": self.tokens.fingerprint(),
            "masks": MASKS_OF_ONE_STACK if self.tokens.one_stack else MASKS,
            **{name: list(v) if isinstance(v, tuple) else v for name, v in own.items()},
            "matmul_precision": "default" if self.fast else "highest",
        }

    def describe_corpus(self) -> dict[str, Any]:
        """Return what `run.json` records where a measure tells common from distinct tokens."""
        return (self.corpus or self.tokens).fingerprint()

    def key_kinds(self, vocab_size: int) -> np.ndarray:
        """Return which ids are common and which distinct, int8 (vocab,)."""
        return key_kinds((self.corpus or self.tokens).texts(), vocab_size)

    def joint_sequences_of(self, config: ModelConfig) -> int:
        """Return of how many sequences a model's layers are iterated."""
        if self.joint_sequences is not None:
            return self.joint_sequences
        return affordable_sequences(config, [table.shape[1] for table in self.tokens.stacks])

    def batches(self, multiple: int, left: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the tokens of each stack, and which sequences are iterated, a batch at a time.

        Args:
          multiple: the number of devices that share a batch.
          left: how many sequences are iterated.
        """
        for tables in self.tokens.batches(self.batch_size, multiple):
            whole = (tables[0] > self.tokens.padding).sum(axis=1) > 1
            iterated = whole & (np.cumsum(whole) <= left)
            left -= int(iterated.sum())
            yield *tables, iterated

    def on_own_tokens(self, measure: ActivationMeasure, config: ModelConfig) -> ActivationSettings:
        """Return the settings that a measure is taken on: these, or with tokens of its own."""
        if measure.own_tokens is None:
            return self
        tokens = measure.own_tokens(self.tokens, config, self.options)
        if tokens is None:
            return self
        return ActivationSettings(tokens, corpus=self.corpus, options=self.options)

    def describe_own_tokens(
        self, measures: Sequence[Measure], trajectory: Trajectory
    ) -> dict[str, Any]:
        """Return {measure: what `run.json` says of its own tokens}."""
        return {
            one.name: one.describe(self.tokens, _model_of(trajectory), self.options)
            for one in measures
            if isinstance(one, ActivationMeasure) and one.describe is not None
        }

    def refuse_trajectory(self, trajectory: Trajectory) -> None:
        """Raise where the first checkpoint's model cannot be run on the tokens."""
        self.refuse_model(_model_of(trajectory), trajectory.path)

    def refuse_model(self, config: ModelConfig, path: str) -> None:
        """Raise `MeasureError` where a model has other stacks than the tokens, or a vocabulary."""
        if (len(config.stacks) == 1) != self.tokens.one_stack:
            raise MeasureError(
                f"{self.tokens.source} was read for a model with "
                f"{'one stack' if self.tokens.one_stack else 'an encoder and a decoder'}, which "
                f"the model in {path} is not: read the tokens with that trajectory "
                "(read_settings(…, trajectory=…)), or with read_tokens(…, one_stack=…)."
            )
        self.refuse_other_vocabulary(config.vocab_size, path)

    def refuse_other_vocabulary(self, vocab_size: int, path: str) -> None:
        """Raise `MeasureError` where tokens or corpus are of another vocabulary than the model."""
        self.tokens.refuse_unknown(vocab_size, path)
        if self.corpus is not None:
            self.corpus.refuse_unknown(vocab_size, path)


def read_settings(
    measures: Sequence[str],
    *,
    trajectory: Trajectory | None = None,
    options: Any = None,
    **asked: Any,
) -> ActivationSettings | None:
    """Return what these measures are taken on; None where none of them runs a model.

    Args:
      measures: their names.
      trajectory: whose models are run; beside its checkpoints the vocabulary is looked for.
      options: what `activation_options` returns; or
      asked: some of them by name, such as `tokens="text.txt", sequences=8`.

    Raises:
      ConfigError: the tokens cannot be read, or an option cannot be used.
      MeasureError: an unknown measure or limit.
    """
    if not needs_tokens(measures):
        return None
    options = activation_options(**asked) if options is None else options
    tokens, corpus = options.tokens, options.corpus or options.tokens
    texts = [source for source in (tokens, corpus) if not is_ids(source)]
    config = None if trajectory is None else _model_of(trajectory)
    one_stack = config is not None and len(config.stacks) == 1
    vocabulary = _vocabulary_of(options.vocabulary, texts, trajectory, config)
    asked_for = vocabulary, options.sequences, options.length, options.decoder_input
    batch, text = read_tokens(tokens, *asked_for, one_stack), None
    if needs_corpus(measures):
        text = read_corpus_tokens(corpus, vocabulary, options.length, one_stack)
    return ActivationSettings(batch, corpus=text, options=options)


def _model_of(trajectory: Trajectory) -> ModelConfig:
    return model_config(trajectory[trajectory.steps[0]])


def _vocabulary_of(
    asked: str | None,
    texts: Sequence[str],
    trajectory: Trajectory | None,
    config: ModelConfig | None,
) -> str:
    """Return the vocabulary for these texts: what is asked for, or found, or else bytes.

    Raises:
      MeasureError: that is bytes, and the trajectory's models are of pieces.
    """
    if trajectory is None or config is None or not texts:
        return asked or BYTES
    first = trajectory[trajectory.steps[0]]
    found = asked or vocabulary_beside(first.path, trajectory.path) or BYTES
    if found == BYTES:
        # Before a text is read, which may be too short in bytes and long enough in pieces.
        refuse_bytes(texts[0], config.vocab_size, first.path)
    return found
