"""How homogeneous a function is in its parameters, scale by scale (MEASURES §9).

f is homogeneous of degree k in θ if f(x; cθ) = c^k f(x; θ). Merrill et al. 2021 (arXiv 2010.09697)
show that transformers are approximately so; the curve says from which c on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saturation.measures.base import ActivationMeasure, Rule, Statistics, stack_scopes
from saturation.measures.means import cosine, mean_and_error, sum_names, sums_over_sequences

if TYPE_CHECKING:
    from jax import Array

    from saturation.limit import Limit
    from saturation.models.forwards import ModelOutputs

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


def observe(forwards: ModelOutputs) -> dict[str, dict[str, Any]]:
    """Return the sums of every layer."""
    import jax
    import jax.numpy as jnp

    # Outside of the loop: what forwards caches must not be traced inside.
    limits = {scope: forwards.parameter_limit[scope] for scope in forwards.layers}
    valid = {stack: forwards.valid(f"{stack}/final") for stack in forwards.stacks}

    def at(scale: Array) -> dict[str, dict[str, Array]]:
        values, slopes = along_scale(forwards.taps, forwards.wide_params, scale)

        def of_stack(stack: str, scopes: Sequence[str]) -> dict[str, Array]:
            vectors = [(values[scope], slopes[scope], limits[scope]) for scope in scopes]
            return _layer_sums(vectors, valid[stack])

        return {stack: of_stack(stack, scopes) for stack, scopes in forwards.stacks.items()}

    wide = jnp.result_type(float)
    # A loop over c, so that one forward pass is compiled for all of them.
    by_scale = jax.lax.map(at, jnp.asarray(SCALES, wide))
    found = {}
    for stack, sums in by_scale.items():  # of arrays (scales, layers of the stack and its end)
        tokens = jnp.full(sums[sum_names(KINDS[0])[0]].shape[1], valid[stack].sum()).astype(wide)
        of_layers = {"tokens": tokens}
        for index, scale in enumerate(SCALES):
            for kind, name in zip(KINDS, metric_names(scale), strict=True):
                renamed = zip(sum_names(kind), sum_names(name), strict=True)
                of_layers |= {new: sums[old][index] for old, new in renamed}
        found |= stack_scopes(stack, of_layers)
    return found


def _layer_sums(vectors: Sequence[tuple[Array, Array, Limit]], valid: Array) -> dict[str, Array]:
    """Return {statistic: (layers,)} of layers' states, their slopes in ln c, and their limits."""
    import jax.numpy as jnp

    exists = jnp.stack([valid & limit.valid.all(axis=-1) for *_, limit in vectors])
    cosines = jnp.stack([cosine(value, limit.leading()[1]) for value, _, limit in vectors])
    degrees = jnp.stack([local_degree(value, slope) for value, slope, _ in vectors])
    sums = sums_over_sequences("cosine_to_limit", cosines, exists)
    return sums | sums_over_sequences("local_degree", degrees, valid)


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
    metrics=metrics,
)
