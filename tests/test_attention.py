"""The tempered softmax against closed forms in float64, at every temperature and dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from saturation.attention import attention, tempered_softmax
from saturation.errors import ArgumentError, SaturationError

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32]


def exact_softmax(scores, temperature, allowed=None):
    """Float64 softmax written down directly, row by row, with the limit at 0 by brute force."""
    scores = np.asarray(scores, np.float64)
    allowed = np.broadcast_to(True if allowed is None else allowed, scores.shape)
    rows = zip(scores.reshape(-1, scores.shape[-1]), allowed.reshape(scores.reshape(
        -1, scores.shape[-1]).shape), strict=True)  # fmt: skip
    weights = []
    for row, keys in rows:
        weight = np.zeros_like(row)
        if keys.any():
            difference = row[keys] - row[keys].max()
            power = np.exp(difference / temperature) if temperature else difference == 0
            weight[keys] = power / power.sum()
        weights.append(weight)
    return np.reshape(weights, scores.shape)


def random_scores(shape=(2, 3, 5, 7), scale=3.0, seed=0):
    return np.random.default_rng(seed).normal(size=shape) * scale


@pytest.mark.parametrize("temperature", [0, 1e-30, 1e-3, 0.1, 1, 3.0, 1e6])
def test_equals_the_closed_form_in_float64(temperature):
    scores = random_scores()
    with jax.enable_x64(True):
        weights = tempered_softmax(jnp.asarray(scores), temperature)
        assert weights.dtype == jnp.float64
        np.testing.assert_allclose(weights, exact_softmax(scores, temperature), atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0, 0.3, 1])
def test_half_precision_computes_in_float32_and_rounds_once(dtype, temperature):
    scores = jnp.asarray(random_scores(), jnp.float32).astype(dtype)
    weights = tempered_softmax(scores, temperature)
    assert weights.dtype == dtype
    expected = exact_softmax(np.asarray(scores, np.float64), temperature)
    tolerance = 1e-6 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(weights, np.float64), expected, rtol=tolerance, atol=1e-7)


def test_bfloat16_scores_that_round_to_the_same_number_are_a_tie():
    scores = jnp.array([1.0, 1.001, 0.5], jnp.bfloat16)
    np.testing.assert_array_equal(tempered_softmax(scores, 0), [0.5, 0.5, 0])
    np.testing.assert_array_equal(tempered_softmax(jnp.array([1.0, 1.001, 0.5]), 0), [0, 1, 0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=6, max_size=6), st.lists(st.booleans(), min_size=6))
def test_temperature_zero_is_the_argmax_with_ties_shared(row, allowed):
    scores, keys = np.array(row, np.float32), np.array(allowed[:6])
    best = [i for i in range(6) if keys[i] and row[i] == max(np.array(row)[keys])]
    expected = np.zeros(6, np.float32)
    expected[best] = np.float32(1) / np.float32(max(len(best), 1))
    np.testing.assert_array_equal(tempered_softmax(scores, 0, where=keys), expected)


def test_halving_temperatures_converge_to_zero():
    scores = np.round(random_scores(scale=2))  # integers: gaps are at least 1, and ties are real
    limit = exact_softmax(scores, 0)
    with jax.enable_x64(True):
        for k in range(12):
            weights = np.asarray(tempered_softmax(jnp.asarray(scores), 2.0**-k))
            bound = scores.shape[-1] * np.exp(-(2.0**k))
            assert np.abs(weights - limit).max() <= bound
        np.testing.assert_array_equal(weights, limit)
        np.testing.assert_array_equal(tempered_softmax(jnp.asarray(scores), 0.0), limit)


@pytest.mark.parametrize("masked", [100.0, jnp.inf, jnp.nan, -jnp.inf])
@pytest.mark.parametrize("temperature", [0, 1e-30, 1.0])
def test_a_masked_key_is_removed_before_the_maximum(masked, temperature):
    scores = jnp.array([1.0, masked, 0.25])
    keys = jnp.array([True, False, True])
    weights = tempered_softmax(scores, temperature, where=keys)
    expected = exact_softmax(np.array([1.0, 0.25]), temperature)
    assert weights[1] == 0
    np.testing.assert_allclose(np.asarray(weights)[[0, 2]], expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_key_has_weight_zero_and_finite_gradients(temperature):
    scores = jnp.array([[1.0, 2.0], [3.0, 4.0], [-jnp.inf, -jnp.inf]])
    keys = jnp.array([[False, False], [True, True], [True, True]])

    def first(s, t):
        return tempered_softmax(s, t, where=keys)[:, 0].sum()

    weights = tempered_softmax(scores, temperature, where=keys)
    np.testing.assert_array_equal(weights[jnp.array([0, 2])], 0)
    assert weights[1].sum() == pytest.approx(1)
    for gradient in jax.grad(first, (0, 1))(scores, temperature):
        assert np.isfinite(gradient).all()


def test_infinite_scores_and_temperatures():
    np.testing.assert_array_equal(
        tempered_softmax(jnp.array([jnp.inf, 1.0, jnp.inf]), 1.0), [0.5, 0, 0.5]
    )
    np.testing.assert_array_equal(tempered_softmax(jnp.array([5.0, 1.0]), jnp.inf), [0.5, 0.5])
    assert np.isnan(tempered_softmax(jnp.array([jnp.nan, 1.0]), 0.0)).all()


def test_gradients_at_infinite_scores_are_those_of_the_ties_they_make():
    scores = jnp.array([jnp.inf, 1.0, jnp.inf])
    for temperature, slope in ((1.0, 0.25), (0.5, 0.5), (0.0, 0.0)):
        by_scores, by_temperature = jax.grad(lambda s, t: tempered_softmax(s, t)[0], (0, 1))(
            scores, temperature
        )
        np.testing.assert_allclose(by_scores, [slope, 0, -slope], rtol=1e-6)
        assert by_temperature == 0


def test_second_derivatives_at_a_tie():
    with jax.enable_x64(True):
        scores = jnp.array([1.0, 1.0, 0.3])
        check_grads(tempered_softmax, (scores, jnp.asarray(0.7)), order=2)


def test_scores_whose_difference_is_subnormal_are_no_tie():
    scores = jnp.array([1.3e-38, 1.2e-38, 1.3e-38])
    np.testing.assert_array_equal(jax.jit(tempered_softmax)(scores, 0.0), [0.5, 0, 0.5])


def test_gradients_match_finite_differences():
    scores = random_scores((2, 5), scale=1)
    keys = np.array([[True, True, False, True, True], [False] * 5])
    with jax.enable_x64(True):
        for where in (None, keys):
            check_grads(
                lambda s, t, where=where: tempered_softmax(s, t, where=where),
                (jnp.asarray(scores), jnp.asarray(0.7)),
                order=2,
                modes=["fwd", "rev"],
            )


def test_the_gradient_of_a_temperature_for_each_key():
    tau = np.array([0.5, 1.0, 2.0, 0.3, 0.8])
    with jax.enable_x64(True):
        scores = jnp.asarray(random_scores((2, 5), scale=1))
        difference = scores - scores.max(-1, keepdims=True)
        np.testing.assert_allclose(
            tempered_softmax(scores, jnp.asarray(tau)), jax.nn.softmax(difference / tau), rtol=1e-14
        )
        check_grads(tempered_softmax, (scores, jnp.asarray(tau)), order=1)


@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64])
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-25, 1e-12, 1e-3, 1.0, 1e30])
def test_gradients_are_finite_at_every_temperature_and_zero_at_zero(dtype, temperature):
    with jax.enable_x64(dtype == jnp.float64):
        scores = jnp.asarray(random_scores((3, 6))).astype(dtype)
        scores = scores.at[0, 1].set(scores[0].max())  # a tie
        scores = scores.at[1].set(0.0)
        probe = jnp.asarray(random_scores((3, 6), seed=1)).astype(dtype)
        tau = jnp.asarray(temperature, jnp.float64 if dtype == jnp.float64 else jnp.float32)

        def loss(s, t):
            return jnp.sum(tempered_softmax(s, t) * probe)

        by_scores, by_temperature = jax.grad(loss, (0, 1))(scores, tau)
        assert np.isfinite(by_scores).all()
        assert np.isfinite(by_temperature)
        if temperature == 0:
            np.testing.assert_array_equal(by_scores, 0)
            assert by_temperature == 0


def test_the_temperature_is_traced_once_for_all_values():
    traces = []

    @jax.jit
    def weights(scores, temperature):
        traces.append(None)
        return tempered_softmax(scores, temperature)

    scores = jnp.asarray(random_scores(), jnp.float32)
    for temperature in (0.0, 1e-30, 0.5, 1.0, 7.0):
        np.testing.assert_allclose(
            weights(scores, temperature), tempered_softmax(scores, temperature), rtol=1e-6
        )
    assert len(traces) == 1


def test_vmap_over_temperatures():
    scores = jnp.asarray(random_scores(), jnp.float32)
    temperatures = jnp.array([0.0, 0.1, 1.0])
    together = jax.vmap(lambda t: tempered_softmax(scores, t))(temperatures)
    for weights, temperature in zip(together, temperatures, strict=True):
        np.testing.assert_allclose(weights, tempered_softmax(scores, temperature), rtol=1e-6)
    gradients = jax.vmap(jax.grad(lambda t: tempered_softmax(scores, t)[..., 0].sum()))(
        temperatures
    )
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("shape", [(), (3, 1, 1), (2, 1, 1, 1), (2, 3, 5, 1), (2, 3, 5, 7)])
def test_a_temperature_broadcasts_to_the_scores(shape):
    scores = random_scores()
    tau = np.random.default_rng(1).integers(0, 3, shape if shape[-1:] != (7,) else (2, 3, 5, 1))
    tau = np.broadcast_to(tau, shape) / 2
    weights = tempered_softmax(jnp.asarray(scores, jnp.float32), jnp.asarray(tau, jnp.float32))
    full = np.broadcast_to(tau, (*scores.shape[:-1], 1) if shape[-1:] != (7,) else scores.shape)
    for index in np.ndindex(scores.shape[:-1]):
        expected = exact_softmax(scores[index].astype(np.float32), full[index][0])
        np.testing.assert_allclose(weights[index], expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_axis_may_hold_the_keys(axis):
    scores = random_scores((4, 5, 6)).astype(np.float32)
    expected = np.moveaxis(exact_softmax(np.moveaxis(scores, axis, -1), 0.5), -1, axis)
    np.testing.assert_allclose(
        tempered_softmax(jnp.asarray(scores), 0.5, axis=axis), expected, atol=1e-6
    )


@pytest.mark.parametrize("temperature", [-1, -1e-30, float("nan"), np.array([[1.0], [-2.0]])])
def test_a_bad_temperature_is_an_error_where_it_is_known(temperature):
    with pytest.raises(ArgumentError, match=r"must be 0 or more, and not NaN; this one is (-|nan)"):
        tempered_softmax(jnp.zeros((2, 3)), temperature)
    assert issubclass(ArgumentError, SaturationError)
    assert issubclass(ArgumentError, ValueError)


@pytest.mark.parametrize("temperature", [-1.0, -1e-30, float("nan")])
def test_a_bad_temperature_gives_nan_where_it_is_traced(temperature):
    for scores in (jnp.zeros((2, 3)), jnp.array([[1.0, 2.0, 3.0]])):
        assert np.isnan(jax.jit(tempered_softmax)(scores, temperature)).all()


def test_shapes_that_do_not_broadcast_are_an_error():
    with pytest.raises(ArgumentError, match=r"`temperature` must broadcast .*\(2, 3\).*\(4,\)"):
        tempered_softmax(jnp.zeros((2, 3)), jnp.ones(4))
    with pytest.raises(ArgumentError, match=r"`where` must broadcast .*\(2, 3\).*\(1, 2, 3\)"):
        tempered_softmax(jnp.zeros((2, 3)), 1.0, where=jnp.ones((1, 2, 3), bool))


@pytest.mark.parametrize("mask", [np.int32(1), np.float32(-1e9)])
def test_a_mask_of_numbers_is_an_error(mask):
    """Of one number here, since the types that tests check already refuse arrays of them."""
    with pytest.raises(ArgumentError, match=r"`where` must be boolean.*its dtype is (int|float)32"):
        tempered_softmax(jnp.zeros((2, 3)), 1.0, where=mask)


def test_attention_is_the_sum_over_keys():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, n, 3, 4)) for n in (5, 7, 7))
    bias, mask = rng.normal(size=(1, 3, 5, 7)), rng.random((2, 1, 1, 7)) > 0.3
    with jax.enable_x64(True):
        output, weights = attention(
            *(jnp.asarray(x) for x in (query, key, value)),
            bias=jnp.asarray(bias), mask=jnp.asarray(mask), temperature=0.5,
        )  # fmt: skip
    for b, h in np.ndindex(2, 3):
        scores = query[b, :, h] @ key[b, :, h].T + bias[0, h]
        expected = exact_softmax(scores, 0.5, mask[b, 0])
        np.testing.assert_allclose(weights[b, h], expected, atol=1e-14)
        np.testing.assert_allclose(output[b, :, h], expected @ value[b, :, h], atol=1e-13)


def test_positions_attended_at_zero_under_a_causal_mask():
    """A uniform head attends to (T+1)/2 keys on average; one whose scores all differ, to 1."""
    length = 83
    causal = jnp.tril(jnp.ones((length, length), bool))
    uniform = tempered_softmax(jnp.zeros((length, length)), 0, where=causal)
    assert (uniform > 0).sum(-1).mean() == (length + 1) / 2
    np.testing.assert_array_equal(jnp.where(causal, 0, uniform), 0)
    negative = -1 - jax.random.uniform(jax.random.key(0), (length, length))
    np.testing.assert_array_equal((tempered_softmax(negative, 0, where=causal) > 0).sum(-1), 1)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("temperature", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_the_slope_in_the_temperature_is_exact_in_every_dtype(dtype, temperature):
    """Only the slope in float16 scores is bounded; that in τ has float32's room."""
    scores = np.array([1, 0.9995, 0.5, 0]).astype(dtype)
    costs = np.array([1.0, -1.0, 0.5, 2.0], np.float32)

    def cost(tau):
        return (tempered_softmax(jnp.asarray(scores), tau).astype(jnp.float32) * costs).sum()

    def exact(tau):
        weights = [mpmath.exp((mpmath.mpf(float(s)) - 1) / tau) for s in scores]
        total = sum(w * mpmath.mpf(float(c)) for w, c in zip(weights, costs, strict=True))
        return total / sum(weights)

    with mpmath.workdps(40):
        expected = float(mpmath.diff(exact, mpmath.mpf(float(np.float32(temperature)))))
    found = float(jax.grad(cost)(jnp.float32(temperature)))
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-30)


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_the_gradient_at_a_dominating_key_keeps_its_digits(temperature):
    """It is minus the sum of the others', of which softmax(s/τ) leaves 0."""
    scores = np.array([3.0, 1.2, 1.1, 3.0 - 20 * temperature], np.float32)
    costs = np.array([1.0, -1.0, 0.5, 0.25], np.float32)
    found = np.asarray(
        jax.grad(lambda s: (tempered_softmax(s, temperature) * costs).sum())(jnp.asarray(scores)),
        np.float64,
    )
    wide = scores.astype(np.float64)
    weights = exact_softmax(wide, temperature)
    expected = weights * (costs - weights @ costs) / temperature
    expected[0] = -expected[1:].sum()  # which does not cancel
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-37)  # float32's least


@pytest.mark.usefixtures("unchecked")
def test_complex_scores_are_refused():
    with pytest.raises(ArgumentError, match=r"Scores must be real, .* these are complex64"):
        tempered_softmax(jnp.asarray([1 + 2j, 0]), 1.0)
