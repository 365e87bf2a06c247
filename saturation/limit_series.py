"""Truncated series in 1/c: the numbers that `saturation.limit` computes with.

A `Series` stands for Σ_k coefficients[k]·c^(degree − k) as c → ∞, k = 0 … terms − 1. Its degree is
static, one for the whole array; an exactly absent term is None and costs nothing. Everything that
does not depend on c is a `Plain` array. What a division by a vanishing leading coefficient spoils
is marked, element by element, and not left to NaN, which comparisons swallow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from saturation.errors import LimitError

Coefficient = jax.Array | None
Like = jax.Array | jax.ShapeDtypeStruct  # what gives an output's shape and dtype


@dataclass(frozen=True)
class Plain:
    """An array of degree 0 that does not depend on c.

    Attributes:
      array: of any dtype.
      infinite: whether it may hold ±∞, which outranks every degree.
      large: the largest finite constant beyond ±1e6 that it may hold, or None: a mask's, probably.
    """

    array: jax.Array
    infinite: bool = False
    large: float | None = None


@dataclass(frozen=True)
class Series:
    """Σ_k coefficients[k]·c^(degree − k); those that are present have one shape and dtype.

    Attributes:
      degree: the exponent of c of the first coefficient.
      coefficients: `terms` of them, each an array or None where it is exactly 0.
      invalid: bool, of the coefficients' shape, where a vanishing denominator spoilt the element;
        None where nothing is spoilt. The coefficients there are finite and mean nothing.
      infinite: whether the first coefficient may hold ±∞.
    """

    degree: int
    coefficients: tuple[Coefficient, ...]
    invalid: jax.Array | None = None
    infinite: bool = False

    @property
    def terms(self) -> int:
        """The number of coefficients kept."""
        return len(self.coefficients)

    @property
    def example(self) -> jax.Array:
        """A coefficient that is present, for its shape and dtype."""
        return next(c for c in self.coefficients if c is not None)

    def power(self, exponent: int) -> Coefficient:
        """Return the coefficient of c^exponent; None where it is absent or was not kept."""
        index = self.degree - exponent
        return self.coefficients[index] if 0 <= index < self.terms else None

    def nonzero(self) -> jax.Array:
        """Return where any kept coefficient is not 0."""
        present = [c != 0 for c in self.coefficients if c is not None]
        return _any(present)


Value = Plain | Series


def make(
    degree: int,
    coefficients: Sequence[Coefficient],
    like: Like,
    invalid: jax.Array | None = None,
    infinite: bool = False,
) -> Value:
    """Return a series without leading absent terms; a `Plain` 0, shaped like `like`, if all are."""
    terms = len(coefficients)
    present = [k for k, coefficient in enumerate(coefficients) if coefficient is not None]
    if not present and invalid is None:
        return Plain(jnp.zeros_like(like))
    first = present[0] if present else 0
    kept = [*coefficients[first:], *[None] * first]
    if not present:
        kept[0] = jnp.zeros_like(like)
    return Series(degree - first, tuple(kept[:terms]), invalid, infinite)


def as_series(value: Value, terms: int) -> Series:
    """Return a value as a series; a constant has degree 0 and one term."""
    if isinstance(value, Series):
        return value
    return Series(0, (value.array, *[None] * (terms - 1)), None, value.infinite)


def align(values: Sequence[Series]) -> tuple[int, list[list[Coefficient]]]:
    """Return the highest degree, and the coefficients of every series from it downwards."""
    degree = max(value.degree for value in values)
    return degree, [_from(value, degree) for value in values]


def _from(x: Series, degree: int) -> list[Coefficient]:
    """The coefficients of x from c^degree downwards; ±∞ moves to the front, above every degree."""
    gap = degree - x.degree
    moved = ([None] * gap + [*x.coefficients])[: x.terms]
    first = x.coefficients[0]
    if gap == 0 or not x.infinite or first is None:
        return moved
    infinite = jnp.isinf(first)
    front = jnp.where(infinite, first, jnp.zeros_like(first))
    return [
        front,
        *(None if m is None else jnp.where(infinite, jnp.zeros_like(m), m) for m in moved[1:]),
    ]


def join_invalid(*values: Value) -> jax.Array | None:
    """Return where any of the values, which broadcast, is spoilt; None for nowhere."""
    masks = [v.invalid for v in values if isinstance(v, Series) and v.invalid is not None]
    if not masks:
        return None
    shape = jnp.broadcast_shapes(*(_shape(value) for value in values))
    return _any([jnp.broadcast_to(mask, shape) for mask in masks])


def _shape(value: Value) -> tuple[int, ...]:
    return value.array.shape if isinstance(value, Plain) else value.example.shape


def _any(masks: Sequence[jax.Array]) -> jax.Array:
    result = masks[0]
    for mask in masks[1:]:
        result = result | mask
    return result


def add(x: Value, y: Value, like: Like, terms: int, sign: int = 1) -> Value:
    """Return x + y, or x − y with sign −1."""
    invalid = join_invalid(x, y)
    first, second = as_series(x, terms), as_series(y, terms)
    degree, (a, b) = align([first, second])
    total = [_sum(p, q if sign > 0 or q is None else -q, like) for p, q in zip(a, b, strict=True)]
    return make(degree, total, like, invalid, first.infinite or second.infinite)


def _sum(a: Coefficient, b: Coefficient, like: Like) -> Coefficient:
    if a is None or b is None:
        only = b if a is None else a
        return None if only is None else jnp.broadcast_to(only, like.shape)
    return a + b


def bilinear(
    x: Value,
    y: Value,
    product: Callable[[jax.Array, jax.Array], jax.Array],
    like: Like,
    terms: int,
    contracts: bool = False,
) -> Value:
    """Return a product of two series: its coefficients are the convolution of theirs.

    What is spoilt spoils its products, but for those with an exact 0 that leaves it out: a 0 of a
    constant, or, where the product `contracts`, of any factor (the weight of a masked key).
    """
    a, b = as_series(x, terms), as_series(y, terms)
    total: list[Coefficient] = [None] * terms
    for i, p in enumerate(a.coefficients):
        for j, q in enumerate(b.coefficients[: terms - i]):
            if p is not None and q is not None:
                term = product(p, q)
                so_far = total[i + j]
                total[i + j] = term if so_far is None else so_far + term
    counts = [
        one.nonzero() if contracts or isinstance(value, Plain) else jnp.ones_like(one.nonzero())
        for one, value in ((a, x), (b, y))
        if a.invalid is not None or b.invalid is not None
    ]
    invalid = _spoilt_products(a, b, counts, product) if counts else None
    return make(a.degree + b.degree, total, like, invalid, a.infinite or b.infinite)


def _spoilt_products(
    a: Series,
    b: Series,
    counts: Sequence[jax.Array],
    product: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Where a spoilt factor meets one that counts."""
    dtype = a.example.dtype
    met = []
    for spoilt, other, weight in ((a, b, counts[1]), (b, a, counts[0])):
        if spoilt.invalid is not None:
            weight = weight if other.invalid is None else weight | other.invalid
            factors = (spoilt.invalid.astype(dtype), weight.astype(dtype))
            met.append(product(*(factors if spoilt is a else factors[::-1])) > 0)
    return _any(met)


