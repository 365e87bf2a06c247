"""What is said of spectra: their terms, and how to read their figure."""

from __future__ import annotations

from collections.abc import Sequence

from saturation.measures.words import DOVONON, Term, Words
from saturation.plots.series import RunTable

TERMS = (
    Term(
        "fraction_negative",
        "share of the d_kv non-zero eigenvalues λ of H = diag(g) W_V W_O with Re λ < 0",
        "What a head adds is turned against the stream in so many directions.",
        DOVONON,
    ),
    Term(
        "fraction_sharpening",
        "share with Re λ in [−1, 0)",
        "1: what tokens share does not outgrow the null space, if λ are real and the stream's root "
        "mean square were 1; whether they part takes an eigenvalue of attention below 0.",
        DOVONON,
    ),
    Term("spectral_radius", "max |λ|", "How strongly a head can act.", "ours"),
    Term(
        "asymmetry",
        "‖H − Hᵀ‖_F/(2‖H‖_F)",
        "0 for a symmetric H, 1 for a skew one, 0.71 for a random one.",
        "ours",
    ),
    Term("real_min", "min Re λ", "The leftmost eigenvalue.", "ours"),
    Term("real_max", "max Re λ", "The rightmost eigenvalue.", "ours"),
    Term("imaginary_max", "max |Im λ|", "How far the spectrum is from real.", "ours"),
    Term(
        "growth_of_shared",
        "max(1, max |1 + λ|); max |1 + λ| where d_kv = d",
        "By how much what all tokens share grows in a layer.",
        DOVONON,
    ),
    Term(
        "sharpens_below",
        "m: max_j |1 + λ_j λ^A_min| > growth_of_shared where λ^A_min < m",
        "Under an attention of real eigenvalues the head sharpens where the smallest is below "
        "this; −1: never. It is not above 0 where d_kv < d.",
        f"ours, from {DOVONON}",
    ),
    Term("negative_scales", "count of g < 0", "Norm scales that turn signs.", "ours"),
    Term("…_unscaled", "the same with g = 1", "What the kernels alone say.", "ours"),
)


def guide(run: RunTable) -> Sequence[str]:
    """Return how to read spectrum.png."""
    if not run.matching("fraction_negative", ".*"):
        return ()
    return (
        "In spectrum.png each dot is an eigenvalue λ of a head's value-output matrix, divided by "
        "the root mean square of the layer's input where that was measured. The λ farthest from −1 "
        "decides: right of the disk it makes tokens alike, left of it (below −2) alike again, "
        "turning sign from layer to layer, unless attention has a λ^A far enough below 0. With all "
        "λ inside the disk nothing outgrows what the head leaves alone, and tokens part only where "
        "attention has an eigenvalue below 0 (or a complex one) that makes |1 + λλ^A| exceed 1.",
    )


WORDS = Words(
    terms=TERMS, figures={"spectrum": "eigenvalues of heads (measure spectrum)"}, guide=guide
)
