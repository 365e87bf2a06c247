"""What is the same along an axis by construction cancels under x − mean(x): the degree falls."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from saturation.limit import saturate

EPS = 1e-6
RNG = np.random.default_rng(13)
X = RNG.normal(size=(4, 6))
VECTOR = RNG.normal(size=6)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def exact(x: np.ndarray | jax.Array) -> np.ndarray:
    """LayerNorm(x) in NumPy, float64."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS)


def written(x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred * centred, -1, keepdims=True) + EPS)


def by_var(x: jax.Array) -> jax.Array:
    root = jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + EPS)
    return (x - x.mean(-1, keepdims=True)) * root


def by_reciprocal(x: jax.Array) -> jax.Array:
    part = 1 / x.shape[-1]
    centred = x - (jnp.sum(x, -1) * part)[:, None]
    return centred / jnp.sqrt(jnp.sum(centred**2, -1)[:, None] * part + EPS)


def flax_norm(fast: bool) -> Callable[[jax.Array], jax.Array]:
    def function(x: jax.Array) -> jax.Array:
        norm = linen.LayerNorm(EPS, x.dtype, use_bias=False, use_scale=False)
        found = norm.clone(use_fast_variance=fast).apply({}, x)
        assert isinstance(found, jax.Array)
        return found

    return function


def equinox_norm(x: jax.Array) -> jax.Array:
    equinox = pytest.importorskip("equinox", reason="Equinox is an extra of its own")
    norm = equinox.nn.LayerNorm(x.shape[-1], EPS, use_weight=False, use_bias=False)
    return jax.vmap(norm)(x)


