"""How saturated each layer is through training, and how many positions each head attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, MaxNLocator

from saturation.report.series import HEAD_KINDS, RunTable, Series, on_steps
from saturation.report.style import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    is_log_spaced,
    log_values,
    shorten,
    step_axis,
    title,
)

COSINES = {
    "cosine_attention_limit": "attention at τ = 0",
    "cosine_parameter_limit": "parameter limit, c → ∞",
    "cosine_scaled": "f(x; cθ), finite c",
}
LAYER = r"(encoder|decoder)/(layers_\d+|final)"
HEADS = {  # {kind: (pattern of its heads, colour)}
    kind: (pattern, colour)
    for (kind, pattern), colour in zip(HEAD_KINDS.items(), (BLUE, VERMILION, GREEN), strict=True)
}
ARGMAX_LIKE = 1.5  # positions: nearer to one key than to two
MEAN_LIKE = 0.5  # of the allowed keys: nearer to all of them than to none
ROLES = (f"argmax-like: n < {ARGMAX_LIKE}", "mean-like: n > half of allowed keys")
BINS = 24
COSINE_RANGE = 0.0, 1.0


def draw_saturation(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw each layer's cosine to each limit against the step, as a heat map and as curves."""
    limits = [metric for metric in COSINES if run.layers(metric)]
    title(parent, f"Saturation: cosine of each layer to its limit: {shorten(run.name)}")
    panels = parent.subplots(2, len(limits), squeeze=False, sharey="row")
    for (heat, curves), metric in zip(panels.T, limits, strict=True):
        layers = ordered_layers(run.matching(metric, LAYER))
        _heat_map(heat, layers)
        heat.set_title(f"Limit: {COSINES[metric]}")
        curves.set_title(f"Curves: {COSINES[metric]}")
        _curves(curves, layers)
    scale = ScalarMappable(Normalize(*COSINE_RANGE), "viridis")
    parent.colorbar(scale, ax=list(panels[0]), label="mean cos(h, h′) over tokens", pad=0.01)
    handles, labels = panels[1, 0].get_legend_handles_labels()
    parent.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))


def ordered_layers(found: Mapping[str, Series]) -> dict[str, Series]:
    """Return layers by stack and depth, the state after a stack's last norm behind its layers."""

    def place(scope: str) -> tuple[bool, float]:
        stack, _, name = scope.partition("/")
        number = name.removeprefix("layers_")
        return stack != "encoder", float(number) if number.isdigit() else np.inf

    return {scope: found[scope] for scope in sorted(found, key=place)}


