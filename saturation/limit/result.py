"""What `saturate` returns: the leading behaviour of an array as c → ∞, and of each element."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from saturation.limit.series import Constant, PowerSeries, Value
from saturation.limit.sizes import thresholds


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["value", "valid", "order", "coefficient"],
    meta_fields=["degree", "ties_reliable"],
)
@dataclass(frozen=True)
class Limit:
    """The leading behaviour value·c^degree of one output as c → ∞.

    Attributes:
      degree: the exponent, static, one for the array: no element grows faster.
      value: the coefficient of c^degree, the output's shape and dtype.
      valid: bool, the same shape; False where the limit does not exist, mostly because a
        denominator's leading coefficient vanishes, or where it left the range of its dtype. The
        value there means nothing.
      order: int32, the same shape: the exponent of the element's own first kept term that does not
        vanish, below `degree` where its leading terms cancel; degree − terms where all vanish.
      coefficient: that term's coefficient, shape and dtype of `value`; 0 where all vanish.
      ties_reliable: whether ties were told from small differences, which takes float64 throughout;
        elsewhere coefficients tie to the bit, which equal inputs need not do. Static.
    """

    degree: int
    value: jax.Array
    valid: jax.Array
    order: jax.Array
    coefficient: jax.Array
    ties_reliable: bool = True

    def leading(self) -> tuple[jax.Array, jax.Array]:
        """Return the order of each vector along the last axis, and its coefficient of that order.

        A vector's order is that of its fastest elements, int32 without the last axis; slower
        elements are 0 beside them.
        """
        order = self.order.max(axis=-1)
        fastest = self.order == order[..., None]
        return order, jnp.where(fastest, self.coefficient, jnp.zeros_like(self.coefficient))


def limit_of(longest: int, output: Value, reliable: bool) -> Limit:
    """Return what is to be said of an output; `longest` is the longest contraction that made it."""
    if isinstance(output, Constant):
        valid = jnp.ones(output.shape, bool) if output.invalid is None else ~output.invalid
        order = jnp.zeros(output.shape, jnp.int32)
        return Limit(0, output.array, valid, order, output.array, reliable)
    leading = output.coefficients[0]
    value = jnp.zeros_like(output.example) if leading is None else leading
    # What may hold ±∞ has had its NaN marked; elsewhere either is an overflow, or a broken number.
    valid = jnp.ones(value.shape, bool) if output.infinite else jnp.isfinite(value)
    valid = valid if output.invalid is None else valid & ~output.invalid
    return Limit(output.degree, value, valid, *_first(longest, output), reliable)


def _first(longest: int, x: PowerSeries) -> tuple[jax.Array, jax.Array]:
    """The order and the coefficient of each element's first kept term that does not vanish."""
    order = jnp.full(x.shape, x.degree - x.terms, jnp.int32)
    found = jnp.zeros_like(x.example)
    for index in reversed(range(x.terms)):
        a = x.coefficients[index]
        if a is None:
            continue
        size = x.size(index, sharp=False)
        least = 0 if size is None else thresholds(longest, a.dtype).tied * size
        there = jnp.abs(a) > least
        order = jnp.where(there, jnp.int32(x.degree - index), order)
        found = jnp.where(there, a, found)
    return order, found
