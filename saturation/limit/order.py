"""Order among series for large c, which is lexicographic over their coefficients, and its rules.

A lower term breaks a tie of the higher ones: that is how the relative bias of a T5 decides between
keys of equal tokens. What compares with something that has no limit has none itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saturation.limit.equation import Interpreter, Rule, axes_of, like, plain
from saturation.limit.series import (
    Coefficient,
    Like,
    Plain,
    Series,
    Value,
    align,
    as_series,
    either,
    join_invalid,
    make,
    untold,
)


def less(x: Value, y: Value, terms: int) -> jax.Array:
    """Return where x < y for large c: coefficients compare lexicographically."""
    result: Coefficient = None
    for p, q in reversed(_pairs(x, y, terms)):
        # Not by the sign of a difference: ∞ − ∞ is NaN, and two −∞ are equal.
        result = p < q if result is None else (p < q) | ((p == q) & result)
    assert result is not None
    return jnp.broadcast_to(result, jnp.broadcast_shapes(x.shape, y.shape))


def equal(x: Value, y: Value, terms: int) -> jax.Array:
    """Return where x and y are the same in every kept term."""
    result: Coefficient = None
    for p, q in _pairs(x, y, terms):
        result = p == q if result is None else (p == q) & result
    assert result is not None
    return jnp.broadcast_to(result, jnp.broadcast_shapes(x.shape, y.shape))


def _pairs(x: Value, y: Value, terms: int) -> list[tuple[jax.Array, jax.Array]]:
    """The coefficients of each power that one of the two has, from the highest downwards."""
    first, second = as_series(x, terms), as_series(y, terms)
    _, (a, b) = align([first, second])
    zero = jnp.zeros((), first.example.dtype)
    return [
        (zero if p is None else p, zero if q is None else q)
        for p, q in zip(a, b, strict=True)
        if p is not None or q is not None
    ]


def select(which: Plain, cases: Sequence[Value], shaped: Like, terms: int) -> Value:
    """Return, element by element, the case that `which` (bool or integer) names."""
    index = jnp.broadcast_to(which.array, shaped.shape)

    def pick(options: Sequence[Coefficient], absent: jax.Array) -> Coefficient:
        if all(option is None for option in options):
            return None
        dense = (absent if option is None else option for option in options)
        return jax.lax.select_n(index, *(jnp.broadcast_to(d, shaped.shape) for d in dense))

    none = jnp.zeros(shaped.shape, bool)
    invalid = pick([case.invalid for case in cases], none)
    if which.invalid is not None:
        doubted = jnp.broadcast_to(which.invalid, shaped.shape)
        invalid = doubted if invalid is None else doubted | invalid
    infinite = any(case.infinite for case in cases)
    constants = [case for case in cases if isinstance(case, Plain)]
    if len(constants) == len(cases):  # integers and truth values among them: they stay constants
        arrays = (jnp.broadcast_to(case.array, shaped.shape) for case in constants)
        large = max((case.large for case in constants if case.large), key=abs, default=None)
        return Plain(jax.lax.select_n(index, *arrays), invalid, infinite, large)
    all_series = [as_series(case, terms) for case in cases]
    degree, aligned = align(all_series)
    zero = jnp.zeros_like(shaped)
    coefficients = [pick(options, zero) for options in zip(*aligned, strict=True)]
    noise = None
    if any(one.noise is not None for one in all_series):
        leading = [parts[0] for parts in aligned]
        noise = pick([untold(s, c) for s, c in zip(all_series, leading, strict=True)], ~none)
    return make(degree, coefficients, shaped, invalid, infinite, noise)


def extremes(
    x: Series, axes: tuple[int, ...], largest: bool
) -> tuple[list[Coefficient], jax.Array]:
    """Return the coefficients of the lexicographic maximum (minimum) over axes, kept as axes of
    length 1, and where it is attained.
    """
    outermost = -np.inf if largest else np.inf
    reduce = jnp.max if largest else jnp.min
    attained = jnp.ones(x.shape, bool)
    found: list[Coefficient] = []
    for a in x.coefficients:
        if a is None:
            found.append(None)
            continue
        candidates = jax.lax.select(attained, a, jnp.full_like(a, outermost))
        best = reduce(candidates, axis=axes, keepdims=True)
        attained &= a == best
        found.append(best)
    return found, attained


def count_ties(
    found: Sequence[Coefficient], attained: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Return how many elements beyond one attain an extreme, int32; rows of ±∞ have no ties."""
    surplus = jnp.sum(attained, axis=axes, keepdims=True, dtype=jnp.int32) - 1
    for c in found:
        if c is not None:  # a row of masks alone attains −∞ everywhere, which is no tie
            surplus = jnp.where(jnp.isfinite(c), surplus, 0)
    return jnp.sum(surplus, dtype=jnp.int32)


