"""How the page's charts look: an empty one, lines, bands, rows of layers, and the axis of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from saturation.report.series import Series, on_steps
from saturation.report.style import BLUE, GREY, is_log_spaced

GRID = "#E4E7EB"
DIGITS = ".6g"
MOST_NAMED = 8  # lines that a legend has room for
MOST_ROWS = 24  # that are named, and as high as a name
DASHES = {"-": "solid", "--": "dash", ":": "dot"}


@dataclass(frozen=True)
class Panel:
    """One chart with what stands above it, in plain text; `wide` takes a row of its own."""

    chart: go.Figure
    title: str
    says: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """What the page shows of one measure of a run.

    Attributes:
        heading: above it.
        reads: how to read it, with units; plain text.
        panels: its charts.
        table: lines of a text set in columns, above the charts.
        note: what is left out; plain text below the charts.
    """

    heading: str
    reads: str
    panels: Sequence[Panel]
    table: Sequence[str] = ()
    note: str = ""


def empty_chart(label: str, height: int = 340) -> go.Figure:
    """Return a chart without data, in the page's style."""
    axis: Mapping[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": GREY,
        "zerolinewidth": 0.7,
        "linecolor": GREY,
        "ticks": "outside",
        "tickcolor": GREY,
        "automargin": True,
        "title": {"standoff": 8},
    }
    chart = go.Figure()
    chart.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        legend={"orientation": "h", "y": -0.22, "x": 0, "yanchor": "top", "tracegroupgap": 0},
        xaxis=dict(axis) | {"zeroline": False, "title": {"text": "training step", "standoff": 8}},
        yaxis=dict(axis) | {"title": {"text": label, "standoff": 8}},
        template="none",
    )
    return chart


def add_line(
    chart: go.Figure,
    x: np.ndarray | Sequence[str],
    y: np.ndarray,
    name: str,
    colour: str,
    mode: str = "lines",
    dash: str = "solid",
    size: int = 5,
    symbol: str = "circle",
    hover: str = f"%{{y:{DIGITS}}} at step %{{x:,.0f}}",
    **more: Any,
) -> None:
    """Add one line; plain lists, because plotly would pack arrays as base64 nobody can read."""
    chart.add_scatter(
        x=x.tolist() if isinstance(x, np.ndarray) else list(x),
        y=numbers(y),
        name=name,
        mode=mode,
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": size, "color": colour, "symbol": symbol},
        hovertemplate=hover,
        **more,
    )


def traces(chart: go.Figure) -> tuple[Any, ...]:
    """Return what was added to a chart; plotly says nothing useful of its type."""
    return tuple(cast("Any", chart).data)


def numbers(values: np.ndarray) -> list[float | None]:
    """Return values with eight digits, and None for a gap."""
    return [float(f"{value:.8g}") if np.isfinite(value) else None for value in values]


def add_spread(
    chart: go.Figure,
    steps: Int[np.ndarray, " steps"],
    spread: Float[np.ndarray, "3 steps"],
    name: str,
    colour: str,
) -> None:
    """Add a median with a band between the quartiles; at a single step, a bar."""
    low, middle, high = spread
    if len(steps) == 1:
        bar = {"array": numbers(high - middle), "arrayminus": numbers(middle - low)}
        add_line(
            chart, steps, middle, name, colour, "markers", size=9, error_y=bar | {"type": "data"}
        )
        return
    edge: Any = {"mode": "lines", "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
    x, line = steps.tolist(), {"width": 0, "color": colour}
    chart.add_scatter(x=x, y=numbers(low), line=line, **edge)
    fill = f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, 0.15)"
    chart.add_scatter(x=x, y=numbers(high), line=line, fill="tonexty", fillcolor=fill, **edge)
    add_line(chart, steps, middle, name, colour, "lines+markers", legendgroup=name)


def rows_chart(
    rows: Mapping[str, Series],
    label: str,
    limits: tuple[float, float] | None = None,
    scale: str = "Viridis",
) -> go.Figure:
    """Return a row a layer and a column a step, coloured by value; dots where there is one step.

    The label is the axis of the dots; what colours mean, the text above a chart must say. Limits
    are of both; without, the values' own.
    """
    steps, values = on_steps(list(rows.values()))
    names = [escape(name) for name in rows]
    chart = empty_chart("", height=130 + 19 * min(len(names), MOST_ROWS))
    if len(steps) == 1:
        dots = {"color": BLUE, "size": 9}
        hover = f"%{{y}}: %{{x:{DIGITS}}}<extra></extra>"
        chart.add_scatter(
            x=numbers(values[:, 0]), y=names, mode="markers", marker=dots, hovertemplate=hover
        )
        chart.update_xaxes(title_text=f"{label}, at step {steps[0]:,}")
        if limits is not None:
            margin = 0.03 * (limits[1] - limits[0])
            chart.update_xaxes(range=[limits[0] - margin, limits[1] + margin])
    else:
        chart.add_heatmap(
            x=[f"{step:,}" for step in steps],
            y=names,
            z=[[float(f"{v:.5g}") if np.isfinite(v) else None for v in row] for row in values],
            zmin=None if limits is None else limits[0],
            zmax=None if limits is None else limits[1],
            colorscale=scale,
            colorbar={"thickness": 12},
            hovertemplate=f"%{{y}} at step %{{x}}: %{{z:{DIGITS}}}<extra></extra>",
        )
        chart.update_xaxes(type="category", nticks=9, title_text="training step, a column each")
    chart.update_yaxes(
        type="category", autorange="reversed", showgrid=False, dtick=-(-len(names) // MOST_ROWS)
    )
    return chart


def choose_step_axis(chart: go.Figure, steps: Int[np.ndarray, " steps"]) -> None:
    """Make an axis of log-spaced steps logarithmic, and label a single step as what it is.

    Step 0, which has no logarithm, is drawn at half the first step behind it, and labelled 0.
    """
    every = np.unique(steps)
    positive = every[every > 0]
    if len(every) == 1:
        chart.update_xaxes(tickvals=every.tolist(), ticktext=[f"{every[0]:,}"])
    elif is_log_spaced(every):
        chart.update_xaxes(type="log", dtick=1)
        if every[0] == 0:
            _place_zero(chart, positive)


def _place_zero(chart: go.Figure, positive: Int[np.ndarray, " steps"]) -> None:
    place = float(positive[0]) / 2
    for line in traces(chart):
        true: list[float] = list(line.x)
        line.x = [step or place for step in true]
        if line.hoverinfo != "skip":
            line.customdata = true
            line.hovertemplate = f"%{{y:{DIGITS}}} at step %{{customdata:,.0f}}"
    low, high = np.log10(positive[[0, -1]])
    powers = [10**n for n in range(int(np.ceil(low)), int(np.floor(high)) + 1)]
    chart.update_xaxes(
        tickvals=[place, *powers], ticktext=["0", *(f"{power:,}" for power in powers)]
    )


def escape(text: str) -> str:
    """Return text that plotly shows as it is: it would read <b> or a link as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
