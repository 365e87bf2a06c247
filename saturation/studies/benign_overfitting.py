"""A transformer that overfits noise harmlessly, or not, as the signal is strong or weak.

Jiang et al. 2024 (arXiv 2409.19345): one layer of attention over image patches, one of which
carries the label, trained to a loss near 0 by gradient descent. Where N·SNR² is large the test loss
is small (benign overfitting), where it is small the test loss stays of constant order (harmful).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64
from scipy.special import expit, softmax

from saturation.plots.colours import BLUE, GREEN, VERMILION
from saturation.plots.panels import Axis, HeatMap, Line, Panel, Picture, Rule
from saturation.studies.base import Claimed, Part, Results, Row, Stacked, Study, claim, control
from saturation.studies.numerics import log_slope

PATCHES, HIDDEN, TESTED = 3, 16, 400
STOPPED = 0.01  # mean training loss at which training ends
MOST_STEPS = 2000
LOSS, ERROR = 0.2, 0.1  # test loss and test error at which a regime ends
SNR = np.geomspace(0.08, 1.6, 9)
SAMPLES = (4, 8, 16, 32, 64)
WIDTHS = (100, 400, 1600)
WIDE, NARROW = 800, 200

Patches = Float64[np.ndarray, "samples patches width"]
Attention = Literal["trained", "frozen"]
Labels = Float64[np.ndarray, " samples"]


@dataclass(frozen=True)
class Cells:
    """Cells of one number of samples and one width, over all signal-to-noise ratios.

    Attributes:
      width: d, entries of a patch.
      samples: N, for training.
      attention: trained with the rest, or frozen where it starts: near uniform.
      labels: by the signal, or drawn apart from it.
    """

    width: int
    samples: int
    attention: Attention = "trained"
    labels: Literal["signal", "random"] = "signal"


@dataclass
class Model:
    """f(X) = 1/M Σ_l softmax(x_lᵀ W_Q W_Kᵀ Xᵀ) X v, with v = W_V w_O."""

    query: Float64[np.ndarray, "width hidden"]
    key: Float64[np.ndarray, "width hidden"]
    value: Float64[np.ndarray, " width"]

    @classmethod
    def draw(cls, width: int, generator: np.random.Generator) -> Model:
        """Return small Gaussian weights, whose first scores are about 0.3."""
        scale = 0.02 * np.sqrt(200 / width)
        query, key = scale * generator.standard_normal((2, width, HIDDEN))
        return cls(query, key, 0.01 / np.sqrt(width) * generator.standard_normal(width))

    def attend(self, patches: Patches) -> Float64[np.ndarray, "samples query patches"]:
        """Return the attention of each patch."""
        scores = (patches @ self.query) @ (patches @ self.key).transpose(0, 2, 1)
        return softmax(scores, axis=-1)

    def descend(self, patches: Patches, labels: Labels, rate: float, attention: bool) -> float:
        """Take a step of gradient descent on the sum of logistic losses; return their mean."""
        weights = self.attend(patches)
        of_patch = patches @ self.value
        margin = labels * (weights.mean(axis=1) * of_patch).sum(axis=-1)
        slope = -labels * expit(-margin)  # dLoss/df of each sample
        mixed = (weights.mean(axis=1)[:, None] @ patches)[:, 0]
        if attention:
            apart = of_patch[:, None] - (weights @ of_patch[..., None])
            of_scores = slope[:, None, None] / PATCHES * weights * apart
            left, right = patches @ self.query, patches @ self.key
            of_query = np.einsum("nld,nlh->dh", patches, of_scores @ right, optimize=True)
            turned = of_scores.transpose(0, 2, 1)
            of_key = np.einsum("nld,nlh->dh", patches, turned @ left, optimize=True)
            self.query -= rate * of_query
            self.key -= rate * of_key
        self.value -= rate * slope @ mixed
        return float(np.logaddexp(0, -margin).mean())

    def judge(self, patches: Patches, labels: Labels) -> tuple[float, float, float]:
        """Return the mean logistic loss, the share of errors, and the attention to patch 0."""
        weights = self.attend(patches).mean(axis=1)
        margin = labels * (weights * (patches @ self.value)).sum(axis=-1)
        loss = np.logaddexp(0, -margin).mean()
        return float(loss), float((margin <= 0).mean()), float(weights[:, 0].mean())


def draw_data(
    row: Cells, samples: int, snr: float, generator: np.random.Generator
) -> tuple[Patches, Labels]:
    """Return patches, the first the signal μ₊ = SNR·√d·e₀ or μ₋ = SNR·√d·e₁, and labels ±1.

    The other patches are N(0, 1) noise without a part along e₀ and e₁.
    """
    signs = np.where(np.arange(samples) % 2, -1.0, 1.0)
    patches = generator.standard_normal((samples, PATCHES, row.width))
    patches[..., :2] = 0
    patches[:, 0] = 0
    patches[np.arange(samples), 0, (signs < 0).astype(int)] = snr * np.sqrt(row.width)
    labels = generator.permutation(signs) if row.labels == "random" else signs
    return patches, labels


def train(row: Cells, snr: float, generator: np.random.Generator) -> dict[str, float]:
    """Return how a model that was trained to the loss `STOPPED` does on new samples."""
    patches, labels = draw_data(row, row.samples, snr, generator)
    unseen, unseen_labels = draw_data(row, TESTED, snr, generator)
    model = Model.draw(row.width, generator)
    # A change of time scale: one rate would explode where signal and N are large.
    rate = PATCHES**2 / (row.width * PATCHES + row.samples * snr**2 * row.width / 2)
    at_start = model.judge(patches, labels)[0]
    loss, steps = at_start, 0
    while loss > STOPPED and steps < MOST_STEPS:
        loss = model.descend(patches, labels, rate, row.attention == "trained")
        steps += 1
    test_loss, test_error, to_signal = model.judge(unseen, unseen_labels)
    return {
        "untrained_loss": at_start,
        "train_loss": loss,
        "test_loss": test_loss,
        "test_error": test_error,
        "to_signal": to_signal,
    }


def simulate(row: Cells, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield {quantity: (SNR,)} of each seed."""
    for seed in seeds:
        generators = [np.random.default_rng([seed, cell]) for cell in range(len(SNR))]
        cells = [train(row, snr, one) for snr, one in zip(SNR, generators, strict=True)]
        yield {name: np.array([cell[name] for cell in cells]) for name in cells[0]}


