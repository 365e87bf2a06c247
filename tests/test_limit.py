"""The parameter limit: against closed forms, sympy-like small limits, and f(cθ)/c^k in float64."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.attention import tempered_softmax
from saturation.errors import LimitError
from saturation.limit import Limit, saturate, scale_parameters

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 6))
W = RNG.standard_normal((6, 6))
B = RNG.standard_normal((5, 5))
MASK = np.tril(np.ones((5, 5), bool))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gap(found: Limit, value: np.ndarray) -> float:
    """max over rows of 1 − cos, from the difference of unit vectors: exact near 0."""
    a, b = (np.asarray(v, np.float64).reshape(-1, np.shape(v)[-1]) for v in (found.value, value))
    a, b = (v / np.abs(v).max(-1, keepdims=True) for v in (a, b))
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    return float(0.5 * ((a - b) ** 2).sum(-1).max())


def norm(h, p):
    return h * jax.lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-6) * p[0]


def layer_norm(h):
    mean = jnp.mean(h, -1, keepdims=True)
    return (h - mean) / jnp.sqrt(jnp.var(h, -1, keepdims=True) + 1e-6)


def transformer(p, x):
    h = x @ p
    for _ in range(2):
        n = norm(h, p)
        h = h + tempered_softmax((n @ p) @ (n @ p).T, 1.0, where=MASK) @ (n @ p) @ p
        n = norm(h, p)
        h = h + jax.nn.relu(n @ p) @ p
    return h


def scanned(p, x):
    def step(h, matrix):
        h = jax.nn.relu(h @ matrix)
        return h, h.sum()

    return jax.lax.scan(step, x, jnp.stack([p, p.T]))[0]


SMALL: dict[str, tuple[Callable, int]] = {
    "linear": (lambda p, x: x @ p, 1),
    "rms norm": (lambda p, x: norm(x @ p, p), 1),
    "layer norm": (lambda p, x: layer_norm(x @ p), 0),
    "softmax": (lambda p, x: jax.nn.softmax((x @ p) @ (x @ p).T, -1) @ x, 0),
    "masked softmax": (lambda p, x: tempered_softmax(x @ p @ x.T, 1.0, where=MASK) @ x, 0),
    "relu": (lambda p, x: jax.nn.relu(x @ p) @ p + p[:1], 2),
    "gelu, tanh": (lambda p, x: jax.nn.gelu(x @ p, approximate=True) @ p, 2),
    "gelu, erf": (lambda p, x: jax.nn.gelu(x @ p, approximate=False) @ p, 2),
    "silu": (lambda p, x: jax.nn.silu(x @ p) @ p, 2),
    "sigmoid": (lambda p, x: jax.nn.sigmoid(x @ p) @ p, 1),
    "tanh": (lambda p, x: jnp.tanh(x @ p) @ p, 1),
    "softplus": (lambda p, x: jax.nn.softplus(x @ p) + p[0] @ p @ p, 3),
    "residual": (lambda p, x: x @ p + jax.nn.relu(x @ p) @ p @ p, 3),
    "taylor of a small argument": (lambda p, x: jnp.tanh(x / (1 + p[:5] ** 2)) * p[:5] ** 4, 2),
    "sort": (lambda p, x: jnp.sort(x @ p + x, axis=-1), 1),
    "max pool": (lambda p, x: jnp.max(x @ p, -1, keepdims=True) * x, 1),
    "custom_jvp, remat": (lambda p, x: jax.checkpoint(lambda a: jax.nn.relu6(a) + a)(x @ p), 1),
    "scan": (scanned, 2),
    "cond": (lambda p, x: jax.lax.cond(x[0, 0] > 9, lambda: x @ p, lambda: (x @ p) ** 2), 2),
    "where": (lambda p, x: jnp.where(x > 0, x @ p, p[:5] @ p), 2),
    "gather, concatenate": (lambda p, x: jnp.concatenate([p[jnp.array([0, 3])] @ p, p @ p]), 2),
    "abs, clip": (lambda p, x: jnp.clip(jnp.abs(x @ p), 0.0, 1.0) + jnp.abs(x @ p), 1),
    "transformer": (transformer, 3),
}


@pytest.mark.parametrize("name", SMALL)
def test_f_of_c_theta_comes_to_the_limit(name: str) -> None:
    function, degree = SMALL[name]
    found = jax.jit(saturate(function))(W, X)
    assert found.degree == degree
    assert bool(found.valid.all())
    gaps = [gap(found, function(scale_parameters(W, c), X)) for c in (1e2, 1e4, 1e6)]
    assert gaps[-1] < 1e-11
    assert gaps[1] < 1e-3 * gaps[0] + 1e-13, gaps


@pytest.mark.parametrize(
    ("function", "degree", "value"),
    [
        (lambda t, x: jnp.tanh(t * x) * t, 1, -3.0),
        (lambda t, x: (t * x + 1) / (t + 5), 0, -2.0),
        (lambda t, x: jnp.sqrt(t**2 + t) - t, 0, 0.5),  # √(c²+c) − c → ½: leading terms cancel
        (lambda t, x: 1 / (t**2 + 1) - 1 / t**2, -4, -1 / 81),
        (lambda t, x: jnp.exp(x / t) - 1 - x / t, -2, 2 / 9),  # (x/t)²/2
        (lambda t, x: jnp.exp(-t) + x, 0, -2.0),
        (lambda t, x: jnp.maximum(t + x, t + 1), 1, 3.0),
        (lambda t, x: jnp.maximum(t + x, t + 1) - t, 0, 1.0),  # the tie is decided a degree below
        (lambda t, x: jnp.where(t + x > t, 1.0, -1.0), 0, -1.0),
        (lambda t, x: (1 + 1 / t) ** 3, 0, 1.0),
    ],
)
def test_closed_forms(function: Callable, degree: int, value: float) -> None:
    """θ = 3, x = −2; a cancelled leading term leaves a lower degree, with the value there."""
    found = saturate(function)(jnp.float64(3.0), jnp.float64(-2.0))
    if found.degree == degree:
        assert float(found.value) == pytest.approx(value, rel=1e-12)
    else:  # the static degree is an upper bound: where coefficients cancel it reports the zero
        assert found.degree > degree
        assert float(found.value) == 0.0


def test_it_works_under_jit_and_vmap_of_the_data() -> None:
    function = SMALL["transformer"][0]
    batch = np.stack([X, -X, 2 * X])
    vmapped = jax.jit(jax.vmap(saturate(function), in_axes=(None, 0)))(W, batch)
    assert vmapped.degree == 3
    for one, x in zip(vmapped.value, batch, strict=True):
        np.testing.assert_allclose(one, saturate(function)(W, x).value, rtol=1e-9, atol=1e-9)


def test_a_primitive_without_a_rule_is_named() -> None:
    with pytest.raises(LimitError, match="no rule for the primitive `floor`"):
        saturate(lambda p, x: jnp.floor(x @ p))(W, X)
    with pytest.raises(LimitError, match="`log` of a quantity of degree 1 has no limit"):
        saturate(lambda p, x: jnp.log(x @ p))(W, X)
    with pytest.raises(LimitError, match=r"The power 0\.5 of a quantity of degree 1"):
        saturate(lambda p, x: jnp.sqrt(x @ p))(W, X)
    with pytest.raises(LimitError, match="at least 1 term"):
        saturate(lambda p, x: p, 0)(W, X)


def test_a_finite_mask_is_refused_or_declared() -> None:
    def function(p, x):
        return jax.nn.softmax(jnp.where(MASK, x @ p @ x.T, -1e9), -1)

    with pytest.raises(LimitError, match=r"constant -1e.09 meets a quantity of degree 1.*-1e.09\)"):
        saturate(function)(W, X)
    found = saturate(function, mask_below=-1e9)(W, X)
    expected = jax.nn.softmax(np.where(MASK, 1e9 * X @ W @ X.T, -np.inf), -1)
    np.testing.assert_allclose(found.value, expected, atol=1e-9)


def test_large_numbers_that_multiply_are_no_masks() -> None:
    """Warnings are errors here."""
    found = saturate(lambda p, x: (x @ p) * 1e7 / 3e8)(W, 1e9 * X)
    np.testing.assert_allclose(found.value, 1e9 / 30 * (X @ W), rtol=1e-12)


def test_a_mask_that_its_dtype_has_no_room_for_is_infinite() -> None:
    mask = np.where(MASK, 0, np.finfo(np.float64).min)

    def function(p, x, mask):
        return jax.nn.softmax(x @ p @ x.T + mask, -1)

    with jax.enable_x64(False), np.errstate(over="ignore"):
        narrow = W.astype(np.float32), X.astype(np.float32)
        found = saturate(function)(*narrow, mask)
    expected = jax.nn.softmax(np.where(MASK, 1e9 * X @ W @ X.T, -np.inf), -1)
    np.testing.assert_allclose(found.value, expected, atol=1e-6)


def test_scaling_leaves_integers_and_dtypes_alone() -> None:
    tree = {"w": jnp.ones(3, jnp.bfloat16), "n": 4, "k": jnp.arange(3)}
    scaled = scale_parameters(tree, 2.0)
    assert scaled["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(scaled["w"], np.float32), 2.0)
    assert scaled["n"] == 4
    np.testing.assert_array_equal(scaled["k"], tree["k"])
