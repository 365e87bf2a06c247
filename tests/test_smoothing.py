"""Token similarity and the forecast of it, against brute force by NumPy and closed forms."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import attentions_of, case, jitted, observe_table, valid_rows
from t5_reference import reference_t5

from saturation.measures.smoothing.forecast import attention_block, block_eigenvalues, forecast
from saturation.measures.smoothing.measure import (
    AGREEMENT,
    CHANGES,
    JOINT,
    OF_HEADS,
    PANEL,
    SMOOTHING,
    STATIONARY,
    head_kernels,
)
from saturation.measures.smoothing.operator import freeze
from saturation.measures.smoothing.similarity import similarity
from saturation.models.config import NORM_BEFORE
from saturation.runs.settings import ActivationSettings
from saturation.text.sequences import TokenBatch


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def panel_by_definition(x):
    """The panel of one sequence, a matrix of valid tokens, pair by pair."""
    n = len(x)

    def cosines(rows):
        return np.array([
            rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j]))
            for i in range(n)
            for j in range(i + 1, n)
        ])  # fmt: skip

    low = np.ones((n, n)) @ x / n
    sigma = np.linalg.svd(x, compute_uv=False)
    share = sigma / sigma.sum()
    share = share[share > 0]
    return {
        "token_cosine": cosines(x).mean(),
        "token_cosine_abs": np.abs(cosines(x)).mean(),
        "token_cosine_centred": cosines(x - low).mean(),
        "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "stable_rank": (x**2).sum() / sigma[0] ** 2,
        "hfc_lfc": np.linalg.norm(x - low) / np.linalg.norm(low),
        "rank_one_distance": np.sqrt((sigma[1:] ** 2).sum() / (sigma**2).sum()),
        "token_rms": np.mean([np.sqrt(np.mean(row**2)) for row in x]),
    }


def panel_of(state, valid=None):
    """The panel of one matrix of tokens, as floats."""
    state = jnp.asarray(state)[None]
    valid = jnp.ones(state.shape[:2], bool) if valid is None else jnp.asarray(valid)[None]
    return {name: float(values[0]) for name, values in similarity(state, valid).items()}


@pytest.mark.parametrize(("n", "d"), [(2, 5), (12, 5), (5, 12)])
def test_the_panel_agrees_with_its_definition_whatever_the_padding(n, d):
    generator = np.random.default_rng(n)
    x = generator.standard_normal((n, d)) * generator.uniform(0.1, 10, (n, 1))
    expected = panel_by_definition(x)
    assert set(expected) == set(PANEL)
    padded = np.full((n + 3, d), 7.0)
    rows = np.sort(generator.permutation(n + 3)[:n])
    padded[rows] = x
    for found in (panel_of(x), panel_of(padded, np.isin(np.arange(n + 3), rows))):
        for name, wanted in expected.items():
            np.testing.assert_allclose(found[name], wanted, rtol=1e-9, atol=1e-9, err_msg=name)


def test_equal_tokens():
    row = np.random.default_rng(0).standard_normal(16)
    found = panel_of(np.tile(row, (12, 1)).astype(np.float32))
    assert found["token_cosine"] == pytest.approx(1, abs=1e-12)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-5)
    assert found["stable_rank"] == pytest.approx(1, abs=1e-12)
    assert found["rank_one_distance"] < 1e-7
    assert found["hfc_lfc"] == 0
    assert found["token_cosine_centred"] == 0, "what is left is rounding, and none of it is counted"


def test_a_collapse_that_the_cosine_alone_misreads():
    """Rows ±v: of rank one as equal rows are, and as far from equal as rows can be."""
    row, signs = np.random.default_rng(0).standard_normal(16), np.tile([1, -1], 6)
    found = panel_of(signs[:, None] * row)
    assert found["token_cosine"] == pytest.approx(-1 / 11)
    assert found["token_cosine_abs"] == pytest.approx(1)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-5)
    assert found["rank_one_distance"] < 1e-7
    assert found["hfc_lfc"] > 1e10


def test_orthogonal_tokens_of_one_length():
    found = panel_of(3 * np.eye(6, 9))
    assert found["token_cosine"] == pytest.approx(0, abs=1e-12)
    assert found["effective_rank"] == pytest.approx(6)
    assert found["stable_rank"] == pytest.approx(6)
    assert found["hfc_lfc"] == pytest.approx(np.sqrt(5))
    assert found["token_rms"] == pytest.approx(1)


def test_without_float64_singular_values_are_taken_themselves():
    x = np.random.default_rng(3).standard_normal((6, 4)) @ np.diag([1, 1e-2, 1e-4, 1e-5])
    expected = panel_by_definition(x)
    with jax.enable_x64(False):
        found = panel_of(x.astype(np.float32))
    for name in ("effective_rank", "rank_one_distance", "stable_rank"):
        np.testing.assert_allclose(found[name], expected[name], rtol=3e-6)


def stochastic(n, seed=0, causal=False):
    scores = 2 * np.random.default_rng(seed).standard_normal((n, n))
    power = np.exp(scores) * (np.tri(n) if causal else 1)
    return power / power.sum(-1, keepdims=True)


def attention_eigenvalues(weights, valid, causal):
    """The eigenvalues of self-attention between valid tokens, and which of them count."""
    block = np.asarray(attention_block(weights, valid, causal))
    return block_eigenvalues(block, np.asarray(valid), causal)


def test_eigenvalues_of_attention_leave_padding_out():
    weights = stochastic(6)
    padded = np.full((9, 9), 1 / 9)
    rows = [0, 1, 3, 4, 6, 7]
    padded[np.ix_(rows, range(9))] = 0
    padded[np.ix_(rows, rows)] = weights
    valid = np.isin(np.arange(9), rows)
    found, counted = attention_eigenvalues(
        jnp.asarray(padded)[None, None], jnp.asarray(valid)[None], False
    )
    kept = np.asarray(found)[np.asarray(counted)]
    expected = np.linalg.eigvals(weights)
    np.testing.assert_allclose(np.sort_complex(kept), np.sort_complex(expected), atol=1e-12)


def test_eigenvalues_of_causal_attention_are_its_diagonal():
    weights = stochastic(7, causal=True)
    found, counted = attention_eigenvalues(
        jnp.asarray(weights)[None, None], jnp.ones((1, 7), bool), True
    )
    assert counted.all()
    expected = np.linalg.eigvals(weights)
    np.testing.assert_allclose(
        np.sort(np.asarray(found[0, 0]).real), np.sort(expected.real), atol=1e-12
    )


def forecast_by_definition(of_heads, of_attention, rms, null_space=True):
    """One sequence and head, pair by pair; the eigenvalue nearest 1 is that of equal tokens."""
    of_heads = [*of_heads, 0] if null_space else of_heads
    perron = int(np.argmin(np.abs(of_attention - 1)))
    pairs = [
        (abs(1 + h / rms * (1 if i == perron else a)), h / rms, 1 if i == perron else a, i)
        for h in of_heads
        for i, a in enumerate(of_attention)
    ]
    shared = max(growth for growth, _, _, i in pairs if i == perron)
    apart = max(growth for growth, _, _, i in pairs if i != perron)
    # Where both kinds grow alike, as in a null space, what tokens share stands for the pair.
    _, h, a, _ = max(pairs, key=lambda pair: (pair[0], pair[3] == perron))
    others = np.delete(of_attention, perron)
    return {
        "attention_min": of_attention.real.min(),
        "attention_second": np.abs(others).max(),
        "growth_shared": shared,
        "growth_apart": apart,
        "apart_over_shared": np.log(apart / shared),
        "dominance_rate": abs(np.log(apart / shared)),
        "smooths": float(np.log(apart / shared) < -1e-3),
        "sharpens": float(np.log(apart / shared) > 1e-3),
        "neither": float(abs(np.log(apart / shared)) <= 1e-3),
        "dominating_h_real": np.real(h),
        "dominating_h_imaginary": abs(np.imag(h)),
        "dominating_a_real": np.real(a),
        "dominating_a_imaginary": abs(np.imag(a)),
    }


@pytest.mark.parametrize(
    ("of_heads", "null_space", "causal", "regime"),
    [
        ((0.5, 1.0), True, False, "smooths"),
        ((-0.5, -0.9), True, False, "sharpens"),
        ((-0.5, -0.9), True, True, "neither"),  # nothing outgrows the null space
        ((-0.5, -0.6), False, True, "sharpens"),
        ((0.3 + 2j, 0.3 - 2j), True, False, "smooths"),
    ],
)
def test_the_pair_that_dominates(of_heads, null_space, causal, regime):
    of_attention, rms = np.linalg.eigvals(stochastic(6, causal=causal)), 0.7
    found = forecast(
        jnp.asarray(of_heads, complex)[None],
        jnp.asarray(of_attention + 0j)[None, None],
        jnp.ones((1, 1, 6), bool),
        jnp.asarray([rms]),
        null_space,
    )
    expected = forecast_by_definition(of_heads, of_attention, rms, null_space)
    assert expected[regime] == 1
    assert set(found) == set(expected) == set(OF_HEADS)
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name][0, 0], wanted, atol=1e-12, err_msg=name)


def mean_and_error(values):
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("form", ["v1_0", "umt5"])
def test_every_value_agrees_with_brute_force(form):
    config, flat, params, tokens = case(form, dtype=np.float64, encoder_length=9, decoder_length=7)
    tokens[0][2, 1:] = 0  # one token: no pair
    _, taps = reference_t5(config, flat, *tokens)
    found = observe_table(SMOOTHING, config, params, tokens)
    rows = dict(zip(("encoder", "decoder"), valid_rows(*tokens), strict=True))
    for stack, valid in rows.items():
        kept = [b for b in range(len(valid)) if valid[b].sum() > 1]
        order = [f"{stack}/{s}" for s in ("embedding", "layers_0", "final")]
        for scope in order:
            panels = [panel_by_definition(taps[scope][b][valid[b]]) for b in kept]
            check(found[scope], panels, PANEL)
            assert found[scope]["sequences"] == len(kept)
            assert found[scope]["skipped"] == (valid.sum(1) == 1).sum()
        name = "attention" if stack == "encoder" else "self_attention"
        path, before = f"{order[1]}/{name}", taps[order[0]]
        said = forecasts(config, flat, taps, path, before, valid, kept)
        for head in range(config.num_heads):
            check(found[f"{path}/head_{head}"], [one[head] for one in said], OF_HEADS)
        layers = [{k: np.mean([h[k] for h in one]) for k in OF_HEADS} for one in said]
        check(found[order[1]], layers, OF_HEADS)
        streams = (before, before + taps[f"{path}/output"], taps[order[1]])
        facts = [changes(*(stream[b][valid[b]] for stream in streams)) for b in kept]
        check(found[order[1]], facts, (*CHANGES, *AGREEMENT))
        for count in ("decided", "compared", "joint_sequences"):
            assert found[order[1]][count] == len(kept)
        layers_needed = found[order[1]]["layers_to_dominate"]
        assert layers_needed == pytest.approx(1 / found[order[1]]["dominance_rate"])
        assert set(JOINT) <= set(found[order[1]])
        assert found[order[1]]["joint_growth"] > 0
        after = [taps[order[1]][b][valid[b]] for b in kept]
        if stack == "decoder":
            check(
                found[order[1]], [{STATIONARY[0]: apart_from_first(x)} for x in after], STATIONARY
            )
    scopes = {scope for scope, metrics in found.items() if STATIONARY[0] in metrics}
    assert scopes == {"decoder/layers_0"}, "only causal self-attention has a stationary token"


def check(found, values, names):
    for name in names:
        mean, error = mean_and_error([one[name] for one in values])
        np.testing.assert_allclose(found[name], mean, rtol=1e-6, atol=1e-7, err_msg=name)
        error_found = found[f"{name}_stderr"]
        np.testing.assert_allclose(error_found, error, rtol=1e-5, atol=1e-7, err_msg=name)


def forecasts(config, flat, taps, path, before, valid, kept):
    layer, _, name = path.rpartition("/")
    scale = flat[f"{layer}/{NORM_BEFORE[name]}/scale"]
    value, out = flat[f"{path}/value/kernel"], flat[f"{path}/out/kernel"]
    found = []
    for b in kept:
        rms = panel_by_definition(before[b][valid[b]])["token_rms"]
        heads = []
        for head in range(config.num_heads):
            part = slice(head * config.head_dim, (head + 1) * config.head_dim)
            spectrum = np.linalg.eigvals(scale[:, None] * (value[:, part] @ out[part]))
            spectrum = spectrum[np.argsort(np.abs(spectrum))[-config.head_dim :]]
            weights = taps[f"{path}/weights"][b, head][np.ix_(valid[b], valid[b])]
            heads.append(forecast_by_definition(spectrum, np.linalg.eigvals(weights), rms))
        found.append(heads)
    return found


def changes(before, attended, end):
    """Of a layer that is the last: its forecast is what its self-attention did."""
    first, second, last = (panel_by_definition(x)["hfc_lfc"] for x in (before, attended, end))
    measured, onward = np.log(second / first), np.log(last / first)
    return {
        "forecast_change": measured,
        "measured_change": measured,
        "onward_change": onward,
        "forecast_agrees": 1.0,
        "onward_agrees": float(measured * onward > 0),
    }


def apart_from_first(x):
    return np.linalg.norm(x - x[0]) / (np.sqrt(len(x)) * np.linalg.norm(x[0]))


def test_a_rate_of_0_needs_infinitely_many_layers():
    zeros = {name: np.zeros(2) for name in SMOOTHING.statistics}
    found = SMOOTHING.metrics(
        zeros | {"forecasts": np.array([2.0, 2.0]), "dominance_rate_sum": np.array([0.0, 1.0])}
    )
    assert found["layers_to_dominate"].tolist() == [np.inf, 2.0]
    assert found["dominance_rate"].tolist() == [0.0, 0.5]


def test_the_forecast_of_two_layers_left_is_two_steps_of_the_first_ones_operator():
    config, _, params, tokens = case("v1_0", dtype=np.float64)
    config = dataclasses.replace(config, num_decoder_layers=2)
    params["decoder"]["layers_1"] = params["decoder"]["layers_0"]
    first = attentions_of((SMOOTHING,), config, params, tokens)["decoder/layers_0/self_attention"]
    weights, state, valid = first.weights.at_temperature_one, first.state, first.valid
    operator, start = freeze(weights, *head_kernels(first), state, valid, config.layer_norm_epsilon)
    expected = [
        np.log(
            panel_by_definition(np.asarray(operator(operator(start)))[b][valid[b]])["hfc_lfc"]
            / panel_by_definition(np.asarray(state)[b][valid[b]])["hfc_lfc"]
        )
        / 2
        for b in np.flatnonzero(valid.sum(axis=1) > 1)
    ]
    found = observe_table(SMOOTHING, config, params, tokens)["decoder/layers_0"]
    np.testing.assert_allclose(found["forecast_change"], np.mean(expected), rtol=1e-9)
    assert found["measured_change"] != pytest.approx(found["forecast_change"], rel=1e-3)


def test_sequences_are_iterated_in_their_order_until_there_are_enough():
    encoder = np.array([[3, 0, 0], [3, 4, 0], [0, 0, 0], [5, 6, 7], [8, 9, 1]], np.int32)
    tokens = TokenBatch(encoder, encoder, "made")
    asked = {
        count: [
            each.tolist() for *_, each in ActivationSettings(tokens, batch_size=2).batches(1, count)
        ]
        for count in (0, 2, 9)
    }
    assert asked[0] == [[False, False]] * 3
    assert asked[2] == [[False, True], [False, True], [False, False]]
    assert asked[9] == [[False, True], [False, True], [True, False]]


def test_no_solver_is_called_on_several_matrices_at_once():
    """See `saturation.models.linalg`: it would hang now and then, where threads are few."""
    config, _, params, tokens = case()
    traced = jitted(SMOOTHING, config).trace(params, *tokens)
    lowered = traced.lower(lowering_platforms=("cpu",)).as_text()
    calls = [line for line in lowered.splitlines() if "@lapack_" in line]
    targets = {re.search(r"@lapack_(\w+)", line)[1] for line in calls}
    assert targets == {"dsyevd_ffi"}
    for line in calls:
        operand = re.search(r": \(tensor<([\dx]+)xf64>", line)
        assert operand is not None, line
        assert operand[1].count("x") == 1, line


def test_broken_weights_are_reported_and_not_averaged_away():
    config, _, params, tokens = case()
    params["encoder"]["layers_0"]["attention"]["value"]["kernel"][0, 0] = np.nan
    found = observe_table(SMOOTHING, config, params, tokens)
    assert np.isfinite(found["encoder/embedding"]["token_cosine"])
    for scope, metric in (
        ("encoder/layers_0", "token_cosine"),
        ("encoder/layers_0", "measured_change"),
        ("encoder/layers_0", "forecast_agrees"),
        ("encoder/layers_0", "joint_growth"),
        ("encoder/layers_0", "joint_converged"),
        ("encoder/layers_0/attention/head_0", "sharpens"),
        ("decoder/final", "effective_rank"),
    ):
        assert np.isnan(found[scope][metric]), (scope, metric)