def comparison(holds: Callable[[Value, Value, int], jax.Array]) -> Rule:
    """Return the rule of a comparison, given where it holds."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, y = inputs
        return [Plain(holds(x, y, interpreter.terms), join_invalid(x, y))]

    return rule


COMPARISONS: dict[str, Rule] = {
    "lt": comparison(less),
    "gt": comparison(lambda x, y, terms: less(y, x, terms)),
    "le": comparison(lambda x, y, terms: ~less(y, x, terms)),
    "ge": comparison(lambda x, y, terms: ~less(x, y, terms)),
    "eq": comparison(equal),
    "ne": comparison(lambda x, y, terms: ~equal(x, y, terms)),
}
# A total order of floats, which searches use, differs from these in NaN and −0 alone.
COMPARISONS |= {f"{name}_to": COMPARISONS[name] for name in ("lt", "le", "eq")}


def absolute(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """|x|: each coefficient times the sign of the first that is not 0."""
    x = as_series(inputs[0], interpreter.terms)
    negative = less(x, _zero(x), interpreter.terms)
    parts = [None if c is None else jax.lax.select(negative, -c, c) for c in x.coefficients]
    return [make(x.degree, parts, like(eqn), x.invalid, x.infinite, x.noise)]


def signum(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """The sign of x for large c."""
    x = as_series(inputs[0], interpreter.terms)
    below, above = (less(*pair, interpreter.terms) for pair in ((x, _zero(x)), (_zero(x), x)))
    dtype = like(eqn).dtype
    return [Plain(above.astype(dtype) - below.astype(dtype), x.invalid)]


def _zero(x: Series) -> Plain:
    return Plain(jnp.zeros((), x.example.dtype))


def finite(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Whether no kept coefficient is NaN or ±∞."""
    x = as_series(inputs[0], interpreter.terms)
    present = [~jnp.isfinite(c) for c in x.coefficients if c is not None]
    return [Plain(~either(*present), x.invalid)]


def selection(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """select_n: the case that a boolean or integer names, element by element."""
    which, *cases = inputs
    return [select(plain(eqn, which), cases, like(eqn), interpreter.terms)]


def reduction(largest: bool) -> Rule:
    """Return the rule of reduce_max, or reduce_min: lexicographic, ties counted."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, axes = as_series(inputs[0], interpreter.terms), axes_of(eqn)
        found, attained = extremes(x, axes, largest)
        interpreter.count_ties(count_ties(found, attained, axes))
        kept = [None if c is None else jnp.squeeze(c, axes) for c in found]
        invalid = None if x.invalid is None else jnp.any(x.invalid, axis=axes)
        noise = None if x.noise is None else jnp.any(attained & x.noise, axis=axes)
        return [make(x.degree, kept, like(eqn), invalid, x.infinite, noise)]

    return rule


def position(largest: bool) -> Rule:
    """Return the rule of argmax, or argmin: the first place that attains the extreme."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, axes = as_series(inputs[0], interpreter.terms), axes_of(eqn)
        found, attained = extremes(x, axes, largest)
        interpreter.count_ties(count_ties(found, attained, axes))
        place = jnp.argmax(attained, axis=axes[0]).astype(like(eqn).dtype)
        return [Plain(place, None if x.invalid is None else jnp.any(x.invalid, axis=axes))]

    return rule


def sorting(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """sort: the coefficients of the keys are keys one after the other, all else moves along.

    A row with a key that has no limit has no order, and so no limit in any of its elements.
    """
    dimension, keys = eqn.params["dimension"], eqn.params["num_keys"]
    columns: list[jax.Array] = []
    places: list[range] = []
    number_of_keys = 0
    for i, value in enumerate(inputs):
        arrays = [value.array] if isinstance(value, Plain) else _dense(value)
        places.append(range(len(columns), len(columns) + len(arrays)))
        columns += arrays
        number_of_keys += len(arrays) if i < keys else 0
    unordered = [one.invalid for one in inputs[:keys] if one.invalid is not None]
    marks = {("invalid", i): one.invalid for i, one in enumerate(inputs)}
    marks |= {("noise", i): one.noise for i, one in enumerate(inputs) if isinstance(one, Series)}
    marks = {name: mask for name, mask in marks.items() if mask is not None}
    moved = jax.lax.sort(
        (*columns, *(mask.astype(jnp.int32) for mask in marks.values())),
        dimension=dimension,
        is_stable=True,
        num_keys=number_of_keys,
    )
    masks = {name: m != 0 for name, m in zip(marks, moved[len(columns) :], strict=True)}
    row = jnp.any(either(*unordered), axis=dimension, keepdims=True) if unordered else None

    def invalid(i: int) -> jax.Array | None:
        own = masks.get(("invalid", i))
        if row is None:
            return own
        everywhere = jnp.broadcast_to(row, inputs[i].shape)
        return everywhere if own is None else everywhere | own

    results: list[Value] = []
    for i, value in enumerate(inputs):
        parts = [moved[place] for place in places[i]]
        if isinstance(value, Plain):
            results.append(Plain(parts[0], invalid(i)))
        else:
            marked = invalid(i), value.infinite, masks.get(("noise", i))
            results.append(make(value.degree, parts, like(eqn, i), *marked))
    return results


def _dense(x: Series) -> list[jax.Array]:
    return [jnp.zeros_like(x.example) if c is None else c for c in x.coefficients]
