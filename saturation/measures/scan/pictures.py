"""How heads scan and snap: sharpness, what they attend to, and when they come to rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saturation.measures.scan.words import snap_steps
from saturation.plots.colours import GREY, HEADS, shades
from saturation.plots.panels import Axis, Line, Mark, Panel, Picture
from saturation.plots.series import RunTable, on_steps, quartiles
from saturation.plots.spread import SPREAD, spread_panel

LAYER, HEAD = re.compile(r"layers_(\d+)"), re.compile(r"head_(\d+)")
READS = (
    "A head scans if its attention on distinct tokens, which tell what follows from what else "
    f"might, rises above what attention to all keys alike gives (dotted). {SPREAD}"
)
RESTS = "A head has snapped if it moved early and has come to rest (`snapped`)."
NOTE = "Every head is a line in scan.png, which `saturation report RUN --figures DIR` draws."


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


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield what heads attend to, and when they stop, where that was measured."""
    kinds = {kind: p for kind, (p, _) in HEADS.items() if run.matching("mass_distinct", p)}
    if kinds:
        rows = [list(spreads(run))]
        rows += [list(every_head(run, kind, pattern)) for kind, pattern in kinds.items()]
        yield Picture("scan", "Do heads scan and snap?", "Scan and snap", READS, rows,
                      note=NOTE, on_tokens=True)  # fmt: skip
    if run.matching("snapped", ".*"):
        panels = [speed_panel(run), stop_panel(run)]
        yield Picture("snap", "When heads come to rest", "When heads come to rest", RESTS, [panels],
                      on_tokens=True)  # fmt: skip


def spreads(run: RunTable) -> Iterator[Panel]:
    """Yield the first two columns as medians and quartiles over heads."""
    for column in COLUMNS[:2]:
        says = f"`{column.metric}`; dotted: attention to all allowed keys alike."
        title, axis = f"Attention: {column.heading.lower()}", Axis(column.label)
        panel = spread_panel(run, column.metric, title, axis, says, column.uniform, column.factor)
        if panel is not None:
            yield panel


def every_head(run: RunTable, kind: str, pattern: str) -> Iterator[Panel]:
    """Yield a panel a column: every head, a colour a layer, with a dot where it snaps."""
    colours = _colours(run)
    stops = snap_steps(run, pattern)
    for column in COLUMNS:
        lines: list[Mark] = []
        for series in list(run.matching(column.uniform, pattern).values())[:1]:  # alike for all
            values = column.factor * series.values
            lines.append(Line(series.steps, values, "uniform attention", GREY, "dash"))
        found = run.matching(column.metric, pattern)
        for scope in sorted(found, key=lambda scope: _number(LAYER, scope)):
            series = found[scope]
            layer, values = _number(LAYER, scope), column.factor * series.values
            colour = colours[layer]
            lines.append(Line(series.steps, values, f"layer {layer}", colour, width=1, opacity=0.8))
            stop = stops.get(scope)
            if stop is not None:
                height = np.array([np.interp(stop, series.steps, values)])
                name = "the head snaps here"
                lines.append(Line(np.array([stop]), height, name, colour, "none", "circle", 6))
        label = column.label if column is not COLUMNS[0] else f"{kind}\n{column.label}"
        yield Panel(column.heading, lines, Axis(label), height=2.8, dense=True)


def speed_panel(run: RunTable) -> Panel:
    """Return how fast heads move by ln t, the median of each kind."""
    lines = []
    for kind, (pattern, colour) in HEADS.items():
        heads = list(run.matching("speed", pattern).values())
        if heads:
            steps, spread = quartiles(heads)
            stops = snap_steps(run, pattern)
            known = sum(stop is not None for stop in stops.values())
            name = f"{kind}: {known} of {len(heads)} snapped"
            lines.append(Line(steps, spread[1], name, colour, symbol="circle"))
    axis = Axis("‖change‖ per unit of ln t", "log")
    return Panel("Speed of attention by ln t, median of heads", lines, axis)


def stop_panel(run: RunTable) -> Panel:
    """Return the step at which each head moved fastest, by layer; a cross is one not called."""
    marks: list[Mark] = []
    for number, (kind, (pattern, colour)) in enumerate(HEADS.items()):
        stops = snap_steps(run, pattern)
        heads = run.matching("speed", pattern)
        last = on_steps(list(heads.values()))[0][-1] if heads else 0
        for called in (True, False):
            chosen = [scope for scope in heads if (stops.get(scope) is not None) == called]
            if not chosen:
                continue
            x = np.array([stops[scope] if called else last for scope in chosen], float)
            y = np.array(
                [
                    _number(LAYER, scope) + 0.25 * (number - 1) + 0.02 * (_number(HEAD, scope) % 8)
                    for scope in chosen
                ]
            )
            name = kind if called else f"{kind}: not called"
            marks.append(Line(x, y, name, colour, "none", "circle" if called else "cross"))
    deepest = max(_colours(run), default=0)
    axis = Axis("layer", "whole", (deepest + 0.6, -0.6))
    return Panel("Where each head moved fastest (×: not called)", marks, axis)


def compared(run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of the numbers by which runs are compared."""
    for column in COLUMNS[:2]:
        heads = list(run.matching(column.metric, r".*/head_\d+").values())
        if heads:
            steps, spread = quartiles(heads)
            line = Line(steps, column.factor * spread[1])
            yield (
                f"Attention: {column.heading.lower()}",
                line,
                Axis(column.label),
                f"`{column.metric}`, median over heads.",
            )


def _number(of: re.Pattern[str], scope: str) -> int:
    found = of.search(scope)
    return int(found[1]) if found else 0


def _colours(run: RunTable) -> dict[int, str]:
    layers = sorted({_number(LAYER, scope) for scope in run.matching("mass_distinct", ".*")})
    return dict(zip(layers, shades(len(layers), 0.85), strict=False))
