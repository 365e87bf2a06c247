"""How homogeneous a function is in its parameters, scale by scale (MEASURES §9).

f is homogeneous of degree k in θ if f(x; cθ) = c^k f(x; θ). Merrill et al. 2021 (arXiv 2010.09697)
show that transformers are approximately so; the curve says from which c on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.measures.base import ActivationMeasure, Found, Rule, Statistics
from saturation.measures.means import cosine, mean_and_error, sum_names, sums_over_sequences
from saturation.models.base import Needs

if TYPE_CHECKING:
    from jax import Array

    from saturation.limit import Limit
    from saturation.models.outputs import StageOutputs, State

SCALES = (1, 10, 100, 1000)
KINDS = ("cosine_to_limit", "local_degree")


@dataclass(frozen=True)
class Homogeneity:
    """The curve of one output, an array whose last axis is a vector.

    Attributes:
      scales: c, (scales,).
      cosine: cos(f(x; cθ), sf(x)) of each vector, (scales, *batch); NaN where sf does not exist.
      local_degree: d ln‖f(x; cθ)‖/d ln c of each vector, (scales, *batch).
      degree: the degree of sf, no vector's order is above it.
      order: int32, (*batch): that of each vector's own limit, which its local_degree tends to.
    """

    scales: Array
    cosine: Array
    local_degree: Array
    degree: int
    order: Array


def homogeneity(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    scales: Sequence[float] = SCALES,
    terms: int = 4,
) -> Any:
    """Return the homogeneity curve of every output of `fn`.

    Args:
      fn: any function of (params, *args) that `saturation.saturate` can interpret; its outputs are
        arrays of at least one axis, or a tree of them.
      params: floating arrays, scaled together; computed in their dtype, so float64 for large c.
      *args: what is not scaled.
      scales: the grid of c.
      terms: of the series that computes the limit.

    Returns:
      fn's output tree with a `Homogeneity` at each leaf.

    Raises:
      LimitError: `saturate` has no rule for a primitive of `fn`.
    """
    import jax
    import jax.numpy as jnp

    from saturation.limit import Limit, saturate

    limits = jax.jit(saturate(fn, terms))(params, *args)
    grid = jnp.asarray(scales, jnp.result_type(float))

    def at(scale: Array) -> Any:
        values, slopes = along_scale(lambda p: fn(p, *args), params, scale)
        degrees = jax.tree.map(local_degree, values, slopes)
        return jax.tree.map(
            lambda value, limit: cosine(value, limit.leading()[1]), values, limits
        ), degrees

    cosines, degrees = jax.jit(lambda grid: jax.lax.map(at, grid))(grid)

    def curve(limit: Limit, cosines: Array, degrees: Array) -> Homogeneity:
        exists = limit.valid.all(axis=-1)
        shown = jnp.where(exists, cosines, jnp.nan)
        return Homogeneity(grid, shown, degrees, limit.degree, limit.leading()[0])

    is_limit = lambda leaf: isinstance(leaf, Limit)
    return jax.tree.map(curve, limits, cosines, degrees, is_leaf=is_limit)


def along_scale(fn: Callable[[Any], Any], params: Any, scale: Any) -> tuple[Any, Any]:
    """Return f(cθ) and its derivative in ln c, both fn's tree: one forward-mode pass.

    d f(cθ)/d ln c = Df(cθ)·cθ.
    """
    import jax

    from saturation.limit import scale_parameters

    grown = scale_parameters(params, scale)
    return jax.jvp(fn, (grown,), (grown,))


def local_degree(value: Array, slope: Array) -> Array:
    """Return d ln‖f‖/d ln c = ⟨f, df/d ln c⟩/‖f‖² over the last axis; NaN where f is 0.

    Both are divided by f's largest entry first, so that squares of large states stay in range.
    """
    import jax.numpy as jnp

    largest = jnp.abs(value).max(axis=-1, keepdims=True)
    value, slope = value / largest, slope / largest
    return (value * slope).sum(axis=-1) / (value * value).sum(axis=-1)


def metric_names(scale: float) -> tuple[str, str]:
    """Return the metrics at one c: `cosine_to_limit_at_10`, `local_degree_at_10`."""
    cosine_name, degree_name = (f"{kind}_at_{scale:g}" for kind in KINDS)
    return cosine_name, degree_name


MEANS = tuple(name for scale in SCALES for name in metric_names(scale))
STATISTICS: Mapping[str, Rule] = dict.fromkeys(
    ("tokens", *(each for name in MEANS for each in sum_names(name))), "sum"
)


def needs(limits: Sequence[str], scale: float) -> Needs:
    """Return the forward passes: the limit, and f(x; cθ) with its slope at every c."""
    return Needs(parameter=True, slopes=frozenset(map(float, SCALES)))


def observe(outputs: StageOutputs) -> Found:
    """Return the sums of every layer."""
    return {
        state.scope: _layer_sums(state) for state in outputs.states if state.kind != "embedding"
    }


def _layer_sums(state: State) -> dict[str, Array]:
    """Return {statistic: scalar} of a layer's state, its slope in ln c, and its limit."""
    import jax.numpy as jnp

    values, slopes = (
        jnp.stack([of(float(c)) for c in SCALES]) for of in (state.scaled, state.slope)
    )
    exists = state.valid & state.limit.exists
    cosines = cosine(values, state.limit.leading)  # (scales, batch, length)
    sums = sums_over_sequences(KINDS[0], cosines, exists)
    sums |= sums_over_sequences(KINDS[1], local_degree(values, slopes), state.valid)
    found = {"tokens": state.valid.sum().astype(jnp.result_type(float))}
    for index, scale in enumerate(SCALES):
        for kind, name in zip(KINDS, metric_names(scale), strict=True):
            renamed = zip(sum_names(kind), sum_names(name), strict=True)
            found |= {new: sums[old][index] for old, new in renamed}
    return found


def metrics(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return the curve of one layer, as means over tokens with their errors over sequences.

    cosine_to_limit_at_c = mean of cos(f(x; cθ), sf(x)), over the tokens where sf exists;
    local_degree_at_c = mean of d ln‖f(x; cθ)‖/d ln c, f being the layer's residual stream; c = 1,
    10, 100, 1000. tokens is their number.
    """
    values = {"tokens": statistics["tokens"]}
    for name in MEANS:
        values |= mean_and_error(name, statistics)
    return values


HOMOGENEITY = ActivationMeasure(
    name="homogeneity",
    definition="cos(f(x; cθ), sf(x)) and d ln‖f(x; cθ)‖/d ln c of each layer, for c = 1 … 1000",
    source="Merrill et al. 2021 (arXiv 2010.09697), §4; local degree ours",
    version=2,  # ties are decided by the rule of `limit.ties`, rows have orders of their own
    statistics=STATISTICS,
    observe=observe,
    needs=needs,
    metrics=metrics,
)
