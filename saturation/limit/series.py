"""Truncated series in 1/c: the numbers that `saturation.limit` computes with.

A `Series` stands for Σ_k coefficients[k]·c^(degree − k) as c → ∞, k = 0 … terms − 1. Its degree is
static, one for the whole array; an exactly absent term is None and costs nothing. Everything that
does not depend on c is a `Plain` array. What has no limit is marked, element by element, and not
left to NaN, which comparisons swallow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from saturation.errors import LimitError

Coefficient = jax.Array | None
Like = jax.Array | jax.ShapeDtypeStruct  # what gives an output's shape and dtype
Product = Callable[[jax.Array, jax.Array], jax.Array]

# A sum that cancels to this many roundings of its summands is not told from 0. The mean of n equal
# numbers misses them by up to 5 halves of an eps (XLA on CPUs, n to 16,384), its square by 10.
CANCELLED = 16


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["array", "invalid"],
    meta_fields=["infinite", "large"],
)
@dataclass(frozen=True)
class Plain:
    """An array of degree 0 that does not depend on c.

    Attributes:
      array: of any dtype.
      invalid: bool, of the array's shape, where what decided the element had no limit (a comparison
        with it, say); None for nowhere.
      infinite: whether it may hold ±∞, which outranks every degree.
      large: the largest finite constant beyond ±1e6 that it may hold, or None: a mask's, probably.
    """

    array: jax.Array
    invalid: jax.Array | None = None
    infinite: bool = False
    large: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["coefficients", "invalid", "noise", "bound"],
    meta_fields=["degree", "infinite"],
)
@dataclass(frozen=True)
class Series:
    """Σ_k coefficients[k]·c^(degree − k); those that are present have one shape and dtype.

    Attributes:
      degree: the exponent of c of the first coefficient.
      coefficients: `terms` of them, each an array or None where it is exactly 0.
      invalid: bool, of the coefficients' shape, where the element has no limit; None for nowhere.
        The coefficients there are finite and mean nothing.
      infinite: whether the first coefficient may hold ±∞.
      noise: bool, of the coefficients' shape, where the first coefficient is 0, or is left of a sum
        that cancelled down to rounding: nothing to divide by. None for nowhere.
      bound: what is known of a maximum or minimum with something of a lower degree.
    """

    degree: int
    coefficients: tuple[Coefficient, ...]
    invalid: jax.Array | None = None
    infinite: bool = False
    noise: jax.Array | None = None
    bound: Bound | None = None

    @property
    def terms(self) -> int:
        """The number of coefficients kept."""
        return len(self.coefficients)

    @property
    def example(self) -> jax.Array:
        """A coefficient that is present, for its shape and dtype."""
        return next(c for c in self.coefficients if c is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """The coefficients' shape."""
        return self.example.shape

    def power(self, exponent: int) -> Coefficient:
        """Return the coefficient of c^exponent; None where it is absent or was not kept."""
        index = self.degree - exponent
        return self.coefficients[index] if 0 <= index < self.terms else None

    def nonzero(self) -> jax.Array:
        """Return where any kept coefficient is not 0."""
        present = [c != 0 for c in self.coefficients if c is not None]
        return either(*present)


@partial(jax.tree_util.register_dataclass, data_fields=["rest"], meta_fields=["sign", "degree"])
@dataclass(frozen=True)
class Bound:
    """What a maximum or minimum with something of a lower degree says of a series.

    Attributes:
      sign: the terms above `degree` are together ≥ 0 (1) or ≤ 0 (-1), as those of max(x, 1) are
        above 0.
      degree: that of the bound.
      rest: what the elements are that have no terms above it, where the series has no room for it.
    """

    sign: int
    degree: int
    rest: Value | None = None


Value = Plain | Series


def make(
    degree: int,
    coefficients: Sequence[Coefficient],
    like: Like,
    invalid: jax.Array | None = None,
    infinite: bool = False,
    noise: jax.Array | None = None,
) -> Value:
    """Return a series without leading absent terms; a `Plain` 0, shaped like `like`, if all are.

    Where `infinite`, what came out as NaN (∞ − ∞, 0·∞) has no limit and is marked.
    """
    terms = len(coefficients)
    present = [k for k, coefficient in enumerate(coefficients) if coefficient is not None]
    if not present and invalid is None:
        return Plain(jnp.zeros_like(like))
    first = present[0] if present else 0
    kept = [*coefficients[first:], *[None] * first]
    leading = kept[0]
    if leading is None:
        kept[0] = jnp.zeros_like(like)
    elif infinite:
        undefined, unbounded = jnp.isnan(leading), ~jnp.isfinite(leading)
        kept = [without(undefined, leading), *_without(unbounded, kept[1:])]
        invalid = undefined if invalid is None else invalid | undefined
    return Series(degree - first, tuple(kept[:terms]), invalid, infinite, None if first else noise)


