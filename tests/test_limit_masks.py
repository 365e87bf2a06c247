"""Finite masks: the causal attention of four libraries has the limit of the −∞-masked function.

Each library's arithmetic is written anew here, so that none need be installed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.errors import LimitError
from saturation.limit import saturate

RNG = np.random.default_rng(0)
LENGTH, HEADS, WIDTH = 5, 2, 4
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))
PARAMS = {name: RNG.normal(size=(1, LENGTH, HEADS, WIDTH)) for name in "qkv"}
DTYPES = ["bfloat16", "float32", "float64"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def scores(p):
    return jnp.einsum("bqhd,bkhd->bhqk", p["q"], p["k"])


def attend(weights, p):
    return jnp.einsum("bhqk,bkhd->bqhd", weights, p["v"])


def jax_nn(p, mask):
    """jax.nn._dot_product_attention_core: scaled in float32, masked with −0.7·finfo.max."""
    logits = scores(p).astype(jnp.promote_types(p["q"].dtype, jnp.float32))
    logits = logits * (1 / np.sqrt(WIDTH)).astype(np.float32)
    large_negative = jnp.asarray(-0.7 * float(jnp.finfo(logits.dtype).max), logits.dtype)
    padded = jnp.where(mask, logits, large_negative)
    return attend(jax.nn.softmax(padded, axis=-1).astype(p["v"].dtype), p)


def flax(p, mask):
    """flax.linen.dot_product_attention_weights: where(mask, weights, finfo(dtype).min)."""
    query = p["q"] / jnp.sqrt(WIDTH).astype(p["q"].dtype)
    weights = jnp.einsum("...qhd,...khd->...hqk", query, p["k"])
    weights = jnp.where(mask, weights, jnp.finfo(weights.dtype).min)
    return attend(jax.nn.softmax(weights).astype(p["v"].dtype), p)


def flax_bias(p, mask):
    """Flax transformers: a bias of 0 and finfo.min, added to the scores."""
    zeros = jnp.zeros(mask.shape, p["q"].dtype)
    bias = jax.lax.select(mask, zeros, jnp.full_like(zeros, jnp.finfo(zeros.dtype).min))
    return attend(jax.nn.softmax(scores(p) + bias), p)


def equinox(p, mask):
    """equinox.nn.dot_product_attention_weights, in float32 or wider."""
    query = p["q"] / np.sqrt(WIDTH).astype(p["q"].dtype)
    logits = jnp.einsum("bshd,bShd->bhsS", query, p["k"])
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    return attend(jax.nn.softmax(logits.astype(wide), axis=-1).astype(logits.dtype), p)


def haiku(p, mask):
    """haiku.MultiHeadAttention: where(mask, logits, −1e30)."""
    logits = jnp.einsum("...thd,...Thd->...htT", p["q"], p["k"])
    logits = logits / np.sqrt(WIDTH).astype(p["q"].dtype)
    return attend(jax.nn.softmax(jnp.where(mask, logits, -1e30)), p)


def gemma(p, mask):
    """A soft cap, and −2.38e38, added twice over."""
    logits = scores(p)
    bias = jnp.where(mask, jnp.zeros((), logits.dtype), jnp.asarray(-2.3819763e38, logits.dtype))
    return attend(jax.nn.softmax(logits + (bias + bias)), p)


def multiplied(p, mask):
    """1 − mask times finfo.min."""
    least = jnp.finfo(p["q"].dtype).min
    return attend(jax.nn.softmax(scores(p) + (1 - mask.astype(p["q"].dtype)) * least), p)


LIBRARIES: dict[str, Callable] = {
    each.__name__: each for each in (jax_nn, flax, flax_bias, equinox, haiku, gemma, multiplied)
}


def by_hand() -> np.ndarray:
    """The value of the allowed key with the largest score."""
    logits = np.einsum("bqhd,bkhd->bhqk", PARAMS["q"], PARAMS["k"])
    best = np.where(CAUSAL, logits, -np.inf).argmax(-1)
    return np.einsum("bhqk,bkhd->bqhd", np.eye(LENGTH)[best], PARAMS["v"])


@pytest.mark.parametrize("traced", [False, True], ids=["known", "traced"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_causal_attention_has_the_limit_of_the_infinite_mask(library, dtype, traced) -> None:
    attention = LIBRARIES[library]
    p = {name: jnp.asarray(value, dtype) for name, value in PARAMS.items()}
    if traced:
        found = jax.jit(saturate(attention))(p, CAUSAL)
    else:
        found = jax.jit(saturate(lambda p: attention(p, CAUSAL)))(p)
    assert found.degree == 1
    assert bool(found.valid.all())
    np.testing.assert_allclose(
        found.value.astype(np.float64), by_hand(), rtol=1e-2 if dtype == "bfloat16" else 1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_that_of_jax_nn_itself(dtype) -> None:
    p = {name: jnp.asarray(value, dtype) for name, value in PARAMS.items()}
    attention = lambda p: jax.nn.dot_product_attention(p["q"], p["k"], p["v"], is_causal=True)
    found = jax.jit(saturate(attention))(p)
    assert bool(found.valid.all())
    tolerance = 1e-2 if dtype == "bfloat16" else 1e-6
    np.testing.assert_allclose(found.value.astype(np.float64), by_hand(), rtol=tolerance)


def test_that_of_flax_itself() -> None:
    import flax.linen as nn

    p = {name: jnp.asarray(value) for name, value in PARAMS.items()}
    attention = lambda p: nn.dot_product_attention(p["q"], p["k"], p["v"], mask=CAUSAL[None, None])
    found = jax.jit(saturate(attention))(p)
    np.testing.assert_allclose(found.value, by_hand(), rtol=1e-6)


def test_that_of_equinox_itself() -> None:
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    module = eqx.nn.MultiheadAttention(HEADS, 8, key=jax.random.key(0), dtype=jnp.float64)
    x = RNG.normal(size=(LENGTH, 8))
    with pytest.raises(LimitError, match=r"equinox\.partition"):
        saturate(lambda m, x: m(x, x, x, mask=CAUSAL))(module, x)
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def attention(params, x):
        return eqx.combine(params, static)(x, x, x, mask=CAUSAL)

    compare_at_finite_c(attention, params, x)


def test_that_of_haiku_itself() -> None:
    hk = pytest.importorskip("haiku", reason="Haiku is not installed")
    initial = hk.initializers.RandomNormal()
    made = hk.transform(
        lambda x: hk.MultiHeadAttention(HEADS, WIDTH, w_init=initial)(x, x, x, CAUSAL[None])
    )
    x = RNG.normal(size=(LENGTH, 8))
    params = made.init(jax.random.key(0), x)
    compare_at_finite_c(lambda params, x: made.apply(params, None, x), params, x)


def compare_at_finite_c(attention: Callable, params, x) -> None:
    found = jax.jit(saturate(attention))(params, x)
    assert bool(found.valid.all())
    c = 1e5
    at_c = attention(jax.tree.map(lambda leaf: c * leaf, params), x) / c**found.degree
    np.testing.assert_allclose(found.value, at_c, atol=1e-6)


def test_float16_ends_at_its_mask() -> None:
    """−65504 is finfo.min in float16, in a cast from it too, and a number like others elsewhere."""
    narrow = {name: jnp.asarray(value, jnp.float16) for name, value in PARAMS.items()}
    found = jax.jit(saturate(flax_bias))(narrow, CAUSAL)
    assert bool(found.valid.all())
    np.testing.assert_allclose(found.value.astype(np.float64), by_hand(), rtol=1e-2)

    def cast(p, bias):
        return attend(jax.nn.softmax(scores(p) + bias.astype(jnp.float32)), p)

    wide = {name: jnp.asarray(value, jnp.float32) for name, value in PARAMS.items()}
    bias = np.where(CAUSAL, 0, np.finfo(np.float16).min)
    found = jax.jit(saturate(cast))(wide, bias.astype(np.float16))
    np.testing.assert_allclose(found.value, by_hand(), rtol=1e-6)
    assert not jax.jit(saturate(cast))(wide, bias.astype(np.float32)).valid[:, 0].any()


@pytest.mark.parametrize("least", [-1e9, -1e10, -1e4, -2e4])
def test_other_large_numbers_are_refused_marked_or_declared(least: float) -> None:
    def chosen(p):
        return attend(jax.nn.softmax(jnp.where(CAUSAL, scores(p), least)), p)

    def added(p, mask):
        return attend(jax.nn.softmax(scores(p) + (1 - mask.astype(p["q"].dtype)) * least), p)

    p = {name: jnp.asarray(value) for name, value in PARAMS.items()}
    with pytest.raises(LimitError, match=r"The constant -.e\+?\d+|The constant -\d+"):
        jax.jit(saturate(chosen))(p)
    with pytest.raises(LimitError):
        saturate(added)(p, CAUSAL)
    masked = jax.jit(saturate(added))(p, CAUSAL).valid
    np.testing.assert_array_equal(masked.all(axis=(0, 2, 3)), [False] * (LENGTH - 1) + [True])
    for attention, args in ((chosen, ()), (added, (CAUSAL,))):
        found = jax.jit(saturate(attention, mask_below=least))(p, *args)
        assert bool(found.valid.all())
        np.testing.assert_allclose(found.value, by_hand(), rtol=1e-6)


def test_no_constant_is_a_mask_where_that_is_said() -> None:
    """ALiBi at long range: scores that tie are decided by distances of 6,000 and more."""
    away = np.array([[6000.0, 9000.0, 7000.0]])

    def function(p):
        return jax.nn.softmax(jnp.ones((1, 3)) * p - away)

    with pytest.raises(LimitError, match="The constant 9000"):
        saturate(function)(jnp.float64(2.0))
    found = saturate(function, mask_below=None)(jnp.float64(2.0))
    np.testing.assert_array_equal(found.value, [[1, 0, 0]])
    with pytest.raises(LimitError, match="must be negative"):
        saturate(function, mask_below=1e9)(jnp.float64(2.0))


def test_a_bound_at_the_end_of_a_dtype_bounds_nothing() -> None:
    top = np.finfo(np.float64).max
    found = jax.jit(saturate(lambda p: jnp.clip(p, -top, top)))(jnp.array([1.0, -2.0]))
    assert found.degree == 1
    np.testing.assert_array_equal(found.value, [1, -2])
