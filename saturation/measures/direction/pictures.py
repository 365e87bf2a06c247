"""How the parameters moved: direction between checkpoints, steps, norm budget and exponents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from saturation.plots.colours import BLACK, BLUE, SCOPE_COLOURS, VERMILION
from saturation.plots.panels import Axis, Dash, Line, Mark, Panel, Picture, Rule
from saturation.plots.series import RunTable, StepSeries, between, describe_spacing, relative_rate

PARTS: tuple[tuple[str, str, Dash, str], ...] = (
    ("radial", VERMILION, "dash", "radial (along θ)"),
    ("tangential", BLUE, "dashdot", "tangential (across θ)"),
)
READS = {
    "direction": "Cosines between the parameters of two checkpoints: 1 is the same direction.",
    "steps": "How far the parameters moved from one checkpoint to the next, and which way.",
}
BOTH: tuple[str, str, Dash, str] = ("", BLACK, "solid", "both")


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield how far the parameters turned, and how they stepped, where that was measured."""
    if run.scopes("cosine"):
        yield _picture(run, "direction", "Direction of the parameters", "Direction",
                       [list(turns(run))])  # fmt: skip
    if run.scopes("step_norm"):
        panels = list(steps(run))
        rows = [panels[start : start + 2] for start in range(0, len(panels), 2)]
        yield _picture(run, "steps", "Steps between checkpoints", "Steps", rows)


def turns(run: RunTable) -> Iterator[Panel]:
    """Yield the cosines to the checkpoint before and to the first."""
    before = "cos(θ_t, θ_t′)"
    yield _panel(run, "cosine", "Cosine to the checkpoint before", Axis(before))
    yield _panel(
        run, "cosine_distance", "The same, as distance from 1", Axis(f"1 − {before}", "log")
    )
    label = "cos(θ_first, θ_t′)"
    yield _panel(run, "cosine_to_first", "Cosine to the first checkpoint", Axis(label))


def steps(run: RunTable) -> Iterator[Panel]:
    """Yield size, rate and alignment of steps, the norm budget and the local exponent."""
    axis = Axis("‖δ‖,   δ = θ_t′ − θ_t", "log")
    yield _panel(run, "step_norm", "How far the parameters moved", axis)
    axis = Axis("‖δ‖ / (‖θ_t‖ (t′ − t))", "log")
    yield _panel(run, "relative_step", "Relative step per training step", axis)
    says = "1 outwards, 0 across."
    axis = Axis("alignment, cos(δ, θ_t)")
    yield _panel(run, "alignment", "Did they move outwards?", axis, says, Rule(0))
    budget = budget_panel(run)
    if budget is not None:
        yield budget
    if run.scopes("exponent"):
        axis = Axis("ln(‖θ_t′‖/‖θ_t‖) / ln(t′/t)")
        yield _panel(run, "exponent", "Local exponent of the norm", axis, "At √(t·t′).", Rule(0))
        yield exponent_parts(run)


def budget_panel(run: RunTable) -> Panel | None:
    """Return the cumulated norm budget of the first main scope; None where a step lacks it."""
    scope = next(iter(run.scopes("radial")), "")
    found = [run.series(metric, scope) for metric, *_ in PARTS]
    radial, tangential = found
    if radial is None or tangential is None or len(radial) != len(tangential):
        return None
    sums = [np.cumsum(one.values) for one in (radial, tangential)]
    marks: list[Mark] = [Rule(0)]
    for (_, colour, dash, name), values in zip(PARTS, sums, strict=True):
        marks.append(Line(radial.steps, values, name, colour, dash, "circle", 3))
    both = "both: ‖θ_t′‖² − ‖θ_first‖²"
    marks.append(Line(radial.steps, sums[0] + sums[1], both, BLACK, symbol="circle", size=3))
    axis, says = Axis("cumulated change of ‖θ‖²"), f"Norm budget of `{scope}`."
    return Panel(f"What made ‖θ‖² grow? “{scope}”", marks, axis, says=says, legend=True)


def exponent_parts(run: RunTable) -> Panel:
    """Return the parts of the local exponent of the first main scope by the norm budget."""
    scope = run.scopes("exponent")[0]
    marks: list[Mark] = [Rule(0)]
    for part, colour, dash, name in (*PARTS, BOTH):
        series = run.series(f"exponent_{part}".rstrip("_"), scope)
        if series is not None:
            marks.append(Line(between(series), series.values, name, colour, dash, "circle", 3))
    title, axis = f"Its parts by the norm budget: “{scope}”", Axis("local exponent")
    return Panel(title, marks, axis, says="At √(t·t′).", legend=True)


def _panel(
    run: RunTable, metric: str, title: str, axis: Axis, says: str = "", *more: Mark
) -> Panel:
    lines = [
        Line(_places(metric, series), _values(metric, series), scope,
             SCOPE_COLOURS.get(scope, BLACK), symbol="circle", size=3)
        for scope, series in run.parts(metric).items()
    ]  # fmt: skip
    return Panel(title, [*more, *lines], axis, says=says)


def _places(metric: str, series: StepSeries) -> np.ndarray:
    return between(series) if metric == "exponent" else series.steps


def _values(metric: str, series: StepSeries) -> np.ndarray:
    return relative_rate(series) if metric == "relative_step" else series.values


def _picture(
    run: RunTable, name: str, title: str, heading: str, rows: list[list[Panel]]
) -> Picture:
    _, series = run.main_series("cosine" if name == "direction" else "step_norm")
    spacing = describe_spacing(series.spacing)
    return Picture(name, f"{title} (checkpoints {spacing})", heading, READS[name], rows)
