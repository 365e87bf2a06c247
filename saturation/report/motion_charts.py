"""The page's sections on direction and steps: how far the parameters turned and moved."""

from __future__ import annotations

import plotly.graph_objects as go

from saturation.report.chart_style import Panel, Section, add_line, choose_step_axis, empty_chart
from saturation.report.motion_figures import EXPONENT_PARTS, between, norm_budget
from saturation.report.norm_charts import scope_chart
from saturation.report.series import RunTable, describe_spacing
from saturation.report.style import BLACK, BLUE, VERMILION


def direction_section(run: RunTable) -> Section | None:
    """Return the cosines between checkpoints; None where there are none."""
    panels = [
        Panel(scope_chart(run, metric, label, logarithmic), title, wide=wide)
        for metric, label, title, logarithmic, wide in (
            ("cosine", "cosine", "Cosine to the checkpoint before", False, False),
            ("cosine_distance", "1 − cosine", "The same, as distance from 1", True, False),
            ("cosine_to_first", "cosine", "Cosine to the first checkpoint", False, True),
        )
        if run.scopes(metric)
    ]
    return Section("Direction", _spacing_note(run, "cosine"), panels) if panels else None


def steps_section(run: RunTable) -> Section | None:
    """Return how far the parameters moved, and what that did to their norm; None without."""
    panels = [
        Panel(scope_chart(run, metric, label, logarithmic), title, says)
        for metric, label, title, says, logarithmic in (
            ("step_norm", "‖δ‖", "How far the parameters moved", "", True),
            ("relative_step", "‖δ‖/(‖θ‖(t′ − t))", "Relative step per training step", "", True),
            ("alignment", "cos(δ, θ)", "Did they move outwards?", "1 outwards, 0 across.", False),
        )
        if run.scopes(metric)
    ]
    budget = budget_chart(run) if run.scopes("radial") else None
    if budget is not None:
        says = f"Norm budget of `{run.scopes('radial')[0]}`."
        panels.append(Panel(budget, "What made ‖θ‖² grow?", says))
    if run.scopes("exponent"):
        says = f"ln(‖θ_t′‖/‖θ_t‖)/ln(t′/t) of `{run.scopes('exponent')[0]}` at √(t·t′)."
        panels.append(Panel(exponent_chart(run), "Local exponent and its parts", says))
    return Section("Steps", _spacing_note(run, "step_norm"), panels) if panels else None


def budget_chart(run: RunTable) -> go.Figure | None:
    """Return the cumulated norm budget of the first main scope; None where a step lacks it."""
    budget = norm_budget(run, run.scopes("radial")[0])
    if budget is None:
        return None
    series, radial, tangential = budget
    chart = empty_chart("cumulated change of ‖θ‖²")
    for values, name, colour, dash in (
        (radial, "radial (along θ)", VERMILION, "dash"),
        (tangential, "tangential (across θ)", BLUE, "dashdot"),
        (radial + tangential, "both", BLACK, "solid"),
    ):
        add_line(chart, series.steps, values, name, colour, mode="lines+markers", dash=dash)
    choose_step_axis(chart, series.steps)
    return chart


def exponent_chart(run: RunTable) -> go.Figure:
    """Return the local exponent of the first main scope, and its parts by the norm budget."""
    chart, scope = empty_chart("local exponent"), run.scopes("exponent")[0]
    dashes = {"--": "dash", "-.": "dashdot", "-": "solid"}
    for metric, colour, line, name in EXPONENT_PARTS:
        series = run.series(metric, scope)
        if series is None:
            continue
        at, dash = between(series), dashes[line]
        add_line(chart, at, series.values, name, colour, mode="lines+markers", dash=dash)
        choose_step_axis(chart, series.steps)
    return chart


def _spacing_note(run: RunTable, metric: str) -> str:
    if not run.scopes(metric):
        return ""
    _, series = run.main_series(metric)
    spacing = describe_spacing(series.spacing)
    return f"These depend on the spacing: checkpoints lie {spacing}."
