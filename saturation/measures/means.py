"""A mean over tokens and its standard error over sequences, from sums that add up.

Tokens of a sequence are not independent, so the error is that of a ratio of two sums over
sequences: with S_s the sum of sequence s and n_s its number of tokens, r = Σ S_s/Σ n_s and
var(r) = N/(N - 1) Σ (S_s - r n_s)²/(Σ n_s)² over N sequences (Cochran, Sampling Techniques,
chapter 6). Its numerator is ΣS² - 2r ΣSn + r² Σn², so six sums hold all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saturation.measures.base import Statistics

if TYPE_CHECKING:
    from jax import Array

SUMS = ("sum", "sum_squares", "sum_tokens", "tokens", "tokens_squares", "sequences")


def sum_names(name: str) -> tuple[str, ...]:
    """Return the statistics of one mean."""
    return tuple(f"{name}_{kind}" for kind in SUMS)


def sums_over_sequences(name: str, values: Array, valid: Array) -> dict[str, Array]:
    """Return the statistics of one mean, as `sum_names` lists them.

    Args:
      name: of the mean.
      values: (*groups, batch, length), one of each token; those not valid may be NaN.
      valid: bool, broadcasts to values.

    Returns:
      {statistic: (*groups,)} in the widest float there is.
    """
    import jax.numpy as jnp

    wide = jnp.result_type(float)
    valid = jnp.broadcast_to(valid, values.shape)
    sums = jnp.where(valid, values.astype(wide), 0).sum(axis=-1)
    tokens = valid.sum(axis=-1).astype(wide)
    per_sequence = (sums, sums * sums, sums * tokens, tokens, tokens * tokens, tokens > 0)
    totals = (each.astype(wide).sum(axis=-1) for each in per_sequence)
    return dict(zip(sum_names(name), totals, strict=True))


def mean_and_error(name: str, statistics: Statistics) -> dict[str, np.ndarray]:
    """Return {name: the mean, name_stderr: its standard error over sequences}, float64 (steps,).

    NaN where there is no token, or (the error) only one sequence; nothing at all where no step has
    a token.
    """
    total, squares, products, tokens, tokens_squares, sequences = (
        statistics[each] for each in sum_names(name)
    )
    if not np.any(tokens > 0):
        return {}
    mean = divide(total, tokens)
    residual = np.maximum(squares - 2 * mean * products + mean**2 * tokens_squares, 0.0)
    variance = divide(divide(sequences * residual, sequences - 1), tokens**2)
    return {name: mean, f"{name}_stderr": np.sqrt(variance)}


def divide(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return total/count, NaN where there is nothing to count."""
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def cosine(a: Array, b: Array) -> Array:
    """Return ⟨a, b⟩/(‖a‖‖b‖) over the last axis, in the widest float there is; 0 of a zero vector.

    Both are first divided by their largest entry, so that no square overflows: states of a
    network of scaled parameters reach 1e17.
    """
    import jax.numpy as jnp

    def in_range(x: Array) -> Array:
        x = x.astype(jnp.result_type(float))
        largest = jnp.abs(x).max(axis=-1, keepdims=True)
        return x * (1 / jnp.maximum(largest, 4 * float(jnp.finfo(x.dtype).tiny)))

    a, b = in_range(a), in_range(b)
    norms = jnp.sqrt((a * a).sum(axis=-1)) * jnp.sqrt((b * b).sum(axis=-1))
    return (a * b).sum(axis=-1) / jnp.where(norms == 0, 1, norms)