def as_series(value: Value, terms: int) -> Series:
    """Return a value as a series; a constant has degree 0 and one term."""
    if isinstance(value, Series):
        return value
    return Series(0, (value.array, *[None] * (terms - 1)), value.invalid, value.infinite)


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
    front = without(~infinite, first)
    return [front, *_without(infinite, moved[1:])]


def untold(x: Series, leading: Coefficient) -> Coefficient:
    """Return where x is not told from 0 at the degree that its `leading` coefficient was aligned
    to; None for everywhere.
    """
    return None if leading is None else _vanishes(x, leading)


def _vanishes(x: Series, leading: jax.Array) -> jax.Array:
    if x.noise is None or leading is not x.coefficients[0]:
        return leading == 0
    return (leading == 0) | x.noise


def settled(value: Value) -> Value:
    """Return a value whose ±∞ are marked as having no limit: what a sum makes of one is no mask."""
    leading = value.coefficients[0] if isinstance(value, Series) and value.infinite else None
    if leading is None or not isinstance(value, Series):
        return value
    finite = jnp.isfinite(leading)
    kept = _without(~finite, value.coefficients)
    invalid = ~finite if value.invalid is None else ~finite | value.invalid
    return replace(value, coefficients=tuple(kept), invalid=invalid, infinite=False)


def _without(where: jax.Array, coefficients: Sequence[Coefficient]) -> list[Coefficient]:
    return [None if c is None else without(where, c) for c in coefficients]


def without(where: jax.Array, x: jax.Array) -> jax.Array:
    """Return x with 0 in these places."""
    return jax.lax.select(where, jnp.zeros_like(x), x)


def concatenate(values: Sequence[Value], terms: int) -> Value:
    """Return values one behind the other along their first axis, aligned to one degree."""

    def join(options: Sequence[Coefficient], dtype: Any) -> Coefficient:
        if all(option is None for option in options):
            return None
        filled = zip(options, values, strict=True)
        return jnp.concatenate([jnp.zeros(v.shape, dtype) if o is None else o for o, v in filled])

    invalid = join([value.invalid for value in values], bool)
    arrays = [value.array for value in values if isinstance(value, Plain)]
    if len(arrays) == len(values):
        return Plain(jnp.concatenate(arrays), invalid)
    parts = [as_series(value, terms) for value in values]
    degree, aligned = align(parts)
    dtype = parts[0].example.dtype
    coefficients = [join(options, dtype) for options in zip(*aligned, strict=True)]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    infinite = any(part.infinite for part in parts)
    noise = None
    if any(part.noise is not None for part in parts):
        untold_parts = (untold(part, a[0]) for part, a in zip(parts, aligned, strict=True))
        pairs = zip(untold_parts, parts, strict=True)
        noise = jnp.concatenate([jnp.ones(v.shape, bool) if u is None else u for u, v in pairs])
    return make(degree, coefficients, jax.ShapeDtypeStruct(shape, dtype), invalid, infinite, noise)


def either(*masks: jax.Array) -> jax.Array:
    """Return where any of the masks, which broadcast, holds."""
    result = masks[0]
    for mask in masks[1:]:
        result = result | mask
    return result


def join_invalid(*values: Value) -> jax.Array | None:
    """Return where any of the values, which broadcast, is spoilt; None for nowhere."""
    masks = _masks(*values)
    if not masks:
        return None
    shape = jnp.broadcast_shapes(*(value.shape for value in values))
    return jnp.broadcast_to(either(*masks), shape)


def add(x: Value, y: Value, like: Like, terms: int, sign: int = 1) -> Value:
    """Return x + y, or x − y with sign −1."""
    first, second = as_series(x, terms), as_series(y, terms)
    degree, (a, b) = align([first, second])
    total = [_sum(p, q if sign > 0 or q is None else -q, like) for p, q in zip(a, b, strict=True)]
    noise = _cancelled(a[0], b[0], total[0], first, second)
    infinite = first.infinite or second.infinite
    return make(degree, total, like, join_invalid(x, y), infinite, noise)


def _sum(a: Coefficient, b: Coefficient, like: Like) -> Coefficient:
    if a is None or b is None:
        only = b if a is None else a
        return None if only is None else jnp.broadcast_to(only, like.shape)
    return a + b


def _cancelled(
    a: Coefficient, b: Coefficient, total: Coefficient, x: Series, y: Series
) -> jax.Array | None:
    """Where a sum's leading term is not told from 0, given those of its summands x and y."""
    if total is None:
        return None
    if a is None or b is None:
        noise = x.noise if b is None else y.noise
        return None if noise is None else jnp.broadcast_to(noise, total.shape)
    rounding = CANCELLED * jnp.finfo(total.dtype).eps
    least = rounding * jnp.maximum(jnp.abs(a), jnp.abs(b))
    noise = (total == 0) | (jnp.abs(total) < least)
    if x.noise is None and y.noise is None:
        return noise
    return noise | (_vanishes(x, a) & _vanishes(y, b))


