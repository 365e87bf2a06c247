"""What `saturate` does at each primitive that meets a series; one rule a primitive, by its name.

A rule takes the interpreter, the equation and its inputs, of which at least one is a `Series`, and
returns the outputs. A primitive without a rule here is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from saturation import limit_series as series
from saturation.errors import LimitError
from saturation.limit_series import Plain, Series, Value


@runtime_checkable
class Interpreter(Protocol):
    """What a rule may ask of the interpreter that applies it."""

    terms: int

    def count_ties(self, count: jax.Array) -> None:
        """Count elements that were equal in all kept terms where one of them had to be chosen."""
        ...


Rule = Callable[[Interpreter, Any, Sequence[Value]], list[Value]]


def bind(eqn: Any, *arrays: jax.Array) -> Any:
    """Apply an equation's primitive to arrays, as JAX would."""
    return eqn.primitive.bind(*arrays, **eqn.params)


def like(eqn: Any, output: int = 0) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of an equation's output."""
    aval = eqn.outvars[output].aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def linear(*operands: int) -> Rule:
    """Return the rule of a primitive that is linear in these inputs together (none named: in all).

    It acts on the coefficients of each power apart; the other inputs (indices) are no series.
    """

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        chosen = operands or tuple(range(len(inputs)))
        fixed = {i: _plain(eqn, v) for i, v in enumerate(inputs) if i not in chosen}
        moving = [series.as_series(inputs[i], interpreter.terms) for i in chosen]
        degree, aligned = series.align(moving)

        def apply(parts: Sequence[jax.Array]) -> jax.Array:
            arrays = fixed | dict(zip(chosen, parts, strict=True))
            result = bind(eqn, *(arrays[i] for i in range(len(inputs))))
            return result[0] if isinstance(result, list | tuple) else result

        def on_power(parts: Sequence[series.Coefficient]) -> series.Coefficient:
            if all(part is None for part in parts):
                return None
            filled = zip(parts, moving, strict=True)
            return apply([jnp.zeros_like(m.example) if p is None else p for p, m in filled])

        coefficients = [on_power(parts) for parts in zip(*aligned, strict=True)]
        invalid = None
        if any(m.invalid is not None for m in moving):
            spoilt = [
                jnp.zeros_like(m.example)
                if m.invalid is None
                else m.invalid.astype(m.example.dtype)
                for m in moving
            ]
            invalid = apply(spoilt) != 0
        infinite = any(m.infinite for m in moving)
        return [series.make(degree, coefficients, like(eqn), invalid, infinite)]

    return rule


