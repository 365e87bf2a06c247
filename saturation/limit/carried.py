"""Expansions that go from one call of `saturate` to the next: all that is known of its outputs.

A `Limit` is a leading term. A function of an output also meets its lower terms, where it has no
limit, what of it was rounding, and how long the sums were. Carried, the limit of g(f(x; cθ); cθ) is
found from the expansion of f: computed in several pieces it is what it is in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from saturation.limit.forms_carried import FormsOfOutputs
from saturation.limit.result import limit_of
from saturation.limit.series import Coefficient, Constant, PowerSeries, Value
from saturation.limit.sizes import Size


@dataclass(frozen=True)
class Leaf:
    """One array of an expansion.

    Attributes:
      value: its series, or constant.
      forms: what is known of all outputs that were made with it; None: nothing.
      place: which of these it is.
      group: leaves of one group came from one call, so that their forms tell of each other; 0
        where nothing is known.
    """

    value: Value
    forms: FormsOfOutputs | None = None
    place: int = 0
    group: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """The array's dtype."""
        value = self.value
        return value.array.dtype if isinstance(value, Constant) else value.example.dtype


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Expansion:
    """What a function's outputs are as c → ∞: a pytree, and an argument that `saturate` takes.

    Attributes:
      tree: the function's output tree, with a `Leaf` at each leaf.
      longest: the longest contraction that made any of them; ties are judged by it.
      ties_reliable: whether all was computed in float64.
      sharp: whether the sharp sizes go along; else the cheap ones take their place (`sizes.py`).
    """

    tree: Any
    longest: int = 1
    ties_reliable: bool = True
    sharp: bool = True

    def limits(self) -> Any:
        """Return the tree with a `Limit` at each leaf: what `saturate` returns of itself."""
        return self.map(lambda leaf: limit_of(self.longest, leaf.value, self.ties_reliable))

    def map(self, function: Any) -> Any:
        """Return the tree with `function` of each `Leaf`."""
        return jax.tree.map(function, self.tree, is_leaf=_is_leaf)

    def leaves(self) -> list[Leaf]:
        """Return the leaves, in the tree's order."""
        return jax.tree.leaves(self.tree, is_leaf=_is_leaf)

    def __getitem__(self, key: Any) -> Expansion:
        """Return the expansion of the part `tree[key]`."""
        return replace(self, tree=self.tree[key])

    def only(self, keys: Sequence[str]) -> Expansion:
        """Return the expansion of these entries of a mapping, with all that bears on them."""
        return replace(self, tree={key: self.tree[key] for key in keys})._regrouped()

    def without(self, keys: Sequence[str]) -> Expansion:
        """Return the expansion of the other entries of a mapping."""
        return self.only([key for key in self.tree if key not in keys])

    def updated(self, others: Expansion) -> Expansion:
        """Return the expansion of two mappings' entries, the other one's where both have one."""
        first = 1 + max((leaf.group for leaf in self.leaves()), default=-1)
        theirs = others.map(lambda leaf: replace(leaf, group=leaf.group + first))
        both = Expansion(
            {**self.tree, **theirs},
            max(self.longest, others.longest),
            self.ties_reliable and others.ties_reliable,
            self.sharp and others.sharp,
        )
        return both._regrouped()

    def _regrouped(self) -> Expansion:
        """The same with groups numbered from 0 on, so that what is alike is of one structure."""
        groups: dict[int, int] = {}

        def regrouped(leaf: Leaf) -> Leaf:
            if leaf.forms is None:
                return Leaf(leaf.value)
            return replace(leaf, group=groups.setdefault(leaf.group, len(groups)))

        return replace(self, tree=self.map(regrouped))

    def with_cheap_sizes(self) -> Expansion:
        """Return the same without the sharp sizes, each of which takes a product of matrices.

        Enough where whatever is compared was made by a later product: that has sizes of its own.
        """
        return replace(self, sharp=False)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the arrays, sizes made, and what is static."""
        leaves, structure = jax.tree.flatten(self.tree, is_leaf=_is_leaf)
        arrays = tuple(_flat(leaf.value, self.sharp) for leaf in leaves)
        static = tuple((_static(leaf.value), leaf.forms, leaf.place, leaf.group) for leaf in leaves)
        return arrays, (structure, static, self.longest, self.ties_reliable, self.sharp)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], arrays: tuple[Any, ...]) -> Expansion:
        """Return the expansion of these arrays."""
        structure, of_leaves, longest, reliable, sharp = static
        leaves = [
            Leaf(_value(kind, flat), forms, place, group)
            for (kind, forms, place, group), flat in zip(of_leaves, arrays, strict=True)
        ]
        return cls(jax.tree.unflatten(structure, leaves), longest, reliable, sharp)


class _Flat(NamedTuple):
    """The arrays of a value; of a constant, `coefficients` is the array alone."""

    coefficients: tuple[Coefficient, ...]
    invalid: Coefficient
    noise: Coefficient = None
    bound: Any = None
    cheap: tuple[Coefficient, ...] | None = None
    sharp: tuple[Coefficient, ...] | None = None


def _flat(value: Value, sharp: bool) -> _Flat:
    if isinstance(value, Constant):
        return _Flat((value.array,), value.invalid)

    def made(kind: bool) -> tuple[Coefficient, ...] | None:
        if value.sizes is None:
            return None
        return tuple(None if size is None else size(kind) for size in value.sizes)

    cheap, other = made(False), made(True) if sharp else None
    return _Flat(value.coefficients, value.invalid, value.noise, value.bound, cheap, other)


def _static(value: Value) -> tuple[Any, ...]:
    if isinstance(value, Constant):
        return value.infinite, value.large, value.seen, value.truth
    return value.degree, value.infinite


def _value(static: Any, flat: _Flat) -> Value:
    if len(static) > 2:
        [array] = flat.coefficients
        assert array is not None
        return Constant(array, flat.invalid, *static)
    degree, infinite = static
    sizes = None
    if flat.cheap is not None:
        sharp = flat.cheap if flat.sharp is None else flat.sharp
        sizes = tuple(_size(*pair) for pair in zip(flat.cheap, sharp, strict=True))
    return PowerSeries(
        degree, flat.coefficients, flat.invalid, infinite, flat.noise, flat.bound, sizes
    )


def _size(cheap: Any, sharp: Any) -> Size | None:
    return None if cheap is None else Size(lambda asked: sharp if asked else cheap)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Leaf)


def is_expansion(value: Any) -> bool:
    """Return whether an argument is an `Expansion`."""
    return isinstance(value, Expansion)
