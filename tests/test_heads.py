"""Head roles against brute force in float64 numpy and closed forms."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import (
    FORMS,
    attentions_of,
    case,
    completed,
    jitted,
    observe_table,
    valid_rows,
)
from t5_reference import nested, random_parameters, reference_t5

from saturation.attention import tempered_softmax
from saturation.measures.heads.measure import HEADS
from saturation.measures.means import mean_and_error, sum_names, sums_over_sequences
from saturation.models import T5


def by_brute_force(config, flat, encoder, decoder):
    """{head: {metric: value}} from the reference's weights, one query at a time."""
    _, taps = reference_t5(config, flat, encoder, decoder)
    encoder_valid, decoder_valid = valid_rows(encoder, decoder)
    found = {}
    for path in config.attention_names():
        queries = encoder_valid if path.startswith("encoder") else decoder_valid
        for head in range(config.num_heads):
            rows = [
                one_query(path, taps[f"{path}/weights"][b, head, q], q, encoder_valid[b])
                for b, q in zip(*np.nonzero(queries), strict=True)
            ]
            columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
            n = columns.pop("n")
            means = {name: column.mean() for name, column in columns.items()}
            counts = {"positions_mean": n.mean(), "positions_std": n.std(), "tokens": len(n)}
            counts["split_probability"] = (n > 1).mean()
            found[f"{path}/head_{head}"] = means | counts
    return found


def one_query(path, weights, query, encoder_valid):
    attended = np.nonzero(weights >= weights.max() * (1 - 1e-9))[0]
    allowed = query + 1 if path.endswith("/self_attention") else encoder_valid.sum()
    positive = weights[weights > 0]
    row = {
        "n": len(attended),
        "positions_fraction": len(attended) / allowed,
        "entropy": -(positive * np.log(positive)).sum(),
    }
    if not path.endswith("/encoder_decoder_attention"):
        row["distance_mean"] = (attended - query).mean()
        row["distance_abs"] = np.abs(attended - query).mean()
    return row


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("positions", [True, False])
def test_heads_agree_with_brute_force(form, positions):
    config, flat, params, tokens = case(form, dtype=np.float64, positions=positions)
    with jax.enable_x64(True):
        found = observe_table(HEADS, config, params, tokens)
    expected = by_brute_force(config, flat, *tokens)
    assert set(found) == set(expected)
    split = [metrics["split_probability"] for metrics in expected.values()]
    assert positions or max(split) > 0.5  # tokens that repeat do tie
    for head, metrics in expected.items():
        of_limit = {"positions_mean_limit"}
        assert set(found[head]) == set(metrics) | {"undecided", "ties_reliable"} | of_limit
        assert found[head]["undecided"] == 0
        assert found[head]["ties_reliable"] == 1
        for name, value in metrics.items():
            np.testing.assert_allclose(
                found[head][name], value, 1e-9, 1e-9, err_msg=f"{head} {name}"
            )


@pytest.mark.parametrize(("heads", "length"), [(1, 5), (1, 7), (1, 12), (1, 33), (2, 17), (4, 9)])
def test_planted_ties_are_counted_though_a_cpu_breaks_them(heads, length):
    """Repeated tokens and no positions: a query attends to every copy of one token, or none."""
    config = dataclasses.replace(FORMS["v1_0"], num_heads=heads)
    flat = random_parameters(config)
    for stack in ("encoder", "decoder"):
        flat[f"{stack}/relpos_bias/rel_embedding"] *= 0
    params = nested({name: np.asarray(array, np.float64) for name, array in flat.items()})
    rng = np.random.default_rng(length)
    tokens = tuple(rng.integers(1, 4, (2, length)).astype(np.int32) for _ in range(2))
    paths = ("encoder/layers_0/attention", "decoder/layers_0/encoder_decoder_attention")

    @jax.jit
    def observed(params):
        made = attentions_of((HEADS,), config, params, tokens)
        limits = [made[path].limit_weights for path in paths]
        return [made[path].attended_keys for path in paths], limits

    with jax.enable_x64(True):
        as_is, in_limit = observed(params)
    copies = tokens[0][:, None, :] == tokens[0][:, :, None]  # which keys are copies of which
    for keys, limit in zip(as_is, in_limit, strict=True):
        attended, limit_attended = np.asarray(keys.attended), np.asarray(limit.leading) > 0
        for b, h, q in np.ndindex(attended.shape[:3]):
            assert any((attended[b, h, q] == copy).all() for copy in copies[b])
            assert any((limit_attended[b, h, q] == copy).all() for copy in copies[b])
        assert not keys.undecided.any()
        assert limit.exists.all()


def test_in_float32_scores_are_compared_to_the_bit_and_that_is_said():
    config, _, params, tokens = case()
    found = observe_table(HEADS, config, params, tokens)
    assert {metrics["ties_reliable"] for metrics in found.values()} == {0.0}


def test_the_limit_is_counted_where_it_is_asked_for():
    config, _, params, tokens = case(dtype=np.float64)
    with jax.enable_x64(True):
        observe = jitted(HEADS, config, limits=("attention",))
        found = completed(HEADS, observe(params, *tokens))
    for statistics in found.values():
        assert (np.asarray(statistics["limit_queries"]) == 0).all()


def planted(change):
    """A T5 whose decoder reads 0 … 9 unpadded, with some arrays replaced."""
    config = FORMS["v1_0"]
    flat = {name: np.abs(array) for name, array in random_parameters(config).items()}
    change(flat, "decoder/layers_0/self_attention")
    tokens = np.arange(1, 11, dtype=np.int32)[None], np.arange(10, dtype=np.int32)[None]
    params = nested({name: array.astype(np.float32) for name, array in flat.items()})
    return config, params, tokens


