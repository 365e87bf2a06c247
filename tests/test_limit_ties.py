"""Ties in the parameter limit: repeated tokens tie however XLA sums, and near scores do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saturation.attention import tempered_softmax
from saturation.limit import saturate, tie_report
from saturation.limit.ties import tie_thresholds


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def weights(p, x, softmax: Callable = jax.nn.softmax):
    """Scores of every head with a bias of degree 1 that decides between equal tokens."""
    place = jnp.arange(x.shape[-2])
    away = jnp.abs(place[:, None] - place)
    q, k = (jnp.einsum("...td,dhk->...htk", x, p[name]) for name in ("q", "k"))
    return softmax(q @ jnp.swapaxes(k, -1, -2) - p["s"] * away)


SOFTMAXES = {
    "jax.nn": jax.nn.softmax,
    "tempered": partial(tempered_softmax, temperature=1.0),
    "by hand": lambda s: (
        jnp.exp(s - s.max(-1, keepdims=True))
        / jnp.exp(s - s.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
}


def truth(p, embedding, ids) -> np.ndarray:
    """By the tokens' identity: the best one, and of its places the nearest."""
    q, k = (np.einsum("td,dhk->htk", embedding, np.asarray(p[name])) for name in ("q", "k"))
    scores = np.einsum("hqk,htk->hqt", q, k)
    found = np.zeros((*ids.shape[:-1], q.shape[0], ids.shape[-1], ids.shape[-1]))
    place = np.arange(ids.shape[-1])
    for row in np.ndindex(ids.shape[:-1]):
        for head, query in np.ndindex(found.shape[-3:-1]):
            tokens = ids[row]
            best = tokens[np.argmax(scores[head, tokens[query], tokens])]
            away = np.where(tokens == best, np.abs(place - query), np.inf)
            found[(*row, head, query)] = away == away.min()
    return found / found.sum(-1, keepdims=True)


SHAPES = [  # tokens, heads, batch, width, d_kv
    (2, 1, 1, 8, 4),
    (5, 1, 1, 8, 4),
    (7, 2, 4, 16, 8),
    (12, 4, 2, 16, 16),
    (33, 1, 1, 64, 64),
    (17, 2, 1, 64, 32),
]


def planted(rng, shape):
    length, heads, batch, width, d_kv = shape
    embedding = rng.normal(size=(3, width))
    ids = rng.integers(0, 3, (batch, length) if batch > 1 else (length,))
    p = {name: jnp.asarray(rng.normal(size=(width, heads, d_kv))) for name in "qk"}
    return embedding, ids, {**p, "s": jnp.float64(0.7)}


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeated_tokens_tie(shape, softmax: str) -> None:
    rng = np.random.default_rng(shape)
    limit = jax.jit(saturate(partial(weights, softmax=SOFTMAXES[softmax])))
    for _ in range(5):
        embedding, ids, p = planted(rng, shape)
        found = limit(p, embedding[ids])
        assert bool(found.valid.all())
        assert found.ties_reliable
        np.testing.assert_allclose(found.value, truth(p, embedding, ids), atol=1e-12)


def test_they_tie_outside_of_jit_and_in_a_scan() -> None:
    rng = np.random.default_rng(0)
    embedding, ids, p = planted(rng, (7, 2, 1, 8, 4))
    expected = truth(p, embedding, ids)
    eager = saturate(weights)(p, embedding[ids])
    np.testing.assert_allclose(eager.value, expected, atol=1e-12)

    def looped(p, x):
        return jax.lax.map(lambda _: weights(p, x), jnp.arange(5.0))

    found = jax.jit(saturate(looped))(p, embedding[ids])
    assert bool(found.valid.all())
    np.testing.assert_allclose(
        found.value, np.broadcast_to(expected, (5, *expected.shape)), atol=1e-12
    )


def near(gap: float, width: int = 16):
    """Two keys whose scores differ by so much of Σ|a||b|, and the attention of one query to them.

    Numbers are a few powers of two, so that the gap is exact.
    """
    query = np.ones((1, width))
    keys = np.tile(np.where(np.arange(width) % 2, 1.0, -1.0), (2, 1))
    keys[0, 1] += gap * width

    def function(p):
        return jax.nn.softmax(p["q"] @ p["k"].T)

    return function, {"q": jnp.asarray(query), "k": jnp.asarray(keys)}


def test_a_difference_is_a_tie_or_none_or_undecided() -> None:
    tied, apart = tie_thresholds(16, np.float64)
    for gap, expected in ((0.5 * tied, [0.5, 0.5]), (2 * apart, [1, 0]), (1e-9, [1, 0])):
        function, p = near(gap)
        found = jax.jit(saturate(function))(p)
        assert bool(found.valid.all())
        np.testing.assert_allclose(found.value[0], expected, atol=1e-6)
    function, p = near(30 * tied)
    assert not jax.jit(saturate(function))(p).valid.any()
    assert int(tie_report(function)(p).undecided) > 0


def test_the_report_says_how_clear_it_was() -> None:
    tied, _ = tie_thresholds(16, np.float64)
    for gap in (0.5 * tied, 1e-7):
        function, p = near(gap)
        report = jax.jit(tie_report(function))(p)
        shown = report.largest_tie if gap < 1e-10 else report.smallest_gap
        assert float(shown) == pytest.approx(gap, rel=0.1)
        assert int(report.ties) == (gap < 1e-10)
        assert int(report.undecided) == 0
        assert report.ties_reliable


ORDERS: dict[str, tuple[Callable, list]] = {  # of scores that tie but for what follows by degree
    "argmax": (lambda s: jnp.argmax(s, -1), [2]),
    "sort": (lambda s: jnp.argsort(s, -1)[:, ::-1], [[2, 1, 0]]),
    "top_k": (lambda s: jax.lax.top_k(s, 2)[1], [[2, 1]]),
    "comparison": (lambda s: (s[:, 1:] > s[:, :1]).astype(s.dtype), [[1, 1]]),
    "sign": (lambda s: jnp.sign(s[:, 1:] - s[:, :1]), [[1, 1]]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_lower_terms_decide_behind_broken_ties(name: str) -> None:
    order, expected = ORDERS[name]
    rng = np.random.default_rng(1)

    def function(p):
        # The same sum in three orders: equal but for rounding, as XLA's blocks make it.
        columns = [jnp.sum((p["a"] * p["b"])[:, places], -1) for places in orders]
        return order(jnp.stack(columns, -1) + p["bias"])

    orders = [rng.permutation(40) for _ in range(3)]
    for _ in range(5):
        p = {name: jnp.asarray(rng.normal(size=(1, 40))) for name in "ab"}
        found = jax.jit(saturate(function))({**p, "bias": jnp.array([[0.0, 1.0, 2.0]])})
        assert bool(found.valid.all())
        np.testing.assert_array_equal(found.value, expected)


def test_in_float32_ties_are_not_reliable() -> None:
    rng = np.random.default_rng(0)
    embedding, ids, p = planted(rng, (5, 1, 1, 8, 4))
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)
    assert not jax.jit(saturate(weights))(narrow, embedding[ids].astype(np.float32)).ties_reliable
    assert not tie_report(weights)(narrow, embedding[ids].astype(np.float32)).ties_reliable
