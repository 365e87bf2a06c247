"""What a measure says of itself: what its metrics mean, its tables, how to read its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from saturation.plots.panels import Table
from saturation.plots.series import RunTable

MERRILL = (
    "Merrill, Ramanujan, Goldberg, Schwartz and Smith, Effects of Parameter Norm Growth During "
    "Transformer Training, EMNLP 2021, arXiv:2010.09697"
)
SHORT = "Merrill et al. 2021"
DOVONON = "Dovonon et al. 2025"


@dataclass(frozen=True)
class Term:
    """One metric of the results table.

    Attributes:
        metric: its name in the table.
        formula: as MEASURES and the docs write it; θ_t and θ_t′ are neighbouring checkpoints.
        meaning: one sentence for somebody who sees it for the first time.
        source: the paper, or "ours".
    """

    metric: str
    formula: str
    meaning: str
    source: str


def _nothing(run: RunTable) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Words:
    """The words of one measure.

    Attributes:
        terms: its metrics.
        figures: {file: what a run must have for it, in words that say what to measure}.
        tables: of a run, for the summary and the page; none where nothing was measured.
        guide: sentences on how to read its figures.
        warnings: what a reader of this run must be warned of.
    """

    terms: Sequence[Term]
    figures: Mapping[str, str] = field(default_factory=dict)
    tables: Callable[[RunTable], Sequence[Table]] = _nothing
    guide: Callable[[RunTable], Sequence[str]] = _nothing
    warnings: Callable[[RunTable], Sequence[str]] = _nothing


# What several measures give.
COMMON_TERMS = (
    Term(
        "…_stderr",
        "standard error over sequences of the mean before it",
        "How much the sample of text matters.",
        "ours",
    ),
    Term(
        "tokens",
        "count",
        "How many tokens, or queries of a head, a mean is taken over.",
        "ours",
    ),
)
