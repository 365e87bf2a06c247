"""Which tokens of a text are common and which distinct, from what they occur together with.

In the language of Scan and Snap (Tian et al. 2023, arXiv 2305.16380, section 3) a token that
occurs before several next tokens is common, and one that occurs before a single one is distinct.
In real text nearly every token occurs before many. How many in effect is measured here by its
*lift*: two places of different sequences, both with token l before them, have the same next token
n how much more often than two places taken anywhere,

    lift(l) = Σ_n P(n, n | l)/P(n)  ÷  Σ_n P(n, n)/P(n),

each pair of places from two different sequences. It is 1 for a token that says nothing of what
follows, and K/k for one that occurs before k of K equally likely next tokens alike: K for the
paper's distinct tokens and 1 for its common ones. Pairs within one sequence are left out, so that
a rare token does not look distinct because it was seen in one place only: whatever its frequency,
a token that says nothing has a lift of 1 in expectation. The definition is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int8

UNCLASSIFIED, COMMON, DISTINCT = 0, 1, 2
KINDS = ("unclassified", "common", "distinct")
DISTINCT_LIFT = 1.5  # a token that occurs before at most two thirds of the next tokens, in effect
CHUNK = 2**21  # pairs that are sorted at a time

Text = tuple[np.ndarray, np.ndarray]  # tokens and which of them count, both (rows, length)


class Pairs(NamedTuple):
    """Tokens that occur together: a key, and the next token of a place behind it.

    Attributes:
      rows: the sequence each pair stands in; all pairs of one are in the same `Pairs`.
      keys: the earlier token.
      classes: the next token.
    """

    rows: Int[np.ndarray, " pairs"]
    keys: Int[np.ndarray, " pairs"]
    classes: Int[np.ndarray, " pairs"]


def key_kinds(texts: Sequence[Text], vocab_size: int) -> Int8[np.ndarray, " vocab"]:
    """Return for every id whether it is DISTINCT, COMMON, or UNCLASSIFIED.

    Distinct is a lift of at least `DISTINCT_LIFT`; unclassified is a token that fewer than two
    sequences have.

    Args:
      texts: (tokens, which of them count), int and bool (rows, length) each; the rows of one number
        in all of them are one sequence.
      vocab_size: ids are 0 … vocab_size - 1.
    """
    found = lift(_pairs_of_texts(texts), vocab_size)
    kinds = np.where(found >= DISTINCT_LIFT, DISTINCT, COMMON)
    return np.where(np.isnan(found), UNCLASSIFIED, kinds).astype(np.int8)


def lift(chunks: Iterable[Pairs], vocab_size: int) -> Float[np.ndarray, " vocab"]:
    """Return lift(l) of every id, NaN for one that fewer than two sequences have as a key.

    With C_s(l, n) the number of pairs of sequence s and C = Σ_s C_s,

        lift(l) = Σ_n (C(l, n)² - Σ_s C_s(l, n)²)/P(n) ÷ (C(l)² - Σ_s C_s(l)²) ÷ base,

    and base is the same of all keys together.
    """
    keys, classes, together = _Marginal(vocab_size), _Marginal(vocab_size), []
    whole = _Marginal(1)
    for pairs in chunks:
        row, key, of_class, count = _counted(pairs, vocab_size)
        keys.add(row, key, count)
        classes.add(row, of_class, count)
        whole.add(row, np.zeros_like(row), count)
        together.append(_merged(key * vocab_size + of_class, count, count**2))
    if not together:
        return np.full(vocab_size, np.nan)
    joint, count, squares = _merged(*map(np.concatenate, zip(*together, strict=True)))
    seen = classes.total > 0
    inverse = np.divide(whole.total, classes.total, out=np.zeros(vocab_size), where=seen)  # 1/P(n)
    matches = (count**2 - squares) * inverse[joint % vocab_size]
    of_key = np.bincount(joint // vocab_size, matches, minlength=vocab_size)
    base = (classes.across * inverse).sum()
    # A ratio of ratios, multiplied out: 0/0 where no two sequences have the key.
    below = keys.across * base
    return np.divide(
        of_key * whole.across[0], below, out=np.full(vocab_size, np.nan), where=below > 0
    )


class _Marginal:
    """Counts of ids, all sequences together and, squared, within each."""

    def __init__(self, size: int) -> None:
        self.total = np.zeros(size)
        self._within = np.zeros(size)

    def add(self, rows: np.ndarray, ids: np.ndarray, counts: np.ndarray) -> None:
        """Add counts of whole sequences."""
        size = len(self.total)
        places, of_row, _ = _merged(rows * size + ids, counts, counts)
        self.total += np.bincount(places % size, of_row, minlength=size)
        self._within += np.bincount(places % size, of_row**2, minlength=size)

    @property
    def across(self) -> np.ndarray:
        """The number of ordered pairs of occurrences in different sequences."""
        return self.total**2 - self._within


def _counted(pairs: Pairs, vocab_size: int) -> tuple[np.ndarray, ...]:
    """Return rows, keys, classes, and how often each of them occurs, float64."""
    numbers = np.unique(pairs.rows)
    row = np.searchsorted(numbers, pairs.rows)  # from 0, so that the product below fits int64
    triple = (row * vocab_size + pairs.keys) * vocab_size + pairs.classes
    triple, counts = np.unique(triple, return_counts=True)
    key, of_class = divmod(triple % vocab_size**2, vocab_size)
    return triple // vocab_size**2, key, of_class, counts.astype(np.float64)


def _merged(places: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the places, each once, and the sums of their values."""
    distinct, which = np.unique(places, return_inverse=True)
    return distinct, *(np.bincount(which, value) for value in values)


def _pairs_of_texts(
    texts: Sequence[Text],
) -> Iterator[Pairs]:
    """Yield every pair of a token and a later one of its row, several rows at a time."""
    rows = max((len(tokens) for tokens, _ in texts), default=0)
    a_row = sum(tokens.shape[1] ** 2 // 2 for tokens, _ in texts)
    step = max(1, CHUNK // max(a_row, 1))
    for start in range(0, rows, step):
        found = [
            _pairs_of_rows(tokens[start : start + step].astype(np.int64), valid, start)
            for tokens, valid in ((t, v[start : start + step]) for t, v in texts)
        ]
        yield Pairs(*map(np.concatenate, zip(*found, strict=True)))


def _pairs_of_rows(tokens: np.ndarray, valid: np.ndarray, first: int) -> Pairs:
    earlier, later = np.triu_indices(tokens.shape[1], 1)
    kept = valid[:, earlier] & valid[:, later]
    rows = np.broadcast_to(first + np.arange(len(tokens))[:, None], kept.shape)
    return Pairs(rows[kept], tokens[:, earlier][kept], tokens[:, later][kept])
