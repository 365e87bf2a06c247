"""The parameter limit of T5s, random and trained: f(cθ) comes to it, and repeated tokens tie."""

from __future__ import annotations

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import QUICK
from t5_reference import bucket, nested, read_hugging_face

from saturation.limit import Limit, count_ties, saturate, scale_parameters
from saturation.models import T5, T5Config

SCALES = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
GATED = {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False}
ONE = {"num_encoder_layers": 1, "num_decoder_layers": 1}
FORMS = {
    "v1_0": {"mlp_activations": ("relu",), "num_encoder_layers": 2, "num_decoder_layers": 2},
    "v1_1": {**GATED, **ONE},
    "umt5": {**GATED, **ONE, "per_layer_relative_bias": True},
}
# Repeated tokens: their scores tie exactly in the first layer, where the relative bias must decide.
ENCODER = np.array([[3, 4, 4, 4, 5, 3, 3, 9, 4, 1, 0, 0], [5] * 11 + [1]], np.int32)
DECODER = np.array([[0, 4, 4, 7, 7, 4, 2], [0, 5, 5, 5, 5, 5, 1]], np.int32)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def random_t5(form: str) -> tuple[T5Config, dict]:
    sizes = {"vocab_size": 30, "emb_dim": 16, "num_heads": 4, "head_dim": 3, "mlp_dim": 24}
    config = T5Config(**sizes, **FORMS[form])
    init = jax.jit(T5(config).init, compiler_options=QUICK)
    tree = nn.unbox(init(jax.random.key(0), ENCODER[:, :2], DECODER[:, :2])["params"])
    return config, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)


def fixture_t5(folder) -> tuple[T5Config, dict, tuple]:
    """The trained weights of a fixture, and its golden tokens."""
    flat = read_hugging_face(folder / "hf" / "step_300" / "model.safetensors")
    arrays = np.load(folder / "golden" / "forward_300.npz")
    tokens = arrays["encoder_input_tokens"], arrays["decoder_input_tokens"]
    wide = {name: array.astype(np.float64) for name, array in flat.items()}
    return T5Config.from_parameters(flat), nested(wide), tokens


def states(config: T5Config, params, encoder, decoder):
    logits, taps = T5(config).apply({"params": params}, encoder, decoder)
    return {**taps, "logits": logits}


def gaps(found: Limit, value: jax.Array) -> float:
    """The largest 1 − cos, from the difference of unit vectors: exact near 0."""
    a, b = (np.asarray(v, np.float64) for v in (found.value, value))
    a, b = (v / np.abs(v).max(-1, keepdims=True) for v in (a, b))
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    return float((0.5 * ((a - b) ** 2).sum(-1)).max())


def assert_comes_to_its_limit(config: T5Config, params, tokens) -> None:
    """Degrees as MEASURES §6 says, every limit valid, and 1 − cos falling as c^-2 or faster.

    That is below 2(10/c)² everywhere, and from c = 100 on by 100 or more as c grows tenfold.
    """
    run = partial(states, config)
    limits = jax.jit(saturate(run), compiler_options=QUICK)(params, *tokens)
    block = 5 if config.gated else 3  # a gated feed-forward has two more degrees
    for name, limit in limits.items():
        expected = block if "layers_" in name else {"logits": 2}.get(name, 1)
        assert limit.degree == expected, name
        assert bool(limit.valid.all()), name
    forward = jax.jit(run, compiler_options=QUICK)
    at = {c: forward(scale_parameters(params, c), *tokens) for c in SCALES}
    for name, limit in limits.items():
        found = [gaps(limit, at[c][name]) for c in SCALES]
        assert found[-1] < 1e-12, (name, found)
        assert all(gap <= 2 * (10 / c) ** 2 for gap, c in zip(found, SCALES, strict=True)), name
        for before, after in itertools.pairwise(found[1:]):
            assert after <= before / 100 or after < 1e-20, (name, found)


@pytest.mark.parametrize("form", FORMS)
def test_a_random_t5_comes_to_its_limit(form: str) -> None:
    config, params = random_t5(form)
    assert_comes_to_its_limit(config, params, (ENCODER, DECODER))


