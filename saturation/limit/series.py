"""Truncated series in 1/c: the numbers that `saturation.limit` computes with.

A `PowerSeries` stands for Σ_k coefficients[k]·c^(degree − k) as c → ∞, k = 0 … terms − 1. Its
degree is static, one for the whole array; an exactly absent term is None and costs nothing.
Everything that does not depend on c is a `Constant` array. What has no limit is marked, element by
element, and not left to NaN, which comparisons swallow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from saturation.limit.sizes import Size, known, magnitude, tracked

Coefficient = jax.Array | None
Sizes = tuple[Size | None, ...]
Like = jax.Array | jax.ShapeDtypeStruct  # what gives an output's shape and dtype


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["array", "invalid"],
    meta_fields=["infinite", "large", "seen", "truth"],
)
@dataclass(frozen=True)
class Constant:
    """An array of degree 0 that does not depend on c.

    Attributes:
      array: of any dtype.
      invalid: bool, of the array's shape, where what decided the element had no limit (a comparison
        with it, say); None for nowhere.
      infinite: whether it may hold ±∞, which outranks every degree.
      large: the finite numbers of 5000 and more that it may hold (`masks.py`), as far as known.
      seen: whether it is known to hold no others.
      truth: what it is everywhere, where it is a condition and that is known.
    """

    array: jax.Array
    invalid: jax.Array | None = None
    infinite: bool = False
    large: tuple[float, ...] = ()
    seen: bool = False
    truth: bool | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class PowerSeries:
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
      sizes: B of each coefficient (`sizes.py`), None where it is exact: a parameter, moved about.
        None for all where nothing is known of them: each is measured by itself.
    """

    degree: int
    coefficients: tuple[Coefficient, ...]
    invalid: jax.Array | None = None
    infinite: bool = False
    noise: jax.Array | None = None
    bound: Bound | None = None
    sizes: Sizes | None = None

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the arrays, sizes made, and what is static."""
        sizes = self.sizes and tuple(size and size(True) for size in self.sizes)
        arrays = self.coefficients, self.invalid, self.noise, self.bound, sizes
        return arrays, (self.degree, self.infinite)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], arrays: tuple[Any, ...]) -> PowerSeries:
        """Return the series of these arrays."""
        (degree, infinite), (coefficients, invalid, noise, bound, sizes) = static, arrays
        made = sizes and tuple(None if size is None else known(size) for size in sizes)
        return cls(degree, coefficients, invalid, infinite, noise, bound, made)

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

    def size(self, index: int, sharp: bool) -> Coefficient:
        """Return B of a coefficient; None where it is absent, or exact."""
        if not 0 <= index < self.terms:
            return None
        coefficient = self.coefficients[index]
        if coefficient is None or not tracked(coefficient.dtype):
            return None
        if self.sizes is None:
            return self.magnitude(index)
        size = self.sizes[index]
        return None if size is None else size(sharp)

    def weight(self, index: int, sharp: bool) -> Coefficient:
        """Return B of a coefficient, or its own size where it is exact; None where it is absent."""
        coefficient = self.coefficients[index]
        if coefficient is None:
            return None
        size = self.size(index, sharp)
        return self.magnitude(index) if size is None else size

    def magnitude(self, index: int) -> jax.Array:
        """Return |x| of a coefficient that is there, 0 where that is not finite."""
        coefficient = self.coefficients[index]
        assert coefficient is not None
        if index or not self.infinite:  # lower terms of ±∞ are dropped
            return jnp.abs(coefficient)
        return magnitude(coefficient)

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


Value = Constant | PowerSeries


def make(
    degree: int,
    coefficients: Sequence[Coefficient],
    like: Like,
    invalid: jax.Array | None = None,
    infinite: bool = False,
    noise: jax.Array | None = None,
    sizes: Sizes | None = None,
) -> Value:
    """Return a series without leading absent terms; a `Constant` 0, shaped like `like`, if all are.

    Where `infinite`, what came out as NaN (∞ − ∞, 0·∞) has no limit and is marked.
    """
    terms = len(coefficients)
    present = [k for k, coefficient in enumerate(coefficients) if coefficient is not None]
    if not present and invalid is None:
        return Constant(jnp.zeros_like(like))
    first = present[0] if present else 0
    kept = [*coefficients[first:], *[None] * first]
    leading = kept[0]
    if leading is None:
        kept[0] = jnp.zeros_like(like)
    elif infinite:
        undefined, unbounded = jnp.isnan(leading), ~jnp.isfinite(leading)
        kept = [without(undefined, leading), *drop(unbounded, kept[1:])]
        invalid = undefined if invalid is None else invalid | undefined
    if sizes is not None:
        sizes = (*sizes[first:], *[None] * first)[:terms]
    noise = None if first else noise
    return PowerSeries(degree - first, tuple(kept[:terms]), invalid, infinite, noise, None, sizes)


def as_series(value: Value, terms: int) -> PowerSeries:
    """Return a value as a series; a constant has degree 0 and one term."""
    if isinstance(value, PowerSeries):
        return value
    return PowerSeries(0, (value.array, *[None] * (terms - 1)), value.invalid, value.infinite)


def align(values: Sequence[PowerSeries]) -> tuple[int, list[list[Coefficient]]]:
    """Return the highest degree, and the coefficients of every series from it downwards."""
    degree = max(value.degree for value in values)
    return degree, [_from(value, degree) for value in values]


def _from(x: PowerSeries, degree: int) -> list[Coefficient]:
    """The coefficients of x from c^degree downwards; ±∞ moves to the front, above every degree."""
    gap = degree - x.degree
    moved = ([None] * gap + [*x.coefficients])[: x.terms]
    first = x.coefficients[0]
    if gap == 0 or not x.infinite or first is None:
        return moved
    infinite = jnp.isinf(first)
    front = without(~infinite, first)
    return [front, *drop(infinite, moved[1:])]


def sizes_of(
    values: Sequence[PowerSeries], degree: int, present: Sequence[Coefficient], combine: Any
) -> Sizes | None:
    """Return the sizes of what `combine` makes of the aligned values' sizes.

    `combine(sizes, index)` takes each value's B (None: exact, or absent there) at one power.
    """
    if not any(c is not None and tracked(c.dtype) for c in present):
        return None

    def made(index: int) -> Size:
        def make_size(sharp: bool) -> jax.Array:
            return combine([v.size(index - degree + v.degree, sharp) for v in values], index)

        return Size(make_size)

    def exact(value: PowerSeries, index: int) -> bool:
        place = index - degree + value.degree
        within = 0 <= place < value.terms and value.coefficients[place] is not None
        return not within or (value.sizes is not None and value.sizes[place] is None)

    return tuple(
        None if c is None or all(exact(value, index) for value in values) else made(index)
        for index, c in enumerate(present)
    )


def indistinct_from_zero(x: PowerSeries, leading: Coefficient) -> Coefficient:
    """Return where x is not told from 0 at the degree that its `leading` coefficient was aligned
    to; None for everywhere.
    """
    return None if leading is None else leading_is_zero(x, leading)


def leading_is_zero(x: PowerSeries, leading: jax.Array) -> jax.Array:
    """Return the same of a coefficient that is there."""
    if x.noise is None or leading is not x.coefficients[0]:
        return leading == 0
    return (leading == 0) | x.noise


def mark_infinities_invalid(value: Value) -> Value:
    """Return a value whose ±∞ are marked as having no limit: what a sum makes of one is no mask."""
    leading = value.coefficients[0] if isinstance(value, PowerSeries) and value.infinite else None
    if leading is None or not isinstance(value, PowerSeries):
        return value
    finite = jnp.isfinite(leading)
    kept = drop(~finite, value.coefficients)
    invalid = ~finite if value.invalid is None else ~finite | value.invalid
    return replace(value, coefficients=tuple(kept), invalid=invalid, infinite=False)


def drop(where: jax.Array, coefficients: Sequence[Coefficient]) -> list[Coefficient]:
    """Return coefficients with 0 in these places."""
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
    arrays = [value.array for value in values if isinstance(value, Constant)]
    if len(arrays) == len(values):
        return Constant(jnp.concatenate(arrays), invalid)
    parts = [as_series(value, terms) for value in values]
    degree, aligned = align(parts)
    dtype = parts[0].example.dtype
    coefficients = [join(options, dtype) for options in zip(*aligned, strict=True)]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    infinite = any(part.infinite for part in parts)
    noise = None
    if any(part.noise is not None for part in parts):
        untold_parts = (
            indistinct_from_zero(part, a[0]) for part, a in zip(parts, aligned, strict=True)
        )
        pairs = zip(untold_parts, parts, strict=True)
        noise = jnp.concatenate([jnp.ones(v.shape, bool) if u is None else u for u, v in pairs])

    def joined(sizes: Sequence[Coefficient], index: int) -> jax.Array:
        found = join(sizes, dtype)
        assert found is not None
        return found

    sizes = sizes_of(parts, degree, coefficients, joined)
    like = jax.ShapeDtypeStruct(shape, dtype)
    return make(degree, coefficients, like, invalid, infinite, noise, sizes)


def either(*masks: jax.Array) -> jax.Array:
    """Return where any of the masks, which broadcast, holds."""
    result = masks[0]
    for mask in masks[1:]:
        result = result | mask
    return result


def join_invalid(*values: Value) -> jax.Array | None:
    """Return where any of the values, which broadcast, is spoilt; None for nowhere."""
    masks = masks_of(*values)
    if not masks:
        return None
    shape = jnp.broadcast_shapes(*(value.shape for value in values))
    return jnp.broadcast_to(either(*masks), shape)


def masks_of(*values: Value) -> list[jax.Array]:
    """Return where values are spoilt, of those that are anywhere."""
    return [value.invalid for value in values if value.invalid is not None]
