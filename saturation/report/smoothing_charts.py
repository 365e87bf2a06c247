"""The page's section on oversmoothing: how alike tokens are by depth, beside what was forecast."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from saturation.report.chart_style import Panel, Section, add_line, empty_chart, numbers, traces
from saturation.report.series import RunTable
from saturation.report.smoothing_figures import by_depth, shown_steps, state_names
from saturation.report.smoothing_text import STACKS, depth, say_holds
from saturation.report.style import BLACK, BLUE, GREY, VERMILION

READS = (
    "Tokens of a sequence are alike where the cosine between them is near 1; where only |cos| is, "
    "they lie on one line and point both ways. ln(HFC/LFC) is what sets them apart over what they "
    "share: where it rises they part, where it falls they grow alike. The forecast is what the "
    "layer's self-attention, its weights kept, would do a layer in all that are left. No units; "
    "bars are standard errors over sequences."
)


def smoothing_section(run: RunTable) -> Section | None:
    """Return similarity by depth and forecast against fact of each stack; None without any."""
    panels = []
    held = []
    for stack in STACKS:
        if not depth(run, stack, "hfc_lfc"):
            continue
        last = shown_steps(run, stack)[-1]
        panels.append(
            Panel(
                cosines_chart(run, stack),
                f"{stack}: are tokens alike?",
                "Mean over pairs: `token_cosine` and `token_cosine_abs`.",
            )
        )
        changes = changes_chart(run, stack, last)
        if changes is not None:
            title = f"{stack}: forecast and fact in each layer at step {last:,}"
            says = "`forecast_change`, `measured_change` and `onward_change`."
            panels.append(Panel(changes, title, says))
            held.append(say_holds(run, stack, last))
    return Section("Token similarity", READS, panels, note=" ".join(held)) if panels else None


def cosines_chart(run: RunTable, stack: str) -> go.Figure:
    """Return mean cos and |cos| of every state of a stack at the first and the last checkpoint."""
    chart = empty_chart("mean over pairs of tokens", height=380)
    names = state_names(run, stack)
    steps = shown_steps(run, stack)
    for step in dict.fromkeys((steps[-1], steps[0])):
        dash = "solid" if step == steps[-1] else "dot"
        for metric, colour, label in (
            ("token_cosine", BLUE, "cos"),
            ("token_cosine_abs", VERMILION, "|cos|"),
        ):
            values = by_depth(run, stack, metric, step)
            bars = by_depth(run, stack, f"{metric}_stderr", step)
            if np.isfinite(values).any():
                add_line(
                    chart,
                    names,
                    values,
                    f"{label}, step {step:,}",
                    colour,
                    "lines+markers",
                    dash,
                    hover="%{y:.6g} after %{x}",
                    error_y={"array": numbers(bars), "thickness": 1},
                )
    _name_depths(chart, names)
    return chart


def changes_chart(run: RunTable, stack: str, step: int) -> go.Figure | None:
    """Return forecast and measured changes of ln(HFC/LFC) in each layer at a step; None without."""
    chart = empty_chart("change of ln(HFC/LFC) a layer", height=380)
    names = state_names(run, stack)
    for metric, label, colour, symbol in (
        ("forecast_change", "forecast", VERMILION, "diamond-open"),
        ("measured_change", "self-attention did", BLACK, "circle"),
        ("onward_change", "layers left did", BLUE, "square-open"),
    ):
        values = by_depth(run, stack, metric, step)
        bars = by_depth(run, stack, f"{metric}_stderr", step)
        kept = np.flatnonzero(np.isfinite(values))
        if len(kept):
            hover = "%{y:.6g} in layer %{x}"
            error = {"array": numbers(bars[kept]), "thickness": 1}
            places = [names[place] for place in kept]
            look: Any = {"mode": "markers", "symbol": symbol, "size": 9, "hover": hover}
            add_line(chart, places, values[kept], label, colour, error_y=error, **look)
    if not traces(chart):
        return None
    chart.add_hline(0, line={"color": GREY, "width": 1})
    _name_depths(chart, names)
    return chart


def _name_depths(chart: go.Figure, names: list[str]) -> None:
    chart.update_xaxes(
        type="category", categoryorder="array", categoryarray=names, title_text="depth"
    )
