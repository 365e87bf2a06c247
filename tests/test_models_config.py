"""T5Config: the published sizes, and what names and shapes alone tell."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from t5_reference import nested, random_parameters

from saturation.errors import ArgumentError
from saturation.models import T5Config
from saturation.models.config import PUBLISHED

V1_1 = T5Config(40, 16, 4, 3, 24, 2, 3, ("gelu", "linear"), logits_via_embedding=False)
UMT5 = T5Config(
    40, 16, 4, 3, 24, 2, 3, ("gelu", "linear"), False, per_layer_relative_bias=True,
    relative_attention_num_buckets=16,
)  # fmt: skip
V1_0 = T5Config(40, 16, 4, 4, 32, 2, 1)

# Counts on the model cards of t5-*, google/t5-v1_1-* and in Raffel et al. 2020.
KNOWN_COUNTS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
    "t5-v1_1-large": 783_150_080,
    "t5-v1_1-xl": 2_849_757_184,
    "t5-v1_1-xxl": 11_135_332_352,
}


@pytest.mark.parametrize(("name", "count"), KNOWN_COUNTS.items())
def test_published_sizes_have_the_published_number_of_parameters(name, count):
    assert T5Config.published(name).num_parameters == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_size_is_inferred_from_its_shapes(name):
    config = T5Config.published(name)
    assert T5Config.from_parameters(config.parameter_shapes()) == config


@pytest.mark.parametrize("config", [V1_0, V1_1, UMT5])
def test_shapes_arrays_and_trees_give_the_same(config):
    shapes = config.parameter_shapes()
    arrays = random_parameters(config)
    assert T5Config.from_parameters({k: list(s) for k, s in shapes.items()}) == config
    assert T5Config.from_parameters(arrays) == config
    assert T5Config.from_parameters(nested(arrays)) == config
    abstract = {k: jax.ShapeDtypeStruct(s, jnp.bfloat16) for k, s in shapes.items()}
    assert T5Config.from_parameters(abstract) == config


def test_names_are_t5x():
    assert V1_0.parameter_shapes()["encoder/relpos_bias/rel_embedding"] == (4, 32)
    assert UMT5.parameter_shapes()["decoder/layers_2/relpos_bias/rel_embedding"] == (4, 16)
    assert V1_1.parameter_shapes()["decoder/layers_0/encoder_decoder_attention/out/kernel"] == (
        12,
        16,
    )
    assert V1_1.parameter_shapes()["decoder/logits_dense/kernel"] == (16, 40)
    assert V1_0.attention_names() == (
        "encoder/layers_0/attention",
        "encoder/layers_1/attention",
        "decoder/layers_0/self_attention",
        "decoder/layers_0/encoder_decoder_attention",
    )


def changed(changes, config=V1_0):
    shapes = config.parameter_shapes() | changes
    return {name: shape for name, shape in shapes.items() if shape is not None}


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({}, r"A T5 has an array token_embedder/embedding, but it is not among these 0"),
        (changed({"encoder/relpos_bias/rel_embedding": None}), "has an array encoder/relpos_bias"),
        (
            changed({"decoder/layers_0/mlp/wo/kernel": None}),
            r"missing: decoder/layers_0/mlp/wo/kernel \(32, 16\)",
        ),
        (changed({"decoder/extra": (3,)}), r"unknown: decoder/extra \(3,\)"),
        (
            changed({"encoder/encoder_norm/scale": (15,)}),
            r"encoder/encoder_norm/scale: expected shape \(16,\), found \(15,\)",
        ),
        (
            changed({"encoder/layers_0/attention/query/kernel": (16, 18)}),
            "has 18 columns, which the 4 heads of encoder/relpos_bias/rel_embedding do not divide",
        ),
        (
            changed({"encoder/layers_0/attention/query/kernel": (16, 4, 4)}),
            r"must have two axes, but its shape is \(16, 4, 4\)",
        ),
        (
            changed({"encoder/layers_9/mlp/wi/kernel": (16, 32)}),
            "encoder has arrays under layers_9 but none under layers_2",
        ),
        ({k: v for k, v in V1_0.parameter_shapes().items() if "decoder" not in k}, "decoder/laye"),
    ],
)
def test_arrays_of_no_t5_are_an_error_that_says_which(shapes, text):
    with pytest.raises(ArgumentError, match=text):
        T5Config.from_parameters(shapes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_heads": 0}, r"T5Config.num_heads must be an integer > 0, not 0"),
        ({"mlp_activations": ("tanh",)}, "must be of relu, gelu, silu, linear, not 'tanh'"),
        ({"relative_attention_num_buckets": 2}, "must be 4 or more"),
        ({"relative_attention_max_distance": 16}, "must exceed half of the 32 buckets"),
    ],
)
def test_impossible_configurations_are_an_error(changes, text):
    with pytest.raises(ArgumentError, match=text):
        dataclasses.replace(V1_0, **changes)


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(ArgumentError, match=r"called 't5-xxl'; known are t5-small, t5-base"):
        T5Config.published("t5-xxl")


def test_a_configuration_needs_no_jax():
    code = "from saturation.models import T5Config; import sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
