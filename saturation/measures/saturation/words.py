"""What is said of saturation: its terms, its table, how to read its figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saturation.measures.words import SHORT, Term, Words
from saturation.plots.panels import Table
from saturation.plots.series import LAYER, RunTable, on_steps

COSINES = {
    "cosine_attention_limit": "attention at τ = 0",
    "cosine_parameter_limit": "parameter limit, c → ∞",
    "cosine_scaled": "f(x; cθ), finite c",
}

TERMS = (
    Term(
        "cosine_attention_limit",
        "mean over tokens of cos(h, h′), h′ with every attention at τ = 0",
        "1 where attention has saturated: a layer is what it is with argmax attention.",
        "ours",
    ),
    Term(
        "cosine_parameter_limit",
        "mean over tokens of cos(h, h′), h′ of lim f(x; cθ)/c^k for c → ∞",
        "1 where the network behaves as a homogeneous one.",
        f"{SHORT}; the exact limit ours",
    ),
    Term(
        "excluded_parameter_limit",
        "count of tokens",
        "Tokens that cosine_parameter_limit leaves out: the limit does not exist there.",
        "ours",
    ),
    Term(
        "cosine_scaled",
        "mean over tokens of cos(h, h′), h′ of f(x; cθ)",
        "1 where scaling all parameters by c no longer turns the layer's output.",
        SHORT,
    ),
    Term(
        "excluded_scaled",
        "count of tokens",
        "Tokens that cosine_scaled leaves out: f(x; cθ) left the range of its dtype.",
        "ours",
    ),
    Term(
        "total_variation",
        "mean over queries of ½ Σ|w₁ − w₀|",
        "0 where a head's weights are those at temperature 0 already.",
        "ours",
    ),
)


def tables(run: RunTable) -> Sequence[Table]:
    """Return the mean over layers of each cosine, and the layer that is farthest from the limit."""
    rows = [row for metric, name in COSINES.items() for row in _rows(run, metric, name)]
    return [Table(("mean over layers of the cosine to", "first", "last"), rows)] if rows else []


def _rows(run: RunTable, metric: str, name: str) -> list[tuple[str, str, str]]:
    found = run.matching(metric, LAYER)
    if not found:
        return []
    values = on_steps(list(found.values()))[1]
    means = np.nanmean(values, axis=0)
    rows = [(name, f"{means[0]:.3f}", f"{means[-1]:.3f}")]
    if len(found) > 1 and np.isfinite(values[:, -1]).any():
        row = int(np.nanargmin(values[:, -1]))
        first, last = values[row, [0, -1]]
        rows.append((f"  worst: {list(found)[row]}", f"{first:.3f}", f"{last:.3f}"))
    return rows


def guide(run: RunTable) -> Sequence[str]:
    """Return how to read saturation.png."""
    if not any(run.matching(metric, LAYER) for metric in COSINES):
        return ()
    return (
        "In saturation.png each row or curve is the residual stream after one layer, beside what "
        "it would be in a limit: every attention at temperature 0 (only the best keys count), or "
        "all parameters grown without bound. 1 is a layer that is there already.",
    )


WORDS = Words(
    terms=TERMS,
    figures={"saturation": "cosines to limits (metrics such as cosine_attention_limit)"},
    tables=tables,
    guide=guide,
)
