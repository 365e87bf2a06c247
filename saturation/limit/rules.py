"""What `saturate` does at each primitive that meets a series; one rule a primitive, by its name.

A rule takes the interpreter, the equation and its inputs, of which at least one is a `PowerSeries`,
and returns the outputs. A primitive without a rule here is an error that names it. The rules of
what is linear, of order, and of what is written in other primitives have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from saturation.errors import LimitError
from saturation.limit import bounds, expansions, order
from saturation.limit.arithmetic import add, bilinear, power_of_series
from saturation.limit.equation import Interpreter, Rule, bind, contracted, like
from saturation.limit.expansions import written_as
from saturation.limit.linear import conversion, gathering, identity, linear, split
from saturation.limit.series import (
    Constant,
    PowerSeries,
    Value,
    as_series,
    either,
    join_invalid,
    make,
    sizes_of,
    without,
)
from saturation.limit.sizes import by_norms
from saturation.limit.smooth import analytic


def addition(sign: int) -> Rule:
    """Return the rule of x + y, or of x − y with sign −1."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, y = inputs
        return [add(interpreter, x, y, like(eqn), sign)]

    return rule


def multiplication(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """x·y, elementwise."""
    x, y = inputs
    return [_times(interpreter, eqn, x, y)]


def _times(interpreter: Interpreter, eqn: Any, x: Value, y: Value) -> Value:
    shape = like(eqn).shape

    def product(p: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.broadcast_to(p * q, shape)

    return bilinear(x, y, product, like(eqn), interpreter.terms)


def contraction(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A primitive that is linear in each of two inputs: a product of matrices, a convolution."""
    x, y = inputs
    interpreter.meet(contracted(eqn))
    norms = partial(by_norms, eqn) if eqn.primitive.name == "dot_general" else None
    found = bilinear(
        x, y, partial(bind, eqn), like(eqn), interpreter.terms, contracts=True, by_norms=norms
    )
    if eqn.primitive.name != "dot_general" or not isinstance(found, PowerSeries):
        return [found]
    if found.degree < sum(value.degree for value in (x, y) if isinstance(value, PowerSeries)):
        return [found]
    return [replace(found, noise=_of_noise(eqn, x, y))]


def _of_noise(eqn: Any, x: Value, y: Value) -> jax.Array | None:
    """Where a product of matrices is of a row, or column, that is not told from 0 anywhere."""
    (sums, batches), rank = eqn.params["dimension_numbers"], len(like(eqn).shape)
    masks = []
    for value, summed, batch, last in zip((x, y), sums, batches, (False, True), strict=True):
        if isinstance(value, PowerSeries) and value.noise is not None:
            free = [a for a in range(len(value.shape)) if a not in (*summed, *batch)]
            nothing = jnp.transpose(value.noise, (*batch, *free, *summed))
            nothing = jnp.all(nothing, axis=tuple(range(len(batch) + len(free), nothing.ndim)))
            start = rank - len(free) if last else len(batch)  # its own axes, behind the batch's
            axes = (*range(len(batch)), *range(start, start + len(free)))
            masks.append(jax.lax.broadcast_in_dim(nothing, like(eqn).shape, axes))
    return either(*masks) if masks else None


def division(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """x/y; by a constant on each coefficient, else times the series of 1/y."""
    x, y = inputs
    if isinstance(y, PowerSeries):
        inverse = power_of_series(interpreter, y, -1.0, y.example)
        quotient = as_series(_times(interpreter, eqn, x, inverse), interpreter.terms)
        # Spoilt also where x is exactly 0, which spares a product: here it makes 0/0.
        return [replace(quotient, invalid=join_invalid(quotient, inverse))]
    numerator, shape = as_series(x, interpreter.terms), like(eqn).shape
    parts = [
        None if c is None else jnp.broadcast_to(c / y.array, shape) for c in numerator.coefficients
    ]
    noise = None if numerator.noise is None else jnp.broadcast_to(numerator.noise, shape)
    invalid = join_invalid(x, y)
    if isinstance(y.array, jax.core.Tracer) or not np.all(np.asarray(y.array)):
        by_zero = jnp.broadcast_to(y.array == 0, shape)
        parts = [None if c is None else without(by_zero, c) for c in parts]
        invalid = by_zero if invalid is None else by_zero | invalid
    scaled = lambda sizes, index: jnp.broadcast_to(sizes[0] / jnp.abs(y.array), shape)
    sizes = sizes_of([numerator], numerator.degree, parts, scaled)
    return [make(numerator.degree, parts, like(eqn), invalid, numerator.infinite, noise, sizes)]


def power(exponent: float | None = None) -> Rule:
    """Return the rule of x^exponent; None takes it from the equation's parameter `y`."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        p = eqn.params["y"] if exponent is None else exponent
        return [_power(interpreter, eqn, inputs[0], p)]

    return rule


def _power(interpreter: Interpreter, eqn: Any, x: Value, exponent: float) -> Value:
    if not float(exponent).is_integer() or exponent < 0:
        return power_of_series(
            interpreter, as_series(x, interpreter.terms), float(exponent), like(eqn)
        )
    if not exponent:
        return Constant(jnp.ones(like(eqn).shape, like(eqn).dtype))
    result = x
    for _ in range(int(exponent) - 1):  # needs no division, so a vanishing x spoils nothing
        result = _times(interpreter, eqn, result, x)
    return result


def general_power(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """x^y for a known number y."""
    x, y = inputs
    if isinstance(y, PowerSeries) or isinstance(y.array, jax.core.Tracer):
        raise LimitError(
            "`pow` with an exponent that is not a known number cannot be carried; write the "
            "exponent as a Python number."
        )
    values = np.unique(np.asarray(y.array))
    if values.size != 1:
        raise LimitError("`pow` with several exponents in one array cannot be carried.")
    return [_power(interpreter, eqn, x, float(values[0]))]


def smooth(
    function: Callable[[jax.Array], jax.Array], at_infinity: tuple[float, float] | None = None
) -> Rule:
    """Return the rule of an elementwise smooth function with these values at −∞ and +∞."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x = as_series(inputs[0], interpreter.terms)
        return [
            analytic(interpreter, x, function, at_infinity, like(eqn), f"`{eqn.primitive.name}`")
        ]

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("neg", "reduce_sum", "reshape", "broadcast_in_dim", "transpose", "slice", "squeeze"),
            *("rev", "cumsum", "reduce_precision", "expand_dims", "real", "reduce_window_sum"),
            *("dynamic_slice", "tile"),
        ),
        linear(0),
    ),
    **dict.fromkeys(("concatenate", "stack"), linear()),
    **dict.fromkeys(("pad", "dynamic_update_slice"), linear(0, 1)),
    **dict.fromkeys(("scatter", "scatter-add", "scatter_add"), linear(0, 2)),
    **dict.fromkeys(
        (
            *("copy", "copy_p", "device_put", "sharding_constraint", "optimization_barrier"),
            *("pvary", "stop_gradient", "layout_constraint", "reshard", "mesh_cast", "name"),
        ),
        identity,
    ),
    **dict.fromkeys(("split", "unstack"), split),
    "gather": gathering,
    "convert_element_type": conversion,
    "add": addition(1),
    "add_any": addition(1),
    "sub": addition(-1),
    "mul": multiplication,
    "div": division,
    "dot_general": contraction,
    "conv_general_dilated": contraction,
    "integer_pow": power(),
    "square": power(2),
    "sqrt": power(0.5),
    "rsqrt": power(-0.5),
    "pow": general_power,
    "exp": smooth(jnp.exp, (0.0, np.inf)),
    "exp2": smooth(jnp.exp2, (0.0, np.inf)),
    "expm1": smooth(jnp.expm1, (-1.0, np.inf)),
    "sinh": smooth(jnp.sinh, (-np.inf, np.inf)),
    "cosh": smooth(jnp.cosh, (np.inf, np.inf)),
    "tanh": smooth(jnp.tanh, (-1.0, 1.0)),
    "logistic": smooth(jax.nn.sigmoid, (0.0, 1.0)),
    "erf": smooth(jax.lax.erf, (-1.0, 1.0)),
    "erfc": smooth(jax.lax.erfc, (2.0, 0.0)),
    "atan": smooth(jnp.arctan, (-np.pi / 2, np.pi / 2)),
    "log": smooth(jnp.log),
    "log1p": smooth(jnp.log1p),
    "sin": smooth(jnp.sin),
    "cos": smooth(jnp.cos),
    "tan": smooth(jnp.tan),
    "asin": smooth(jnp.arcsin),
    "acos": smooth(jnp.arccos),
    "asinh": smooth(jnp.arcsinh),
    "acosh": smooth(jnp.arccosh),
    "atanh": smooth(jnp.arctanh),
    "erf_inv": smooth(jax.lax.erf_inv),
    "lgamma": smooth(jax.lax.lgamma),
    "digamma": smooth(jax.lax.digamma),
    **order.COMPARISONS,
    "max": bounds.extreme(larger=True),
    "min": bounds.extreme(larger=False),
    "clamp": bounds.clamp,
    "abs": order.absolute,
    "sign": order.signum,
    "is_finite": order.finite,
    "select_n": order.selection,
    "reduce_max": order.reduction(largest=True),
    "reduce_min": order.reduction(largest=False),
    "argmax": order.position(largest=True),
    "argmin": order.position(largest=False),
    "sort": order.sorting,
    "top_k": written_as(expansions.largest),
    "cummax": written_as(expansions.cumulative(jnp.maximum)),
    "cummin": written_as(expansions.cumulative(jnp.minimum)),
    "cumprod": written_as(expansions.running_product),
    "cumlogsumexp": written_as(expansions.cumulative(jnp.logaddexp)),
    "reduce_prod": written_as(expansions.product),
    "reduce_window_max": written_as(expansions.window_extreme(jnp.maximum, -np.inf)),
    "reduce_window_min": written_as(expansions.window_extreme(jnp.minimum, np.inf)),
    "cbrt": written_as(expansions.cube_root),
}
