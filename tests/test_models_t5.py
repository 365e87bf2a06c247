"""T5 against T5X's and Hugging Face's numbers, against numpy in float64, and against itself."""

from __future__ import annotations

import dataclasses
import itertools
from functools import lru_cache, partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from t5_reference import (
    bucket,
    nested,
    random_parameters,
    random_tokens,
    read_hugging_face,
    reference_t5,
)

from saturation.errors import ArgumentError
from saturation.models import T5, T5Config, valid_decoder_tokens, valid_encoder_tokens
from saturation.models.config import ATTENTIONS
from saturation.models.layers import relative_position_buckets
from saturation.models.t5 import Layer

FORMS = {
    "v1_0": T5Config(12, 16, 4, 4, 32, 2, 2),
    "v1_1": T5Config(12, 16, 4, 3, 24, 2, 3, ("gelu", "linear"), False),
    "umt5": T5Config(12, 16, 4, 3, 24, 3, 2, ("gelu", "linear"), False, True),
}
STEPS = (0, 100, 200, 300)
STACKS = {"enc": "encoder", "dec": "decoder"}


@lru_cache
def compiled(config, dtype, attention_weights):
    def apply(parameters, encoder, decoder, temperature):
        return T5(config, dtype).apply(
            {"params": parameters},
            encoder,
            decoder,
            temperature=temperature,
            attention_weights=attention_weights,
        )

    return jax.jit(apply)


def forward(parameters, encoder, decoder, temperature=1.0, dtype=None, attention_weights=True):
    """The forward pass, compiled once for each form, shape and dtype."""
    config = T5Config.from_parameters(parameters)
    apply = compiled(config, dtype, attention_weights)
    with jax.default_matmul_precision("highest"):
        return apply(nested(parameters), encoder, decoder, temperature)


def in_dtype(parameters, dtype):
    return {name: np.asarray(array).astype(dtype) for name, array in parameters.items()}


def golden_pairs(golden, taps):
    """(name, golden array, ours, whether it is weights) for whatever the golden file holds."""
    for name in golden.files:
        source, *rest = name.split("_")
        if source not in ("t5x", "hf32", "f64") or rest[0] == "logits":
            continue
        if rest[0] == "attn":
            stack, kind, layer = rest[1:]
            attention = {
                "encself": "attention",
                "decself": "self_attention",
                "deccross": "encoder_decoder_attention",
            }[stack + kind]
            tap = f"{STACKS[stack]}/layers_{layer}/{attention}/weights"
        else:
            stack = STACKS[rest[0]]
            k = rest[-1]
            last = "final" if k == "final" else f"layers_{int(k) - 1}" if int(k) else "embedding"
            tap = f"{stack}/{last}"
        yield name, golden[name], np.asarray(taps[tap]), tap


def stream_bound(expected: np.ndarray) -> float:
    """1e-4, or 4 units in the last place of the largest value where they are more.

    A residual stream is a float32 sum of the size of its largest entries, up to 283 here. From 256
    on a unit is 3.1e-5, so that 1e-4 would ask for three units of a sum of six terms.
    """
    return max(1e-4, 4 * float(np.spacing(np.abs(expected).max().astype(np.float32))))


def test_the_bound_of_streams_is_loosened_by_size_alone():
    assert stream_bound(np.array([1.0, -200.0])) == 1e-4
    assert stream_bound(np.array([0.0, -283.0])) == 2.0**-13  # 1.22e-4


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("model", ["v1_0", "umt5"])
def test_agrees_with_t5x_and_hugging_face(fixtures, model, step):
    golden = np.load(fixtures / model / "golden" / f"forward_{step}.npz")
    parameters = read_hugging_face(fixtures / model / "hf" / f"step_{step}" / "model.safetensors")
    tokens = golden["encoder_input_tokens"], golden["decoder_input_tokens"]
    valid = {"encoder": tokens[0] > 0, "decoder": golden["decoder_target_tokens"] > 0}
    logits, taps = forward(parameters, *tokens)
    for source in ("t5x", "hf32"):
        difference = np.abs(logits - golden[f"{source}_logits"])[valid["decoder"]]
        assert difference.max() < 1e-4
    for name, expected, ours, tap in golden_pairs(golden, taps):
        # Weights are (batch, heads, query, key): queries first, to keep the valid ones.
        weights = tap.endswith("weights")
        if weights:
            expected, ours = (np.swapaxes(x, 1, 2) for x in (expected, ours))
        rows = valid[tap.split("/")[0]]
        bound = 1e-5 if weights else stream_bound(expected[rows])
        assert np.abs(expected - ours)[rows].max() <= bound, name


