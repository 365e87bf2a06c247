"""What tokens are taken and how forwards run, for the command line, experiment files and Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.errors import MeasureError
from saturation.measures import needs_corpus, needs_tokens
from saturation.measures.saturation.measure import checked_limits
from saturation.measures.scan.cooccurrence import key_kinds
from saturation.measures.smoothing.measure import affordable_sequences
from saturation.models.base import LIMITS
from saturation.text.beside import refuse_bytes, vocabulary_beside
from saturation.text.sequences import BUILTIN, TokenBatch, is_ids, read_corpus_tokens, read_tokens
from saturation.text.vocabulary import BYTES

if TYPE_CHECKING:
    from saturation.checkpoints.base import Parameter
    from saturation.models import T5Config
    from saturation.trajectory.trajectory import Trajectory


# What no attention sees, whatever is measured: `models.t5`.
MASKS = "the encoder's padding (id 0), in self- and cross-attention; in the decoder later positions"


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

    def fingerprint(self) -> dict[str, Any]:
        """Return what `run.json` records, by which runs and steps are comparable."""
        return {
            "tokens": self.tokens.fingerprint(),
            "masks": MASKS,
            "scale": self.scale,
            "terms": self.terms,
            "limits": list(self.limits),
            "joint_sequences": self.joint_sequences,
            "matmul_precision": "default" if self.fast else "highest",
        }

    def describe_corpus(self) -> dict[str, Any]:
        """Return what `run.json` records where a measure tells common from distinct tokens."""
        return (self.corpus or self.tokens).fingerprint()

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

    first = trajectory[trajectory.steps[0]]
    found = asked or vocabulary_beside(first.path, trajectory.path) or BYTES
    if found == BYTES:
        # Before a text is read, which may be too short in bytes and long enough in pieces.
        refuse_bytes(texts[0], T5Config.from_parameters(first.parameters).vocab_size, first.path)
    return found
