"""Statistics that need no sum of their own, since they follow from others: one table of them.

A measure of weights says by its terms what each statistic is, and knows nothing of this. A row
holds for whoever has a statistic of that name, where what it follows from is asked for too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from saturation.measures.base import WeightMeasure

Sums = Mapping[str, Any]
Totals = dict[str, np.ndarray]  # {statistic: float64 (arrays, steps read)}


def accumulation(platform: str) -> str:
    """Return how sums are carried on a platform: "float64" or "two-float"."""
    return "two-float" if platform == "tpu" else "float64"


def previous_delta(sums: Sums) -> Any:
    """Return ⟨θ_t, δ⟩ = (‖θ_t′‖² − ‖θ_t‖² − ‖δ‖²)/2.

    Of float64 sums it is off by some 1e-15·‖θ‖²: 1 − cos by 1e-15·‖θ‖/‖δ‖ of itself, and float32
    weights that differ at all differ by more than 1e-11·‖θ‖.
    """
    with np.errstate(invalid="ignore"):  # of weights that are not finite it is NaN
        return (sums["sum_squares"] - sums["previous_squares"] - sums["delta_squares"]) / 2


def first_now(sums: Sums) -> Any:
    """Return ⟨θ_first, θ_t′⟩ = (‖θ_t′‖² + ‖θ_t‖² − ‖δ‖²)/2, where θ_t is θ_first."""
    with np.errstate(invalid="ignore"):
        return (sums["sum_squares"] + sums["previous_squares"] - sums["delta_squares"]) / 2


class Derived(NamedTuple):
    """How a statistic follows from others at the same step."""

    needs: tuple[str, ...]
    how: Callable[[Sums], Any]


# {statistic: (another one, at which step it has the same value)}.
CARRIED: Mapping[str, tuple[str, Literal["previous", "first"]]] = {
    "previous_squares": ("sum_squares", "previous"),
    "first_squares": ("sum_squares", "first"),
}
_PAIR = ("sum_squares", "previous_squares", "delta_squares")
# Where sums are float64, in which the difference loses nothing that matters.
DERIVED = {"previous_delta": Derived(_PAIR, previous_delta)}
# On the CPU alone, where the time is that of the sums and not of bringing the block there: at the
# first step read, where now, previous and first are one array, and at the second, where previous
# and first are one.
DERIVED_AT: tuple[Mapping[str, Derived], ...] = (
    {
        "delta_squares": Derived(("sum_squares",), lambda sums: np.zeros_like(sums["sum_squares"])),
        "first_now": Derived(("sum_squares",), lambda sums: sums["sum_squares"]),
    },
    {"first_now": Derived(_PAIR, first_now)},
)
# {statistic: a sum}: it is 0 where that sum is finite, and counted only where it is not.
BESIDE_NONFINITE = {"nonfinite": "sum_squares"}


def _names(measures: Sequence[WeightMeasure]) -> set[str]:
    return {name for measure in measures for name in measure.statistics}


def carried(measures: Sequence[WeightMeasure]) -> dict[str, tuple[str, str]]:
    """Return the rows of `CARRIED` that hold for these measures."""
    names = _names(measures)
    return {n: (source, at) for n, (source, at) in CARRIED.items() if {n, source} <= names}


def beside_nonfinite(measures: Sequence[WeightMeasure]) -> dict[str, str]:
    """Return the rows of `BESIDE_NONFINITE` that hold for these measures."""
    names = _names(measures)
    return {name: of for name, of in BESIDE_NONFINITE.items() if {name, of} <= names}


def derived(measures: Sequence[WeightMeasure], platform: str) -> dict[str, Callable[[Sums], Any]]:
    """Return {statistic: how it follows from others} of what is reduced at no step."""
    return _holding(DERIVED, measures) if accumulation(platform) == "float64" else {}


def derived_at(
    position: int, measures: Sequence[WeightMeasure], platform: str
) -> dict[str, Callable[[Sums], Any]]:
    """Return {statistic: how it follows from others} of what is not reduced at a position.

    Position 0 is the step that is read first, 1 the second.
    """
    if platform != "cpu" or position >= len(DERIVED_AT):
        return {}
    return _holding(DERIVED_AT[position], measures)


def _holding(
    rows: Mapping[str, Derived], measures: Sequence[WeightMeasure]
) -> dict[str, Callable[[Sums], Any]]:
    names = _names(measures)
    return {name: row.how for name, row in rows.items() if {name, *row.needs} <= names}


def completed(totals: Totals, measures: Sequence[WeightMeasure], platform: str) -> Totals:
    """Add the statistics that were not reduced, in place, and return all."""
    for name, (source, step) in carried(measures).items():
        first = totals[source][:, :1]
        if step == "first":
            totals[name] = np.repeat(first, totals[source].shape[1], axis=1)
        else:
            totals[name] = np.concatenate([first, totals[source][:, :-1]], axis=1)
    for position in range(min(2, next(iter(totals.values())).shape[1])):
        sums = {name: values[:, position] for name, values in totals.items()}
        for name, derive in derived_at(position, measures, platform).items():
            totals[name][:, position] = derive(sums)
    for name, derive in derived(measures, platform).items():
        totals[name] = derive(totals)
    return totals
