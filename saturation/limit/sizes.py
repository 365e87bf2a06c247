"""What a coefficient is measured by where it may vanish: B = Σ|a||b| of the product that made it.

A size is made only when something looks at it: an order, a sign, a division. The `sharp` one is the
sum itself; the other bounds it by the norms of rows and columns (Cauchy and Schwarz), which costs
no product of matrices. Sizes are followed in float64 alone (`limit.ties`): in narrower dtypes
equal numbers and near ones overlap, and they are compared to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from saturation.limit.ties import Thresholds, tie_thresholds, ties_reliable


class Size:
    """The size of one coefficient, made when it is asked for; `size(sharp)` gives the array."""

    def __init__(self, make: Callable[[bool], Any]) -> None:
        self._make = make
        self._made: dict[bool, Any] = {}

    def __call__(self, sharp: bool) -> Any:
        """Return the array: the sum itself where `sharp`, else an upper bound that is cheap."""
        if sharp not in self._made:
            self._made[sharp] = self._make(sharp)
        return self._made[sharp]


def known(array: Any) -> Size:
    """Return the size that is this array."""
    return Size(lambda sharp: array)


def tracked(dtype: Any) -> bool:
    """Return whether sizes are followed in this dtype."""
    return ties_reliable(dtype)


def magnitude(x: jax.Array) -> jax.Array:
    """Return |x|, and 0 where that is not finite: ±∞ is compared as it is."""
    size = jnp.abs(x)
    return jnp.where(jnp.isfinite(size), size, 0)


def thresholds(longest: int, dtype: Any) -> Thresholds:
    """Return the rule's thresholds; 0, so that numbers are compared to the bit, if not tracked."""
    return tie_thresholds(longest, dtype) if tracked(dtype) else Thresholds(0.0, 0.0)


def larger(*sizes: jax.Array | None) -> jax.Array | None:
    """Return the largest of sizes, which broadcast; None are left out."""
    result = None
    for size in sizes:
        if size is not None:
            result = size if result is None else jnp.maximum(result, size)
    return result


def by_norms(eqn: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ‖row‖·‖column‖ ≥ Σ|a||b| of a `dot_general`, in its output's shape."""
    (sums, batches), shape = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    result = None
    for value, summed, batch, last in zip((a, b), sums, batches, (False, True), strict=True):
        norm = jnp.sqrt(jnp.sum(value * value, axis=tuple(summed)))
        order = [axis for axis in range(value.ndim) if axis not in summed]
        free = [axis for axis in order if axis not in batch]
        norm = jnp.transpose(norm, [order.index(axis) for axis in (*batch, *free)])
        start = len(shape) - len(free) if last else len(batch)
        axes = (*range(len(batch)), *range(start, start + len(free)))
        spread = jax.lax.broadcast_in_dim(norm, shape, axes)
        result = spread if result is None else result * spread
    assert result is not None
    return result