def raised(x: Series, exponent: float, like: Like) -> Value:
    """Return x^exponent about its leading coefficient; elements where that is 0 are spoilt.

    b_0 = a_0^p and n a_0 b_n = Σ_{k=1}^{n} (k p − n + k) a_k b_{n−k} (J. C. P. Miller's recurrence;
    Knuth, TAOCP 2, section 4.7).

    Raises:
      LimitError: degree·exponent is no whole number: the result is no series in whole powers of c.
    """
    degree = x.degree * exponent
    if not float(degree).is_integer():
        raise LimitError(
            f"The power {exponent:g} of a quantity of degree {x.degree} has degree {degree:g}, and "
            "only whole degrees can be carried."
        )
    leading = x.coefficients[0]
    assert leading is not None
    vanishes = leading == 0
    a = jnp.where(vanishes, jnp.ones_like(leading), leading)
    b: list[Coefficient] = [_elementary_power(a, exponent)]
    for n in range(1, x.terms):
        total: Coefficient = None
        for k in range(1, n + 1):
            a_k, rest = x.coefficients[k], b[n - k]
            if a_k is not None and rest is not None:
                term = (k * exponent - n + k) * a_k * rest
                total = term if total is None else total + term
        b.append(None if total is None else total / (n * a))
    invalid = vanishes if x.invalid is None else vanishes | x.invalid
    return make(int(degree), b, like, invalid, x.infinite)


def _elementary_power(a: jax.Array, exponent: float) -> jax.Array:
    named = {-1.0: lambda v: 1 / v, 0.5: jnp.sqrt, -0.5: jax.lax.rsqrt}
    if exponent in named:
        return named[exponent](a)
    return jnp.power(a, jnp.asarray(exponent, a.dtype))


