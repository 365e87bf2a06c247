"""Pictures of the Scan and Snap simulations, from the columns of their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from saturation.plots.colours import BLACK, RUN_COLOURS, VERMILION
from saturation.plots.panels import Axis, HeatMap, Line, Mark, Panel, Picture, Rule, Symbol

Columns = Mapping[str, Shaped[np.ndarray, " rows"]]

SYMBOLS: tuple[Symbol, ...] = ("circle", "square", "diamond", "triangle")


def picture_6(table: Columns) -> Picture:
    """Return entropy against the ratio of learning rates, one panel a number of last tokens."""
    numbers = np.unique(table["last_tokens"])
    ratios = [f"{ratio:g}" for ratio in np.unique(table["eta_y_over_eta_z"])]
    spread = np.nan_to_num(table["entropy_std"])
    low, high = (table["entropy_mean"] - spread).min(), (table["entropy_mean"] + spread).max()
    panels = [
        Panel(
            f"{number} last token{'s' if number > 1 else ''}",
            [*_entropies(_where(table, last_tokens=number))],
            Axis(
                "entropy on distinct tokens (nats)", limits=(float(low) - 0.02, float(high) + 0.02)
            ),
            Axis("learning rate of Y/of Z, η_Y/η_Z", "categories", order=ratios),
        )
        for number in numbers
    ]
    return Picture(
        "figure6",
        "How sparse attention becomes",
        "How sparse attention becomes",
        "Entropy of the attention on distinct tokens after training; low entropy is few tokens. "
        "Bars: one standard deviation over the seeds.",
        [panels],
    )


def _entropies(table: Columns) -> Iterator[Line]:
    for rate, colour, symbol in zip(np.unique(table["eta_z"]), RUN_COLOURS, SYMBOLS, strict=False):
        line = _where(table, eta_z=rate)
        mean, spread = line["entropy_mean"], line["entropy_std"]
        x = [f"{ratio:g}" for ratio in line["eta_y_over_eta_z"]]
        yield Line(
            x, mean, f"η_Z = {rate:g}", colour, symbol=symbol, low=mean - spread,
            high=mean + spread, bars=True,
        )  # fmt: skip


def picture_4(table: Columns) -> Picture:
    """Return what each class attends to, tokens by iterations, one row of panels a rate."""
    peak = float(table["c"].max())
    rows = [
        [
            Panel(
                f"class {of_class}, η_Y = {rate:g}, η_Z = 1",
                [_heat(_where(table, eta_y=rate, **{"class": of_class}), peak)],
                Axis(),
            )
            for of_class in np.unique(table["class"])
        ]
        for rate in np.unique(table["eta_y"])
    ]
    return Picture(
        "figure4",
        "Attention leaves the common tokens and settles on a few distinct ones",
        "What each class attends to",
        "A row a token, the most frequent distinct one on top; a column an iteration.",
        rows,
    )


def _heat(table: Columns, peak: float) -> HeatMap:
    iterations = np.unique(table["iteration"])
    values = table["c"].reshape(len(iterations), -1).T[::-1]
    names = [f"{kind} {token}" for kind, token in zip(table["kind"], table["token"], strict=True)]
    return HeatMap(iterations, names[len(values) - 1 :: -1], values, "c: share of the attention",
                   (0.0, peak))  # fmt: skip


def picture_3(table: Columns) -> Picture:
    """Return the winner's growth, the speed of attention and what is left to learn, by time."""
    rates = np.unique(table["eta_y"])
    columns = [[*_times(_where(table, eta_y=rate), float(rate))] for rate in rates]
    return Picture(
        "figure3",
        "Where classes share one token, theory's γ and t½ hold; where ten, learning lags",
        "Theory beside gradient flow",
        f"{table['classes'][0]:g} classes, {table['size'][0]:g} tokens, η_Z = "
        f"{table['eta_z'][0]:g}. Rules: t₀ = 2K ln M/η_Y; cross: Lemma 3's t½.",
        [*zip(*columns, strict=True)],
    )


def _times(table: Columns, rate: float) -> Iterator[Panel]:
    """Yield one learning rate's growth, speed and residual; a line a number of common tokens."""
    numbers = np.unique(table["common"])
    marks: dict[str, list[Mark]] = {name: [] for name in _LABELS}
    for number, colour in zip(numbers, (RUN_COLOURS[0], BLACK), strict=False):
        of = _where(table, common=number)
        name = f"gradient flow, {number:g} common token{'s' if number > 1 else ''}"
        for column, found in marks.items():
            found.append(Line(of["time"], of[column], name, colour))
    of = _where(table, common=numbers[-1])
    time, bounds = of["time"], f"bounds of χ if C₀ = 1 ({numbers[-1]:g} common)"
    marks["chi"] += [
        Line(time, of[name], bounds, VERMILION, "dot") for name in ("chi_lower", "chi_upper")
    ]
    marks["gamma_simulated"].append(Line(time, of["gamma"], "theory", VERMILION, "dash"))
    marks["residual"].append(
        Line(of["half_time"][:1], np.array([0.5]), "Lemma 3's t½", VERMILION, "none", "cross", 7)
    )
    for name, (label, scale) in _LABELS.items():
        rule = Rule(float(of["snap_time"][0]), "x", "dot")
        title = f"η_Y = {rate:g}"
        yield Panel(title, [*marks[name], rule], Axis(label, scale), Axis("time of gradient flow"))


_LABELS: dict[str, tuple[str, Any]] = {
    "chi": ("χ, the winner's growth", "log"),
    "gamma_simulated": ("γ, attention's speed", "linear"),
    "residual": ("1 − p(next token)", "linear"),
}


def _where(table: Columns, **values: Any) -> dict[str, Shaped[np.ndarray, " matching"]]:
    """Return the rows that have these values."""
    mask = np.all([table[name] == value for name, value in values.items()], axis=0)
    return {name: column[mask] for name, column in table.items()}