def split(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A linear primitive with several outputs."""
    (x,) = (series.as_series(value, interpreter.terms) for value in inputs)
    parts = [None if c is None else bind(eqn, c) for c in x.coefficients]
    masks = None if x.invalid is None else bind(eqn, x.invalid.astype(x.example.dtype))
    return [
        series.make(
            x.degree,
            [None if p is None else p[i] for p in parts],
            like(eqn, i),
            None if masks is None else masks[i] != 0,
            x.infinite,
        )
        for i in range(len(eqn.outvars))
    ]


def identity(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A primitive that hands its inputs on."""
    return list(inputs)


def addition(sign: int) -> Rule:
    """Return the rule of x + y, or of x − y with sign −1."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, y = inputs
        return [series.add(x, y, like(eqn), interpreter.terms, sign)]

    return rule


def multiplication(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """x·y, elementwise."""
    x, y = inputs
    return [_times(interpreter, eqn, x, y)]


def _times(interpreter: Interpreter, eqn: Any, x: Value, y: Value) -> Value:
    shape = like(eqn).shape

    def product(p: jax.Array, q: jax.Array) -> jax.Array:
        return jnp.broadcast_to(p * q, shape)

    return series.bilinear(x, y, product, like(eqn), interpreter.terms)


def contraction(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A primitive that is linear in each of two inputs: a product of matrices, a convolution."""
    x, y = inputs
    product = partial(bind, eqn)
    return [series.bilinear(x, y, product, like(eqn), interpreter.terms, contracts=True)]


def division(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """x/y; by a constant on each coefficient, else times the series of 1/y."""
    x, y = inputs
    if isinstance(y, Series):
        inverse = series.raised(y, -1.0, y.example)
        quotient = series.as_series(_times(interpreter, eqn, x, inverse), interpreter.terms)
        # Spoilt also where x is exactly 0, which spares a product: here it makes 0/0.
        return [replace(quotient, invalid=series.join_invalid(quotient, inverse))]
    numerator, shape = series.as_series(x, interpreter.terms), like(eqn).shape
    parts = [
        None if c is None else jnp.broadcast_to(c / y.array, shape) for c in numerator.coefficients
    ]
    invalid = series.join_invalid(x, y)
    return [series.make(numerator.degree, parts, like(eqn), invalid, numerator.infinite)]


def power(exponent: float | None = None) -> Rule:
    """Return the rule of x^exponent; None takes it from the equation's parameter `y`."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        p = eqn.params["y"] if exponent is None else exponent
        return [_power(interpreter, eqn, inputs[0], p)]

    return rule


def _power(interpreter: Interpreter, eqn: Any, x: Value, exponent: float) -> Value:
    if not float(exponent).is_integer() or exponent < 0:
        return series.raised(series.as_series(x, interpreter.terms), float(exponent), like(eqn))
    result: Value = Plain(jnp.ones(like(eqn).shape, like(eqn).dtype))
    for _ in range(int(exponent)):  # needs no division, so a vanishing x spoils nothing
        result = _times(interpreter, eqn, result, x)
    return result


def general_power(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """x^y for a known number y."""
    x, y = inputs
    if isinstance(y, Series) or isinstance(y.array, jax.core.Tracer):
        raise LimitError(
            "`pow` with an exponent that is not a known number cannot be carried; write the "
            "exponent as a Python number."
        )
    values = np.unique(np.asarray(y.array))
    if values.size != 1:
        raise LimitError("`pow` with several exponents in one array cannot be carried.")
    return [_power(interpreter, eqn, x, float(values[0]))]


def smooth(
    function: Callable[[jax.Array], jax.Array], at_infinity: tuple[float, float] | None
) -> Rule:
    """Return the rule of an elementwise smooth function with these values at −∞ and +∞."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x = series.as_series(inputs[0], interpreter.terms)
        return [series.analytic(x, function, at_infinity, like(eqn), f"`{eqn.primitive.name}`")]

    return rule


def comparison(holds: Callable[[jax.Array], jax.Array]) -> Rule:
    """Return the rule of a comparison, given what the sign of x − y must be."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, y = inputs
        dtype = next(v.example.dtype for v in inputs if isinstance(v, Series))
        given = jax.ShapeDtypeStruct(like(eqn).shape, dtype)
        return [Plain(holds(series.compare(x, y, given, interpreter.terms)))]

    return rule


def extreme(larger: bool) -> Rule:
    """Return the rule of max(x, y), or min(x, y)."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, y = inputs
        return [_extreme(interpreter, eqn, x, y, larger=larger)]

    return rule


def _extreme(interpreter: Interpreter, eqn: Any, x: Value, y: Value, larger: bool) -> Value:
    order = series.compare(x, y, like(eqn), interpreter.terms)
    second = order < 0 if larger else order > 0
    return series.select(second, (x, y), like(eqn), interpreter.terms)


def clamp(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """min(max(x, low), high)."""
    low, x, high = inputs
    raised = _extreme(interpreter, eqn, x, low, larger=True)
    return [_extreme(interpreter, eqn, raised, high, larger=False)]


def absolute(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """|x|: each coefficient times the sign of the first that is not 0."""
    x = series.as_series(inputs[0], interpreter.terms)
    negative = series.sign(x.coefficients, like(eqn)) < 0
    parts = [None if c is None else jnp.where(negative, -c, c) for c in x.coefficients]
    return [series.make(x.degree, parts, like(eqn), x.invalid, x.infinite)]


def signum(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """The sign of x for large c."""
    x = series.as_series(inputs[0], interpreter.terms)
    found = series.sign(x.coefficients, like(eqn)).astype(like(eqn).dtype)
    if x.invalid is None:
        return [Plain(found)]
    return [series.make(0, [found, *[None] * (x.terms - 1)], like(eqn), x.invalid)]


def finite(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Whether no kept coefficient is NaN or ±∞."""
    x = series.as_series(inputs[0], interpreter.terms)
    result = jnp.ones(like(eqn).shape, bool)
    for c in x.coefficients:
        result = result if c is None else result & jnp.isfinite(c)
    return [Plain(result)]


def selection(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """select_n: the case that a boolean or integer names, element by element."""
    which, *cases = inputs
    return [series.select(_plain(eqn, which), cases, like(eqn), interpreter.terms)]


def conversion(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A change of dtype; a series can become another float or a truth value."""
    x = series.as_series(inputs[0], interpreter.terms)
    target = like(eqn).dtype
    if target == jnp.bool_:
        return [Plain(x.nonzero())]
    if not jnp.issubdtype(target, jnp.floating):
        raise LimitError(
            f"A quantity of degree {x.degree} is converted to {target}, which has no limit."
        )
    parts = [None if c is None else c.astype(target) for c in x.coefficients]
    return [series.make(x.degree, parts, like(eqn), x.invalid, x.infinite)]


def reduction(largest: bool) -> Rule:
    """Return the rule of reduce_max, or reduce_min: lexicographic, ties counted."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, axes = series.as_series(inputs[0], interpreter.terms), tuple(eqn.params["axes"])
        found, attained = series.extremes(x, axes, largest)
        _count(interpreter, found, attained, axes)
        kept = [None if c is None else jnp.squeeze(c, axes) for c in found]
        invalid = None if x.invalid is None else jnp.any(x.invalid, axis=axes)
        return [series.make(x.degree, kept, like(eqn), invalid, x.infinite)]

    return rule


def _count(
    interpreter: Interpreter,
    found: Sequence[series.Coefficient],
    attained: jax.Array,
    axes: tuple[int, ...],
) -> None:
    surplus = jnp.sum(attained, axis=axes, keepdims=True, dtype=jnp.int32) - 1
    for c in found:
        if c is not None:  # a row of masks alone attains −∞ everywhere, which is no tie
            surplus = jnp.where(jnp.isfinite(c), surplus, 0)
    interpreter.count_ties(jnp.sum(surplus, dtype=jnp.int32))


def position(largest: bool) -> Rule:
    """Return the rule of argmax, or argmin: the first place that attains the extreme."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, axes = series.as_series(inputs[0], interpreter.terms), tuple(eqn.params["axes"])
        found, attained = series.extremes(x, axes, largest)
        _count(interpreter, found, attained, axes)
        return [Plain(jnp.argmax(attained, axis=axes[0]).astype(like(eqn).dtype))]

    return rule


def sorting(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """sort: the coefficients of the keys are keys one after the other, all else moves along."""
    keys = eqn.params["num_keys"]
    columns: list[jax.Array] = []
    places: list[list[int]] = []
    number_of_keys = 0
    for i, value in enumerate(inputs):
        arrays = [value.array] if isinstance(value, Plain) else _dense(value)
        places.append(list(range(len(columns), len(columns) + len(arrays))))
        columns += arrays
        number_of_keys += len(arrays) if i < keys else 0
    masks: dict[int, int] = {}
    for i, value in enumerate(inputs):
        if isinstance(value, Series) and value.invalid is not None:
            masks[i] = len(columns)
            columns.append(value.invalid.astype(jnp.int32))
    moved = jax.lax.sort(
        tuple(columns),
        dimension=eqn.params["dimension"],
        is_stable=True,
        num_keys=number_of_keys,
    )
    results: list[Value] = []
    for i, value in enumerate(inputs):
        parts = [moved[place] for place in places[i]]
        if isinstance(value, Plain):
            results.append(Plain(parts[0]))
            continue
        invalid = moved[masks[i]] != 0 if i in masks else None
        results.append(series.make(value.degree, parts, like(eqn, i), invalid, value.infinite))
    return results


def _dense(x: Series) -> list[jax.Array]:
    return [jnp.zeros_like(x.example) if c is None else c for c in x.coefficients]


def _plain(eqn: Any, value: Value) -> jax.Array:
    if isinstance(value, Series):
        raise LimitError(
            f"`{eqn.primitive.name}` takes a quantity of degree {value.degree} as an index or a "
            "condition, which has no limit."
        )
    return value.array


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("neg", "reduce_sum", "reshape", "broadcast_in_dim", "transpose", "slice", "squeeze"),
            *("rev", "cumsum", "reduce_precision", "expand_dims", "real", "reduce_window_sum"),
            *("gather", "dynamic_slice", "tile"),
        ),
        linear(0),
    ),
    **dict.fromkeys(("concatenate", "stack"), linear()),
    **dict.fromkeys(("pad", "dynamic_update_slice"), linear(0, 1)),
    **dict.fromkeys(("scatter", "scatter-add"), linear(0, 2)),
    **dict.fromkeys(
        (
            *("copy", "copy_p", "device_put", "sharding_constraint", "optimization_barrier"),
            *("pvary", "stop_gradient"),
        ),
        identity,
    ),
    "split": split,
    "unstack": split,
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
    "tanh": smooth(jnp.tanh, (-1.0, 1.0)),
    "logistic": smooth(jax.nn.sigmoid, (0.0, 1.0)),
    "erf": smooth(jax.lax.erf, (-1.0, 1.0)),
    "erfc": smooth(jax.lax.erfc, (2.0, 0.0)),
    "atan": smooth(jnp.arctan, (-np.pi / 2, np.pi / 2)),
    "log": smooth(jnp.log, None),
    "log1p": smooth(jnp.log1p, None),
    "sin": smooth(jnp.sin, None),
    "cos": smooth(jnp.cos, None),
    "gt": comparison(lambda order: order > 0),
    "ge": comparison(lambda order: order >= 0),
    "lt": comparison(lambda order: order < 0),
    "le": comparison(lambda order: order <= 0),
    "eq": comparison(lambda order: order == 0),
    "ne": comparison(lambda order: order != 0),
    "max": extreme(larger=True),
    "min": extreme(larger=False),
    "clamp": clamp,
    "abs": absolute,
    "sign": signum,
    "is_finite": finite,
    "select_n": selection,
    "convert_element_type": conversion,
    "reduce_max": reduction(largest=True),
    "reduce_min": reduction(largest=False),
    "argmax": position(largest=True),
    "argmin": position(largest=False),
    "sort": sorting,
}
