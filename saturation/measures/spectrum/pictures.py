"""Eigenvalues of heads in the complex plane, layer by layer, and through training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Complex128, Int

from saturation.plots.panels import Axis, Dots, HeatMap, Line, Mark, Panel, Picture, Region, Rule
from saturation.plots.series import (
    RunTable,
    evenly,
    in_stack,
    layer_medians,
    on_steps,
    quartiles,
    titled,
)
from saturation.plots.spread import spread_panel

KINDS = {"encoder": "attention", "decoder": "self_attention", "": "attention"}
MOST_LAYERS = 4  # of a stack, in planes of their own
COLUMNS = 4
MOST_DOTS = 4000  # of a plane: as many as can be told apart
PRODUCT = "diag(g) W_V W_O"
AGAIN, PART, ALIKE = "#EADCF4", "#DCEBF7", "#FBE9D7"
REGIONS = (
    Region("all", "|1 + λ| > 1, right: tokens become alike", ALIKE),
    Region("left", "|1 + λ| > 1, left: alike again, turning sign", AGAIN, x=-1),
    Region("disk", "|1 + λ| < 1: not alike; they part if λ^A < 0", PART, x=-1, radius=1),
)
TRENDS = (  # metric, title, axis
    ("fraction_negative", "Share of λ with Re λ < 0", Axis("share")),
    ("spectral_radius", "Largest |λ|", Axis("max |λ|", "log")),
    ("asymmetry", "Asymmetry: 0 symmetric, 1 skew", Axis("asymmetry")),
    ("sharpens_below", "Parts if min λ^A < this; −1: never",
     Axis("threshold", limits=(-1.08, 1.08))),
)  # fmt: skip
ROWS = (  # metric, title, what is shown, what more to say, limits, colours
    ("fraction_negative", "Turned against the stream", "share with Re λ < 0",
     "½ in a random matrix.", (0.0, 1.0), "viridis"),
    ("fraction_sharpening", "Not making tokens alike",
     "share with Re λ in [−1, 0)", "If they are real and the stream's root mean square were 1.",
     (0.0, 1.0), "viridis"),
    ("sharpens_below", "What makes a head sharpen", "the threshold of λ^A_min",
     "If the stream's root mean square were 1 and λ^A real. "
     "−1, red: the head sharpens under none; 0: under any that has a λ^A below 0.",
     (-1.0, 1.0), "RdBu"),
)  # fmt: skip
READS = (
    f"λ are the eigenvalues of what a head adds to the stream, {PRODUCT} (no unit). A head "
    "sharpens, setting tokens apart, where the smallest eigenvalue λ^A_min of its attention lies "
    "below a threshold; else it makes them alike or, with all λ in [−1, 0), does neither. Rows "
    "are medians over a layer's heads."
)


def pictures(run: RunTable) -> Iterator[Picture]:
    """Yield planes of layers, and fractions and thresholds by step, where there are any."""
    stacks = [s for s in KINDS if len(run.eigenvalues) and layers_of(run, s)]
    rows: list[Sequence[Panel]] = [[stack_plane(run, s) for s in stacks]] if stacks else []
    shown = [(s, layer) for s in stacks for layer in evenly(layers_of(run, s), MOST_LAYERS)]
    planes = [layer_plane(run, stack, layer) for stack, layer in shown]
    rows += [planes[start : start + COLUMNS] for start in range(0, len(planes), COLUMNS)]
    medians = [panel for row in ROWS if (panel := heat_map(run, *row)) is not None]
    trends = [
        panel
        for metric, title, axis in TRENDS
        if (panel := spread_panel(run, metric, title, axis)) is not None
    ]
    rows += [row for row in (medians, trends[:2], trends[2:]) if row]
    if rows:
        title = f"Do heads smooth or sharpen? Eigenvalues λ of {PRODUCT}"
        yield Picture("spectrum", title, "Spectrum of heads", READS, rows)


def compared(run: RunTable) -> Iterator[tuple[str, Line, Axis, str]]:
    """Yield (title, line, axis, what it is) of the number by which runs are compared."""
    heads = list(run.matching("sharpens_below", r".*/head_\d+").values())
    if heads:
        steps, spread = quartiles(heads)
        axis = Axis("sharpens_below", limits=(-1.06, 1.06))
        says = "`sharpens_below`, median over heads: −1: the head sharpens under no attention."
        yield "Threshold of heads", Line(steps, spread[1]), axis, says


def heat_map(
    run: RunTable, metric: str, title: str, label: str, says: str, limits: tuple[float, float],
    colours: str,
) -> Panel | None:  # fmt: skip
    """Return the medians over each layer's heads, a row a layer; None where there are none."""
    rows = layer_medians(run, metric)
    if not rows:
        return None
    steps, values = on_steps(list(rows.values()))
    scale = "RdBu" if colours == "RdBu" else "viridis"
    heat = HeatMap(steps, list(rows), values, label, limits, scale)
    return Panel(title, [heat], Axis(), says=f"`{metric}`: {label}. {says}", wide=True)


