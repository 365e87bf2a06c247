"""T5's span corruption: some spans of a text are cut out, and the model must fill them in.

    text     Thank you for inviting me to your party last week
    inputs   Thank you <0> me to your party <1> week </s>
    targets  <0> for inviting <1> last </s>

Source: Raffel et al., JMLR 2020, §3.1.4 and §3.3.4; the arithmetic is that of
`t5/data/preprocessors.py` (`random_spans_helper`, `random_spans_noise_mask`,
`noise_span_to_unique_sentinel`). All rows of a batch have the same number of masked tokens and of
spans, so that no row is padded and everything is whole-array arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from saturation.errors import ConfigError
from saturation.text.vocabulary import EOS, PAD, SENTINELS


class SpanLengths(NamedTuple):
    """How long things are under span corruption.

    Attributes:
        text: tokens of text that one example is made from.
        inputs: encoder input, sentinels and the end-of-sequence token included.
        targets: decoder target, likewise.
        noise: tokens that are masked.
        spans: masked spans they form.
    """

    text: int
    inputs: int
    targets: int
    noise: int
    spans: int


def lengths_of_text(text: int, noise_density: float, mean_span_length: float) -> SpanLengths:
    """Lengths when `text` tokens are corrupted: one sentinel a span, one end of sequence a side.

    Halves round to even. T5 takes the product in float64 for the lengths and in float32 for the
    mask, which differ at some lengths (190 tokens at 15 %: 28 and 29 masked); here it is always
    the former, so that nothing is padded or cut.
    """
    noise = min(max(round(text * noise_density), 1), text - 1)
    spans = max(round(noise / mean_span_length), 1)
    return SpanLengths(text, text - noise + spans + 1, noise + spans + 1, noise, spans)


def lengths_to_fill(inputs: int, noise_density: float, mean_span_length: float) -> SpanLengths:
    """The longest text whose corrupted form fits `inputs` encoder positions.

    T5's own setting, 512 positions with density 0.15 and mean 3, takes 568 tokens and makes
    targets of 114:

    >>> lengths_to_fill(512, 0.15, 3.0)
    SpanLengths(text=568, inputs=512, targets=114, noise=85, spans=28)

    Args:
        inputs: length of the encoder input, in tokens.
        noise_density: fraction of the text that is masked, in (0, 1).
        mean_span_length: mean length of a masked span, in tokens, at least 1.

    Raises:
        ConfigError: when no text fits, or it would need more spans than there are sentinels or
            tokens to separate them.
    """
    text = 2
    while lengths_of_text(text + 1, noise_density, mean_span_length).inputs <= inputs:
        text += 1
    lengths = lengths_of_text(text, noise_density, mean_span_length)
    if lengths.inputs > inputs:
        raise ConfigError(
            f"span corruption needs an input_length of at least {lengths.inputs}, got {inputs}."
        )
    most = min(SENTINELS, lengths.noise, lengths.text - lengths.noise)
    if lengths.spans > most:
        raise ConfigError(
            f"input_length {inputs}, noise_density {noise_density} and mean_span_length "
            f"{mean_span_length} make {lengths.spans} masked spans in each example; at most {most} "
            "are possible here. Use longer spans or a shorter input."
        )
    return lengths


def random_segmentation(
    rng: np.random.Generator, batch: int, items: int, segments: int
) -> Int[np.ndarray, "batch segments"]:
    """Lengths of `segments` non-empty segments of a row of `items`, all partitions equally likely.

    Each row picks which segments − 1 of the items − 1 gaps between neighbours are cut.
    """
    gaps = np.argsort(rng.random((batch, items - 1)), axis=1)[:, : segments - 1] + 1
    ends = np.column_stack([np.sort(gaps, axis=1), np.full(batch, items)])
    return np.diff(ends, axis=1, prepend=0)


def random_spans_mask(
    rng: np.random.Generator, batch: int, lengths: SpanLengths
) -> Bool[np.ndarray, "batch text"]:
    """Which tokens are masked: spans alternate, the first is kept text and the last is masked.

    Kept and masked tokens are cut into `lengths.spans` segments each, independently
    (`random_spans_noise_mask` without `random_roll`).
    """
    kept = random_segmentation(rng, batch, lengths.text - lengths.noise, lengths.spans)
    masked = random_segmentation(rng, batch, lengths.noise, lengths.spans)
    starts = np.cumsum(np.stack([kept, masked], axis=2).reshape(batch, -1), axis=1)[:, :-1]
    is_start = np.zeros((batch, lengths.text), dtype=np.int64)
    np.put_along_axis(is_start, starts, 1, axis=1)
    return np.cumsum(is_start, axis=1) % 2 == 1


def spans_to_sentinels(
    tokens: Int32[np.ndarray, "batch text"],
    mask: Bool[np.ndarray, "batch text"],
    first_sentinel: int,
) -> Int32[np.ndarray, "batch length"]:
    """Put one sentinel in place of each run of masked tokens, and an end of sequence at the end.

    The n-th run of a row becomes `first_sentinel` − n.

    Raises:
        ValueError: when the rows come out unequally long.
    """
    starts = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    sentinels = first_sentinel + 1 - np.cumsum(starts, axis=1, dtype=np.int32)
    stays = ~mask | starts
    widths = stays.sum(axis=1)
    if (widths != widths[0]).any():
        raise ValueError("every row must have as many masked tokens and spans as the others")
    rows = np.where(starts, sentinels, tokens)[stays].reshape(len(tokens), -1)
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=EOS)


def shift_right(
    targets: Int32[np.ndarray, "batch length"],
) -> Int32[np.ndarray, "batch length"]:
    """Decoder inputs: the targets one position later, after T5's start token 0."""
    return np.pad(targets, ((0, 0), (1, 0)), constant_values=PAD)[:, :-1]
