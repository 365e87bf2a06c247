"""Where a limit does not exist: it is marked, wherever it spreads, and never taken for a number."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.attention import tempered_softmax
from saturation.errors import LimitError
from saturation.limit import saturate

X = np.random.default_rng(0).standard_normal((5, 6))
W = np.random.default_rng(1).standard_normal((6, 6))
ROWS = X.copy()
ROWS[2] = 0.0  # a constant row under layer norm


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def layer_norm(h):
    mean = jnp.mean(h, -1, keepdims=True)
    return (h - mean) / jnp.sqrt(jnp.var(h, -1, keepdims=True) + 1e-6)


def valid(function: Callable, *args) -> np.ndarray:
    found = jax.jit(saturate(function))(*args)
    assert np.isfinite(np.asarray(found.value)).all()
    return np.asarray(found.valid)


def test_a_vanishing_denominator_is_marked_and_raises_in_eager_mode() -> None:
    def function(p, x):
        return layer_norm(x @ p)

    with pytest.raises(LimitError, match=r"6 of 30 elements of the output have no limit"):
        saturate(function)(W, ROWS)
    expected = np.repeat(ROWS.any(1, keepdims=True), 6, axis=1)
    np.testing.assert_array_equal(valid(function, W, ROWS), expected)


# --- rounding is not taken for a number -------------------------------------------------------

NORMS = {
    "two passes": layer_norm,
    "flax, fast variance": lambda h: nn.LayerNorm().apply(
        {"params": {"scale": jnp.ones(h.shape[-1]), "bias": jnp.zeros(h.shape[-1])}}, h
    ),
    "standardize": lambda h: jax.nn.standardize(h, epsilon=1e-6),
    "over its deviation": lambda h: (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", [3, 8, 10, 768])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_row_whose_mean_rounds_has_no_limit(norm: str, width: int, dtype) -> None:
    """0.51 eight times has the mean 0.51 + 1e-16, and noise over noise is a number like any."""
    constants = np.random.default_rng(2).uniform(0.1, 9, 40).astype(dtype)
    theta = np.repeat(constants[:, None], width, axis=1)
    varied = theta + np.random.default_rng(3).standard_normal(theta.shape).astype(dtype)
    both = np.concatenate([theta, varied])
    found = valid(lambda p: NORMS[norm](p), both)
    expected = np.repeat([False, True], 40)[:, None]
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


ROUNDED: dict[
    str, Callable
] = {  # of the noise that a constant row leaves when its mean is taken off
    "over its largest": lambda h: h / jnp.abs(h).max(-1, keepdims=True),
    "over its range": lambda h: h / (h.max(-1, keepdims=True) - h.min(-1, keepdims=True)),
    "over its median": lambda h: h / jnp.sort(jnp.abs(h), -1)[:, 4:5],
    "over its product with itself": lambda h: h / jnp.sqrt(jnp.einsum("ij,ij->i", h, h))[:, None],
    "behind a projection": lambda h: (
        (h @ PROJECTION) / jnp.linalg.norm(h @ PROJECTION, axis=-1, keepdims=True)
    ),
    "behind a loop": lambda h: jax.lax.map(lambda row: row / jnp.linalg.norm(row), h),
    "in parts": lambda h: jnp.split(h, 2)[0] / jnp.split(h, 2)[0].max(-1, keepdims=True),
}
PROJECTION = np.random.default_rng(4).standard_normal((8, 3))


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_stays_rounding_behind_other_operations(name: str) -> None:
    constants = np.random.default_rng(2).uniform(0.1, 9, 20)
    rows = np.repeat(constants[:, None], 8, axis=1)
    varied = rows + np.random.default_rng(3).standard_normal(rows.shape)
    function = ROUNDED[name]
    for theta, expected in ((rows, False), (varied, True)):
        found = valid(lambda p: function(p - p.mean(-1, keepdims=True)), theta)
        assert (found == expected).all()


def test_a_small_difference_is_no_rounding() -> None:
    """A million roundings apart: the limit is that of layer norm, to what float64 can say."""
    steps = np.array([[0.0, 1.0, 2.0, 5.0]])
    theta = 1 + 1e-9 * steps
    found = jax.jit(saturate(layer_norm))(theta)
    assert bool(found.valid.all())
    centred = (theta - 1) - (theta - 1).mean()
    expected = centred / np.sqrt((centred**2).mean())
    np.testing.assert_allclose(found.value, expected, rtol=1e-5, atol=1e-6)
    undecided = jax.jit(saturate(layer_norm))(1 + 1e-13 * steps)
    assert not undecided.valid.any(), "neither equal nor different, by the rule of ties"


def test_a_root_of_nothing_is_nothing() -> None:
    found = jax.jit(saturate(lambda p: jnp.linalg.norm(p, axis=-1)))(np.zeros((2, 3)))
    np.testing.assert_array_equal(found.value, [0, 0])
    assert bool(found.valid.all())
    shifted = valid(lambda p: jnp.sqrt((p**2).sum(-1) + 1), np.zeros((2, 3)))
    assert not shifted.any(), "√(0·c² + 1) is 1, of degree 0 and not 1"


# --- it spreads to all that depends on it, and no further -------------------------------------

ALL = np.ones(5, bool)
SPREADS: dict[str, Callable] = {
    "relu": lambda h: jax.nn.relu(h + 1),
    "relu of a negative": lambda h: jax.nn.relu(h - 1e3),
    "where": lambda h: jnp.where(h > 0, 1.0, 2.0),
    "maximum of a constant": lambda h: jnp.maximum(h, 0.5),
    "sum": lambda h: h.sum(-1, keepdims=True),
    "max": lambda h: h.max(-1, keepdims=True),
    "argmax": lambda h: jnp.argmax(h, -1, keepdims=True),
    "sort": lambda h: jnp.sort(h, -1),
    "order": lambda h: jnp.argsort(h, -1),
    "top_k": lambda h: jax.lax.top_k(h, 2)[1],
    "sign": lambda h: jnp.sign(h),
    "truth": lambda h: (h > 0).astype(h.dtype) * 2,
    "both truths": lambda h: ((h > 0) & (h < 1)).any(-1, keepdims=True),
    "finite": lambda h: jnp.where(jnp.isfinite(h), h, 0.0),
    "product of matrices": lambda h: h @ W,
    "softmax": lambda h: jax.nn.softmax(h, -1),
    "tanh": lambda h: jnp.tanh(h),
    "transposed": lambda h: h.T.reshape(6, 5).T[:, ::-1],
    "scan over the rest": lambda h: jax.lax.scan(lambda c, x: (c, jnp.tanh(x)), 0.0, h)[1],
    "convolution": lambda h: jax.vmap(lambda row: jnp.convolve(row, W[0]))(h),
}


@pytest.mark.parametrize("name", SPREADS)
def test_what_depends_on_it_is_marked(name: str) -> None:
    found = valid(lambda p, x: SPREADS[name](layer_norm(x @ p)), W, ROWS)
    assert found.shape[0] == 5
    expected = np.array([True, True, False, True, True]).reshape(5, *[1] * (found.ndim - 1))
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_a_choice_among_parameters_is_marked() -> None:
    def function(p, x):
        return jax.nn.one_hot(jnp.argmax(layer_norm(x @ p), -1), 6, dtype=x.dtype) @ p

    np.testing.assert_array_equal(valid(function, W, ROWS)[:, 0], [1, 1, 0, 1, 1])


def test_an_index_without_a_limit_may_point_anywhere() -> None:
    def looked_up(p, x):
        return p[jnp.argmax(layer_norm(x @ p), -1)]

    def written(p, x):
        return (x @ p).at[jnp.argmax(layer_norm(x @ p), -1)].set(p[:5])

    np.testing.assert_array_equal(valid(looked_up, W, ROWS)[:, 0], [1, 1, 0, 1, 1])
    assert not valid(written, W, ROWS).any()
    assert valid(written, W, X).all()


def test_running_sums_carry_it_on() -> None:
    def function(p, x):
        h = layer_norm(x @ p)
        return jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c), jnp.zeros(6), h)[0]

    assert not valid(function, W, ROWS).any()
    assert valid(function, W, X).all()


def test_what_a_mask_leaves_out_does_not_spoil_the_rest() -> None:
    rows = X.copy()
    rows[4] = 0.0

    def function(p, x):
        h = layer_norm(x @ p)
        weights = tempered_softmax(x @ p @ x.T, 1.0, where=np.arange(5) < 4)
        return weights @ h

    found = jax.jit(saturate(function))(W, rows)
    assert bool(found.valid.all())
    np.testing.assert_allclose(found.value, function(W * 1e6, rows), rtol=1e-9, atol=1e-9)


# --- what has no limit of its own -------------------------------------------------------------

UNDEFINED: dict[str, tuple[Callable, list]] = {  # of θ = (1, 2, 3)
    "0/0": (lambda t: jnp.zeros(3) / (t - t[1]), [1, 0, 1]),
    "equal over equal": (lambda t: (t - t[1]) / (t - t[1]), [1, 0, 1]),
    "log of 0": (lambda t: jnp.log(jnp.maximum(t - t[1], 0) / t[0]), [0, 0, 1]),
    "root of a negative": (lambda t: jnp.sqrt((t - t[1] / 2) * (t - t[2])), [1, 0, 1]),
    "∞ − ∞": (lambda t: jnp.exp(t) - jnp.exp(2 * t), [0, 0, 0]),
    "∞ over ∞": (lambda t: jnp.exp(t) / jnp.exp(t).sum(), [0, 0, 0]),
    "0·∞": (lambda t: (t - t[1]) * jnp.exp(t), [1, 0, 1]),
    "out of range": (lambda t: jnp.exp(1000 * t / t[0]), [0, 0, 0]),
    "log of ∞": (lambda t: jnp.log(1 + jnp.exp(t - t[1])), [1, 1, 0]),
    "beyond float64": (lambda t: (1e100 * t * (t - t[1])) ** 4, [0, 1, 0]),
    "nothing at an index": (lambda t: jnp.take(t, jnp.array([0, 9, 2])), [1, 0, 1]),
    "not a number": (lambda t: t * jnp.array([1, 1, jnp.nan]), [1, 1, 0]),
    "over a constant 0": (lambda t: t / jnp.array([1.0, 0.0, 2.0]), [1, 0, 1]),
    "pole": (lambda t: jnp.arctanh(t / t[1]), [1, 0, 0]),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_elements_without_a_limit(name: str) -> None:
    function, expected = UNDEFINED[name]
    found = jax.jit(saturate(function))(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(np.asarray(found.valid), np.array(expected, bool))
    with pytest.raises(LimitError, match=f"{3 - sum(expected)} of 3 elements of the output"):
        saturate(function)(jnp.array([1.0, 2.0, 3.0]))


def test_a_mask_that_is_handed_in_outranks_scores() -> None:
    """Under jit nothing is seen of its −∞, and degree 0 would lose it under scores of degree 2."""
    bias = np.where(np.tril(np.ones((5, 5), bool)), 0.0, -np.inf)

    def function(p, x, bias):
        return jax.nn.softmax(x @ p @ (x @ p).T + bias, -1) @ x

    expected = function(1e6 * W, X, bias)
    for limit in (saturate(function), jax.jit(saturate(function))):
        found = limit(W, X, bias)
        assert bool(found.valid.all())
        np.testing.assert_allclose(found.value, expected, rtol=1e-9, atol=1e-9)


def test_lower_terms_of_what_is_unbounded_are_nothing() -> None:
    """exp(θ + 1 + 1/θ) is ∞; its root is, and one over 1 plus it is 0, whatever follows."""

    def function(t):
        return 1 / (1 + jnp.sqrt(jnp.exp(t + 1 + 1 / t)) * (1 + 1 / t))

    found = jax.jit(saturate(function))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(found.value, [0, 0])
    assert bool(found.valid.all())


def test_a_row_of_masks_alone_is_left_to_the_caller() -> None:
    mask = np.array([[True, True], [False, False]])

    def function(t):
        scores = jnp.where(mask, t[:, None] * t, -jnp.inf)
        return jnp.where(mask, jax.nn.softmax(scores, -1), 0.0)

    found = jax.jit(saturate(function))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(found.value, [[0, 1], [0, 0]])
    assert bool(found.valid.all())
