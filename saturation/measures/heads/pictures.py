"""What heads attend to: positions, roles, and how soft their weights are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from saturation.measures.heads.words import ROLES, roles
from saturation.plots.colours import BLUE, GREY, HEADS, VERMILION
from saturation.plots.panels import Axis, Histogram, Line, Panel, Picture
from saturation.plots.series import RunTable, on_steps
from saturation.plots.spread import SPREAD, spread_panel

BINS = 24
READS = (
    "What heads attend to at τ = 0, where keys of equal and highest score share the weight: a head "
    "near one key is argmax-like (local), one near all allowed keys mean-like (global). Keys are "
    f"counted, mean over queries. {SPREAD}"
)


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield positions attended, roles, a histogram and entropy, where there are any."""
    rows = [list(panels) for panels in (positions(run), rest(run))]
    if any(rows):
        yield Picture("heads", "What heads attend to at τ = 0", "Heads", READS,
                      [row for row in rows if row], on_tokens=True)  # fmt: skip


def positions(run: RunTable) -> Iterator[Panel]:
    """Yield positions attended: quartiles over heads, every head, and the last histogram."""
    spread = spread_panel(run, "positions_mean", "Positions attended", Axis("keys attended"))
    if spread is not None:
        yield spread
        lines = [
            Line(series.steps, series.values, kind, colour, width=1, opacity=0.6)
            for kind, (pattern, colour) in HEADS.items()
            for series in run.matching("positions_mean", pattern).values()
        ]
        yield Panel("Positions attended by every head", lines, Axis("mean number of keys", "log"),
                    dense=True)  # fmt: skip
        yield histogram(run)


def rest(run: RunTable) -> Iterator[Panel]:
    """Yield the shares of both roles, and the entropy of the weights."""
    found = roles(run)
    if found is not None:
        steps, by_role, _ = found
        lines = [
            Line(steps, 100 * share, role, colour, symbol="circle", size=3)
            for (role, share), colour in zip(by_role.items(), (BLUE, VERMILION), strict=True)
        ]
        says = "Share of all heads, by `positions_mean` and `positions_fraction`."
        axis = Axis("% of heads", limits=(-4, 104))
        yield Panel("Roles of heads", lines, axis, says=says, legend=True)
    title = "Entropy of the weights at τ = 1"
    entropy = spread_panel(run, "entropy", title, Axis("nats"), "`entropy`; low: a sharp head.")
    if entropy is not None:
        yield entropy


def histogram(run: RunTable) -> Panel:
    """Return how many heads attend to how many keys, at the first and the last checkpoint."""
    steps, values = on_steps(list(run.matching("positions_mean", r".*/head_\d+").values()))
    edges = np.linspace(1, max(2.0, float(np.nanmax(values))), BINS + 1)
    columns = {0: (GREY, False, "first"), len(steps) - 1: (BLUE, True, "last")}
    marks = [
        Histogram(values[np.isfinite(values[:, column]), column], edges,
                  f"{label} checkpoint, step {steps[column]:,}", colour, filled)
        for column, (colour, filled, label) in columns.items()
    ]  # fmt: skip
    axis = Axis("mean number of keys of a head")
    return Panel(
        "Histogram of positions attended", marks, Axis("heads", "whole"), axis, legend=True
    )


def compared(run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of the number by which runs are compared."""
    found = roles(run)
    if found is not None:
        steps, by_role, _ = found
        line = Line(steps, 100 * by_role[ROLES[0]])
        axis = Axis("% of heads", limits=(-4, 104))
        yield "Argmax-like heads", line, axis, "By `positions_mean`."
