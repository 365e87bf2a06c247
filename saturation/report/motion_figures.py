"""How the parameters moved: norm by layer, direction between checkpoints, step and norm budget."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from saturation.report.series import RunTable, Series, describe_spacing
from saturation.report.style import (
    BLACK,
    BLUE,
    GREY,
    SCOPE_COLOURS,
    VERMILION,
    is_log_spaced,
    log_values,
    shorten,
    step_axis,
    title,
)

BEFORE, AFTER = r"$θ_t$", r"$θ_{t′}$"  # two neighbouring checkpoints, as axes name them

EXPONENT_PARTS = (
    ("exponent_radial", VERMILION, "--", "radial (along θ)"),
    ("exponent_tangential", BLUE, "-.", "tangential (across θ)"),
    ("exponent", BLACK, "-", "both"),
)


def draw_layers(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw the norm of every layer, a panel for each stack, coloured by depth."""
    stacks = run.layers("l2")
    depth = 1 + max(max(layers) for layers in stacks.values())
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, depth))
    panels = np.atleast_1d(parent.subplots(1, len(stacks), sharey=True))
    title(parent, f"Norm of each layer: {shorten(run.name)}")
    for panel, (stack, layers) in zip(panels, stacks.items(), strict=True):
        for number, series in layers.items():
            panel.plot(
                series.steps,
                series.values,
                color=colours[number],
                marker="o",
                markersize=3,
                linewidth=1.3,
                label=f"layer {number}",
            )
        panel.set_title(f"{stack}, {len(layers)} layers", color=GREY)
        step_axis(panel, next(iter(layers.values())).steps)
    panels[0].set_ylabel("‖θ‖₂ of the layer")
    scale = ScalarMappable(BoundaryNorm(np.arange(depth + 1) - 0.5, depth), ListedColormap(colours))
    bar = parent.colorbar(scale, ax=list(panels), label="layer (0 is next to the input)", pad=0.01)
    bar.ax.yaxis.set_major_locator(MaxNLocator(min(depth, 12), integer=True))
    bar.ax.minorticks_off()


