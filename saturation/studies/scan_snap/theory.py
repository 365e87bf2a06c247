"""What the paper predicts in closed form, for one next token per last token and η_Y ≫ η_Z.

Along the theory's own equation a class's distinct tokens compete by

    ż_l = ξ(t) f_l²,   f = c/‖c‖₂,   c_l ∝ P(l|n) e^{z_l},

where ξ is the same for all tokens of the class and B(t) = ∫ξ. Hence, for the frequency ratio
r_{l/l'}(t) = c_l²/c_l'² − 1 of two tokens, r(t) = r(0) χ_l(t) with χ_l(t) = e^{2(z_l(t) − z_l(0))},
and for the most frequent one e^{2f²(0)B} ≤ χ ≤ e^{2B}.

The theorem gives B for two times apart: as ln(t²) before t₀' = K ln M/η_Y, as ln(ln²(t)) after
t₀ = 2K ln M/η_Y, and says nothing between them. Lemma 3's equation, which both are limits of, has a
solution in closed form (ours), so that here B holds at all times.

Source: arXiv 2305.16380, Lemma 3, Theorems 2 to 5 and Figure 3; MEASURES §12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

START = 1.0  # C₀, as in the paper's figures; the theorem leaves it open


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
    def scan_time(self) -> float:
        """t₀' = K ln M/η_Y, up to which B grows as ln(t²)."""
        return self.classes * math.log(self.size) / self.rate_y

    @property
    def snap_time(self) -> float:
        """t₀ = 2K ln M/η_Y, from which on B grows as ln(ln²(t))."""
        return 2 * self.scan_time

    @property
    def half_time(self) -> float:
        """t_½ = (K/η_Y)[(M−2) + (M−1) ln(M−1)]/M, at which p(next token) = ½ by Lemma 3."""
        others = self.size - 1
        learnt = (others - 1 + others * math.log(others)) / self.size
        return self.classes / self.rate_y * learnt

    def logit_gap(self, times: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """u(t) = w_nn − w_other of Lemma 3, the solution of e^u − 1 + (M−1)u = s, s = η_Y M t/K.

        u = a − W(e^a/(M−1)) with a = (s+1)/(M−1) and Lambert's W. W(e^x) is Wright's omega, which
        no e^a overflows, and u = ln((M−1)W) is the same number without a difference of large ones.
        """
        from scipy.special import wrightomega

        others = self.size - 1
        learnt = self.rate_y * self.size * times / self.classes
        omega = wrightomega((learnt + 1) / others - math.log(others))
        u = math.log(others) + np.log(omega)
        # One step of Newton's method: where u is near 0 its logarithm has lost relative digits.
        return u - (np.expm1(u) + others * u - learnt) / (np.exp(u) + others)

    def gradient_speed(self, times: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """γ(t) = ((M−1)²/M) u/(e^u + M − 1), the size of what reaches attention through Y.

        Where the f_n hardly overlap, Lemma 1's Y(e − α) is γ·(ι f_n − β Σ_{n'≠n} f_n') with
        ι = M/(M−1) and β = M/(M−1)² (ours; Theorem 3 leaves them open).
        """
        u, others = self.logit_gap(times), self.size - 1
        return others**2 / self.size * u / (np.exp(u) + others)

    def budget(self, times: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """B(t) = ¼ ln(1 + 2K(M−1)²η_Z u²/(C₀M²η_Y)), the integral of η_Z γ e^{−4B}/C₀, at all t.

        Its limits are the theorem's two forms: u → η_Y t/K for t < t₀' and u → ln(Mη_Y t/K) for
        t ≥ t₀.
        """
        share = ((self.size - 1) / self.size) ** 2
        scale = 2 * self.classes * share * self.rate_z / (START * self.rate_y)
        return np.log1p(scale * self.logit_gap(times) ** 2) / 4


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