def crossing(values: Float[np.ndarray, " snr"], level: float) -> float:
    """Return the SNR at which values fall below a level, interpolated in ln SNR; NaN for nowhere.

    >>> round(crossing(np.linspace(1, 0, 9), 0.5), 3) == round(float(SNR[4]), 3)
    True
    """
    below = np.flatnonzero(values < level)
    if not len(below) or below[0] == 0:
        return float("nan")
    after, before = values[below[0]], values[below[0] - 1]
    share = (before - level) / (before - after)
    at = np.log(SNR[below[0] - 1]) + share * np.log(SNR[below[0]] / SNR[below[0] - 1])
    return float(np.exp(at))


# --- the study ----------------------------------------------------------------------------------

CLAIMED: dict[Attention, Claimed] = {"trained": "yes", "frozen": "no"}
OVER_SAMPLES = {
    attention: [Cells(WIDE, samples, attention) for samples in SAMPLES] for attention in CLAIMED
}
OVER_WIDTHS = {
    attention: [Cells(width, 16, attention) for width in WIDTHS] for attention in CLAIMED
}
EXAMPLE = Cells(NARROW, 32)
FROZEN = Cells(NARROW, 32, "frozen")
RANDOM = Cells(NARROW, 32, labels="random")
ALL = [
    *(row for group in (OVER_SAMPLES, OVER_WIDTHS) for rows in group.values() for row in rows),
    EXAMPLE,
    FROZEN,
    RANDOM,
]