def draw_direction(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw how far the parameters turned between checkpoints, and since the first."""
    panels = parent.subplots(1, 3)
    log_spaced = _suptitle(parent, run, "cosine", "Direction of the parameters")
    for panel, metric, caption, label in (
        (panels[0], "cosine", "Cosine to the checkpoint before", rf"cos({BEFORE}, {AFTER})"),
        (
            panels[1],
            "cosine_distance",
            "The same, as distance from 1",
            rf"1 − cos({BEFORE}, {AFTER})",
        ),
        (
            panels[2],
            "cosine_to_first",
            "Cosine to the first checkpoint",
            rf"cos($θ_{{\rm first}}$, {AFTER})",
        ),
    ):
        _draw_scopes(panel, run, metric, log_spaced)
        panel.set_title(caption)
        panel.set_ylabel(label)
    if _positive(run, "cosine_distance"):
        log_values(panels[1])
    _scope_legend(parent, panels[0])


def draw_steps(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw the step between checkpoints: size, rate, alignment, norm budget and exponent."""
    panels = parent.subplots(3 if has_exponents(run) else 2, 2)
    log_spaced = _suptitle(parent, run, "step_norm", "Steps between checkpoints")
    for panel, metric, caption, label in (
        (
            panels[0, 0],
            "step_norm",
            "How far the parameters moved",
            f"‖δ‖,   δ = {AFTER} − {BEFORE}",
        ),
        (panels[1, 0], "alignment", "Did they move outwards?", f"alignment, cos(δ, {BEFORE})"),
    ):
        _draw_scopes(panel, run, metric, log_spaced)
        panel.set_title(caption)
        panel.set_ylabel(label)
    if _positive(run, "step_norm"):
        log_values(panels[0, 0])
    panels[1, 0].axhline(0, color=GREY, linewidth=0.8)
    _draw_relative_rate(panels[0, 1], run, log_spaced)
    _draw_budget(panels[1, 1], run, log_spaced)
    if has_exponents(run):
        _draw_exponents(panels[2, 0], run, log_spaced)
        _draw_exponent_parts(panels[2, 1], run, log_spaced)
    _scope_legend(parent, panels[0, 0])


def has_exponents(run: RunTable) -> bool:
    """Return whether the run has local exponents: two checkpoints after step 0 at least."""
    return bool(run.scopes("exponent"))


def between(series: Series) -> np.ndarray:
    """Return √(t·t′), where a mean over ln t from t to t′ is drawn."""
    return np.sqrt(series.previous * series.steps)


def relative_rate(series: Series) -> np.ndarray:
    """Return the relative step per training step, ‖δ‖/(‖θ_t‖(t′ − t)), since spacings differ."""
    return series.values / series.spacing


def norm_budget(run: RunTable, scope: str) -> tuple[Series, np.ndarray, np.ndarray] | None:
    """Return the radial series and both cumulated brackets of the norm budget, or None."""
    radial, tangential = run.series("radial", scope), run.series("tangential", scope)
    if radial is None or tangential is None or len(radial) != len(tangential):
        return None
    return radial, np.cumsum(radial.values), np.cumsum(tangential.values)


def _draw_relative_rate(axes: Axes, run: RunTable, log_spaced: bool) -> None:
    for scope, series in _each_scope(run, "relative_step"):
        rate = relative_rate(series)
        axes.plot(series.steps, rate, "o-", color=_colour(scope), label=scope, lw=1.3, markersize=3)
        step_axis(axes, series.steps, log_spaced)
    if all((series.values > 0).any() for _, series in _each_scope(run, "relative_step")):
        log_values(axes)
    axes.set_title("Relative step per training step")
    axes.set_ylabel(f"‖δ‖ / (‖{BEFORE}‖ (t′ − t))")


def _draw_budget(axes: Axes, run: RunTable, log_spaced: bool) -> None:
    scope = run.scopes("radial")[0]
    budget = norm_budget(run, scope)
    axes.set_title(f"What made ‖θ‖² grow? Norm budget of “{scope}”")
    axes.set_ylabel("cumulated change of ‖θ‖²")
    axes.axhline(0, color=GREY, linewidth=0.8)
    if budget is None:
        return
    series, radial, tangential = budget
    for values, colour, line, label in (
        (radial, VERMILION, "--", "radial (along θ)"),
        (tangential, BLUE, "-.", "tangential (across θ)"),
        (radial + tangential, BLACK, "-", rf"both: ‖{AFTER}‖² − ‖$θ_{{\rm first}}$‖²"),
    ):
        axes.plot(series.steps, values, color=colour, linestyle=line, label=label)
    step_axis(axes, series.steps, log_spaced)
    axes.legend(loc="best")


def _draw_exponents(axes: Axes, run: RunTable, log_spaced: bool) -> None:
    for scope, series in _each_scope(run, "exponent"):
        at = between(series)
        axes.plot(at, series.values, "o-", color=_colour(scope), lw=1.3, markersize=3)
        step_axis(axes, series.steps, log_spaced)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_title("Local exponent of the norm")
    axes.set_ylabel(f"ln(‖{AFTER}‖/‖{BEFORE}‖) / ln(t′/t)")


def _draw_exponent_parts(axes: Axes, run: RunTable, log_spaced: bool) -> None:
    scope = run.scopes("exponent")[0]
    for metric, colour, line, label in EXPONENT_PARTS:
        series = run.series(metric, scope)
        if series is not None:
            axes.plot(between(series), series.values, color=colour, linestyle=line, label=label)
            step_axis(axes, series.steps, log_spaced)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_title(f"Its parts by the norm budget: “{scope}”")
    axes.set_ylabel("local exponent")
    axes.legend(loc="best")


def _draw_scopes(axes: Axes, run: RunTable, metric: str, log_spaced: bool) -> None:
    for scope, series in _each_scope(run, metric):
        axes.plot(
            series.steps,
            series.values,
            "o-",
            color=_colour(scope),
            label=scope,
            linewidth=1.3,
            markersize=3,
        )
        step_axis(axes, series.steps, log_spaced)


def _each_scope(run: RunTable, metric: str) -> Iterable[tuple[str, Series]]:
    for scope in run.scopes(metric):
        series = run.series(metric, scope)
        if series is not None:
            yield scope, series


def _suptitle(parent: Figure | SubFigure, run: RunTable, metric: str, text: str) -> bool:
    """Write the title with the spacing that these quantities depend on; return if it is uneven."""
    _, series = run.main_series(metric)
    spacing = describe_spacing(series.spacing)
    title(parent, f"{text}: {shorten(run.name)}   (checkpoints {spacing})")
    return is_log_spaced(series.steps)


def _positive(run: RunTable, metric: str) -> bool:
    return any((series.values > 0).any() for _, series in _each_scope(run, metric))


def _scope_legend(parent: Figure | SubFigure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    parent.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _colour(scope: str) -> str:
    return SCOPE_COLOURS.get(scope, BLACK)
