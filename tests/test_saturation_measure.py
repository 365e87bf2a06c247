"""Saturation of a network against brute force in float64 numpy and the golden ×1000 states."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import (
    FORMS,
    QUICK,
    asked_of,
    case,
    completed,
    jitted,
    observe_table,
    outputs_of,
    table,
    valid_rows,
)
from t5_reference import nested, read_hugging_face, reference_t5

from saturation.errors import MeasureError
from saturation.measures.means import cosine
from saturation.measures.saturation.measure import SATURATION
from saturation.models import T5Config
from saturation.runs.settings import ActivationSettings


def numpy_cosine(a, b):
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def ratio_and_error(values, valid):
    """Mean over tokens and its standard error over sequences, written down directly."""
    s, n = np.where(valid, values, 0).sum(1), valid.sum(1)
    s, n = s[n > 0], n[n > 0]
    ratio = s.sum() / n.sum()
    variance = len(n) / (len(n) - 1) * ((s - ratio * n) ** 2).sum() / n.sum() ** 2
    return ratio, np.sqrt(variance)


@lru_cache
def both(form):
    """The case, and what the measure gives of it in float64."""
    config, flat, params, tokens = case(form, dtype=np.float64)
    with jax.enable_x64(True):
        return config, flat, tokens, observe_table(SATURATION, config, params, tokens)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("metric", "temperature", "c", "rtol"),
    [
        ("cosine_attention_limit", 0.0, 1.0, 1e-8),
        ("cosine_scaled", 1.0, 1000.0, 1e-8),
        ("cosine_parameter_limit", 1.0, 1000.0, 1e-3),  # c = 1000 is this near to the limit
    ],
)
def test_layers_agree_with_brute_force(form, metric, temperature, c, rtol):
    config, flat, tokens, found = both(form)
    scaled = {name: c * array for name, array in flat.items()}
    _, soft = reference_t5(config, flat, *tokens)
    _, limit = reference_t5(config, scaled, *tokens, temperature)
    layers = [f"encoder/layers_{i}" for i in range(config.num_encoder_layers)]
    layers += [f"decoder/layers_{i}" for i in range(config.num_decoder_layers)]
    for scope in [*layers, "encoder/final", "decoder/final"]:
        valid = valid_rows(*tokens)[scope.startswith("decoder")]
        expected, error = ratio_and_error(numpy_cosine(soft[scope], limit[scope]), valid)
        assert found[scope][metric] == pytest.approx(expected, rel=rtol)
        assert found[scope][f"{metric}_stderr"] == pytest.approx(error, rel=100 * rtol)
        assert found[scope]["tokens"] == valid.sum()
        assert found[scope]["excluded_scaled"] == found[scope]["excluded_parameter_limit"] == 0


@pytest.mark.parametrize("form", FORMS)
def test_total_variation_agrees_with_brute_force(form):
    config, flat, tokens, found = both(form)
    _, soft = reference_t5(config, flat, *tokens)
    for path in config.attention_names():
        weights = soft[f"{path}/weights"]
        top = weights >= weights.max(-1, keepdims=True) * (1 - 1e-9)
        variation = np.abs(weights - top / top.sum(-1, keepdims=True)).sum(-1) / 2
        valid = valid_rows(*tokens)[path.startswith("decoder")]
        for head in range(config.num_heads):
            metrics = found[f"{path}/head_{head}"]
            expected, error = ratio_and_error(variation[:, head], valid)
            assert metrics["total_variation"] == pytest.approx(expected, rel=1e-8)
            assert metrics["total_variation_stderr"] == pytest.approx(error, rel=1e-6)
            assert set(metrics) == {"tokens", "total_variation", "total_variation_stderr"}


@lru_cache
def golden(path):
    """(config, float64 parameters, golden arrays, golden cosines) of a fixture."""
    parameters = read_hugging_face(path / "hf" / "step_300" / "model.safetensors")
    arrays = np.load(path / "golden" / "saturated_300.npz")
    cosines = json.loads((path / "golden" / "saturated_300.json").read_text(encoding="utf-8"))
    wide = {name: array.astype(np.float64) for name, array in parameters.items()}
    return T5Config.from_parameters(parameters), nested(wide), arrays, cosines["f64"]


def test_states_at_1000_agree_with_the_golden_ones_in_float64(fixtures):
    config, params, arrays, cosines = golden(fixtures / "v1_0")
    tokens = arrays["encoder_input_tokens"], arrays["decoder_input_tokens"]
    # The golden means are over the targets' tokens, one fewer than the decoder's inputs.
    valid = {"enc": tokens[0] > 0, "dec": arrays["decoder_target_tokens"] > 0}
    with jax.enable_x64(True):

        @jax.jit
        def states(params):
            asked = asked_of(config, *tokens, scale=1000.0, limits=("scaled",))
            found = [s for each in outputs_of((SATURATION,), asked, params) for s in each.states]
            return {s.scope: s.model for s in found}, {s.scope: s.scaled(1000.0) for s in found}

        soft, scaled = jax.device_get(states(params))
    compared = 0
    for stack, name in (("enc", "encoder"), ("dec", "decoder")):
        taps = [("hidden_1", "layers_0"), ("hidden_2", "layers_1"), ("final", "final")]
        for theirs, ours in taps:
            here = valid[stack]
            expected = arrays[f"x1000_{stack}_{theirs}"][here]
            found = scaled[f"{name}/{ours}"]
            assert found.dtype == np.float64
            error = np.linalg.norm(found[here] - expected) / np.linalg.norm(expected)
            assert error < 1e-6, (name, ours)
            mean = numpy_cosine(soft[f"{name}/{ours}"], found)[here].mean()
            assert mean == pytest.approx(cosines[f"{stack}_{theirs}"]["valid"], abs=1e-6)
            compared += 1
    assert compared == 6


def test_the_measure_gives_the_golden_means_of_the_encoder(fixtures):
    config, params, arrays, cosines = golden(fixtures / "v1_0")
    tokens = arrays["encoder_input_tokens"], arrays["decoder_input_tokens"]
    with jax.enable_x64(True):
        found = observe_table(SATURATION, config, params, tokens)
    for scope, name in (("layers_0", "enc_hidden_1"), ("layers_1", "enc_hidden_2"), ("final",) * 2):
        name = "enc_final" if scope == "final" else name
        value = found[f"encoder/{scope}"]["cosine_scaled"]
        assert value == pytest.approx(cosines[name]["valid"], abs=1e-6)


def test_states_beyond_float32_are_left_out_and_counted():
    """The third power of 1e7 has a square beyond float32, while one of 1e3 has not."""
    config, _, params, tokens = case()
    encoder_valid, decoder_valid = valid_rows(*tokens)

    for scale, excluded in ((1e3, False), (1e7, True)):
        observe = jitted(SATURATION, config, scale=scale, limits=("scaled",))
        found = completed(SATURATION, observe(params, *tokens))
        for scope, valid in (("encoder/layers_0", encoder_valid), ("decoder/final", decoder_valid)):
            assert found[scope]["excluded_scaled"] == (valid.sum() if excluded else 0)
            assert found[scope]["cosine_scaled_tokens"] == (0 if excluded else valid.sum())
    metrics = SATURATION.metrics({k: np.array([v]) for k, v in found["encoder/layers_0"].items()})
    assert "cosine_scaled" not in metrics
    assert metrics["excluded_scaled"] == metrics["tokens"]


def test_tokens_without_a_parameter_limit_are_left_out_and_counted():
    """Planted: no limit for one entry of a token's state, and NaN in its place."""
    config, _, params, tokens = case()

    @partial(jax.jit, compiler_options=QUICK)
    def observe(params):
        asked, found = asked_of(config, *tokens, limits=("parameter",)), {}
        for outputs in outputs_of((SATURATION,), asked, params):
            states = tuple(map(planted, outputs.states))
            found |= SATURATION.observe(dataclasses.replace(outputs, states=states))
        return found

    def planted(state):
        if state.scope != "encoder/layers_0":
            return state
        limit = state.limit
        exists = limit.exists.at[0, 1].set(False)
        leading = limit.leading.at[0, 1, 2].set(jnp.nan)
        return dataclasses.replace(state, of_limit=limit._replace(leading=leading, exists=exists))

    with jax.enable_x64(True):
        found = table(SATURATION, completed(SATURATION, observe(params)))
    assert found["encoder/layers_0"]["excluded_parameter_limit"] == 1
    assert np.isfinite(found["encoder/layers_0"]["cosine_parameter_limit"])
    assert found["encoder/final"]["excluded_parameter_limit"] == 0


