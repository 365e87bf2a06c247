"""What was decided while a limit was computed: ties, what is undecided, and how clear it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp


class TieReport(NamedTuple):
    """The ties of one limit; numbers are in units of B = Σ|a||b| (`saturation.limit.ties`).

    Attributes:
      ties: int32, elements beyond the first that attain a maximum in every kept term.
      undecided: int32, signs and comparisons that lay between a tie and a difference.
      largest_tie: float, the largest difference that was called a tie; 0 if all were exact.
      smallest_gap: float, the smallest that was called none; ∞ if there was none.
      ties_reliable: whether all was computed in float64; elsewhere ties are compared to the bit.
    """

    ties: jax.Array
    undecided: jax.Array
    largest_tie: jax.Array
    smallest_gap: jax.Array
    ties_reliable: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tally:
    """A `TieReport` in the making."""

    ties: jax.Array
    undecided: jax.Array
    largest_tie: jax.Array
    smallest_gap: jax.Array

    @classmethod
    def empty(cls) -> Tally:
        """Return that of nothing."""
        none, wide = jnp.zeros((), jnp.int32), jnp.result_type(float)
        return cls(none, none, jnp.zeros((), wide), jnp.full((), jnp.inf, wide))

    def with_ties(self, count: jax.Array) -> Tally:
        """Return it with more ties."""
        return replace(self, ties=self.ties + count)

    def with_undecided(self, where: jax.Array) -> Tally:
        """Return it with what is undecided in these places."""
        return replace(self, undecided=self.undecided + jnp.sum(where, dtype=jnp.int32))

    def with_differences(
        self, difference: jax.Array, size: jax.Array, tied: jax.Array, asked: jax.Array
    ) -> Tally:
        """Return it with differences of these sizes B, in the places that were asked of."""
        counts = asked & jnp.isfinite(difference) & (size > 0) & (difference != 0)
        ratio = jnp.abs(difference) / jnp.where(counts, size, 1)
        largest = jnp.max(jnp.where(counts & tied, ratio, 0), initial=0)
        smallest = jnp.min(jnp.where(counts & ~tied, ratio, jnp.inf), initial=jnp.inf)
        wide = self.largest_tie.dtype
        return replace(
            self,
            largest_tie=jnp.maximum(self.largest_tie, largest.astype(wide)),
            smallest_gap=jnp.minimum(self.smallest_gap, smallest.astype(wide)),
        )
