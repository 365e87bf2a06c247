"""Small numerics that several studies share: where a function is lowest, the slope of a law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Num
from scipy.optimize import minimize_scalar

ByPlace = Float[np.ndarray, "places others"]


def lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function is lowest between two ends.

    >>> round(lowest(lambda x: (x - 0.3) ** 2, 0, 1), 4)
    0.3
    """
    return float(cast(Any, minimize_scalar(function, bounds=(low, high), method="bounded")).x)


def log_slope(x: Num[np.ndarray, " places"], values: ByPlace) -> Float[np.ndarray, " others"]:
    """Return d ln(value)/d ln(x) by least squares, of each column.

    >>> log_slope(np.array([1, 2, 4, 8]), np.array([[1.0], [4.0], [16.0], [64.0]])).round(9)
    array([2.])
    """
    centred = np.log(x) - np.log(x).mean()
    return centred @ np.log(values) / (centred @ centred)
