"""Every prediction of the theory beside what simulation gives.

Source: arXiv 2305.16380, Lemma 1 and Theorems 2 to 5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saturation.scan_snap.data import Language, draw
from saturation.scan_snap.figures import FLOW_STEPS, Row, Rows
from saturation.scan_snap.flow import flow
from saturation.scan_snap.model import Parameters, lemma_1, loss
from saturation.scan_snap.theory import Setting, compete, frequency_ratio


def agreement(figure: Rows, seed: int = 0) -> Rows:
    """Every prediction beside what simulation gives.

    Args:
        figure: rows of `figure_3`.
        seed: of the sequences on which Lemma 1 is tried.

    Returns:
        Rows prediction, setting, predicted, measured, unit.
    """
    return [
        _lemma_1_deviation(seed),
        _own_equation(),
        *(_ratio_in_flow(ratio) for ratio in (1, 10, 100, 1000)),
        *_scanning(),
        *(row for rate in sorted({row["eta_y"] for row in figure}) for row in _snap(figure, rate)),
    ]


def _row(prediction: str, setting: str, predicted: str, measured: float, unit: str) -> Row:
    return {
        "prediction": prediction,
        "setting": setting,
        "predicted": predicted,
        "measured": measured,
        "unit": unit,
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
    return _row("Lemma 1 is the gradient", setting, "0", worst, "relative deviation")


def _own_equation() -> Row:
    """r(t) = r(0)χ(t) where ż = ξ f² is integrated as it stands."""
    language, times = Language(2, next_per_last=1), np.linspace(0.0, 10.0, 101)
    z = compete(language.probabilities, lambda _: 1.0, times)
    worst = _worst_ratio(language, z)
    return _row("r(t) = r(0)·χ(t)", "ż = f², t ≤ 10", "0", worst, "relative deviation")


def _ratio_in_flow(ratio: int) -> Row:
    """The same along the gradient flow of the whole layer, up to 2 t₀."""
    language = Language(2, next_per_last=1)
    setting = Setting(language.classes, language.size, 1.0, 1 / ratio)
    run = flow(language, 1.0, 1 / ratio, 2 * setting.snap_time, 2 * FLOW_STEPS)
    worst = _worst_ratio(language, run.z)
    where = f"gradient flow, η_Y/η_Z = {ratio}, t ≤ 2t₀"
    return _row("r(t) = r(0)·χ(t)", where, "0 as η_Y/η_Z → ∞", worst, "relative deviation")


def _worst_ratio(language: Language, z: Float[np.ndarray, "times support"]) -> float:
    """Largest |r/(r(0)χ) − 1| of the most frequent distinct token against each other one."""
    c, best = language.probabilities * np.exp(z), len(language.probabilities) - 1
    growth = np.exp(2 * (z[:, best] - z[0, best]))
    ratios = [frequency_ratio(c, best, other) for other in range(language.common, best)]
    return max(float(np.max(np.abs(r / (r[0] * growth) - 1))) for r in ratios)


def _scanning() -> Rows:
    """The sign of ż: attention leaves what classes share and goes to what tells them apart."""
    language = Language(2, next_per_last=1)
    setting = Setting(language.classes, language.size, 10.0, 1.0)
    moves = np.diff(flow(language, 10.0, 1.0, 2 * setting.snap_time, FLOW_STEPS).z, axis=0)
    own, shared = moves[:, language.common :], moves[:, : language.common]
    where, unit = "gradient flow, η_Y/η_Z = 10, t ≤ 2t₀", "fraction of tokens and times"
    return [
        _row("distinct tokens gain, ż > 0", where, "1", float(np.mean(own > 0)), unit),
        _row("common tokens lose, ż < 0", where, "1", float(np.mean(shared < 0)), unit),
    ]


def _snap(figure: Rows, rate_y: float | str) -> Rows:
    """When the prediction is half learnt, how B grows before and after t₀, where χ is in bounds."""
    rows = [row for row in figure if row["eta_y"] == rate_y]
    table = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    time, snap_time = table["time"], table["snap_time"][0]
    half = time[np.argmax(table["residual"] < 0.5)] / snap_time
    before, at, after, end = np.interp(
        np.array([0.5, 1.0, 2.0, 4.0]) * snap_time, time, table["budget_simulated"]
    )
    outside = (table["chi"] < table["chi_lower"]) | (table["chi"] > table["chi_upper"])
    inside_from = time[np.flatnonzero(outside)[-1] + 1] / snap_time if outside.any() else 0.0
    where = f"K = 10, M = 1000, η_Z = 0.5, η_Y = {rate_y:g}"
    return [
        _row("half learnt at the order of t₀", where, "about 1", float(half), "t₀"),
        _row(
            "B snaps: growth over [2t₀, 4t₀] against [t₀/2, t₀]",
            where,
            "well below 1",
            float((end - after) / (at - before)),
            "ratio",
        ),
        _row("χ within its bounds from", where, "0", float(inside_from), "t₀"),
    ]
