"""Rules of single primitives: those that move values, loops, products along an axis, ties."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from saturation.errors import LimitError
from saturation.limit import Limit, count_ties, saturate

W = jnp.array([1.0, 2.0, 3.0], jnp.float32)

MOVES = {
    "tile": (lambda w: jnp.tile(w, 2), 1, [1, 2, 3, 1, 2, 3]),
    "repeat": (lambda w: jnp.repeat(w, 2), 1, [1, 1, 2, 2, 3, 3]),
    "roll": (lambda w: jnp.roll(w, 1), 1, [3, 1, 2]),
    "unstack": (lambda w: jnp.unstack(w)[1] * w, 2, [2, 4, 6]),
    "filled where there is nothing": (
        lambda w: w.at[jnp.array([1, 7])].get(mode="fill", fill_value=5) ** 2 + w[0],
        2,
        [4, 0],
    ),
    "filled below everything": (
        lambda w: jnp.max(w.at[jnp.array([[1], [7]])].get(mode="fill", fill_value=-jnp.inf), 0),
        1,
        [2],
    ),
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


# --- of θ = (1, 2, −3): maxima and minima that bound, and those that no longer do ---------------

T = jnp.array([1.0, 2.0, -3.0], jnp.float32)
BOUNDS: dict[str, tuple[Callable, int, list[float]]] = {
    "a quotient turns the side": (lambda t: jnp.maximum(jnp.minimum(t, 1) / -2, 3), 1, [0, 0, 1.5]),
    "an absolute value, too": (lambda t: jnp.maximum(jnp.abs(jnp.minimum(t, 1)), 2), 1, [0, 0, 3]),
    "degree 4 clipped": (lambda t: jnp.clip(t**3 * t[0], -1, 2), 0, [2, 2, -1]),
    "degree 5 under relu6": (lambda t: jax.nn.relu6(t**5 + t), 0, [6, 6, 0]),
    "degree 6 between 1 and −t²": (
        lambda t: jnp.maximum(jnp.minimum(t**5 * t[0], 1), -(t**2)),
        2,
        [0, 0, -9],
    ),
    "nothing of degree 4": (lambda t: jnp.clip(0 * t * t**3, 1, 2), 0, [1, 1, 1]),
    "scores of degree 4": (
        lambda t: jax.nn.softmax(jnp.clip(t**4, -1, 1) + jnp.log(jnp.array([1.0, 2.0, 5.0]))),
        0,
        [0.125, 0.25, 0.625],
    ),
    "a clipped norm": (lambda t: t * jnp.minimum(1, 14**0.5 / jnp.linalg.norm(t)), 0, [1, 2, -3]),
    "above what vanishes": (lambda t: jnp.maximum(1 / t, 5) + jnp.maximum(1 / t, -1), 0, [5] * 3),
    "beside what vanishes": (lambda t: jnp.clip(1 / t, -1, 1), -1, [1, 1 / 2, -1 / 3]),
    "of two parameters": (lambda t: jnp.clip(t * t[0], -1, 6), 0, [6, 6, -1]),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_maxima_and_minima_of_unlike_degrees(name: str) -> None:
    function, degree, value = BOUNDS[name]
    found = jax.jit(saturate(function))(T)
    assert found.degree == degree
    np.testing.assert_allclose(found.value, value, rtol=1e-6)
    far = np.float32(1024)  # c: no power of it here is beyond float32
    np.testing.assert_allclose(function(far * T) / far**degree, value, rtol=1e-2, atol=5e-3)


# --- a mask of −∞ is one however it came about --------------------------------------------------

ALLOWED = np.tril(np.ones((3, 3), np.float32))
LEFT_OUT = jnp.where(ALLOWED > 0, 0.0, -jnp.inf).astype(jnp.float32)
MASKS: dict[str, Callable[[], jax.Array]] = {
    "log": lambda: jnp.log(jnp.asarray(ALLOWED)),
    "scatter": lambda: jnp.zeros((3, 3)).at[np.triu_indices(3, 1)].set(-jnp.inf),
    "gather": lambda: LEFT_OUT[jnp.arange(3)],
    "slice": lambda: jax.lax.dynamic_slice(LEFT_OUT, (0, 0), (3, 3)),
    "running sum": lambda: jnp.cumsum(jnp.where(np.eye(3, k=1) > 0, -jnp.inf, 0.0), axis=1),
    "loop": lambda: jax.lax.map(lambda row: jnp.where(row > 0, 0.0, -jnp.inf), ALLOWED),
    "number": lambda: jnp.where(ALLOWED > 0, 0.0, jnp.log(jnp.float32(0))),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_outranks_scores_however_it_is_made(name: str) -> None:
    """The last key has the largest score, 9c², of every query."""

    def function(t):
        return jax.nn.softmax(jnp.broadcast_to(t * t, (3, 3)) + MASKS[name]())

    for limit in (saturate(function), jax.jit(saturate(function))):
        found = limit(T)
        assert found.degree == 0
        assert bool(found.valid.all())
        np.testing.assert_array_equal(found.value, np.eye(3))


# --- what is known turn by turn, or of a branch -------------------------------------------------


def test_a_loop_whose_counter_chooses_a_branch() -> None:
    """Unrolled, since as one loop both branches count and degrees never settle."""

    def function(t):
        return jax.lax.fori_loop(
            0, 6, lambda i, h: jax.lax.cond(i < 2, lambda: h * t, lambda: h), t
        )

    found = jax.jit(saturate(function))(T)
    assert found.degree == 3
    np.testing.assert_array_equal(found.value, T**3)


def test_integers_that_a_branch_returns_stay_integers() -> None:
    def function(t, x):
        h, n = jax.lax.cond(x > 0, lambda: (t, 2), lambda: (t * t, 0))
        return h * (n + 1).astype(h.dtype), n, t[n]

    for x, degree, n in ((1.0, 2, 2), (-1.0, 2, 0)):
        h, number, chosen = jax.jit(saturate(function))(T, x)
        assert (h.degree, int(number.value), number.degree) == (degree, n, 0)
        assert (chosen.degree, float(chosen.value)) == (1, float(T[n]))
        np.testing.assert_array_equal(h.value, np.zeros(3) if x > 0 else T**2)


def test_what_is_called_on_parts_is_not_entered() -> None:
    """A reduction by a function of one's own takes elements, not arrays."""
    with pytest.raises(LimitError, match="no rule for the primitive `reduce`"):
        saturate(lambda t: jax.lax.reduce(t, jnp.float32(1), lambda a, b: a * b + a + b, (0,)))(T)


