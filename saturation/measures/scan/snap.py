"""Whether a head has snapped: moved early, and come to rest (MEASURES §12; the definition is ours).

A head that stopped and only fluctuates, and one that drifts for ever in ln t, leave alike traces in
the slope of its speed. So speed is taken per unit of ln t, in which drift is steady, and a fall of
it counts where the same speeds in another order would hardly show one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FEWEST_INTERVALS = 15  # between checkpoints after step 0: below, orders tell nothing apart
LEAST_RATIO = 3.0
ORDERS = 199
LEVEL = 0.05  # of the orders at most may show as large a ratio


class Snap(NamedTuple):
    """What the speeds of a head say.

    Attributes:
      speed: ‖x_{k+1} − x_k‖/ln(t_{k+1}/t_k), by the later checkpoint; NaN at the first after step 0
        and before. float64 (steps,).
      ratio: R, largest rms speed over a third of the intervals before the last third, over that of
        the last third; NaN below 15 intervals.
      p_value: (1 + orders of the speeds with as large a ratio)/200; NaN likewise.
      step: √(t_k t_{k+1}) where the speed is largest, if the head has snapped, else NaN.
    """

    speed: np.ndarray
    ratio: float
    p_value: float
    step: float

    @property
    def called(self) -> bool:
        """Whether the head has snapped: R ≥ 3, and at most 5 % of the orders show as large an R."""
        return self.ratio >= LEAST_RATIO and self.p_value <= LEVEL


def snap(steps: Float[np.ndarray, " steps"], pattern: Float[np.ndarray, "parts steps"]) -> Snap:
    """Return whether and when a pattern comes to rest.

    Args:
      steps: t, ascending; a step of 0 has no ln t and is left out.
      pattern: x, a head's attention at each; columns with a NaN are left out.
    """
    used = np.flatnonzero((steps > 0) & np.isfinite(pattern).all(axis=0))
    speed = np.full(len(steps), np.nan)
    moved = np.linalg.norm(np.diff(pattern[:, used], axis=1), axis=0)
    speed[used[1:]] = moved / np.diff(np.log(steps[used]))
    speeds = speed[used[1:]]
    if len(speeds) < FEWEST_INTERVALS:
        return Snap(speed, np.nan, np.nan, np.nan)
    ratio = float(slowing(speeds))
    as_large = int(np.sum(slowing(speeds[_orders(len(speeds))]) >= ratio))
    fastest = int(np.argmax(speeds))
    step = float(np.sqrt(steps[used[fastest]] * steps[used[fastest + 1]]))
    found = Snap(speed, ratio, (1 + as_large) / (1 + ORDERS), step)
    return found if found.called else found._replace(step=np.nan)


def slowing(speeds: Float[np.ndarray, "*orders intervals"]) -> Float[np.ndarray, "*orders"]:
    """Return R: how much faster the fastest third in a row is than the last third, 1 if none moves.

    R = max_j rms(v_j … v_{j+m−1})/rms(v_{n−m} … v_{n−1}) with m = ⌊n/3⌋ and j ≤ n − 2m; ∞ where
    only the last third stands still.
    """
    count = speeds.shape[-1] // 3
    windows = np.lib.stride_tricks.sliding_window_view(speeds**2, count, axis=-1).mean(axis=-1)
    last, earlier = windows[..., -1], windows[..., :-count].max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((last == 0) & (earlier == 0), 1.0, np.sqrt(earlier / last))


@lru_cache(maxsize=8)
def _orders(count: int) -> Int[np.ndarray, "orders intervals"]:
    """The random orders, the same ones for every head and every run."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(count) for _ in range(ORDERS)])
