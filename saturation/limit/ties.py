"""When two computed numbers are equal: the one rule of ties, signs and "vanishes" (MEASURES §6).

A product of matrices is known to some roundings of B = Σ|a||b|. XLA on CPUs adds up equal rows in
unlike orders, so equal inputs give unequal sums. With n the longest contraction met, a difference
≤ 64·n·eps·B is zero, and one ≥ 65536·n·eps·B is not; between them it is undecided. In float64, over
12 layers, equal tokens differ by up to 2.3·n·eps·B, and true gaps start at 2e-8·B; in narrower
dtypes the two overlap, so that ties are not reliable there. Ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

TIED = 64  # a difference up to this many n·eps·B is zero
APART = 65536  # one of this many or more is not


class Thresholds(NamedTuple):
    """Differences in units of B: up to `tied` they are zero, from `apart` on they are not."""

    tied: float
    apart: float


def tie_thresholds(contraction: int, dtype: Any) -> Thresholds:
    """Return (64·n·eps, 65536·n·eps), to be multiplied by B = Σ|a||b|.

    Args:
      contraction: n, the length of the longest sum that made the numbers, at least 1.
      dtype: floating, of the numbers and of the sums that made them.
    """
    rounding = max(int(contraction), 1) * float(ml_dtypes.finfo(dtype).eps)
    return Thresholds(TIED * rounding, APART * rounding)


def ties_reliable(dtype: Any) -> bool:
    """Return whether ties can be told from small differences in this dtype: in float64 alone."""
    return np.dtype(dtype) == np.float64


def judged(difference: Any, bound: Any, contraction: int) -> tuple[Any, Any]:
    """Return where a difference is zero, and where it is undecided: two bool arrays.

    Args:
      difference: floating, NumPy or JAX.
      bound: B of the two numbers, the larger one; broadcasts to it.
      contraction: n, as in `tie_thresholds`.
    """
    tied, apart = tie_thresholds(contraction, difference.dtype)
    size = abs(difference)
    zero = size <= tied * bound
    return zero, ~zero & (size < apart * bound)
