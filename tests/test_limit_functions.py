"""Functions a user might write: their limits against mpmath at c = 10^40, and f(cθ)/c^k at 10^6."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from saturation.limit import Limit, saturate, scale_parameters

RNG = np.random.default_rng(0)
W, X = RNG.standard_normal((6, 6)), RNG.standard_normal((5, 6))
CAUSAL = np.tril(np.ones((5, 5), bool))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # flax's own layers promote
        yield


# --- in mpmath: arrays of its numbers, and functions of them ---------------------------------

FAR = mpmath.mpf(10) ** 40


def elementwise(function: Callable) -> Callable:
    return np.vectorize(function, otypes=[object])


m_tanh, m_exp = elementwise(mpmath.tanh), elementwise(mpmath.exp)
m_sqrt, m_log = elementwise(mpmath.sqrt), elementwise(mpmath.log)
m_relu = elementwise(lambda v: max(v, mpmath.mpf(0)))


def m_sigmoid(h):
    return 1 / (1 + m_exp(-h))


def m_gelu(h):
    return h * elementwise(lambda v: (1 + mpmath.erf(v / mpmath.sqrt(2))) / 2)(h)


def m_gelu_tanh(h):
    return h / 2 * (1 + m_tanh(mpmath.sqrt(2 / mpmath.pi) * (h + mpmath.mpf(0.044715) * h**3)))


def m_softmax(scores, allowed=None):
    weights = m_exp(scores - scores.max(-1, keepdims=True))
    weights = weights if allowed is None else weights * allowed
    return weights / weights.sum(-1, keepdims=True)


def m_layer_norm(h, p, epsilon=1e-6):
    centred = h - h.sum(-1, keepdims=True) / h.shape[-1]
    variance = (centred**2).sum(-1, keepdims=True) / h.shape[-1]
    return centred / m_sqrt(variance + mpmath.mpf(epsilon)) * p["scale"] + p["bias"]


def m_dense(h, p):
    return h @ p["kernel"] + p["bias"]


# --- the same for JAX -------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Two layers with a norm between them."""

    activation: Callable

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(self.activation(nn.Dense(7)(x)))
        return nn.Dense(3)(h)


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x):
        one, two, gate = (nn.Dense(7, name=name)(x) for name in ("one", "two", "gate"))
        return nn.Dense(3, name="out")(nn.tanh(one) + two * nn.sigmoid(gate))


class Attention(nn.Module):
    """One causal head with biases and a bias by position, on a stream that is kept."""

    @nn.compact
    def __call__(self, x):
        query, key, value = (nn.Dense(6, name=name)(x) for name in ("query", "key", "value"))
        places = self.param("places", nn.initializers.normal(1.0), (9,), jnp.float64)
        bias = places[jnp.arange(5)[:, None] - jnp.arange(5) + 4]
        scores = jnp.where(CAUSAL, query @ key.T / jnp.sqrt(6.0) + bias, -jnp.inf)
        return x + nn.Dense(6, name="out")(jax.nn.softmax(scores, axis=-1) @ value)


def m_perceptron(activation):
    def run(p, x):
        h = m_layer_norm(activation(m_dense(x, p["Dense_0"])), p["LayerNorm_0"])
        return m_dense(h, p["Dense_1"])

    return run


def m_gated(p, x):
    one, two, gate = (m_dense(x, p[name]) for name in ("one", "two", "gate"))
    return m_dense(m_tanh(one) + two * m_sigmoid(gate), p["out"])


def m_attention(p, x):
    query, key, value = (m_dense(x, p[name]) for name in ("query", "key", "value"))
    bias = p["places"][np.arange(5)[:, None] - np.arange(5) + 4]
    scores = query @ key.T / m_sqrt(mpmath.mpf(6)) + bias
    masked = np.where(CAUSAL, scores, scores.min() - 1)  # below every maximum, and then weight 0
    return x + m_dense(m_softmax(masked, CAUSAL) @ value, p["out"])