@pytest.mark.parametrize("step", STEPS)
def test_agrees_with_float64(fixtures, step):
    golden = np.load(fixtures / "v1_0" / "golden" / f"forward_{step}.npz")
    path = fixtures / "v1_0" / "hf" / f"step_{step}" / "model.safetensors"
    parameters = in_dtype(read_hugging_face(path), np.float64)
    with jax.enable_x64(True):
        logits, taps = forward(
            parameters, golden["encoder_input_tokens"], golden["decoder_input_tokens"]
        )
    valid = golden["decoder_target_tokens"] > 0
    np.testing.assert_allclose(logits[valid], golden["f64_logits"][valid], atol=1e-12)
    valid = golden["encoder_input_tokens"] > 0
    encoded = taps["encoder/final"][valid]
    np.testing.assert_allclose(encoded, golden["f64_enc_final"][valid], atol=1e-12)


@pytest.mark.parametrize("model", ["v1_0", "umt5"])
def test_agrees_where_distances_reach_the_last_bucket(fixtures, model):
    golden = np.load(fixtures / model / "golden" / "forward_long_300.npz")
    parameters = read_hugging_face(fixtures / model / "hf" / "step_300" / "model.safetensors")
    logits, _ = forward(parameters, golden["encoder_input_tokens"], golden["decoder_input_tokens"])
    for source in ("t5x", "hf32"):
        assert np.abs(logits - golden[f"{source}_logits"]).max() < 1e-4


def test_bfloat16_weights_computed_in_float32(fixtures):
    tokens = np.load(fixtures / "v1_0" / "golden" / "forward_300.npz")
    golden = np.load(fixtures / "v1_0" / "golden" / "forward_bf16weights_300.npz")
    parameters = in_dtype(
        read_hugging_face(fixtures / "v1_0" / "hf" / "step_300" / "model.safetensors"),
        ml_dtypes.bfloat16,
    )
    logits, taps = forward(
        parameters,
        tokens["encoder_input_tokens"],
        tokens["decoder_input_tokens"],
        dtype=np.dtype(np.float32),
    )
    valid = tokens["decoder_target_tokens"] > 0
    assert logits.dtype == jnp.float32
    assert np.abs(logits - golden["t5x_logits"])[valid].max() < 1e-4
    valid = tokens["encoder_input_tokens"] > 0
    assert np.abs(taps["encoder/final"] - golden["t5x_enc_final"])[valid].max() < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.0])
