"""Maxima and minima of two values, and what they bound: min(max(x, 0), 6) does not grow.

What is chosen of two values of unlike degree has the higher one, unless it is known that nothing of
that degree is ever chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from saturation.limit.equation import Interpreter, Rule, like
from saturation.limit.order import compare, select
from saturation.limit.series import (
    Bound,
    Constant,
    Like,
    PowerSeries,
    Value,
    join_invalid,
    make,
)


def maximum(
    interpreter: Interpreter, x: Value, y: Value, shaped: Like, larger: bool = True
) -> Value:
    """Return max(x, y), or min(x, y); without a limit where either has none.

    It does not jump: what is undecided is either of the two, to within their difference.
    """
    terms = interpreter.terms
    x, y = interpreter.unmasked(x, y)
    decided = _beside_a_number(x, y, shaped, larger)
    if decided is not None:
        return decided
    pair = (x, y) if larger else (y, x)
    below = compare(interpreter, *pair, sharp=False, jumps=False).less
    second = Constant(below, join_invalid(x, y))
    found = select(interpreter, second, (x, y), shaped)
    lower, higher = sorted((x, y), key=_degree)
    gap = _degree(higher) - _degree(lower)
    if gap == 0 or not isinstance(found, PowerSeries) or not isinstance(higher, PowerSeries):
        return found
    if lower.infinite:  # min(x, ∞) is no bound of x
        return found
    base, sign = _degree(lower), 1 if larger else -1
    known = higher.bound
    if known is None or known.sign == sign or known.degree > base:
        rest = None
        if gap >= terms:
            cases = [_up_to(value, base, terms) for value in (x, y)]
            rest = select(interpreter, second, cases, shaped)
        return replace(found, bound=Bound(sign, base, rest))
    # min(max(x, 0), 6) does not grow: what has terms above the bounds' degree is at one of them.
    if gap < terms:
        kept = [*[None] * gap, *found.coefficients[gap:]]
        return make(found.degree, kept, found.example, found.invalid)
    assert known.rest is not None
    grown = Constant(higher.nonzero(), higher.invalid)
    within = maximum(interpreter, known.rest, lower, shaped, larger)
    return select(interpreter, grown, (within, lower), shaped)


def _beside_a_number(x: Value, y: Value, shaped: Like, larger: bool) -> Value | None:
    """What vanishes against a number that is known: min(1, 1/θ) is 1/θ, of its own degree."""
    number, other = (x, y) if isinstance(x, Constant) else (y, x)
    if not isinstance(number, Constant) or not isinstance(other, PowerSeries):
        return None
    if other.degree >= 0 or other.infinite or other.shape != shaped.shape:
        return None
    if isinstance(number.array, jax.core.Tracer) or number.array.size != 1:
        return None
    value = float(number.array.item())
    if number.invalid is not None or not abs(value) > 0:
        return None
    if (value > 0) != larger:
        return other
    on_every_process = jnp.broadcast_to(number.array, shaped.shape)
    return replace(number, array=on_every_process, invalid=other.invalid)


def _degree(value: Value) -> int:
    return value.degree if isinstance(value, PowerSeries) else 0


def _up_to(value: Value, degree: int, terms: int) -> Value:
    """The terms of a value up to that degree."""
    if _degree(value) <= degree or not isinstance(value, PowerSeries):
        return value
    return make(degree, [value.power(degree - k) for k in range(terms)], value.example)


def extreme(larger: bool) -> Rule:
    """Return the rule of max(x, y), or min(x, y)."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, y = inputs
        return [maximum(interpreter, x, y, like(eqn), larger)]

    return rule


def clamp(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """min(max(x, low), high)."""
    low, x, high = inputs
    power_of_series = maximum(interpreter, x, low, like(eqn))
    return [maximum(interpreter, power_of_series, high, like(eqn), larger=False)]
