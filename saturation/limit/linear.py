"""Rules of the primitives that are linear in what they are given, on each power of c apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saturation.errors import LimitError
from saturation.limit.equation import Interpreter, Rule, bind, like, plain
from saturation.limit.expansions import written_as
from saturation.limit.series import (
    Coefficient,
    Constant,
    Sizes,
    Value,
    align,
    as_series,
    either,
    indistinct_from_zero,
    make,
    mark_infinities_invalid,
    sizes_of,
)
from saturation.limit.sizes import Size, tracked

# Each element of the output is one of the input: these take a mask as it is.
MOVES = frozenset(("broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "rev", "tile"))
_SUMS = frozenset(("reduce_sum", "cumsum", "reduce_window_sum"))


def linear(*operands: int) -> Rule:
    """Return the rule of a primitive that is linear in these inputs together (none named: in all).

    It acts on the coefficients of each power apart; the other inputs (indices) are no series.
    """

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        chosen = operands or tuple(range(len(inputs)))
        fixed = {i: plain(eqn, v) for i, v in enumerate(inputs) if i not in chosen}
        values = [inputs[i] for i in chosen]
        if len(values) > 1:
            values = interpreter.unmasked(*values)
        moving = [as_series(value, interpreter.terms) for value in values]
        degree, aligned = align(moving)

        def apply(parts: Sequence[Coefficient]) -> Coefficient:
            if all(part is None for part in parts):
                return None
            pairs = zip(parts, moving, strict=True)
            filled = [jnp.zeros_like(m.example) if p is None else p for p, m in pairs]
            arrays = {i: v.array for i, v in fixed.items()} | dict(zip(chosen, filled, strict=True))
            result = bind(eqn, *(arrays[i] for i in range(len(inputs))))
            return result[0] if isinstance(result, list | tuple) else result

        def where(masks: Sequence[Coefficient]) -> jax.Array | None:
            """What a mask becomes: outputs that any of its elements goes into."""
            if eqn.primitive.name in MOVES:
                return None if masks[0] is None else bind(eqn, masks[0])
            parts = [None if m is None else m.astype(moving[0].example.dtype) for m in masks]
            result = apply(parts)
            return None if result is None else result != 0

        coefficients = [apply(parts) for parts in zip(*aligned, strict=True)]
        masks = [
            where([m.invalid for m in moving]),
            *(_depends_on_invalid_index(eqn, v) for v in fixed.values()),
        ]
        present = [mask for mask in masks if mask is not None]
        invalid = either(*present) if present else None
        noise = None
        if any(m.noise is not None for m in moving):
            pairs = zip(moving, aligned, strict=True)
            told = where(
                [
                    None if u is None else ~u
                    for u in (indistinct_from_zero(m, p[0]) for m, p in pairs)
                ]
            )
            noise = None if told is None else ~told
        infinite = any(m.infinite for m in moving)
        if eqn.primitive.name in _SUMS:
            interpreter.meet(_summed(eqn))

        def sized(sizes: Sequence[Coefficient], index: int) -> jax.Array:
            found = apply(sizes)
            assert found is not None
            return jnp.abs(found)

        sizes = sizes_of(moving, degree, coefficients, sized)
        if eqn.primitive.name in _SUMS and tracked(like(eqn).dtype):
            (x,) = moving
            sizes = tuple(
                None if c is None else Size(lambda sharp, i=i: sized([x.weight(i, sharp)], i))
                for i, c in enumerate(coefficients)
            )
        result = make(degree, coefficients, like(eqn), invalid, infinite, noise, sizes)
        return [mark_infinities_invalid(result) if eqn.primitive.name in _SUMS else result]

    return rule


def _summed(eqn: Any) -> int:
    """How many numbers each of a sum's outputs is of, at most."""
    shape, p = eqn.invars[0].aval.shape, eqn.params
    if eqn.primitive.name == "reduce_window_sum":
        return math.prod(p["window_dimensions"])
    return math.prod(shape[axis] for axis in p["axes"]) if "axes" in p else shape[p["axis"]]


def gathering(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """gather; what it fills in for an index that is out of bounds does not grow."""
    fill = eqn.params["fill_value"]
    if fill is None or not fill or np.isnan(fill):  # NaN is not valid at any degree
        return linear(0)(interpreter, eqn, inputs)

    def filled(params: dict[str, Any], x: jax.Array, index: jax.Array) -> jax.Array:
        found = eqn.primitive.bind(x, index, **{**params, "fill_value": 0})
        within = eqn.primitive.bind(jnp.ones_like(x), index, **{**params, "fill_value": 0})
        return jnp.where(within != 0, found, jnp.asarray(fill, x.dtype))

    return written_as(filled)(interpreter, eqn, inputs)


def _depends_on_invalid_index(eqn: Any, index: Constant) -> jax.Array | None:
    """Where an output depends on an index that has no limit, and so may be any element."""
    if index.invalid is None:
        return None
    shape = like(eqn).shape
    if eqn.primitive.name != "gather":
        return jnp.broadcast_to(jnp.any(index.invalid), shape)
    window = eqn.params["dimension_numbers"].offset_dims
    batch = [axis for axis in range(len(shape)) if axis not in window]
    return jax.lax.broadcast_in_dim(jnp.any(index.invalid, axis=-1), shape, batch)


def split(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A linear primitive with several outputs."""
    (x,) = (as_series(value, interpreter.terms) for value in inputs)

    def apart(whole: Coefficient) -> list[Coefficient]:
        return [None] * len(eqn.outvars) if whole is None else list(bind(eqn, whole))

    def masks(mask: Coefficient) -> list[Coefficient]:
        parts = apart(None if mask is None else mask.astype(x.example.dtype))
        return [None if part is None else part != 0 for part in parts]

    def sizes(coefficients: Sequence[Coefficient], output: int) -> Sizes | None:
        def part(sizes: Sequence[Coefficient], index: int) -> jax.Array:
            found = apart(sizes[0])[output]
            assert found is not None
            return found

        return sizes_of([x], x.degree, coefficients, part)

    pieces = zip(*(apart(c) for c in x.coefficients), strict=True)
    each = zip(pieces, masks(x.invalid), masks(x.noise), strict=True)
    return [
        make(x.degree, parts, like(eqn, i), invalid, x.infinite, noise, sizes(parts, i))
        for i, (parts, invalid, noise) in enumerate(each)
    ]


def identity(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A primitive that hands its inputs on."""
    return list(inputs)


def conversion(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """A change of dtype; a series can become another real float or a truth value."""
    x = as_series(inputs[0], interpreter.terms)
    target = like(eqn).dtype
    if target == jnp.bool_:
        return [Constant(x.nonzero(), x.invalid)]
    if not jnp.issubdtype(target, jnp.floating):
        raise LimitError(
            f"A quantity of degree {x.degree} is converted to {target}, but `saturate` carries "
            "what depends on the parameters as real floating-point numbers only."
        )
    parts = [None if c is None else c.astype(target) for c in x.coefficients]
    sizes = x.sizes if tracked(target) and tracked(x.example.dtype) else None
    return [make(x.degree, parts, like(eqn), x.invalid, x.infinite, x.noise, sizes)]
