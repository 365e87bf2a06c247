"""Evaluates a jaxpr on truncated series in 1/c, equation by equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from saturation.errors import LimitError
from saturation.limit.carried import Expansion, Leaf
from saturation.limit.constants import constant, results
from saturation.limit.equation import bind, contracted, like, plain
from saturation.limit.linear import MOVES
from saturation.limit.masks import MASK_BELOW, unmasked
from saturation.limit.order import select
from saturation.limit.rules import RULES
from saturation.limit.series import Constant, PowerSeries, Value, concatenate
from saturation.limit.sizes import tracked
from saturation.limit.tally import Tally
from saturation.limit.uniform import Forms


class SeriesInterpreter:
    """Evaluates a jaxpr on series; what no series reaches runs as it is.

    Attributes:
      terms: how many coefficients are kept.
      mask_below: numbers up to this, ≤ 0, are masks (`masks.py`); None: none is.
      reports: whether the sizes of differences are kept in the tally.
      tally: what was decided.
      longest: the longest contraction met so far.
      ties_reliable: whether what depends on the parameters is computed in float64 throughout.
    """

    def __init__(
        self, terms: int, mask_below: float | None = MASK_BELOW, reports: bool = False
    ) -> None:
        self.terms = terms
        self.mask_below = mask_below
        self.reports = reports
        self.tally = Tally.empty()
        self.longest = 1
        self.ties_reliable = True
        self._folding = False
        self._forms = Forms()

    def meet(self, length: int) -> None:
        """Take note of a contraction of this length."""
        self.longest = max(self.longest, length)

    def unmasked(self, *values: Value, doubts: bool = True) -> list[Value]:
        """Return values that meet, with ±∞ for what masks in one that does not grow."""
        return unmasked(values, self.mask_below, doubts)

    def taken_up(self, expansion: Expansion) -> list[Value]:
        """Return the values of an expansion's leaves, with what is known of them taken note of."""
        leaves = expansion.leaves()
        self.meet(expansion.longest)
        self.ties_reliable &= expansion.ties_reliable
        groups = {leaf.group: leaf.forms for leaf in leaves if leaf.forms is not None}
        for group, forms in groups.items():
            ours = [leaf for leaf in leaves if leaf.group == group and leaf.forms is not None]
            self._forms.take_up(forms, {leaf.place: leaf.value for leaf in ours})
        return [leaf.value for leaf in leaves]

    def handed_on(self, outputs: Sequence[Value], structure: Any) -> Expansion:
        """Return the expansion of a function's outputs."""
        forms = self._forms.of_outputs(outputs)
        leaves = [Leaf(value, forms, place) for place, value in enumerate(outputs)]
        tree = jax.tree.unflatten(structure, leaves)
        return Expansion(tree, self.longest, self.ties_reliable)

    def run(self, closed: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of a jaxpr."""
        jaxpr = closed.jaxpr
        constants = [self._forms.met(constant(value)) for value in closed.consts]
        environment: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        environment.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                aval: Any = atom.aval  # its dtype, not the value's: a Python float has 64 bits
                return self._forms.met(constant(atom.val, aval.dtype))
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
        inputs = self._forms.cancelled(eqn, inputs)
        if all(isinstance(value, Constant) for value in inputs):
            return self._apply_plain(eqn, [plain(eqn, value) for value in inputs])
        if name in _LOOPS:
            return _LOOPS[name](self, eqn, inputs)
        if name not in RULES:
            raise LimitError(
                f"`saturate` has no rule for the primitive `{name}`, which meets a quantity that "
                "depends on the parameters; write it with primitives that have one "
                "(saturation/limit/rules.py lists them)."
            )
        outputs = RULES[name](self, eqn, inputs)
        self._forms.note(eqn, inputs, outputs)
        if name not in MOVES and name != "convert_element_type":
            made = (each.example.dtype for each in outputs if isinstance(each, PowerSeries))
            self.ties_reliable &= all(tracked(dtype) for dtype in made)
        return outputs

    def _apply_plain(self, eqn: Any, inputs: Sequence[Constant]) -> list[Value]:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            self.meet(contracted(eqn))
        known = not any(isinstance(value.array, jax.core.Tracer) for value in inputs)
        # Numbers stay known: an exponent, which branch, how many turns. Arrays of them need not,
        # and would be constants of the compiled program, each as large as what it meets.
        sizes = (math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars))
        folded = known and (self._folding or all(size == 1 for size in sizes))
        with jax.ensure_compile_time_eval() if folded else nullcontext():
            result = bind(eqn, *(value.array for value in inputs))
        outputs = list(result) if eqn.primitive.multiple_results else [result]
        found = results(eqn, inputs, outputs)
        self._forms.note(eqn, inputs, found)
        return [*found]

    def scan(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Turn by turn until degrees and absent terms repeat, the rest as one loop."""
        p, backwards = eqn.params, eqn.params["reverse"]
        fixed, carried = _scan_parts(eqn)
        # Taken apart, and so with their sizes made: what a loop's trace makes must not leave it.
        constants = jax.tree.map(lambda array: array, list(inputs[:fixed]))
        carry = jax.tree.map(lambda array: array, list(inputs[fixed : fixed + carried]))
        sequences = list(inputs[fixed + carried :])
        turns = list(range(p["length"]))[:: -1 if backwards else 1]
        step = partial(self._turn, p["jaxpr"], constants)
        pieces: list[list[Value]] = []  # of every output, in the order of turns
        settles = True
        while turns:
            now, turns = turns[0], turns[1:]
            here = [jax.tree.map(lambda a, now=now: a[now], one) for one in sequences]
            before = carry
            (_, carry), outputs = step((self.tally, carry), here)
            pieces.append([jax.tree.map(lambda a: a[None], one) for one in outputs])
            if settles and len(turns) > 1 and _form(before) == _form(carry):
                settles = self._keeps_form(step, carry, here)
                if settles:
                    part = slice(min(turns), max(turns) + 1)
                    rest = [jax.tree.map(lambda a, part=part: a[part], one) for one in sequences]
                    state = (self.tally, carry)
                    (self.tally, carry), others = jax.lax.scan(
                        step, state, rest, length=len(turns), reverse=backwards
                    )
                    pieces.append(others)
                    turns = []
        if not pieces:
            nothing = (like(eqn, i) for i in range(carried, len(eqn.outvars)))
            return [*carry, *(Constant(jnp.zeros_like(each)) for each in nothing)]
        ordered = pieces[:: -1 if backwards else 1]
        return [*carry, *(concatenate(parts, self.terms) for parts in zip(*ordered, strict=True))]

    def _turn(
        self, jaxpr: ClosedJaxpr, constants: list[Value], state: Any, here: list[Value]
    ) -> Any:
        """One turn of a scan, from (tally, carry) to them and what it leaves behind."""
        self.tally, carry = state
        outputs = self.run(jaxpr, [*constants, *carry, *here])
        return (self.tally, outputs[: len(carry)]), outputs[len(carry) :]

    def _keeps_form(self, step: Any, carry: list[Value], here: list[Value]) -> bool:
        """Whether a loop can take a scan's further turns.

        It does not know the numbers that are known turn by turn, such as which of two branches a
        counter chooses, and so may find other degrees, or no limit at all.
        """
        tally, forms = self.tally, []

        def turn(carry: list[Value], here: list[Value]) -> None:
            (_, after), _ = step((tally, carry), here)
            forms.append(_form(after))

        try:
            jax.eval_shape(turn, carry, here)
        except LimitError:
            return False
        finally:
            self.tally = tally
        return forms == [_form(carry)]

    def cond(self, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        """Evaluate every branch and choose: their degrees may differ."""
        which, *operands = inputs
        index, branches = plain(eqn, which), eqn.params["branches"]
        if index.invalid is None and not isinstance(index.array, jax.core.Tracer):
            return self.run(branches[int(index.array)], operands)
        branches = [self.run(branch, operands) for branch in branches]
        return [
            select(self, index, cases, like(eqn, i))
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
                known = isinstance(goes_on, Constant) and goes_on.invalid is None
                array = goes_on.array if isinstance(goes_on, Constant) else None
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
    """The function that an equation calls once with its inputs: pjit, custom_jvp, remat, …

    None where what it holds takes something else: one element of what is reduced, or one device's
    part.
    """
    if eqn.primitive.name in _LOOPS:
        return None
    if eqn.primitive.name == "call_hi_primitive":  # from JAX 0.12 on; it says what it is made of
        return _expanded(eqn)
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        inner = found.jaxpr if isinstance(found, ClosedJaxpr) else found
        if isinstance(inner, Jaxpr) and _shapes(inner) == _shapes(eqn):
            return found if isinstance(found, ClosedJaxpr) else ClosedJaxpr(inner, ())
    return None


def _expanded(eqn: Any) -> ClosedJaxpr:
    whole = eqn.params["_prim"]

    def flat(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(whole.expand(*jax.tree.unflatten(whole.in_tree, leaves)))

    avals = [variable.aval for variable in eqn.invars]
    return jax.make_jaxpr(flat)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))


def _shapes(of: Any) -> list[list[tuple[int, ...]]]:
    return [
        [getattr(variable.aval, "shape", ()) for variable in side]
        for side in (of.invars, of.outvars)
    ]
