"""One fused pass over a block of an array: every measure's terms, summed as the device best can.

On the CPU and on GPUs terms and sums are float64. Where a device has no float64 (TPUs) terms are
float32 and sums are compensated two-float sums (Knuth's TwoSum in a tree), whose error does not
grow with the number of elements. Each statistic comes back as one number or two; combined by its
rule in float64 on the host they are the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from saturation.measures.base import COMBINE, Block, Rule, WeightMeasure
from saturation.runs.shortcuts import (
    accumulation,
    beside_nonfinite,
    carried,
    derived,
    derived_at,
)

# XLA:CPU makes one vectorised loop of each statistic over a row, and no vectorised loop at all of
# a fused reduction. A row is short enough for its operands to stay in the first-level cache from
# one statistic to the next; several rows between a load and a store of the accumulators halve
# their traffic. Measured by benchmarks/streaming.py.
_ROW = 2048
_ROWS_AT_ONCE = 4
_STRIDE = _ROW * _ROWS_AT_ONCE
# The largest block of an array that is not compressed, and some more.
_TILE_BYTES = 4 * 2**20
# XLA:CPU takes half of a register of AVX-512 unless told otherwise; the sums gain a quarter.
_WIDE = {"xla_cpu_prefer_vector_width": 512}

# XLA:CPU takes subnormal numbers of float32 and bfloat16 as 0. Beside one number of 1e-30 the 2^21
# of a tile add less than 1e-9 of a rounding to a sum of squares: only smaller sums are looked at.
_SQUARES = ("sum_squares", "delta_squares")
_SUBNORMAL_MATTERS = 1e-54


Terms = dict[str, jax.Array]
T = TypeVar("T", np.ndarray, jax.Array)


def statistic_rules(measures: Sequence[WeightMeasure], platform: str) -> dict[str, Rule]:
    """Return {statistic: rule} of what is reduced for these measures on a platform, each name once.

    Measures that have a statistic of one name have the same one, which is computed once.
    """
    followed = carried(measures).keys() | derived(measures, platform)
    every: dict[str, Rule] = {}
    for measure in measures:
        every |= measure.statistics
    return {name: rule for name, rule in every.items() if name not in followed}


def capacity(count: int, platform: str, dtype: np.dtype) -> int:
    """Return the length of a buffer for `count` elements: one of few, so that few are compiled for.

    On the CPU whole tiles of `tile(dtype)`. Where a buffer is sent to a device 2^13, 2^20 and the
    powers of two from there on. All are multiples of what a pass takes at once.
    """
    if platform == "cpu":
        return -(-max(count, 1) // tile(dtype)) * tile(dtype)
    least = _STRIDE if count <= _STRIDE else 2**20
    return max(least, 1 << max(count - 1, 0).bit_length())


def tile(dtype: np.dtype) -> int:
    """Return how many elements a pass on the CPU takes: one number, whatever a block's size.

    The CPU uses a tile where it lies, and does not touch what is behind the elements.
    """
    return _TILE_BYTES // dtype.itemsize


def bfloat16_as_bits(buffer: np.ndarray) -> np.ndarray:
    """Return what a pass on the CPU is best given for a buffer: for bfloat16 its bits, uint16.

    The same memory. XLA:CPU loads bfloat16 one by one, which takes three times as long.
    """
    return buffer.view(np.uint16) if buffer.dtype == jnp.bfloat16 else buffer


@lru_cache
def block_statistics(
    measures: tuple[WeightMeasure, ...], platform: str
) -> Callable[..., jax.Array | np.ndarray]:
    """Return the jitted pass over one block for these measures, compiled once per size and dtype.

    Args:
      measures: what to compute; their terms are fused.
      platform: the device's ("cpu", "gpu", "tpu").

    Returns:
      (count, now, previous, first) -> (statistics, parts), in the order of `statistic_rules`, to be
      combined by `combine` on the host. The arrays are flat buffers of one `capacity`, on the CPU
      of one `tile` and `bfloat16_as_bits`, any float dtype, of which the first `count` elements
      are the block at three steps. Where one of them is given twice or thrice, what `derived_at`
      says is left out, and 0.
    """
    if platform != "cpu":
        return jax.jit(lambda count, *buffers: _Pass(measures, platform, count).at_once(*buffers))

    def by_rows(*names: str) -> Callable[..., jax.Array]:
        return jax.jit(  # compiled when it is called
            lambda count, *all_: _Pass(measures, platform, count).by_rows(names, *all_),
            compiler_options=_WIDE,
        )

    rules = statistic_rules(measures, platform)
    rows = {name: row for row, name in enumerate(rules)}
    beside = beside_nonfinite(measures)
    looked_for = [(rows[name], rows[of], by_rows(name)) for name, of in beside.items()]
    squares = {name: rows[name] for name in _SQUARES if name in rows}
    at = []
    for position in range(3):
        left_out = beside.keys() | derived_at(position, measures, platform)
        names = [name for name in rules if name not in left_out]
        at.append((np.array([rows[name] for name in names]), by_rows(*names)))

    def statistics(count: np.int32 | jax.Array, now: T, previous: T, first: T) -> np.ndarray:
        where, reduced = at[2 if previous is not first else 1 if now is not previous else 0]
        found = np.zeros((len(rules), 1))
        found[where] = reduced(count, now, previous, first)
        for row, of, counted in looked_for:
            if not math.isfinite(found[of, 0]):
                found[row] = counted(count, now, previous, first)
        sums = {name: float(found[row, 0]) for name, row in squares.items()}
        if _may_miss_subnormals(sums, int(count), now, previous):
            block = _on_host(int(count), now, previous, first)
            if any(map(_holds_subnormal, block)):
                return _reduced_on_host(measures, rules, block)
        return found

    return statistics


def _may_miss_subnormals(
    squares: Mapping[str, float],
    count: int,
    now: np.ndarray | jax.Array,
    previous: np.ndarray | jax.Array,
) -> bool:
    """Return whether sums of squares are so small that subnormal numbers could matter.

    That of a change is 0 as it should be where the block did not change.
    """
    if squares.get("sum_squares", 1.0) < _SUBNORMAL_MATTERS:
        return True
    if now is previous or squares.get("delta_squares", 1.0) >= _SUBNORMAL_MATTERS:
        return False
    return not np.array_equal(np.asarray(now)[:count], np.asarray(previous)[:count])


def _on_host(count: int, *buffers: np.ndarray | jax.Array) -> tuple[np.ndarray, ...]:
    """Return the elements of buffers as NumPy has them, of bfloat16's bits as float32."""
    elements = (np.asarray(buffer)[:count] for buffer in buffers)
    return tuple(
        (each.astype(np.uint32) << 16).view(np.float32) if each.dtype == np.uint16 else each
        for each in elements
    )