def _crossings(
    results: Results, rows: Sequence[Cells], name: str, level: float
) -> Float64[np.ndarray, "rows seeds"]:
    return np.array([[crossing(one, level) for one in results[row][name]] for row in rows])


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: boundaries, the two regimes, attention, and what must not pass."""
    taken = {row: part for row, part in results.items() if row.labels == "signal"}
    worst = np.max([part["train_loss"].max(axis=1) for part in taken.values()], axis=0)
    yield claim("largest training loss", "every cell", worst, (0, STOPPED))
    start = np.min([part["untrained_loss"].min(axis=1) for part in taken.values()], axis=0)
    yield control("smallest training loss", "before training", start, (0, STOPPED))
    yield from _judge_boundaries(results)
    yield from _judge_regimes(results)
    yield from _judge_attention(results)


def _judge_boundaries(results: Results) -> Iterator[Row]:
    for attention, claimed in CLAIMED.items():
        rows, where = OVER_SAMPLES[attention], f"d = {WIDE}, attention {attention}"
        found = _crossings(results, rows, "test_loss", LOSS)
        slopes = log_slope(np.array(SAMPLES), found)
        what = "d ln SNR*/d ln N, SNR* where the test loss is 0.2"
        yield claim(what, where, slopes, (-0.58, -0.42), "−0.5", claimed)
        constants = np.array(SAMPLES)[:, None] * found**2
        ratios = constants.max(axis=0) / constants.min(axis=0)
        yield claim("N·SNR*², largest over smallest", where, ratios, (1, 1.8), "1", claimed)
        if attention == "trained":
            # Boundaries at N·SNR⁴ or N·SNR would have these slopes.
            yield control(f"{what}: that of N·SNR⁴", where, slopes, (-0.33, -0.17), "−0.25")
            yield control(f"{what}: that of N·SNR", where, slopes, (-1.08, -0.92), "−1")
        errors = log_slope(np.array(SAMPLES), _crossings(results, rows, "test_error", ERROR))
        what = "d ln SNR*/d ln N, SNR* where the test error is 0.1"
        yield claim(what, where, errors, (-0.31, -0.19), "−0.25", "no")
    for attention, claimed in CLAIMED.items():
        rows, where = OVER_WIDTHS[attention], f"N = 16, attention {attention}"
        slopes = log_slope(np.array(WIDTHS), _crossings(results, rows, "test_loss", LOSS))
        what = "d ln SNR*/d ln d, SNR* where the test loss is 0.2"
        yield claim(what, where, slopes, (-0.05, 0.05), "0", claimed)
        errors = log_slope(np.array(WIDTHS), _crossings(results, rows, "test_error", ERROR))
        what = "d ln SNR*/d ln d, SNR* where the test error is 0.1"
        yield claim(what, where, errors, (-np.inf, -0.1), "−0.25", "no")


def _judge_regimes(results: Results) -> Iterator[Row]:
    few, many = results[OVER_SAMPLES["trained"][0]], results[OVER_SAMPLES["trained"][-1]]
    where = f"N = {SAMPLES[-1]}, d = {WIDE}, SNR = {SNR[-1]:.2g}"
    yield claim("test loss, benign", where, many["test_loss"][:, -1], (0, LOSS))
    where = f"N = {SAMPLES[0]}, d = {WIDE}, SNR = {SNR[0]:.2g}"
    harmful = few["test_loss"][:, 0]
    yield claim("test loss, harmful", where, harmful, (0.5, np.inf))
    yield control("test loss, benign", where, harmful, (0, LOSS))
    least = results[RANDOM]["test_loss"].min(axis=1)
    where = f"N = 32, d = {NARROW}, labels apart from the signal"
    yield control("smallest test loss over SNR, benign", where, least, (0, LOSS))


def _judge_attention(results: Results) -> Iterator[Row]:
    strong, weak = SNR >= 0.36, SNR <= 0.17
    example = results[EXAMPLE]["to_signal"]
    where = f"N = 32, d = {NARROW}, SNR ≥ 0.36"
    what = "attention to the signal's patch, from 0.33"
    yield claim(what, where, example[:, strong].min(axis=1), (0.45, 1))
    frozen = results[FROZEN]["to_signal"][:, strong].min(axis=1)
    yield control(what, f"{where}, attention frozen", frozen, (0.45, 1))
    where = f"N = 32, d = {NARROW}, SNR ≤ 0.17"
    yield claim(what, where, example[:, weak].max(axis=1), (0, 0.35))
    yield control(what, where, example[:, weak].max(axis=1), (0.45, 1))


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the map of test losses, the boundary, and the attention."""
    rows = OVER_SAMPLES["trained"]
    losses = np.array([results[row]["test_loss"].mean(axis=0) for row in rows])
    names = [f"N = {row.samples}" for row in rows]
    heat = HeatMap(SNR, names, losses, "test loss", (0, 1), columns="SNR")
    sizes = np.array(SAMPLES, float)
    boundary = []
    for colour, level, name, text in (
        (BLUE, LOSS, "test_loss", "test loss 0.2"),
        (VERMILION, ERROR, "test_error", "test error 0.1"),
    ):
        found = np.exp(np.log(_crossings(results, rows, name, level)).mean(axis=1))
        boundary.append(Line(sizes, found, text, colour, symbol="circle"))
        power = -0.5 if name == "test_loss" else -0.25
        law = found[0] * (sizes / sizes[0]) ** power
        boundary.append(Line(sizes, law, f"∝ N^{power}", colour, "dot"))
    yield Picture(
        "benign_overfitting",
        "From harmful to benign overfitting: N·SNR² decides the test loss",
        "Harmful and benign",
        "Every cell is trained to a loss of 0.01. Left: mean test loss of new samples; right: the "
        "SNR at which test loss and test error fall below their levels.",
        [
            [
                Panel(f"test loss, d = {WIDE}", [heat], Axis()),
                Panel(
                    "where the regimes meet",
                    boundary,
                    Axis("SNR*", "log"),
                    Axis("training samples N", "log"),
                    legend=True,
                ),
            ],
            [_losses(results), _attention(results[EXAMPLE], results[FROZEN])],
        ],
    )


