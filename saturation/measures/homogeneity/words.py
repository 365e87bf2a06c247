"""What is said of homogeneity: its terms, and how to read its figure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from saturation.measures.words import SHORT, Term, Words
from saturation.plots.series import RunTable

COSINE, DEGREE = "cosine_to_limit_at_", "local_degree_at_"

TERMS = (
    Term(
        "cosine_to_limit_at_c",
        "mean over tokens of cos(f(x; cθ), sf(x))",
        "From which c on the limit describes the network.",
        SHORT,
    ),
    Term(
        "local_degree_at_c",
        "mean over tokens of d ln‖f(x; cθ)‖/d ln c",
        "The power of c by which a layer grows there.",
        "ours",
    ),
)


def scales(run: RunTable) -> tuple[float, ...]:
    """Return the grid of c on which a run has both curves, ascending."""
    found = (re.fullmatch(rf"{DEGREE}([\d.e+-]+)", metric) for metric in run.metrics)
    grid = (float(match[1]) for match in found if match)
    return tuple(sorted(c for c in grid if f"{COSINE}{c:g}" in run.metrics))


def guide(run: RunTable) -> Sequence[str]:
    """Return how to read homogeneity.png."""
    if not scales(run):
        return ()
    return (
        "In homogeneity.png all parameters are multiplied by c. A curve that falls says from which "
        "c on the limit describes the layer; below, a level line at 3 (5 where the feed-forward is "
        "gated) says that the layer grows as that power of c.",
    )


WORDS = Words(
    terms=TERMS,
    figures={
        "homogeneity": "curves against c (measure homogeneity: metrics such as local_degree_at_10)"
    },
    guide=guide,
)
