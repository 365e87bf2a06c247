"""Primitives that are put into others: each as a JAX function, interpreted in its place.

What associates is combined in a tree, so that log n operations reach all n elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import reduce
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saturation.limit.equation import Interpreter, Rule, like
from saturation.limit.series import Value

MOST_FACTORS = 64  # of a running product that is written out

Combine = Callable[[jax.Array, jax.Array], jax.Array]


def written_as(function: Callable[..., Any]) -> Rule:
    """Return the rule that interprets `function(params, *arrays)` in a primitive's place.

    `params` are the equation's; the function returns an array, or a sequence of them.
    """

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        arrays = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        closed = jax.make_jaxpr(lambda *given: function(eqn.params, *given))(*arrays)
        assert [v.aval.shape for v in closed.jaxpr.outvars] == [
            like(eqn, i).shape for i in range(len(eqn.outvars))
        ], eqn.primitive.name
        return interpreter.run(closed, inputs)

    return rule


def cumulative(combine: Combine) -> Callable[..., jax.Array]:
    """Return cumsum and its like: what `combine` makes of all elements up to each one."""

    def function(params: dict[str, Any], x: jax.Array) -> jax.Array:
        axis, reverse = params["axis"], params["reverse"]
        return jax.lax.associative_scan(combine, x, reverse=reverse, axis=axis)

    return function


def running_product(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """cumprod: factor by factor, so that the i-th product has i factors' degree and no more.

    In a tree the paddings of a long one would have the degree of neither.
    """
    axis = params["axis"]
    if x.shape[axis] > MOST_FACTORS:
        return cumulative(jnp.multiply)(params, x)
    factors = jnp.split(x, x.shape[axis], axis) if x.shape[axis] else []
    products = list(itertools.accumulate(reversed(factors) if params["reverse"] else factors, mul))
    ordered = products[::-1] if params["reverse"] else products
    return jnp.concatenate(ordered, axis) if ordered else x


def product(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """reduce_prod."""
    for axis in sorted(params["axes"], reverse=True):
        x = jnp.moveaxis(x, axis, 0)
        left_over = []  # apart: beside products of more factors it would have another degree
        while len(x) > 1:
            half = len(x) // 2
            if len(x) % 2:
                left_over.append(x[-1])
            x = x[:half] * x[half : 2 * half]
        x = reduce(mul, left_over, x[0] if len(x) else jnp.ones(x.shape[1:], x.dtype))
    return x


def window_extreme(combine: Combine, start: float) -> Callable[..., jax.Array]:
    """Return reduce_window_max, or _min: what max pooling is made of."""

    def function(params: dict[str, Any], x: jax.Array) -> jax.Array:
        window, strides = params["window_dimensions"], params["window_strides"]
        spread, gaps = params["window_dilation"], params["base_dilation"]
        padding = [(*ends, gap - 1) for ends, gap in zip(params["padding"], gaps, strict=True)]
        padded = jax.lax.pad(x, jnp.asarray(start, x.dtype), padding)
        counts = [
            (size - (width - 1) * apart - 1) // stride + 1
            for size, width, apart, stride in zip(
                padded.shape, window, spread, strides, strict=True
            )
        ]
        result = None
        for place in itertools.product(*map(range, window)):
            first = [at * apart for at, apart in zip(place, spread, strict=True)]
            last = [
                at + (count - 1) * stride + 1
                for at, count, stride in zip(first, counts, strides, strict=True)
            ]
            part = jax.lax.slice(padded, first, last, strides)
            result = part if result is None else combine(result, part)
        assert result is not None
        return result

    return function


def largest(params: dict[str, Any], x: jax.Array) -> list[jax.Array]:
    """top_k: the first k of a stable sort, largest first, and where they stood."""
    axis = params.get("axis", -1) % x.ndim
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    moved, places = jax.lax.sort((-x, index), dimension=axis, is_stable=True, num_keys=1)
    kept = slice(0, params["k"])
    return [
        -jax.lax.slice_in_dim(moved, kept.start, kept.stop, axis=axis),
        jax.lax.slice_in_dim(places, kept.start, kept.stop, axis=axis),
    ]


def cube_root(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """cbrt: a power of |x| with the sign of x."""
    return jnp.sign(x) * jnp.abs(x) ** np.array(1 / 3, x.dtype)
