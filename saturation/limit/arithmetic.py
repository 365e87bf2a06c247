"""Sums, products and powers of series, and where a sum's leading term is rounding alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp

from saturation.errors import LimitError
from saturation.limit.equation import Interpreter
from saturation.limit.series import (
    Coefficient,
    Constant,
    Like,
    PowerSeries,
    Sizes,
    Value,
    align,
    as_series,
    drop,
    either,
    join_invalid,
    leading_is_zero,
    make,
    mark_infinities_invalid,
    masks_of,
    sizes_of,
)
from saturation.limit.sizes import Size, larger, magnitude, thresholds, tracked

Product = Callable[[jax.Array, jax.Array], jax.Array]

# Where sizes are not followed (`sizes.py`), a sum that cancels to this many roundings of its
# summands is not told from 0. The mean of n equal numbers misses them by up to 5 halves of an eps
# (XLA on CPUs, n to 16,384), its square by 10.
CANCELLED = 16


def add(interpreter: Interpreter, x: Value, y: Value, like: Like, sign: int = 1) -> Value:
    """Return x + y, or x − y with sign −1."""
    x, y = interpreter.unmasked(x, y)
    first, second = (as_series(value, interpreter.terms) for value in (x, y))
    degree, (a, b) = align([first, second])
    total = [_sum(p, q if sign > 0 or q is None else -q, like) for p, q in zip(a, b, strict=True)]

    def largest(sizes: Sequence[Coefficient], index: int) -> jax.Array:
        terms = zip((a[index], b[index]), sizes, strict=True)
        # Nothing is rounded where nothing is added: what is exact stays so.
        both = a[index] is not None and b[index] is not None
        values = [magnitude(c) for c, size in terms if both and c is not None and size is None]
        found = larger(*sizes, *values)
        assert found is not None
        return jnp.broadcast_to(found, like.shape)

    sizes = _sum_sizes(first, second, degree, total, (a, b), largest)
    noise = _cancelled(interpreter, (a[0], b[0], total[0]), sizes, first, second)
    infinite = first.infinite or second.infinite
    return make(degree, total, like, join_invalid(x, y), infinite, noise, sizes)


def _sum_sizes(
    x: PowerSeries,
    y: PowerSeries,
    degree: int,
    total: Sequence[Coefficient],
    parts: Sequence[Sequence[Coefficient]],
    largest: Callable[[Sequence[Coefficient], int], jax.Array],
) -> Sizes | None:
    """B of a sum: its largest term; but what is exact stays so where nothing is added to it."""
    found = sizes_of([x, y], degree, total, largest)
    if found is None:
        return None

    def of_two(index: int) -> Size:
        return Size(lambda sharp: largest([None, None], index))

    both = [p is not None and q is not None for p, q in zip(*parts, strict=True)]
    pairs = enumerate(zip(found, both, strict=True))
    return tuple(of_two(i) if size is None and summed else size for i, (size, summed) in pairs)


def _sum(a: Coefficient, b: Coefficient, like: Like) -> Coefficient:
    if a is None or b is None:
        only = b if a is None else a
        return None if only is None else jnp.broadcast_to(only, like.shape)
    return a + b


def _cancelled(
    interpreter: Interpreter,
    leading: Sequence[Coefficient],
    sizes: Sizes | None,
    x: PowerSeries,
    y: PowerSeries,
) -> jax.Array | None:
    """Where the leading term of x + y is not told from 0; `leading` has theirs and the sum's."""
    a, b, total = leading
    if total is None:
        return None
    if a is None or b is None:
        noise = x.noise if b is None else y.noise
        return None if noise is None else jnp.broadcast_to(noise, total.shape)
    size = sizes[0] if sizes else None
    if size is None:
        rounding = CANCELLED * jnp.finfo(total.dtype).eps
        least = rounding * jnp.maximum(jnp.abs(a), jnp.abs(b))
    else:  # what is undecided is nothing to divide by either
        least = thresholds(interpreter.longest, total.dtype).apart * size(False)
    noise = (total == 0) | (jnp.abs(total) < least)
    if x.noise is None and y.noise is None:
        return noise
    return noise | (leading_is_zero(x, a) & leading_is_zero(y, b))


