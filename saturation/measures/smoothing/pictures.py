"""How alike tokens are by depth and through training, beside what is forecast."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from saturation.measures.smoothing.words import depth
from saturation.plots.colours import BLACK, BLUE, GREY, VERMILION, shades
from saturation.plots.panels import Axis, Dash, Line, Mark, Panel, Picture, Rule, Symbol
from saturation.plots.series import STACKS, RunTable, evenly, titled

CHECKPOINTS_SHOWN = 4
READS = (
    "Tokens of a sequence are alike where the cosine between them is near 1; where only |cos| is, "
    "they lie on one line and point both ways. ln(HFC/LFC) is what sets them apart over what they "
    "share: where it rises they part, where it falls they grow alike. The forecast is what the "
    "layer's self-attention, its weights kept, would do a layer in all that are left. No units; "
    "bars are standard errors over sequences."
)
COSINES: tuple[tuple[str, str, Dash, str], ...] = (
    ("token_cosine_abs", VERMILION, "dash", "|cos|"),
    ("token_cosine", BLUE, "solid", "cos"),
    ("token_cosine_centred", GREY, "dot", "cos, mean taken off"),
)
CHANGES: tuple[tuple[str, str, Symbol, str], ...] = (
    ("forecast_change", VERMILION, "diamond", "forecast"),
    ("measured_change", BLACK, "circle", "self-attention did"),
    ("onward_change", BLUE, "square", "layers left did"),
)


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield a row a stack: cosines, HFC/LFC and changes by depth, HFC/LFC by step."""
    stacks = [stack for stack in STACKS if depth(run, stack, "hfc_lfc")]
    if not stacks:
        return
    rows = [list(stack_panels(run, stack)) for stack in stacks]
    yield Picture("smoothing", "Do tokens grow alike with depth?", "Token similarity", READS, rows,
                  on_tokens=True)  # fmt: skip


def compared(run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of the number by which runs are compared."""
    for stack in STACKS[::2]:
        states = depth(run, stack, "token_cosine")
        if states:
            of_last = next(reversed(states.values()))
            steps, values = np.array(list(of_last)), np.array(list(of_last.values()))
            says = f"`token_cosine` at the end of the {stack or 'model'}."
            yield "Token similarity", Line(steps, values), Axis("mean cosine"), says


def stack_panels(run: RunTable, stack: str) -> Iterator[Panel]:
    """Yield the four panels of a stack."""
    names = state_names(run, stack)
    last = shown_steps(run, stack)[-1]
    axis = Axis("depth", "categories", order=names)
    marks: list[Mark] = [Rule(0)]
    for metric, colour, dash, name in COSINES:
        values, error = (by_depth(run, stack, f"{metric}{end}", last) for end in ("", "_stderr"))
        marks.append(_with_bars(names, values, error, name, colour, dash, "circle"))
    says = "Mean over pairs: `token_cosine`, `token_cosine_abs`, `token_cosine_centred`."
    title = titled(stack, f"cosine at step {last:,}")
    yield Panel(title, marks, Axis("mean over pairs of tokens"), axis, says)
    yield ratios(run, stack, axis)
    yield changes(run, stack, last, axis)
    states = depth(run, stack, "hfc_lfc")
    lines = [
        Line(
            np.array(list(at)), np.array(list(at.values())), state, colour, symbol="circle", size=2
        )
        for (state, at), colour in zip(states.items(), shades(len(states)), strict=True)
    ]
    title = titled(stack, "HFC/LFC by step")
    yield Panel(title, lines, Axis("HFC/LFC: low is alike", "log"), says="`hfc_lfc`.")


def ratios(run: RunTable, stack: str, axis: Axis) -> Panel:
    """Return HFC/LFC by depth at up to four checkpoints."""
    steps = shown_steps(run, stack)
    lines = [
        Line(axis.order, by_depth(run, stack, "hfc_lfc", step), f"step {step:,}", colour,
             symbol="circle")
        for step, colour in zip(steps, reversed(shades(len(steps))), strict=True)
    ]  # fmt: skip
    title = titled(stack, "HFC/LFC by depth")
    return Panel(title, lines, Axis("HFC/LFC: low is alike", "log"), axis, "`hfc_lfc`.")


def changes(run: RunTable, stack: str, step: int, axis: Axis) -> Panel:
    """Return forecast and measured changes of ln(HFC/LFC) in each layer at a step."""
    names = state_names(run, stack)
    marks: list[Mark] = [Rule(0)]
    for metric, colour, symbol, name in CHANGES:
        values, error = (by_depth(run, stack, f"{metric}{end}", step) for end in ("", "_stderr"))
        kept = np.flatnonzero(np.isfinite(values))
        if len(kept):
            places = [names[place] for place in kept]
            marks.append(
                _with_bars(places, values[kept], error[kept], name, colour, "none", symbol)
            )
    says = "`forecast_change`, `measured_change` and `onward_change`; above 0 tokens part."
    title = titled(stack, f"change a layer, step {step:,}")
    return Panel(title, marks, Axis("change of ln(HFC/LFC)"), axis, says)


def shown_steps(run: RunTable, stack: str) -> list[int]:
    """Return up to four steps of those measured: the first, the last, and two between."""
    steps = sorted({step for at in depth(run, stack, "hfc_lfc").values() for step in at})
    return evenly(steps, CHECKPOINTS_SHOWN)


def by_depth(run: RunTable, stack: str, metric: str, step: int) -> Float[np.ndarray, " states"]:
    """Return one metric of every state at one step, NaN where it is not there."""
    order = depth(run, stack, "hfc_lfc")
    found = depth(run, stack, metric)
    return np.array([found.get(state, {}).get(step, np.nan) for state in order])


def state_names(run: RunTable, stack: str) -> list[str]:
    """Return what stands under the states: emb, 0, 1, …, norm."""
    return [
        {"embedding": "emb", "final": "norm"}.get(state) or state.rpartition("_")[2]
        for state in depth(run, stack, "hfc_lfc")
    ]


def _with_bars(
    places: list[str],
    values: Float[np.ndarray, " states"],
    error: Float[np.ndarray, " states"],
    name: str,
    colour: str,
    dash: Dash,
    symbol: Symbol,
) -> Line:
    return Line(places, values, name, colour, dash, symbol, 5.0 if dash == "none" else 3.0,
                low=values - error, high=values + error, bars=True)  # fmt: skip
