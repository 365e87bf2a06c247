"""Order among series for large c, which is lexicographic over their coefficients, and its rules.

A lower term breaks a tie of the higher ones: that is how the relative bias of a T5 decides between
keys of equal tokens. What compares with something that has no limit has none itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saturation.limit.equation import Interpreter, Rule, axes_of, like, plain
from saturation.limit.series import (
    Coefficient,
    Constant,
    Like,
    PowerSeries,
    Sizes,
    Value,
    align,
    as_series,
    either,
    indistinct_from_zero,
    join_invalid,
    make,
    sizes_of,
)
from saturation.limit.sizes import Size, known, larger, thresholds, tracked


class Compared(NamedTuple):
    """How two values compare for large c, element by element.

    Attributes:
      less: x < y.
      equal: the same in every kept term.
      undecided: the first terms that are not the same are no clear difference (`limit.ties`);
        None for nowhere.
    """

    less: jax.Array
    equal: jax.Array
    undecided: Coefficient


def compare(
    interpreter: Interpreter, x: Value, y: Value, *, sharp: bool = True, jumps: bool = True
) -> Compared:
    """Return how x compares with y: coefficients compare lexicographically.

    What is undecided is counted; where what follows `jumps` it has no limit, and the caller marks
    it. Where nothing jumps (a maximum) either answer is right to within the difference, and the
    cheap sizes will do.
    """
    first, second = (as_series(value, interpreter.terms) for value in (x, y))
    degree, (a, b) = align([first, second])
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    equal = jnp.ones(shape, bool)
    below = jnp.zeros(shape, bool)
    doubted: Coefficient = None
    zero = jnp.zeros((), first.example.dtype)
    for index, (p, q) in enumerate(zip(a, b, strict=True)):
        if p is None and q is None:
            continue
        p, q = zero if p is None else p, zero if q is None else q
        sizes = (v.size(index - degree + v.degree, sharp) for v in (first, second))
        size = larger(*sizes)
        tied, near = judge(interpreter, p, q, size)
        if interpreter.reports and jumps and size is not None:
            interpreter.tally = interpreter.tally.with_differences(p - q, size, tied, equal)
        # Not by the sign of a difference: ∞ − ∞ is NaN, and two −∞ are equal.
        below = below | (equal & ~tied & (p < q))
        doubted = with_undecided(doubted, None if near is None else equal & near)
        equal = equal & tied
    if jumps and doubted is not None:
        interpreter.tally = interpreter.tally.with_undecided(doubted)
    return Compared(below, equal, doubted)


def judge(
    interpreter: Interpreter, p: jax.Array, q: jax.Array, size: Coefficient
) -> tuple[jax.Array, Coefficient]:
    """Return where two coefficients are the same, and where it is undecided; None is no size."""
    if size is None or not tracked(p.dtype):
        return p == q, None
    limits = thresholds(interpreter.longest, p.dtype)
    difference = jnp.abs(p - q)
    tied = (p == q) | (difference <= limits.tied * size)
    return tied, ~tied & (difference < limits.apart * size)


def select(
    interpreter: Interpreter, which: Constant, cases: Sequence[Value], shaped: Like
) -> Value:
    """Return, element by element, the case that `which` (bool or integer) names."""
    constants = [case for case in cases if isinstance(case, Constant)]
    if len(constants) == len(cases):
        return select_constant(which, constants, shaped)
    cases = interpreter.unmasked(*cases)
    if which.truth is not None:
        case = cases[int(which.truth)]
        if case.shape == shaped.shape:
            return case
    pick, invalid = _picker(which, shaped), _unselected(which, cases, shaped)
    all_series = [as_series(case, interpreter.terms) for case in cases]
    degree, aligned = align(all_series)
    zero, none = jnp.zeros_like(shaped), jnp.zeros(shaped.shape, bool)
    coefficients = [pick(options, zero) for options in zip(*aligned, strict=True)]
    noise = None
    if any(one.noise is not None for one in all_series):
        leading = [parts[0] for parts in aligned]
        noise = pick(
            [indistinct_from_zero(s, c) for s, c in zip(all_series, leading, strict=True)], ~none
        )

    def picked(sizes: Sequence[Coefficient], index: int) -> jax.Array:
        found = pick(sizes, zero)
        assert found is not None
        return found

    sizes = sizes_of(all_series, degree, coefficients, picked)
    infinite = any(one.infinite for one in all_series)
    return make(degree, coefficients, shaped, invalid, infinite, noise, sizes)


def select_constant(which: Constant, cases: Sequence[Constant], shaped: Like) -> Constant:
    """Return the same of constants, integers and truth values among them, which they stay."""
    arrays = _picker(which, shaped)([case.array for case in cases], jnp.zeros_like(shaped))
    assert arrays is not None
    large = tuple(dict.fromkeys(number for case in cases for number in case.large))
    infinite, seen = any(case.infinite for case in cases), all(case.seen for case in cases)
    return Constant(arrays, _unselected(which, cases, shaped), infinite, large, seen)


def _picker(which: Constant, shaped: Like) -> Callable[..., Coefficient]:
    index = jnp.broadcast_to(which.array, shaped.shape)

    def pick(options: Sequence[Coefficient], absent: jax.Array) -> Coefficient:
        if all(option is None for option in options):
            return None
        dense = (absent if option is None else option for option in options)
        return jax.lax.select_n(index, *(jnp.broadcast_to(d, shaped.shape) for d in dense))

    return pick


def _unselected(which: Constant, cases: Sequence[Value], shaped: Like) -> Coefficient:
    """Where what is chosen has no limit, or which one it is has none."""
    none = jnp.zeros(shaped.shape, bool)
    invalid = _picker(which, shaped)([case.invalid for case in cases], none)
    if which.invalid is not None:
        doubted = jnp.broadcast_to(which.invalid, shaped.shape)
        invalid = doubted if invalid is None else doubted | invalid
    return invalid


class Extreme(NamedTuple):
    """A lexicographic maximum (minimum) over axes, kept as axes of length 1.

    Attributes:
      coefficients: of it.
      sizes: theirs.
      attained: where it is attained, in the shape of what it was taken of.
      undecided: where another element is no clear difference away.
    """

    coefficients: list[Coefficient]
    sizes: Sizes | None
    attained: jax.Array
    undecided: Coefficient


def extreme_of(
    interpreter: Interpreter, x: PowerSeries, axes: tuple[int, ...], largest: bool
) -> Extreme:
    """Return the lexicographic maximum (minimum) of x over axes."""
    outermost = -np.inf if largest else np.inf
    reduce = jnp.max if largest else jnp.min
    attained = jnp.ones(x.shape, bool)
    undecided: Coefficient = None
    found: list[Coefficient] = []
    sizes: list[Size | None] = []
    for index, a in enumerate(x.coefficients):
        if a is None:
            found.append(None)
            sizes.append(None)
            continue
        candidates = jax.lax.select(attained, a, jnp.full_like(a, outermost))
        best = reduce(candidates, axis=axes, keepdims=True)
        size = x.size(index, sharp=True)
        if size is None:
            sizes.append(None)
            tied, near = judge(interpreter, a, best, None)
        else:
            here = jnp.max(jnp.where(candidates == best, size, 0), axis=axes, keepdims=True)
            sizes.append(known(here))
            tied, near = judge(interpreter, a, best, jnp.maximum(size, here))
        undecided = with_undecided(undecided, None if near is None else attained & near)
        attained &= tied
        found.append(best)
    return Extreme(found, tuple(sizes) if tracked(x.example.dtype) else None, attained, undecided)


def count_ties(found: Extreme, axes: tuple[int, ...]) -> jax.Array:
    """Return how many elements beyond one attain an extreme, int32; rows of ±∞ have no ties."""
    surplus = jnp.sum(found.attained, axis=axes, keepdims=True, dtype=jnp.int32) - 1
    for c in found.coefficients:
        if c is not None:  # a row of masks alone attains −∞ everywhere, which is no tie
            surplus = jnp.where(jnp.isfinite(c), surplus, 0)
    return jnp.sum(surplus, dtype=jnp.int32)


def comparison(name: str) -> Rule:
    """Return the rule of a comparison: lt, le, gt, ge, eq or ne."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        # Numbers beyond 1e29 stand for ∞ here too: by them a function guards against overflow.
        x, y = interpreter.unmasked(*inputs, doubts=False)
        found = compare(interpreter, x, y)
        holds = {
            "lt": found.less,
            "le": found.less | found.equal,
            "gt": ~(found.less | found.equal),
            "ge": ~found.less,
            "eq": found.equal,
            "ne": ~found.equal,
        }[name]
        return [Constant(holds, with_undecided(join_invalid(x, y), found.undecided))]

    return rule


