"""Growth laws: how a norm ρ grows with the training step t, with honest intervals.

Every law is ρ(t) = a·g(t) + b. Four have a fixed g: t, √t, t^¼ and ln(1 + t); the fifth is the free
power a·t^p + b. The laws are those of Merrill et al., *Effects of Parameter Norm Growth During
Transformer Training* (EMNLP 2021, arXiv 2010.09697); the free exponent, its interval and the
comparison by AIC are this project's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from saturation.errors import SaturationError

EXPONENTS = {"linear": 1.0, "sqrt": 0.5, "fourth_root": 0.25}
LAWS = (*EXPONENTS, "log", "power")

MINIMUM_POINTS = 4  # one more than the free power has parameters
BLOCK = 10  # points a bootstrap block holds
DRAWS = 1000
BATCH_ELEMENTS = 2_000_000  # points × draws held at once: 16 MB a float64 array
POWER_BOUNDS = (1e-3, 5.0)  # p → 0 is the logarithm, and p > 5 no norm's growth

Points = Float[np.ndarray, " points"]
Numbers = ArrayLike | Sequence[float | int]  # the second for tuples and ranges, as beartype checks


@dataclasses.dataclass(frozen=True)
class Fit:
    """One growth law fitted to one series by ordinary least squares.

    Attributes:
        law: one of `LAWS`.
        a: the slope in g(t); unit of the values per unit of g.
        b: the level at g = 0; unit of the values.
        p: the exponent of t (fixed for linear, sqrt and fourth_root; None for log; nan for a power
            law fitted to a constant series, which has no exponent).
        interval: 95 % interval of p (power law only) from a moving-block bootstrap of (t, ρ)
            pairs; None below two blocks (20 points), where the bootstrap says nothing.
        p_without_first: p fitted without the first point (power law of five points or more), which
            shows how much of p the initialisation decides.
        p_at_bound: the power law's p stopped at an end of `POWER_BOUNDS`: the series is no power of
            t (at the lower end it flattens as the logarithm does, or more).
        r2: 1 - RSS/TSS; nan for a constant series.
        aic: n ln(RSS/n) + 2(parameters + 1), with 3 parameters for the power law and 2 otherwise.
        holdout_error: √(Σ(ρ - ρ̂)²/Σρ²) over the last ⌈n/5⌉ points when the law is fitted on the
            rest; None where the rest has fewer than four points.
        n: number of points.
    """

    law: str
    a: float
    b: float
    p: float | None
    interval: tuple[float, float] | None
    p_without_first: float | None
    p_at_bound: bool
    r2: float
    aic: float
    holdout_error: float | None
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
        if self.law == "power" and (self.p is None or math.isnan(self.p)):
            return np.full_like(t, self.b)
        return self.a * _regressor(self.law, t, self.p) + self.b

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON holds them: what is not finite becomes None."""
        fields = dataclasses.asdict(self)
        if self.interval is not None:
            fields["interval"] = list(self.interval)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }


def fit_growth(steps: Numbers, values: Numbers, law: str = "power") -> Fit:
    """Fit one growth law ρ(t) = a·g(t) + b by ordinary least squares.

    The free power is fitted by variable projection: for a given p, a and b are linear least
    squares, so only p is searched, on a grid and then by bounded minimisation between its
    neighbours.

    Args:
        steps: training steps t, shape (points,), increasing, ≥ 0.
        values: the series ρ(t), shape (points,), finite; a norm, or any other quantity.
        law: "linear", "sqrt", "fourth_root", "log" or "power".

    Returns:
        The fit, with its interval and its error outside the fitted steps.

    Raises:
        SaturationError: an unknown law, fewer than four points, lengths that differ, a value that
            is not finite, or steps that are negative, repeated or out of order.

    Source: arXiv 2010.09697, section 3 and figure 1 (the laws); intervals and exponent are ours.

    Example:
        >>> round(fit_growth([0, 1, 4, 9, 16], [2, 5, 8, 11, 14], "sqrt").a, 6)
        3.0
    """
    if law not in LAWS:
        raise SaturationError(f"There is no growth law {law!r}; the laws are {', '.join(LAWS)}.")
    t, rho = _check_series(steps, values)
    a, b, p = _least_squares(law, t, rho)
    without_first = interval = None
    if law == "power":
        interval = _bootstrap_interval(t, rho)
        if len(t) > MINIMUM_POINTS:
            without_first = _least_squares(law, t[1:], rho[1:])[2]
    residuals = rho - _evaluate(law, a, b, p, t)
    return Fit(
        law=law,
        a=a,
        b=b,
        p=p,
        interval=interval,
        p_without_first=without_first,
        p_at_bound=law == "power" and bool(np.isclose(p or 0.0, POWER_BOUNDS, atol=1e-4).any()),
        r2=_r_squared(residuals, rho),
        aic=_aic(residuals, rho, parameters=3 if law == "power" else 2),
        holdout_error=_holdout_error(law, t, rho),
        n=len(t),
    )


