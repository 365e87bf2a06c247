"""Evaluates a jaxpr on truncated series in 1/c, equation by equation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from saturation.errors import LimitError
from saturation.limit.equation import axes_of, bind, like, plain
from saturation.limit.linear import MOVES
from saturation.limit.order import select
from saturation.limit.rules import RULES
from saturation.limit.series import Plain, Series, Value, concatenate, either

LARGE = 1e6  # a finite constant beyond this is taken for a mask's when it meets a growing quantity

# Primitives that only move values about or scale them: what they make of a mask is still one.
_CARRIES_MASKS = frozenset(
    (
        *("select_n", "broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "copy"),
        *("transpose", "mul", "add", "sub", "neg", "concatenate", "slice", "pad", "max", "min"),
    )
)
# What these make of one element without a limit is one element; anything else may spread it.
_ELEMENTWISE = frozenset(
    (
        *("and", "or", "not", "xor", "eq", "ne", "lt", "le", "gt", "ge", "select_n", "abs", "sign"),
        *("add", "sub", "mul", "div", "neg", "max", "min", "convert_element_type", "integer_pow"),
        *("square", "sqrt", "rsqrt", "exp", "log", "tanh", "logistic", "pow", "copy", "is_finite"),
    )
)


class LeakWarning(UserWarning):
    """A finite constant that masks at ordinary scale and leaks in the limit."""


def constant(x: Any, dtype: Any = None) -> Plain:
    """Return a constant with what can be seen of it: ±∞, or a mask's large number.

    Of a traced one nothing can: it may hold ±∞, as a mask that is handed in does.
    """
    if isinstance(x, jax.core.Tracer):
        array = jnp.asarray(x, dtype)
        return Plain(array, infinite=bool(jnp.issubdtype(array.dtype, jnp.floating)))
    with jax.ensure_compile_time_eval():  # a number stays one that can be looked at, under jit too
        array = jnp.asarray(x, dtype)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return Plain(array)
    values = np.asarray(x).astype(np.float64)
    finite = np.where(np.isfinite(values), values, 0.0)
    large = float(finite.flat[np.abs(finite).argmax()]) if values.size else 0.0
    return Plain(
        array,
        infinite=bool(np.isinf(values).any()),
        large=large if abs(large) > LARGE else None,
    )


class SeriesInterpreter:
    """Evaluates a jaxpr on series; what no series reaches runs as it is.

    Attributes:
      terms: how many coefficients are kept.
      ties: int32, how many elements were equal in all of them where one had to be chosen.
    """

    def __init__(self, terms: int) -> None:
        self.terms = terms
        self.ties = jnp.zeros((), jnp.int32)
        self._folding = False

    def count_ties(self, count: jax.Array) -> None:
        """Add to the ties."""
        self.ties = self.ties + count

    def run(self, closed: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of a jaxpr."""
        jaxpr = closed.jaxpr
        constants = [constant(value) for value in closed.consts]
        environment: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        environment.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                aval: Any = atom.aval  # its dtype, not the value's: a Python float has 64 bits
                return constant(atom.val, aval.dtype)
            return environment[atom]

        for eqn in jaxpr.eqns:
            outputs = self.apply(eqn, [read(atom) for atom in eqn.invars])
            environment.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of one equation.

        Raises:
          LimitError: its primitive has no rule, or its result no limit.
        """
        name = eqn.primitive.name
        inner = _inner(eqn)
        if inner is not None:
            return self.run(inner, inputs)
        if all(isinstance(value, Plain) for value in inputs):
            return self._apply_plain(eqn, inputs)
        if name in _LOOPS:
            return _LOOPS[name](self, eqn, inputs)
        if name not in RULES:
            raise LimitError(
                f"`saturate` has no rule for the primitive `{name}`, which meets a quantity that "
                "depends on the parameters; write it with primitives that have one "
                "(saturation/limit/rules.py lists them)."
            )
        _warn_of_leak(name, inputs)
        return RULES[name](self, eqn, inputs)

    def _apply_plain(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        given = [plain(eqn, value) for value in inputs]
        known = not any(isinstance(value.array, jax.core.Tracer) for value in given)
        # Numbers stay known: an exponent, which branch, how many turns.
        folded = known and (self._folding or all(value.array.size == 1 for value in given))
        with jax.ensure_compile_time_eval() if folded else nullcontext():
            result = bind(eqn, *(value.array for value in given))
        outputs = list(result) if eqn.primitive.multiple_results else [result]
        invalid = _spread(eqn, given, outputs)
        if eqn.primitive.name not in _CARRIES_MASKS:
            return [Plain(*pair) for pair in zip(outputs, invalid, strict=True)]
        infinite = any(value.infinite for value in given)
        large = max((value.large for value in given if value.large), key=abs, default=None)
        return [Plain(*pair, infinite, large) for pair in zip(outputs, invalid, strict=True)]

    def scan(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Turn by turn until degrees and absent terms repeat, the rest as one loop."""
        p, backwards = eqn.params, eqn.params["reverse"]
        fixed, carried = _scan_parts(eqn)
        constants, carry = list(inputs[:fixed]), list(inputs[fixed : fixed + carried])
        sequences = list(inputs[fixed + carried :])
        turns = list(range(p["length"]))[:: -1 if backwards else 1]
        pieces: list[list[Value]] = []  # of every output, in the order of turns
        while turns:
            now, turns = turns[0], turns[1:]
            here = [jax.tree.map(lambda a, now=now: a[now], one) for one in sequences]
            outputs = self.run(p["jaxpr"], [*constants, *carry, *here])
            pieces.append([jax.tree.map(lambda a: a[None], one) for one in outputs[carried:]])
            before, carry = carry, outputs[:carried]
            if len(turns) > 1 and _form(before) == _form(carry):
                part = slice(min(turns), max(turns) + 1)
                rest = [jax.tree.map(lambda a, part=part: a[part], one) for one in sequences]
                step = partial(self._turn, p["jaxpr"], constants)
                state = (self.ties, carry)
                (self.ties, carry), others = jax.lax.scan(
                    step, state, rest, length=len(turns), reverse=backwards
                )
                pieces.append(others)
                turns = []
        if not pieces:
            nothing = (like(eqn, i) for i in range(carried, len(eqn.outvars)))
            return [*carry, *(Plain(jnp.zeros_like(each)) for each in nothing)]
        ordered = pieces[:: -1 if backwards else 1]
        return [*carry, *(concatenate(parts, self.terms) for parts in zip(*ordered, strict=True))]

    def _turn(
        self, jaxpr: ClosedJaxpr, constants: list[Value], state: Any, here: list[Value]
    ) -> Any:
        """One turn of a scan whose carry keeps its form, for a scan to repeat."""
        self.ties, carry = state
        outputs = self.run(jaxpr, [*constants, *carry, *here])
        return (self.ties, outputs[: len(carry)]), outputs[len(carry) :]

    def cond(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Evaluate every branch and choose: their degrees may differ."""
        which, *operands = inputs
        index, branches = plain(eqn, which), eqn.params["branches"]
        if index.invalid is None and not isinstance(index.array, jax.core.Tracer):
            return self.run(branches[int(index.array)], operands)
        branches = [self.run(branch, operands) for branch in branches]
        return [
            select(index, cases, like(eqn, i), self.terms)
            for i, cases in enumerate(zip(*branches, strict=True))
        ]

    def while_loop(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Turn by turn, where what is decided on is a number known while tracing."""
        p = eqn.params
        first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        asked, used, carry = inputs[:first], inputs[first:second], list(inputs[second:])
        outer, self._folding = self._folding, True
        try:
            while True:
                [goes_on] = self.run(p["cond_jaxpr"], [*asked, *carry])
                known = isinstance(goes_on, Plain) and goes_on.invalid is None
                array = goes_on.array if isinstance(goes_on, Plain) else None
                if not known or isinstance(array, jax.core.Tracer):
                    raise LimitError(
                        "A `while` loop over quantities that depend on the parameters must take a "
                        "number of turns that is known while tracing; use `fori_loop` with fixed "
                        "bounds, or `scan`."
                    )
                if not bool(array):
                    return carry
                carry = self.run(p["body_jaxpr"], [*used, *carry])
        finally:
            self._folding = outer


_LOOPS = {
    "scan": SeriesInterpreter.scan,
    "cond": SeriesInterpreter.cond,
    "while": SeriesInterpreter.while_loop,
}


def _scan_parts(eqn: Any) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried.

    JAX 0.12 no longer says so in the equation's parameters. But what is scanned has one axis more
    outside of the loop than in it, and so has what the turns leave behind.
    """
    inner = eqn.params["jaxpr"]
    inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner

    def unscanned(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(a.aval.ndim == b.aval.ndim for a, b in pairs)

    carried = unscanned(eqn.outvars, inner.outvars)
    return unscanned(eqn.invars, inner.invars) - carried, carried


def _form(values: Sequence[Value]) -> Any:
    """What the outputs' degrees and absent terms follow from."""
    leaves, structure = jax.tree.flatten(list(values))
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _inner(eqn: Any) -> ClosedJaxpr | None:
    """The function that an equation calls once with its inputs: pjit, custom_jvp, remat, …"""
    if eqn.primitive.name in _LOOPS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if isinstance(found, ClosedJaxpr):
            return found
        if isinstance(found, Jaxpr):
            return ClosedJaxpr(found, ())
    return None


def _spread(
    eqn: Any, inputs: Sequence[Plain], outputs: Sequence[jax.Array]
) -> list[jax.Array | None]:
    """Which elements of a plain operation's outputs come from one that has no limit."""
    masks = [value.invalid for value in inputs if value.invalid is not None]
    if not masks:
        return [None] * len(outputs)
    name = eqn.primitive.name
    if name in _ELEMENTWISE:
        return [jnp.broadcast_to(either(*masks), output.shape) for output in outputs]
    if name in MOVES and len(inputs) == 1:
        return [bind(eqn, masks[0])]
    if name in ("reduce_and", "reduce_or", "reduce_sum", "reduce_max", "reduce_min", "argmax"):
        return [jnp.any(masks[0], axis=axes_of(eqn))]
    spoilt = either(*(jnp.any(mask) for mask in masks))
    return [jnp.broadcast_to(spoilt, output.shape) for output in outputs]


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