def layer_lines(scopes: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Return {scope: (colour, line style)}: dark next to the input, the decoder's lines dashed."""
    found = {}
    for stack, line in (("encoder", "-"), ("decoder", "--")):
        members = [scope for scope in scopes if scope.startswith(stack)]
        colours = colormaps["viridis"](np.linspace(0.0, 0.9, max(len(members), 1)))
        found |= {m: (colour, line) for m, colour in zip(members, colours, strict=False)}
    return found


def shares(
    positions: Float[np.ndarray, "heads steps"], fraction: Float[np.ndarray, "heads steps"]
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Return the shares of heads that are argmax-like and mean-like at each step.

    Argmax-like: fewer than 1.5 positions on average. Mean-like: more than half of those allowed,
    and not argmax-like, as a head of very short sequences may be.
    """
    measured = np.maximum(np.isfinite(positions).sum(axis=0), 1)
    argmax_like = positions < ARGMAX_LIKE
    mean_like = (fraction > MEAN_LIKE) & ~argmax_like
    return argmax_like.sum(axis=0) / measured, mean_like.sum(axis=0) / measured


def roles(
    run: RunTable, pattern: str = r".*/head_\d+"
) -> tuple[np.ndarray, dict[str, Float[np.ndarray, " steps"]], int] | None:
    """Return the steps, {role: its share of the heads}, and how many heads there are.

    None where that was not measured of the heads of this pattern.
    """
    positions = run.matching("positions_mean", pattern)
    fractions = run.matching("positions_fraction", pattern)
    heads = [scope for scope in positions if scope in fractions]
    if not heads:
        return None
    steps, n = on_steps([positions[scope] for scope in heads])
    _, fraction = on_steps([fractions[scope] for scope in heads])
    return steps, dict(zip(ROLES, shares(n, fraction), strict=True)), len(heads)


def draw_heads(parent: Figure | SubFigure, run: RunTable) -> None:
    """Draw positions attended by every head, the shares of both roles, a histogram, entropy."""
    panels = parent.subplots(2, 2)
    title(parent, f"What heads attend to at τ = 0: {shorten(run.name)}")
    _positions(panels[0, 0], run)
    _roles(panels[0, 1], run)
    _histogram(panels[1, 0], run)
    _entropy(panels[1, 1], run)
    handles, labels = panels[1, 1].get_legend_handles_labels()
    parent.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _heat_map(axes: Axes, layers: Mapping[str, Series]) -> None:
    steps, values = on_steps(list(layers.values()))
    low, high = COSINE_RANGE
    edges = np.arange(len(steps) + 1), np.arange(len(layers) + 1)
    axes.pcolormesh(*edges, values, cmap="viridis", vmin=low, vmax=high)
    axes.set_yticks(np.arange(len(layers)) + 0.5, list(layers), fontsize=8)
    axes.set_ylim(len(layers), 0)
    shown = np.unique(np.linspace(0, len(steps) - 1, 6).astype(int))
    axes.set_xticks(shown + 0.5, [EngFormatter(sep="")(float(steps[index])) for index in shown])
    axes.set_xlabel("training step, a column each")
    axes.set_ylabel("layer")
    axes.grid(False)


def _curves(axes: Axes, layers: Mapping[str, Series]) -> None:
    for scope, (colour, line) in layer_lines(list(layers)).items():
        series = layers[scope]
        axes.plot(series.steps, series.values, line, color=colour, label=scope, lw=1.3)
        step_axis(axes, series.steps, is_log_spaced(series.steps))
    axes.set_ylabel("mean cos(h, h′)")


def _positions(axes: Axes, run: RunTable) -> None:
    for pattern, colour in HEADS.values():
        for scope, series in run.matching("positions_mean", pattern).items():
            axes.plot(series.steps, series.values, color=colour, alpha=0.6, lw=1, label=scope)
            step_axis(axes, series.steps, is_log_spaced(series.steps))
    log_values(axes)
    axes.set_title("Positions attended by every head")
    axes.set_ylabel("mean number of keys")


def _roles(axes: Axes, run: RunTable) -> None:
    found = roles(run)
    if found is None:
        return
    steps, by_role, _ = found
    for (label, share), line in zip(by_role.items(), ("-", "--"), strict=True):
        axes.plot(steps, 100 * share, line, color=GREY, marker="o", markersize=3, label=label)
    step_axis(axes, steps, is_log_spaced(steps))
    axes.set_ylim(-4, 104)
    axes.set_title("Roles of heads")
    axes.set_ylabel("% of heads")
    axes.legend()


def _histogram(axes: Axes, run: RunTable) -> None:
    every = list(run.matching("positions_mean", r".*/head_\d+").values())
    steps, values = on_steps(every)
    bins = np.linspace(1, max(2.0, float(np.nanmax(values))), BINS + 1)
    for column, fill, label in ((0, False, "first"), (-1, True, "last")):
        axes.hist(
            values[np.isfinite(values[:, column]), column],
            bins=bins.tolist(),
            histtype="stepfilled" if fill else "step",
            color=BLUE if fill else GREY,
            alpha=0.7,
            label=f"{label} checkpoint, step {steps[column]:,}",
        )
    axes.set_title("Histogram of positions attended")
    axes.set_xlabel("mean number of keys of a head")
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylabel("heads")
    axes.legend()


def _entropy(axes: Axes, run: RunTable) -> None:
    for kind, (pattern, colour) in HEADS.items():
        found = list(run.matching("entropy", pattern).values())
        if found:
            steps, values = on_steps(found)
            axes.plot(
                steps, np.nanmean(values, axis=0), "o-", color=colour, markersize=3, label=kind
            )
            step_axis(axes, steps, is_log_spaced(steps))
    axes.set_title("Entropy of the weights at τ = 1, mean over heads")
    axes.set_ylabel("nats")
