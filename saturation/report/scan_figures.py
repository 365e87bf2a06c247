"""How heads scan and snap: sharpness, what they attend to, and when they come to rest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from saturation.report.saturation_figures import HEADS
from saturation.report.scan_text import snap_steps
from saturation.report.series import RunTable, on_steps
from saturation.report.style import BLACK, GREY, is_log_spaced, shorten, step_axis, title

LAYER, HEAD = re.compile(r"layers_(\d+)"), re.compile(r"head_(\d+)")
MOST_LAYERS_NAMED = 8
UNIFORM: Any = {"color": GREY, "linestyle": "--", "linewidth": 1.2}


def draw_scan(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw every head: entropy, attention on distinct and common keys, distance to its end.

    A row a kind of attention, a colour a layer; a dot where the head snaps, dashed what
    attention to all allowed keys alike gives.
    """
    kinds = {
        kind: heads for kind, (heads, _) in HEADS.items() if run.matching("mass_distinct", heads)
    }
    title(parent, f"Do heads scan and snap? {shorten(run.name)}")
    panels = parent.subplots(len(kinds), len(COLUMNS), squeeze=False, sharex=True)
    for row, (kind, pattern) in zip(panels, kinds.items(), strict=True):
        for axes, column in zip(row, COLUMNS, strict=True):
            _draw_heads(axes, run, pattern, column)
            axes.set_ylabel(column.label, fontsize=9)
            axes.set_xlabel("")
        row[0].set_ylabel(f"{kind}\n{COLUMNS[0].label}", fontsize=9)
    for axes, column in zip(panels[0], COLUMNS, strict=True):
        axes.set_title(column.heading, fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("training step")
    parent.legend(handles=_legend(run), loc="outside lower center", ncols=5, fontsize=9)


def draw_snap(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw how fast heads move by ln t, and the step at which each snapped, by layer."""
    title(parent, f"When heads come to rest: {shorten(run.name)}")
    speeds, where = parent.subplots(1, 2, sharex=True)
    for number, (kind, (pattern, colour)) in enumerate(HEADS.items()):
        heads = run.matching("speed", pattern)
        if not heads:
            continue
        steps, moved = on_steps(list(heads.values()))
        seen = np.isfinite(moved).any(axis=0)
        speeds.plot(steps[seen], np.nanmedian(moved[:, seen], axis=0), "o-", color=colour)
        stops = snap_steps(run, pattern)
        for scope in heads:
            stop = stops.get(scope)
            place = _number(LAYER, scope) + 0.25 * (number - 1) + 0.02 * (_number(HEAD, scope) % 8)
            at = steps[-1] if stop is None else stop
            where.plot(at, place, "x" if stop is None else "o", color=colour)
        known = sum(stop is not None for stop in stops.values())
        speeds.plot([], [], "o-", color=colour, label=f"{kind}: {known} of {len(heads)} snapped")
        for axes in (speeds, where):
            step_axis(axes, steps, is_log_spaced(steps))
    speeds.set_yscale("log")
    speeds.set_title("Speed of attention by ln t, median of heads")
    speeds.set_ylabel("‖change‖ per unit of ln t")
    where.set_title("Where each head moved fastest (×: not called)")
    where.set_ylabel("layer")
    where.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    where.set_ylim(max(_colours(run)) + 0.6, -0.6)
    handles, labels = speeds.get_legend_handles_labels()
    parent.legend(handles, labels, loc="outside lower center", ncols=len(labels))


@dataclass(frozen=True)
class Column:
    """What one column of panels shows of every head.

    Attributes:
        heading: above it.
        label: of the vertical axis.
        metric: what is drawn.
        uniform: the metric that says what attention to all keys alike would give, if there is one.
        factor: by which both are multiplied.
    """

    heading: str
    label: str
    metric: str
    uniform: str = ""
    factor: float = 1.0


COLUMNS = (
    Column("Entropy", "nats", "attention_entropy", "uniform_entropy"),
    Column("On distinct keys", "% of attention", "mass_distinct", "uniform_distinct", 100),
    Column("On common keys", "% of attention", "mass_common", "uniform_common", 100),
    Column("Elsewhere than at the end", "% of attention", "distance_to_last", "", 100),
)


def _draw_heads(axes: Axes, run: RunTable, pattern: str, column: Column) -> None:
    colours = _colours(run)
    heads = run.matching(column.metric, pattern)
    stops = snap_steps(run, pattern)
    for scope, series in heads.items():
        colour, values = colours[_number(LAYER, scope)], column.factor * series.values
        point = "." if len(series) == 1 else None  # there is no line then
        axes.plot(series.steps, values, color=colour, marker=point, lw=1, alpha=0.8, label=scope)
        stop = stops.get(scope)
        if stop is not None:
            height = np.interp(stop, series.steps, values)
            axes.plot(stop, height, "o", color=colour, markeredgecolor=BLACK)
        step_axis(axes, series.steps, is_log_spaced(series.steps))
    for series in list(run.matching(column.uniform, pattern).values())[:1]:  # alike for all heads
        point = "_" if len(series) == 1 else None
        axes.plot(series.steps, column.factor * series.values, marker=point, **UNIFORM)


def _number(of: re.Pattern[str], scope: str) -> int:
    found = of.search(scope)
    return int(found[1]) if found else 0


def _colours(run: RunTable) -> dict[int, str]:
    layers = sorted({_number(LAYER, scope) for scope in run.matching("mass_distinct", ".*")})
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(layers)))
    return {layer: to_hex(shade) for layer, shade in zip(layers, shades, strict=True)}


def _legend(run: RunTable) -> list[Line2D]:
    colours = _colours(run)
    named = list(colours)
    if len(named) > MOST_LAYERS_NAMED:
        named = [named[i] for i in np.linspace(0, len(named) - 1, MOST_LAYERS_NAMED).astype(int)]
    dot: Any = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "color": BLACK}
    return [
        *(Line2D([], [], color=colours[layer], label=f"layer {layer}") for layer in named),
        Line2D([], [], label="uniform attention", **UNIFORM),
        Line2D([], [], label="the head snaps here", **dot),
    ]
