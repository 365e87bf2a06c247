"""What is said of the direction: its terms, and how much of the growth each part made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saturation.measures.words import SHORT, Term, Words
from saturation.plots.series import RunTable, describe_spacing

TERMS = (
    Term(
        "cosine",
        "⟨θ_t, θ_t′⟩/(‖θ_t‖‖θ_t′‖)",
        "1 where the direction of the parameters did not change between two checkpoints.",
        SHORT,
    ),
    Term(
        "cosine_distance",
        "1 − cosine = (‖δ‖² − (‖θ_t′‖ − ‖θ_t‖)²)/(2‖θ_t‖‖θ_t′‖)",
        "The same from the difference δ, so that it keeps its digits near 0.",
        f"{SHORT}; this form ours",
    ),
    Term(
        "cosine_to_first",
        "⟨θ_first, θ_t⟩/(‖θ_first‖‖θ_t‖)",
        "How much of the first checkpoint's direction is left.",
        SHORT,
    ),
    Term("step_norm", "‖δ‖, δ = θ_t′ − θ_t", "How far the parameters moved.", SHORT),
    Term("relative_step", "‖δ‖/‖θ_t‖", "How far they moved, relative to their size.", SHORT),
    Term(
        "alignment",
        "⟨δ, θ_t⟩/(‖δ‖‖θ_t‖)",
        "1: straight outwards, the direction stays; 0: across; below 0: inwards.",
        f"{SHORT}, whose code divides its per-layer value by another quantity",
    ),
    Term(
        "radial",
        "2⟨θ_t, δ⟩ + ⟨θ_t, δ⟩²/‖θ_t‖²",
        "The part of the growth of ‖θ‖² that steps along θ made.",
        "ours",
    ),
    Term(
        "tangential",
        "‖δ‖² − ⟨θ_t, δ⟩²/‖θ_t‖²",
        "The part that steps across θ made; radial + tangential = ‖θ_t′‖² − ‖θ_t‖² exactly.",
        "ours",
    ),
    Term(
        "exponent",
        "ln(‖θ_t′‖/‖θ_t‖)/ln(t′/t)",
        "The power of t by which ‖θ‖ grew between two checkpoints; none where t = 0.",
        "ours",
    ),
    Term(
        "exponent_radial",
        "radial/(2Λ ln(t′/t)), Λ = (N′ − N)/ln(N′/N), N = ‖θ_t‖², N′ = ‖θ_t′‖²",
        "Its part by steps along θ.",
        "ours",
    ),
    Term(
        "exponent_tangential",
        "tangential/(2Λ ln(t′/t))",
        "Its part by steps across θ; the two parts sum to the exponent exactly.",
        "ours",
    ),
    Term(
        "…_per_step",
        "metric/(t′ − t)",
        "The same for one training step, since checkpoints lie unevenly apart.",
        "ours",
    ),
)


def guide(run: RunTable) -> Sequence[str]:
    """Return what the numbers depend on, and how much steps along and across θ made of growth."""
    if not run.scopes("cosine"):
        return ()
    _, series = run.main_series("cosine")
    depends = (
        "Cosines, steps and the norm budget depend on the spacing: checkpoints lie "
        f"{describe_spacing(series.spacing)}."
    )
    return [depends, *_exponents(run)]


def _exponents(run: RunTable) -> list[str]:
    if not run.scopes("exponent"):
        return []
    scope = run.scopes("exponent")[0]
    medians = []
    for metric in ("exponent", "exponent_radial", "exponent_tangential"):
        series = run.series(metric, scope)
        if series is None:
            return []
        medians.append(float(np.median(series.values)))
    whole, along, across = medians
    return [
        f"Between checkpoints ‖θ‖ of {scope!r} grew as t to the power {whole:.3f} (median); "
        f"steps along θ account for {along:.3f} of it, across θ for {across:.3f} (medians)."
    ]


WORDS = Words(
    terms=TERMS,
    figures={
        "direction": "cosines between checkpoints (measure direction)",
        "steps": "steps between checkpoints (measure direction)",
    },
    guide=guide,
)
