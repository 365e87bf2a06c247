"""Elementwise smooth functions of a series: their values at ±∞, or Taylor about the c^0 term."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from saturation.errors import LimitError
from saturation.limit.equation import Interpreter
from saturation.limit.order import compare, with_undecided
from saturation.limit.series import Coefficient, Constant, Like, PowerSeries, Value, make

Function = Callable[[jax.Array], jax.Array]


def analytic(
    interpreter: Interpreter,
    x: PowerSeries,
    function: Function,
    at_infinity: tuple[float, float] | None,
    like: Like,
    name: str,
) -> Value:
    """Return f(x): its value at ±∞ where x grows, else its Taylor series about the c^0 term.

    Elements at which f or a derivative is not finite (log at 0) have no limit and are marked, and
    so are those that are ±∞ where f grows more slowly than they do (log of exp of what grows).

    Args:
      x: the argument.
      function: f, elementwise and smooth.
      at_infinity: f(−∞) and f(+∞), or None where f has no limit there in powers of c.
      like: gives shape and dtype.
      name: of f, for the error.

    Raises:
      LimitError: x has positive degree and f has no limit.
    """
    if x.degree > 0 and at_infinity is None:
        raise LimitError(
            f"{name} of a quantity of degree {x.degree} has no limit in powers of c, so `saturate` "
            "cannot carry it."
        )
    coefficients, singular = _about_base(x, function, like, at_infinity is not None)
    infinite, invalid = x.infinite, x.invalid
    if x.degree > 0 and at_infinity is not None:
        coefficients, bounded, undecided = _toward_ends(
            interpreter, x, coefficients, at_infinity, like
        )
        singular = None if singular is None else singular & bounded
        infinite = any(math.isinf(end) for end in at_infinity)
        invalid = with_undecided(invalid, undecided)
    if singular is None:
        return make(0, coefficients, like, invalid, infinite)
    zero = jnp.zeros_like(like)
    coefficients = [None if c is None else jax.lax.select(singular, zero, c) for c in coefficients]
    invalid = with_undecided(invalid, singular)
    return make(0, coefficients, like, invalid, infinite)


def _about_base(
    x: PowerSeries, function: Function, like: Like, has_ends: bool
) -> tuple[list[Coefficient], jax.Array | None]:
    """The Taylor coefficients about the c^0 term, and where one of them is not finite."""
    base = x.power(0)
    small = [x.power(-j) for j in range(1, x.terms)]
    zero = jnp.zeros_like(like)
    first, *others = _taylor(function, zero if base is None else base, small, x.terms)
    assert first is not None
    if base is None and _finite_at_zero(function, x.terms, like):
        if x.degree < 0 and _value_at_zero(function, like) == 0:
            return [None, *others], None  # so that the degree is that of the first that is not
        return [first, *others], None
    finite = [jnp.isfinite(c) for c in (first, *others) if c is not None]
    singular = ~jnp.all(jnp.stack(finite), axis=0)
    if x.infinite and base is not None and has_ends:
        # A mask's −∞: whatever f gives there is meant, and it has no slope.
        expected = jnp.isinf(base) & ~jnp.isnan(first)
        others = [None if c is None else jax.lax.select(expected, zero, c) for c in others]
        singular = singular & ~expected
    return [first, *others], singular


def _toward_ends(
    interpreter: Interpreter,
    x: PowerSeries,
    about: list[Coefficient],
    at_infinity: tuple[float, float],
    like: Like,
) -> tuple[list[Coefficient], jax.Array, Coefficient]:
    """The values at ±∞ where x grows, `about` elsewhere; where that is, and where it is undecided.

    What lies between finite ends is an activation's: of its many signs a few are near 0, and times
    x, as in a gelu, either end is right to within x. It is counted, and keeps its sign.
    """
    steep = any(math.isinf(end) for end in at_infinity)
    growing = [x.power(exponent) for exponent in range(x.degree, 0, -1)]
    kept = tuple([*growing, *[None] * x.terms][: x.terms])
    grown = PowerSeries(x.degree, kept, None, x.infinite, sizes=x.sizes)
    nothing = Constant(jnp.zeros((), like.dtype))
    compared = compare(interpreter, grown, nothing, sharp=steep)
    bounded = compared.equal
    below, above = (jnp.full(like.shape, end, like.dtype) for end in at_infinity)
    ends = jax.lax.select(compared.less, below, above)
    first, *others = about
    assert first is not None
    zero = jnp.zeros_like(like)
    lower = [None if c is None else jax.lax.select(bounded, c, zero) for c in others]
    undecided = compared.undecided if steep else None
    return [jax.lax.select(bounded, first, ends), *lower], bounded, undecided


def _value_at_zero(function: Function, like: Like) -> float:
    with jax.ensure_compile_time_eval():
        return float(function(jnp.zeros((), like.dtype)))


def _finite_at_zero(function: Function, terms: int, like: Like) -> bool:
    """Whether f and as many derivatives as a series of so many terms needs are finite at 0."""
    for _ in range(terms):
        if not math.isfinite(_value_at_zero(function, like)):
            return False
        function = _derivative(function)
    return True


def _taylor(
    function: Function, base: jax.Array, small: Sequence[Coefficient], terms: int
) -> list[Coefficient]:
    """Coefficients of f(base + Σ_j small[j−1]/c^j) in powers of 1/c."""
    result: list[Coefficient] = [function(base), *[None] * (terms - 1)]
    order = [None, *small]
    power: list[Coefficient] = [jnp.ones_like(base), *[None] * (terms - 1)]
    derivative = function
    for n in range(1, terms):
        power = _convolve(power, order, terms)
        if all(p is None for p in power):
            break
        derivative = _derivative(derivative)
        slope = derivative(base) / math.factorial(n)
        for k, p in enumerate(power):
            if p is not None:
                so_far = result[k]
                result[k] = slope * p if so_far is None else so_far + slope * p
    return result


def _convolve(a: Sequence[Coefficient], b: Sequence[Coefficient], terms: int) -> list[Coefficient]:
    total: list[Coefficient] = [None] * terms
    for i, p in enumerate(a):
        for j, q in enumerate(b[: terms - i]):
            if p is not None and q is not None:
                so_far = total[i + j]
                total[i + j] = p * q if so_far is None else so_far + p * q
    return total


def _derivative(function: Function) -> Function:
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]
