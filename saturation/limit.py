"""`saturate`: the exact limit of any JAX function as its parameters grow (MEASURES §6; ours).

sf(x) = lim_{c→∞} f(x; cθ)/c^k. Merrill et al. 2021 (arXiv 2010.09697) evaluate f at c = 1000; here
the function's jaxpr is interpreted on truncated series in 1/c (`limit_series`), each parameter
being θ·c, and the leading coefficient of the result is the limit. docs/limits.md has the algebra.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from saturation import limit_series as series
from saturation.errors import LimitError
from saturation.limit_rules import RULES, bind
from saturation.limit_series import Plain, Series, Value

LARGE = 1e6  # a finite constant beyond this is taken for a mask's when it meets a growing quantity

# Primitives that only move values about or scale them: what they make of a mask is still one.
_CARRIES_MASKS = frozenset(
    (
        *("select_n", "broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "copy"),
        *("transpose", "mul", "add", "sub", "neg", "concatenate", "slice", "pad", "max", "min"),
    )
)
_MEETS_MASKS = frozenset(("add", "sub", "select_n", "max", "min", "add_any"))


class LeakWarning(UserWarning):
    """A finite constant that masks at ordinary scale and leaks in the limit."""


@partial(jax.tree_util.register_dataclass, data_fields=["value", "valid"], meta_fields=["degree"])
@dataclass(frozen=True)
class Limit:
    """The leading behaviour value·c^degree of one output as c → ∞.

    Attributes:
      degree: the exponent, static.
      value: the leading coefficient, the output's shape and dtype.
      valid: bool, the same shape; False where the limit does not exist because a denominator's
        leading coefficient vanishes. The value there is finite and means nothing.
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
    given = [_constant(leaf) for leaf in jax.tree.leaves(args)]
    interpreter = _Interpreter(terms)
    outputs = interpreter.run(closed, [*grown, *given])
    limits = [_limit(output) for output in outputs]
    return jax.tree.unflatten(jax.tree.structure(shapes), limits), interpreter.ties


def _parameter(leaf: jax.Array, terms: int) -> Value:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return Plain(leaf)
    return Series(1, (leaf, *[None] * (terms - 1)))


def _constant(x: Any, dtype: Any = None) -> Plain:
    """A constant with what can be seen of it: whether it holds ±∞ or a mask's large number."""
    array = jnp.asarray(x, dtype)
    # Seen on the value as it was given: under jit `array` is a tracer even if `x` is a number.
    if isinstance(x, jax.core.Tracer) or not jnp.issubdtype(array.dtype, jnp.floating):
        return Plain(array)
    values = np.asarray(x).astype(np.float64)
    finite = np.where(np.isfinite(values), values, 0.0)
    large = float(finite.flat[np.abs(finite).argmax()]) if values.size else 0.0
    return Plain(array, bool(np.isinf(values).any()), large if abs(large) > LARGE else None)


def _limit(output: Value) -> Limit:
    if isinstance(output, Plain):
        return Limit(0, output.array, jnp.ones(output.array.shape, bool))
    leading = output.coefficients[0]
    value = jnp.zeros_like(output.example) if leading is None else leading
    valid = jnp.ones(value.shape, bool) if output.invalid is None else ~output.invalid
    return Limit(output.degree, value, valid)


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
                f"{count} of {np.size(limit.valid)} elements of {name} have no limit: a "
                "denominator vanishes there in the leading order (a constant row under a layer "
                "norm, say). Mask these elements, or call it under jax.jit and read `valid`."
            )


