"""One fused pass over a block of an array: every measure's terms, summed as the device best can.

On the CPU and on GPUs terms and sums are float64. Where a device has no float64 (TPUs) terms are
float32 and sums are compensated two-float sums (Knuth's TwoSum in a tree), whose error does not
grow with the number of elements. Each statistic comes back as one number or two; combined by its
rule in float64 on the host they are the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from saturation.measures.base import COMBINE, Block, Rule, WeightMeasure

# XLA:CPU makes one vectorised loop of each statistic over a row, and no vectorised loop at all of
# a fused reduction. A row is short enough for its operands to stay in the first-level cache from
# one statistic to the next; several rows between a load and a store of the accumulators halve
# their traffic. Measured by benchmarks/streaming.py.
_ROW = 2048
_ROWS_AT_ONCE = 4
_STRIDE = _ROW * _ROWS_AT_ONCE

enable_x64 = jax.enable_x64

Terms = dict[str, jax.Array]


def accumulation(platform: str) -> str:
    """Return how sums are carried on a platform: "float64" or "two-float"."""
    return "two-float" if platform == "tpu" else "float64"


def statistic_rules(measures: Sequence[WeightMeasure]) -> dict[str, Rule]:
    """Return {statistic: rule} of what the terms of these measures give, each name once.

    Measures that give a statistic of one name give the same one, which is computed once.
    """
    return {
        name: rule
        for measure in measures
        for name, rule in measure.statistics.items()
        if name not in measure.carried
    }


def capacity(count: int, platform: str) -> int:
    """Return the length of a buffer for `count` elements: one of few, so that few are compiled for.

    2^20 and the powers of two from there on, and 2^13 where a buffer is sent to a device: the CPU
    uses it where it lies, and does not touch what is behind the elements. All are multiples of
    what a pass takes at once.
    """
    least = _STRIDE if count <= _STRIDE and platform != "cpu" else 2**20
    return max(least, 1 << max(count - 1, 0).bit_length())


@lru_cache
def block_statistics(
    measures: tuple[WeightMeasure, ...], platform: str
) -> Callable[..., jax.Array]:
    """Return the jitted pass over one block for these measures, compiled once per size and dtype.

    Args:
      measures: what to compute; their terms are fused.
      platform: the device's ("cpu", "gpu", "tpu").

    Returns:
      (count, now, previous, first) -> (statistics, parts), in the order of `statistic_rules`, to be
      combined by `combine` on the host. The arrays are flat buffers of one `capacity`, any float
      dtype, of which the first `count` elements are the block at three steps.
    """

    def statistics(
        count: jax.Array, now: jax.Array, previous: jax.Array, first: jax.Array
    ) -> jax.Array:
        one_pass = _Pass(measures, "float32" if platform == "tpu" else "float64", count)
        if platform == "cpu":
            return one_pass.by_rows(now, previous, first)
        return one_pass.at_once(now, previous, first)

    return jax.jit(statistics)


def combine(rule: Rule, parts: ArrayLike) -> float:
    """Return the value of one statistic from its parts, in float64."""
    return float(COMBINE[rule].reduce(np.asarray(parts, np.float64).reshape(-1)))


_REDUCE = {"sum": jnp.sum, "max": jnp.max, "min": jnp.min}
_MERGE = {"sum": jnp.add, "max": jnp.maximum, "min": jnp.minimum}
NEUTRAL: Mapping[Rule, float] = {"sum": 0.0, "max": -np.inf, "min": np.inf}


class _Pass:
    """The statistics of the first `count` elements of some buffers."""

    def __init__(self, measures: Sequence[WeightMeasure], dtype: str, count: jax.Array) -> None:
        self.measures, self.dtype, self.count = measures, dtype, count
        self.rules = statistic_rules(measures)

    def at_once(self, *buffers: jax.Array) -> jax.Array:
        """All elements in one reduction."""
        keep = jnp.arange(buffers[0].size, dtype=jnp.int32) < self.count
        terms = self._masked(self._terms(*buffers), keep)
        if self.dtype == "float64":
            return self._stack({n: _REDUCE[rule](terms[n]) for n, rule in self.rules.items()})
        return jnp.stack([_two_float(rule, terms[n]) for n, rule in self.rules.items()])

    def by_rows(self, *buffers: jax.Array) -> jax.Array:
        """Row by row into as many accumulators as a row is long."""

        def several_rows(turn: jax.Array, rows: Terms) -> Terms:
            for number in range(_ROWS_AT_ONCE):
                rows = self._merged(rows, self._row(buffers, turn * _STRIDE + number * _ROW))
            return rows

        def last_row(turn: jax.Array, rows: Terms) -> Terms:
            start = whole * _STRIDE + turn * _ROW
            keep = start + jnp.arange(_ROW, dtype=jnp.int32) < self.count
            return self._merged(rows, self._masked(self._row(buffers, start), keep))

        whole = self.count // _STRIDE
        left = -(-(self.count - whole * _STRIDE) // _ROW)
        rows = lax.fori_loop(0, whole, several_rows, self._neutral(buffers))
        rows = lax.fori_loop(0, left, last_row, rows)
        return self._stack({n: _REDUCE[rule](rows[n]) for n, rule in self.rules.items()})

    def _row(self, buffers: Sequence[jax.Array], start: jax.Array) -> Terms:
        return self._terms(*(lax.dynamic_slice(b, (start,), (_ROW,)) for b in buffers))

    def _terms(self, *values: jax.Array) -> Terms:
        stored = values[0]
        if stored.dtype.itemsize == 1:  # nothing is computed in 8 bits
            stored = stored.astype(jnp.float32)
        block = Block(*(value.astype(self.dtype) for value in values), stored=stored)
        terms = {name: t for measure in self.measures for name, t in measure.terms(block).items()}
        # Truth values are counted.
        return {n: t.astype(jnp.int32) if t.dtype == bool else t for n, t in terms.items()}

    def _neutral(self, buffers: Sequence[jax.Array]) -> Terms:
        rows = (jax.ShapeDtypeStruct((_ROW,), buffer.dtype) for buffer in buffers)
        shapes = jax.eval_shape(self._terms, *rows)
        return {n: self._fill(self.rules[n], s.dtype, (_ROW,)) for n, s in shapes.items()}

    def _masked(self, terms: Terms, keep: jax.Array) -> Terms:
        return {n: jnp.where(keep, t, self._fill(self.rules[n], t.dtype)) for n, t in terms.items()}

    def _merged(self, a: Terms, b: Terms) -> Terms:
        return {n: _MERGE[rule](a[n], b[n]) for n, rule in self.rules.items()}

    def _fill(self, rule: Rule, dtype: np.dtype, shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.full(shape, NEUTRAL[rule], dtype)

    def _stack(self, totals: Terms) -> jax.Array:
        return jnp.stack([totals[name].astype(self.dtype) for name in self.rules])[:, None]


def _two_float(rule: Rule, terms: jax.Array) -> jax.Array:
    """One statistic as two float32."""
    if rule == "sum" and jnp.issubdtype(terms.dtype, jnp.floating):
        return two_float_sum(terms)
    total = _REDUCE[rule](terms)
    if rule == "sum":  # a count: an integer that float32 may have no room for
        high = total.astype(jnp.float32)
        return jnp.stack([high, (total - high.astype(jnp.int32)).astype(jnp.float32)])
    return jnp.stack([total, total]).astype(jnp.float32)


def two_float_sum(terms: jax.Array) -> jax.Array:
    """Return (high, low), float32 (2,), whose sum is Σ terms to about 1e-14 of Σ|terms|.

    A tree of TwoSum: s = a + b and its exact rounding error; the errors add up apart.
    Source: Knuth, TAOCP 2, 4.2.2, theorem B.
    """
    high, low = terms, jnp.zeros_like(terms)
    while high.size > 1:
        if high.size % 2:
            high, low = jnp.append(high, 0), jnp.append(low, 0)
        half = high.size // 2
        a, b = high[:half], high[half:]
        high = a + b
        b_rounded = high - a
        error = (a - (high - b_rounded)) + (b - b_rounded)
        low = low[:half] + low[half:] + error
    return jnp.concatenate([high, low])
