"""Every prediction of the theory beside what simulation gives, and whether they agree.

Source: arXiv 2305.16380, Lemma 1 and Theorems 2 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped

from saturation.studies.scan_snap.data import Language, draw
from saturation.studies.scan_snap.flow import descent, flow
from saturation.studies.scan_snap.model import Parameters, lemma_1, loss
from saturation.studies.scan_snap.tables import FLOW_STEPS, Row
from saturation.studies.scan_snap.theory import Setting, compete, frequency_ratio, growth_bounds

YES, NO, NOT_CLAIMED = "yes", "no", "not claimed"
DEVIATION = "relative deviation"
FREQUENCY_BIAS = "frequency bias, r(t) = r(0)·χ(t)"
EXACT = (0.0, 1e-4)
CLOSE = 0.05  # how near the theorem's own setting has to come to it
ROUNDING = 1e-4  # of an integral by 1,600 trapezoids in float32
TWO = Language(2, next_per_last=1)  # the language of the paper's Figure 4


@dataclass(frozen=True)
class Prediction:
    """What theory says beside what simulation gives.

    Attributes:
        unit: of what is measured.
        bounds: within which it agrees; None: nothing is predicted.
        claimed: whether the theory's assumptions hold; where they do not, the bounds are missed.
    """

    prediction: str
    setting: str
    predicted: str
    measured: float
    unit: str
    bounds: Sequence[float] | None
    claimed: bool = True

    @property
    def row(self) -> Row:
        """A row of theory.csv; without a verdict where theory claims nothing."""
        row: Row = {name: getattr(self, name) for name in _COPIED}
        if self.bounds is None or not self.claimed:
            return {**row, "agrees_if": "", "agrees": NOT_CLAIMED}
        low, high = self.bounds
        agrees = YES if low <= self.measured <= high else NO
        return {**row, "agrees_if": f"{low:g} to {high:g}", "agrees": agrees}


_COPIED = ("prediction", "setting", "predicted", "measured", "unit")


def frequency_bias() -> Iterator[Prediction]:
    """Where the theorem holds and where it stops to: everything that needs no seed."""
    yield _own_equation()
    yield from map(_ratio_in_flow, (1000, 100, 10, 1))
    yield from _ratio_in_descent()
    yield from _scanning()


def lemma_1_deviation(seed: int) -> Prediction:
    """Largest difference between autodiff and Lemma 1, relative to the largest entry."""
    language = Language(3)
    start, data = jax.random.split(jax.random.key(seed))
    y_key, z_key = jax.random.split(start)
    shape = (language.size, language.size)
    parameters = Parameters(jax.random.normal(y_key, shape), jax.random.normal(z_key, shape))
    sequence = jax.jit(draw, static_argnums=(1, 2, 3))(data, language, 1, 127)
    gradient = jax.jit(jax.grad(loss))(parameters, sequence)
    counts = np.asarray(sequence.counts[0]).astype(int)
    tokens = jnp.asarray(np.repeat(np.asarray(sequence.tokens[0]), counts))
    expected = jax.jit(lemma_1)(parameters, tokens, sequence.last[0], sequence.following[0])
    worst = max(
        float(np.abs(np.add(by_autodiff, by_lemma)).max() / np.abs(by_lemma).max())
        for by_autodiff, by_lemma in zip(gradient, expected, strict=True)
    )
    setting = f"M = {language.size}, one sequence of 128"
    return Prediction("Lemma 1 is the gradient", setting, "0", worst, DEVIATION, (0, 1e-5))


def _own_equation() -> Prediction:
    """r(t) = r(0)χ(t) where ż = ξ f² is integrated as it stands."""
    times = np.linspace(0.0, 10.0, 101)
    z = compete(TWO.probabilities, lambda _: 1.0, times)
    return Prediction(FREQUENCY_BIAS, "ż = f², t ≤ 10", "0", max(_deviations(z)), DEVIATION, EXACT)


def _ratio_in_flow(ratio: int) -> Prediction:
    """The same along the gradient flow of the whole layer, up to 2 t₀."""
    setting = Setting(TWO.classes, TWO.size, 1.0, 1 / ratio)
    run = flow(TWO, 1.0, 1 / ratio, 2 * setting.snap_time, 2 * FLOW_STEPS)
    where = f"gradient flow, η_Y/η_Z = {ratio}, t ≤ 2t₀"
    worst, small = max(_deviations(run.z)), "0 as η_Y/η_Z → ∞"
    return Prediction(FREQUENCY_BIAS, where, small, worst, DEVIATION, EXACT, ratio >= 100)


def _ratio_in_descent() -> list[Prediction]:
    """The same by gradient descent at equal rates, where theory claims nothing any more."""
    found = _deviations(descent(TWO, 1.0, 1.0, 100).z)
    where = "gradient descent on the true distribution, η_Y = η_Z = 1, 100 steps"
    return [
        Prediction(
            FREQUENCY_BIAS, f"{where}; {pair}", "0 as η_Y/η_Z → ∞", value, DEVIATION, EXACT, False
        )
        for pair, value in (
            ("most frequent against rarest token", found[0]),
            ("most frequent against the next", found[-1]),
        )
    ]


def _deviations(z: Float[np.ndarray, "times support"]) -> list[float]:
    """Largest |r/(r(0)χ) − 1| over time, of the most frequent distinct token against each other.

    From the rarest token on to the second most frequent one. Pairs are compared with r, which is
    smaller the nearer the two are in frequency; so the deviation is larger there.
    """
    c, best = TWO.probabilities * np.exp(z), len(TWO.probabilities) - 1
    growth = np.exp(2 * (z[:, best] - z[0, best]))
    ratios = [frequency_ratio(c, best, other) for other in range(TWO.common, best)]
    return [float(np.max(np.abs(r / (r[0] * growth) - 1))) for r in ratios]


def _scanning() -> list[Prediction]:
    """The sign of ż: attention leaves what classes share and goes to what tells them apart."""
    setting = Setting(TWO.classes, TWO.size, 10.0, 1.0)
    moves = np.diff(flow(TWO, 10.0, 1.0, 2 * setting.snap_time, 2 * FLOW_STEPS).z, axis=0)
    own, shared = moves[:, TWO.common :], moves[:, : TWO.common]
    where, unit = "gradient flow, η_Y/η_Z = 10, t ≤ 2t₀", "fraction of tokens and times"
    return [
        Prediction(
            "discriminative bias, ż > 0 of distinct tokens",
            where,
            "1",
            float(np.mean(own > 0)),
            unit,
            (1, 1),
        ),
        Prediction(
            "discriminative bias, ż < 0 of common tokens",
            where,
            "1",
            float(np.mean(shared < 0)),
            unit,
            (1, 1),
        ),
    ]


def snap(table: Mapping[str, Shaped[np.ndarray, " times"]]) -> list[Prediction]:
    """When the layer learns, what reaches attention, how B grows and between what χ lies.

    The theorem is about classes whose f_n hardly overlap. Where they share ten common tokens it
    claims nothing, and the same numbers stand beside it.

    Args:
        table: the columns of `figure_3` for one number of common tokens and one η_Y.
    """
    classes, size, rate_y, rate_z, common = (
        table[name][0] for name in ("classes", "size", "eta_y", "eta_z", "common")
    )
    setting = Setting(int(classes), int(size), float(rate_y), float(rate_z))
    time, claimed = table["time"], bool(common == 1)
    where = (
        f"K = {setting.classes}, M = {setting.size}, η_Z = {setting.rate_z:g}, η_Y = {rate_y:g}, "
        f"{common:g} common token{'s' if common > 1 else ''} (f_n·f_n' = {table['overlap'][0]:.2f})"
    )
    learnt = table["residual"] < 0.5
    half = np.interp(-0.5, -table["residual"], time) if learnt.any() else np.inf
    # At the start both are 0.
    speeds = table["gamma_simulated"][1:] / table["gamma"][1:]
    outside = [np.mean(_outside(table, b)) for b in (table["budget_simulated"], table["budget"])]
    unit = "of its prediction"
    return [
        Prediction(
            "t_½, when the next token has p = ½ (Lemma 3)",
            where,
            f"{setting.half_time / setting.snap_time:.3f} t₀",
            float(half / setting.half_time),
            unit,
            (1 - CLOSE, 1 + CLOSE),
            claimed,
        ),
        Prediction(
            "γ, what reaches attention (Lemma 1), largest deviation, t ≤ 4t₀",
            where,
            "0",
            float(np.max(np.abs(speeds - 1))),
            DEVIATION,
            (0, CLOSE),
            claimed,
        ),
        Prediction(
            "e^{2f²(0)B} ≤ χ ≤ e^{2B} with the simulated B = ∫ż/f²",
            where,
            "0",
            float(outside[0]),
            "fraction of times outside",
            (0, 0),
        ),
        Prediction(
            "the same with B in closed form, C₀ = 1",
            where,
            "0 for the theorem's C₀, which it leaves open",
            float(outside[1]),
            "fraction of times outside",
            None,
        ),
        Prediction(
            "B in closed form, C₀ = 1, at 4t₀",
            where,
            f"{table['budget'][-1]:.2f} for the theorem's C₀, which it leaves open",
            float(table["budget_simulated"][-1] / table["budget"][-1]),
            unit,
            None,
        ),
    ]


def _outside(
    table: Mapping[str, Shaped[np.ndarray, " times"]], budget: Float[np.ndarray, " times"]
) -> Bool[np.ndarray, " times"]:
    """Where χ leaves its bounds by more than the integral's error (1e-4)."""
    initial = np.log(table["chi_lower"][-1]) / (2 * table["budget"][-1])
    lower, upper = growth_bounds(budget, float(initial))
    return (table["chi"] < lower * (1 - ROUNDING)) | (table["chi"] > upper * (1 + ROUNDING))
