"""Direction and step between checkpoints, and the norm budget (Merrill et al. 2021, corrected).

Everything derives from inner products with the *difference* of two checkpoints, not of the
checkpoints themselves: near cos = 1 the latter leave nothing but rounding in 1 − cos.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saturation.measures.base import ArrayInfo, Block, Statistics, WeightMeasure


def terms(block: Block) -> dict[str, Any]:
    """Return the terms of ‖θ_t′‖², ‖δ‖², ⟨θ_t, δ⟩, ⟨θ_first, θ_t′⟩, ‖θ_t‖² and ‖θ_first‖²."""
    delta = block.now - block.previous
    return {
        "sum_squares": block.now * block.now,
        "delta_squares": delta * delta,
        "previous_delta": block.previous * delta,
        "first_now": block.first * block.now,
        "previous_squares": block.previous * block.previous,
        "first_squares": block.first * block.first,
    }


def one_minus_cosine(squares: np.ndarray, delta_squares: np.ndarray, dot: np.ndarray) -> np.ndarray:
    """Return 1 − cos(θ, θ + δ) from ‖θ‖², ‖δ‖² and ⟨θ, δ⟩, exact near 0.

    1 − cos = (‖δ‖² − (‖θ+δ‖ − ‖θ‖)²)/(2‖θ‖‖θ+δ‖), ‖θ+δ‖ − ‖θ‖ = (2⟨θ,δ⟩ + ‖δ‖²)/(‖θ+δ‖ + ‖θ‖).
    """
    before, after = _norms(squares, delta_squares, dot)
    growth = (2 * dot + delta_squares) / (after + before)
    return (delta_squares - growth**2) / (2 * before * after)


def metrics(statistics: Statistics, arrays: ArrayInfo) -> dict[str, np.ndarray]:
    """Return the direction metrics of one scope; NaN where a norm that divides is 0.

    With δ = θ_t′ − θ_t: cosine = ⟨θ_t, θ_t′⟩/(‖θ_t‖‖θ_t′‖) and cosine_distance = 1 − cosine;
    cosine_to_first likewise against the first checkpoint; step_norm = ‖δ‖; alignment =
    ⟨δ, θ_t⟩/(‖δ‖‖θ_t‖); relative_step = ‖δ‖/‖θ_t‖; and the norm budget
    ‖θ_t′‖² − ‖θ_t‖² = radial + tangential with radial = 2⟨θ_t, δ⟩ + ⟨θ_t, δ⟩²/‖θ_t‖² and
    tangential = ‖δ‖² − ⟨θ_t, δ⟩²/‖θ_t‖².

    Divided by ln(t′/t) where the table is made: exponent = ln(‖θ_t′‖/‖θ_t‖)/ln(t′/t), and its parts
    exponent_radial = radial/(2Λ ln(t′/t)) and exponent_tangential = tangential/(2Λ ln(t′/t)) with
    Λ = (N′ − N)/ln(N′/N), N = ‖θ_t‖², N′ = ‖θ_t′‖².
    """
    sums = {name: values.sum(axis=0) for name, values in statistics.items()}
    squares, delta_squares = sums["previous_squares"], sums["delta_squares"]
    dot = sums["previous_delta"]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = one_minus_cosine(squares, delta_squares, dot)
        projected = dot**2 / squares
        radial, tangential = 2 * dot + projected, delta_squares - projected
        half_log, weight = _log_growth(squares, radial + tangential)
        return {
            "cosine": 1 - distance,
            "cosine_distance": distance,
            "cosine_to_first": sums["first_now"]
            / np.sqrt(sums["first_squares"])
            / np.sqrt(sums["sum_squares"]),
            "step_norm": np.sqrt(delta_squares),
            "alignment": dot / np.sqrt(delta_squares * squares),
            "relative_step": np.sqrt(delta_squares / squares),
            "radial": radial,
            "tangential": tangential,
            "exponent": half_log,
            "exponent_radial": radial * weight,
            "exponent_tangential": tangential * weight,
        }


def _log_growth(squares: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ln(N′/N)/2 and 1/(2Λ) from N and N′ − N; Λ is N where N′/N − 1 is below 1e-9."""
    relative = change / squares
    half_log = np.log1p(relative) / 2
    small = np.abs(relative) < 1e-9
    weight = np.where(small, 1 / (2 * squares), half_log / np.where(small, 1.0, change))
    return half_log, weight


def _norms(
    squares: np.ndarray, delta_squares: np.ndarray, dot: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ‖θ‖ and ‖θ + δ‖; the sum of squares cannot be below 0 but by rounding."""
    return np.sqrt(squares), np.sqrt(np.maximum(squares + 2 * dot + delta_squares, 0))


DIRECTION = WeightMeasure(
    name="direction",
    definition="cosine, step, alignment, norm budget and exponent between neighbouring checkpoints",
    source="Merrill et al. 2021 (arXiv 2010.09697), §3, corrected; norm budget and exponent ours",
    statistics=dict.fromkeys(
        (
            "sum_squares",
            "delta_squares",
            "previous_delta",
            "first_now",
            "previous_squares",
            "first_squares",
        ),
        "sum",
    ),
    terms=terms,
    metrics=metrics,
    compares_steps=True,
    against_first=("cosine_to_first",),
    rates=("step_norm", "relative_step", "radial", "tangential"),
    log_rates=("exponent", "exponent_radial", "exponent_tangential"),
)
