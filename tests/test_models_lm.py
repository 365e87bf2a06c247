"""Decoders and encoders against NumPy on the stored arrays, and against themselves."""

from __future__ import annotations

import json
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_families import FAMILIES, P, random_tokens

from saturation.checkpoints import open_checkpoint
from saturation.errors import ArgumentError
from saturation.limit import saturate, scale_parameters
from saturation.models.base import model_config
from saturation.models.lm import LM
from saturation.models.lm_config import LMConfig

MAIN = [name for name in FAMILIES if "-" not in name]


@lru_cache
def compiled(config):
    def apply(parameters, tokens, mask, temperature):
        return LM(config).apply(
            {"params": parameters}, tokens, mask, temperature=temperature, attention_weights=True
        )

    return jax.jit(apply)


def in_dtype(tree, dtype):
    return jax.tree.map(lambda a: np.asarray(a, dtype), tree)


def forward(checkpoint, tokens, mask=None, dtype=np.float64, temperature=1.0):
    """(config, {name in `lm_families`: array}) of a checkpoint in a dtype."""
    config = LMConfig.from_checkpoint(checkpoint)
    with jax.enable_x64(dtype == np.float64), jax.default_matmul_precision("highest"):
        logits, taps = compiled(config)(
            in_dtype(checkpoint.load(), dtype), tokens, mask, temperature
        )
    found = {name: np.asarray(tap) for name, tap in taps.items()}
    for i in range(config.num_layers):
        found[f"attention_{i}"] = found[f"layers_{i}/attention/weights"]
    return config, found | {"logits": np.asarray(logits)}


def difference(found, expected, valid):
    """The largest difference at valid positions (of attention: queries), over the largest value."""
    if expected.ndim == 4:
        found, expected = (np.moveaxis(each, 1, 2) for each in (found, expected))
    return np.abs(found[valid] - expected[valid]).max() / np.abs(expected[valid]).max()


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """A family, its stored arrays, and the checkpoint of them."""
    family = FAMILIES[request.param]
    arrays = family.arrays()
    path = family.write(tmp_path_factory.mktemp("lm") / "step_1", arrays)
    return family, arrays, open_checkpoint(path)


def test_a_family_computes_what_numpy_does_with_padding_on_either_side(made):
    family, arrays, checkpoint = made
    for left in (True, False):
        tokens, valid = random_tokens(left=left)
        expected = family.run(arrays, tokens, valid)
        config, found = forward(checkpoint, tokens, valid)
        assert set(expected) <= set(found)
        assert ("final" in found) == (config.norm_placement != "after")
        for name, array in expected.items():
            assert difference(found[name], array, valid) < 1e-12, name
        assert found["logits"].dtype == np.float64
    _, narrow = forward(checkpoint, tokens, valid, np.float32)
    for name, array in expected.items():
        assert difference(narrow[name], array, valid) < 1e-5, name


def test_padding_is_told_by_a_mask_or_by_the_tokens(made):
    _, _, checkpoint = made
    tokens, valid = random_tokens()
    config, parameters = LMConfig.from_checkpoint(checkpoint), checkpoint.load()
    by_token, _ = LM(config).apply({"params": parameters}, np.where(valid, tokens, -1).astype("i4"))
    by_mask, _ = LM(config).apply({"params": parameters}, tokens, valid)
    np.testing.assert_array_equal(by_mask, by_token)


def test_no_query_sees_padding_and_in_a_decoder_none_sees_what_comes(made):
    _, _, checkpoint = made
    tokens, valid = random_tokens()
    config, found = forward(checkpoint, tokens, valid, temperature=0.0)
    for i in range(config.num_layers):
        weights = np.moveaxis(found[f"attention_{i}"], 1, 2)  # (batch, query, heads, key)
        assert (weights[valid].sum(-1) == pytest.approx(1.0)) if valid.any() else True
        seen = weights.max(axis=2) > 0
        queries, keys = np.broadcast_arrays(valid[:, :, None], valid[:, None, :])
        assert not (seen & queries & ~keys).any()
        if config.causal:
            assert not np.triu(seen, 1).any()
            assert not np.triu(found[f"layers_{i}/attention/scores"] > -np.inf, 1).any()


def test_stored_scores_are_the_products_of_the_stored_queries_and_keys(made):
    _, _, checkpoint = made
    tokens, valid = random_tokens()
    config, found = forward(checkpoint, tokens, valid)
    for i in range(config.num_layers):
        q, k, scores = (
            found[f"layers_{i}/attention/{name}"] for name in ("query", "key", "scores")
        )
        products = np.einsum("bqhd,bkhd->bhqk", q, k)
        allowed = scores > -np.inf
        np.testing.assert_allclose(scores[allowed], products[allowed], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", MAIN)
def test_in_the_limit_of_large_parameters_a_family_becomes_its_saturated_network(name, tmp_path):
    """1 − cos(f(x; cθ), sf(x)) falls below 1e-10, in every layer, once c is large."""
    checkpoint = open_checkpoint(FAMILIES[name].write(tmp_path / "a", FAMILIES[name].arrays()))
    config = LMConfig.from_checkpoint(checkpoint)
    tokens, valid = random_tokens((7, 5))
    scopes = [f"layers_{i}" for i in range(config.num_layers)]

    def states(parameters):
        logits, taps = LM(config).apply({"params": parameters}, tokens, valid)
        return {name: taps[name] for name in scopes} | {"logits": logits}

    with jax.enable_x64(True):
        parameters = in_dtype(checkpoint.load(), np.float64)
        limit = jax.jit(saturate(states))(parameters)
        scaled = jax.jit(lambda c: states(scale_parameters(parameters, c)))
        gaps = []
        for c in (1e3, 1e5, 1e7):
            at_c = {name: np.asarray(each) for name, each in scaled(c).items()}
            gaps.append(
                [
                    1 - cosine(at_c[name][ok], np.asarray(limit[name].coefficient)[ok]).min()
                    for name in (*scopes, "logits")
                    if (ok := valid & np.asarray(limit[name].valid).all(-1)).any()
                ]
            )
            assert len(gaps[-1]) == len(scopes) + 1
    assert min(max(each) for each in gaps) < 1e-10, gaps


def cosine(a, b):
    a, b = (x / np.abs(x).max(-1, keepdims=True) for x in (a, b))
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def test_initialised_parameters_have_the_names_and_shapes_of_the_config(made):
    _, _, checkpoint = made
    config = LMConfig.from_checkpoint(checkpoint)
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    variables = jax.eval_shape(LM(config).init, jax.random.key(0), tokens)
    flat = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(nn.unbox(variables["params"]))
    }
    assert flat == config.parameter_shapes()
    assert config.num_parameters == sum(p.size for p in checkpoint.parameters.values())