def _losses(results: Results) -> Panel:
    shown = {"labels by the signal": (EXAMPLE, BLUE), "labels apart from it": (RANDOM, VERMILION)}
    lines = [
        Line(SNR, results[row]["test_loss"].mean(axis=0), name, colour, symbol="circle")
        for name, (row, colour) in shown.items()
    ]
    title = f"test loss, d = {NARROW}, N = 32"
    return Panel(title, [*lines, Rule(LOSS, dash="dot")], Axis(), Axis("SNR", "log"), legend=True)


def _attention(trained: Stacked, frozen: Stacked) -> Panel:
    lines = [
        Line(SNR, part["to_signal"].mean(axis=0), name, colour, symbol="circle")
        for part, name, colour in ((trained, "trained", BLUE), (frozen, "frozen", GREEN))
    ]
    title = "attention to the signal's patch"
    return Panel(title, lines, Axis(limits=(0, 1)), Axis("SNR", "log"), legend=True)


STUDY = Study(
    name="benign-overfitting",
    title="When overfitting does no harm",
    paper="Jiang et al., Unveil Benign Overfitting for Transformer in Vision, NeurIPS 2024, "
    "arXiv 2409.19345",
    reads="A layer of attention over three patches, one with the signal, is trained to a loss of "
    "0.01 for each number of samples N and signal-to-noise ratio SNR. The boundary of a small test "
    "loss lies at constant N·SNR², that of a small test error does not. The exponent says nothing "
    "about attention: with attention frozen it is about the same.",
    parts=lambda seeds, full: dict.fromkeys(ALL, 2 * seeds if full else seeds),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=3,
)
