"""What is the same along an axis by construction: c·s·1 + x loses its c·s under x − mean(x).

Degrees are static, so a term that cancels by its values keeps its degree. Here the coefficients
that a broadcast goes into are followed as polynomials in atoms: arrays of which nothing else is
known, each with the axes that it varies along. Equal operations on equal atoms make equal atoms
(value numbering), and a sum over axes along which nothing varies is a number times its summand.
What cancels as a polynomial is absent, and the degree falls. No array is computed for it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from saturation.limit.constants import ELEMENTWISE
from saturation.limit.equation import axes_of, like
from saturation.limit.forms_carried import (
    Factor,
    Form,
    FormsOfOutputs,
    atoms_within,
    rekeyed,
    renumbered,
)
from saturation.limit.series import Constant, PowerSeries, Value, as_series, make

Powers = dict[int, Form]  # of the coefficient of each power of c that is there

MOST_MONOMIALS, MOST_FACTORS = 16, 8  # of a form that is followed; a longer one is a new atom
_SIGNS = {"add": 1, "add_any": 1, "sub": -1}


class _Known(NamedTuple):
    """What is known of an array; `made` of others, and not merely looked at."""

    array: weakref.ref[Any]
    form: Form
    made: bool


class Forms:
    """The forms of one interpretation's arrays; of what is ±∞ or NaN they say nothing."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._atoms: dict[Any, int] = {}
        self._dtypes: dict[int, Any] = {}

    def of_outputs(self, outputs: Sequence[Value]) -> FormsOfOutputs | None:
        """Return what is known of a function's outputs; None where no sum can cancel by it."""
        known = [
            (place, power, found.form, found.made)
            for place, value in enumerate(outputs)
            for power, array in _arrays(value)
            if (found := self._known.get(id(array))) is not None
        ]
        if not any(made for *_, made in known):
            return None
        keys = {atom: key for key, atom in self._atoms.items()}
        numbers: dict[int, int] = {}

        def number(atom: int) -> int:
            if atom not in numbers:
                for inner in _made_of(keys[atom]):
                    number(inner)
                numbers[atom] = len(numbers)
            return numbers[atom]

        forms = tuple(
            (place, power, tuple(renumbered(form, number).items()), made)
            for place, power, form, made in known
        )
        makes = (rekeyed(keys[a], number) if _made_of(keys[a]) else None for a in numbers)
        dtypes = (self._dtypes.get(atom) for atom in numbers)
        return FormsOfOutputs(forms, tuple(zip(makes, dtypes, strict=True)))

    def take_up(self, known: FormsOfOutputs, values: Mapping[int, Value]) -> None:
        """Take note of what is known of another function's outputs, {their place: the value}."""
        ours: list[int] = []
        for key, dtype in known.atoms:
            key = object() if key is None else rekeyed(key, ours.__getitem__)
            ours.append(self._atoms.setdefault(key, len(self._atoms)))
            if dtype is not None:
                self._dtypes[ours[-1]] = dtype
        arrays = {(i, power): a for i, value in values.items() for power, a in _arrays(value)}
        for place, power, form, made in known.forms:
            if (place, power) in arrays:
                self._keep(arrays[place, power], renumbered(dict(form), ours.__getitem__), made)

    def met(self, value: Constant) -> Constant:
        """Return a constant of the function; that it is one number throughout is noted."""
        array, known = value.array, not isinstance(value.array, jax.core.Tracer)
        if known and array.size > 1 and jnp.issubdtype(array.dtype, jnp.floating):
            numbers = np.asarray(array)
            first = numbers.flat[0]
            if np.isfinite(first) and (numbers == first).all():
                self._keep(array, _number(first), made=True)
        return value

    def cancelled(self, eqn: Any, inputs: Sequence[Value]) -> Sequence[Value]:
        """Return the summands of an equation that is a sum, without the terms that cancel in it."""
        sign = _SIGNS.get(eqn.primitive.name)
        if sign is None or not any(isinstance(value, PowerSeries) for value in inputs):
            return inputs
        if not self._concerns(eqn, inputs):
            return inputs
        first, second = (self._powers(value) for value in inputs)
        total = _added(first, second, sign)
        gone = {power for power in total if not total[power]} & {*first} & {*second}
        if not gone or gone == {*total}:  # what is left may lie below the terms that were kept
            return inputs
        return [self._without(value, gone) for value in inputs]

    def note(self, eqn: Any, inputs: Sequence[Value], outputs: Sequence[Value]) -> None:
        """Take note of what an equation made."""
        if len(outputs) != 1 or not self._concerns(eqn, inputs):
            return
        given = [self._powers(value) for value in inputs]
        made, axes = (
            self._made(eqn, given),
            _axes_of(form for one in given for form in one.values()),
        )
        for power, array in _arrays(outputs[0]):
            if made is not None:
                form = made.get(power, {})
            elif axes != _long(array.shape):  # a function of what does not vary does not either
                form = self._alone(object(), axes)
            else:
                continue
            longest = max(map(len, form), default=0)
            if len(form) <= MOST_MONOMIALS and longest <= MOST_FACTORS:
                self._keep(array, form, made=True)

    def _concerns(self, eqn: Any, inputs: Sequence[Value]) -> bool:
        """Whether an equation broadcasts what grows, or a number, or goes on from what did."""
        name = eqn.primitive.name
        if name not in ELEMENTWISE and name not in _LINEAR:
            return False
        if not jnp.issubdtype(like(eqn).dtype, jnp.floating):
            return False
        size = math.prod(like(eqn).shape)
        for value in inputs:
            wide = isinstance(value, PowerSeries) or (
                name == "broadcast_in_dim" and _is_number(value)
            )
            if wide and math.prod(value.shape) < size:
                return True
            found = (self._known.get(id(array)) for _, array in _arrays(value))
            if any(known is not None and known.made for known in found):
                return True
        return False

    def _powers(self, value: Value) -> Powers:
        return {power: self._of(array, value) for power, array in _arrays(value)}

    def _of(self, array: jax.Array, value: Value) -> Form:
        """The form of an array; a new atom where nothing is known of it."""
        known = self._known.get(id(array))
        if known is not None:
            return known.form
        if _is_number(value):
            return _number(np.asarray(array).reshape(())[()])
        form = self._alone(object(), _long(array.shape), array.dtype)
        self._keep(array, form, made=False)
        return form

    def _alone(self, key: Any, axes: Iterable[int], dtype: Any = None) -> Form:
        """The form of the atom of this key, which varies along these axes."""
        atom = self._atoms.setdefault(key, len(self._atoms))
        if dtype is not None:
            self._dtypes[atom] = dtype
        return {((atom, tuple(axes)),): Fraction(1)}

    def _keep(self, array: jax.Array, form: Form, made: bool) -> None:
        key = id(array)
        forget = lambda _: self._known.pop(key, None)
        self._known[key] = _Known(weakref.ref(array, forget), form, made)

    def _without(self, value: Value, gone: set[int]) -> Value:
        """A value without these powers; what was ±∞ or NaN there is so in what then leads."""
        x = as_series(value, value.terms if isinstance(value, PowerSeries) else 1)
        before = {power: self._known.get(id(array)) for power, array in _arrays(value)}
        powers = [x.degree - index for index in range(x.terms)]
        kept = [None if p in gone else c for p, c in zip(powers, x.coefficients, strict=True)]
        first = next((index for index, c in enumerate(kept) if c is not None), x.terms)
        leading = jnp.zeros_like(x.example) if first == x.terms else kept[first]
        assert leading is not None
        for lost in x.coefficients[:first]:
            leading = leading if lost is None else jnp.where(jnp.isfinite(lost), leading, lost)
        if first == x.terms:
            return Constant(leading, x.invalid, infinite=True)
        kept[first] = leading
        result = make(x.degree, kept, x.example, x.invalid, x.infinite, x.noise, x.sizes)
        for power, array in _arrays(result):
            known = before[power]
            if known is not None:
                self._keep(array, known.form, known.made)
        return result

    def _made(self, eqn: Any, inputs: Sequence[Powers]) -> Powers | None:
        """The forms of an equation's output, of each power of c; None where it is no polynomial."""
        name = eqn.primitive.name
        if name in _SIGNS:
            return _added(inputs[0], inputs[1], _SIGNS[name])
        if name == "mul":
            return _multiplied(inputs[0], inputs[1])
        if name == "div" and list(inputs[1]) == [0]:
            return _multiplied(inputs[0], {0: self._inverse(inputs[1][0])})
        exponent = 2 if name == "square" else eqn.params.get("y", 0)
        if name in ("square", "integer_pow") and 1 <= exponent <= MOST_FACTORS:
            result = inputs[0]
            for _ in range(exponent - 1):
                result = _multiplied(result, inputs[0])
            return result
        if name == "convert_element_type":
            return {power: self._converted(eqn, form) for power, form in inputs[0].items()}
        if name in _LINEAR:
            return {power: self._linear(eqn, form) for power, form in inputs[0].items()}
        return None

    def _inverse(self, form: Form) -> Form:
        if list(form) == [()]:
            return {(): 1 / form[()]}
        return self._alone(("inverse", frozenset(form.items())), _axes_of([form]))

    def _converted(self, eqn: Any, form: Form) -> Form:
        """What is rounded to fewer digits is another number, unless it came from one of so few."""
        before, after = (v.aval.dtype for v in (eqn.invars[0], eqn.outvars[0]))
        if _holds(after, before):
            return form
        atoms = [atom for monomial in form for atom, _ in monomial]
        if len(atoms) == 1 and list(form.values()) == [1]:
            origin = self._dtypes.get(atoms[0])
            if origin is not None and _holds(after, origin):
                return form
        return self._alone((str(after), frozenset(form.items())), _axes_of([form]))

    def _linear(self, eqn: Any, form: Form) -> Form:
        """What does not vary along the axes that a linear equation acts on is a factor outside."""
        shape, outside = eqn.invars[0].aval.shape, like(eqn).shape
        moved, acted = _LINEAR[eqn.primitive.name](eqn)
        result: Form = {}
        for monomial, number in form.items():
            inner = tuple(factor for factor in monomial if acted & {*factor[1]})
            varies = {axis for _, axes in inner for axis in axes}
            factors = [
                (atom, tuple(moved[axis] for axis in axes))
                for atom, axes in monomial
                if not acted & {*axes}
            ]
            if inner:
                fixed = {moved[axis] for axis in moved if axis not in varies}
                key = (eqn.primitive.name, str(eqn.params), shape, inner)
                [(factor,)] = self._alone(key, [a for a in _long(outside) if a not in fixed])
                factors.append(factor)
            if eqn.primitive.name == "reduce_sum":
                number = number * math.prod(shape[axis] for axis in acted - varies)
            _add_to(
                result, tuple(sorted(factors)), -number if eqn.primitive.name == "neg" else number
            )
        return result