@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_numpy(form, temperature):
    config = FORMS[form]
    parameters = random_parameters(config)
    encoder, decoder = random_tokens(config)
    expected, expected_taps = reference_t5(config, parameters, encoder, decoder, temperature)
    with jax.enable_x64(True):
        logits, taps = forward(parameters, encoder, decoder, temperature=temperature)
    assert logits.dtype == jnp.float64
    made_of = ("/scores", "/query", "/key", "/bias")
    taps = {name: tap for name, tap in taps.items() if not name.endswith(made_of)}
    assert taps.keys() == expected_taps.keys()
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)
    for name, tap in taps.items():
        np.testing.assert_allclose(tap, expected_taps[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_the_logarithm(bidirectional):
    offsets = np.arange(-600, 601)
    buckets = relative_position_buckets(offsets, bidirectional=bidirectional)
    np.testing.assert_array_equal(buckets, [bucket(int(o), bidirectional) for o in offsets])


def test_a_distance_that_starts_a_range_is_in_it():
    """Ranges of 16 buckets up to 128 start at 8·2^(j/2): 8, 16, 32, 64 exactly for even j."""
    buckets = relative_position_buckets(
        -np.array([7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 10_000]), bidirectional=True
    )
    np.testing.assert_array_equal(buckets, [7, 8, 9, 10, 11, 12, 13, 14, 15, 15, 15])


def test_taps_are_asked_for_by_name():
    config = FORMS["v1_0"]
    tokens = random_tokens(config)
    parameters = in_dtype(random_parameters(config), np.float32)
    _, taps = forward(parameters, *tokens, attention_weights=False)
    streams = [f"{s}/{k}" for s in ("encoder", "decoder") for k in
               ("embedding", "layers_0", "layers_1", "final")]  # fmt: skip
    assert sorted(taps) == sorted(streams)
    _, taps = forward(parameters, *tokens)
    kinds = ("weights", "scores", "output", "query", "key", "bias")
    inner = [f"{n}/{tap}" for n in config.attention_names() for tap in kinds]
    inner = [tap for tap in inner if not tap.endswith("encoder_decoder_attention/bias")]
    assert sorted(taps) == sorted(streams + inner)
    assert taps["decoder/layers_1/encoder_decoder_attention/weights"].shape == (3, 4, 7, 11)


@pytest.mark.parametrize("form", FORMS)
def test_padding_never_matters(form):
    config = FORMS[form]
    parameters = in_dtype(random_parameters(config), np.float32)
    encoder, decoder = random_tokens(config)
    logits, _ = forward(parameters, encoder, decoder)
    longer = np.pad(encoder, ((0, 0), (0, 5)))
    extended = np.pad(decoder, ((0, 0), (0, 2)), constant_values=3)
    padded, taps = forward(parameters, longer, extended)
    valid = np.asarray(valid_decoder_tokens(decoder))
    np.testing.assert_allclose(padded[:, :7][valid], logits[valid], rtol=1e-3, atol=1e-4)
    for name in config.attention_names():
        weights = np.asarray(taps[f"{name}/weights"])
        if "self_attention" in name:
            np.testing.assert_array_equal(np.triu(weights, 1), 0)
        else:
            np.testing.assert_array_equal(weights * (longer == 0)[:, None, None, :], 0)


def test_valid_positions():
    tokens = jnp.array([[5, 0, 7, 0], [0, 5, 0, 0]])
    np.testing.assert_array_equal(valid_encoder_tokens(tokens), [[1, 0, 1, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(valid_decoder_tokens(tokens), [[1, 0, 1, 0], [1, 1, 0, 0]])


def test_a_row_of_padding_only_stays_finite():
    config = FORMS["v1_1"]
    parameters = in_dtype(random_parameters(config), np.float32)
    logits, _ = forward(parameters, np.zeros((1, 4), np.int32), np.zeros((1, 3), np.int32))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("form", FORMS)
def test_jit_is_eager_and_the_temperature_never_recompiles(form):
    config = FORMS[form]
    parameters = nested(in_dtype(random_parameters(config), np.float32))
    encoder, decoder = random_tokens(config, batch=1, encoder_length=5, decoder_length=4)
    traces = []

    @jax.jit
    def logits(parameters, encoder, decoder, temperature):
        traces.append(None)
        return T5(config).apply({"params": parameters}, encoder, decoder, temperature=temperature)[
            0
        ]

    for temperature in (1.0, 0.0, 1e-30, 0.5):
        ours = logits(parameters, encoder, decoder, temperature)
    assert len(traces) == 1
    eager, _ = T5(config).apply({"params": parameters}, encoder, decoder, temperature=0.5)
    np.testing.assert_allclose(ours, eager, rtol=1e-3, atol=1e-4)


def test_a_temperature_for_each_attention():
    config = FORMS["v1_0"]
    parameters = in_dtype(random_parameters(config), np.float32)
    tokens = random_tokens(config)
    name = "decoder/layers_0/self_attention"
    _, plain = forward(parameters, *tokens)
    _, taps = forward(parameters, *tokens, temperature={name: 0.0})
    assert set(np.unique(np.asarray(taps[f"{name}/weights"]).sum(-1).round(5))) == {1.0}
    assert not np.allclose(taps[f"{name}/weights"], plain[f"{name}/weights"])
    # A GPU rounds otherwise in what is compiled anew.
    close = 0 if jax.default_backend() == "cpu" else 1e-5
    for same in ("encoder/final", "decoder/embedding"):
        np.testing.assert_allclose(taps[same], plain[same], rtol=close, atol=close)
    on_every_process = dict.fromkeys(config.attention_names(), 0.0)
    np.testing.assert_array_equal(
        forward(parameters, *tokens, temperature=on_every_process)[0],
        forward(parameters, *tokens, temperature=0.0)[0],
    )
    with pytest.raises(ArgumentError, match=r"No attention is called 'encoder'; the model's are"):
        forward(parameters, *tokens, temperature={"encoder": 0.0})


@pytest.mark.usefixtures("highest_precision")
@pytest.mark.parametrize("method", ["__call__", "encode", "decode"])
def test_a_temperature_by_position_is_refused_with_the_call_that_is_right(method):
    """T5X calls (encoder, decoder, targets); targets would be temperatures where they broadcast."""
    config = FORMS["v1_0"]
    parameters = nested(in_dtype(random_parameters(config), np.float32))
    encoder, decoder = random_tokens(config)
    encoded = jnp.zeros((*encoder.shape, config.emb_dim), jnp.float32)
    given = {
        "__call__": (encoder, decoder),
        "encode": (encoder,),
        "decode": (encoded, encoder, decoder),
    }
    apply = partial(T5(config).apply, {"params": parameters}, method=method)
    with pytest.raises(TypeError, match=r"by keyword: T5\(config\).*, temperature=…\)"):
        apply(*given[method], decoder)


def test_whether_logits_are_scaled_can_be_given_apart_from_the_head():
    """Hugging Face from version 5 on ties heads whose logits are not scaled."""
    config = FORMS["v1_0"]
    flat = in_dtype(random_parameters(config), np.float32)
    tokens = random_tokens(config)
    scaled = T5(config).apply({"params": nested(flat)}, *tokens)[0]
    plain = dataclasses.replace(config, scale_decoder_outputs=False)
    found = T5(plain).apply({"params": nested(flat)}, *tokens)[0]
    np.testing.assert_allclose(found, scaled * np.sqrt(config.emb_dim), rtol=1e-5, atol=1e-5)
    untied = dataclasses.replace(config, logits_via_embedding=False)
    assert (config.scales_logits, plain.scales_logits, untied.scales_logits) == (True, False, False)

    class Checkpoint:
        parameters = config.parameter_shapes()
        settings: ClassVar = {"scale_decoder_outputs": False}

    assert T5Config.from_checkpoint(Checkpoint()) == plain


def test_gradients_in_parameters_and_temperature_are_finite():
    config = FORMS["umt5"]
    parameters = nested(in_dtype(random_parameters(config), np.float32))
    encoder, decoder = random_tokens(config)

    @jax.jit
    def gradients(parameters, temperature):
        def loss(p, t):
            logits, _ = T5(config).apply({"params": p}, encoder, decoder, temperature=t)
            return jnp.mean(jax.nn.log_softmax(logits)[..., 3])

        return jax.grad(loss, (0, 1))(parameters, temperature)

    for temperature in (0.0, 0.1, 1.0):
        for leaf in jax.tree.leaves(gradients(parameters, temperature)):
            assert np.isfinite(leaf).all()
    assert gradients(parameters, 0.0)[1] == 0
    step = 1e-3
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)

        @jax.jit
        def loss(t):
            logits, _ = T5(config).apply({"params": wide}, encoder, decoder, temperature=t)
            return jnp.mean(jax.nn.log_softmax(logits)[..., 3])

        numeric = (loss(1 + step) - loss(1 - step)) / (2 * step)
    assert gradients(parameters, 1.0)[1] == pytest.approx(float(numeric), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_shapes_alone_are_enough(form):
    config = FORMS[form]
    parameters = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for name, shape in config.parameter_shapes().items()
    }
    tokens = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, 9), (2, 5))]
    logits, taps = jax.eval_shape(
        lambda p, e, d: T5(config).apply({"params": p}, e, d), nested(parameters), *tokens
    )
    assert (logits.shape, logits.dtype) == ((2, 5, config.vocab_size), jnp.float32)
    assert taps["encoder/final"].shape == (2, 9, config.emb_dim)
    assert taps["decoder/layers_0"].dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_stays_close(dtype):
    config = FORMS["v1_1"]
    parameters = in_dtype(random_parameters(config, scale=0.2), dtype)
    tokens = random_tokens(config)
    logits, taps = forward(parameters, *tokens)
    assert taps["encoder/layers_0"].dtype == dtype
    expected, _ = reference_t5(config, in_dtype(parameters, np.float64), *tokens)
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_init_has_the_names_shapes_and_logical_axes_of_t5x():
    tokens = jnp.zeros((1, 2), jnp.int32)
    for config in FORMS.values():
        boxed = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)["params"]
        parameters = nn.unbox(boxed)
        assert T5Config.from_parameters(parameters) == config
        axes = nn.get_partition_spec(boxed)
        assert tuple(axes["token_embedder"]["embedding"]) == ("vocab", "embed")
        layer = axes["decoder"]["layers_0"]
        assert tuple(layer["self_attention"]["query"]["kernel"]) == ("embed", "joined_kv")
        assert tuple(layer["encoder_decoder_attention"]["out"]["kernel"]) == ("joined_kv", "embed")
        assert tuple(layer["mlp"]["wo"]["kernel"]) == ("mlp", "embed")
        assert tuple(layer["pre_mlp_layer_norm"]["scale"]) == ("embed",)
        bias = layer if config.per_layer_relative_bias else axes["decoder"]
        assert tuple(bias["relpos_bias"]["rel_embedding"]) == ("heads", "relpos_buckets")
        if not config.logits_via_embedding:
            head = axes["decoder"]["logits_dense"]["kernel"]
            assert tuple(head) == ("embed", "vocab")


