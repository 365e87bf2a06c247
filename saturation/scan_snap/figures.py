"""The tables behind the paper's figures 3, 4 and 6.

A table is a list of rows, {column: value}.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saturation.progress import Progress
from saturation.scan_snap.data import Language
from saturation.scan_snap.flow import Flow, flow
from saturation.scan_snap.theory import Setting, growth_bounds
from saturation.scan_snap.train import Training, distinct_entropy, train

Row = dict[str, float | str]
Rows = list[Row]

RATES_Z = (0.5, 1.0, 2.0, 3.0)
RATIOS = (1, 2, 5, 10)
FIGURE_3 = [Setting(10, 1000, rate, 0.5) for rate in (0.5, 1.0, 2.0, 5.0)]
FLOW_STEPS = 400  # a midpoint step of t₀/100, whose error is far below what is compared


def figure_6(
    last_tokens: Sequence[int] = (1, 3, 5, 10),
    seeds: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Rows:
    """Entropy of the attention on distinct tokens after training, by learning rates.

    Args:
        last_tokens: numbers of last tokens, two classes to each; one named twice is done once.
        seeds: trainings of each pair of learning rates.
        seed: from which all of them follow.
        progress: told of every sweep.

    Returns:
        Rows last_tokens, eta_z, eta_y_over_eta_z, entropy_mean and entropy_std (over seeds, in
        nats, the latter with n − 1), seeds.
    """
    pairs = [(rate, ratio) for rate in RATES_Z for ratio in RATIOS]
    rates = [(rate * ratio, rate) for rate, ratio in pairs]
    last_tokens = tuple(dict.fromkeys(last_tokens))
    progress = progress or Progress("", "trainings", quiet=True)
    progress.start(len(last_tokens) * len(pairs) * seeds)
    rows: Rows = []
    for number in last_tokens:
        language = Language(number)
        entropy = distinct_entropy(language, train(language, rates, seeds, seed=seed))
        progress.advance(entropy.size)
        for (rate, ratio), of_seeds in zip(pairs, entropy.T, strict=True):
            spread = float(np.std(of_seeds, ddof=1)) if seeds > 1 else float("nan")
            rows.append(
                {
                    "last_tokens": number,
                    "eta_z": rate,
                    "eta_y_over_eta_z": ratio,
                    "entropy_mean": float(np.mean(of_seeds)),
                    "entropy_std": spread,
                    "seeds": seeds,
                }
            )
    return rows


def figure_4(seed: int = 0) -> Rows:
    """What each class attends to through a training from 0, for η_Y = 1 and 10 (η_Z = 1).

    Returns:
        Rows eta_y, class, iteration, token, kind (common or distinct), c.
    """
    language, rates = Language(2, next_per_last=1), [(1.0, 1.0), (10.0, 1.0)]
    c = train(language, rates, 1, Training(random=False), seed, every_iteration=True)[0]
    return [
        {
            "eta_y": rates[run][0],
            "class": of_class,
            "iteration": iteration,
            "token": int(language.tokens[of_class, place]),
            "kind": "common" if place < language.common else "distinct",
            "c": float(value),
        }
        for (run, iteration, of_class, place), value in np.ndenumerate(c)
    ]


def figure_3(settings: Sequence[Setting] = FIGURE_3) -> Rows:
    """Growth χ of each class's most frequent distinct token: theory's bounds and gradient flow.

    Returns:
        Rows classes (K), size (M), eta_z, eta_y, snap_time (t₀), time, chi, chi_lower, chi_upper,
        budget (B by theory), budget_simulated (∫ż/f²), residual (1 − p of the next token).
    """
    rows: Rows = []
    for setting in settings:
        language, run = _simulate(setting)
        budget = setting.budget(run.times)
        share, chi = _share(language, run), np.exp(2 * run.z[:, -1])
        lower, upper = growth_bounds(budget, float(share[0]))
        inverse = 1 / share
        pieces = np.diff(run.z[:, -1]) * (inverse[1:] + inverse[:-1]) / 2
        simulated = np.concatenate([[0.0], np.cumsum(pieces)])
        columns = {
            "time": run.times,
            "chi": chi,
            "chi_lower": lower,
            "chi_upper": upper,
            "budget": budget,
            "budget_simulated": simulated,
            "residual": run.residual,
        }
        constant: Row = {
            "classes": setting.classes,
            "size": setting.size,
            "eta_z": setting.rate_z,
            "eta_y": setting.rate_y,
            "snap_time": setting.snap_time,
        }
        for values in zip(*columns.values(), strict=True):
            rows.append(constant | dict(zip(columns, map(float, values), strict=True)))
    return rows


def _simulate(setting: Setting) -> tuple[Language, Flow]:
    """The gradient flow of a setting up to 4 t₀; ids that never occur fill the vocabulary to M."""
    used = Language(setting.classes, next_per_last=1).size
    language = Language(setting.classes, next_per_last=1, unused=setting.size - used)
    end = 4 * setting.snap_time
    return language, flow(language, setting.rate_y, setting.rate_z, end, FLOW_STEPS)


def _share(language: Language, run: Flow) -> Float[np.ndarray, " times"]:
    """f² of the most frequent distinct token."""
    squares = (language.probabilities * np.exp(run.z)) ** 2
    return squares[:, -1] / squares.sum(axis=1)
