"""Finite numbers that mask: degree 0, so that they would vanish under scores that grow, and leak.

Where a value that does not grow meets one that does, in a sum or a choice, what is ≤ −1e29 stands
for −∞ and what is ≥ 1e29 for ∞, element by element and when it runs: −0.7·finfo.max, finfo.min and
−1e30 are the masks of jax.nn, Flax, Equinox and Haiku. float16 ends at 65504, which stands for ∞ in
that dtype. Other numbers of 5000 and more may be masks or may be meant (MEASURES §6; ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from saturation.errors import LimitError
from saturation.limit.series import Coefficient, Constant, PowerSeries, Value, drop

MASK_BELOW = -1e29
DOUBTED = 5000.0  # the least number that may be a mask


def unmasked(values: Sequence[Value], mask_below: float | None, doubts: bool = True) -> list[Value]:
    """Return values that meet in a sum or a choice, with ±∞ for the masks in those of degree 0.

    Args:
      values: what meets.
      mask_below: numbers up to this are masks; None: none is.
      doubts: whether other numbers of 5000 or more are refused or marked; else they are meant.

    Raises:
      LimitError: a number that is known may be a mask, and was not declared.
    """
    degree = max(value.degree if isinstance(value, PowerSeries) else 0 for value in values)
    if degree <= 0 or mask_below is None:
        return list(values)
    return [_unmasked(value, degree, abs(mask_below), doubts) for value in values]


def _unmasked(value: Value, degree: int, bound: float, doubts: bool) -> Value:
    if isinstance(value, PowerSeries):
        leading = value.coefficients[0]
        if value.degree != 0 or leading is None:
            return value
        array, masks, doubted = _apart(leading, bound)
        kept = (array, *drop(masks, value.coefficients[1:]))
        invalid = _with(value.invalid, doubted) if doubts else value.invalid
        return replace(value, coefficients=kept, invalid=invalid, infinite=True)
    if not jnp.issubdtype(value.array.dtype, jnp.floating):
        return value
    seen, large = _seen(value)
    if doubts:
        _refuse(large, value.array.dtype, degree, bound)
    if seen and not large:
        return value
    array, _, doubted = _apart(value.array, bound)
    invalid = _with(value.invalid, doubted) if doubts and not seen else value.invalid
    return replace(value, array=array, invalid=invalid, infinite=True)


def _with(invalid: Coefficient, doubted: jax.Array) -> jax.Array:
    return doubted if invalid is None else doubted | invalid


def _seen(value: Constant) -> tuple[bool, tuple[float, ...]]:
    """Whether all is known of a constant, and the large numbers that it may hold."""
    if isinstance(value.array, jax.core.Tracer):
        return value.seen, value.large
    return True, large_numbers(np.asarray(value.array))


def large_numbers(array: np.ndarray) -> tuple[float, ...]:
    """Return the finite numbers of an array that may be masks: the outermost of each size."""
    numbers = array.astype(np.float64)
    size = np.abs(np.where(np.isfinite(numbers), numbers, 0.0))
    found = []
    for least, most in ((DOUBTED, 1e9), (1e9, -MASK_BELOW), (-MASK_BELOW, np.inf)):
        within = numbers[(size >= least) & (size < most)]
        found += [float(within.flat[np.abs(within).argmax()])] if within.size else []
        found += [float(within.flat[np.abs(within).argmin()])] if within.size else []
    return tuple(dict.fromkeys(found))


def _refuse(large: Sequence[float], dtype: np.dtype, degree: int, bound: float) -> None:
    ends = float(jnp.finfo(dtype).max) if dtype == jnp.float16 else np.inf
    doubted = [number for number in large if abs(number) < min(bound, ends)]
    if doubted:
        worst = max(doubted, key=abs)
        raise LimitError(
            f"The constant {worst:.6g} meets a quantity of degree {degree}, under which it "
            "vanishes as c grows: a mask would leak. Mask with -inf, or say what it is: "
            f"`saturate(fn, mask_below={-abs(worst):.6g})` takes it for -inf, and "
            "`mask_below=None` takes no constant for a mask."
        )


def _apart(array: jax.Array, bound: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The array with ±∞ for its masks, where those are, and where it is not known what is meant."""
    top = float(jnp.finfo(array.dtype).max)
    bound = min(bound, top) if array.dtype == jnp.float16 or bound < -MASK_BELOW else bound
    if bound > top:  # a narrow dtype has no number that large
        masks = jnp.zeros(array.shape, bool)
    else:
        masks = jnp.abs(array) >= jnp.asarray(bound, array.dtype)
    infinite = jnp.where(array > 0, jnp.inf, -jnp.inf).astype(array.dtype)
    doubted = ~masks & (jnp.abs(array) >= jnp.asarray(DOUBTED, array.dtype))
    return jnp.where(masks, infinite, array), masks, doubted


def widened(array: jax.Array) -> jax.Array:
    """Return a float16 array with ±∞ for the ends of its dtype, which a wider one has inside."""
    top = jnp.finfo(jnp.float16).max
    infinite = jnp.where(array > 0, jnp.inf, -jnp.inf).astype(array.dtype)
    return jnp.where(jnp.abs(array) >= jnp.asarray(top, array.dtype), infinite, array)