def fit_all(steps: Numbers, values: Numbers) -> dict[str, Fit]:
    """Fit every law of `LAWS` to one series; arguments and errors as `fit_growth`."""
    return {law: fit_growth(steps, values, law) for law in LAWS}


def best_law(fits: Mapping[str, Fit]) -> Fit:
    """Return the fit with the lowest AIC, the criterion that charges the power law for its p."""
    return min(fits.values(), key=lambda fit: fit.aic)


def describe(fit: Fit) -> str:
    """Return the fitted law as one readable equation, such as "ρ = 5.412·√t + 193.6"."""
    shape = {"linear": "t", "sqrt": "√t", "fourth_root": "t^¼", "log": "ln(1 + t)"}
    g = shape.get(fit.law) or f"t^{fit.p:.3f}"
    sign = "-" if fit.b < 0 else "+"
    return f"ρ = {fit.a:.4g}·{g} {sign} {abs(fit.b):.4g}"


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


def _regressor(law: str, t: np.ndarray, p: float | None) -> np.ndarray:
    """Return g(t)."""
    return np.log1p(t) if law == "log" else t**p


def _evaluate(law: str, a: float, b: float, p: float | None, t: Points) -> Points:
    """Return a·g(t) + b, or b alone for the constant series that leaves the power undetermined."""
    return a * _regressor(law, t, p) + b if a else np.full_like(t, b)


def _least_squares(law: str, t: Points, rho: Points) -> tuple[float, float, float | None]:
    """Return a, b and p (None for the logarithm, nan where a power has nothing to grow)."""
    if law == "power":
        return _fit_power(t, rho)
    p = EXPONENTS.get(law)
    a, b = _fit_line(_regressor(law, t, p), rho)
    return a, b, p


def _fit_line(g: Points, rho: Points) -> tuple[float, float]:
    """Return slope and level of ρ against g; g is scaled to 1 so that huge steps lose no digits."""
    scale = np.abs(g).max()
    design = np.stack([g / scale, np.ones_like(g)], axis=1)
    (slope, level), *_ = np.linalg.lstsq(design, rho)
    return float(slope / scale), float(level)


def _fit_power(t: Points, rho: Points) -> tuple[float, float, float]:
    """Return a, b and p of the free power: a grid over p, then a bounded search in its best cell.

    The residual can have two valleys in p (one where p → 0 fits the first point alone), hence the
    grid first.
    """
    if np.ptp(rho) == 0:
        return 0.0, float(rho[0]), math.nan
    grid = _power_grid()
    profile = _profile(t, rho, np.ones((1, len(t))), grid)[0]
    best = int(np.argmin(profile))
    cell = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]

    def residual_sum(p: float) -> float:
        h = _shifted_power(t, p)
        slope, level = _fit_line(h, rho)
        return float(np.sum((rho - slope * h - level) ** 2))

    found = minimize_scalar(residual_sum, bounds=cell, method="bounded", options={"xatol": 1e-9})
    p = float(found.x)
    slope, level = _fit_line(_shifted_power(t, p), rho)
    return float(slope / t[-1] ** p), level - slope, p


def _power_grid() -> Float[np.ndarray, " powers"]:
    """Return the exponents searched, 0.01 apart: far finer than the valley of any series."""
    return np.linspace(*POWER_BOUNDS, 500)


def _shifted_power(t: Points, p: float | Float[np.ndarray, "powers 1"]) -> np.ndarray:
    """Return (t/T)^p - 1 with T the last step: spans what t^p and 1 span, and keeps its digits.

    As p → 0, t^p itself becomes the constant 1, and a and b cancel; this form becomes p ln(t/T).
    """
    log_t = np.full_like(t, -np.inf)
    np.log(t / t[-1], out=log_t, where=t > 0)
    return np.expm1(p * log_t)


def _profile(
    t: Points,
    rho: Points,
    weights: Float[np.ndarray, "draws points"],
    powers: Float[np.ndarray, " powers"],
) -> Float[np.ndarray, "draws powers"]:
    """Return the residual sum of squares over a and b for every draw's weights and every power.

    All draws share the points, so each of the sums that a weighted regression needs is one matrix
    product, draws × points by points × powers. A draw of equal values is nan throughout.
    """
    h = _shifted_power(t, powers[:, None])
    h = (h - h.mean(axis=1, keepdims=True)) / h.std(axis=1, keepdims=True)
    y = (rho - rho.mean()) / rho.std()
    total = weights.sum(axis=1, keepdims=True)
    mean_y = (weights @ y)[:, None] / total
    mean_h = weights @ h.T / total
    var_y = (weights @ y**2)[:, None] / total - mean_y**2
    var_h = weights @ (h**2).T / total - mean_h**2
    covariance = weights @ (h * y).T / total - mean_h * mean_y
    rounding = 1e-12  # of moments of order 1; below it a variance is no variance
    safe_var_h = np.where(var_h > rounding, var_h, np.inf)
    explained = covariance**2 / safe_var_h
    return np.where(var_y > rounding, var_y - explained, np.nan) * total


