"""One name for each array whatever the format: the table against names written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_writers import EMBED, HEADS, hugging_face, t5_parameters

from saturation.checkpoints import names
from saturation.checkpoints.disk_array import MemoryArray
from saturation.errors import CheckpointFormatError

# FORMATS.md §1, spelled out: canonical name, Hugging Face's, and whether that is a transpose.
BY_HAND = (
    ("token_embedder/embedding", "shared.weight", False),
    (
        "encoder/layers_0/pre_attention_layer_norm/scale",
        "encoder.block.0.layer.0.layer_norm.weight",
        False,
    ),
    (
        "encoder/layers_11/attention/query/kernel",
        "encoder.block.11.layer.0.SelfAttention.q.weight",
        True,
    ),
    (
        "encoder/layers_1/attention/out/kernel",
        "encoder.block.1.layer.0.SelfAttention.o.weight",
        True,
    ),
    (
        "encoder/layers_1/pre_mlp_layer_norm/scale",
        "encoder.block.1.layer.1.layer_norm.weight",
        False,
    ),
    ("encoder/layers_1/mlp/wi/kernel", "encoder.block.1.layer.1.DenseReluDense.wi.weight", True),
    (
        "encoder/layers_1/mlp/wi_0/kernel",
        "encoder.block.1.layer.1.DenseReluDense.wi_0.weight",
        True,
    ),
    (
        "encoder/relpos_bias/rel_embedding",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        True,
    ),
    (
        "decoder/layers_2/relpos_bias/rel_embedding",
        "decoder.block.2.layer.0.SelfAttention.relative_attention_bias.weight",
        True,
    ),
    ("encoder/encoder_norm/scale", "encoder.final_layer_norm.weight", False),
    (
        "decoder/layers_1/pre_self_attention_layer_norm/scale",
        "decoder.block.1.layer.0.layer_norm.weight",
        False,
    ),
    (
        "decoder/layers_1/self_attention/key/kernel",
        "decoder.block.1.layer.0.SelfAttention.k.weight",
        True,
    ),
    (
        "decoder/layers_1/pre_cross_attention_layer_norm/scale",
        "decoder.block.1.layer.1.layer_norm.weight",
        False,
    ),
    (
        "decoder/layers_1/encoder_decoder_attention/value/kernel",
        "decoder.block.1.layer.1.EncDecAttention.v.weight",
        True,
    ),
    (
        "decoder/layers_1/pre_mlp_layer_norm/scale",
        "decoder.block.1.layer.2.layer_norm.weight",
        False,
    ),
    ("decoder/layers_1/mlp/wo/kernel", "decoder.block.1.layer.2.DenseReluDense.wo.weight", True),
    ("decoder/decoder_norm/scale", "decoder.final_layer_norm.weight", False),
    ("decoder/logits_dense/kernel", "lm_head.weight", True),
)


@pytest.mark.parametrize(("canonical", "disk", "_"), BY_HAND)
def test_hugging_face_name_by_hand(canonical, disk, _):
    assert names.hugging_face_name(canonical) == disk


@pytest.mark.parametrize("layers", [1, 12])
@pytest.mark.parametrize("umt5", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_mapping_is_total_both_ways(layers, umt5, gated):
    arrays = t5_parameters(layers=layers, umt5=umt5, gated=gated)
    disk = {name: MemoryArray(array) for name, array in hugging_face(arrays).items()}
    sources = names.hugging_face_t5(disk, "here", per_layer_bias=umt5)
    assert set(sources) == set(arrays)
    assert {source.array for source in sources.values()} == set(disk)
    assert {name: names.hugging_face_name(name) for name in arrays} == {
        name: source.array for name, source in sources.items()
    }


def test_no_two_rows_name_one_array():
    for column in zip(*names.TABLE, strict=True):
        assert len(set(column)) == len(column)


def test_a_name_that_t5_does_not_have():
    with pytest.raises(CheckpointFormatError, match="T5 has no parameter called 'encoder/other'"):
        names.hugging_face_name("encoder/other")


def zeros(*shape: int) -> MemoryArray:
    return MemoryArray(np.zeros(shape, np.float32))


def test_fused_kernels_are_split():
    generator = np.random.default_rng(0)
    fused = generator.standard_normal((EMBED, 3, HEADS, 3)).astype(np.float32)
    gated = generator.standard_normal((EMBED, 2, 24)).astype(np.float32)
    disk = {
        "encoder/layers_0/attention/qkv_fused/kernel": MemoryArray(fused),
        "encoder/layers_0/mlp/wi_fused/kernel": MemoryArray(gated),
    }
    sources = names.t5x(disk, "here")
    expected = {
        **{
            f"encoder/layers_0/attention/{part}/kernel": fused[:, at].reshape(EMBED, -1)
            for at, part in enumerate(("query", "key", "value"))
        },
        "encoder/layers_0/mlp/wi_0/kernel": gated[:, 0],
        "encoder/layers_0/mlp/wi_1/kernel": gated[:, 1],
    }
    assert set(sources) == set(expected)
    for name, values in expected.items():
        source = sources[name]
        box = tuple(slice(1, size) for size in values.shape)
        np.testing.assert_array_equal(source.read(disk[source.array], box, None), values[box])


def test_scanned_layers_that_do_not_agree():
    disk = {
        "encoder/encoder/mlp/wi/kernel": zeros(16, 3, 24),
        "encoder/encoder/mlp/wo/kernel": zeros(24, 4, 16),
    }
    text = "the arrays under encoder/encoder/ look like stacked layers but no axis has the same"
    with pytest.raises(CheckpointFormatError, match=text):
        names.t5x(disk, "here")


def test_two_arrays_that_are_one_parameter():
    disk = {
        "encoder/encoder/mlp/wi/kernel": zeros(16, 3, 24),
        "encoder/layers_1/mlp/wi/kernel": zeros(16, 24),
    }
    with pytest.raises(CheckpointFormatError, match="are both 'encoder/layers_1/mlp/wi/kernel'"):
        names.t5x(disk, "here")


def test_scalars_and_integers_are_no_parameters():
    disk = {"step": zeros(), "counts": MemoryArray(np.zeros(3, np.int64)), "own/name": zeros(3)}
    assert set(names.t5x(disk, "here")) == {"own/name"}
