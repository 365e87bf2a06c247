"""What a run found, in words: for a terminal, a log, and who sees the figure for the first time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from saturation.measures import MEASURES, needs_tokens, words_of
from saturation.plots.series import Fits, RunTable, describe_spacing, run_tables
from saturation.storage.write import write_text


def write_summary(tables: Mapping[str, pd.DataFrame], fits: Fits, path: str | Path) -> Path:
    """Write `summarize`'s text to a file, whole or not at all, and return its path.

    Raises:
        ResultsError: a table is not a results table, or the file cannot be written.
    """
    return write_text(path, summarize(tables, fits), "summary")


def summarize(tables: Mapping[str, pd.DataFrame], fits: Fits) -> str:
    """Return what was measured, the fitted laws, how to read the figures, and what is amiss.

    Args:
        tables: {run name: results table}.
        fits: {run: {scope: {law: fit}}}, as `fit_tables` gives them.

    Raises:
        ResultsError: a table is not a results table.
    """
    from saturation.report.figures import missing_figures

    parts = ["\n".join(_describe(run)) for run in run_tables(tables, fits=fits)]
    missing = [_wrap(f"{why}.", f"  {name}: ") for name, why in missing_figures(tables).items()]
    if missing:
        parts.append("\n".join(["Figures not drawn", *missing]))
    return "\n\n".join(parts) + "\n"


def warnings(run: RunTable) -> list[str]:
    """Return what a reader of this run must be warned of, by all measures."""
    return [warning for name in MEASURES for warning in words_of(name).warnings(run)]


def _describe(run: RunTable) -> Iterator[str]:
    """Yield one run's lines."""
    title = f"Run {run.name}"
    yield from (title, "=" * len(title))
    steps = _say_steps(np.array(run.steps))
    yield _wrap(f"Measured: {_say_metrics(run) or 'nothing'}, {steps}.")
    told = False
    for name in MEASURES:
        said = list(_say(run, name))
        if said and needs_tokens([name]) and run.taken_on and not told:
            told = True
            yield from ("", _wrap(f"Activations. {run.taken_on}"))
        yield from said
    for text in warnings(run):
        yield from ("", _wrap(text, "Warning: "))


def _say(run: RunTable, name: str) -> Iterator[str]:
    """Yield the tables of a measure and how to read its figures; nothing if not measured."""
    words = words_of(name)
    for table in words.tables(run):
        yield from ("", *table.lines(), *map(_wrap, table.notes))
    sentences = words.guide(run)
    if sentences:
        *first, last = (f"{figure}.png" for figure in words.figures)
        yield from ("", f"How to read {', '.join(first)}{' and ' * bool(first)}{last}")
        yield from (_wrap(sentence, f"  {n}. ") for n, sentence in enumerate(sentences, 1))


def _say_steps(steps: np.ndarray) -> str:
    """Return at how many checkpoints from where to where, and how far apart."""
    if len(steps) < 2:
        return f"at 1 checkpoint, step {steps[0]:,}" if len(steps) else "at no checkpoint"
    gaps = describe_spacing(np.diff(steps).astype(np.float64))
    return f"at {len(steps)} checkpoints from step {steps[0]:,} to {steps[-1]:,}, {gaps}"


def _say_metrics(run: RunTable) -> str:
    """Return the metrics by name, without those that are another's rate, error or variant."""
    variants = ("_per_step", "_stderr", "_unscaled")
    return ", ".join(sorted(name for name in run.metrics if not name.endswith(variants)))


def _wrap(text: str, first: str = "") -> str:
    """Return a paragraph in lines of 100 characters, the first one beginning with `first`."""
    return textwrap.fill(
        text,
        100,
        initial_indent=first,
        subsequent_indent="     " if first else "",
        break_long_words=False,
    )
