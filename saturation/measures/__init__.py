"""The measures: a room each, and the table of all of them.

A room `saturation/measures/NAME/` has `measure.py` (what is computed), `pictures.py` (what is
drawn), `words.py` (what is said) and, for options of its own, `options.py`; its `__init__` gives
the measure as `MEASURE`. Measures need no JAX to be imported: reports and fits read a measure's
`metrics` on machines that compute nothing, and the terms of a measure of weights are written with
arithmetic operators alone, which NumPy and traced JAX arrays share. Pictures, words and options are
imported where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from saturation.errors import MeasureError
from saturation.measures.base import ActivationMeasure, Measure
from saturation.measures.direction import MEASURE as DIRECTION
from saturation.measures.heads import MEASURE as HEADS
from saturation.measures.homogeneity import MEASURE as HOMOGENEITY
from saturation.measures.loss import MEASURE as LOSS
from saturation.measures.norms import MEASURE as NORMS
from saturation.measures.saturation import MEASURE as SATURATION
from saturation.measures.scan import MEASURE as SCAN
from saturation.measures.smoothing import MEASURE as SMOOTHING
from saturation.measures.spectrum import MEASURE as SPECTRUM

if TYPE_CHECKING:
    from saturation.config.options import Options
    from saturation.measures.words import Words
    from saturation.plots.panels import Axis, Line, Picture
    from saturation.plots.series import RunTable

# In the order in which they are read.
MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        LOSS,
        NORMS,
        DIRECTION,
        SPECTRUM,
        SATURATION,
        HEADS,
        HOMOGENEITY,
        SCAN,
        SMOOTHING,
    )
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


def words_of(name: str) -> Words:
    """Return what a measure says of itself."""
    return _room(name, "words").WORDS


def options_of(name: str) -> type[Options] | None:
    """Return the options that are a measure's own; None where it has none."""
    if find_spec(f"saturation.measures.{name}.options") is None:
        return None
    return _room(name, "options").OPTIONS


def pictures_of(name: str, run: RunTable) -> Iterator[Picture]:
    """Yield what a measure shows of a run; nothing where the run lacks it."""
    return _room(name, "pictures").pictures(run)


def pictures_together(name: str, runs: Sequence[RunTable]) -> Iterator[Picture]:
    """Yield what a measure shows of several runs over each other, as few do."""
    together: Callable[..., Iterator[Picture]] | None = getattr(
        _room(name, "pictures"), "together", None
    )
    return iter(()) if together is None else together(runs)


def compared_by(name: str, run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of each number by which a measure compares runs."""
    compared: Callable[..., Iterator[Any]] | None = getattr(
        _room(name, "pictures"), "compared", None
    )
    return iter(()) if compared is None else compared(run)


def _room(name: str, part: str) -> Any:
    return import_module(f"saturation.measures.{name}.{part}")