@pytest.mark.parametrize("name", ["v1_0", "umt5"])
def test_a_trained_t5_comes_to_its_limit(fixtures, name: str) -> None:
    """The fixtures' own weights, on their golden tokens and on repeated ones."""
    config, params, golden = fixture_t5(fixtures / name)
    length = (max(a.shape[1], b.shape[1]) for a, b in zip(golden, (ENCODER, DECODER), strict=True))
    tokens = tuple(
        np.concatenate([np.pad(one, ((0, 0), (0, n - one.shape[1]))) for one in pair])
        for n, pair in zip(length, zip(golden, (ENCODER, DECODER), strict=True), strict=True)
    )
    assert_comes_to_its_limit(config, params, tokens)


def assert_ties_last(run, params, tokens) -> None:
    """Three terms do not see the bias; with four, what is still tied is truly tied."""

    def counted(terms):
        @partial(jax.jit, compiler_options=QUICK)
        def both(params):
            return count_ties(run, terms)(params, *tokens), saturate(run, terms)(params, *tokens)

        return both(params)

    three, four, five = (counted(terms) for terms in (3, 4, 5))
    assert int(three[0]) > int(four[0]) > 0
    assert int(four[0]) == int(five[0])
    for name, limit in four[1].items():
        np.testing.assert_allclose(
            limit.value, five[1][name].value, rtol=1e-12, atol=1e-12, err_msg=name
        )


def test_one_term_more_changes_nothing() -> None:
    config, params = random_t5("umt5")

    def encoded(params, encoder):
        return T5(config).apply({"params": params}, encoder, method="encode")[1]

    assert_ties_last(encoded, params, (ENCODER,))


@pytest.mark.slow  # three compilations of a whole model; the test above has a small encoder
@pytest.mark.parametrize("name", ["v1_0", "umt5"])
def test_one_term_more_changes_nothing_in_a_trained_t5(fixtures, name: str) -> None:
    config, params, _ = fixture_t5(fixtures / name)
    assert_ties_last(partial(states, config), params, (ENCODER, DECODER))


@pytest.mark.parametrize("terms", [3, 4])
def test_the_relative_bias_decides_between_repeated_tokens(terms: int) -> None:
    """Weights of the first layer by brute force: the best token, and of its places the best bias.

    Three terms do not reach the bias, which has degree 1 under the scores' 4: all places share.
    """
    config, params = random_t5("v1_0")

    def weights(params):
        taps = T5(config).apply(
            {"params": params}, ENCODER, attention_weights=True, method="encode"
        )[1]
        return taps["encoder/layers_0/attention/weights"]

    found = jax.jit(saturate(weights, terms), compiler_options=QUICK)(params)
    assert found.degree == 0
    layer = params["encoder"]["layers_0"]
    table = np.asarray(params["encoder"]["relpos_bias"]["rel_embedding"])
    x = np.asarray(params["token_embedder"]["embedding"])
    x = x / np.sqrt((x**2).mean(-1, keepdims=True))
    x = x * np.asarray(layer["pre_attention_layer_norm"]["scale"])
    heads = [
        (x @ np.asarray(layer["attention"][kind]["kernel"])).reshape(-1, 4, 3)
        for kind in ("query", "key")
    ]
    scores = np.einsum("qhd,khd->hqk", *heads)  # between tokens, whatever their places
    decided = 0
    for row, head, query in np.ndindex(len(ENCODER), 4, ENCODER.shape[1]):
        tokens = ENCODER[row]
        keys = np.flatnonzero(tokens > 0)
        best = max(set(tokens[keys]), key=lambda token: scores[head, tokens[query], token])
        attended = [key for key in keys if tokens[key] == best]
        if terms == 4:
            bias = {key: table[head, bucket(key - query, True)] for key in attended}
            winners = [key for key in attended if bias[key] == max(bias.values())]
            decided += len(winners) < len(attended)
            attended = winners
        expected = np.zeros(len(tokens))
        expected[attended] = 1 / len(attended)
        np.testing.assert_allclose(found.value[row, head, query], expected, rtol=1e-12)
    assert decided > 20 or terms == 3