NORMS = {
    "written": written,
    "var": by_var,
    "reciprocal": by_reciprocal,
    "flax": flax_norm(False),
    "flax, fast variance": flax_norm(True),
    "equinox": equinox_norm,
}
ROW = RNG.normal(size=(4, 1))
SUMS: dict[str, tuple[Callable, np.ndarray]] = {
    "scalar": (lambda s, x: s + x, np.array(0.7)),
    "scalar times ones": (lambda s, x: s * jnp.ones(6, x.dtype) + x, np.array(0.7)),
    "row": (lambda s, x: s + x, ROW),
    "row times NumPy's ones": (lambda s, x: s * np.ones(x.shape, x.dtype) + x, ROW),
    "vector of rows": (lambda s, x: x - s[:, None], ROW[:, 0]),
    "square and cube": (lambda s, x: jnp.full_like(x, s) ** 2 + x - s**3, np.array(0.7)),
    "relu": (lambda s, x: jax.nn.relu(jnp.full_like(x, s)) + x, np.array(0.7)),
    "tanh of both": (lambda s, x: x + s * jnp.tanh(jnp.full_like(x, s)), np.array(0.7)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["scalar", "row"])
def test_a_norm_does_not_see_what_is_the_same_along_its_axis(
    name: str, norm: str, dtype: type
) -> None:
    add, theta = SUMS[name]
    function = saturate(lambda s, x: NORMS[norm](add(s, x)))
    eager = [function] if (name, norm) == ("scalar", "written") else []  # slow: nothing is compiled
    for run in (jax.jit(function), *eager):
        found = run(theta.astype(dtype), X.astype(dtype))
        assert found.degree == 0
        assert found.value.dtype == dtype
        assert bool(found.valid.all())
        np.testing.assert_array_equal(found.order, 0)
        np.testing.assert_allclose(found.value, exact(X.astype(dtype)), atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", SUMS)
def test_it_may_be_written_in_many_ways(name: str) -> None:
    add, theta = SUMS[name]
    found = jax.jit(saturate(lambda s, x: by_var(add(s, x))))(theta, X)
    assert (found.degree, bool(found.valid.all())) == (0, True)
    np.testing.assert_allclose(found.value, exact(X), atol=1e-12)


def test_of_squares_that_were_not_kept_nothing_is_said() -> None:
    """Of (c²·s² + x)², four terms end at c¹, and the variance is of degree 0; five see it."""
    for terms, valid in ((4, False), (5, True)):
        function = saturate(lambda s, x: flax_norm(True)(s * s + x), terms)
        found = jax.jit(function)(np.float64(0.7), X)
        np.testing.assert_array_equal(found.valid, valid)
        if valid:
            np.testing.assert_allclose(found.value, exact(X), atol=1e-12)


def test_in_bfloat16_where_the_mean_is_rounded_back() -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    found = jax.jit(saturate(lambda s, x: by_var(s + x)))(jnp.bfloat16(0.7), x)
    assert (found.degree, found.value.dtype) == (0, jnp.bfloat16)
    assert bool(found.valid.all())
    np.testing.assert_allclose(found.value.astype(float), exact(x), atol=0.05)


def test_layers_behind_it_grow_by_their_own_weights() -> None:
    weight, second = RNG.normal(size=(6, 3)), RNG.normal(size=(4, 1))
    params = {"s": ROW, "t": second, "w": weight}

    def function(p, x):
        hidden = by_var(p["s"] + x)
        return by_var(p["t"] + hidden) @ p["w"]

    found = jax.jit(saturate(function))(params, X)
    assert found.degree == 1
    np.testing.assert_allclose(found.value, exact(exact(X)) @ weight, atol=1e-12)


def test_what_grows_beside_it_stays() -> None:
    params = {"s": ROW, "w": np.float64(-2.5)}
    for norm in (by_var, flax_norm(True)):
        function = saturate(lambda p, x, norm=norm: norm(p["s"] ** 2 + p["w"] * x))
        found = jax.jit(function)(params, X)
        assert (found.degree, bool(found.valid.all())) == (0, True)
        centred = X - X.mean(-1, keepdims=True)
        np.testing.assert_allclose(found.value, -centred / X.std(-1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_vector_that_varies_along_the_axis_is_seen(norm: str) -> None:
    found = jax.jit(saturate(lambda s, x: NORMS[norm](s + x)))(VECTOR, X)
    centred = VECTOR - VECTOR.mean()
    assert (found.degree, bool(found.valid.all())) == (0, True)
    np.testing.assert_allclose(found.value, np.tile(centred / VECTOR.std(), (4, 1)), atol=1e-12)


def test_along_another_axis_it_is_seen() -> None:
    """s is one number a row, and the norm goes down the columns."""
    function = saturate(lambda s, x: by_var((s + x).T))
    centred = (ROW - ROW.mean()).T
    found = jax.jit(function)(ROW, X)
    np.testing.assert_allclose(found.value, np.tile(centred / ROW.std(), (6, 1)), atol=1e-12)


def test_what_is_subtracted_but_not_quite_the_same_is_left() -> None:
    """Of s − 0.75·mean(s + x) a quarter of s is left, and of a mean over fewer numbers a half."""
    for share, left in ((lambda y: 0.75 * y.mean(-1), 0.25), (lambda y: y[:, :3].sum(-1) / 6, 0.5)):
        function = saturate(lambda s, x, share=share: (s + x) - share(s + x)[:, None])
        found = jax.jit(function)(ROW, X)
        assert found.degree == 1
        np.testing.assert_allclose(found.value, np.tile(left * ROW, (1, 6)), atol=1e-12)


def test_infinities_and_broken_numbers_are_not_lost() -> None:
    masked = X.copy()
    masked[0, 2], masked[1, 1] = -np.inf, np.nan
    found = jax.jit(saturate(lambda s, x: (s + x) - s))(np.float64(2), masked)
    assert found.degree == 0
    np.testing.assert_array_equal(found.valid, ~np.isnan(masked))
    np.testing.assert_allclose(found.value[2:], X[2:], rtol=1e-12)
    assert found.value[0, 2] == -np.inf
    normed = jax.jit(saturate(lambda s, x: by_var(s + x)))(np.float64(2), masked)
    np.testing.assert_array_equal(normed.valid.all(-1), [False, False, True, True])
    broken = jax.jit(saturate(lambda s, x: by_var(s + x)))(np.float64(np.nan), X)
    assert not bool(broken.valid.any())


def test_a_row_of_one_number_has_no_limit() -> None:
    alone = jax.jit(saturate(lambda s: by_var(jnp.broadcast_to(s, (1, 5)))))(np.float64(0.51))
    assert not bool(alone.valid.any())
    equal = np.full((1, 8), 0.51)  # whose mean rounds: noise over noise

    def bare(s, x):
        centred = (s + x) - (s + x).mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True))

    assert not bool(jax.jit(saturate(bare))(np.float64(2), equal).valid.any())


def test_in_groups_and_in_a_scan() -> None:
    def grouped(s, x):
        norm = linen.GroupNorm(2, use_bias=False, use_scale=False, epsilon=EPS)
        return norm.apply({}, s + x)

    wanted = exact(X.reshape(4, 2, 3)).reshape(4, 6)
    for theta in (np.float64(0.7), ROW):
        found = jax.jit(saturate(grouped))(theta, X)
        assert (found.degree, bool(found.valid.all())) == (0, True)
        np.testing.assert_allclose(found.value, wanted, atol=1e-12)

    def scanned(s, x):
        return jax.lax.scan(lambda h, t: (by_var(t + h), None), x, s)[0]

    found = jax.jit(saturate(scanned))(RNG.normal(size=5), X)
    expected = X
    for _ in range(5):
        expected = exact(expected)
    assert (found.degree, bool(found.valid.all())) == (0, True)
    np.testing.assert_allclose(found.value, expected, atol=1e-12)