def test_a_head_whose_scores_are_all_negative_attends_one_key():
    """Multiplying scores by the mask gives future keys 0, above every score this head has."""

    def negative(flat, path):
        flat[f"{path}/query/kernel"] *= -1
        flat["decoder/relpos_bias/rel_embedding"] *= 0

    config, params, tokens = planted(negative)
    scores = soft(config, params, tokens)["decoder/layers_0/self_attention/scores"]
    assert (np.asarray(scores) < 0).all()
    found = observe_table(HEADS, config, params, tokens)
    for head in range(config.num_heads):
        metrics = found[f"decoder/layers_0/self_attention/head_{head}"]
        assert metrics["positions_mean"] == 1
        assert metrics["positions_std"] == metrics["split_probability"] == 0


def test_a_uniform_head_attends_half_of_the_length_under_a_causal_mask():
    def uniform(flat, path):
        flat[f"{path}/query/kernel"] *= 0
        flat["decoder/relpos_bias/rel_embedding"] *= 0

    config, params, tokens = planted(uniform)
    length = tokens[1].shape[1]
    metrics = observe_table(HEADS, config, params, tokens)["decoder/layers_0/self_attention/head_0"]
    n = np.arange(1, length + 1)
    expected = {
        "positions_mean": (length + 1) / 2,
        "positions_std": n.std(),
        "split_probability": 1 - 1 / length,
        "positions_fraction": 1,
        "distance_mean": -(length - 1) / 4,
        "distance_abs": (length - 1) / 4,
        "entropy": np.log(n).mean(),
        "positions_mean_limit": (length + 1) / 2,
        "undecided": 0,
        "ties_reliable": 0,
        "tokens": length,
    }
    assert metrics == pytest.approx(expected, rel=1e-6)


def soft(config, params, tokens, temperature=1.0):
    @jax.jit
    def taps(params, temperature):
        _, found = T5(config).apply(
            {"params": params}, *tokens, temperature=temperature, attention_weights=True
        )
        return found

    return taps(params, temperature)


def test_scores_give_the_weights():
    config, _, params, tokens = case("umt5")
    taps = soft(config, params, tokens, 0.5)
    for path in config.attention_names():
        weights = tempered_softmax(taps[f"{path}/scores"], 0.5)
        np.testing.assert_allclose(weights, taps[f"{path}/weights"], rtol=1e-5)


def test_saturated_weights_are_of_the_scores_and_not_of_the_rounded_weights():
    """Two scores 1e-8 apart have one float32 weight, and yet they are no tie."""

    def nearly_even(flat, path):
        flat[f"{path}/query/kernel"] *= 0
        bias = flat["decoder/relpos_bias/rel_embedding"]
        bias *= 0
        bias[:, 0] = 1e-9

    metrics = observe_table(HEADS, *planted(nearly_even))["decoder/layers_0/self_attention/head_0"]
    assert metrics["positions_mean"] == 1
    assert metrics["distance_abs"] == 0
    assert metrics["entropy"] == pytest.approx(np.log(np.arange(1, 11)).mean(), rel=1e-6)


def test_broken_parameters_give_nan_and_no_counts():
    config, _, params, tokens = case()
    params["encoder"]["layers_0"]["attention"]["query"]["kernel"][0, 0] = np.nan
    metrics = observe_table(HEADS, config, params, tokens)["encoder/layers_0/attention/head_0"]
    assert np.isnan(metrics["positions_mean"])
    assert np.isnan(metrics["split_probability"])
    assert np.isnan(metrics["entropy"])


def test_a_mean_and_its_error_over_sequences():
    """Against the ratio estimator written down directly, and the plain error of equal sequences."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 7, 5)) + 3
    lengths = np.array([5, 4, 3, 5, 2, 1, 0])
    valid = np.arange(5) < lengths[:, None]
    with jax.enable_x64(True):
        sums = jax.device_get(sums_over_sequences("x", jnp.asarray(values), jnp.asarray(valid)))
    found = mean_and_error("x", sums)
    for group in range(2):
        s = np.where(valid, values[group], 0).sum(1)[:6]
        n = lengths[:6]
        ratio = s.sum() / n.sum()
        variance = 6 / 5 * ((s - ratio * n) ** 2).sum() / n.sum() ** 2
        assert found["x"][group] == pytest.approx(ratio, rel=1e-12)
        assert found["x_stderr"][group] == pytest.approx(np.sqrt(variance), rel=1e-9)

    with jax.enable_x64(True):
        whole = jax.device_get(
            sums_over_sequences("x", jnp.asarray(values[:1]), jnp.ones((7, 5), bool))
        )
    plain = values[0].mean(1).std(ddof=1) / np.sqrt(7)
    assert mean_and_error("x", whole)["x_stderr"][0] == pytest.approx(plain, rel=1e-9)


def test_a_mean_of_nothing_is_left_out_and_of_one_sequence_has_no_error():
    nothing = {name: np.zeros(2) for name in sum_names("x")}
    assert mean_and_error("x", nothing) == {}
    one = {name: np.array([0.0, 1.0]) for name in nothing}
    found = mean_and_error("x", one)
    np.testing.assert_array_equal(found["x"], [np.nan, 1.0])
    assert np.isnan(found["x_stderr"]).all()
