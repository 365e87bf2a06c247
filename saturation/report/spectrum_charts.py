"""The page's section on spectra: heads' eigenvalues by layer and step, and in the complex plane."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Complex128, Int

from saturation.report.chart_style import Panel, Section, empty_chart, numbers, rows_chart
from saturation.report.series import RunTable, layer_medians
from saturation.report.spectrum_figures import (
    AGAIN,
    ALIKE,
    KINDS,
    PART,
    REGIONS,
    effective,
    eigenvalue_rows,
    layers_of,
    scaled_by,
    window,
)
from saturation.report.style import GREY

MOST_DOTS = 4000  # of a plane: as many as can be told apart
ROWS = (  # metric, title, what is shown, what more to say, limits, colours
    ("fraction_negative", "Eigenvalues turned against the stream", "share with Re λ < 0",
     "½ in a random matrix.", (0.0, 1.0), "Viridis"),
    ("fraction_sharpening", "Eigenvalues that do not make tokens alike",
     "share with Re λ in [−1, 0)", "If they are real and the stream's root mean square were 1.",
     (0.0, 1.0), "Viridis"),
    ("sharpens_below", "Which attention makes a head sharpen", "the threshold of λ^A_min",
     "If the stream's root mean square were 1 and λ^A real. "
     "−1, red: the head sharpens under none; 0: under any that has a λ^A below 0.",
     (-1.0, 1.0), "RdBu"),
)  # fmt: skip
READS = (
    "λ are the eigenvalues of what a head adds to the stream, diag(g) W_V W_O (no unit). A head "
    "sharpens, setting tokens apart, where the smallest eigenvalue λ^A_min of its attention lies "
    "below a threshold; else it makes them alike or, with all λ in [−1, 0), does neither. Rows "
    "are medians over a layer's heads."
)


def spectrum_section(run: RunTable) -> Section | None:
    """Return fractions and thresholds by layer and step, and planes; None where there are none."""
    panels = []
    for metric, title, label, says, limits, colours in ROWS:
        rows = layer_medians(run, metric)
        if rows:
            chart = rows_chart(rows, metric, limits, colours)
            panels.append(Panel(chart, title, f"`{metric}`: {label}. {says}", wide=True))
    for stack in KINDS if len(run.eigenvalues) else ():
        layers = layers_of(run, stack)
        if layers:
            chart, says = plane_chart(run, stack, layers)
            panels.append(Panel(chart, f"{stack}: eigenvalues of self-attention", says))
    return Section("Spectrum of heads", READS, panels) if panels else None


def plane_chart(run: RunTable, stack: str, layers: list[int]) -> tuple[go.Figure, str]:
    """Return the eigenvalues of a stack's layers at their last step, and what to say of them."""
    step = max(eigenvalue_rows(run, stack)["step"].tolist())
    found = [effective(run, stack, layer, step) for layer in layers]
    values = np.concatenate([one for one, _ in found])
    depth = np.repeat(layers, [len(one) for one, _ in found])
    shown = thinned(values)
    divided = [known for one, known in found if len(one)]
    reach, outside = window(values)
    chart = _regions(reach, float(max(reach, 1.1 * np.abs(values).max(initial=0))))
    chart.add_scatter(
        x=numbers(np.real(values[shown])),
        y=numbers(np.imag(values[shown])),
        customdata=depth[shown].tolist(),
        mode="markers",
        showlegend=False,
        marker={
            "size": 5,
            "color": depth[shown].tolist(),
            "colorscale": "Viridis",
            "colorbar": {
                "title": {"text": "layer", "side": "right"},
                "thickness": 12,
                "dtick": max(1, len(layers) // 6),
            },
            "showscale": len(layers) > 1,
            "opacity": 0.8,
        },
        hovertemplate="%{x:.4g} + %{y:.4g}i, layer %{customdata}<extra></extra>",
    )
    says = f"Step {step:,}; {scaled_by(divided)} of the layer's input; {len(values):,} eigenvalues"
    if len(shown) < len(values):
        says += f", {len(shown):,} of them drawn"
    if outside:
        says += f", {outside:,} farther out (double-click shows them)"
    return chart, f"{says}. The λ farthest from −1 decides."


def thinned(values: Complex128[np.ndarray, " eigenvalues"]) -> Int[np.ndarray, " shown"]:
    """Return which eigenvalues to draw where they are too many: evenly by |1 + λ|, both ends kept.

    The one farthest from −1 decides what a head does, so it must not be thinned away.
    """
    order = np.argsort(np.abs(1 + values), kind="stable")
    places = np.linspace(0, len(values) - 1, min(len(values), MOST_DOTS)).round().astype(int)
    return np.sort(order[places])


def _regions(reach: float, far: float) -> go.Figure:
    """Return a plane without dots: where tokens part, and where they become alike."""
    chart = empty_chart("Im λ", height=470)
    left = {"x0": -far, "x1": -1, "y0": -far, "y1": far}
    disk = {"x0": -2, "x1": 0, "y0": -1, "y1": 1}
    for kind, box, colour in (("rect", left, AGAIN), ("circle", disk, PART)):
        chart.add_shape(type=kind, layer="below", line={"width": 0}, fillcolor=colour, **box)
    for label, colour in REGIONS.items():
        square = {
            "symbol": "square",
            "size": 12,
            "color": colour,
            "line": {"color": GREY, "width": 0.5},
        }
        chart.add_scatter(x=[None], y=[None], mode="markers", name=label, marker=square)
    chart.update_layout(plot_bgcolor=ALIKE)
    same = {"range": [-reach, reach], "constrain": "domain", "showgrid": False}
    chart.update_xaxes(title_text="Re λ", zeroline=True, **same)
    chart.update_yaxes(scaleanchor="x", **same)
    return chart
