"""Which training example changed which prediction, to first order in each step.

Pruthi, Liu, Kale and Sundararajan 2020 (arXiv 2002.08484). The loss of z′ falls by
ℓ(w_t, z′) − ℓ(w_{t+1}, z′) at each step, which telescopes, and is η ∇ℓ(w_t, z′)·∇ℓ(w_t, z_t) to
first order. For optimisers that precondition, the share of an example is −∇ℓ(z′)·P_t(w_i g_i) with
P_t = u_t/g_t of the update u_t of the mean gradient g_t (ours).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from saturation.plots.colours import BLUE, GREEN, ORANGE, VERMILION
from saturation.plots.panels import Axis, Dash, Line, Panel, Picture
from saturation.studies.base import (
    Part,
    Results,
    Row,
    Stacked,
    Study,
    claim,
    control,
    in_proportion,
)
from saturation.studies.numerics import log_slope
from saturation.studies.tracin.effects import (
    PROJECTIONS,
    RATES,
    Labels,
    OneStep,
    Optimizer,
    Telescope,
    find_flipped,
    take_steps,
    telescope,
)
from saturation.studies.tracin.small_t5 import SCALES, SmallT5, train_t5

TELESCOPES = tuple(Telescope(rate) for rate in RATES)
MOMENTLESS: tuple[Optimizer, ...] = ("adam without momentum", "adafactor")
SLOW, QUICK = SmallT5(0.01), SmallT5(0.1)
SEEDS: dict[Any, int] = {Labels(): 4} | dict.fromkeys(TELESCOPES, 2)
SEEDS |= {OneStep(name): 2 for name in ("sgd", *MOMENTLESS, "adam")} | {SLOW: 1, QUICK: 1}


def simulate(setting: Any, seeds: Sequence[int]) -> Iterator[Part]:
    """Yield what a setting gives with each seed."""
    for seed in seeds:
        match setting:
            case Labels():
                yield find_flipped(seed)
            case Telescope():
                yield telescope(setting, seed)
            case OneStep():
                yield take_steps(setting, seed)
            case SmallT5():
                yield train_t5(setting, seed)


def judge(results: Results) -> Iterator[Row]:
    """Yield the rows: the sum over steps, flipped labels, projections, single steps, a T5."""
    yield from _judge_sum(results)
    yield from _judge_labels(results[Labels()])
    yield from _judge_steps(results)
    yield from _judge_t5(results)


def _judge_sum(results: Results) -> Iterator[Row]:
    what = "d ln(residual of the sum)/d ln η, η from 0.0125 to 0.2"
    slopes = {
        name: log_slope(np.array(RATES), np.array([results[one][name] for one in TELESCOPES]))
        for name in ("first", "trapezoid")
    }
    yield claim(what, "first order", slopes["first"], (0.9, 1.1), "1")
    yield claim(what, "trapezoid", slopes["trapezoid"], (1.5, np.inf), claimed="no")
    finest = results[TELESCOPES[-1]]
    what = "residual of the sum over the fall of the loss, η = 0.0125"
    yield claim(
        what, "first order", finest["first"] / finest["fall"], (0, 0.05), "0", "conditional"
    )
    yield claim(what, "trapezoid", finest["trapezoid"] / finest["fall"], (0, 0.05), "0", "no")


def _judge_labels(part: Stacked) -> Iterator[Row]:
    what = "chance that a flipped label scores above another"
    yield claim(what, "self-influence, six checkpoints", part["auc self-influence"], (0.97, 1))
    for name in ("initialisation", "random"):
        yield control(what, name, part[f"auc {name}"], (0.97, 1))
    start = part["auc initialisation"]
    yield claim(what, "self-influence at the initialisation", start, (0.45, 0.55), "½", "no")
    gap = np.abs(part["auc last layer"] - part["auc self-influence"])
    yield claim(f"{what}: last layer alone, difference", "six checkpoints", gap, (0, 0.01), "0")
    ahead = part["auc self-influence"] - part["auc mean loss"]
    says = f"{what}: gain over the mean loss at the same checkpoints"
    yield claim(says, "six checkpoints", ahead, (0.005, 1), claimed="no")
    ahead = part["auc self-influence"] - part["auc last checkpoint"]
    yield claim(f"{what}: gain over the last checkpoint", "six checkpoints", ahead, (0.005, 1))
    what = "correlation of pairs' influence with that by projections"
    found = [part[f"projection {size}"] for size in PROJECTIONS]
    yield claim(what, "256 directions of 808", found[-1], (0.9, 1))
    yield control(what, "16 directions", found[0], (0.9, 1))
    rises = np.diff(found, axis=0).min(axis=0)
    yield claim(f"{what}: least rise", "16, 64, 256 directions", rises, (0, 1))


def _judge_steps(results: Results) -> Iterator[Row]:
    explains, slope = "R² of single steps' effects on test losses", "slope of predicted on real"
    yield claim(explains, "SGD, η g·g′", results[OneStep("sgd")]["raw r2"], (0.98, 1))
    for name in MOMENTLESS:
        part, says = results[OneStep(name)], name.capitalize()
        yield claim(explains, f"{says}, preconditioned shares", part["shares r2"], (0.98, 1))
        yield control(explains, f"{says}, η g·g′", part["raw r2"], (0.98, 1))
        yield control(slope, f"{says}, η g·g′", part["raw slope"], (0.5, 2))
    momentum = results[OneStep("adam")]["shares r2"]
    yield control(explains, "Adam with momentum, shares", momentum, (0.98, 1))


def _judge_t5(results: Results) -> Iterator[Row]:
    explains = "R² of a T5's steps' effects on held-out losses"
    slow, quick = results[SLOW], results[QUICK]
    where = "Adafactor at 0.01: {} of the update"
    yield claim(explains, where.format("all"), slow["first 1"], (0.7, 1))
    yield claim(explains, where.format("a tenth"), slow["first 0.1"], (0.99, 1))
    yield claim(f"{explains}, trapezoid", where.format("all"), slow["trapezoid 1"], (0.95, 1))
    where = "Adafactor at 0.1, as in the quickstart: {} of the update"
    yield claim(explains, where.format("all"), quick["first 1"], (0.7, 1), claimed="conditional")
    yield control(explains, where.format("all"), quick["first 1"], (0.7, 1))
    yield claim(explains, where.format("a hundredth"), quick["first 0.01"], (0.99, 1))


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the residuals of the sum, and R² of a T5's steps by their size."""
    rates = np.array(RATES)
    residuals = []
    for name, text, colour in (
        ("first", "first order", BLUE),
        ("trapezoid", "trapezoid", GREEN),
        ("fall", "fall of the loss", VERMILION),
    ):
        each = np.array([results[one][name].mean() for one in TELESCOPES])
        dash = "dot" if name == "fall" else "solid"
        residuals.append(Line(rates, each, text, colour, dash, symbol="circle"))
    scales = np.array(SCALES)
    explained_by = []
    dashes: dict[str, Dash] = {"first": "solid", "trapezoid": "dash"}
    for setting, colour in ((SLOW, BLUE), (QUICK, ORANGE)):
        for kind, dash in dashes.items():
            each = np.array([results[setting][f"{kind} {scale:g}"].mean() for scale in SCALES])
            name = f"rate {setting.rate:g}, {'first order' if kind == 'first' else kind}"
            explained_by.append(
                Line(scales, np.maximum(each, -1), name, colour, dash, symbol="circle")
            )
    yield Picture(
        "tracin",
        "First-order influence holds for small steps; the quickstart's steps are too large",
        "Validity",
        "Left: mean residual of the effects of all steps, summed, batches of one and η T = 60. "
        "Right: R² of a T5's Adafactor steps' effects on held-out losses, by the part of the "
        "update that is taken; values below −1 are drawn at −1.",
        [
            [
                Panel(
                    "sum over all steps",
                    residuals,
                    Axis("nats", "log"),
                    Axis("η", "log"),
                    legend=True,
                ),
                Panel(
                    "steps of a T5",
                    explained_by,
                    Axis("R²"),
                    Axis("part of the update", "log"),
                    legend=True,
                ),
            ]
        ],
    )


STUDY = Study(
    name="tracin",
    title="Which example changed which prediction",
    paper="Pruthi, Liu, Kale and Sundararajan, Estimating Training Data Influence by Tracing "
    "Gradient Descent, NeurIPS 2020, arXiv 2002.08484",
    reads="Effects of single steps are first order in small steps. Their sum over a training keeps "
    "an error of order η, which the trapezoid removes. Self-influence finds flipped labels, no "
    "better than the mean loss at the same checkpoints. Under preconditioning optimisers shares of "
    "the update predict effects and η g·g′ does not; with momentum neither does. At the relative "
    "steps of the quickstart's T5 first-order influence means nothing.",
    parts=in_proportion(SEEDS, seeds=4),
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=4,
)