def bilinear(
    x: Value,
    y: Value,
    product: Product,
    like: Like,
    terms: int,
    contracts: bool = False,
    by_norms: Product | None = None,
) -> Value:
    """Return a product of two series: its coefficients are the convolution of theirs.

    What is spoilt spoils its products, but for those with an exact 0 that leaves it out: a 0 of a
    constant, or, where the product `contracts`, of any factor (the weight of a masked key). What
    `by_norms` makes of two factors is no less than their product of absolute values.
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
        spares = [contracts or isinstance(value, Constant) for value in (x, y)]
        invalid = _spoilt_products(a, b, spares, product, like, contracts)
    noise = None if contracts else _noisy_factor(a, b, like)
    sizes = _product_sizes(a, b, total, product, like, by_norms if contracts else None, contracts)
    infinite = a.infinite or b.infinite
    result = make(a.degree + b.degree, total, like, invalid, infinite, noise, sizes)
    return mark_infinities_invalid(result) if contracts else result


def _product_sizes(
    a: PowerSeries,
    b: PowerSeries,
    total: Sequence[Coefficient],
    product: Product,
    like: Like,
    by_norms: Product | None,
    contracts: bool,
) -> Sizes | None:
    """B of a product's coefficients: Σ|a||b|; of an elementwise one that of its factors, scaled."""
    if not tracked(like.dtype):
        return None

    def of(p: tuple[PowerSeries, int], q: tuple[PowerSeries, int], sharp: bool) -> jax.Array:
        there, here = p[0].coefficients[p[1]], q[0].coefficients[q[1]]
        assert there is not None
        assert here is not None
        one, other = magnitude(there), magnitude(here)
        if contracts:
            cheap = by_norms is not None and not (sharp and p[1] + q[1] == 0)
            return by_norms(one, other) if by_norms and cheap else product(one, other)
        wide, wider = (v.weight(k, sharp) for v, k in (p, q))
        assert wide is not None
        assert wider is not None
        return jnp.maximum(product(wide, other), product(one, wider))

    def made(index: int) -> Size:
        def size(sharp: bool) -> jax.Array:
            pairs = [
                of((a, i), (b, index - i), sharp)
                for i in range(index + 1)
                if a.coefficients[i] is not None and b.coefficients[index - i] is not None
            ]
            return reduce(jnp.add, pairs)

        return Size(size)

    return tuple(None if c is None else made(index) for index, c in enumerate(total))


def _spoilt_products(
    a: PowerSeries,
    b: PowerSeries,
    spares: Sequence[bool],
    product: Product,
    like: Like,
    contracts: bool,
) -> jax.Array:
    """Where a spoilt factor meets one that counts: if a 0 `spares` it, one that is not 0."""
    if not contracts and not any(spares):
        return jnp.broadcast_to(either(*masks_of(a, b)), like.shape)

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
    spoilt = either(*(jnp.any(mask) for mask in masks_of(a, b)))
    return jax.lax.cond(spoilt, met, lambda: jnp.zeros(like.shape, bool))


def _noisy_factor(a: PowerSeries, b: PowerSeries, like: Like) -> jax.Array | None:
    masks = [one.noise for one in (a, b) if one.noise is not None]
    return jnp.broadcast_to(either(*masks), like.shape) if masks else None


def power_of_series(interpreter: Interpreter, x: PowerSeries, exponent: float, like: Like) -> Value:
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
    nothing = leading_is_zero(x, leading)
    a = jax.lax.select(nothing, jnp.ones_like(leading), leading)
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
    undefined, noise = nothing, None
    if exponent > 0:
        b = drop(nothing, b)
        lower = [c != 0 for c in x.coefficients[1:] if c is not None]
        undefined = nothing & either(*lower) if lower else jnp.zeros_like(nothing)
        size = x.size(0, sharp=False)
        if size is not None:  # what is undecided is not 0 either
            tied = thresholds(interpreter.longest, leading.dtype).tied * size
            undefined = undefined | (nothing & (jnp.abs(leading) > tied))
        noise = nothing
    if not float(exponent).is_integer():
        negative = jnp.isnan(b_0)  # under a root
        b = drop(negative, b)
        undefined = undefined | negative
    invalid = undefined if x.invalid is None else undefined | x.invalid
    return make(degree, b, like, invalid, x.infinite, noise, _power_sizes(x, b, a, exponent))


def _power_sizes(
    x: PowerSeries, b: Sequence[Coefficient], a: jax.Array, exponent: float
) -> Sizes | None:
    """B of the coefficients b of x^exponent: the same recurrence of sizes; a is x's leading one."""
    if not tracked(a.dtype):
        return None

    def first(sharp: bool) -> jax.Array:
        wide, b_0 = x.weight(0, sharp), b[0]
        assert wide is not None
        assert b_0 is not None
        return magnitude(b_0) * jnp.maximum(wide / jnp.abs(a), 1) * max(abs(exponent), 1.0)

    found: list[Size | None] = [Size(first)]

    def made(n: int) -> Size:
        def size(sharp: bool) -> jax.Array:
            pairs = [
                abs(k * exponent - n + k) * wide * rest(sharp)
                for k in range(1, n + 1)
                if (wide := x.weight(k, sharp)) is not None and (rest := found[n - k]) is not None
            ]
            return reduce(jnp.add, pairs) / (n * jnp.abs(a))

        return Size(size)

    for n in range(1, x.terms):
        found.append(None if b[n] is None else made(n))
    return tuple(found)


def _elementary_power(a: jax.Array, exponent: float) -> jax.Array:
    named = {-1.0: lambda v: 1 / v, 0.5: jnp.sqrt, -0.5: jax.lax.rsqrt}
    if exponent in named:
        return named[exponent](a)
    return jnp.power(a, jnp.asarray(exponent, a.dtype))
