"""Every prediction of the theory beside what simulation gives, and whether they agree.

Source: arXiv 2305.16380, Lemma 1 and Theorems 2 to 5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saturation.scan_snap.data import Language, draw
from saturation.scan_snap.figures import FLOW_STEPS, Row, Rows
from saturation.scan_snap.flow import descent, flow
from saturation.scan_snap.model import Parameters, lemma_1, loss
from saturation.scan_snap.theory import Setting, compete, frequency_ratio

YES, NO, NOT_CLAIMED = "yes", "no", "not claimed"
DEVIATION = "relative deviation"
FREQUENCY_BIAS = "frequency bias, r(t) = r(0)·χ(t)"
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
            for rate in sorted({float(row["eta_y"]) for row in figure})
            for row in _snap(figure, rate)
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


def _snap(figure: Rows, rate_y: float) -> Rows:
    """When the layer learns and attention moves, how B grows before and after, where χ lies."""
    rows = [row for row in figure if row["eta_y"] == rate_y]
    table = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    time, snap_time, moved = table["time"], table["snap_time"][0], table["budget_simulated"]
    half = time[np.argmax(table["residual"] < 0.5)] / snap_time
    fastest = time[1 + np.argmax(np.gradient(moved[1:], np.log(time[1:])))] / snap_time
    outside = (table["chi"] < table["chi_lower"]) | (table["chi"] > table["chi_upper"])
    inside_from = time[np.flatnonzero(outside)[-1] + 1] / snap_time if outside.any() else 0.0
    setting = Setting(int(rows[0]["classes"]), int(rows[0]["size"]), rate_y, table["eta_z"][0])
    where = f"K = {setting.classes}, M = {setting.size}, η_Z = {setting.rate_z:g}, η_Y = {rate_y:g}"
    phase, tail = "phase transition at t₀", "B, growth over [2t₀, 4t₀]/growth over [t₀/2, t₀]"
    order = (0.5, 2.0)
    return [
        _row(f"{phase}: next token has p = ½", where, "order of 1", float(half), "t₀", order),
        _row(
            f"{phase}: B grows fastest, by ln t", where, "order of 1", float(fastest), "t₀", order
        ),
        _row(tail, where, *_tail(setting, time, moved), "ratio", (0.0, 0.5)),
        _row("e^{2f²(0)B} ≤ χ ≤ e^{2B} from", where, "0", float(inside_from), "t₀", (0.0, 0.0)),
    ]


def _tail(
    setting: Setting, time: Float[np.ndarray, " times"], moved: Float[np.ndarray, " times"]
) -> tuple[str, float]:
    """How much slower B grows after t₀ than before, by the closed form and in the simulation."""
    at = np.array([0.5, 1 - 1e-9, 2.0, 4.0]) * setting.snap_time  # t₀ itself is in the tail
    ratios = []
    for b in (setting.budget(at), np.interp(at, time, moved)):
        ratios.append((b[3] - b[2]) / (b[1] - b[0]))
    return f"{ratios[0]:.2g}", float(ratios[1])