@pytest.mark.parametrize(
    ("limits", "metrics"),
    [
        (("attention",), {"cosine_attention_limit"}),
        (("parameter",), {"cosine_parameter_limit", "excluded_parameter_limit"}),
        (("scaled", "attention"), {"cosine_scaled", "excluded_scaled", "cosine_attention_limit"}),
    ],
)
def test_what_is_not_asked_for_is_not_computed(limits, metrics):
    config, _, params, tokens = case()
    found = observe_table(SATURATION, config, params, tokens, limits=limits)
    needs = SATURATION.needs(limits, 1000.0)
    assert needs.attention == ("attention" in limits)
    assert needs.parameter == ("parameter" in limits)
    assert needs.scales == ({1000.0} if "scaled" in limits else set())
    errors = {f"{name}_stderr" for name in metrics if name.startswith("cosine")}
    assert set(found["encoder/layers_0"]) == {"tokens", *metrics, *errors}
    heads = {"tokens", "total_variation", "total_variation_stderr"}
    assert set(found.get("encoder/layers_0/attention/head_0", ())) == (
        heads if "attention" in limits else set()
    )


@pytest.mark.parametrize(("given", "found"), [(("both",), "'both'"), ((), "nothing")])
def test_a_limit_that_does_not_exist_is_refused(given, found):
    with pytest.raises(
        MeasureError, match=rf"limits attention, parameter, scaled, not with {found}"
    ):
        ActivationSettings(limits=given)


def test_the_order_of_limits_does_not_matter():
    settings = ActivationSettings(limits=("scaled", "attention"))
    assert settings.limits == ("attention", "scaled")
    assert settings.fingerprint()["limits"] == ["attention", "scaled"]


def test_cosines_of_huge_tiny_and_zero_states():
    x = jnp.array([[3.0, 4.0], [1e30, 1e30], [1e-30, 0.0], [0.0, 0.0]])
    y = jnp.array([[4.0, 3.0], [1e25, -1e25], [5.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(cosine(x, y), [0.96, 0.0, 1.0, 0.0], rtol=1e-6, atol=1e-7)


def test_a_saturated_network_is_its_own_limit():
    """Scaled far enough, attention is argmax-like and the soft network is the limit."""
    config, flat, _, tokens = case()
    for name in flat:
        if name.endswith("query/kernel"):
            flat[name] = 1e12 * flat[name]
    params = nested({name: array.astype(np.float32) for name, array in flat.items()})
    found = observe_table(SATURATION, config, params, tokens)
    for scope, metrics in found.items():
        name = "total_variation" if "/head_" in scope else "cosine_attention_limit"
        assert metrics[name] == pytest.approx(float(name != "total_variation"), abs=1e-5)
