"""One fused pass over a block of an array: every measure's terms, summed as the device best can.

On the CPU and on GPUs terms and sums are float64. Where a device has no float64 (TPUs) terms are
float32 and sums are compensated two-float sums (Knuth's TwoSum in a tree), whose error does not
grow with the number of elements. Each statistic comes back as a short vector; combined by its rule
in float64 on the host it is the value.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from saturation.measures.base import COMBINE, Rule, WeightMeasure

# Wide enough to vectorise, narrow enough that all accumulators stay in the first-level cache.
_LANES = 8192

Partial = dict[str, dict[str, jax.Array]]  # {measure: {statistic: (k,)}}

# Before JAX 0.8 it had only its experimental name.
_home = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
enable_x64 = _home.enable_x64


def accumulation(platform: str) -> str:
    """Return how sums are carried on a platform: "float64" or "two-float"."""
    return "two-float" if platform == "tpu" else "float64"


@lru_cache
def block_statistics(
    measures: tuple[WeightMeasure, ...], platform: str
) -> Callable[[jax.Array, jax.Array, jax.Array], Partial]:
    """Return the jitted pass over one block for these measures, compiled once per shape and dtype.

    Args:
      measures: what to compute; their terms are fused.
      platform: the device's ("cpu", "gpu", "tpu").

    Returns:
      (x, previous, first), each the same flat block (n,) at one step, any float dtype ->
      {measure: {statistic: (k,)}}, to be combined by `combine` on the host.
    """

    def statistics(x: jax.Array, previous: jax.Array, first: jax.Array) -> Partial:
        if accumulation(platform) == "two-float":
            return _two_float(measures, x, previous, first)
        if platform == "cpu":
            return _in_lanes(measures, x, previous, first)
        return _at_once(measures, x, previous, first)

    return jax.jit(statistics)


def combine(rule: Rule, parts: ArrayLike) -> float:
    """Return the value of one statistic from its parts, in float64."""
    return float(COMBINE[rule].reduce(np.asarray(parts, np.float64).reshape(-1)))


def _terms(
    measures: tuple[WeightMeasure, ...], arrays: Sequence[jax.Array], dtype: str
) -> dict[str, dict[str, jax.Array]]:
    values = [array.astype(dtype) for array in arrays]
    return {measure.name: measure.terms(*values) for measure in measures}


def _map(measures: tuple[WeightMeasure, ...], function: Callable, *trees: Partial) -> Partial:
    """Apply `function(rule, leaf, …)` to each statistic."""
    return {
        measure.name: {
            name: function(rule, *(tree[measure.name][name] for tree in trees))
            for name, rule in measure.statistics.items()
        }
        for measure in measures
    }


_REDUCE = {"sum": jnp.sum, "max": jnp.max, "min": jnp.min}
_MERGE = {"sum": jnp.add, "max": jnp.maximum, "min": jnp.minimum}
NEUTRAL = {"sum": 0.0, "max": -np.inf, "min": np.inf}


def _at_once(measures: tuple[WeightMeasure, ...], *arrays: jax.Array) -> Partial:
    terms = _terms(measures, arrays, "float64")
    return _map(measures, lambda rule, leaf: _REDUCE[rule](leaf)[None], terms)


def _in_lanes(measures: tuple[WeightMeasure, ...], *arrays: jax.Array) -> Partial:
    """Accumulate row by row in float64 lanes: XLA:CPU does not vectorise fused reductions."""
    rows = arrays[0].size // _LANES
    split = rows * _LANES
    if not rows:
        return _at_once(measures, *arrays)

    def step(lanes: Partial, row: tuple[jax.Array, ...]) -> tuple[Partial, None]:
        terms = _terms(measures, row, "float64")
        return _map(measures, lambda rule, a, b: _MERGE[rule](a, b), lanes, terms), None

    start = {
        measure.name: {
            name: jnp.full(_LANES, NEUTRAL[rule], jnp.float64)
            for name, rule in measure.statistics.items()
        }
        for measure in measures
    }
    body = tuple(array[:split].reshape(rows, _LANES) for array in arrays)
    lanes, _ = jax.lax.scan(step, start, body)
    total = _map(measures, lambda rule, leaf: _REDUCE[rule](leaf)[None], lanes)
    if split == arrays[0].size:
        return total
    tail = _at_once(measures, *(array[split:] for array in arrays))
    return _map(measures, lambda _, a, b: jnp.concatenate([a, b]), total, tail)


def _two_float(measures: tuple[WeightMeasure, ...], *arrays: jax.Array) -> Partial:
    terms = _terms(measures, arrays, "float32")

    def reduce(rule: Rule, leaf: jax.Array) -> jax.Array:
        return two_float_sum(leaf) if rule == "sum" else _REDUCE[rule](leaf)[None]

    return _map(measures, reduce, terms)


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