def with_undecided(invalid: Coefficient, undecided: Coefficient) -> Coefficient:
    """Return where there is no limit, what is undecided added; None for nowhere."""
    if invalid is None or undecided is None:
        return undecided if invalid is None else invalid
    return invalid | undecided


COMPARISONS: dict[str, Rule] = {
    name: comparison(name) for name in ("lt", "gt", "le", "ge", "eq", "ne")
}
# A total order of floats, which searches use, differs from these in NaN and −0 alone.
COMPARISONS |= {f"{name}_to": COMPARISONS[name] for name in ("lt", "le", "eq")}


def absolute(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """|x|: each coefficient times the sign of the first that is not 0."""
    x = as_series(inputs[0], interpreter.terms)
    negative = compare(interpreter, x, _zero(x), sharp=False, jumps=False).less
    parts = [None if c is None else jax.lax.select(negative, -c, c) for c in x.coefficients]
    return [make(x.degree, parts, like(eqn), x.invalid, x.infinite, x.noise, x.sizes)]


def signum(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """The sign of x for large c."""
    x = as_series(inputs[0], interpreter.terms)
    found = compare(interpreter, x, _zero(x))
    sign = jnp.where(found.equal, 0, jnp.where(found.less, -1, 1)).astype(like(eqn).dtype)
    return [Constant(sign, with_undecided(x.invalid, found.undecided))]


def _zero(x: PowerSeries) -> Constant:
    return Constant(jnp.zeros((), x.example.dtype))


def finite(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Whether no kept coefficient is NaN or ±∞."""
    x = as_series(inputs[0], interpreter.terms)
    present = [~jnp.isfinite(c) for c in x.coefficients if c is not None]
    return [Constant(~either(*present), x.invalid)]


def selection(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """select_n: the case that a boolean or integer names, element by element."""
    which, *cases = inputs
    return [select(interpreter, plain(eqn, which), cases, like(eqn))]


def reduction(largest: bool) -> Rule:
    """Return the rule of reduce_max, or reduce_min: lexicographic, ties counted."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, axes = as_series(inputs[0], interpreter.terms), axes_of(eqn)
        found = extreme_of(interpreter, x, axes, largest)
        interpreter.tally = interpreter.tally.with_ties(count_ties(found, axes))
        kept = [None if c is None else jnp.squeeze(c, axes) for c in found.coefficients]
        invalid = None if x.invalid is None else jnp.any(x.invalid, axis=axes)
        noise = None if x.noise is None else jnp.any(found.attained & x.noise, axis=axes)
        squeezed = lambda size: known(jnp.squeeze(size(True), axes))
        sizes = found.sizes and tuple(size and squeezed(size) for size in found.sizes)
        return [make(x.degree, kept, like(eqn), invalid, x.infinite, noise, sizes)]

    return rule


def position(largest: bool) -> Rule:
    """Return the rule of argmax, or argmin: the first place that attains the extreme."""

    def rule(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        x, axes = as_series(inputs[0], interpreter.terms), axes_of(eqn)
        found = extreme_of(interpreter, x, axes, largest)
        interpreter.tally = interpreter.tally.with_ties(count_ties(found, axes))
        doubted = None if found.undecided is None else jnp.any(found.undecided, axis=axes)
        if doubted is not None:
            interpreter.tally = interpreter.tally.with_undecided(doubted)
        place = jnp.argmax(found.attained, axis=axes[0]).astype(like(eqn).dtype)
        invalid = None if x.invalid is None else jnp.any(x.invalid, axis=axes)
        return [Constant(place, with_undecided(invalid, doubted))]

    return rule


def sorting(interpreter: Interpreter, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """sort: the coefficients of the keys are keys one after the other, all else moves along.

    A row with a key that has no limit has no order, and so no limit in any of its elements.
    """
    dimension, keys = eqn.params["dimension"], eqn.params["num_keys"]
    unordered = [one.invalid for one in inputs[:keys] if one.invalid is not None]
    columns: list[jax.Array] = []  # of the keys, and then of all that moves along
    for value in inputs[:keys]:
        if isinstance(value, Constant):
            columns.append(value.array)
        else:
            ranks, doubted = _ranks(interpreter, value, dimension)
            columns += ranks
            unordered += [] if doubted is None else [doubted]
    number_of_keys = len(columns)
    places: list[range] = []
    for value in inputs:
        arrays = [value.array] if isinstance(value, Constant) else _dense(value)
        places.append(range(len(columns), len(columns) + len(arrays)))
        columns += arrays
    marks = {("invalid", i): one.invalid for i, one in enumerate(inputs)}
    marks |= {
        ("noise", i): one.noise for i, one in enumerate(inputs) if isinstance(one, PowerSeries)
    }
    marks = {name: mask for name, mask in marks.items() if mask is not None}
    moved = jax.lax.sort(
        (*columns, *(mask.astype(jnp.int32) for mask in marks.values())),
        dimension=dimension,
        is_stable=True,
        num_keys=number_of_keys,
    )
    masks = {name: m != 0 for name, m in zip(marks, moved[len(columns) :], strict=True)}
    row = jnp.any(either(*unordered), axis=dimension, keepdims=True) if unordered else None

    def invalid(i: int) -> jax.Array | None:
        own = masks.get(("invalid", i))
        if row is None:
            return own
        on_every_process = jnp.broadcast_to(row, inputs[i].shape)
        return on_every_process if own is None else on_every_process | own

    results: list[Value] = []
    for i, value in enumerate(inputs):
        parts = [moved[place] for place in places[i]]
        if isinstance(value, Constant):
            results.append(Constant(parts[0], invalid(i)))
        else:
            marked = invalid(i), value.infinite, masks.get(("noise", i))
            sizes = _largest_sizes(value, dimension)
            results.append(make(value.degree, parts, like(eqn, i), *marked, sizes))
    return results


def _largest_sizes(x: PowerSeries, dimension: int) -> Sizes | None:
    """Sizes that hold of x in any order along this axis: the largest."""

    def of(index: int) -> Size:
        def size(sharp: bool) -> jax.Array:
            found = x.size(index, sharp)
            assert found is not None
            return jnp.broadcast_to(jnp.max(found, axis=dimension, keepdims=True), x.shape)

        return Size(size)

    if x.sizes is None:
        return None
    return tuple(None if size is None else of(index) for index, size in enumerate(x.sizes))


def _ranks(
    interpreter: Interpreter, x: PowerSeries, dimension: int
) -> tuple[list[jax.Array], Coefficient]:
    """Columns that order x, equal where it is tied; and where a neighbour is undecided."""
    if not tracked(x.example.dtype):
        return _dense(x), None
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, dimension)
    group, doubted = jnp.zeros(x.shape, jnp.int32), None
    length = x.shape[dimension]
    for index, a in enumerate(x.coefficients):
        size = x.size(index, sharp=True)
        if a is None:
            continue
        size = jnp.zeros_like(a) if size is None else size
        moved = jax.lax.sort((group, a, size, place), dimension=dimension, num_keys=2)
        pairs = [
            tuple(jax.lax.slice_in_dim(m, i, length - 1 + i, axis=dimension) for i in (0, 1))
            for m in moved[:3]
        ]
        tied, near = judge(interpreter, *pairs[1], jnp.maximum(*pairs[2]))
        same = pairs[0][0] == pairs[0][1]
        if near is not None:
            row = jnp.any(near & same, axis=dimension, keepdims=True)
            interpreter.tally = interpreter.tally.with_undecided(row)
            doubted = with_undecided(doubted, row)
        start = jnp.zeros_like(jax.lax.slice_in_dim(group, 0, 1, axis=dimension))
        steps = jnp.concatenate([start, (~(tied & same)).astype(jnp.int32)], axis=dimension)
        ordered = jnp.cumsum(steps, axis=dimension, dtype=jnp.int32)
        _, group = jax.lax.sort((moved[3], ordered), dimension=dimension, num_keys=1)
    return [group], doubted


def _dense(x: PowerSeries) -> list[jax.Array]:
    return [jnp.zeros_like(x.example) if c is None else c for c in x.coefficients]
