"""A curve plus errors that resemble their neighbours: likelihoods of y = b + a·h + e.

The errors are a first-order autoregression on a clock u: V_ij = φ^|u_i − u_j|, 0 ≤ φ ≤ 0.999. Such
errors are Markov, so V⁻¹ has three diagonals and every quadratic form is a sum over neighbours. No
matrix of points × points is built, and all φ and all curves are handled at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

MAX_PHI = 0.999
CLOCKS = ("index", "t", "ln t")
# φ is searched as −ln(1 − φ), in which a likelihood near φ = 1 is as wide as one near 0.
_DECAYS = np.linspace(0.0, -math.log(1 - MAX_PHI), 29)
_FINE = np.linspace(-1, 1, 17)

Points = Float[np.ndarray, " points"]
Curves = Float[np.ndarray, "curves points"]
Table = Float[np.ndarray, "decays curves"]


class _Weights(NamedTuple):
    """What a quadratic form needs of V⁻¹, for every φ; ρ_i = φ^(u_{i+1} − u_i).

    Attributes:
        change: 1/(1 − ρ²), of products of differences.
        mixed: 1/(1 + ρ), of a difference and a value.
        level: (1 − ρ)/(1 + ρ), of products of values.
        log_determinant: ln|V|.
        trace: of V⁻¹.
    """

    change: Float[np.ndarray, "decays gaps"]
    mixed: Float[np.ndarray, "decays gaps"]
    level: Float[np.ndarray, "decays gaps"]
    log_determinant: Float[np.ndarray, "decays 1"]
    trace: Float[np.ndarray, "decays 1"]


def _weights(gaps: Float[np.ndarray, " gaps"], phi: Float[np.ndarray, " decays"]) -> _Weights:
    with np.errstate(divide="ignore"):
        exponents = gaps * np.log(phi)[:, None]  # φ = 0: −∞, whose exponential is 0
    rho, lost = np.exp(exponents), -np.expm1(2 * exponents)
    return _Weights(
        change=1 / lost,
        mixed=1 / (1 + rho),
        level=-np.expm1(exponents) / (1 + rho),
        log_determinant=np.log(lost).sum(axis=1, keepdims=True),
        trace=1 + ((1 + rho**2) / lost).sum(axis=1, keepdims=True),
    )


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors on one clock, and how likely they make a series.

    Attributes:
        clock: one of `CLOCKS`.
        gaps: differences of the clock's readings, scaled to mean 1.
    """

    clock: str
    gaps: Float[np.ndarray, " gaps"]
    _coarse: _Weights = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_coarse", _weights(self.gaps, -np.expm1(-_DECAYS)))

    def first(self, count: int) -> Errors:
        """Return the errors of the first points alone, on the same clock."""
        gaps = self.gaps[: count - 1]
        return Errors(self.clock, gaps / gaps.mean())

    def deviances(self, y: Points, curves: Curves, restricted: bool = True) -> Table:
        """Return −2 ln likelihood of every curve at every φ of the coarse grid.

        Args:
            y: the series, finite.
            curves: h of each curve, from 0 at the first point to 1 at the last.
            restricted: of the restricted likelihood, (n − 2) ln(rᵀV⁻¹r/(n − 2)) + ln|V| +
                ln|XᵀV⁻¹X| with X = [1, h]; else of the ordinary one, n ln(rᵀV⁻¹r/n) + ln|V|.
        """
        return _deviances(self._coarse, y, curves, restricted)

    def independent(self, y: Points, curves: Curves) -> Float[np.ndarray, " curves"]:
        """Return n ln(rᵀr/n) of every curve: the ordinary deviance of independent errors, φ = 0."""
        zero = _Weights(*(each[:1] for each in self._coarse))
        return _deviances(zero, y, curves, restricted=False)[0]

    def profile(self, y: Points, h: Points, restricted: bool = True) -> tuple[float, float]:
        """Return the least deviance of one curve over φ, and that φ."""
        coarse = self.deviances(y, h[None], restricted)[:, 0]
        best = int(np.argmin(coarse))
        decays = np.clip(_DECAYS[best] + _DECAYS[1] * _FINE, 0, _DECAYS[-1])
        fine = _deviances(_weights(self.gaps, -np.expm1(-decays)), y, h[None], restricted)[:, 0]
        i = int(np.argmin(fine))
        at, least = decays[i], fine[i]
        if 0 < i < len(fine) - 1 and decays[i - 1] < at < decays[i + 1]:
            left, right = fine[i - 1] - least, fine[i + 1] - least
            if left + right > 0:  # the parabola through three points: smooth in h, unlike a grid
                shift = (left - right) / (2 * (left + right))
                at += shift * (decays[i + 1] - at)
                least -= (left - right) ** 2 / (8 * (left + right))
        return float(least), min(-math.expm1(-at), MAX_PHI)


def errors_on(clock: str, t: Points) -> Errors:
    """Return the errors on a clock of `CLOCKS`; "ln t" is ln(t + t₂) where t₁ = 0."""
    if clock == "index":
        reading = np.arange(len(t), dtype=np.float64)
    else:
        reading = t if clock == "t" else np.log(t + t[1] if t[0] == 0 else t)
    gaps = np.diff(reading)
    if not (gaps > 0).all():  # steps so large and close that their logarithms are equal
        gaps = np.maximum(gaps, np.finfo(np.float64).eps * gaps.sum())
    return Errors(clock, gaps / gaps.mean())


def _deviances(weights: _Weights, y: Points, curves: Curves, restricted: bool) -> Table:
    residual, determinant = _solve(weights, y, curves)
    n = len(y)
    if not restricted:
        return n * np.log(residual / n) + weights.log_determinant
    return (n - 2) * np.log(residual / (n - 2)) + weights.log_determinant + np.log(determinant)


def _solve(weights: _Weights, y: Points, curves: Curves) -> tuple[Table, Table]:
    """Return rᵀV⁻¹r of generalised least squares and |XᵀV⁻¹X|, X = [1, h].

    What is regressed is y less the line in h through its first and its last point. That lies in
    the span of X and so changes no residual, but it is small where the curve is good: nothing
    cancels.
    """
    h = curves
    rest = y - y[0] - (y[-1] - y[0]) * h
    dh, dr, h, r = np.diff(h).T, np.diff(rest).T, h[:, :-1].T, rest[:, :-1].T
    change, mixed, level = weights.change, weights.mixed, weights.level
    ones = 1 + level.sum(axis=1, keepdims=True)
    ones_h = mixed @ dh + level @ h
    ones_r = mixed @ dr + level @ r
    hh = change @ dh**2 + mixed @ (2 * dh * h) + level @ h**2
    hr = change @ (dh * dr) + mixed @ (dh * r + dr * h) + level @ (h * r)
    rr = change @ dr**2 + mixed @ (2 * dr * r) + level @ r**2
    determinant = ones * hh - ones_h**2
    explained = (hh * ones_r**2 - 2 * ones_h * ones_r * hr + ones * hr**2) / determinant
    # The values' own rounding is independent noise; what lies below it is no evidence of a fit.
    rounding = (64 * np.finfo(np.float64).eps * np.abs(y).max()) ** 2 + np.finfo(np.float64).tiny
    return np.maximum(rr - explained, 0) + rounding * weights.trace, determinant
