"""Panels of a metric over the heads of each kind of attention."""

from __future__ import annotations

from saturation.plots.colours import HEADS
from saturation.plots.panels import Axis, Line, Mark, Panel
from saturation.plots.series import RunTable, quartiles

SPREAD = "Lines are medians over heads; bands, or bars, hold the middle half of them."


def spread_panel(
    run: RunTable,
    metric: str,
    title: str,
    axis: Axis,
    says: str = "",
    uniform: str = "",
    factor: float = 1.0,
) -> Panel | None:
    """Return a metric's median and quartiles over the heads of each kind; None without any.

    Args:
        run: the run.
        metric: what is drawn.
        title: of the panel.
        axis: of the values.
        says: how to read it; the metric's name without.
        uniform: the metric of what attention to all keys alike would give, drawn dotted.
        factor: by which both are multiplied.
    """
    marks: list[Mark] = []
    for kind, (pattern, colour) in HEADS.items():
        heads = list(run.matching(metric, pattern).values())
        if not heads:
            continue
        steps, spread = quartiles(heads)
        low, middle, high = factor * spread
        marks.append(Line(steps, middle, kind, colour, symbol="circle", size=3, low=low, high=high))
        alike = list(run.matching(uniform, pattern).values())
        if alike:
            steps, spread = quartiles(alike)
            values = factor * spread[1]
            symbol = "dash" if len(steps) == 1 else ""
            marks.append(Line(steps, values, f"{kind}, if uniform", colour, "dot", symbol, 8))
    if not marks:
        return None
    return Panel(title, marks, axis, says=says or f"`{metric}`.")
