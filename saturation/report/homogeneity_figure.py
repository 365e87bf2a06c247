"""How near the network at c times its parameters is to its limit, and how it grows, against c."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from saturation.report.saturation_figures import LAYER, layer_lines, ordered_layers
from saturation.report.series import RunTable
from saturation.report.style import GREY, shorten, title

COSINE, DEGREE = "cosine_to_limit_at_", "local_degree_at_"
MOST_STEPS = 4  # panels side by side that can be read
NEAREST = 1e-16  # of 1 − cos: what float64 tells from 0


def scales(run: RunTable) -> tuple[float, ...]:
    """Return the grid of c on which a run has both curves, ascending."""
    found = (re.fullmatch(rf"{DEGREE}([\d.e+-]+)", metric) for metric in run.metrics)
    grid = (float(match[1]) for match in found if match)
    return tuple(sorted(c for c in grid if f"{COSINE}{c:g}" in run.metrics))


def measured_steps(run: RunTable, grid: tuple[float, ...]) -> np.ndarray:
    """Return the steps at which a run has the distance of any layer at any c."""
    found = (one for c in grid for one in run.matching(f"{COSINE}{c:g}", LAYER).values())
    return np.unique(np.concatenate([one.steps for one in found]))


def curves(
    run: RunTable, prefix: str, grid: tuple[float, ...], step: int
) -> dict[str, Float[np.ndarray, " scales"]]:
    """Return {layer: a metric's values on the grid of c} at a step; NaN where it has none."""
    by_scale = [run.matching(f"{prefix}{c:g}", LAYER) for c in grid]
    values = {scope: np.full(len(grid), np.nan) for scope in ordered_layers(by_scale[0])}
    for column, found in enumerate(by_scale):
        for scope, one in found.items():
            if scope in values:
                values[scope][column] = one.at(step)
    return values


def away(cosine: Float[np.ndarray, " scales"]) -> Float[np.ndarray, " scales"]:
    """Return 1 − cos as a logarithmic axis can hold it: no less than what float64 tells from 0."""
    return np.maximum(1 - cosine, NEAREST)


def draw_homogeneity(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw distance to the limit and local degree of every layer against c, at up to four steps."""
    grid = scales(run)
    steps = measured_steps(run, grid)
    chosen = np.unique(steps[np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int)])
    title(parent, f"All parameters times c: how far from the limit c → ∞: {shorten(run.name)}")
    panels = parent.subplots(2, len(chosen), squeeze=False, sharey="row")
    ends: set[int] = set()
    for (upper, lower), step in zip(panels.T, chosen, strict=True):
        cosines, degrees = (curves(run, prefix, grid, int(step)) for prefix in (COSINE, DEGREE))
        for scope, (colour, line) in layer_lines(list(cosines)).items():
            upper.plot(
                grid,
                away(cosines[scope]),
                line,
                color=colour,
                marker="o",
                ms=3,
                lw=1.3,
                label=scope,
            )
            lower.plot(grid, degrees[scope], line, color=colour, marker="o", ms=3, lw=1.3)
            ends |= {round(float(end)) for end in degrees[scope][-1:] if np.isfinite(end)}
        for axes in (upper, lower):
            axes.set_title(f"step {step:,}")
            _scale_axis(axes)
    for axes in panels[0]:
        axes.set_yscale("log")
    for axes in panels[1]:
        for degree in sorted(ends):
            axes.axhline(degree, color=GREY, lw=0.8, ls=":", zorder=0)
    panels[0, 0].set_ylabel("1 − cos(f(x; cθ), limit)\nmean over tokens; lower is nearer")
    panels[1, 0].set_ylabel("degree: power of c\nby which the layer grows")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    parent.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))


def _scale_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("c (1 is the network as it is)")
