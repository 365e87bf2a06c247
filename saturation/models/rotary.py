"""Rotary position embeddings: at which frequency each pair of a head's dimensions turns.

Su et al. 2021 (arXiv 2104.09864). Dimension j of a head's first half and dimension j of its second
half are a pair, which a token at position t turns by the angle t·f_j, f_j = base^(−2j/dims). The
published scalings stretch or bend these frequencies to reach longer texts. Nothing here needs JAX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from saturation.errors import ArgumentError

SCALINGS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True)
class Rotary:
    """How queries and keys are turned; names are those of transformers' `rope_parameters`.

    Attributes:
      dims: how many of a head's dimensions are turned, an even number; the others stay.
      base: θ, of which the frequencies are powers.
      scaling: one of `SCALINGS`. "linear" divides all frequencies by `factor`; "dynamic" raises
        the base with the length of the text (NTK); "yarn" (Peng et al. 2023, arXiv 2309.00071) and
        "llama3" divide the low ones and leave the high ones; "longrope" (Ding et al. 2024, arXiv
        2402.13753) divides each by a number of its own.
      factor: by how much longer texts may be.
      original_max_positions: the length that the model was pretrained with.
      low_freq_factor, high_freq_factor: of "llama3": frequencies that turn fewer times than the
        first in that length are divided, those that turn more often than the second are not.
      beta_fast, beta_slow: of "yarn": likewise, in turns.
      attention_factor: cos and sin are multiplied by it; None is what the scaling's paper gives.
      mscale, mscale_all_dim: of "yarn": what `attention_factor` follows from, where both are given.
      truncate: of "yarn": whether the bounds are rounded to whole dimensions.
      short_factors, long_factors: of "longrope": the divisors, for texts up to the original
        length, and beyond.
    """

    dims: int
    base: float = 10_000.0
    scaling: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.dims < 2 or self.dims % 2:
            raise ArgumentError(
                f"Rotary.dims must be even and 2 or more, since dimensions turn in pairs, but is "
                f"{self.dims}."
            )
        if self.scaling not in SCALINGS:
            raise ArgumentError(
                f"Rotary.scaling must be of {', '.join(SCALINGS)}, not {self.scaling!r}."
            )
        if self.scaling in SCALINGS[2:] and self.original_max_positions < 1:
            raise ArgumentError(
                f"The rotary scaling {self.scaling!r} needs original_max_positions > 0."
            )
        factors = (self.short_factors, self.long_factors)
        if self.scaling == "longrope" and any(len(each) != self.dims // 2 for each in factors):
            raise ArgumentError(
                f"longrope needs {self.dims // 2} short and as many long factors, one a pair of "
                f"dimensions, but has {len(factors[0])} and {len(factors[1])}."
            )

    def frequencies(self, length: int) -> Float[np.ndarray, " pairs"]:
        """Return f_j in float64 for texts of `length` positions, (dims/2,)."""
        base = self.base
        if self.scaling == "dynamic":
            # The same frequencies up to the original length; beyond, the base grows with the text.
            longer = max(length, self.original_max_positions) / self.original_max_positions
            stretch = self.factor * longer - (self.factor - 1)
            base *= stretch ** (self.dims / (self.dims - 2))
        plain = base ** -(np.arange(0, self.dims, 2) / self.dims)
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            return self._llama3(plain)
        if self.scaling == "yarn":
            return self._yarn(plain)
        if self.scaling == "longrope":
            long = length > self.original_max_positions
            return plain / np.array(self.long_factors if long else self.short_factors)
        return plain

    def angles(self, length: int) -> Float[np.ndarray, "length pairs"]:
        """Return t·f_j in float64 of the positions t = 0 … length − 1."""
        return np.arange(length)[:, None] * self.frequencies(length)

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by: 1 but for "yarn" and "longrope"."""
        if self.scaling not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.scaling == "longrope":
            if self.factor <= 1:
                return 1.0
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_positions))
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)

    def _llama3(self, plain: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
        turns = self.original_max_positions * plain / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - kept) * plain / self.factor + kept * plain

    def _yarn(self, plain: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
        low, high = (self._dimension_of(turns) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dims - 1)
        if low == high:
            high += 0.001
        divided = np.clip((np.arange(self.dims // 2) - low) / (high - low), 0.0, 1.0)
        return plain / self.factor * divided + plain * (1 - divided)

    def _dimension_of(self, turns: float) -> float:
        """Return the pair that turns so many times in the original length."""
        wavelength = self.original_max_positions / (turns * 2 * math.pi)
        return self.dims * math.log(wavelength) / (2 * math.log(self.base))


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
