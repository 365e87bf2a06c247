"""Rules of single primitives: those that move values, loops, products along an axis, ties."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.errors import LimitError
from saturation.limit import Limit, count_ties, saturate

W = jnp.array([1.0, 2.0, 3.0], jnp.float32)

MOVES = {
    "tile": (lambda w: jnp.tile(w, 2), 1, [1, 2, 3, 1, 2, 3]),
    "repeat": (lambda w: jnp.repeat(w, 2), 1, [1, 1, 2, 2, 3, 3]),
    "roll": (lambda w: jnp.roll(w, 1), 1, [3, 1, 2]),
    "unstack": (lambda w: jnp.unstack(w)[1] * w, 2, [2, 4, 6]),
    "split": (lambda w: jnp.split(w, [1])[1], 1, [2, 3]),
    "stack of unlike degrees": (lambda w: jnp.stack([w, w * w]), 2, [[0, 0, 0], [1, 4, 9]]),
}


@pytest.mark.parametrize("name", MOVES)
def test_moving_values_moves_their_terms(name: str) -> None:
    function, degree, value = MOVES[name]
    found = saturate(function)(W)
    assert found.degree == degree
    np.testing.assert_array_equal(np.asarray(found.value), value)


def grown(p, x):
    """A carry whose degree rises at each turn: no loop has it, only turns one by one."""
    return jax.lax.scan(lambda h, row: (jnp.tanh(row) * (h @ p), h), x[0], x)


def settled(p, x):
    """A carry that keeps its degree from the second turn on: the rest is one loop."""
    return jax.lax.scan(lambda h, row: (jnp.tanh(h @ p) + row @ p, (h, row)), x[0], x)


def backwards(p, x):
    return jax.lax.scan(lambda h, row: (h + row @ p, h), x[0], x, reverse=True)


def by_hand(step, x, reverse=False):
    """A scan as a Python loop."""
    carry, collected = x[0], []
    for row in x[::-1] if reverse else x:
        carry, out = step(carry, row)
        collected.append(out)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *collected[:: -1 if reverse else 1])


LOOPS = {
    "rising degree": (grown, False, lambda p: lambda h, row: (jnp.tanh(row) * (h @ p), h)),
    "steady degree": (
        settled,
        False,
        lambda p: lambda h, row: (jnp.tanh(h @ p) + row @ p, (h, row)),
    ),
    "backwards": (backwards, True, lambda p: lambda h, row: (h + row @ p, h)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_a_scan_is_its_turns_one_by_one(name):
    function, reverse, step = LOOPS[name]
    rng = np.random.default_rng(0)
    p, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((4, 4), (7, 4)))
    found = jax.jit(saturate(function))(p, x)
    expected = jax.jit(saturate(lambda p, x: by_hand(step(p), x, reverse)))(p, x)
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        assert one.degree == other.degree
        np.testing.assert_allclose(one.value, other.value, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one.valid, other.valid)


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Limit))


def test_a_long_scan_stays_one_loop():
    x = jnp.ones((500, 4), jnp.float32)
    traced = jax.make_jaxpr(saturate(settled))(jnp.eye(4, dtype=jnp.float32), x)
    assert len(traced.jaxpr.eqns) < 500
    assert [e.params["length"] for e in traced.jaxpr.eqns if e.primitive.name == "scan"] == [498]


def test_a_scan_of_no_turns():
    def function(w):
        return jax.lax.scan(lambda h, row: (h * row, h), w, jnp.ones((0, 3), jnp.float32))

    carry, collected = jax.jit(saturate(function))(W)
    assert (carry.degree, collected.degree, collected.value.shape) == (1, 0, (0, 3))


def test_a_while_loop_must_know_its_turns():
    def function(w, turns):
        return jax.lax.while_loop(lambda s: s[0] < turns, lambda s: (s[0] + 1, s[1] * w), (0, w))[1]

    assert saturate(function)(W, 2).degree == 3
    with pytest.raises(LimitError, match="number of turns that is known while tracing"):
        jax.jit(saturate(function))(W, 2)
    with pytest.raises(LimitError, match="number of turns that is known while tracing"):
        jax.jit(saturate(lambda w: jax.lax.while_loop(lambda h: h[0] < 9, jnp.negative, w)))(W)


def test_only_the_branch_that_is_taken_needs_a_limit():
    branches = [jnp.sin, lambda w: w * w]
    found = jax.jit(saturate(lambda w: jax.lax.switch(1, branches, w)))(W)
    assert found.degree == 2
    with pytest.raises(LimitError, match="`sin` of a quantity of degree 1"):
        jax.jit(saturate(lambda w, i: jax.lax.switch(i, branches, w)))(W, 1)


def test_ties_are_counted_where_one_must_be_chosen():
    """θ = (1, 2, 2): its maximum has one tie, which a lower term decides; masks have none."""
    w = jnp.array([1.0, 2.0, 2.0], jnp.float32)
    bias = jnp.array([0.0, 0.0, 1.0], jnp.float32)
    for function, ties in (
        (lambda w: jnp.max(w), 1),
        (lambda w: jnp.argmax(w), 1),
        (lambda w: jnp.max(w + bias), 0),
        (lambda w: jax.nn.softmax(w * w + w), 1),
        (lambda w: jax.nn.softmax(w * w + bias), 0),
        (lambda w: jnp.max(jnp.where(w < 0, w, -jnp.inf)), 0),
    ):
        assert int(jax.jit(count_ties(function))(w)) == ties


QUOTIENTS: dict[str, Callable] = {
    "zero": lambda w: jnp.zeros(3, jnp.float32) / (w - w[1]),
    "direction": lambda w: (w - w[1]) / (w - w[1]),
}


@pytest.mark.parametrize("name", QUOTIENTS)
def test_zero_over_zero_has_no_limit(name: str) -> None:
    function = QUOTIENTS[name]
    np.testing.assert_array_equal(np.asarray(jax.jit(saturate(function))(W).valid), [1, 0, 1])
    with pytest.raises(LimitError, match="1 of 3 elements of the output have no limit"):
        saturate(function)(W)
