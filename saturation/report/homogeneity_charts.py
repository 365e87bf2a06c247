"""The page's section on homogeneity: distance to the limit and local degree of layers against c."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import to_hex

from saturation.report.chart_style import (
    DASHES,
    MOST_NAMED,
    Panel,
    Section,
    add_line,
    empty_chart,
)
from saturation.report.homogeneity_figure import (
    COSINE,
    DEGREE,
    away,
    curves,
    measured_steps,
    scales,
)
from saturation.report.saturation_figures import layer_lines
from saturation.report.series import RunTable

READS = (
    "What becomes of a layer's output as all parameters are multiplied by c (1: the network as it "
    "is): how far it points from its limit, and by which power of c it grows, the same at every c "
    "in a homogeneous network. Means over tokens, no unit."
)


def homogeneity_section(run: RunTable) -> Section | None:
    """Return both curves of every layer at the last checkpoint; None where there are none."""
    grid = scales(run)
    steps = measured_steps(run, grid) if grid else np.empty(0)
    if not len(steps):
        return None
    step = int(steps[-1])
    says = f"Step {step:,}. Dark: next to the input; dashed: the decoder."
    distance = curves_chart(run, COSINE, step, "1 − cos(f(x; cθ), limit)")
    distance.update_yaxes(type="log", exponentformat="power")
    degree = curves_chart(run, DEGREE, step, "d ln‖f‖ / d ln c")
    panels = [
        Panel(distance, "Distance to the limit c → ∞", says),
        Panel(degree, "Local degree", says),
    ]
    note = "homogeneity.png shows up to four checkpoints: `saturation report RUN --figures DIR`."
    return Section("Homogeneity", READS, panels, note=note if len(steps) > 1 else "")


def curves_chart(run: RunTable, metric: str, step: int, label: str) -> go.Figure:
    """Return a metric of every layer against c at one step, of cosines the distance from 1."""
    grid = scales(run)
    chart = empty_chart(label)
    found = curves(run, metric, grid, step)
    for scope, (colour, line) in layer_lines(list(found)).items():
        values = away(found[scope]) if metric == COSINE else found[scope]
        hover = "%{y:.6g} at c = %{x:g}"
        add_line(
            chart, np.array(grid), values, scope, to_hex(colour), "lines+markers", DASHES[line],
            hover=hover,
        )  # fmt: skip
    chart.update_layout(showlegend=len(found) <= MOST_NAMED)
    chart.update_xaxes(type="log", dtick=1, title_text="c")
    return chart