def stack_plane(run: RunTable, stack: str) -> Panel:
    """Return the eigenvalues of all of a stack's layers at their last step."""
    layers = layers_of(run, stack)
    step = max(eigenvalue_rows(run, stack)["step"].tolist())
    return _plane(run, stack, layers, step, titled(stack, "eigenvalues of self-attention"), False)


def layer_plane(run: RunTable, stack: str, layer: int) -> Panel:
    """Return the eigenvalues of one layer at its last step."""
    rows = eigenvalue_rows(run, stack, layer)
    return _plane(
        run, stack, [layer], max(rows["step"].tolist()), f"{stack} layer {layer}".strip(), True
    )


def _plane(
    run: RunTable, stack: str, layers: Sequence[int], step: int, title: str, dense: bool
) -> Panel:
    found = [effective(run, stack, layer, step) for layer in layers]
    values = np.concatenate([one for one, _ in found])
    by = np.repeat(layers, [len(one) for one, _ in found])
    shown = thinned(values)
    reach, outside = window(values)
    dots = Dots(np.real(values[shown]), np.imag(values[shown]), by[shown], "layer")
    scale = scaled_by([known for one, known in found if len(one)])
    says = f"Step {step:,}; {scale} of the layer's input; {len(values):,} eigenvalues"
    if len(shown) < len(values):
        says += f", {len(shown):,} of them drawn"
    if outside:
        says += f", {outside:,} farther out"
    marks: list[Mark] = [*REGIONS, Rule(0), Rule(0, "x"), dots]
    limits = (-reach, reach)
    return Panel(title, marks, Axis("Im λ", limits=limits), Axis(f"Re {scale}", limits=limits),
                 f"{says}. The λ farthest from −1 decides.", 4.4 if not dense else 3.0,
                 equal=True, dense=dense)  # fmt: skip


def layers_of(run: RunTable, stack: str) -> list[int]:
    """Return the layers of a stack whose eigenvalues are there, by depth."""
    found = eigenvalue_rows(run, stack)["scope"].str.extract(r"layers_(\d+)/")[0]
    return sorted({int(layer) for layer in found})


def eigenvalue_rows(run: RunTable, stack: str, layer: int | None = None) -> pd.DataFrame:
    """Return the rows of `load_vectors` for a stack's self-attention, or for one layer's."""
    number = r"\d+" if layer is None else str(layer)
    pattern = in_stack(stack, rf"layers_{number}/{KINDS[stack]}/head_\d+")
    return run.eigenvalues.loc[run.eigenvalues["scope"].str.fullmatch(pattern)]


def effective(
    run: RunTable, stack: str, layer: int, step: int
) -> tuple[Complex128[np.ndarray, " eigenvalues"], bool]:
    """Return all heads' λ of a layer at a step, and whether they are divided by its input's rms.

    That is known where `smoothing` was measured at that step; else they are as the weights say.
    """
    rows = eigenvalue_rows(run, stack, layer)
    rows = rows[rows["step"] == step]
    real, imaginary = (np.concatenate([[], *rows[part]]) for part in ("real", "imaginary"))
    if len(rows) and not len(real):
        # What heads add is normalised behind W_O, so that only H without g is known.
        parts = ("real_unscaled", "imaginary_unscaled")
        real, imaginary = (np.concatenate([[], *rows[part]]) for part in parts)
    # The norms of other models than T5 divide by other numbers, or there is none before the values.
    before = f"{stack}/layers_{layer - 1}" if layer else f"{stack}/embedding"
    rms = run.series("token_rms", before) if stack else None
    scale = np.nan if rms is None else rms.at(step)
    known = bool(np.isfinite(scale))
    return (real + 1j * imaginary) / (scale if known else 1.0), known


def window(values: Complex128[np.ndarray, " eigenvalues"]) -> tuple[float, int]:
    """Return how far from 0 a square must reach to show nearly all, and how many lie outside."""
    size = np.maximum(np.abs(np.real(values)), np.abs(np.imag(values)))
    size = size[np.isfinite(size)]
    reach = max(2.4, 1.05 * float(np.quantile(size, 0.98))) if len(size) else 2.4
    return reach, int((size > reach).sum())


def scaled_by(divided: Sequence[bool]) -> str:
    """Return what eigenvalues are, some of which `effective` divided by the rms and some not."""
    if all(divided):
        return "λ/rms"
    return "λ (/rms where measured)" if any(divided) else "λ (rms not measured)"


def thinned(values: Complex128[np.ndarray, " eigenvalues"]) -> Int[np.ndarray, " shown"]:
    """Return which eigenvalues to draw where they are too many: evenly by |1 + λ|, both ends kept.

    The one farthest from −1 decides what a head does, so it must not be thinned away.
    """
    order = np.argsort(np.abs(1 + values), kind="stable")
    return np.sort(np.array(evenly(order.tolist(), MOST_DOTS), int))
