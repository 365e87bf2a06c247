"""Draw panels by plotly: the charts of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go

from saturation.plots.colours import BLUE, GREY
from saturation.plots.notation import as_html, wrapped
from saturation.plots.panels import (
    MOST_ROWS,
    Axis,
    Dots,
    HeatMap,
    Histogram,
    Line,
    Mark,
    Note,
    Panel,
    Region,
    Rule,
)
from saturation.plots.series import is_log_spaced

GRID = "#E4E7EB"
DIGITS = ".6g"
_FEWEST_ROWS = 9  # as high as what the colours mean
_DASHES = {"solid": "solid", "dash": "dash", "dot": "dot", "dashdot": "dashdot", "none": "solid"}
_SYMBOLS = {
    "": "circle", "circle": "circle", "open circle": "circle-open", "square": "square",
    "diamond": "diamond", "open diamond": "diamond-open", "triangle": "triangle-up",
    "cross": "x", "dash": "line-ew-open",
}  # fmt: skip
# So few that no digit between two powers of ten stands on another; each in full.
_LOG_TICKS: Mapping[str, Any] = {"nticks": 4, "tickformat": "~g"}
_COLOURS = {"viridis": "Viridis", "RdBu": "RdBu"}
_PIXELS = 100  # an inch of a figure
_SHADE = 5  # digits of what there is much of and only a place or a colour shows
_LEAST = 320  # pixels of height, with a legend


def chart(panel: Panel) -> go.Figure:
    """Return the chart of a panel; what stands above it is the page's."""
    found = _empty(panel)
    for mark in panel.marks:
        _DRAW[type(mark)](found, mark)
    _vertical(found, panel)
    _horizontal(found, panel)
    _place_notes(found)
    _make_room(found, panel)
    return found


def traces(found: go.Figure) -> tuple[Any, ...]:
    """Return what was added to a chart; plotly says nothing useful of its type."""
    return tuple(cast("Any", found).data)