def _holds_subnormal(values: np.ndarray) -> bool:
    if values.dtype not in (np.float32, np.float64):  # narrower ones XLA:CPU takes as they are
        return False
    return bool(np.any((np.abs(values) < np.finfo(values.dtype).tiny) & (values != 0)))


def _reduced_on_host(
    measures: Sequence[WeightMeasure], rules: Mapping[str, Rule], block: Sequence[np.ndarray]
) -> np.ndarray:
    """Return every statistic of a block by NumPy, which computes with subnormal numbers."""
    taken = Block(*(values.astype(np.float64) for values in block), stored=block[0])
    terms = {name: t for measure in measures for name, t in measure.terms(taken).items()}
    reduced = [
        COMBINE[rule].reduce(np.asarray(terms[name], np.float64)) for name, rule in rules.items()
    ]
    return np.array(reduced)[:, None]


def combine(rule: Rule, parts: ArrayLike) -> float:
    """Return the value of one statistic from its parts, in float64."""
    return float(COMBINE[rule].reduce(np.asarray(parts, np.float64).reshape(-1)))


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the larger of floats that are not negative, or NaN where one is.

    As integers their bits are in the same order, NaN the largest; comparing floats takes twice as
    long, for it has to look for NaN.
    """
    as_integers = (lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}") for x in (a, b))
    return lax.bitcast_convert_type(jnp.maximum(*as_integers), a.dtype)


def _from_bits(values: jax.Array) -> jax.Array:
    """Return the float32 whose upper halves are these uint16, and floats as they are."""
    if values.dtype != jnp.uint16:
        return values
    return lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)


_REDUCE = {"sum": jnp.sum, "max": jnp.max, "min": jnp.min}
_MERGE = {"sum": jnp.add, "max": _larger, "min": jnp.minimum}
NEUTRAL: Mapping[Rule, float] = {"sum": 0.0, "max": 0.0, "min": np.inf}


class _Pass:
    """The statistics of the first `count` elements of some buffers."""

    def __init__(self, measures: Sequence[WeightMeasure], platform: str, count: jax.Array) -> None:
        self.measures, self.count = measures, count
        self.dtype = "float64" if accumulation(platform) == "float64" else "float32"
        self.rules = statistic_rules(measures, platform)

    def at_once(self, *buffers: jax.Array) -> jax.Array:
        """All elements in one reduction."""
        keep = jnp.arange(buffers[0].size, dtype=jnp.int32) < self.count
        terms = self._masked(self._terms(*buffers), keep)
        if self.dtype == "float64":
            return self._stack({n: _REDUCE[rule](terms[n]) for n, rule in self.rules.items()})
        return jnp.stack([_two_float(rule, terms[n]) for n, rule in self.rules.items()])

    def by_rows(self, names: Sequence[str], *buffers: jax.Array) -> jax.Array:
        """Some statistics, row by row into as many accumulators as a row is long."""

        def row(start: jax.Array) -> Terms:
            terms = self._terms(*(lax.dynamic_slice(b, (start,), (_ROW,)) for b in buffers))
            return {name: terms[name] for name in names}

        def merged(a: Terms, b: Terms) -> Terms:
            return {name: _MERGE[self.rules[name]](a[name], b[name]) for name in names}

        def several_rows(turn: jax.Array, rows: Terms) -> Terms:
            for number in range(_ROWS_AT_ONCE):
                rows = merged(rows, row(turn * _STRIDE + number * _ROW))
            return rows

        def last_row(turn: jax.Array, rows: Terms) -> Terms:
            start = whole * _STRIDE + turn * _ROW
            keep = start + jnp.arange(_ROW, dtype=jnp.int32) < self.count
            return merged(rows, self._masked(row(start), keep))

        whole = self.count // _STRIDE
        left = -(-(self.count - whole * _STRIDE) // _ROW)
        rows = {
            name: jnp.full(term.shape, NEUTRAL[self.rules[name]], term.dtype)
            for name, term in jax.eval_shape(row, self.count).items()
        }
        rows = lax.fori_loop(0, whole, several_rows, rows)
        rows = lax.fori_loop(0, left, last_row, rows)
        return self._stack({name: _REDUCE[self.rules[name]](rows[name]) for name in names})

    def _masked(self, terms: Terms, keep: jax.Array) -> Terms:
        return {
            name: jnp.where(keep, term, jnp.asarray(NEUTRAL[self.rules[name]], term.dtype))
            for name, term in terms.items()
        }

    def _terms(self, *values: jax.Array) -> Terms:
        values = tuple(map(_from_bits, values))
        stored = values[0]
        if stored.dtype.itemsize == 1:  # nothing is computed in 8 bits
            stored = stored.astype(jnp.float32)
        block = Block(*(value.astype(self.dtype) for value in values), stored=stored)
        terms = {name: t for measure in self.measures for name, t in measure.terms(block).items()}
        # Truth values are counted.
        return {
            name: terms[name].astype(jnp.int32) if terms[name].dtype == bool else terms[name]
            for name in self.rules
        }

    def _stack(self, totals: Terms) -> jax.Array:
        return jnp.stack([total.astype(self.dtype) for total in totals.values()])[:, None]


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
