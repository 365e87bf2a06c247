"""Which figures a table allows, and their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from saturation.report.growth_figure import draw_growth, draw_scopes
from saturation.report.homogeneity_figure import draw_homogeneity, scales
from saturation.report.motion_figures import draw_direction, draw_layers, draw_steps, has_exponents
from saturation.report.saturation_figures import COSINES, draw_heads, draw_saturation
from saturation.report.scan_figures import draw_scan, draw_snap
from saturation.report.series import Fits, RunTable, run_tables
from saturation.report.smoothing_figures import draw_smoothing
from saturation.report.spectrum_figures import draw_spectrum
from saturation.report.spectrum_figures import height as spectrum_height
from saturation.report.style import GREY, RC, new_figure, save_figure
from saturation.report.tokens_text import footnote

Draw = Callable[[Figure | SubFigure, RunTable], None]
_FOOT = 0.5  # inches for what is said of the tokens

Eigenvalues = Mapping[str, pd.DataFrame]


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
        Of `PLANS` those for which at least one run has the metrics. Each run has a part of its
        own in a figure; scopes shows all runs over each other.

    Raises:
        ResultsError: there is no run, or a table is not a results table.
    """
    runs = run_tables(tables, eigenvalues)
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(RC):
        for name, plan in PLANS.items():
            able = [run for run in runs if plan.allows(run)]
            if able:
                figures[name] = plan.draw(able, fits)
    return figures


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
    """Return {figure: why it is not drawn, or not for which runs}."""
    runs = run_tables(tables)
    reasons = {}
    for name, plan in PLANS.items():
        without = [run.name for run in runs if not plan.allows(run)]
        if without and not (plan.optional and len(without) == len(runs)):
            reasons[name] = f"{', '.join(without)} has no {plan.needs}"
    return reasons


@dataclass(frozen=True)
class Plan:
    """What one figure needs and how it is drawn.

    Attributes:
        needs: what a run must have, in words that say what to measure.
        allows: whether a run has it.
        draw: the figure of the runs that have it.
        optional: a figure that nobody misses where no run has it, since it needs a forward pass.
    """

    needs: str
    allows: Callable[[RunTable], bool]
    draw: Callable[[Sequence[RunTable], Fits], Figure]
    optional: bool = False


def _stacked(
    draw: Callable[[Figure | SubFigure, RunTable, Fits], None],
    height: float | Callable[[RunTable], float],
    on_tokens: bool = False,
):
    """Return a drawing that gives each run a strip of its own, one below the other.

    Of a measure that was taken on tokens, the foot of a strip says on which.
    """

    def stack(runs: Sequence[RunTable], fits: Fits) -> Figure:
        heights = [height(run) if callable(height) else height for run in runs]
        feet = [_FOOT * (on_tokens and bool(run.taken_on)) for run in runs]
        whole = [each + foot for each, foot in zip(heights, feet, strict=True)]
        figure = new_figure(sum(whole))
        strips = figure.subfigures(len(runs), 1, squeeze=False, height_ratios=whole)[:, 0]
        for strip, run, tall, foot in zip(strips, runs, heights, feet, strict=True):
            if not foot:
                draw(strip, run, fits)
                continue
            # A part of its own: what lies outside of the panels, such as a legend, fills the other.
            drawn, below = strip.subfigures(2, 1, height_ratios=(tall, foot))
            draw(drawn, run, fits)
            place = {"ha": "left", "va": "center", "fontsize": 8, "color": GREY, "wrap": True}
            below.text(0.01, 0.5, footnote(run.taken_on), **place)
        return figure

    return stack


def _together(runs: Sequence[RunTable], fits: Fits) -> Figure:
    figure = new_figure(6.4)
    draw_scopes(figure, runs, fits)
    return figure


def _has(*metrics: str) -> Callable[[RunTable], bool]:
    return lambda run: all(run.scopes(metric) for metric in metrics)


PLANS = {
    "growth": Plan("norms (metric l2)", _has("l2"), _stacked(draw_growth, 7.8)),
    "scopes": Plan(
        "norms of more than one part of the model (scopes such as encoder and decoder)",
        lambda run: len(run.scopes("l2")) > 1,
        _together,
    ),
    "layers": Plan(
        "norms of layers (metric l2 of scopes such as encoder/layers_0)",
        lambda run: bool(run.layers("l2")),
        _stacked(lambda parent, run, fits: draw_layers(parent, run), 4.6),
    ),
    "direction": Plan(
        "direction (metrics cosine, cosine_distance, cosine_to_first)",
        _has("cosine", "cosine_distance", "cosine_to_first"),
        _stacked(lambda parent, run, fits: draw_direction(parent, run), 4.4),
    ),
    "steps": Plan(
        "direction (metrics step_norm, relative_step, alignment, radial, tangential)",
        _has("step_norm", "relative_step", "alignment", "radial", "tangential"),
        _stacked(
            lambda parent, run, fits: draw_steps(parent, run),
            lambda run: 10.6 if has_exponents(run) else 7.4,
        ),
    ),
    "saturation": Plan(
        "saturation of layers (metrics such as cosine_attention_limit)",
        lambda run: any(run.layers(metric) for metric in COSINES),
        _stacked(lambda parent, run, fits: draw_saturation(parent, run), 8.0, on_tokens=True),
        optional=True,
    ),
    "homogeneity": Plan(
        "layers at several c (measure homogeneity: metrics such as local_degree_at_10)",
        lambda run: bool(scales(run)),
        _stacked(lambda parent, run, fits: draw_homogeneity(parent, run), 7.2, on_tokens=True),
        optional=True,
    ),
    "heads": Plan(
        "positions attended by heads (metrics positions_mean, positions_fraction, entropy)",
        _has("positions_mean", "positions_fraction", "entropy"),
        _stacked(lambda parent, run, fits: draw_heads(parent, run), 7.8, on_tokens=True),
        optional=True,
    ),
    "spectrum": Plan(
        "eigenvalues of heads (measure spectrum)",
        lambda run: bool(len(run.eigenvalues)),
        _stacked(lambda parent, run, fits: draw_spectrum(parent, run), spectrum_height),
        optional=True,
    ),
    "smoothing": Plan(
        "token similarity by layer (measure smoothing: metrics such as hfc_lfc)",
        lambda run: bool(run.matching("hfc_lfc", ".*")),
        _stacked(lambda parent, run, fits: draw_smoothing(parent, run), 6.8, on_tokens=True),
        optional=True,
    ),
    "scan": Plan(
        "attention on common and distinct keys (measure scan: metrics such as mass_distinct)",
        _has("attention_entropy", "mass_distinct"),
        _stacked(lambda parent, run, fits: draw_scan(parent, run), 8.4, on_tokens=True),
        optional=True,
    ),
    "snap": Plan(
        "heads at 16 checkpoints after step 0 (measure scan: metric snapped)",
        lambda run: bool(run.matching("snapped", ".*")),
        _stacked(lambda parent, run, fits: draw_snap(parent, run), 4.4, on_tokens=True),
        optional=True,
    ),
}
