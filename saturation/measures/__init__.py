"""The measures: one file each, and the table of all of them.

Only `reduce` needs JAX: reports and fits read a measure's `metrics` on machines that compute
nothing, and the terms of a measure of weights are written with arithmetic operators alone, which
NumPy and traced JAX arrays share.
"""

from __future__ import annotations

from collections.abc import Sequence

from saturation.errors import MeasureError
from saturation.measures.base import ActivationMeasure, Measure
from saturation.measures.direction import DIRECTION
from saturation.measures.heads import HEADS
from saturation.measures.homogeneity import HOMOGENEITY
from saturation.measures.norms import NORMS
from saturation.measures.saturation import SATURATION
from saturation.measures.scan import SCAN
from saturation.measures.smoothing import SMOOTHING
from saturation.measures.spectrum import SPECTRUM

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (NORMS, DIRECTION, SPECTRUM, SATURATION, HEADS, HOMOGENEITY, SCAN, SMOOTHING)
}


def find_measures(names: Sequence[str]) -> tuple[Measure, ...]:
    """Return the measures of these names, each once, in the order given.

    Raises:
      MeasureError: no name is given, or one that no measure has; the text lists those there are.
    """
    if not names:
        raise MeasureError(f"No measure was named; there are: {', '.join(MEASURES)}.")
    for name in names:
        if name not in MEASURES:
            raise MeasureError(f"There is no measure {name!r}; there are: {', '.join(MEASURES)}.")
    return tuple(MEASURES[name] for name in dict.fromkeys(names))


def needs_tokens(names: Sequence[str]) -> bool:
    """Return whether one of these measures runs the model on tokens."""
    return any(isinstance(measure, ActivationMeasure) for measure in find_measures(names))


def needs_corpus(names: Sequence[str]) -> bool:
    """Return whether one of these measures tells common from distinct tokens."""
    return any(getattr(measure, "needs_corpus", False) for measure in find_measures(names))
