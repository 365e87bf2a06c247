"""What the paper predicts in closed form, for one next token per last token and η_Y ≫ η_Z.

Along the theory's own equation a class's distinct tokens compete by

    ż_l = ξ(t) f_l²,   f = c/‖c‖₂,   c_l ∝ P(l|n) e^{z_l},

where ξ is the same for all tokens of the class and B(t) = ∫ξ. Hence, for the frequency ratio
r_{l/l'}(t) = c_l²/c_l'² − 1 of two tokens, r(t) = r(0) χ_l(t) with χ_l(t) = e^{2(z_l(t) − z_l(0))},
and for the most frequent one e^{2f²(0)B} ≤ χ ≤ e^{2B}. B grows with ln(t²) until t₀ and with
ln(ln²(t)) after: attention first scans, then snaps.

Source: arXiv 2305.16380, Theorems 2 to 5 and Figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

START = 1.0  # C₀: with it B(0) = 0


@dataclass(frozen=True)
class Setting:
    """Sizes and learning rates of a prediction.

    Attributes:
        classes: K.
        size: M, token ids.
        rate_y: η_Y.
        rate_z: η_Z.
    """

    classes: int
    size: int
    rate_y: float
    rate_z: float

    @property
    def snap_time(self) -> float:
        """t₀ = 2K ln M/η_Y, when the growth of B changes from logarithmic to slower still.

        An order of magnitude: the theory says t₀ = O(K ln M/η_Y).
        """
        return 2 * self.classes * math.log(self.size) / self.rate_y

    def budget(self, times: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """B(t): up to t₀ ¼ ln(C₀ + 2(M−1)²η_Yη_Z t²/(KM²)), after it the tail.

        The tail is ¼ ln(C₀ + 2K(M−1)²η_Z ln²(Mη_Y t/K)/(M²η_Y)). The two meet at t₀ only up to the
        order that the theory states.
        """
        share = 2 * ((self.size - 1) / self.size) ** 2
        early = share * self.rate_y * self.rate_z * times**2 / self.classes
        inside = np.maximum(self.size * self.rate_y * times / self.classes, 1.0)
        late = share * self.classes * self.rate_z * np.log(inside) ** 2 / self.rate_y
        return np.log(START + np.where(times < self.snap_time, early, late)) / 4


def growth_bounds(
    budget: Float[np.ndarray, " times"], share: float
) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, " times"]]:
    """Bounds of χ of a class's most frequent token: e^{2f²(0)B} and e^{2B}.

    Args:
        budget: B(t).
        share: f²(0), that token's share of ‖c‖² at the start.
    """
    return np.exp(2 * share * budget), np.exp(2 * budget)


def frequency_ratio(
    c: Float[np.ndarray, "*times tokens"], token: int, other: int
) -> Float[np.ndarray, "*times"]:
    """r = c_l²/c_l'² − 1; the normalisation of c cancels."""
    return (c[..., token] / c[..., other]) ** 2 - 1


def compete(
    probabilities: Float[np.ndarray, " tokens"],
    speed: Callable[[float], float],
    times: Float[np.ndarray, " times"],
) -> Float[np.ndarray, "times tokens"]:
    """Integrate ż_l = ξ(t) f_l² from z = 0.

    Args:
        probabilities: P(l|n), of any sum.
        speed: ξ(t).
        times: ascending, the first is the start.

    Returns:
        z at each time, float64.
    """
    from scipy.integrate import solve_ivp

    def velocity(time: float, z: Float[np.ndarray, " tokens"]) -> Float[np.ndarray, " tokens"]:
        weights = (probabilities * np.exp(z - z.max())) ** 2
        return speed(time) * weights / weights.sum()

    span = (float(times[0]), float(times[-1]))
    start = np.zeros(len(probabilities))
    solved = solve_ivp(velocity, span, start, t_eval=times, rtol=1e-9, atol=1e-12)
    return solved.y.T