def bilinear(
    x: Value, y: Value, product: Product, like: Like, terms: int, contracts: bool = False
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
    invalid = None
    if a.invalid is not None or b.invalid is not None:
        spares = [contracts or isinstance(value, Plain) for value in (x, y)]
        invalid = _spoilt_products(a, b, spares, product, like, contracts)
    noise = None if contracts else _noisy_factor(a, b, like)
    result = make(a.degree + b.degree, total, like, invalid, a.infinite or b.infinite, noise)
    return settled(result) if contracts else result


def _spoilt_products(
    a: Series,
    b: Series,
    spares: Sequence[bool],
    product: Product,
    like: Like,
    contracts: bool,
) -> jax.Array:
    """Where a spoilt factor meets one that counts: if a 0 `spares` it, one that is not 0."""
    if not contracts and not any(spares):
        return jnp.broadcast_to(either(*_masks(a, b)), like.shape)

    def met() -> jax.Array:
        found = []
        for spoilt, other, spare in ((a, b, spares[1]), (b, a, spares[0])):
            if spoilt.invalid is not None:
                weight = other.nonzero() if spare else jnp.ones(other.shape, bool)
                weight = weight if other.invalid is None else weight | other.invalid
                factors = (spoilt.invalid.astype(a.example.dtype), weight.astype(a.example.dtype))
                found.append(product(*(factors if spoilt is a else factors[::-1])) > 0)
        return either(*found)

    if not contracts:
        return met()
    # As dear as the product itself, so only where there is something spoilt.
    spoilt = either(*(jnp.any(mask) for mask in _masks(a, b)))
    return jax.lax.cond(spoilt, met, lambda: jnp.zeros(like.shape, bool))


def _masks(*values: Value) -> list[jax.Array]:
    return [value.invalid for value in values if value.invalid is not None]


def _noisy_factor(a: Series, b: Series, like: Like) -> jax.Array | None:
    masks = [one.noise for one in (a, b) if one.noise is not None]
    return jnp.broadcast_to(either(*masks), like.shape) if masks else None


def raised(x: Series, exponent: float, like: Like) -> Value:
    """Return x^exponent about its leading coefficient.

    b_0 = a_0^p and n a_0 b_n = Σ_{k=1}^{n} (k p − n + k) a_k b_{n−k} (J. C. P. Miller's recurrence;
    Knuth, TAOCP 2, section 4.7). Elements whose leading coefficient is 0, or is not told from it,
    have no limit; but a positive power of what is 0 in all kept terms is 0.

    Raises:
      LimitError: degree·exponent is no whole number: the result is no series in whole powers of c.
    """
    degree = round(x.degree * exponent)
    # 1/3 is rounded, and so is three times it.
    if abs(degree - x.degree * exponent) > float(jnp.finfo(like.dtype).eps) * abs(x.degree):
        raise LimitError(
            f"The power {exponent:g} of a quantity of degree {x.degree} has degree "
            f"{x.degree * exponent:g}, and only whole degrees can be carried."
        )
    leading = x.coefficients[0]
    assert leading is not None
    vanishes = _vanishes(x, leading)
    a = jax.lax.select(vanishes, jnp.ones_like(leading), leading)
    b_0 = _elementary_power(a, exponent)
    b: list[Coefficient] = [b_0]
    for n in range(1, x.terms):
        total: Coefficient = None
        for k in range(1, n + 1):
            a_k, rest = x.coefficients[k], b[n - k]
            if a_k is not None and rest is not None:
                term = (k * exponent - n + k) * a_k * rest
                total = term if total is None else total + term
        b.append(None if total is None else total / (n * a))
    undefined, noise = vanishes, None
    if exponent > 0:
        b = _without(vanishes, b)
        lower = [c != 0 for c in x.coefficients[1:] if c is not None]
        undefined = vanishes & either(*lower) if lower else jnp.zeros_like(vanishes)
        noise = vanishes
    if not float(exponent).is_integer():
        negative = jnp.isnan(b_0)  # under a root
        b = _without(negative, b)
        undefined = undefined | negative
    invalid = undefined if x.invalid is None else undefined | x.invalid
    return make(degree, b, like, invalid, x.infinite, noise)


def _elementary_power(a: jax.Array, exponent: float) -> jax.Array:
    named = {-1.0: lambda v: 1 / v, 0.5: jnp.sqrt, -0.5: jax.lax.rsqrt}
    if exponent in named:
        return named[exponent](a)
    return jnp.power(a, jnp.asarray(exponent, a.dtype))
