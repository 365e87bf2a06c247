"""What does not depend on the parameters runs as it is; here is what is known of it.

A series has to know of a constant whether it may hold ±∞, which outranks every degree, or a large
number, which may be a mask's; and where it was decided by something without a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from saturation.limit.equation import axes_of, bind
from saturation.limit.linear import MOVES
from saturation.limit.masks import large_numbers, widened
from saturation.limit.order import select_constant
from saturation.limit.series import Constant, either

# Primitives that only move values about: what they make of numbers that are known are the same.
_CARRIES_MASKS = frozenset(
    (
        *("select_n", "broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "copy"),
        *("transpose", "neg", "concatenate", "slice", "pad", "max", "min", "abs"),
        *("gather", "dynamic_slice", "dynamic_update_slice", "scatter", "rev", "stop_gradient"),
        *("tile", "stack", "split", "unstack"),
    )
)
# These make ±∞ of finite numbers (loops may: what is in them is not looked at).
_MAKES_INFINITE = frozenset(
    (
        *("log", "log1p", "div", "pow", "integer_pow", "rsqrt", "atanh", "erf_inv", "lgamma"),
        *("digamma", "scan", "while", "cond"),
    )
)
# What these make of one element without a limit is one element; anything else may spread it.
ELEMENTWISE = frozenset(
    (
        *("and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt", "ge", "abs", "sign"),
        *("add", "sub", "mul", "div", "neg", "max", "min", "convert_element_type", "integer_pow"),
        *("square", "sqrt", "rsqrt", "exp", "log", "tanh", "logistic", "pow", "copy", "is_finite"),
    )
)
_REDUCES = frozenset(
    ("reduce_and", "reduce_or", "reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin")
)


def constant(x: Any, dtype: Any = None) -> Constant:
    """Return a constant with what can be seen of it: ±∞, or large numbers.

    Of a traced one nothing can: it may hold ±∞, as a mask that is handed in does.
    """
    if isinstance(x, jax.core.Tracer):
        array = jnp.asarray(x, dtype)
        return Constant(array, infinite=bool(jnp.issubdtype(array.dtype, jnp.floating)))
    with jax.ensure_compile_time_eval():  # a number stays one that can be looked at, under jit too
        array = jnp.asarray(x, dtype)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return Constant(array)
    values = np.asarray(array).astype(np.float64)  # as it is held: a narrow dtype rounds to ±∞
    infinite = bool(np.isinf(values).any())
    return Constant(array, infinite=infinite, large=large_numbers(values), seen=True)


def results(eqn: Any, inputs: Sequence[Constant], outputs: Sequence[jax.Array]) -> list[Constant]:
    """Return the outputs of an equation of constants with what is known of them."""
    name = eqn.primitive.name
    infinite = name in _MAKES_INFINITE or any(value.infinite for value in inputs)
    moves = name in _CARRIES_MASKS
    large = tuple(dict.fromkeys(n for value in inputs for n in value.large)) if moves else ()
    known = moves and all(_is_known(value) for value in inputs)
    if name == "convert_element_type" and jnp.issubdtype(inputs[0].array.dtype, jnp.floating):
        outputs = [widened_from(inputs[0].array, output) for output in outputs]
        top = _top(outputs[0].dtype)
        overflows = any(abs(number) > top for number in large) or not known
        infinite = infinite or (top < _top(inputs[0].array.dtype) and overflows)
        infinite = infinite or inputs[0].array.dtype == jnp.float16

    def seen(array: jax.Array) -> Constant:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return Constant(array)
        if array.size == 1 and not isinstance(array, jax.core.Tracer):
            return constant(array)
        return Constant(array, infinite=infinite, large=large, seen=known)

    truth = _truth(name, inputs)
    if truth is not None and outputs[0].dtype == bool:
        return [Constant(output, truth=truth) for output in outputs]
    masks = _spread(eqn, inputs, outputs)
    return [replace(seen(o), invalid=mask) for o, mask in zip(outputs, masks, strict=True)]


def _truth(name: str, inputs: Sequence[Constant]) -> bool | None:
    """What a condition made of conditions is everywhere, if that is known."""
    truths = [truth_of(value) for value in inputs]
    if name == "and" and False in truths:
        return False
    if name == "or" and True in truths:
        return True
    if name in MOVES and len(truths) == 1:
        return truths[0]
    return None


def truth_of(value: Constant) -> bool | None:
    """What a condition is everywhere, if that is known."""
    if value.truth is not None or value.array.dtype != bool or value.invalid is not None:
        return value.truth
    if isinstance(value.array, jax.core.Tracer) or value.array.size != 1:
        return None
    return bool(value.array.item())


def _is_known(value: Constant) -> bool:
    """Whether it holds no number that is not known; indices and conditions are none."""
    return value.seen or not jnp.issubdtype(value.array.dtype, jnp.floating)


def _top(dtype: Any) -> float:
    return float(jnp.finfo(dtype).max) if jnp.issubdtype(dtype, jnp.floating) else np.inf


def widened_from(before: jax.Array, after: jax.Array) -> jax.Array:
    """Return what became of an array in another dtype, with float16's ends for ±∞."""
    if before.dtype != jnp.float16 or not jnp.issubdtype(after.dtype, jnp.floating):
        return after
    return widened(before).astype(after.dtype)


def _spread(
    eqn: Any, inputs: Sequence[Constant], outputs: Sequence[jax.Array]
) -> list[jax.Array | None]:
    """Which elements of a plain operation's outputs come from one that has no limit."""
    masks = [value.invalid for value in inputs if value.invalid is not None]
    if not masks:
        return [None] * len(outputs)
    name = eqn.primitive.name
    if name == "select_n":
        return [select_constant(inputs[0], inputs[1:], outputs[0]).invalid]
    if name in ELEMENTWISE:
        return [jnp.broadcast_to(either(*masks), output.shape) for output in outputs]
    if name in MOVES and len(inputs) == 1:
        return [bind(eqn, masks[0])]
    if name in _REDUCES:
        return [jnp.any(masks[0], axis=axes_of(eqn))]
    spoilt = either(*(jnp.any(mask) for mask in masks))
    return [jnp.broadcast_to(spoilt, output.shape) for output in outputs]
