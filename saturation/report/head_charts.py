"""The page's section on heads: how many keys they attend to, and how many have which role."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from saturation.report.chart_style import (
    Panel,
    Section,
    add_line,
    add_spread,
    choose_step_axis,
    empty_chart,
)
from saturation.report.saturation_figures import HEADS, roles
from saturation.report.series import RunTable, quartiles
from saturation.report.style import BLUE, VERMILION

SPREAD = "Lines are medians over heads; bands, or bars, hold the middle half of them."
READS = (
    "What heads attend to at τ = 0, where keys of equal and highest score share the weight: a head "
    "near one key is argmax-like (local), one near all allowed keys mean-like (global). Keys are "
    f"counted, mean over queries. {SPREAD}"
)


def heads_section(run: RunTable) -> Section | None:
    """Return positions attended and the shares of both roles; None where there are none."""
    positions = spread_chart(run, "positions_mean", "keys attended")
    panels = (
        [] if positions is None else [Panel(positions, "Positions attended", "`positions_mean`.")]
    )
    shares = roles_chart(run)
    if shares is not None:
        panels.append(
            Panel(
                shares, "Roles", "Share of all heads, by `positions_mean` and `positions_fraction`."
            )
        )
    # The measure `scan` has the same entropy, and shows it beside that of uniform attention.
    entropy = None if run.scopes("attention_entropy") else spread_chart(run, "entropy", "nats")
    if entropy is not None:
        says = "`entropy`; low: a sharp head."
        panels.append(Panel(entropy, "Entropy of the weights at τ = 1", says, wide=True))
    return Section("Heads", READS, panels) if panels else None


def spread_chart(
    run: RunTable, metric: str, label: str, uniform: str = "", factor: float = 1.0
) -> go.Figure | None:
    """Return a metric's median and quartiles over the heads of each kind; None without any.

    Args:
        run: the run.
        metric: what is drawn.
        label: its axis.
        uniform: the metric of what attention to all keys alike would give, drawn dotted.
        factor: by which both are multiplied.
    """
    chart, drawn = empty_chart(label), None
    for kind, (pattern, colour) in HEADS.items():
        heads = list(run.matching(metric, pattern).values())
        if not heads:
            continue
        steps, spread = quartiles(heads)
        drawn = steps
        add_spread(chart, steps, factor * spread, kind, colour)
        alike = list(run.matching(uniform, pattern).values())
        if alike:
            steps, (_, values, _) = quartiles(alike)
            look: Any = {"mode": "lines", "dash": "dot", "legendgroup": kind, "showlegend": False}
            if len(steps) == 1:
                look |= {"mode": "markers", "symbol": "line-ew-open", "size": 16}
            add_line(chart, steps, factor * values, f"{kind}, if uniform", colour, **look)
    if drawn is None:
        return None
    choose_step_axis(chart, drawn)
    return chart


def roles_chart(run: RunTable) -> go.Figure | None:
    """Return the share of heads of each role against the step; None where that was not measured."""
    found = roles(run)
    if found is None:
        return None
    steps, by_role, _ = found
    chart = empty_chart("% of heads")
    for (role, share), colour in zip(by_role.items(), (BLUE, VERMILION), strict=True):
        add_line(chart, steps, 100 * share, role, colour, "lines+markers")
    choose_step_axis(chart, steps)
    chart.update_yaxes(range=[-3, 103])
    return chart