def test_more_tokens_than_learned_positions_are_refused(tmp_path):
    family = FAMILIES["roberta"]
    checkpoint = open_checkpoint(family.write(tmp_path / "a", family.arrays()))
    config, parameters = LMConfig.from_checkpoint(checkpoint), checkpoint.load()
    with pytest.raises(
        ArgumentError, match=f"positions for {P - 2} tokens, and these rows have 15"
    ):
        LM(config).apply({"params": parameters}, np.full((1, 15), 3, np.int32))


def test_arrays_that_are_not_those_of_the_config_are_listed(tmp_path):
    family = FAMILIES["llama"]
    arrays = family.arrays()
    del arrays["model.layers.1.mlp.up_proj.weight"]
    arrays["model.norm.weight"] = np.ones(5, np.float32)
    checkpoint = open_checkpoint(family.write(tmp_path / "a", arrays))
    with pytest.raises(ArgumentError) as found:
        LMConfig.from_checkpoint(checkpoint)
    assert "missing: layers_1/mlp/wi_1/kernel (12, 20)" in str(found.value)
    assert "final_norm/scale: expected shape (12,), found (5,)" in str(found.value)


def test_without_a_config_json_the_model_is_not_guessed(tmp_path):
    family = FAMILIES["gpt2"]
    path = family.write(tmp_path / "a", family.arrays())
    (path / "config.json").unlink()
    checkpoint = open_checkpoint(path)
    assert "h/0/attn/c_attn/weight" in checkpoint.parameters  # under its own names
    with pytest.raises(ArgumentError, match=r"config\.json is missing"):
        LMConfig.from_checkpoint(checkpoint)


# Hugging Face's `.double()` leaves softmax, RMS norms and rotary tables of these in float32.
GOLDEN = {"gpt2": 1e-9, "bert": 1e-9, "gpt_neox": 2e-7, "llama": 3e-7, "olmo2": 3e-7}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_fixtures_are_met(fixtures, name):
    folder = fixtures / "families" / name
    if not folder.is_dir():
        pytest.skip(f"no fixtures of {name} here")
    golden = np.load(folder / "golden.npz")
    tokens, valid = golden["tokens"], golden["mask"]
    checkpoint = open_checkpoint(folder / "hf" / "step_30")
    for dtype, most in ((np.float64, GOLDEN[name]), (np.float32, 1e-4)):
        config, found = forward(checkpoint, tokens, valid, dtype)
        states = ["embedding", *(f"layers_{i}" for i in range(config.num_layers))]
        if "final" in found:
            states[-1] = "final"
        pairs = {f"hidden_{i}": state for i, state in enumerate(states)} | {"logits": "logits"}
        pairs |= {f"attention_{i}": f"attention_{i}" for i in range(config.num_layers)}
        assert set(pairs) == set(golden.files) - {"tokens", "mask"}
        for theirs, ours in pairs.items():
            assert difference(found[ours], golden[theirs], valid) < most, (theirs, dtype)
    assert json.loads((folder / "model.json").read_text())["class"]


def test_a_family_is_the_composition_of_its_stages(made):
    family, _, checkpoint = made
    config = model_config(checkpoint)
    assert isinstance(config, LMConfig)
    tokens = {"": jnp.asarray(np.where(*random_tokens()[::-1], -1), jnp.int32)}
    flat = {name: checkpoint.read(name) for name in checkpoint.parameters}
    logits, taps = LM(config).apply(
        {"params": checkpoint.load()}, tokens[""], attention_weights=True
    )
    streams, inner, ours = {}, {}, {}
    for stage in config.stages():
        parameters = {local: flat[there] for local, there in stage.parameters.items()}
        streams, inner = stage.step(parameters, streams, tokens)
        ours |= {scope: streams[path[0]] for scope, path in stage.scopes.items()}
        if stage.attention is not None:
            ours |= {f"{stage.attention.path}/{name}": tap for name, tap in inner.items()}
    np.testing.assert_array_equal(inner["logits"], logits)
    assert ours.keys() == taps.keys()
    for name, tap in taps.items():
        np.testing.assert_array_equal(ours[name], tap, err_msg=name)
    stages, by_layer = config.stages(), family.config.get("scale_attn_by_inverse_layer_idx")
    assert len({stage.key for stage in stages}) == len(stages) - (1 if by_layer else 2)
    read = {name for stage in stages for name in stage.parameters.values()}
    assert read == {*config.parameter_shapes()} == {*config.parameter_axes()}
    assert {a.norm for a in config.attentions} - {None} <= read
    assert [a.path for a in config.attentions] == [s.attention.path for s in stages if s.attention]
