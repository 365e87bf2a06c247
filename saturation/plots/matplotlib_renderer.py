"""Draw panels by matplotlib: figures for papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from saturation.plots.colours import BLUE, GREY
from saturation.plots.matplotlib_style import WIDTH, log_values, shorten, step_axis, title
from saturation.plots.notation import as_mathtext, plain, wrapped
from saturation.plots.panels import (
    MOST_ROWS,
    Dots,
    HeatMap,
    Histogram,
    Line,
    Mark,
    Note,
    Panel,
    Picture,
    Region,
    Rule,
)
from saturation.plots.series import evenly, is_log_spaced

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "none": "none"}
_SYMBOLS: Mapping[str, Any] = {
    "": "", "circle": "o", "open circle": "o", "square": "s", "diamond": "D", "open diamond": "D",
    "triangle": "^", "cross": "x", "dash": "_",
}  # fmt: skip
_MOST_CATEGORIES = 12  # that are named on an axis
_FEW_PLACES = 6
_MOST_LETTERS = 70  # of categories' names side by side
_MOST_OF_A_KIND = 6  # that a legend names: of layers 0 to 23, say


def height(picture: Picture) -> float:
    """Return how many inches of a page a picture takes: its rows, its title and its legend."""
    return sum(max(panel.height for panel in row) for row in picture.rows) + 0.9


def draw(parent: Figure | SubFigure, picture: Picture, run: str) -> None:
    """Draw a picture of a run into a figure, or into a part of one."""
    name = plain(shorten(run))
    named = f"{picture.title} ({name})" if picture.title[-1] in "?)" else f"{picture.title}: {name}"
    title(parent, as_mathtext(named))
    heights = [max(panel.height for panel in row) for row in picture.rows]
    parts = parent.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    shared: dict[str, Any] = {}
    for part, row in zip(parts, picture.rows, strict=True):
        for axes, panel in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            draw_panel(axes, panel, WIDTH / len(row))
            named = _named(axes)
            if not panel.legend:
                shared |= named
            elif named:
                labels = _some(list(named))
                axes.legend([named[label] for label in labels], labels, loc="best", fontsize=9)
    if shared:
        labels = _some(list(shared))
        columns = min(len(labels), max(2, 110 // (6 + max(map(len, labels)))))
        parent.legend(
            [shared[label] for label in labels], labels, loc="outside lower center", ncols=columns
        )


def draw_panel(axes: Axes, panel: Panel, width: float = WIDTH) -> None:
    """Draw one panel, so many inches wide: its marks, then its axes."""
    axes.set_title(as_mathtext(wrapped(panel.title, int(13.5 * (width - 0.75)))), fontsize=10)
    axes.tick_params(labelsize=8)
    for mark in panel.marks:
        if isinstance(mark, Line) and panel.x.scale == "categories":
            mark = replace(mark, x=np.array([panel.x.order.index(place) for place in mark.x]))
        _DRAW[type(mark)](axes, mark)
    if panel.equal:
        axes.set_aspect("equal")
    _vertical(axes, panel)
    _horizontal(axes, panel)


def _named(axes: Axes) -> dict[str, Any]:
    """Return the marks of a panel that are named, one of each name."""
    handles, labels = axes.get_legend_handles_labels()
    return {str(label): handle for handle, label in zip(handles, labels, strict=True)}


def _some(labels: list[str]) -> list[str]:
    """Return the labels, of those that differ by a number alone a few, evenly chosen."""
    kinds: dict[str, list[str]] = {}
    for label in labels:
        kinds.setdefault(re.sub(r"\d+", "", label), []).append(label)
    kept = {label for kind in kinds.values() for label in evenly(kind, _MOST_OF_A_KIND)}
    return [label for label in labels if label in kept]


def _line(axes: Axes, line: Line) -> None:
    symbol = line.symbol or ("circle" if len(line.y) == 1 else "")
    look: dict[str, Any] = {
        "color": line.colour,
        "linestyle": _DASHES[line.dash],
        "marker": _SYMBOLS[symbol],
        "markersize": line.size,
        "markerfacecolor": "none" if symbol.startswith("open") else line.colour,
        "linewidth": line.width,
        "alpha": line.opacity,
        "label": as_mathtext(line.name) or None,
    }
    x = np.asarray(line.x)
    axes.plot(x, line.y, **look)
    if line.low is None or line.high is None:
        return
    if line.bars or len(line.y) == 1:
        spread = np.array([line.y - line.low, line.high - line.y])
        axes.errorbar(x, line.y, yerr=spread, fmt="none", ecolor=line.colour, elinewidth=1)
    else:
        axes.fill_between(x, line.low, line.high, color=line.colour, alpha=0.15, linewidth=0)


def _dots(axes: Axes, dots: Dots) -> None:
    drawn = axes.scatter(
        dots.x,
        dots.y,
        c=dots.by,
        s=dots.size**2,
        cmap="viridis",
        alpha=dots.opacity,
        lw=0,
        zorder=3,
    )
    if len(np.unique(dots.by)) > 1:
        bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02)
        bar.set_label(as_mathtext(dots.label), fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def _heat_map(axes: Axes, heat: HeatMap) -> None:
    low, high = heat.limits or (None, None)
    count = len(heat.steps)
    if count == 1:
        places = np.arange(len(heat.rows))
        axes.plot(heat.values[:, 0], places, "o", color=BLUE)
        axes.set_ylim(len(heat.rows) - 0.5, -0.5)
        axes.set_xlabel(f"{as_mathtext(heat.label)}, at step {heat.steps[0]:,}", fontsize=9)
        if heat.reach is not None:
            axes.set_xlim(*heat.reach)
    else:
        places = np.arange(len(heat.rows)) + 0.5
        edges = np.arange(count + 1), np.arange(len(heat.rows) + 1)
        mesh = axes.pcolormesh(*edges, heat.values, cmap=heat.colours, vmin=low, vmax=high)
        axes.set_ylim(len(heat.rows), 0)
        shown = np.unique(np.linspace(0, count - 1, 5).astype(int))
        name = EngFormatter(sep="") if heat.steps[-1] >= 10 else "{:.2g}".format
        names = [name(float(heat.steps[index])) for index in shown]
        axes.set_xticks(shown + 0.5, names)
        axes.set_xlabel(f"{heat.columns}, a column each", fontsize=9)
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02)
        bar.set_label(as_mathtext(heat.label), fontsize=9)
        bar.ax.tick_params(labelsize=8)
        axes.grid(False)
    every = -(-len(heat.rows) // MOST_ROWS)
    axes.set_yticks(places[::every], list(heat.rows)[::every], fontsize=8)


def _histogram(axes: Axes, histogram: Histogram) -> None:
    axes.hist(
        histogram.values,
        bins=histogram.edges.tolist(),
        histtype="stepfilled" if histogram.filled else "step",
        color=histogram.colour,
        alpha=0.7,
        label=as_mathtext(histogram.name),
    )


def _rule(axes: Axes, rule: Rule) -> None:
    look: Any = {"color": GREY, "linewidth": 0.8, "linestyle": _DASHES[rule.dash], "zorder": 0}
    if rule.axis == "y":
        axes.axhline(rule.at, **look)
    else:
        axes.axvline(rule.at, **look)


def _region(axes: Axes, region: Region) -> None:
    far = 1e6
    if region.shape == "all":
        axes.set_facecolor(region.colour)
    elif region.shape == "left":
        axes.add_patch(Rectangle((-far, -far), far + region.x, 2 * far, color=region.colour, lw=0))
    else:
        axes.add_patch(Circle((region.x, region.y), region.radius, color=region.colour, lw=0))
    axes.fill_between([], [], color=region.colour, label=as_mathtext(region.name))
    axes.grid(False)


def _note(axes: Axes, note: Note) -> None:
    if note.x is not None and note.y is not None:
        axes.annotate(
            as_mathtext(note.text), (note.x, note.y), xytext=(6, -9), textcoords="offset points",
            color=note.colour, fontsize=9,
        )  # fmt: skip
        return
    place, across, up = (
        ((0.02, 0.96), "left", "top")
        if note.corner == "upper left"
        else ((0.98, 0.04), "right", "bottom")
    )
    axes.annotate(
        as_mathtext(note.text), place, xycoords="axes fraction", ha=across, va=up,
        color=note.colour, fontsize=9,
    )  # fmt: skip


_DRAW: Mapping[type[Mark], Callable[[Axes, Any], None]] = {
    Line: _line,
    Dots: _dots,
    HeatMap: _heat_map,
    Histogram: _histogram,
    Rule: _rule,
    Region: _region,
    Note: _note,
}


def _vertical(axes: Axes, panel: Panel) -> None:
    axis = panel.y
    if axis.scale == "log":
        log_values(axes)
    elif axis.scale == "whole":
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    if axis.limits is not None:
        axes.set_ylim(*axis.limits)
    if axis.label:
        label = wrapped(axis.label, int(10.5 * panel.height))
        axes.set_ylabel(as_mathtext(label), fontsize=9)


def _horizontal(axes: Axes, panel: Panel) -> None:
    axis = panel.x
    if any(True for _ in panel.of(HeatMap)):
        return
    if axis.scale == "steps":
        if len(panel.steps):
            _step_axis(axes, panel.steps)
    elif axis.scale == "log":
        axes.set_xscale("log")
        places = np.unique(np.concatenate([np.asarray(line.x) for line in panel.of(Line)] or [[]]))
        if 0 < len(places) <= _FEW_PLACES:  # each of them says more than powers of ten
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.xaxis.set_minor_formatter(NullFormatter())
    elif axis.scale == "whole":
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    elif axis.scale == "categories":
        every = -(-len(axis.order) // _MOST_CATEGORIES)
        places = [*range(0, len(axis.order), every)]
        names = [axis.order[place] for place in places]
        axes.set_xticks(places, names, fontsize=8)
        if sum(map(len, names)) > _MOST_LETTERS:
            axes.tick_params(axis="x", labelrotation=25)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.set_xlim(-0.3, len(axis.order) - 0.7)
    if axis.limits is not None:
        axes.set_xlim(*axis.limits)
    axes.set_xlabel(as_mathtext(axis.label), fontsize=9)


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
    logarithmic = is_log_spaced(steps)
    step_axis(axes, steps, logarithmic)
    if logarithmic:  # what lies left of step 0 is nothing
        first = steps[steps > 0][0]
        axes.set_xlim(-0.2 * first if steps[0] == 0 else first / 1.2, 1.2 * steps[-1])