REPEATED = X[[0, 1, 1, 0, 1]]  # tokens that repeat: their keys tie, and the places decide

NETWORKS = {
    "tanh": (Perceptron(nn.tanh), m_perceptron(m_tanh), X, 2),
    "gelu": (Perceptron(lambda h: nn.gelu(h, approximate=False)), m_perceptron(m_gelu), X, 2),
    "gelu by tanh": (Perceptron(nn.gelu), m_perceptron(m_gelu_tanh), X, 2),
    "relu": (Perceptron(nn.relu), m_perceptron(m_relu), X, 2),
    "gated": (Gated(), m_gated, X, 2),
    "attention": (Attention(), m_attention, X, 2),
    "attention with ties": (Attention(), m_attention, REPEATED, 2),
}


def to_mpmath(tree, scale=1):
    numbers = elementwise(lambda value: scale * mpmath.mpf(float(value)))
    return jax.tree.map(lambda leaf: numbers(np.asarray(leaf, np.float64)), tree)


def assert_is(found: Limit, value, rtol: float) -> None:
    assert bool(found.valid.all())
    expected = np.asarray(value, np.float64)
    np.testing.assert_allclose(found.value, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_flax_networks_against_mpmath(name: str) -> None:
    module, reference, x, degree = NETWORKS[name]
    params = jax.jit(module.init)(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    noise = np.random.default_rng(2)
    params = jax.tree.map(lambda a: a + 0.3 * noise.standard_normal(a.shape), params)
    found = jax.jit(saturate(lambda p, x: module.apply({"params": p}, x)))(params, x)
    assert found.degree == degree
    with mpmath.workdps(100):
        value = reference(to_mpmath(params, FAR), to_mpmath(x)) / FAR**degree
    assert_is(found, value, 1e-12)


# θ = 3, x = −2; leading terms cancel by construction (absent) or not at all.
NUMBERS: dict[str, tuple[Callable, Callable, int]] = {
    "rational": (lambda t, x: (t * x + 1) / (t + 5), lambda t, x: (t * x + 1) / (t + 5), 0),
    "root": (lambda t, x: jnp.sqrt(t**2 + t) * x, lambda t, x: mpmath.sqrt(t**2 + t) * x, 1),
    "inverse": (
        lambda t, x: 1 / (t**2 + t) ** 1.5,
        lambda t, x: (t**2 + t) ** mpmath.mpf(-1.5),
        -3,
    ),
    "log of what tends to a number": (
        lambda t, x: t * jnp.log((2 * t + x) / t),
        lambda t, x: t * mpmath.log((2 * t + x) / t),
        1,
    ),
    "sine of what vanishes": (
        lambda t, x: t**3 * jnp.sin(x / t),
        lambda t, x: t**3 * mpmath.sin(x / t),
        2,
    ),
    "exp of what vanishes": (
        lambda t, x: t * jnp.expm1(x / t + 1 / t**2),
        lambda t, x: t * mpmath.expm1(x / t + 1 / t**2),
        0,
    ),
    "softplus": (
        lambda t, x: jax.nn.softplus(t * x) + x,
        lambda t, x: mpmath.log1p(mpmath.exp(t * x)) + x,
        1,
    ),
    "atan": (lambda t, x: jnp.arctan(t * x), lambda t, x: mpmath.atan(t * x), 0),
    "cosh, asinh": (
        lambda t, x: jnp.arcsinh(x + 1 / t) * jnp.cosh(x / t) * t,
        lambda t, x: mpmath.asinh(x + 1 / t) * mpmath.cosh(x / t) * t,
        1,
    ),
    "sigmoid of one's own": (
        lambda t, x: x / (1 + jnp.exp(-t)),
        lambda t, x: x / (1 + mpmath.exp(-t)),
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_against_mpmath(name: str) -> None:
    function, reference, degree = NUMBERS[name]
    found = jax.jit(saturate(function))(jnp.float64(3), jnp.float64(-2))
    with mpmath.workdps(150):
        value = reference(3 * FAR, mpmath.mpf(-2)) / FAR**found.degree
        assert abs(value) < 1e30  # of the static degree or below
    if found.degree == degree:
        assert float(found.value) == pytest.approx(float(value), rel=1e-13)
    else:
        assert (found.degree, float(found.value)) == (1, 0.0)  # softplus(−c) vanishes by its value


# --- against f(cθ) itself ---------------------------------------------------------------------


def causal_attention(h, p):
    return jax.nn.softmax(jnp.where(CAUSAL, h @ p @ h.T, -jnp.inf), -1) @ h


def pooled(function):
    return lambda p, x: function((x @ p + x)[None, :, :, None])[0, :, :, 0]


@jax.custom_vjp
def own_derivative(h):
    return jnp.tanh(h)


own_derivative.defvjp(lambda h: (jnp.tanh(h), h), lambda h, g: (g,))


def three_times(p, x):
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] @ p), (0, x))[1]


FUNCTIONS: dict[str, tuple[Callable, int]] = {
    "einsum": (lambda p, x: jnp.einsum("ab,bc,dc->ad", x, p, x), 1),
    "unit vectors": (lambda p, x: x @ p / jnp.linalg.norm(x @ p, axis=-1, keepdims=True), 0),
    "standardize": (lambda p, x: jax.nn.standardize(x @ p), 0),
    "std, var": (lambda p, x: jnp.std(x @ p, -1) + jnp.var(x @ p, -1), 2),
    "logsumexp": (lambda p, x: jax.nn.logsumexp(x @ p, -1), 1),
    "log_softmax": (lambda p, x: jax.nn.log_softmax(x @ p, -1), 1),
    "cumsum": (lambda p, x: jnp.cumsum(x @ p + x, axis=1), 1),
    "cumprod": (lambda p, x: jnp.cumprod(jnp.tanh(x @ p) + 1 / p[0], -1), 0),
    "cummax": (lambda p, x: jax.lax.cummax(x @ p + x, axis=1, reverse=True), 1),
    "cummin": (lambda p, x: jax.lax.cummin(x @ p + x, axis=0), 1),
    "cumlogsumexp": (lambda p, x: jax.lax.cumlogsumexp(x @ p + x, axis=1), 1),
    "prod": (lambda p, x: jnp.prod(x @ p, -1), 6),
    "prod of a rest": (lambda p, x: jnp.prod(x @ p, (0, 1))[None] + p[0, :1], 30),
    "top_k": (lambda p, x: jax.lax.top_k(x @ p + x, 2)[0], 1),
    "median": (lambda p, x: jnp.median(x @ p + x, -1), 1),
    "argmax": (lambda p, x: jax.nn.one_hot(jnp.argmax(x @ p, -1), 6, dtype=x.dtype) @ p, 1),
    "max pool": (pooled(lambda h: nn.max_pool(h, (2, 2), (2, 1), "SAME")), 1),
    "min pool": (pooled(lambda h: -nn.max_pool(-h, (2, 3))), 1),
    "mean pool": (pooled(lambda h: nn.avg_pool(h, (2, 2))), 1),
    "cbrt": (lambda p, x: jnp.cbrt((x @ p) ** 3), 1),
    "hypot": (lambda p, x: jnp.hypot(x @ p, x + 1), 1),
    "powers": (lambda p, x: (jnp.abs(x @ p) + 1) ** 2.0 + ((x @ p) ** 2 + 1) ** 0.5, 2),
    "set, add": (lambda p, x: (x @ p).at[0].set(1.0).at[1].add(x[1]), 1),
    "elu": (lambda p, x: jax.nn.elu(x @ p) + jax.nn.selu(x @ p), 1),
    "mish, glu": (lambda p, x: jax.nn.mish(x @ p)[:, :3] + jax.nn.glu(x @ p), 1),
    "soft sign": (lambda p, x: jax.nn.soft_sign(x @ p), 0),
    "squareplus": (lambda p, x: jax.nn.squareplus(x @ p), 1),
    "log_sigmoid": (lambda p, x: jax.nn.log_sigmoid(x @ p), 1),
    "relu6": (lambda p, x: jax.nn.relu6(x @ p) @ p, 1),
    "hard_silu": (lambda p, x: jax.nn.hard_silu(x @ p), 1),
    "clip": (lambda p, x: jnp.clip(p @ p, -1.0, 2.0) @ p, 1),
    "clamp": (lambda p, x: jax.lax.clamp(-1.0, x @ p + x, 2.0), 0),
    "causal attention": (lambda p, x: causal_attention(x @ p, p), 1),
    "fori_loop": (lambda p, x: jax.lax.fori_loop(0, 3, lambda i, h: h @ p, x), 3),
    "while": (three_times, 3),
    "map": (lambda p, x: jax.lax.map(lambda row: jnp.tanh(row @ p) @ p, x), 1),
    "switch": (lambda p, x: jax.lax.switch(1, [jnp.sin, jnp.tanh], x @ p), 0),
    "interp": (lambda p, x: jnp.interp(jnp.tanh(x @ p), jnp.array([-1.0, 0, 1]), x[0, :3]), 0),
    "gradient": (lambda p, x: jax.grad(lambda q: jnp.sum(jax.nn.relu(x @ q) @ q))(p), 1),
    "vmap": (lambda p, x: jax.vmap(lambda row: jax.nn.softmax(row @ p) @ p)(x), 1),
    "remat": (lambda p, x: jax.checkpoint(lambda h: jnp.tanh(h @ p) @ p)(x), 1),
    "custom_vjp": (lambda p, x: own_derivative(x @ p) @ p, 1),
}  # fmt: skip


def comes_to(function: Callable, found: Limit, params, *args) -> None:
    """f(cθ)/c^k comes to the limit as 1/c or faster."""
    assert bool(found.valid.all())
    scale = float(np.abs(found.value).max())
    assert scale > 0
    away = []
    for c in (1e4, 1e6):
        value = np.asarray(function(scale_parameters(params, c), *args)) / c**found.degree
        away.append(float(np.abs(value - found.value).max()) / scale)
    assert away[1] < 1e-4
    assert away[1] < 0.02 * away[0] or away[1] < 1e-10, away


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_against_their_values_at_finite_c(name: str) -> None:
    function, degree = FUNCTIONS[name]
    params, x = jnp.asarray(W), jnp.asarray(X)
    found = jax.jit(saturate(function))(params, x)
    assert found.degree == degree
    assert found.value.shape == function(params, x).shape
    comes_to(function, found, params, x)


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(3, (3, 3))(x[None, :, :, None]))
        h = nn.avg_pool(nn.max_pool(h, (2, 2), (1, 1)), (2, 2))
        return nn.Dense(2)(h.reshape(1, -1))


