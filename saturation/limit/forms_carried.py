"""Forms of arrays that are handed on: with atoms of their own numbers, and hashable.

A form is a polynomial in atoms (`uniform.py`). An atom is known by what makes it: nothing, where it
is just an array, or an operation on other forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Factor = tuple[int, tuple[int, ...]]  # an atom, and the axes of the array that its own lie along
Monomial = tuple[Factor, ...]
Form = dict[Monomial, Fraction]  # a polynomial: factors of each monomial, in order


@dataclass(frozen=True)
class FormsOfOutputs:
    """What is known of several outputs of one call.

    Attributes:
      forms: (place of the output, power of c, its form's items, whether it was made of others).
      atoms: of each atom that the forms are made of, from 0 on: what makes it, None for an array of
        which nothing is known, and the dtype that it came in, if that matters.
    """

    forms: tuple[tuple[int, int, tuple[tuple[Monomial, Fraction], ...], bool], ...]
    atoms: tuple[tuple[Any, Any], ...]


def renumbered(form: Form, number: Callable[[int], int]) -> Form:
    """Return a form with other numbers for its atoms."""
    return {_monomial(factors, number): count for factors, count in form.items()}


def rekeyed(key: Any, number: Callable[[int], int]) -> Any:
    """Return what makes an atom with other numbers for the atoms that it is made of.

    A key is (what is done, the items of a form), or (primitive, its parameters, shape, factors).
    """
    if len(key) == 2:
        done, items = key
        return done, frozenset(renumbered(dict(items), number).items())
    *done, factors = key
    return (*done, _monomial(factors, number))


def atoms_of(form: Form) -> list[int]:
    """Return the atoms of a form, in their order."""
    return [atom for factors in form for atom, _ in factors]


def atoms_within(key: Any) -> list[int]:
    """Return the atoms that make another one."""
    return atoms_of(dict(key[1])) if len(key) == 2 else [atom for atom, _ in key[-1]]


def _monomial(factors: Monomial, number: Callable[[int], int]) -> Monomial:
    return tuple(sorted((number(atom), axes) for atom, axes in factors))