def _bootstrap_interval(t: Points, rho: Points) -> tuple[float, float] | None:
    """Return the 95 % interval of p by a moving-block bootstrap of pairs.

    Neighbouring residuals of a training run are alike, and blocks of neighbours keep them together.
    Each draw strings blocks that start anywhere, cuts them to n points, and fits again.
    """
    n = len(t)
    if n < 2 * BLOCK or np.ptp(rho) == 0:
        return None
    generator = np.random.default_rng(0)
    starts = generator.integers(0, n - BLOCK + 1, size=(DRAWS, math.ceil(n / BLOCK)))
    drawn = (starts[:, :, None] + np.arange(BLOCK)).reshape(DRAWS, -1)[:, :n]
    batches = np.array_split(drawn, math.ceil(drawn.size / BATCH_ELEMENTS))
    powers = np.concatenate([_refit(t, rho, batch) for batch in batches])
    if np.isnan(powers).all():
        return None
    low, high = np.nanpercentile(powers, [2.5, 97.5])
    return float(low), float(high)


def _refit(
    t: Points, rho: Points, drawn: Int[np.ndarray, "draws points"]
) -> Float[np.ndarray, " draws"]:
    """Return p of every draw, nan for a draw of equal values: the grid's best, then two parabolas.

    A minimiser called a thousand times would spend its time in Python; the parabola through three
    residuals moves all draws at once, and two of them, ever narrower, leave an error below 1e-7.
    """
    n = len(t)
    flat = drawn + n * np.arange(len(drawn))[:, None]
    counts = np.bincount(flat.ravel(), minlength=drawn.size).reshape(-1, n).astype(np.float64)
    grid = _power_grid()
    profile = _profile(t, rho, counts, grid)
    determined = ~np.isnan(profile[:, 0])
    p = grid[np.where(determined[:, None], profile, 0.0).argmin(axis=1)]
    for width in (grid[1] - grid[0], 1e-3, 1e-4):
        left, middle, right = (_draw_residuals(t, rho, counts, p + d) for d in (-width, 0, width))
        curvature = left - 2 * middle + right
        shift = (left - right) / np.where(curvature > 0, 2 * curvature, np.inf)
        p = np.clip(p + width * np.clip(shift, -1, 1), *POWER_BOUNDS)
    return np.where(determined, p, np.nan)


def _draw_residuals(
    t: Points,
    rho: Points,
    counts: Float[np.ndarray, "draws points"],
    powers: Float[np.ndarray, " draws"],
) -> Float[np.ndarray, " draws"]:
    """Return each draw's residual sum of squares at its own power, from centred sums."""
    h = _shifted_power(t, np.clip(powers, *POWER_BOUNDS)[:, None])
    h -= np.average(h, weights=counts, axis=1, keepdims=True)
    y = rho - (counts @ rho / len(t))[:, None]
    slope = np.sum(counts * h * y, axis=1) / np.sum(counts * h**2, axis=1)
    return np.sum(counts * (y - slope[:, None] * h) ** 2, axis=1)


def _r_squared(residuals: Points, rho: Points) -> float:
    """Return 1 - RSS/TSS, nan for a constant series."""
    total = float(np.sum((rho - rho.mean()) ** 2))
    return 1 - float(np.sum(residuals**2)) / total if np.ptp(rho) else math.nan


def _aic(residuals: Points, rho: Points, parameters: int) -> float:
    """Return n ln(RSS/n) + 2(parameters + 1); the 1 is for the variance of the residuals.

    Residuals below the rounding of the values carry no information, so RSS/n has that floor: among
    laws that fit exactly the one with fewer parameters wins, and the value stays finite.
    """
    rounding = 64 * np.finfo(np.float64).eps * np.abs(rho).max()
    mean_square = max(float(np.mean(residuals**2)), rounding**2, np.finfo(np.float64).tiny)
    return len(rho) * math.log(mean_square) + 2 * (parameters + 1)


def _holdout_error(law: str, t: Points, rho: Points) -> float | None:
    """Return the relative root-mean-square error on the last fifth when fitted on the rest."""
    kept = len(t) - math.ceil(len(t) / 5)
    if kept < MINIMUM_POINTS:
        return None
    a, b, p = _least_squares(law, t[:kept], rho[:kept])
    error = rho[kept:] - _evaluate(law, a, b, p, t[kept:])
    scale = float(np.sum(rho[kept:] ** 2))
    return math.sqrt(float(np.sum(error**2)) / scale) if scale else math.nan
