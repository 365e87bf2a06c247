"""The figures that tables allow, and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from saturation.measures import MEASURES, pictures_of, pictures_together, words_of
from saturation.measures.base import WeightMeasure
from saturation.plots.colours import GREY
from saturation.plots.matplotlib_renderer import draw, height
from saturation.plots.matplotlib_style import RC, new_figure, save_figure
from saturation.plots.panels import Picture
from saturation.plots.series import Fits, RunTable, run_tables
from saturation.plots.tokens_text import footnote

_FOOT = 0.5  # inches for what is said of the tokens

Eigenvalues = Mapping[str, pd.DataFrame]
Drawn = list[tuple[Sequence[str], str, Picture]]  # (names of runs, on which tokens, their picture)


def build_figures(
    tables: Mapping[str, pd.DataFrame], fits: Fits, eigenvalues: Eigenvalues | None = None
) -> dict[str, Figure]:
    """Return the figures that the tables allow, by name, in reading order.

    Args:
        tables: {run name: results table}.
        fits: {run: {scope: {law: fit}}}, as `fit_tables` gives them; a scope without fits is drawn
            without curves.
        eigenvalues: {run: those of `spectrum`}, as `results.load_vectors` gives them.

    Returns:
        Those for which at least one run has the metrics. Each run has a part of its own in a
        figure; scopes shows all runs over each other.

    Raises:
        ResultsError: there is no run, or a table is not a results table.
    """
    found = _pictures(run_tables(tables, eigenvalues, fits))
    with matplotlib.rc_context(RC):
        return {name: _stacked(drawn) for name, drawn in found.items()}


def write_figures(
    tables: Mapping[str, pd.DataFrame],
    fits: Fits,
    directory: str | Path,
    eigenvalues: Eigenvalues | None = None,
) -> list[Path]:
    """Draw every figure that the tables allow and write each as PNG and PDF.

    Args:
        tables: {run name: results table}.
        fits: {run: {scope: {law: fit}}}, as `fit_tables` gives them.
        directory: made where absent; files of the same names are replaced, each at once.
        eigenvalues: {run: those of `spectrum`}, as `results.load_vectors` gives them.

    Returns:
        The paths written, growth.png first.

    Raises:
        ResultsError: a table is not a results table, or the directory cannot be written.
    """
    figures = build_figures(tables, fits, eigenvalues)
    with matplotlib.rc_context(RC):
        return [
            path
            for name, figure in figures.items()
            for path in save_figure(figure, Path(directory), name)
        ]


def missing_figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return {figure: why it is not drawn, or not for which runs}.

    Nobody misses a figure that no run has, but for those of measures that every run can have
    without a forward pass.
    """
    runs = run_tables(tables)
    found = _pictures(runs)
    reasons = {}
    for name, measure in MEASURES.items():
        for figure, needs in words_of(name).figures.items():
            having = {run for names, _, _ in found.get(figure, ()) for run in names}
            without = [run.name for run in runs if run.name not in having]
            nobody = figure not in found and not isinstance(measure, WeightMeasure)
            if without and not nobody:
                reasons[figure] = f"{', '.join(without)} has no {needs}"
    return reasons


def _pictures(runs: Sequence[RunTable]) -> dict[str, Drawn]:
    """Return each figure's pictures, a run's after another's."""
    found: dict[str, Drawn] = {}
    for name in MEASURES:
        for run in runs:
            for picture in pictures_of(name, run):
                taken_on = run.taken_on if picture.on_tokens else ""
                found.setdefault(picture.name, []).append(([run.name], taken_on, picture))
        for picture in pictures_together(name, runs):
            found[picture.name] = [([run.name for run in runs], "", picture)]
    return found


def _stacked(drawn: Drawn) -> Figure:
    """Return a figure of a strip a run, one below the other.

    Of a measure that was taken on tokens, the foot of a strip says on which.
    """
    heights = [height(picture) for _, _, picture in drawn]
    feet = [_FOOT * bool(taken_on) for _, taken_on, _ in drawn]
    whole = [tall + foot for tall, foot in zip(heights, feet, strict=True)]
    figure = new_figure(sum(whole))
    strips = figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=whole)[:, 0]
    for strip, (names, taken_on, picture), tall in zip(strips, drawn, heights, strict=True):
        run = names[0] if len(names) == 1 else f"{len(names)} runs"
        if not taken_on:
            draw(strip, picture, run)
            continue
        # A part of its own: what lies outside of the panels, such as a legend, fills the other.
        above, below = strip.subfigures(2, 1, height_ratios=(tall, _FOOT))
        draw(above, picture, run)
        place = {"ha": "left", "va": "center", "fontsize": 8, "color": GREY, "wrap": True}
        below.text(0.01, 0.5, footnote(taken_on), **place)
    return figure
