"""Colours that colour-blind readers tell apart, by what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saturation.plots.panels import Dash
from saturation.plots.series import HEAD_KINDS, stack_of

# Okabe and Ito's palette, told apart under every common colour blindness;
# https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#5F6B76"
RUN_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DOT_GREY = "#A3ADB8"
SCOPE_COLOURS = {
    "blocks": BLACK,
    "encoder": BLUE,
    "decoder": VERMILION,
    "embedding": GREEN,
    "total": PURPLE,
}
HEADS = {  # {kind: (pattern of its heads, colour)}
    kind: (pattern, colour)
    for (kind, pattern), colour in zip(
        HEAD_KINDS.items(), (BLUE, VERMILION, GREEN, BLUE), strict=True
    )
}
# Every ninth of viridis, by which what has an order is coloured: dark comes first.
_VIRIDIS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58",
            "b5de2b", "fde725")  # fmt: skip


def shades(count: int, last: float = 0.9) -> list[str]:
    """Return colours from dark to light, evenly up to `last` of viridis.

    >>> shades(2, 1.0)
    ['#440154', '#fde725']
    """
    anchors = np.array([[int(one[i : i + 2], 16) for i in (0, 2, 4)] for one in _VIRIDIS])
    places = np.linspace(0, last * (len(anchors) - 1), max(count, 1))
    mixed = [np.interp(places, np.arange(len(anchors)), channel) for channel in anchors.T]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.round(mixed).astype(int).T.tolist()]


def layer_looks(scopes: Sequence[str]) -> dict[str, tuple[str, Dash]]:
    """Return {scope: (colour, dash)}: dark next to the input, the decoder's lines dashed."""
    found: dict[str, tuple[str, Dash]] = {}
    stacks: tuple[tuple[str, Dash], ...] = (
        ("encoder", "solid"),
        ("decoder", "dash"),
        ("", "solid"),
    )
    for stack, dash in stacks:
        members = [scope for scope in scopes if stack_of(scope) == stack]
        found |= {m: (c, dash) for m, c in zip(members, shades(len(members)), strict=False)}
    return found
