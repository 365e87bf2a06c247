"""`saturate`: the exact limit of any JAX function as its parameters grow (MEASURES §6; ours).

sf(x) = lim_{c→∞} f(x; cθ)/c^k. Merrill et al. 2021 (arXiv 2010.09697) evaluate f at c = 1000; here
the function's jaxpr is interpreted on truncated series in 1/c (`series.py`), each parameter
being θ·c, and the leading coefficient of the result is the limit. docs/limits.md has the algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from saturation.errors import LimitError
from saturation.limit.interpreter import LeakWarning, SeriesInterpreter, constant
from saturation.limit.series import Plain, Series, Value

__all__ = ["LeakWarning", "Limit", "count_ties", "saturate", "scale_parameters"]


@partial(jax.tree_util.register_dataclass, data_fields=["value", "valid"], meta_fields=["degree"])
@dataclass(frozen=True)
class Limit:
    """The leading behaviour value·c^degree of one output as c → ∞.

    Attributes:
      degree: the exponent, static.
      value: the leading coefficient, the output's shape and dtype.
      valid: bool, the same shape; False where the limit does not exist, mostly because a
        denominator's leading coefficient vanishes, or where it left the range of its dtype. The
        value there means nothing.
    """

    degree: int
    value: jax.Array
    valid: jax.Array


def saturate(fn: Callable[..., Any], terms: int = 4) -> Callable[..., Any]:
    """Return the function that gives the exact parameter limit of `fn`.

    Args:
      fn: any JAX function of (params, *args). Every floating leaf of `params` is scaled by c;
        other leaves, the arguments and what `fn` closes over are not.
      terms: how many powers of c are kept of every intermediate. Ties that outlast them are
        shared; 4 is the least that sees T5's relative bias.

    Returns:
      A function of the same arguments, which may be jitted and vmapped over data, that returns
      the output's tree with a `Limit` at each leaf.

    Raises:
      LimitError: (from the returned function) a primitive has no rule or no limit in powers of c;
        or, outside a trace, some output element is not valid.

    Example:
      >>> import jax.numpy as jnp
      >>> found = saturate(lambda w, x: jnp.tanh(w * x) * w)(jnp.float32(3), jnp.float32(-2))
      >>> found.degree, float(found.value)
      (1, -3.0)
    """

    def limit(params: Any, *args: Any) -> Any:
        found, _ = _run(fn, terms, params, args)
        _refuse_invalid(found)
        return found

    return limit


def count_ties(fn: Callable[..., Any], terms: int = 4) -> Callable[..., jax.Array]:
    """Return the function that counts, int32, the ties that outlast the kept terms in `fn`'s limit.

    Each maximum (of a softmax, say) counts the elements beyond one that equal it in every kept
    term. True ties (repeated tokens) stay with any number of terms; others go as terms are added.
    """
    return lambda params, *args: _run(fn, terms, params, args)[1]


def scale_parameters(params: Any, c: float | jax.Array) -> Any:
    """Return c·θ: every floating leaf of a tree times c, in its own dtype."""

    def scale(leaf: Any) -> Any:
        array = jnp.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return leaf
        return array * jnp.asarray(c, array.dtype)

    return jax.tree.map(scale, params)


def _run(
    fn: Callable[..., Any], terms: int, params: Any, args: Sequence[Any]
) -> tuple[Any, jax.Array]:
    if terms < 1:
        raise LimitError(f"A series needs at least 1 term, not {terms}.")
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(params, *args)
    grown = [_parameter(jnp.asarray(leaf), terms) for leaf in jax.tree.leaves(params)]
    given = [constant(leaf) for leaf in jax.tree.leaves(args)]
    interpreter = SeriesInterpreter(terms)
    outputs = interpreter.run(closed, [*grown, *given])
    limits = [_limit(output) for output in outputs]
    return jax.tree.unflatten(jax.tree.structure(shapes), limits), interpreter.ties


def _parameter(leaf: jax.Array, terms: int) -> Value:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return Plain(leaf)
    return Series(1, (leaf, *[None] * (terms - 1)))


def _limit(output: Value) -> Limit:
    if isinstance(output, Plain):
        valid = jnp.ones(output.shape, bool) if output.invalid is None else ~output.invalid
        return Limit(0, output.array, valid)
    leading = output.coefficients[0]
    value = jnp.zeros_like(output.example) if leading is None else leading
    # What may hold ±∞ has had its NaN marked; elsewhere either is an overflow, or a broken number.
    valid = jnp.ones(value.shape, bool) if output.infinite else jnp.isfinite(value)
    return Limit(output.degree, value, valid if output.invalid is None else valid & ~output.invalid)


def _refuse_invalid(found: Any) -> None:
    """Raise where an element has no limit, unless a trace keeps its validity unknown."""
    paths = jax.tree_util.tree_leaves_with_path(found, is_leaf=lambda x: isinstance(x, Limit))
    for path, limit in paths:
        if isinstance(limit.valid, jax.core.Tracer):
            continue
        count = int(np.size(limit.valid) - np.sum(np.asarray(limit.valid)))
        if count:
            name = jax.tree_util.keystr(path) or "the output"
            raise LimitError(
                f"{count} of {np.size(limit.valid)} elements of {name} have no limit: what they "
                "divide by vanishes in the leading order (a constant row under a layer norm, say), "
                "or they are ∞ − ∞, log 0 and the like, or out of range. Mask these elements, or "
                "call it under jax.jit and read `valid`."
            )