class _Interpreter:
    """Evaluates a jaxpr on series; what no series reaches runs as it is."""

    def __init__(self, terms: int) -> None:
        self.terms = terms
        self.ties = jnp.zeros((), jnp.int32)

    def count_ties(self, count: jax.Array) -> None:
        self.ties = self.ties + count

    def run(self, closed: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
        jaxpr = closed.jaxpr
        constants = [_constant(value) for value in closed.consts]
        environment: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        environment.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                aval: Any = atom.aval  # its dtype, not the value's: a Python float has 64 bits
                return _constant(atom.val, aval.dtype)
            return environment[atom]

        for eqn in jaxpr.eqns:
            outputs = self.apply(eqn, [read(atom) for atom in eqn.invars])
            environment.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of one equation."""
        name = eqn.primitive.name
        inner = _inner(eqn)
        if inner is not None:
            return self.run(inner, inputs)
        if all(isinstance(value, Plain) for value in inputs):
            return _apply_plain(eqn, inputs)
        if name == "scan":
            return self._scan(eqn, inputs)
        if name == "cond":
            return self._cond(eqn, inputs)
        if name not in RULES:
            raise LimitError(
                f"`saturate` has no rule for the primitive `{name}`, which meets a quantity that "
                "depends on the parameters; write it with primitives that have one "
                "(saturation/limit_rules.py lists them)."
            )
        _warn_of_leak(name, inputs)
        return RULES[name](self, eqn, inputs)

    def _scan(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Unroll the loop: degrees are static and may change from one turn to the next."""
        p = eqn.params
        fixed, carried = p["num_consts"], p["num_carry"]
        constants, carry = inputs[:fixed], list(inputs[fixed : fixed + carried])
        sequences = inputs[fixed + carried :]
        turns = range(p["length"])
        collected: list[list[Value]] = []
        for turn in reversed(turns) if p["reverse"] else turns:
            here = [_at(sequence, turn) for sequence in sequences]
            outputs = self.run(p["jaxpr"], [*constants, *carry, *here])
            carry = outputs[:carried]
            collected.append(outputs[carried:])
        if p["reverse"]:
            collected.reverse()
        stacked = [self._stack(list(parts)) for parts in zip(*collected, strict=True)]
        return [*carry, *stacked]

    def _stack(self, parts: list[Value]) -> Value:
        plain = [part.array for part in parts if isinstance(part, Plain)]
        if len(plain) == len(parts):
            return Plain(jnp.stack(plain))
        all_series = [series.as_series(part, self.terms) for part in parts]
        degree, aligned = series.align(all_series)

        def stack(options: Sequence[series.Coefficient]) -> series.Coefficient:
            if all(option is None for option in options):
                return None
            like = all_series[0].example
            return jnp.stack([jnp.zeros_like(like) if o is None else o for o in options])

        coefficients = [stack(options) for options in zip(*aligned, strict=True)]
        invalid = None
        if any(one.invalid is not None for one in all_series):
            none = jnp.zeros(all_series[0].example.shape, bool)
            invalid = jnp.stack([none if s.invalid is None else s.invalid for s in all_series])
        like = jax.ShapeDtypeStruct(
            (len(parts), *all_series[0].example.shape), all_series[0].example.dtype
        )
        infinite = any(one.infinite for one in all_series)
        return series.make(degree, coefficients, like, invalid, infinite)

    def _cond(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Evaluate every branch and choose: their degrees may differ."""
        which, *operands = inputs
        if isinstance(which, Series):
            raise LimitError("A `cond` on a number that grows with the parameters has no limit.")
        branches = [self.run(branch, operands) for branch in eqn.params["branches"]]
        results = []
        for outvar, cases in zip(eqn.outvars, zip(*branches, strict=True), strict=True):
            like = jax.ShapeDtypeStruct(outvar.aval.shape, outvar.aval.dtype)
            results.append(series.select(which.array, cases, like, self.terms))
        return results


def _inner(eqn: Any) -> ClosedJaxpr | None:
    """The function that an equation calls once with its inputs: pjit, custom_jvp, remat, …"""
    if eqn.primitive.name in ("scan", "cond", "while"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if isinstance(found, ClosedJaxpr):
            return found
        if isinstance(found, Jaxpr):
            return ClosedJaxpr(found, ())
    return None


def _apply_plain(eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    arrays = [value.array for value in inputs if isinstance(value, Plain)]
    result = bind(eqn, *arrays)
    outputs = list(result) if eqn.primitive.multiple_results else [result]
    if eqn.primitive.name not in _CARRIES_MASKS:
        return [Plain(output) for output in outputs]
    infinite = any(value.infinite for value in inputs)
    large = [value.large for value in inputs if isinstance(value, Plain) and value.large]
    worst = max(large, key=abs) if large else None
    return [Plain(output, infinite, worst) for output in outputs]


def _at(sequence: Value, turn: int) -> Value:
    if isinstance(sequence, Plain):
        return Plain(sequence.array[turn], sequence.infinite, sequence.large)
    invalid = None if sequence.invalid is None else sequence.invalid[turn]
    parts = tuple(None if c is None else c[turn] for c in sequence.coefficients)
    return Series(sequence.degree, parts, invalid, sequence.infinite)


def _warn_of_leak(name: str, inputs: Sequence[Value]) -> None:
    degrees = [value.degree for value in inputs if isinstance(value, Series)]
    large = [value.large for value in inputs if isinstance(value, Plain) and value.large]
    if large and max(degrees) > 0:
        worst = max(large, key=abs)
        warnings.warn(
            f"The constant {worst:.3g} meets a quantity of degree {max(degrees)} in `{name}`: as a "
            "mask it vanishes in the limit and leaks. Mask with -inf, or with `where` afterwards.",
            LeakWarning,
            stacklevel=2,
        )