def numbers(values: np.ndarray, digits: int = 8) -> list[float | None]:
    """Return values with so many digits, and None for a gap; plain, where plotly packs arrays."""
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def _empty(panel: Panel) -> go.Figure:
    title = {"standoff": 8, "font": {"size": 13}}
    axis: Mapping[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": GREY,
        "zerolinewidth": 0.7,
        "linecolor": GREY,
        "ticks": "outside",
        "tickcolor": GREY,
        "automargin": True,
    }
    height = max(int(_PIXELS * panel.height), _LEAST)
    up = as_html(wrapped(panel.y.label, (height - 90) // 8)).replace("\n", "<br>")
    layout = {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "tracegroupgap": 0,
        },
        "xaxis": dict(axis)
        | {"zeroline": False, "title": title | {"text": as_html(panel.x.label)}},
        "yaxis": dict(axis) | {"title": title | {"text": up}},
        "template": "none",
    }
    return go.Figure(layout=layout)


def _line(found: go.Figure, line: Line) -> None:
    x = list(line.x) if isinstance(line.x, Sequence) else line.x.tolist()
    name = as_html(line.name)
    spread: dict[str, Any] = {}
    single = len(line.y) == 1
    if line.low is not None and line.high is not None:
        if line.bars or single:
            spread["error_y"] = {
                "type": "data",
                "array": numbers(line.high - line.y),
                "arrayminus": numbers(line.y - line.low),
                "thickness": 1,
            }
        else:
            _band(found, x, line, name)
    symbols = bool(line.symbol) or single or line.dash == "none"
    mode = "markers" if line.dash == "none" or single else "lines+markers" if symbols else "lines"
    first = name not in {trace.name for trace in traces(found)}
    found.add_scatter(
        x=x,
        y=numbers(line.y),
        name=name,
        mode=mode,
        line={"color": line.colour, "dash": _DASHES[line.dash], "width": 1.3 * line.width},
        marker={"size": 1.4 * line.size, "color": line.colour, "symbol": _SYMBOLS[line.symbol]},
        opacity=line.opacity,
        legendgroup=name or None,
        showlegend=bool(name) and first,
        hovertemplate=f"%{{y:{DIGITS}}} at %{{x}}<extra>{name}</extra>",
        **spread,
    )


def _band(found: go.Figure, x: list[Any], line: Line, name: str) -> None:
    edge: Any = {"mode": "lines", "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
    look = {"width": 0, "color": line.colour}
    channels = ", ".join(str(int(line.colour[i : i + 2], 16)) for i in (1, 3, 5))
    low, high = np.asarray(line.low), np.asarray(line.high)
    found.add_scatter(x=x, y=numbers(low, _SHADE), line=look, **edge)
    fill = f"rgba({channels}, 0.15)"
    found.add_scatter(
        x=x, y=numbers(high, _SHADE), line=look, fill="tonexty", fillcolor=fill, **edge
    )


def _dots(found: go.Figure, dots: Dots) -> None:
    by = dots.by.tolist()
    found.add_scatter(
        x=numbers(dots.x, _SHADE),
        y=numbers(dots.y, _SHADE),
        customdata=by,
        mode="markers",
        showlegend=False,
        marker={
            "size": 1.3 * dots.size,
            "color": by,
            "colorscale": "Viridis",
            "colorbar": _bar(dots.label),
            "showscale": len(set(by)) > 1,
            "opacity": dots.opacity,
        },
        hovertemplate=f"%{{x:.4g}}, %{{y:.4g}}; {as_html(dots.label)} %{{customdata}}"
        "<extra></extra>",
    )


def _bar(label: str) -> dict[str, Any]:
    title = {"text": as_html(label), "side": "right", "font": {"size": 13}}
    return {"thickness": 12, "title": title}


def _heat_map(found: go.Figure, heat: HeatMap) -> None:
    names = [as_html(name) for name in heat.rows]
    found.update_layout(height=130 + 19 * min(max(len(names), _FEWEST_ROWS), MOST_ROWS))
    label = as_html(heat.label)
    if len(heat.steps) == 1:
        found.add_scatter(
            x=numbers(heat.values[:, 0]),
            y=names,
            mode="markers",
            marker={"color": BLUE, "size": 9},
            hovertemplate=f"%{{y}}: %{{x:{DIGITS}}}<extra></extra>",
            showlegend=False,
        )
        found.update_xaxes(title_text=f"{label}, at step {heat.steps[0]:,}")
        if heat.reach is not None:
            found.update_xaxes(range=list(heat.reach))
    else:
        low, high = heat.limits or (None, None)
        unit = heat.columns.split()[-1]
        found.add_heatmap(
            x=[f"{step:,}" if float(step).is_integer() else f"{step:.3g}" for step in heat.steps],
            y=names,
            z=[numbers(row, _SHADE) for row in heat.values],
            zmin=low,
            zmax=high,
            colorscale=_COLOURS[heat.colours],
            colorbar=_bar(heat.label),
            hovertemplate=f"%{{y}} at {unit} %{{x}}: %{{z:{DIGITS}}}<extra></extra>",
        )
        found.update_xaxes(type="category", nticks=9, title_text=f"{heat.columns}, a column each")
    found.update_yaxes(
        type="category", autorange="reversed", showgrid=False, dtick=-(-len(names) // MOST_ROWS)
    )


def _histogram(found: go.Figure, histogram: Histogram) -> None:
    counts, edges = np.histogram(histogram.values, histogram.edges)
    found.add_bar(
        x=numbers((edges[1:] + edges[:-1]) / 2),
        y=counts.tolist(),
        width=numbers(np.diff(edges)),
        name=as_html(histogram.name),
        marker={"color": histogram.colour if histogram.filled else "rgba(0,0,0,0)",
                "line": {"color": histogram.colour, "width": 1.5}},
        opacity=0.7,
    )  # fmt: skip
    found.update_layout(barmode="overlay")


def _rule(found: go.Figure, rule: Rule) -> None:
    look = {"color": GREY, "width": 1, "dash": _DASHES[rule.dash]}
    if rule.axis == "y":
        found.add_hline(rule.at, line=look)
    else:
        found.add_vline(rule.at, line=look)


def _region(found: go.Figure, region: Region) -> None:
    far = 1e6
    if region.shape == "all":
        found.update_layout(plot_bgcolor=region.colour)
    else:
        x, y, radius = region.x, region.y, region.radius
        box = (
            {"x0": -far, "x1": x, "y0": -far, "y1": far}
            if region.shape == "left"
            else {"x0": x - radius, "x1": x + radius, "y0": y - radius, "y1": y + radius}
        )
        kind = "rect" if region.shape == "left" else "circle"
        look = {"layer": "below", "line": {"width": 0}, "fillcolor": region.colour}
        found.add_shape(type=kind, **look, **box)
    square = {"symbol": "square", "size": 12, "color": region.colour,
              "line": {"color": GREY, "width": 0.5}}  # fmt: skip
    name = as_html(region.name)
    found.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=square)


def _note(found: go.Figure, note: Note) -> None:
    look: Any = {"text": as_html(note.text), "showarrow": False, "font": {"color": note.colour}}
    if note.x is not None and note.y is not None:
        found.add_annotation(x=note.x, y=note.y, xanchor="left", yanchor="top", **look)
    elif note.corner == "upper left":
        found.add_annotation(xref="paper", yref="paper", x=0.01, y=0.99, xanchor="left",
                             yanchor="top", align="left", **look)  # fmt: skip
    else:
        found.add_annotation(xref="paper", yref="paper", x=0.99, y=0.01, xanchor="right",
                             yanchor="bottom", align="right", **look)  # fmt: skip


_DRAW: Mapping[type[Mark], Callable[[go.Figure, Any], None]] = {
    Line: _line,
    Dots: _dots,
    HeatMap: _heat_map,
    Histogram: _histogram,
    Rule: _rule,
    Region: _region,
    Note: _note,
}


def _vertical(found: go.Figure, panel: Panel) -> None:
    axis = panel.y
    positive = any(
        (np.asarray(mark.y, float) > 0).any() for mark in panel.marks if isinstance(mark, Line)
    )
    logarithmic = axis.scale == "log" and positive
    if logarithmic:
        found.update_yaxes(type="log", **_LOG_TICKS)
    elif axis.scale == "whole":
        found.update_yaxes(dtick=max(1, int(np.ceil(_reach(panel) / 8))), tick0=0)
    if axis.limits is not None:
        found.update_yaxes(range=_range(axis, logarithmic))
    if panel.equal:
        found.update_yaxes(scaleanchor="x")


def _horizontal(found: go.Figure, panel: Panel) -> None:
    axis = panel.x
    if any(True for _ in panel.of(HeatMap)):
        return
    if axis.scale == "steps":
        _step_axis(found, panel.steps)
    elif axis.scale == "log":
        found.update_xaxes(type="log", **_LOG_TICKS)
    elif axis.scale == "whole":
        found.update_xaxes(dtick=1, tick0=0)
    elif axis.scale == "categories":
        order = list(axis.order)
        found.update_xaxes(type="category", categoryorder="array", categoryarray=order,
                           range=[-0.3, len(order) - 0.7])  # fmt: skip
    if axis.limits is not None:
        found.update_xaxes(range=_range(axis, axis.scale == "log"), constrain="domain")


def _make_room(found: go.Figure, panel: Panel) -> None:
    """Make a chart higher where its legend has many rows, by what their names are long."""
    names = [trace.name for trace in traces(found) if trace.name and trace.showlegend is not False]
    rows = sum(50 + 7 * len(name) for name in names) / (960 if panel.wide else 360)
    height = cast("Any", found).layout.height
    found.update_layout(height=height + 22 * max(0, int(np.ceil(rows)) - 2))


def _reach(panel: Panel) -> float:
    """Return from where to where the vertical axis runs."""
    if panel.y.limits is not None:
        return float(np.ptp(panel.y.limits))
    values = [np.asarray(line.y) for line in panel.of(Line)]
    values += [np.histogram(one.values, one.edges)[0] for one in panel.of(Histogram)]
    return float(np.nanmax(np.concatenate([[0.0], *values])))


def _place_notes(found: go.Figure) -> None:
    """Place notes where plotly wants them on a logarithmic axis, which shapes and lines do not."""
    for note in cast("Any", found).layout.annotations:
        for axis, end in (("xaxis", "x"), ("yaxis", "y")):
            if note[f"{end}ref"] in (None, end) and found["layout"][axis]["type"] == "log":
                note[end] = float(np.log10(note[end]))


def _range(axis: Axis, logarithmic: bool) -> list[float]:
    limits = np.asarray(axis.limits, float)
    return (np.log10(limits) if logarithmic else limits).tolist()


def _step_axis(found: go.Figure, steps: np.ndarray) -> None:
    """Make an axis of log-spaced steps logarithmic, and label a single step as what it is.

    Step 0, which has no logarithm, is drawn at half the first step behind it, and labelled 0.
    """
    positive = steps[steps > 0]
    if len(steps) == 1:
        found.update_xaxes(tickvals=steps.tolist(), ticktext=[f"{steps[0]:,.0f}"])
    elif is_log_spaced(steps):
        first = positive[0] / 2 if steps[0] == 0 else positive[0]
        low, high = np.log10([first, positive[-1]])
        pad = 0.04 * (high - low)
        found.update_xaxes(type="log", dtick=1, tickformat=",", range=[low - pad, high + pad])
        if steps[0] == 0:
            _place_zero(found, positive)


def _place_zero(found: go.Figure, positive: np.ndarray) -> None:
    place = float(positive[0]) / 2
    for line in traces(found):
        true: list[float] = list(line.x)
        line.x = [step or place for step in true]
        if line.hoverinfo != "skip":
            line.customdata = true
            line.hovertemplate = (
                f"%{{y:{DIGITS}}} at %{{customdata:,.0f}}<extra>{line.name}</extra>"
            )
    low, high = np.log10(positive[[0, -1]])
    powers = [10**n for n in range(int(np.ceil(low)), int(np.floor(high)) + 1)]
    found.update_xaxes(
        tickvals=[place, *powers], ticktext=["0", *(f"{power:,}" for power in powers)]
    )
