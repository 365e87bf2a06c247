"""How near the network at c times its parameters is to its limit, and how it grows, against c."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from saturation.measures.homogeneity.words import COSINE, DEGREE, scales
from saturation.plots.colours import layer_looks
from saturation.plots.panels import Axis, Line, Mark, Panel, Picture, Rule
from saturation.plots.series import LAYER, RunTable, evenly, ordered_layers

MOST_STEPS = 4  # panels side by side that can be read
NEAREST = 1e-16  # of 1 − cos: what float64 tells from 0
READS = (
    "What becomes of a layer's output as all parameters are multiplied by c (1: the network as it "
    "is): how far it points from its limit, and by which power of c it grows, the same at every c "
    "in a homogeneous network. Means over tokens, no unit. Dark: next to the input"
)


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield both curves of every layer at up to four checkpoints, where there are any."""
    grid = scales(run)
    steps = measured_steps(run, grid)
    if not len(steps):
        return
    chosen = evenly(steps.tolist(), MOST_STEPS)
    rows = [
        [distance_panel(run, grid, int(step)) for step in chosen],
        [degree_panel(run, grid, int(step)) for step in chosen],
    ]
    dashed = any(scope.startswith("decoder/") for scope in curves(run, COSINE, grid, chosen[-1]))
    reads = f"{READS}; dashed: the decoder." if dashed else f"{READS}."
    yield Picture("homogeneity", "All parameters times c: how far from the limit c → ∞",
                  "Homogeneity", reads, rows, on_tokens=True)  # fmt: skip


def measured_steps(run: RunTable, grid: tuple[float, ...]) -> np.ndarray:
    """Return the steps at which a run has the distance of any layer at any c."""
    found = [one.steps for c in grid for one in run.matching(f"{COSINE}{c:g}", LAYER).values()]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def curves(
    run: RunTable, prefix: str, grid: tuple[float, ...], step: int
) -> dict[str, Float[np.ndarray, " scales"]]:
    """Return {layer: a metric's values on the grid of c} at a step; NaN where it has none."""
    by_scale = [run.matching(f"{prefix}{c:g}", LAYER) for c in grid]
    values = {scope: np.full(len(grid), np.nan) for scope in ordered_layers(by_scale[0])}
    for column, found in enumerate(by_scale):
        for scope, one in found.items():
            if scope in values:
                values[scope][column] = one.at(step)
    return values


def distance_panel(run: RunTable, grid: tuple[float, ...], step: int) -> Panel:
    """Return 1 − cos of every layer to its limit, no less than what float64 tells from 0."""
    found = {
        scope: np.maximum(1 - cosine, NEAREST)
        for scope, cosine in curves(run, COSINE, grid, step).items()
    }
    axis = Axis("1 − cos(f(x; cθ), limit)", "log")
    title = f"Distance to the limit, step {step:,}"
    return Panel(title, _lines(grid, found), axis, Axis("c", "log"), "Lower is nearer.")


def degree_panel(run: RunTable, grid: tuple[float, ...], step: int) -> Panel:
    """Return the power of c by which every layer grows, with the whole numbers it ends at."""
    found = curves(run, DEGREE, grid, step)
    ends = {round(float(values[-1])) for values in found.values() if np.isfinite(values[-1])}
    rules: list[Mark] = [Rule(end, dash="dot") for end in sorted(ends)]
    axis = Axis("d ln‖f‖ / d ln c")
    return Panel(f"Local degree, step {step:,}", [*rules, *_lines(grid, found)], axis,
                 Axis("c", "log"))  # fmt: skip


def _lines(grid: tuple[float, ...], found: dict[str, np.ndarray]) -> list[Mark]:
    return [
        Line(np.array(grid), found[scope], scope, colour, dash, "circle", 3)
        for scope, (colour, dash) in layer_looks(list(found)).items()
    ]
