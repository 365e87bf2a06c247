"""The exponent of a power law: where over p a deviance is least, and how far an interval goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar
from scipy.special import fdtri

from saturation.errors import SaturationError
from saturation.growth.autoregression import Errors

CONFIDENCE = 0.95
LARGEST = 1e100  # whose squares, and products of a few, float64 holds
POWER_BOUNDS = (1e-3, 5.0)  # p → 0 is the logarithm, and p > 5 no norm's growth
# Close where p → 0 fits the first point alone; the valleys of larger p are wide.
POWERS = np.concatenate(
    [
        [POWER_BOUNDS[0], 0.005, 0.01],
        np.arange(0.02, 1.5, 0.02),
        np.linspace(1.5, POWER_BOUNDS[1], 71),
    ]
)

Points = Float[np.ndarray, " points"]
OnGrid = Float[np.ndarray, " powers"]


def shape(t: Points, p: float | Float[np.ndarray, "powers 1"] | None) -> np.ndarray:
    """Return h = (g(t) - g(t₁))/(g(t_n) - g(t₁)): 0 at the first point, 1 at the last.

    A power is taken of t/t_n, less 1: as p → 0 it becomes p ln(t/t_n), and nothing cancels.

    Args:
        t: steps, increasing, ≥ 0.
        p: the exponent, or several as a column; None for g = ln(1 + t).
    """
    if p is None:
        s = np.log1p(t) - np.log1p(t[-1])
    else:
        log_t = np.full_like(t, -np.inf)
        np.log(t / t[-1], out=log_t, where=t > 0)
        s = np.expm1(p * log_t)
    return 1 - s / s[..., :1]


def local_exponents(steps: ArrayLike, values: ArrayLike) -> tuple[Points, Points]:
    """Return √(t·t′) and ln(ρ′/ρ)/ln(t′/t) of neighbouring points: the mean of d ln ρ/d ln t.

    Only of points with t > 0 and ρ > 0: there is none where t = 0.
    """
    t, rho = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    kept = (t > 0) & (rho > 0)
    log_t, log_rho = np.log(t[kept]), np.log(rho[kept])
    return np.exp((log_t[1:] + log_t[:-1]) / 2), np.diff(log_rho) / np.diff(log_t)


def likeliest_power(
    errors: Errors, t: Points, rho: Points, restricted: bool = True, tolerance: float = 1e-5
) -> tuple[float, float]:
    """Return the likeliest p, φ free, to a tolerance, and its deviance -2 ln likelihood."""
    return _minimum(*_deviances(errors, t, rho, restricted), tolerance)


def power_interval(errors: Errors, t: Points, rho: Points) -> tuple[float, tuple[float, float]]:
    """Return p by restricted likelihood, and the p within F₀.₉₅(1, n - 4) of its deviance."""
    deviance, on_grid = _deviances(errors, t, rho, restricted=True)
    p, least = _minimum(deviance, on_grid)
    limit = least + float(fdtri(1, len(t) - 4, CONFIDENCE))
    return p, _interval(deviance, on_grid, p, limit)


def least_squares_power(
    errors: Errors, t: Points, rho: Points
) -> tuple[float, Callable[[], tuple[float, float]]]:
    """Return p of least squares, and what computes its interval from five points on.

    The interval holds RSS(p)/RSS ≤ 1 + F₀.₉₅(1, n - 3)/(n - 3), taken in logarithms.
    """
    n = len(t)

    def deviance(p: float) -> float:
        return float(errors.independent(rho, shape(t, p)[None])[0])

    on_grid = errors.independent(rho, shape(t, POWERS[:, None]))
    p, least = _minimum(deviance, on_grid)

    def interval() -> tuple[float, float]:
        width = n * float(np.log1p(fdtri(1, n - 3, CONFIDENCE) / (n - 3)))
        return _interval(deviance, on_grid, p, least + width)

    return p, interval


def _deviances(
    errors: Errors, t: Points, rho: Points, restricted: bool
) -> tuple[Callable[[float], float], OnGrid]:
    """Return the deviance of p, the least over φ, as a function and on the grid of powers."""

    def deviance(p: float) -> float:
        return errors.profile(rho, shape(t, p), restricted)[0]

    return deviance, errors.deviances(rho, shape(t, POWERS[:, None]), restricted).min(axis=0)


def _minimum(
    deviance: Callable[[float], float], on_grid: OnGrid, tolerance: float = 1e-9
) -> tuple[float, float]:
    """Return where over p a deviance is least, and how much it is there.

    The deviance can have two valleys in p (one where p → 0 fits the first point alone), hence the
    grid first, then a bounded search in its best cell.
    """
    best = int(np.argmin(on_grid))
    cell = POWERS[max(best - 1, 0)], POWERS[min(best + 1, len(POWERS) - 1)]
    found = minimize_scalar(deviance, bounds=cell, method="bounded", options={"xatol": tolerance})
    return float(found.x), float(found.fun)


def _interval(
    deviance: Callable[[float], float], on_grid: OnGrid, p: float, limit: float
) -> tuple[float, float]:
    """Return the outermost p on either side at which the deviance passes the limit.

    Where it never does, the end is that of `POWER_BOUNDS`.
    """

    def end(outward: np.ndarray, values: np.ndarray) -> float:
        within = np.flatnonzero(values <= limit)
        inside = float(outward[within[-1]]) if len(within) else p
        for power in outward[within[-1] + 1 :] if len(within) else outward:
            if deviance(float(power)) > limit:
                crossing = brentq(lambda q: deviance(q) - limit, inside, power, xtol=1e-9)
                return cast("float", crossing)
            inside = float(power)
        return inside

    below, above = np.less(POWERS, p), np.greater(POWERS, p)
    return end(POWERS[below][::-1], on_grid[below][::-1]), end(POWERS[above], on_grid[above])


def refuse_extreme(t: Points, rho: Points) -> None:
    """Raise `SaturationError` where steps or values, float64 (points,), have no squares."""
    spread = np.ptp(rho)
    if max(np.abs(rho).max(), t.max()) > LARGEST or 0 < spread < 1 / LARGEST:
        raise SaturationError(
            f"A growth law needs steps and values up to {LARGEST:g} that differ by more than "
            f"{1 / LARGEST:g}: float64 holds the squares of no others. Fit them in other units."
        )
