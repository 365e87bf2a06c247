"""Where a function of one number is lowest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from scipy.optimize import minimize_scalar


def lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function is lowest between two ends.

    >>> round(lowest(lambda x: (x - 0.3) ** 2, 0, 1), 4)
    0.3
    """
    return float(cast(Any, minimize_scalar(function, bounds=(low, high), method="bounded")).x)
