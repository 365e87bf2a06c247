"""Where text comes from, and the batches made of it: a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from saturation.errors import ConfigError
from saturation.text.span_corruption import (
    SpanLengths,
    random_spans_mask,
    shift_right,
    spans_to_sentinels,
)
from saturation.text.vocabulary import Vocabulary


class Batch(NamedTuple):
    """Token ids of one step of training; 0 is padding.

    Attributes:
        encoder_input_tokens: corrupted text.
        decoder_input_tokens: the targets shifted right.
        decoder_target_tokens: what the decoder must say.
    """

    encoder_input_tokens: Int32[np.ndarray, "batch inputs"]
    decoder_input_tokens: Int32[np.ndarray, "batch targets"]
    decoder_target_tokens: Int32[np.ndarray, "batch targets"]


@dataclass(frozen=True)
class SpanCorruptionBatches:
    """Batches of span corruption on windows of a text drawn uniformly.

    The same (seed, step) always gives the same batch, whatever was drawn before, so that a run
    that is resumed sees what it would have seen.

    Attributes:
        tokens: ids of the whole text.
        vocabulary: the one that made them, for its sentinels.
        lengths: see `lengths_to_fill`.
        batch_size: examples in a batch.
        seed: any non-negative integer.
    """

    tokens: Int32[np.ndarray, " tokens"]
    vocabulary: Vocabulary
    lengths: SpanLengths
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) < self.lengths.text:
            raise ConfigError(
                f"the text has {len(self.tokens)} tokens and one example takes "
                f"{self.lengths.text}: give more text or a smaller input_length."
            )

    def __call__(self, step: int) -> Batch:
        """The batch of update number `step`, counted from 0."""
        # The key of a counter-based generator is the pair itself: no state to save or to restore.
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        starts = rng.integers(len(self.tokens) - self.lengths.text + 1, size=self.batch_size)
        text = self.tokens[starts[:, None] + np.arange(self.lengths.text)]
        mask = random_spans_mask(rng, self.batch_size, self.lengths)
        inputs = spans_to_sentinels(text, mask, self.vocabulary.first_sentinel)
        targets = spans_to_sentinels(text, ~mask, self.vocabulary.first_sentinel)
        return Batch(inputs, shift_right(targets), targets)
