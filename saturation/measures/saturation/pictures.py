"""How near each layer is to its limits: by depth at the end, and through training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from saturation.measures.saturation.words import COSINES
from saturation.plots.colours import BLUE, GREEN, VERMILION, layer_looks
from saturation.plots.panels import Axis, Dash, HeatMap, Line, Panel, Picture, Symbol
from saturation.plots.series import LAYER, RunTable, on_steps, ordered_layers, stack_of

COSINE_RANGE = 0.0, 1.0
COSINE = "mean cos(h, h′)"
READS = (
    "Cosine between a layer's output h and what it would be in a limit, h′, mean over tokens; it "
    "has no unit, and 1 is a saturated layer. At τ = 0 heads attend to their highest scores alone; "
    "in the parameter limit all parameters grow, c → ∞; a finite c stops on the way there."
)
_COLOURS = dict(zip(COSINES, (BLUE, VERMILION, GREEN), strict=True))
_STACKS: dict[str, Dash] = {"encoder": "solid", "decoder": "dash", "": "solid"}
_SYMBOLS: dict[str, tuple[Symbol, Symbol]] = {  # filled, and open for a finite c
    "encoder": ("circle", "open circle"),
    "decoder": ("diamond", "open diamond"),
    "": ("circle", "open circle"),
}


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield the cosines of every layer to each limit, where there are any."""
    limits = [metric for metric in COSINES if run.matching(metric, LAYER)]
    if not limits:
        return
    rows: list[Sequence[Panel]] = [(depth_panel(run, limits),)]
    if len(run.steps) > 1:
        rows += [[heat_map(run, limit) for limit in limits], [curves(run, one) for one in limits]]
    yield Picture("saturation", "Saturation: cosine of each layer to its limit", "Saturation",
                  READS, rows, on_tokens=True)  # fmt: skip


def depth_panel(run: RunTable, limits: Sequence[str]) -> Panel:
    """Return the cosines of every layer at the last step that has any, by depth."""
    found = {metric: run.matching(metric, LAYER) for metric in limits}
    last = max(int(one.steps[-1]) for layers in found.values() for one in layers.values())
    order: list[str] = []
    lines, errors_known = [], False
    for metric, layers in found.items():
        errors = run.matching(f"{metric}_stderr", LAYER)
        for stack in _STACKS:
            members = ordered_layers({s: one for s, one in layers.items() if stack_of(s) == stack})
            values = np.array([one.at(last) for one in members.values()])
            if not np.isfinite(values).any():
                continue
            places = [_place(scope) for scope in members]
            order += [place for place in places if place not in order]
            bars = np.array([errors[s].at(last) if s in errors else np.nan for s in members])
            known = bool(np.isfinite(bars).any())
            errors_known |= known
            lines.append(_line(metric, stack, places, values, bars if known else None))
    order.sort(key=lambda place: float(place) if place.isdigit() else np.inf)
    says = "Bars: standard error over sequences." if errors_known else ""
    axis = Axis("layer (norm: behind the last norm of a stack)", "categories", order=order)
    return Panel(f"Each layer at step {last:,}", lines, Axis(COSINE), axis, says, 3.8, wide=True)


def heat_map(run: RunTable, metric: str) -> Panel:
    """Return the cosine of every layer, a row, at every step, a column."""
    layers = ordered_layers(run.matching(metric, LAYER))
    steps, values = on_steps(list(layers.values()))
    says = f"Colour: `{metric}`. final: behind the last norm of a stack."
    heat = HeatMap(steps, list(layers), values, COSINE, COSINE_RANGE)
    return Panel(f"Limit: {COSINES[metric]}", [heat], Axis(), says=says)


def curves(run: RunTable, metric: str) -> Panel:
    """Return the cosine of every layer through training, a line each."""
    layers = ordered_layers(run.matching(metric, LAYER))
    lines = [
        Line(layers[scope].steps, layers[scope].values, scope, colour, dash)
        for scope, (colour, dash) in layer_looks(list(layers)).items()
    ]
    return Panel(f"Curves: {COSINES[metric]}", lines, Axis(COSINE), dense=True)


def compared(run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of the numbers by which runs are compared."""
    found = list(run.matching("cosine_attention_limit", LAYER).values())
    if found:
        steps, values = on_steps(found)
        says = "`cosine_attention_limit`, mean over layers."
        line = Line(steps, np.nanmean(values, axis=0))
        yield "Saturation of attention", line, Axis(COSINE), says


def _line(
    metric: str, stack: str, places: Sequence[str], values: np.ndarray, bars: np.ndarray | None
) -> Line:
    """Return a stack's line; a finite c is most often on the line of its limit, so only symbols."""
    finite = metric == "cosine_scaled"
    return Line(
        places,
        values,
        f"{stack}, {COSINES[metric]}" if stack else COSINES[metric],
        _COLOURS[metric],
        "none" if finite else _STACKS[stack],
        _SYMBOLS[stack][finite],
        7.0 if finite else 4.0,
        low=None if bars is None else values - bars,
        high=None if bars is None else values + bars,
        bars=True,
    )


def _place(scope: str) -> str:
    """Return what stands under a layer: its number, or "norm" behind a stack's last norm."""
    name = scope.rpartition("/")[2]
    return "norm" if name == "final" else name.removeprefix("layers_")
