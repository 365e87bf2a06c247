"""Growth laws: how a norm ρ grows with the training step t, with honest intervals.

Every law is ρ(t) = a·g(t) + b. Four have a fixed g: t, √t, t^¼ and ln(1 + t); the fifth is the free
power a·t^p + b. The laws are those of Merrill et al., *Effects of Parameter Norm Growth During
Transformer Training* (EMNLP 2021, arXiv 2010.09697); the free exponent, its interval and the
comparison by AIC are this project's own.

What a trajectory leaves over a law resembles what its neighbours leave over. The exponent, its
interval and the AIC therefore take the errors as an autoregression
(`saturation.growth.autoregression`); the same by least squares, with independent errors, stands
beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from saturation.errors import SaturationError
from saturation.growth.autoregression import CLOCKS, MAX_PHI, Errors, errors_on
from saturation.growth.power_law import (
    POWER_BOUNDS,
    Points,
    least_squares_power,
    likeliest_power,
    power_interval,
    refuse_extreme,
    shape,
)

EXPONENTS = {"linear": 1.0, "sqrt": 0.5, "fourth_root": 0.25}
LAWS = (*EXPONENTS, "log", "power")

MINIMUM_POINTS = 4  # one more than the free power has parameters
COMPARED_POINTS = 8  # below, laws are not ranked and φ is not estimated

Numbers = ArrayLike | Sequence[float | int]  # the second for tuples and ranges, as beartype checks


@dataclasses.dataclass(frozen=True)
class Curve:
    """One growth law a·g(t) + b through one series.

    Attributes:
        law: one of `LAWS`.
        a: the slope in g(t); unit of the values per unit of g. a and b are those of least squares
            at the exponent p.
        b: the level at g = 0; unit of the values.
        p: the exponent of t (fixed for linear, sqrt and fourth_root; None for log; nan for a power
            law of a constant series, which has no exponent).
        interval: 95 % interval of p (power law only), by the F profile; None below eight points.
        p_at_bound: the power law's p stopped at an end of `POWER_BOUNDS`: the series is no power of
            t (at the lower end it flattens as the logarithm does, or more).
        r2: 1 - RSS/TSS; nan for a constant series.
        aic: -2 ln(maximum likelihood) + 2k, without the constant n(1 + ln 2π).
        aicc: aic + 2k(k + 1)/(n - k - 1), its correction for few points; inf where n ≤ k + 1.
        n: number of points.
    """

    law: str
    a: float
    b: float
    p: float | None
    interval: tuple[float, float] | None
    p_at_bound: bool
    r2: float
    aic: float
    aicc: float
    n: int

    def predict(self, steps: Numbers) -> np.ndarray:
        """Return a·g(t) + b at the given steps.

        Args:
            steps: training steps, any shape, each ≥ 0.

        Raises:
            SaturationError: a step is negative or not finite.
        """
        t = np.asarray(steps, dtype=np.float64)
        if not np.all(np.isfinite(t) & (t >= 0)):
            raise SaturationError("Steps to predict at must be finite and at least 0.")
        return _evaluate(self.a, self.b, self.p, t)

    def local_exponent(self, steps: Numbers) -> np.ndarray:
        """Return d ln ρ/d ln t = a·t·g′(t)/(a·g(t) + b) at the given steps, each > 0.

        It varies for every law with b ≠ 0.
        """
        t = np.asarray(steps, dtype=np.float64)
        slope = t / (1 + t) if self.law == "log" else (self.p or 0.0) * t ** (self.p or 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.a * slope / self.predict(t)

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON holds them: what is not finite becomes None."""
        return {field.name: _json(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Fit(Curve):
    """One growth law fitted to one series, with errors that are a first-order autoregression.

    p and its interval are those of the restricted likelihood, aic and aicc those of the ordinary
    one, with k = 4 and 5 for the power. Below eight points φ cannot be told: it is 0.

    Attributes:
        phi: how alike the errors at mean distance are, 0 ≤ φ ≤ 0.999.
        clock: on which errors grow apart, "index", "t" or "ln t" (ln(t + t₂) where t₁ = 0):
            whichever has the highest restricted likelihood under the power law.
        holdout_error: √(Σ(ρ - ρ̂)²/Σρ²) over the last ⌈n/5⌉ points when the law is fitted on the
            rest; None where the rest has fewer than four points.
        independent: the same law by least squares, as if errors were independent; its AIC has
            k = 3 and 4 for the power.
        without_first: the fit without the first point, where that is step 0 and four others are
            left: how much of p the initialisation decides.
        thirds: the power law fitted to each third of the run, step 0 left out; empty where a third
            has fewer than eight points, and for the other laws.
    """

    phi: float
    clock: str
    holdout_error: float | None
    independent: Curve
    without_first: Fit | None
    thirds: tuple[Fit, ...]

    @property
    def phi_at_bound(self) -> bool:
        """Whether φ stopped at its bound: the errors are nearly a random walk on the clock."""
        return self.phi >= MAX_PHI - 1e-6

    @property
    def power_is_constant(self) -> bool | None:
        """False where the intervals of two thirds do not overlap, None where there are no thirds.

        True only says that the thirds do not contradict one power.
        """
        intervals = [fit.interval for fit in self.thirds if fit.interval is not None]
        if not intervals:
            return None
        return max(low for low, _ in intervals) <= min(high for _, high in intervals)

    def to_json(self) -> dict[str, object]:
        """Return the fields, whether φ is at its bound and whether the power is constant."""
        return {
            **super().to_json(),
            "phi_at_bound": self.phi_at_bound,
            "power_is_constant": self.power_is_constant,
        }


def fit_growth(
    steps: Numbers,
    values: Numbers,
    law: str = "power",
    clock: str | None = None,
    parts: bool = True,
) -> Fit:
    """Fit one growth law ρ(t) = a·g(t) + b.

    V_ij = φ^|u_i - u_j| on a clock u. With X = [1, h], h = (g(t) - g(t₁))/(g(t_n) - g(t₁)), and r
    the residual of generalised least squares, p and φ minimise
    (n - 2) ln(rᵀV⁻¹r/(n - 2)) + ln|V| + ln|XᵀV⁻¹X|. The 95 % interval of p holds what is within
    F₀.₉₅(1, n - 4) of that minimum, φ minimised anew for each p.

    Args:
        steps: training steps t, shape (points,), increasing, ≥ 0.
        values: the series ρ(t), shape (points,), finite; a norm, or any other quantity.
        law: "linear", "sqrt", "fourth_root", "log" or "power".
        clock: u, "index", "t" or "ln t" (ln(t + t₂) where t₁ = 0), each scaled to mean step 1; None
            takes the one with the highest restricted likelihood under the power law, in each part
            of the run anew. A given clock holds for the parts too.
        parts: fit also what is left out of others: without step 0, thirds, the last fifth held out.

    Returns:
        The fit, with its interval and its error outside the fitted steps.

    Raises:
        SaturationError: an unknown law or clock, fewer than four points, lengths that
            differ, a value that is not finite, steps that are negative, repeated or out of order.

    Source: arXiv 2010.09697, section 3 and figure 1 (the laws); intervals and exponent are ours.

    Example:
        >>> round(fit_growth([0, 1, 4, 9, 16], [2, 5, 8, 11, 14], "sqrt").a, 6)
        3.0
    """
    if law not in LAWS:
        raise SaturationError(f"There is no growth law {law!r}; the laws are {', '.join(LAWS)}.")
    series = _series(steps, values, clock)
    return _fit(law, series) if parts else _estimate(law, series)


def fit_all(steps: Numbers, values: Numbers, clock: str | None = None) -> dict[str, Fit]:
    """Fit every law of `LAWS` to one series; arguments and errors as `fit_growth`."""
    series = _series(steps, values, clock)
    return {law: _fit(law, series) for law in LAWS}


def ranked(fits: Mapping[str, Fit]) -> list[Fit]:
    """Return the fits by AICc, the best first, or in the order of `LAWS` where none is the best."""
    order = list(fits.values())
    return order if best_law(fits) is None else sorted(order, key=lambda fit: fit.aicc)


def best_law(fits: Mapping[str, Fit]) -> Fit | None:
    """Return the fit with the lowest AICc, which charges the power law for its p.

    None below eight points, where it does not tell laws apart, and for a constant series, which
    every law describes.
    """
    fit = min(fits.values(), key=lambda fit: fit.aicc, default=None)
    return None if fit is None or fit.n < COMPARED_POINTS or math.isnan(fit.r2) else fit


def equation(fit: Curve) -> str:
    """Return the fitted law as one readable equation, such as "ρ = 5.412·√t + 193.6"."""
    shape = {"linear": "t", "sqrt": "√t", "fourth_root": "t^¼", "log": "ln(1 + t)"}
    g = shape.get(fit.law) or f"t^{fit.p:.3f}"
    sign = "-" if fit.b < 0 else "+"
    return f"ρ = {fit.a:.4g}·{g} {sign} {abs(fit.b):.4g}"


def _json(value: object) -> object:
    if isinstance(value, Curve):
        return value.to_json()
    if isinstance(value, tuple):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_series(steps: Numbers, values: Numbers) -> tuple[Points, Points]:
    """Return steps and values as float64 vectors, or say which of the two cannot be fitted."""
    try:
        t, rho = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SaturationError(f"Steps and values must be numbers: {error}.") from error
    if t.ndim != 1 or rho.ndim != 1 or len(t) != len(rho):
        raise SaturationError(
            "A growth law needs one value for each step, as two vectors of one length; found "
            f"steps of shape {t.shape} and values of shape {rho.shape}."
        )
    if len(t) < MINIMUM_POINTS:
        raise SaturationError(
            f"A growth law needs at least {MINIMUM_POINTS} points and found {len(t)}; "
            "measure more checkpoints."
        )
    _check_steps(t)
    bad = t[~np.isfinite(rho)]
    if len(bad):
        raise SaturationError(
            f"A growth law needs finite values; {len(bad)} of {len(t)} are NaN or infinite, "
            f"the first at step {bad[0]:g}. Leave those steps out, or look at that checkpoint."
        )
    refuse_extreme(t, rho)
    return t, rho


def _check_steps(t: Points) -> None:
    """Raise unless steps are finite, at least 0 and strictly increasing."""
    if not np.all(np.isfinite(t)):
        raise SaturationError("A growth law needs finite steps; found NaN or infinity among them.")
    if t.min() < 0:
        raise SaturationError(f"A growth law needs steps of at least 0; found step {t.min():g}.")
    gaps = np.diff(t)
    if np.any(gaps == 0):
        step = t[1:][gaps == 0][0]
        raise SaturationError(
            f"Step {step:g} occurs more than once; a growth law needs one value for each step."
        )
    if np.any(gaps < 0):
        step = t[1:][gaps < 0][0]
        raise SaturationError(
            f"Steps must increase; step {step:g} comes after a larger one. Sort the series by step."
        )


def _evaluate(a: float, b: float, p: float | None, t: np.ndarray) -> np.ndarray:
    """Return a·g(t) + b, or b alone for the constant series that leaves the power undetermined."""
    if a == 0:
        return np.full_like(t, b)
    return a * (np.log1p(t) if p is None else t**p) + b


def _line(law: str, t: Points, rho: Points, p: float | None) -> tuple[float, float]:
    """Return a and b of least squares at one exponent."""
    if p is not None and math.isnan(p):
        return 0.0, float(rho[0])
    h = shape(t, p)
    (level, slope), *_ = np.linalg.lstsq(np.stack([np.ones_like(h), h], axis=1), rho)
    first, last = _evaluate(1.0, 0.0, p, t[[0, -1]])
    a = float(slope / (last - first))
    return a, float(level - a * first)


def _curve(
    law: str, t: Points, rho: Points, p: float | None, interval: tuple[float, float] | None
) -> Curve:
    """Return the law at one exponent as least squares has it, with independent errors."""
    a, b = _line(law, t, rho, p)
    residuals = rho - _evaluate(a, b, p, t)
    total = float(np.sum((rho - rho.mean()) ** 2))
    aic = _log_mean_square(residuals, rho) * len(t) + 2 * (k := 4 if law == "power" else 3)
    return Curve(
        law=law,
        a=a,
        b=b,
        p=p,
        interval=interval,
        p_at_bound=law == "power" and bool(np.isclose(p or 0.0, POWER_BOUNDS, atol=1e-4).any()),
        r2=1 - float(np.sum(residuals**2)) / total if np.ptp(rho) else math.nan,
        aic=aic,
        aicc=aic + _correction(len(t), k),
        n=len(t),
    )


def _log_mean_square(residuals: Points, rho: Points) -> float:
    """Return ln(RSS/n), RSS/n no less than what the rounding of the values makes it.

    Among laws that fit exactly the one with fewer parameters then wins, and the value is finite.
    """
    rounding = 64 * np.finfo(np.float64).eps * np.abs(rho).max()
    return math.log(max(float(np.mean(residuals**2)), rounding**2, np.finfo(np.float64).tiny))


def _correction(n: int, k: int) -> float:
    """Return 2k(k + 1)/(n - k - 1), what AICc adds to AIC for k parameters."""
    return 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf


def _least_squares(law: str, t: Points, rho: Points) -> Curve:
    """Return the law fitted as if errors were independent."""
    if law != "power":
        return _curve(law, t, rho, EXPONENTS.get(law), None)
    if np.ptp(rho) == 0:
        return _curve(law, t, rho, math.nan, None)
    p, interval = least_squares_power(errors_on("index", t), t, rho)
    return _curve(law, t, rho, p, interval() if len(t) >= COMPARED_POINTS else None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Series:
    """A checked series, with what the fits of all laws share."""

    t: Points
    rho: Points
    clock: str | None  # None: the likeliest

    @cached_property
    def errors(self) -> Errors | None:
        """The errors on the clock asked for, or else on the likeliest under the power law.

        None where φ cannot be told: too few points, or a constant series.
        """
        if len(self.t) < COMPARED_POINTS or np.ptp(self.rho) == 0:
            return None
        if self.clock is not None:
            return errors_on(self.clock, self.t)
        candidates = [errors_on(CLOCKS[0], self.t)]
        for name in CLOCKS[1:]:
            errors = errors_on(name, self.t)
            if not np.allclose(errors.gaps, candidates[0].gaps):  # t is the index on an even grid
                candidates.append(errors)
        deviances = np.array([likeliest_power(each, self.t, self.rho)[1] for each in candidates])
        # What is as likely but for rounding, as with φ = 0, leaves the first: the index.
        return candidates[int(np.argmax(deviances < deviances.min() + 1e-3))]

    @cached_property
    def without_first(self) -> _Series | None:
        """The series without step 0, where it has it and four other points."""
        if self.t[0] > 0 or len(self.t) <= MINIMUM_POINTS:
            return None
        return _Series(self.t[1:], self.rho[1:], self.clock)

    @cached_property
    def thirds(self) -> list[_Series]:
        """The thirds of the run without step 0, or none if too short."""
        rows = [third[self.t[third] > 0] for third in np.array_split(np.arange(len(self.t)), 3)]
        if min(map(len, rows)) < COMPARED_POINTS or np.ptp(self.rho) == 0:
            return []
        return [_Series(self.t[third], self.rho[third], self.clock) for third in rows]


def _series(steps: Numbers, values: Numbers, clock: str | None) -> _Series:
    if clock is not None and clock not in CLOCKS:
        raise SaturationError(f"There is no clock {clock!r}; the clocks are {', '.join(CLOCKS)}.")
    return _Series(*_check_series(steps, values), clock)


def _fit(law: str, series: _Series) -> Fit:
    """Return the fit of one law, with its error outside the fitted steps and its parts."""
    shorter = series.without_first
    return dataclasses.replace(
        _estimate(law, series),
        holdout_error=_holdout_error(law, series),
        without_first=None if shorter is None else _estimate(law, shorter),
        thirds=tuple(_estimate(law, third) for third in series.thirds) if law == "power" else (),
    )


def _estimate(law: str, series: _Series) -> Fit:
    """Return the fit without what is fitted to other points than these."""
    t, rho, errors = series.t, series.rho, series.errors
    independent = _least_squares(law, t, rho)
    more = {"independent": independent, "holdout_error": None, "without_first": None, "thirds": ()}
    if errors is None:
        return Fit(**_fields(independent), phi=0.0, clock="index", **more)
    p, interval, k = independent.p, None, 4
    if law == "power":
        p, interval = power_interval(errors, t, rho)
        k, ordinary = 5, likeliest_power(errors, t, rho, restricted=False)[1]
    else:
        ordinary = errors.profile(rho, shape(t, p), restricted=False)[0]
    aic = ordinary + 2 * k
    curve = dataclasses.replace(
        _curve(law, t, rho, p, interval), aic=aic, aicc=aic + _correction(len(t), k)
    )
    phi = errors.profile(rho, shape(t, p))[1]
    return Fit(**_fields(curve), phi=phi, clock=errors.clock, **more)


def _fields(curve: Curve) -> dict[str, Any]:
    return {field.name: getattr(curve, field.name) for field in dataclasses.fields(Curve)}


def _holdout_error(law: str, series: _Series) -> float | None:
    """Return the relative root-mean-square error on the last fifth when fitted on the rest."""
    t, rho = series.t, series.rho
    kept = len(t) - math.ceil(len(t) / 5)
    if kept < MINIMUM_POINTS:
        return None
    steps, values = t[:kept], rho[:kept]
    p = EXPONENTS.get(law)
    if law == "power":
        if series.errors is None or kept < COMPARED_POINTS or np.ptp(values) == 0:
            p = _least_squares(law, steps, values).p
        else:
            p, _ = likeliest_power(series.errors.first(kept), steps, values, tolerance=1e-9)
    a, b = _line(law, steps, values, p)
    error = rho[kept:] - _evaluate(a, b, p, t[kept:])
    scale = float(np.sum(rho[kept:] ** 2))
    return math.sqrt(float(np.sum(error**2)) / scale) if scale else math.nan