class Recurrent(nn.Module):
    cell: type

    @nn.compact
    def __call__(self, x):
        return nn.RNN(self.cell(4, param_dtype=jnp.float64))(x[None])[0]


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.GroupNorm(num_groups=2)(nn.LayerNorm(use_fast_variance=False)(nn.Dense(8)(x)))
        return nn.Dense(3)(nn.RMSNorm()(nn.Dense(8)(h)))


class Heads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)(x[None])[0]


@pytest.mark.parametrize(
    ("module", "degree"),
    [
        (Convolutional(), 2),
        (Recurrent(nn.LSTMCell), 0),
        (Recurrent(nn.GRUCell), 0),
        (Norms(), 2),
        (Heads(), 2),
    ],
    ids=["convolution", "LSTM", "GRU", "norms", "flax's attention"],
)
def test_modules_of_flax(module: nn.Module, degree: int) -> None:
    params = jax.jit(module.init)(jax.random.key(1), X)
    noise = np.random.default_rng(3)
    params = jax.tree.map(
        lambda a: a.astype(jnp.float64) + 0.1 * noise.standard_normal(a.shape), params
    )
    found = jax.jit(saturate(module.apply))(params, X)
    assert found.degree == degree
    comes_to(jax.jit(module.apply), found, params, X)