def squared_norm(tree):
    return sum(float(np.square(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(tree))


def test_initial_norms_are_the_published_step_zero():
    """Merrill et al.'s series starts at 87.8 for every encoder layer and 470.6 for the blocks."""
    config = T5Config.published("t5-base")
    x, ids = jnp.zeros((1, 1, config.emb_dim)), jnp.ones((1, 1), int)
    streams = {"x": x, "encoded": x, "bias": jnp.zeros((1, config.num_heads, 1, 1))}

    def whole(layer):
        found = streams
        for name in ATTENTIONS[layer.stack]:
            found, _ = layer.attend(name, found, {"encoder": ids, "decoder": ids}, 1.0)
        return layer.feed_forward(found)

    def initial(stack):
        module = Layer(config, stack)
        return jax.jit(lambda key: module.init(key, method=whole))(jax.random.key(0))

    encoder, decoder = (squared_norm(nn.unbox(initial(s))) for s in ("encoder", "decoder"))
    assert np.sqrt(encoder) == pytest.approx(87.8, rel=5e-3)
    assert np.sqrt(12 * (encoder + decoder)) == pytest.approx(470.6, rel=5e-3)


@pytest.mark.slow
def test_a_whole_t5_base_starts_at_the_published_norm():
    config = T5Config.published("t5-base")
    tokens = jnp.zeros((1, 1), jnp.int32)
    parameters = nn.unbox(jax.jit(T5(config).init)(jax.random.key(0), tokens, tokens))["params"]
    layers = [
        parameters[stack][f"layers_{i}"]
        for stack, i in itertools.product(("encoder", "decoder"), range(12))
    ]
    norms = np.sqrt([squared_norm(layer) for layer in layers])
    np.testing.assert_allclose(norms[:12], 87.8, rtol=5e-3)
    assert np.sqrt((norms**2).sum()) == pytest.approx(470.6, rel=5e-3)


def test_each_initialiser_is_t5x():
    config = T5Config(1000, 64, 8, 16, 256, 1, 1, ("gelu", "linear"), False)
    tokens = jnp.zeros((1, 1), jnp.int32)
    flat = {
        "/".join(path): np.asarray(array, np.float64)
        for path, array in _paths(
            nn.unbox(jax.jit(T5(config).init)(jax.random.key(1), tokens, tokens))
        )
    }
    deviation = {
        "token_embedder/embedding": 1,
        "encoder/layers_0/attention/query/kernel": (64 * 16) ** -0.5,
        "encoder/layers_0/attention/key/kernel": 64**-0.5,
        "encoder/layers_0/attention/value/kernel": 64**-0.5,
        "encoder/layers_0/attention/out/kernel": 128**-0.5,
        "decoder/layers_0/mlp/wi_0/kernel": 64**-0.5,
        "decoder/layers_0/mlp/wo/kernel": 256**-0.5,
        "decoder/logits_dense/kernel": 64**-0.5,
        "encoder/relpos_bias/rel_embedding": ((8 + 32) / 2) ** -0.5,
    }
    for name, expected in deviation.items():
        array = flat[name]
        error = 4 / np.sqrt(2 * array.size)
        assert array.std() == pytest.approx(expected, rel=error), name
    # Uniform, truncated normal (two deviations of 0.8796 the scale) and normal, told by their ends.
    assert np.abs(flat["encoder/relpos_bias/rel_embedding"]).max() <= np.sqrt(3 / 20)
    assert np.abs(flat["decoder/layers_0/mlp/wo/kernel"]).max() <= 2 / 0.87962566 / 16
    assert np.abs(flat["encoder/layers_0/attention/key/kernel"]).max() > 3 / 8


def _paths(tree, prefix=()):
    for name, leaf in tree.get("params", tree).items():
        if isinstance(leaf, dict):
            yield from _paths(leaf, (*prefix, name))
        else:
            yield (*prefix, name), leaf


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (np.zeros((2, 3), np.float32), r"encoder_input_tokens must be integers .* float32"),
        (np.zeros(3, np.int32), r"encoder_input_tokens must be integers .* shape \(3,\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tokens_that_are_none_are_an_error(tokens, text):
    config = FORMS["v1_0"]
    parameters = in_dtype(random_parameters(config), np.float32)
    with pytest.raises(ArgumentError, match=text):
        forward(parameters, tokens, np.zeros((2, 3), np.int32))


def test_a_token_outside_the_vocabulary_is_nan_and_not_another_token():
    config = FORMS["v1_0"]
    parameters = in_dtype(random_parameters(config), np.float32)
    encoder, decoder = random_tokens(config)
    decoder[1, 1] = config.vocab_size
    logits, _ = forward(parameters, encoder, decoder)
    assert np.isnan(logits[1, 1]).all()
    assert np.isfinite(logits[0]).all()
