"""`saturate`: the exact limit of any JAX function as its parameters grow (MEASURES §6; ours).

sf(x) = lim_{c→∞} f(x; cθ)/c^k. Merrill et al. 2021 (arXiv 2010.09697) evaluate f at c = 1000; here
the function's jaxpr is interpreted on truncated series in 1/c (`series.py`), each parameter
being θ·c, and the leading coefficient of the result is the limit. docs/limits.md has the algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from saturation.errors import LimitError
from saturation.limit.carried import Expansion, is_expansion
from saturation.limit.interpreter import SeriesInterpreter, constant
from saturation.limit.masks import MASK_BELOW
from saturation.limit.parameters import check_parameters
from saturation.limit.result import Limit
from saturation.limit.series import Constant, PowerSeries, Value
from saturation.limit.tally import TieReport

__all__ = [
    "Expansion",
    "Limit",
    "TieReport",
    "count_ties",
    "saturate",
    "scale_parameters",
    "tie_report",
]


def saturate(
    fn: Callable[..., Any],
    terms: int = 4,
    mask_below: float | None = MASK_BELOW,
    *,
    expansions: bool = False,
) -> Callable[..., Any]:
    """Return the function that gives the exact parameter limit of `fn`.

    Limits compose: an argument may be an `Expansion` of what another function made of the same
    growing parameters, and the result of g of it is that of g ∘ f.

    Args:
      fn: any JAX function of (params, *args). Every floating leaf of `params` is scaled by c;
        other leaves, the arguments and what `fn` closes over are not.
      terms: how many powers of c are kept of every intermediate. Ties that outlast them are
        shared; 4 is the least that sees T5's relative bias.
      mask_below: numbers ≤ this (and ≥ its negative) that do not grow stand for −∞ (and ∞) where
        they meet what does: finite masks. None: no number is a mask.
      expansions: return one `Expansion` of the output's tree, which another call takes.

    Returns:
      A function of the same arguments, which may be jitted and vmapped over data, that returns
      the output's tree with a `Limit` at each leaf; or, with `expansions`, the `Expansion` whose
      `limits()` that is, where what is not valid is no error.

    Raises:
      LimitError: (from the returned function) a primitive has no rule or no limit in powers of c;
        a number of 5000 or more that is no mask, and known when traced, meets what grows; `params`
        hold what is none; or, outside a trace, some output element is not valid.

    Example:
      >>> import jax.numpy as jnp
      >>> found = saturate(lambda w, x: jnp.tanh(w * x) * w)(jnp.float32(3), jnp.float32(-2))
      >>> found.degree, float(found.value)
      (1, -3.0)
      >>> inner = saturate(lambda w, x: w * x, expansions=True)(jnp.float32(3), jnp.float32(-2))
      >>> found = saturate(lambda w, y: jnp.tanh(y) * w)(jnp.float32(3), inner)
      >>> found.degree, float(found.value)
      (1, -3.0)
    """

    def limit(params: Any, *args: Any) -> Any:
        found, _ = _run(fn, SeriesInterpreter(terms, mask_below), params, args)
        if expansions:
            return found
        limits = found.limits()
        _refuse_invalid(limits)
        return limits

    return limit


def count_ties(
    fn: Callable[..., Any], terms: int = 4, mask_below: float | None = MASK_BELOW
) -> Callable[..., jax.Array]:
    """Return the function that counts, int32, the ties that outlast the kept terms in `fn`'s limit.

    Each maximum (of a softmax, say) counts the elements beyond one that equal it in every kept
    term. True ties (repeated tokens) stay with any number of terms; others go as terms are added.
    """

    def count(params: Any, *args: Any) -> jax.Array:
        return _run(fn, SeriesInterpreter(terms, mask_below), params, args)[1].tally.ties

    return count


def tie_report(
    fn: Callable[..., Any], terms: int = 4, mask_below: float | None = MASK_BELOW
) -> Callable[..., TieReport]:
    """Return the function that says how clear the ties and signs of `fn`'s limit were.

    A difference ≤ 64·n·eps·B is zero and one ≥ 65536·n·eps·B is not, with B = Σ|a||b| of the
    product that made the number and n the longest contraction met (`limit.ties`); what lies
    between is undecided, and without a limit.
    """

    def report(params: Any, *args: Any) -> TieReport:
        _, made = _run(fn, SeriesInterpreter(terms, mask_below, reports=True), params, args)
        tally = made.tally
        return TieReport(
            tally.ties,
            tally.undecided,
            tally.largest_tie,
            tally.smallest_gap,
            made.ties_reliable,
        )

    return report


def scale_parameters(params: Any, c: float | jax.Array) -> Any:
    """Return c·θ: every floating leaf of a tree times c, in its own dtype."""

    def scale(leaf: Any) -> Any:
        array = jnp.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return leaf
        return array * jnp.asarray(c, array.dtype)

    return jax.tree.map(scale, params)


def _run(
    fn: Callable[..., Any], interpreter: SeriesInterpreter, params: Any, args: Sequence[Any]
) -> tuple[Expansion, SeriesInterpreter]:
    terms, below = interpreter.terms, interpreter.mask_below
    if terms < 1:
        raise LimitError(f"A series needs at least 1 term, not {terms}.")
    if below is not None and not below < 0:
        raise LimitError(f"`mask_below` must be negative, such as -1e9, or None; it is {below}.")
    check_parameters(params)
    shown = jax.tree.map(_shown, (params, *args), is_leaf=is_expansion)
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*shown)
    inputs: list[Value] = []
    for scaled, tree in ((True, params), (False, args)):
        for leaf in jax.tree.leaves(tree, is_leaf=is_expansion):
            if is_expansion(leaf):
                inputs += interpreter.taken_up(leaf)
            else:
                inputs.append(_parameter(jnp.asarray(leaf), terms) if scaled else constant(leaf))
    outputs = interpreter.run(closed, inputs)
    return interpreter.handed_on(outputs, jax.tree.structure(shapes)), interpreter


def _shown(argument: Any) -> Any:
    """What an argument is to the function's trace: of an expansion, its shapes and dtypes."""
    if not is_expansion(argument):
        return argument
    return argument.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))


def _parameter(leaf: jax.Array, terms: int) -> Value:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return Constant(leaf)
    return PowerSeries(1, (leaf, *[None] * (terms - 1)), sizes=(None,) * terms)


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
                "or they are ∞ − ∞, log 0 and the like, or out of range; a number of 5000 or more "
                "that may be a mask met what grows (see `mask_below`); or it is undecided whether "
                "what decides them is a tie. Mask these elements, or call it under jax.jit and "
                "read `valid`."
            )