def test_names_of_checkpointing_are_passed_through() -> None:
    found = saturate(lambda t: checkpoint_name(t, "here") * t)(T)
    assert found.degree == 2
    np.testing.assert_array_equal(found.value, T**2)


def test_no_constant_as_large_as_the_scores_is_compiled_in() -> None:
    def function(t):
        return jax.nn.softmax(jnp.where(jnp.ones((64, 64), bool), jnp.outer(t, t), -jnp.inf))

    traced = jax.make_jaxpr(saturate(function))(jnp.ones(64, jnp.float32))
    assert sum(np.asarray(value).size for value in traced.consts) < 64


def test_a_third_power_and_its_root_in_float32() -> None:
    """1/3 is rounded, and three times it is not quite 1."""
    for function in (lambda t: jnp.cbrt(t**3), lambda t: (t**2 * jnp.abs(t)) ** (1 / 3)):
        found = jax.jit(saturate(function))(jnp.array([1.0, 2.0, 3.0], jnp.float32))
        assert found.degree == 1
        np.testing.assert_allclose(found.value, [1, 2, 3], rtol=1e-6)
    with pytest.raises(
        LimitError, match=r"The power 0\.3 of a quantity of degree 3 has degree 0\.9"
    ):
        saturate(lambda t: (t**3) ** 0.3)(T)


def test_complex_numbers_and_integers_are_refused() -> None:
    for function, dtype in ((jnp.fft.fft, "complex64"), (lambda t: t.astype(jnp.int32), "int32")):
        with pytest.raises(
            LimitError, match=f"of degree 1 is converted to {dtype}, but `saturate`"
        ):
            saturate(function)(T)