def _broadcast(eqn: Any) -> tuple[dict[int, int], set[int]]:
    return dict(enumerate(map(int, eqn.params["broadcast_dimensions"]))), set()


def _transposed(eqn: Any) -> tuple[dict[int, int], set[int]]:
    return {axis: place for place, axis in enumerate(map(int, eqn.params["permutation"]))}, set()


def _negated(eqn: Any) -> tuple[dict[int, int], set[int]]:
    return {axis: axis for axis in range(len(like(eqn).shape))}, set()


def _reduced(eqn: Any) -> tuple[dict[int, int], set[int]]:
    gone = set(axes_of(eqn))
    left = [axis for axis in range(len(eqn.invars[0].aval.shape)) if axis not in gone]
    return {axis: place for place, axis in enumerate(left)}, gone


def _sliced(eqn: Any) -> tuple[dict[int, int], set[int]]:
    before, after = eqn.invars[0].aval.shape, like(eqn).shape
    places = {axis: axis for axis in range(len(after))}
    return places, {axis for axis in places if before[axis] != after[axis]}


def _reshaped(eqn: Any) -> tuple[dict[int, int], set[int]]:
    """Axes that stand for themselves after a reshape, and those that are split or merged."""
    before, after = eqn.invars[0].aval.shape, like(eqn).shape
    ends = {math.prod(after[: place + 1]): place for place in _long(after)}
    places: dict[int, int] = {}
    for axis in _long(before):
        end = math.prod(before[: axis + 1])
        place = ends.get(end)
        if place is not None and after[place] == before[axis]:
            places[axis] = place
    return places, {*_long(before)} - {*places}


