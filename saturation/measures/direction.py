"""Direction and step between checkpoints, and the norm budget (Merrill et al. 2021, corrected).

Everything derives from inner products with the *difference* of two checkpoints, not of the
checkpoints themselves: near cos = 1 the latter leave nothing but rounding in 1 − cos.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saturation.measures.base import ArrayInfo, Statistics, WeightMeasure


def terms(x: Any, previous: Any, first: Any) -> dict[str, Any]:
    """Return the terms of ‖θ_t‖², ‖δ‖², ⟨θ_t, δ⟩ for t the previous and the first checkpoint."""
    delta, since_first = x - previous, x - first
    return {
        "previous_squares": previous * previous,
        "delta_squares": delta * delta,
        "previous_delta": previous * delta,
        "first_squares": first * first,
        "since_first_squares": since_first * since_first,
        "first_since_first": first * since_first,
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
    """
    sums = {name: values.sum(axis=0) for name, values in statistics.items()}
    squares, delta_squares = sums["previous_squares"], sums["delta_squares"]
    dot = sums["previous_delta"]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = one_minus_cosine(squares, delta_squares, dot)
        projected = dot**2 / squares
        to_first = one_minus_cosine(
            sums["first_squares"], sums["since_first_squares"], sums["first_since_first"]
        )
        return {
            "cosine": 1 - distance,
            "cosine_distance": distance,
            "cosine_to_first": 1 - to_first,
            "step_norm": np.sqrt(delta_squares),
            "alignment": dot / np.sqrt(delta_squares * squares),
            "relative_step": np.sqrt(delta_squares / squares),
            "radial": 2 * dot + projected,
            "tangential": delta_squares - projected,
        }


def _norms(
    squares: np.ndarray, delta_squares: np.ndarray, dot: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ‖θ‖ and ‖θ + δ‖; the sum of squares cannot be below 0 but by rounding."""
    return np.sqrt(squares), np.sqrt(np.maximum(squares + 2 * dot + delta_squares, 0))


DIRECTION = WeightMeasure(
    name="direction",
    definition="cosine, step norm, alignment and norm budget between neighbouring checkpoints",
    source="Merrill et al. 2021 (arXiv 2010.09697), §3, corrected; norm budget ours",
    statistics=dict.fromkeys(
        (
            "previous_squares",
            "delta_squares",
            "previous_delta",
            "first_squares",
            "since_first_squares",
            "first_since_first",
        ),
        "sum",
    ),
    terms=terms,
    metrics=metrics,
    compares_steps=True,
    against_first=("cosine_to_first",),
    rates=("step_norm", "relative_step", "radial", "tangential"),
)
