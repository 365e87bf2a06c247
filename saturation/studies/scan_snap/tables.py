"""The tables behind the paper's figures 3, 4 and 6.

A table is a list of rows, {column: value}.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from saturation.runtime.progress import Progress
from saturation.studies.scan_snap.data import Language
from saturation.studies.scan_snap.flow import Flow, flow
from saturation.studies.scan_snap.theory import Setting, growth_bounds
from saturation.studies.scan_snap.train import Training, distinct_entropy, train

Row = dict[str, float | str]
Rows = list[Row]

RATES_Z = (0.5, 1.0, 2.0, 3.0)
RATIOS = (1, 2, 5, 10)
RATES = [(rate * ratio, rate) for rate in RATES_Z for ratio in RATIOS]
FIGURE_3 = [Setting(10, 1000, rate, 0.5) for rate in (0.5, 1.0, 2.0, 5.0)]
COMMON = (1, 10)  # tokens that all classes share: the theorem's own setting, the ordinary one
FLOW_STEPS = 400  # a midpoint step of t₀/100, whose error is far below what is compared


def columns(rows: Rows) -> dict[str, Shaped[np.ndarray, " rows"]]:
    """A table's columns."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


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
    last_tokens = tuple(dict.fromkeys(last_tokens))
    progress = progress or Progress("", "trainings", quiet=True)
    progress.start(len(last_tokens) * len(RATES) * seeds)
    rows: Rows = []
    for number in last_tokens:
        rows += entropy_rows(number, entropies(number, seeds, seed))
        progress.advance(len(RATES) * seeds)
    return rows


def entropies(
    last_tokens: int, seeds: int | Sequence[int], seed: int = 0
) -> Float[np.ndarray, "seeds rates"]:
    """Entropy after training of each seed and pair of `RATES`; seeds as `train` takes them."""
    language = Language(last_tokens)
    return distinct_entropy(language, train(language, RATES, seeds, seed=seed))


def entropy_rows(last_tokens: int, entropy: Float[np.ndarray, "seeds rates"]) -> Rows:
    """The rows of `figure_6` of one number of last tokens."""
    seeds = len(entropy)
    return [
        {
            "last_tokens": last_tokens,
            "eta_z": rate_z,
            "eta_y_over_eta_z": round(rate_y / rate_z),
            "entropy_mean": float(np.mean(of_seeds)),
            "entropy_std": float(np.std(of_seeds, ddof=1)) if seeds > 1 else float("nan"),
            "seeds": seeds,
        }
        for (rate_y, rate_z), of_seeds in zip(RATES, entropy.T, strict=True)
    ]


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


def figure_3(settings: Sequence[Setting] = FIGURE_3, common: Sequence[int] = COMMON) -> Rows:
    """Growth χ of each class's most frequent distinct token: theory's bounds and gradient flow.

    Args:
        settings: sizes and learning rates, each with a last token to each class.
        common: numbers of tokens that all classes share. With one the classes' f_n hardly overlap,
            as the theorem assumes; the ordinary language has ten.

    Returns:
        Rows classes (K), size (M), eta_z, eta_y, common, snap_time (t₀), half_time (t_½ of Lemma
        3), time, chi, chi_lower, chi_upper, budget (B by theory), budget_simulated (∫ż/f²),
        residual (1 − p of the next token), gamma (by theory), gamma_simulated (from Lemma 1's
        gradient), overlap (f_n·f_n' of two classes).
    """
    rows: Rows = []
    for number in common:
        for setting in settings:
            rows += _compared(setting, number)
    return rows


def _compared(setting: Setting, common: int) -> Rows:
    language, run = _simulate(setting, common)
    budget, best = setting.budget(run.times), run.z[:, -1]
    squares = _squares(language, run)
    lower, upper = growth_bounds(budget, float(squares[0, -1]))
    columns = {
        "time": run.times,
        "chi": np.exp(2 * best),
        "chi_lower": lower,
        "chi_upper": upper,
        "budget": budget,
        "budget_simulated": _integral(best, 1 / squares[:, -1]),
        "residual": run.residual,
        "gamma": setting.gradient_speed(run.times),
        "gamma_simulated": run.pull * (setting.size - 1) / setting.size,
        "overlap": squares[:, :common].sum(axis=1),
    }
    constant: Row = {
        "classes": setting.classes,
        "size": setting.size,
        "eta_z": setting.rate_z,
        "eta_y": setting.rate_y,
        "common": common,
        "snap_time": setting.snap_time,
        "half_time": setting.half_time,
    }
    return [
        constant | dict(zip(columns, map(float, values), strict=True))
        for values in zip(*columns.values(), strict=True)
    ]


def _simulate(setting: Setting, common: int) -> tuple[Language, Flow]:
    """The gradient flow of a setting up to 4 t₀; ids that never occur fill the vocabulary to M."""
    used = Language(setting.classes, next_per_last=1, common=common).size
    unused = setting.size - used
    language = Language(setting.classes, next_per_last=1, common=common, unused=unused)
    end = 4 * setting.snap_time
    return language, flow(language, setting.rate_y, setting.rate_z, end, FLOW_STEPS)


def _squares(language: Language, run: Flow) -> Float[np.ndarray, "times support"]:
    """f² of each token of a class."""
    squares = (language.probabilities * np.exp(run.z)) ** 2
    return squares / squares.sum(axis=1, keepdims=True)


def _integral(
    z: Float[np.ndarray, " times"], density: Float[np.ndarray, " times"]
) -> Float[np.ndarray, " times"]:
    """∫ density dz from the start to each time, by trapezoids."""
    pieces = np.diff(z) * (density[1:] + density[:-1]) / 2
    return np.concatenate([[0.0], np.cumsum(pieces)])
