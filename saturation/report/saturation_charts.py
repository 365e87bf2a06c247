"""The page's section on saturation: how near each layer is to its limits, by depth and step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from saturation.report.chart_style import (
    Panel,
    Section,
    add_line,
    empty_chart,
    numbers,
    rows_chart,
    traces,
)
from saturation.report.saturation_figures import COSINE_RANGE, COSINES, LAYER, ordered_layers
from saturation.report.series import RunTable, on_steps
from saturation.report.style import BLUE, GREEN, VERMILION

_DASHES = {"encoder": "solid", "decoder": "dash"}
_OPEN = {"encoder": "circle-open", "decoder": "diamond-open"}
MOST_LIMITS = 2  # that are drawn through training
_COLOURS = dict(zip(COSINES, (BLUE, VERMILION, GREEN), strict=True))
READS = (
    "Cosine between a layer's output h and what it would be in a limit, h′, mean over tokens; it "
    "has no unit, and 1 is a saturated layer. At τ = 0 heads attend to their highest scores alone; "
    "in the parameter limit all parameters grow, c → ∞; a finite c stops on the way there."
)


def saturation_section(run: RunTable) -> Section | None:
    """Return the cosines of every layer to each limit; None where there are none."""
    limits = [metric for metric in COSINES if run.matching(metric, LAYER)]
    if not limits:
        return None
    chart, step = depth_chart(run, limits)
    says = "Bars: standard error over sequences." if traces(chart)[0].error_y.array else ""
    panels = [Panel(chart, f"Each layer at step {step:,}", says, wide=True)]
    through = [(metric, ordered_layers(run.matching(metric, LAYER))) for metric in limits]
    drawn = [
        Panel(
            rows_chart(layers, "mean cos(h, h′)", COSINE_RANGE),
            f"Through training: {COSINES[metric]}",
            f"Colour: `{metric}`. final: behind the last norm of a stack.",
            wide=True,
        )
        for metric, layers in through[:MOST_LIMITS]
        if len(on_steps(list(layers.values()))[0]) > 1
    ]
    return Section("Saturation", READS, [*panels, *drawn])


def depth_chart(run: RunTable, limits: Sequence[str]) -> tuple[go.Figure, int]:
    """Return the cosines of every layer at the last step that has any, and that step."""
    chart = empty_chart("mean cos(h, h′)", height=380)
    found = {metric: run.matching(metric, LAYER) for metric in limits}
    last = max(int(one.steps[-1]) for layers in found.values() for one in layers.values())
    order: list[str] = []
    for metric, layers in found.items():
        errors = run.matching(f"{metric}_stderr", LAYER)
        for stack in _DASHES:
            members = ordered_layers(
                {s: one for s, one in layers.items() if s.startswith(f"{stack}/")}
            )
            places = [_place(scope) for scope in members]
            order += [place for place in places if place not in order]
            values = np.array([one.at(last) for one in members.values()])
            bars = np.array([errors[s].at(last) if s in errors else np.nan for s in members])
            if np.isfinite(values).any():
                bar = {"array": numbers(bars), "thickness": 1} if np.isfinite(bars).any() else {}
                name = f"{stack}, {COSINES[metric]}"
                look = _looks(metric, stack)
                hover = "%{y:.6g} after layer %{x}"
                add_line(chart, places, values, name, hover=hover, error_y=bar, **look)
    order.sort(key=lambda place: float(place) if place.isdigit() else np.inf)
    chart.update_xaxes(
        type="category", categoryorder="array", categoryarray=order, title_text="layer"
    )
    return chart, last


def _looks(metric: str, stack: str) -> dict[str, Any]:
    """Return how a stack's line is drawn; a finite c is most often on the line of its limit."""
    look: dict[str, Any] = {"colour": _COLOURS[metric], "dash": _DASHES[stack]}
    if metric == "cosine_scaled":
        return look | {"mode": "markers", "symbol": _OPEN[stack], "size": 11}
    return look | {"mode": "lines+markers"}


def _place(scope: str) -> str:
    """Return what stands under a layer: its number, or "norm" behind a stack's last norm."""
    name = scope.rpartition("/")[2]
    return "norm" if name == "final" else name.removeprefix("layers_")