# Of a linear primitive: to which axis each of its input's becomes, and which ones it acts on.
_LINEAR: dict[str, Callable[[Any], tuple[dict[int, int], set[int]]]] = {
    "neg": _negated,
    "reduce_sum": _reduced,
    "broadcast_in_dim": _broadcast,
    "transpose": _transposed,
    "slice": _sliced,
    **dict.fromkeys(("reshape", "squeeze"), _reshaped),
}


def _made_of(key: Any) -> list[int]:
    """The atoms that make the atom of this key; none where it is just an array."""
    return atoms_within(key) if isinstance(key, tuple) else []


def _is_number(value: Value) -> bool:
    """Whether a value is a finite number that is known."""
    if not isinstance(value, Constant) or isinstance(value.array, jax.core.Tracer):
        return False
    return value.array.size == 1 and bool(np.isfinite(np.asarray(value.array)).all())


def _holds(dtype: Any, other: Any) -> bool:
    """Whether every number of another dtype is one of this dtype."""
    if not jnp.issubdtype(other, jnp.floating):
        return True
    here, there = jnp.finfo(dtype), jnp.finfo(other)
    return here.nmant >= there.nmant and here.maxexp >= there.maxexp


def _long(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which an array of this shape can vary."""
    return tuple(axis for axis, size in enumerate(shape) if size != 1)


def _arrays(value: Value) -> list[tuple[int, jax.Array]]:
    if isinstance(value, Constant):
        return [(0, value.array)]
    pairs = enumerate(value.coefficients)
    return [(value.degree - k, array) for k, array in pairs if array is not None]


def _axes_of(forms: Iterable[Form]) -> tuple[int, ...]:
    return tuple(sorted({a for form in forms for m in form for _, axes in m for a in axes}))


def _number(value: Any) -> Form:
    """A number as it is; but 1/n, which is rounded, is meant."""
    number = float(value)
    whole = round(1 / number) if 0 < abs(number) < 1 else 0
    if whole and np.asarray(1 / whole).astype(value.dtype) == value:
        return {(): Fraction(1, whole)}
    return {(): Fraction(number)} if number else {}


def _add_to(form: Form, monomial: tuple[Factor, ...], number: Fraction) -> None:
    total = form.get(monomial, Fraction(0)) + number
    form[monomial] = total
    if not total:
        del form[monomial]


def _added(x: Powers, y: Powers, sign: int) -> Powers:
    result = {power: dict(x.get(power, {})) for power in (*x, *y)}
    for power, form in y.items():
        for monomial, number in form.items():
            _add_to(result[power], monomial, sign * number)
    return result


def _multiplied(x: Powers, y: Powers) -> Powers:
    result: Powers = {}
    for p, first in x.items():
        for q, second in y.items():
            total = result.setdefault(p + q, {})
            for a, number in first.items():
                for b, other in second.items():
                    _add_to(total, tuple(sorted(a + b)), number * other)
    return result
