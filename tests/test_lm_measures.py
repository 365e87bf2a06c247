"""Every measure of activations on decoders and encoders, held to direct computations."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_families import FAMILIES, D, L, V

from saturation.checkpoints import open_checkpoint
from saturation.measures import MEASURES
from saturation.measures.base import ActivationMeasure
from saturation.measures.loss.measure import LOSS
from saturation.measures.loss.objective import describe, own_tokens
from saturation.measures.smoothing.measure import _frozen, head_kernels
from saturation.models.base import Needs
from saturation.models.lm import LM
from saturation.models.lm_config import LMConfig
from saturation.models.outputs import Asked, outputs_of_stages
from saturation.runs.activations import observe_checkpoint
from saturation.runs.options import activation_options
from saturation.runs.settings import ActivationSettings
from saturation.text.sequences import TokenBatch

FEW = ("gpt_neox", "llama", "olmo2", "bert")
ACTIVATION = [one for one in MEASURES.values() if isinstance(one, ActivationMeasure)]


def tokens_of(lengths=(8, 5, 3)):
    generator = np.random.default_rng(5)
    ids = generator.integers(2, V, (len(lengths), max(lengths))).astype(np.int32)
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return TokenBatch(np.where(real, ids, -1).astype(np.int32), None, "made")


@pytest.fixture(params=[name for name in FAMILIES if "-" not in name])
def checkpoint(request, tmp_path):
    family = FAMILIES[request.param]
    return open_checkpoint(family.write(tmp_path / "step_1", family.arrays(size=0.25)))


def mean(statistics, name):
    return statistics[f"{name}_sum"] / statistics[f"{name}_tokens"]


def test_the_loss_is_that_of_the_logits(checkpoint):
    config, given = LMConfig.from_checkpoint(checkpoint), tokens_of()
    settings = ActivationSettings(given, batch_size=2)
    found = observe_checkpoint(checkpoint, (LOSS,), settings)["loss"]
    assert list(found) == ["total"]
    own = own_tokens(given, config, settings.options)
    inputs = given if own is None else own
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        logits, _ = LM(config).apply({"params": checkpoint.load()}, inputs.encoder_input_tokens)
        losses = -np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float64)))
    ids = given.encoder_input_tokens
    targets = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    targets = targets if own is None else own.targets
    rows, places = np.nonzero((targets >= 0) & (ids >= 0))
    expected = losses[rows, places, targets[rows, places]]
    metrics = LOSS.metrics({n: np.array([v]) for n, v in found["total"].items()})
    assert metrics["tokens"][0] == len(expected) > 0
    np.testing.assert_allclose(metrics["loss"][0], np.mean(expected), rtol=1e-6)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(metrics["loss"]))
    objective = describe(given, config, settings.options)["objective"]
    assert objective == ("next_token" if config.causal else "masked_tokens")
    if own is not None:
        hidden = own.targets >= 0
        assert (hidden.sum(axis=1) == [1, 1, 1]).all()  # 15 % of 8, 5 and 3
        np.testing.assert_array_equal(own.targets[hidden], given.encoder_input_tokens[hidden])
        other = own_tokens(given, config, activation_options(loss_seed=1))
        assert (other.targets != own.targets).any()


@pytest.mark.parametrize("name", FEW)
def test_every_measure_gives_finite_numbers_of_every_layer(name, tmp_path):
    family = FAMILIES[name]
    checkpoint = open_checkpoint(family.write(tmp_path / "step_1", family.arrays(size=0.25)))
    config = LMConfig.from_checkpoint(checkpoint)
    settings = ActivationSettings(tokens_of((7, 4)), batch_size=2, joint_sequences=1)
    found = observe_checkpoint(checkpoint, ACTIVATION, settings)
    assert found.keys() == {one.name for one in ACTIVATION}
    for measure in ACTIVATION:
        scopes = found[measure.name]
        told = {}
        for scope, statistics in scopes.items():
            series = {name: np.array([value]) for name, value in statistics.items()}
            told[scope] = measure.metrics(series | {"step": np.array([1.0])})
        if measure.name == "loss":
            continue
        heads = {
            f"layers_{i}/attention/head_{h}" for i in range(L) for h in range(config.num_heads)
        }
        if measure.name in ("heads", "scan", "smoothing", "saturation"):
            assert heads <= told.keys(), measure.name
        if measure.name in ("saturation", "homogeneity", "smoothing"):
            assert {f"layers_{i}" for i in range(L)} <= told.keys()
            assert ("final" in told) == (config.norm_placement != "after")
        assert any(np.isfinite(v).all() for metrics in told.values() for v in metrics.values())


def test_a_layers_frozen_operator_is_what_its_attention_did_but_for_biases(checkpoint):
    config, given = LMConfig.from_checkpoint(checkpoint), tokens_of((7, 4))
    config = replace(config, query_key_value_clip=None)  # nor is a bound on values linear
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        arrays = {n: jnp.asarray(checkpoint.read(n), jnp.float64) for n in checkpoint.parameters}
        for name in arrays:  # without biases the map is exact
            if name.endswith("/bias"):
                arrays[name] = jnp.zeros_like(arrays[name])
        tokens = {"": jnp.asarray(given.encoder_input_tokens)}
        asked = Asked(config, tokens, config.valid_tokens(tokens))
        seen = 0
        for _, outputs in outputs_of_stages(asked, arrays, Needs()):
            attention = outputs.attention
            if attention is None:
                continue
            operator, start, after = _frozen(attention, *head_kernels(attention))
            moved = jnp.where(attention.valid[..., None], attention.state + attention.output, 0)
            np.testing.assert_allclose(operator(start), moved, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(after, moved, rtol=1e-10, atol=1e-12)
            assert start.shape[-1] == D
            seen += 1
        assert seen == L
