"""The synthetic language: sequences of one class, told apart by the tokens only that class has.

Token ids, in order: common tokens, the distinct tokens of each class, the last tokens, and one next
token a class. A sequence of class n is T − 1 draws from P(·|n), on the common tokens and the
class's own, then the last token ψ(n); the token to predict is the class's next token. Several
classes share a last token, so that only the distinct tokens tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saturation.errors import ArgumentError
from saturation.studies.scan_snap.model import Sequences


@dataclass(frozen=True)
class Language:
    """Which tokens there are, and how often each class uses them.

    Attributes:
        last_tokens: L, distinct last tokens of a sequence.
        next_per_last: classes that share a last token; n = L · next_per_last classes in all.
        common: tokens that every class uses, with weight 1 each.
        distinct: tokens of each class alone, with weights evenly spaced from 0.1 to 1.
        unused: further ids that never occur; they only enlarge the softmax.

    Raises:
        ArgumentError: when a number is not positive (`unused`: negative).
    """

    last_tokens: int
    next_per_last: int = 2
    common: int = 10
    distinct: int = 10
    unused: int = 0

    def __post_init__(self) -> None:
        counts = (self.last_tokens, self.next_per_last, self.common, self.distinct)
        if min(counts) < 1 or self.unused < 0:
            raise ArgumentError(f"A language needs at least one token of each kind, found {self}.")

    @property
    def classes(self) -> int:
        """n, the number of classes (the paper's K)."""
        return self.last_tokens * self.next_per_last

    @property
    def size(self) -> int:
        """M, the number of token ids."""
        return self.common + (self.distinct + 1) * self.classes + self.last_tokens + self.unused

    @cached_property
    def last(self) -> Int[np.ndarray, " classes"]:
        """ψ(n): the last token of each class's sequences."""
        first = self.common + self.distinct * self.classes
        return first + np.arange(self.classes, dtype=np.int32) // self.next_per_last

    @cached_property
    def next(self) -> Int[np.ndarray, " classes"]:
        """The token that follows each class's sequences."""
        first = self.common + self.distinct * self.classes + self.last_tokens
        return first + np.arange(self.classes, dtype=np.int32)

    @cached_property
    def tokens(self) -> Int[np.ndarray, "classes support"]:
        """The tokens each class draws from: the common ones, then its own."""
        own = self.common + np.arange(self.classes * self.distinct, dtype=np.int32)
        common = np.tile(np.arange(self.common, dtype=np.int32), (self.classes, 1))
        return np.concatenate([common, own.reshape(self.classes, -1)], axis=1)

    @cached_property
    def probabilities(self) -> Float[np.ndarray, " support"]:
        """P(l|n) of those tokens, the same for every class."""
        weights = np.concatenate([np.ones(self.common), np.linspace(0.1, 1, self.distinct)])
        return weights / weights.sum()


def draw(key: Array, language: Language, batch: int, length: int) -> Sequences:
    """Draw sequences of classes that are all equally likely.

    Args:
        key: of the random draws.
        language: what is drawn from.
        batch: sequences.
        length: T − 1, tokens before the last one.
    """
    class_key, token_key = jax.random.split(key)
    classes = jax.random.randint(class_key, (batch,), 0, language.classes)
    below = jnp.asarray(np.cumsum(language.probabilities)[:-1], jnp.float32)
    uniform = jax.random.uniform(token_key, (batch, length, 1))
    at_most = jnp.sum(uniform < below, axis=1).astype(jnp.float32)  # draws of tokens 0 … l
    none, all_ = jnp.zeros((batch, 1)), jnp.full((batch, 1), float(length))
    counts = jnp.diff(jnp.concatenate([none, at_most, all_], axis=1), axis=1)
    return _sequences(language, classes, counts)


def population(language: Language) -> Sequences:
    """One sequence without end of each class: its counts are the probabilities themselves."""
    probabilities = jnp.asarray(language.probabilities, jnp.float32)
    counts = jnp.tile(probabilities, (language.classes, 1))
    return _sequences(language, jnp.arange(language.classes), counts)


def _sequences(
    language: Language, classes: Int[Array, " batch"], counts: Float[Array, "batch support"]
) -> Sequences:
    return Sequences(
        last=jnp.asarray(language.last)[classes],
        tokens=jnp.asarray(language.tokens)[classes],
        counts=counts,
        following=jnp.asarray(language.next)[classes],
    )
