"""Do tokens grow alike with depth, and was it forecast? A table of the layers, and what to say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saturation.report.series import RunTable

STACKS = ("encoder", "decoder")
_COLUMNS = {  # {heading: (metric, format)}
    "cos": ("token_cosine", ".2f"),
    "|cos|": ("token_cosine_abs", ".2f"),
    "effective rank": ("effective_rank", ".1f"),
    "HFC/LFC": ("hfc_lfc", ".3g"),
    "forecast": ("forecast_change", "+.3f"),
    "attention did": ("measured_change", "+.3f"),
    "layers left did": ("onward_change", "+.3f"),
    "agree": ("onward_agrees", ".0%"),
}


def depth(run: RunTable, stack: str, metric: str) -> dict[str, Mapping[int, float]]:
    """Return {state: {step: value}} of one stack, from the embedding to after the last norm.

    States are named `embedding`, `layers_0`, …, `final`; those without the metric are left out.
    """
    found = run.matching(metric, rf"{stack}/(embedding|layers_\d+|final)")

    def place(scope: str) -> float:
        name = scope.rpartition("/")[2]
        return {"embedding": -1.0, "final": np.inf}.get(name) or float(name.rpartition("_")[2])

    return {
        scope.rpartition("/")[2]: dict(
            zip(found[scope].steps.tolist(), found[scope].values.tolist(), strict=True)
        )
        for scope in sorted(found, key=place)
    }


def holds_from(run: RunTable, stack: str, step: int) -> int | None:
    """Return the layer from which on the forecast has the sign of what the layers left did.

    A layer's forecast holds where it agrees in more than half of the sequences; layers without a
    clear forecast are passed over. None where the last that has one does not agree, or none has.
    """
    first = None
    for layer, agreed in reversed(_agreements(run, stack, step)):
        if not agreed:
            break
        first = layer
    return first


def _agreements(run: RunTable, stack: str, step: int) -> list[tuple[int, bool]]:
    """Return the layers with a clear forecast, by depth, and whether it agrees."""
    by_layer = depth(run, stack, "onward_agrees")
    return [
        (int(layer.rpartition("_")[2]), at[step] > 0.5)
        for layer, at in by_layer.items()
        if step in at
    ]


def smoothing_table(run: RunTable) -> list[str]:
    """Return a table of the last checkpoint, a state a line; empty where nothing was measured."""
    similar = run.matching("token_cosine", r"(encoder|decoder)/embedding")
    if not similar:
        return []
    step = max(int(series.steps[-1]) for series in similar.values())
    lines = [f"{f'tokens at step {step:,}':<22}" + "".join(f"{name:>16}" for name in _COLUMNS)]
    for stack in STACKS:
        columns = [(depth(run, stack, metric), shown) for metric, shown in _COLUMNS.values()]
        for state in columns[0][0]:
            cells = [
                format(values[state][step], shown) if step in values.get(state, {}) else "-"
                for values, shown in columns
            ]
            lines.append(f"{f'{stack}/{state}':<22}" + "".join(f"{cell:>16}" for cell in cells))
    return lines + [say_holds(run, stack, step) for stack in STACKS if depth(run, stack, "hfc_lfc")]


def say_holds(run: RunTable, stack: str, step: int) -> str:
    """Return the sentence on from which layer on the forecast holds."""
    if not _agreements(run, stack, step):
        return f"In the {stack} no layer has a clear forecast."
    first = holds_from(run, stack, step)
    if first is None:
        return f"In the {stack} the forecast does not hold up to the last layer."
    return f"In the {stack} the forecast has the right sign from layer {first} on."


GUIDE = (
    "HFC/LFC is what sets tokens apart over what they share: falling with depth, tokens become "
    "alike (they smooth); rising, they part (they sharpen). Read cosine and |cosine| together: "
    "tokens that part along one line have a cosine near 0 and a |cosine| near 1.",
    "The forecast is by how much ln(HFC/LFC) would move a layer if this layer's self-attention, "
    "its weights kept, acted in all layers left and nothing else did: below 0 smoothing, above 0 "
    "sharpening. Beside it what the self-attention did, once (for the last layer that is the "
    "forecast itself), and what all parts of all layers left did, a layer; `agree` is with that.",
    "In spectrum.png each dot is an eigenvalue λ of a head's value-output matrix, divided by the "
    "root mean square of the layer's input where that was measured. The λ farthest from −1 "
    "decides: right of the disk it makes tokens alike, left of it (below −2) alike again, turning "
    "sign from layer to layer, unless attention has a λ^A far enough below 0. With all λ inside "
    "the disk nothing outgrows what the head leaves alone, and tokens part only where attention "
    "has an eigenvalue below 0 (or a complex one) that makes |1 + λλ^A| exceed 1.",
)
