"""Every prediction of the theory beside what simulation gives, and whether they agree.

Source: arXiv 2305.16380, Lemma 1 and Theorems 2 to 5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from saturation.scan_snap.data import Language, draw
from saturation.scan_snap.figures import FLOW_STEPS, Row, Rows
from saturation.scan_snap.flow import descent, flow
from saturation.scan_snap.model import Parameters, lemma_1, loss
from saturation.scan_snap.theory import Setting, compete, frequency_ratio, growth_bounds

YES, NO, NOT_CLAIMED = "yes", "no", "not claimed"
DEVIATION = "relative deviation"
FREQUENCY_BIAS = "frequency bias, r(t) = r(0)·χ(t)"
CLOSE = 0.05  # how near the theorem's own setting has to come to it
ROUNDING = 1e-4  # of an integral by 1,600 trapezoids in float32
TWO = Language(2, next_per_last=1)  # the language of the paper's Figure 4


def agreement(figure: Rows, seed: int = 0) -> Rows:
    """Every prediction beside what simulation gives.

    Args:
        figure: rows of `figure_3`.
        seed: of the sequences on which Lemma 1 is tried.

    Returns:
        Rows prediction, setting, predicted, measured, unit, agrees_if (on what the verdict rests),
        agrees: yes, no, or not claimed, where the theory's assumption η_Y ≫ η_Z does not hold.
    """
    return [
        _lemma_1_deviation(seed),
        _own_equation(),
        *(_ratio_in_flow(ratio) for ratio in (1000, 100, 10, 1)),
        *_ratio_in_descent(),
        *_scanning(),
        *(
            row
            for common in sorted({int(row["common"]) for row in figure})
            for rate in sorted({float(row["eta_y"]) for row in figure})
            for row in _snap(figure, common, rate)
        ),
    ]


def _row(
    prediction: str,
    setting: str,
    predicted: str,
    measured: float,
    unit: str,
    bounds: tuple[float, float] | None,
) -> Row:
    """A prediction that agrees if what is measured lies within bounds; None: it claims nothing."""
    low, high = bounds or (0.0, 0.0)
    agrees = YES if low <= measured <= high else NO
    return {
        "prediction": prediction,
        "setting": setting,
        "predicted": predicted,
        "measured": measured,
        "unit": unit,
        "agrees_if": f"{low:g} to {high:g}" if bounds else "",
        "agrees": agrees if bounds else NOT_CLAIMED,
    }


def _lemma_1_deviation(seed: int) -> Row:
    """Largest difference between autodiff and Lemma 1, relative to the largest entry."""
    language = Language(3)
    start, data = jax.random.split(jax.random.key(seed))
    y_key, z_key = jax.random.split(start)
    shape = (language.size, language.size)
    parameters = Parameters(jax.random.normal(y_key, shape), jax.random.normal(z_key, shape))
    sequence = draw(data, language, batch=1, length=127)
    gradient = jax.grad(loss)(parameters, sequence)
    counts = np.asarray(sequence.counts[0]).astype(int)
    tokens = jnp.asarray(np.repeat(np.asarray(sequence.tokens[0]), counts))
    expected = lemma_1(parameters, tokens, sequence.last[0], sequence.following[0])
    worst = max(
        float(jnp.max(jnp.abs(by_autodiff + by_lemma)) / jnp.max(jnp.abs(by_lemma)))
        for by_autodiff, by_lemma in zip(gradient, expected, strict=True)
    )
    setting = f"M = {language.size}, one sequence of 128"
    return _row("Lemma 1 is the gradient", setting, "0", worst, DEVIATION, (0, 1e-5))


def _own_equation() -> Row:
    """r(t) = r(0)χ(t) where ż = ξ f² is integrated as it stands."""
    times = np.linspace(0.0, 10.0, 101)
    z = compete(TWO.probabilities, lambda _: 1.0, times)
    return _row(FREQUENCY_BIAS, "ż = f², t ≤ 10", "0", max(_deviations(z)), DEVIATION, (0, 1e-4))


def _ratio_in_flow(ratio: int) -> Row:
    """The same along the gradient flow of the whole layer, up to 2 t₀."""
    setting = Setting(TWO.classes, TWO.size, 1.0, 1 / ratio)
    run = flow(TWO, 1.0, 1 / ratio, 2 * setting.snap_time, 2 * FLOW_STEPS)
    where = f"gradient flow, η_Y/η_Z = {ratio}, t ≤ 2t₀"
    bounds = (0, 1e-4) if ratio >= 100 else None
    worst = max(_deviations(run.z))
    return _row(FREQUENCY_BIAS, where, "0 as η_Y/η_Z → ∞", worst, DEVIATION, bounds)


def _ratio_in_descent() -> Rows:
    """The same by gradient descent at equal rates, where theory claims nothing any more."""
    found = _deviations(descent(TWO, 1.0, 1.0, 100).z)
    where = "gradient descent on the true distribution, η_Y = η_Z = 1, 100 steps"
    return [
        _row(FREQUENCY_BIAS, f"{where}; {pair}", "0 as η_Y/η_Z → ∞", value, DEVIATION, None)
        for pair, value in (
            ("most frequent against rarest token", found[0]),
            ("most frequent against the next", found[-1]),
        )
    ]


def _deviations(z: Float[np.ndarray, "times support"]) -> list[float]:
    """Largest |r/(r(0)χ) − 1| over time, of the most frequent distinct token against each other.

    From the rarest token on to the second most frequent one. Pairs are compared with r, which is
    smaller the nearer the two are in frequency; so the deviation is larger there.
    """
    c, best = TWO.probabilities * np.exp(z), len(TWO.probabilities) - 1
    growth = np.exp(2 * (z[:, best] - z[0, best]))
    ratios = [frequency_ratio(c, best, other) for other in range(TWO.common, best)]
    return [float(np.max(np.abs(r / (r[0] * growth) - 1))) for r in ratios]


def _scanning() -> Rows:
    """The sign of ż: attention leaves what classes share and goes to what tells them apart."""
    setting = Setting(TWO.classes, TWO.size, 10.0, 1.0)
    moves = np.diff(flow(TWO, 10.0, 1.0, 2 * setting.snap_time, FLOW_STEPS).z, axis=0)
    own, shared = moves[:, TWO.common :], moves[:, : TWO.common]
    where, unit = "gradient flow, η_Y/η_Z = 10, t ≤ 2t₀", "fraction of tokens and times"
    return [
        _row(
            "discriminative bias, ż > 0 of distinct tokens",
            where,
            "1",
            float(np.mean(own > 0)),
            unit,
            (1, 1),
        ),
        _row(
            "discriminative bias, ż < 0 of common tokens",
            where,
            "1",
            float(np.mean(shared < 0)),
            unit,
            (1, 1),
        ),
    ]


def _snap(figure: Rows, common: int, rate_y: float) -> Rows:
    """When the layer learns, what reaches attention, how B grows and between what χ lies.

    The theorem is about classes whose f_n hardly overlap. Where they share ten common tokens it
    claims nothing, and the same numbers stand beside it.
    """
    rows = [row for row in figure if (row["common"], row["eta_y"]) == (common, rate_y)]
    table = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    setting = Setting(int(rows[0]["classes"]), int(rows[0]["size"]), rate_y, table["eta_z"][0])
    time, claimed = table["time"], common == 1
    where = (
        f"K = {setting.classes}, M = {setting.size}, η_Z = {setting.rate_z:g}, η_Y = {rate_y:g}, "
        f"{common} common token{'s' if common > 1 else ''} (f_n·f_n' = {table['overlap'][0]:.2f})"
    )
    learnt = table["residual"] < 0.5
    half = np.interp(-0.5, -table["residual"], time) if learnt.any() else np.inf
    # At the start both are 0.
    speeds = table["gamma_simulated"][1:] / table["gamma"][1:]
    outside = [np.mean(_outside(table, b)) for b in (table["budget_simulated"], table["budget"])]
    within = (1 - CLOSE, 1 + CLOSE) if claimed else None
    unit = "of its prediction"
    return [
        _row(
            "t_½, when the next token has p = ½ (Lemma 3)",
            where,
            f"{setting.half_time / setting.snap_time:.3f} t₀",
            float(half / setting.half_time),
            unit,
            within,
        ),
        _row(
            "γ, what reaches attention (Lemma 1), largest deviation, t ≤ 4t₀",
            where,
            "0",
            float(np.max(np.abs(speeds - 1))),
            DEVIATION,
            (0, CLOSE) if claimed else None,
        ),
        _row(
            "e^{2f²(0)B} ≤ χ ≤ e^{2B} with the simulated B = ∫ż/f²",
            where,
            "0",
            float(outside[0]),
            "fraction of times outside",
            (0, 0),
        ),
        _row(
            "the same with B in closed form, C₀ = 1",
            where,
            "0 for the theorem's C₀, which it leaves open",
            float(outside[1]),
            "fraction of times outside",
            None,
        ),
        _row(
            "B in closed form, C₀ = 1, at 4t₀",
            where,
            f"{table['budget'][-1]:.2f} for the theorem's C₀, which it leaves open",
            float(table["budget_simulated"][-1] / table["budget"][-1]),
            unit,
            None,
        ),
    ]


def _outside(
    table: dict[str, Float[np.ndarray, " times"]], budget: Float[np.ndarray, " times"]
) -> Bool[np.ndarray, " times"]:
    """Where χ leaves its bounds by more than the integral's error (1e-4)."""
    initial = np.log(table["chi_lower"][-1]) / (2 * table["budget"][-1])
    lower, upper = growth_bounds(budget, float(initial))
    return (table["chi"] < lower * (1 - ROUNDING)) | (table["chi"] > upper * (1 + ROUNDING))