def sign(coefficients: Sequence[Coefficient], like: Like) -> jax.Array:
    """Return the sign, int32, of the first coefficient that is not 0; 0 where all are."""
    result = jnp.zeros(like.shape, jnp.int32)
    for a in coefficients:
        if a is not None:
            own = (a > 0).astype(jnp.int32) - (a < 0).astype(jnp.int32)
            result = jnp.where(result == 0, own, result)
    return result


def compare(x: Value, y: Value, like: Like, terms: int) -> jax.Array:
    """Return the sign, int32, of x − y for large c: coefficients compare lexicographically."""
    _, (a, b) = align([as_series(x, terms), as_series(y, terms)])
    result = jnp.zeros(like.shape, jnp.int32)
    zero = jnp.zeros((), like.dtype)
    for p, q in zip(a, b, strict=True):
        if p is None and q is None:
            continue
        p, q = zero if p is None else p, zero if q is None else q
        # Not the sign of a difference: ∞ − ∞ is NaN, and two −∞ are equal.
        own = (p > q).astype(jnp.int32) - (p < q).astype(jnp.int32)
        result = jnp.where(result == 0, own, result)
    return result


def select(which: jax.Array, cases: Sequence[Value], like: Like, terms: int) -> Value:
    """Return, element by element, the case that `which` (bool or integer) names."""
    all_series = [as_series(case, terms) for case in cases]
    degree, aligned = align(all_series)
    which = jnp.broadcast_to(which, like.shape)

    def pick(options: Sequence[Coefficient]) -> Coefficient:
        if all(option is None for option in options):
            return None
        dense = (jnp.zeros_like(like) if o is None else o for o in options)
        return jax.lax.select_n(which, *(jnp.broadcast_to(d, like.shape) for d in dense))

    coefficients = [pick(options) for options in zip(*aligned, strict=True)]
    invalid = None
    if any(one.invalid is not None for one in all_series):
        none = jnp.zeros(like.shape, bool)
        masks = (none if one.invalid is None else one.invalid for one in all_series)
        invalid = jax.lax.select_n(which, *(jnp.broadcast_to(m, like.shape) for m in masks))
    return make(degree, coefficients, like, invalid, any(one.infinite for one in all_series))


def analytic(
    x: Series,
    function: Callable[[jax.Array], jax.Array],
    at_infinity: tuple[float, float] | None,
    like: Like,
    name: str,
) -> Value:
    """Return f(x): its value at ±∞ where x grows, else its Taylor series about the c^0 term.

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
    base = x.power(0)
    small = [x.power(-j) for j in range(1, x.terms)]
    coefficients = _taylor(function, jnp.zeros_like(like) if base is None else base, small, x.terms)
    if base is None and _is_zero_at_zero(function, like) and x.degree < 0:
        coefficients[0] = (
            None  # exactly absent, so that the degree is that of the first that is not
        )
    infinite = x.infinite
    if x.degree > 0 and at_infinity is not None:
        growing = [x.power(exponent) for exponent in range(x.degree, 0, -1)]
        toward = sign(growing, like)
        ends = jnp.where(toward > 0, *(jnp.asarray(end, like.dtype) for end in at_infinity[::-1]))
        first = coefficients[0]
        assert first is not None
        coefficients = [
            jnp.where(toward == 0, first, ends),
            *(
                None if c is None else jnp.where(toward == 0, c, jnp.zeros_like(c))
                for c in coefficients[1:]
            ),
        ]
        infinite = any(math.isinf(end) for end in at_infinity)
    return make(0, coefficients, like, x.invalid, infinite)


def _is_zero_at_zero(function: Callable[[jax.Array], jax.Array], like: Like) -> bool:
    with jax.ensure_compile_time_eval():
        return float(function(jnp.zeros((), like.dtype))) == 0.0


def _taylor(
    function: Callable[[jax.Array], jax.Array],
    base: jax.Array,
    small: Sequence[Coefficient],
    terms: int,
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


def _derivative(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def extremes(
    x: Series, axes: tuple[int, ...], largest: bool
) -> tuple[list[Coefficient], jax.Array]:
    """Return the coefficients of the lexicographic maximum (minimum) over axes, kept as axes of
    length 1, and where it is attained.
    """
    outermost = -np.inf if largest else np.inf
    reduce = jnp.max if largest else jnp.min
    attained = jnp.ones(x.example.shape, bool)
    found: list[Coefficient] = []
    for a in x.coefficients:
        if a is None:
            found.append(None)
            continue
        candidates = jnp.where(attained, a, jnp.asarray(outermost, a.dtype))
        best = reduce(candidates, axis=axes, keepdims=True)
        attained &= a == best
        found.append(best)
    return found, attained
