"""The homogeneity curve against closed forms, finite differences, and the degrees of §6."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import FORMS, case, observe_table, valid_rows
from t5_reference import nested, random_parameters, reference_t5

from saturation.measures.homogeneity.measure import (
    HOMOGENEITY,
    SCALES,
    along_scale,
    homogeneity,
    local_degree,
)
from saturation.models import T5

GRID = (0.5, 1.0, 7.0, 300.0)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_a_network_without_biases_is_homogeneous_at_every_scale():
    def network(params, x):
        return jax.nn.relu(x @ params["in"]) @ params["out"]

    params = {"in": normal(4, 32), "out": normal(32, 3, seed=1)}
    curve = homogeneity(network, params, normal(5, 4, seed=2), scales=GRID)
    assert curve.degree == 2
    np.testing.assert_array_equal(curve.scales, GRID)
    np.testing.assert_allclose(curve.cosine, np.ones((4, 5)), rtol=1e-12)
    np.testing.assert_allclose(curve.local_degree, np.full((4, 5), 2.0), rtol=1e-12)


def test_the_curve_of_a_polynomial_is_its_closed_form():
    """f(cθ) = c² a + c b: its limit is a, and its local degree (2c²a + cb)·f/‖f‖²."""
    x, bias = normal(5, 4), normal(3, seed=1)
    params = {"in": normal(4, 4, seed=2), "out": normal(4, 3, seed=3), "bias": bias}

    def network(params, x):
        return {"y": x @ params["in"] @ params["out"] + params["bias"]}

    curve = homogeneity(network, params, x, scales=GRID)["y"]
    a = np.asarray(x @ params["in"] @ params["out"])
    for index, c in enumerate(GRID):
        f = c**2 * a + c * np.asarray(bias)
        slope = 2 * c**2 * a + c * np.asarray(bias)
        cosine = (f * a).sum(-1) / np.linalg.norm(f, axis=-1) / np.linalg.norm(a, axis=-1)
        np.testing.assert_allclose(curve.cosine[index], cosine, rtol=1e-12)
        degree = (f * slope).sum(-1) / (f * f).sum(-1)
        np.testing.assert_allclose(curve.local_degree[index], degree, rtol=1e-12)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("post_norm", "degree"), [(False, 3), (True, 1)])
def test_blocks_with_the_norm_before_and_after(post_norm, degree, biases):
    """Pre-norm: embedding 1, feed-forward 3. Post-norm: the last norm's scale alone, 1."""
    params = {"embed": normal(9, 4), "in": normal(4, 8, seed=1), "out": normal(8, 4, seed=2)}
    params |= {"scale": normal(4, seed=3), "b1": normal(8, seed=4), "b2": normal(4, seed=5)}

    def block(params, tokens):
        def norm(h):
            mean_square = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
            return h * jax.lax.rsqrt(mean_square + 1e-6) * params["scale"]

        def feed_forward(h):
            if biases:
                return jax.nn.relu(h @ params["in"] + params["b1"]) @ params["out"] + params["b2"]
            return jax.nn.relu(h @ params["in"]) @ params["out"]

        h = params["embed"][tokens]
        return norm(h + feed_forward(h)) if post_norm else h + feed_forward(norm(h))

    curve = homogeneity(block, params, jnp.arange(9), scales=(1.0, 1e2, 1e4))
    assert curve.degree == degree
    away = 1 - np.asarray(curve.cosine).mean(axis=1)
    assert away[0] > 1e-6
    assert away[2] < away[1] < away[0]
    np.testing.assert_allclose(curve.cosine[2], 1, atol=1e-7)
    np.testing.assert_allclose(curve.local_degree[2], degree, atol=1e-2)


def test_the_local_degree_of_huge_states_stays_in_range():
    value = jnp.array([[1e30, 2e30]], jnp.float32)
    np.testing.assert_allclose(local_degree(value, 5 * value), [5], rtol=1e-6)


@lru_cache
def both(form):
    """The case, and what the measure gives of it in float64."""
    config, flat, params, tokens = case(form, dtype=np.float64)
    return config, flat, tokens, observe_table(HOMOGENEITY, config, params, tokens)


@pytest.mark.parametrize("form", FORMS)
def test_the_curves_of_a_t5_agree_with_finite_differences(form):
    config, flat, tokens, found = both(form)

    def states(c):
        return reference_t5(config, {k: c * v for k, v in flat.items()}, *tokens)[1]

    limit, step = states(1000.0), 1e-5
    for c in (1, 10):
        here, below, above = states(c), states(c * np.exp(-step)), states(c * np.exp(step))
        for scope in ("encoder/layers_0", "encoder/final", "decoder/layers_0", "decoder/final"):
            valid = valid_rows(*tokens)[scope.startswith("decoder")]
            norms = [np.linalg.norm(each[scope][valid], axis=-1) for each in (below, above)]
            degree = (np.log(norms[1]) - np.log(norms[0])) / (2 * step)
            metrics = found[scope]
            assert metrics[f"local_degree_at_{c}"] == pytest.approx(degree.mean(), rel=1e-5)
            a, b = here[scope][valid], limit[scope][valid]
            cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
            assert metrics[f"cosine_to_limit_at_{c}"] == pytest.approx(cosine.mean(), rel=1e-3)
            assert metrics["tokens"] == valid.sum()


@pytest.mark.parametrize(("form", "degree"), [("v1_0", 3), ("umt5", 5)])
def test_the_curve_of_a_t5_ends_at_its_limit(form, degree):
    *_, found = both(form)
    for scope, metrics in found.items():
        expected = 1 if scope.endswith("final") else degree
        assert metrics[f"local_degree_at_{SCALES[-1]}"] == pytest.approx(expected, abs=1e-3)
        assert metrics[f"cosine_to_limit_at_{SCALES[-1]}"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("length", [7, 12])
@pytest.mark.parametrize("positions", [True, False])
def test_repeated_tokens_leave_no_noise_in_the_local_degree(length, positions):
    """What rounding leaves between equal tokens moves weight between equal values alone."""
    config = dataclasses.replace(FORMS["v1_0"], num_heads=1)
    flat = random_parameters(config, length, 0.3)
    if not positions:
        flat |= {name: 0 * array for name, array in flat.items() if "relpos_bias" in name}
    params = nested({name: np.asarray(array) for name, array in flat.items()})
    rng = np.random.default_rng(length)
    tokens = tuple(rng.integers(1, 4, (3, length)).astype(np.int32) for _ in range(2))
    wide = jax.tree.map(lambda p: jnp.asarray(p, float), params)
    taps = lambda p: T5(config).apply({"params": p}, *tokens)[1]
    values, slopes = jax.jit(lambda p: along_scale(taps, p, 1000.0))(wide)
    for scope in ("encoder/layers_0", "decoder/layers_0"):
        found = local_degree(values[scope], slopes[scope])
        np.testing.assert_allclose(found, 3.0, atol=1e-5)  # what c = 1000 itself leaves
