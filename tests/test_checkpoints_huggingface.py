"""Hugging Face checkpoints: single, sharded, tied, of T5 and of other models, and damaged ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from checkpoint_writers import (
    BFLOAT16,
    EMBED,
    CountingFolder,
    assert_same,
    hugging_face,
    t5_parameters,
    write_hugging_face,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from saturation.checkpoints import open_checkpoint
from saturation.errors import CheckpointFormatError

QUERY = "encoder/layers_1/attention/query/kernel"
QUERY_ON_DISK = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.fixture(scope="module")
def arrays():
    return t5_parameters()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("hf") / "step_5"
    return write_hugging_face(path, hugging_face(arrays), tie_word_embeddings=False)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_untied_model(tmp_path, gated, shards):
    arrays = t5_parameters(gated=gated)
    path = tmp_path / "step_5"
    write_hugging_face(path, hugging_face(arrays), shards, tie_word_embeddings=False)
    checkpoint = open_checkpoint(path, 5)
    assert (checkpoint.format, checkpoint.step) == ("huggingface", 5)
    assert_same(checkpoint, arrays)


def test_umt5_has_a_bias_in_every_layer(tmp_path):
    arrays = t5_parameters(umt5=True)
    write_hugging_face(tmp_path / "a", hugging_face(arrays), model_type="umt5")
    assert_same(open_checkpoint(tmp_path / "a"), arrays)


def test_umt5_of_one_layer_is_told_by_its_config(tmp_path):
    arrays = t5_parameters(layers=1, umt5=True)
    write_hugging_face(tmp_path / "a", hugging_face(arrays), model_type="umt5")
    assert_same(open_checkpoint(tmp_path / "a"), arrays)


@pytest.mark.parametrize("kept", [True, False])
def test_a_tied_embedding_counts_once(tmp_path, kept):
    arrays = t5_parameters(tied=True)
    disk = hugging_face(arrays)
    for alias in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"):
        if kept:
            disk[f"{alias}.weight"] = disk["shared.weight"].copy()
    assert_same(open_checkpoint(write_hugging_face(tmp_path / "a", disk)), arrays)


def test_an_untied_head_counts_whatever_it_holds(tmp_path):
    arrays = t5_parameters()
    arrays["decoder/logits_dense/kernel"] = arrays["token_embedder/embedding"].T.copy()
    disk = hugging_face(arrays)
    write_hugging_face(tmp_path / "a", disk, tie_word_embeddings=False)
    assert_same(open_checkpoint(tmp_path / "a"), arrays)


def test_an_embedding_stored_under_its_users_name_alone(tmp_path):
    arrays = t5_parameters(tied=True)
    disk = hugging_face(arrays)
    disk["encoder.embed_tokens.weight"] = disk.pop("shared.weight")
    assert_same(open_checkpoint(write_hugging_face(tmp_path / "a", disk)), arrays)


def test_the_bias_that_old_versions_wrote_and_none_used(tmp_path, arrays):
    disk = hugging_face(arrays)
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    disk[name] = np.ones((32, 4), np.float32)
    write_hugging_face(tmp_path / "a", disk, tie_word_embeddings=False)
    assert_same(open_checkpoint(tmp_path / "a"), arrays)


def test_bfloat16(tmp_path, arrays):
    rounded = {name: array.astype(BFLOAT16) for name, array in arrays.items()}
    write_hugging_face(tmp_path / "a", hugging_face(rounded), tie_word_embeddings=False)
    assert_same(open_checkpoint(tmp_path / "a"), rounded)


def test_without_a_config_the_names_decide(tmp_path, arrays):
    save_file(hugging_face(arrays), tmp_path / "weights.safetensors")
    assert_same(open_checkpoint(tmp_path), arrays)
    assert_same(open_checkpoint(tmp_path / "weights.safetensors"), arrays)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_slice_is_the_slice_of_the_whole(folder, arrays, data):
    checkpoint = open_checkpoint(folder)
    name = data.draw(st.sampled_from(sorted(arrays)))
    box = []
    for size in arrays[name].shape:
        start, stop = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size))))
        box.append(slice(start, stop))
    expected = arrays[name][tuple(box)]
    np.testing.assert_array_equal(checkpoint.read(name, tuple(box)), expected, strict=True)
    out = np.empty(expected.shape, np.float32)
    read = checkpoint.read(name, tuple(box), out)
    np.testing.assert_array_equal(read, expected)
    assert not read.size or np.shares_memory(read, out)


@pytest.mark.parametrize("shards", [1, 2])
def test_opening_reads_headers_and_a_slice_only_itself(tmp_path, shards):
    arrays = t5_parameters()
    arrays["token_embedder/embedding"] = np.ones((100_000, EMBED), np.float32)
    disk = hugging_face(arrays)
    write_hugging_face(tmp_path / "a", disk, shards, tie_word_embeddings=False)
    counting = CountingFolder(tmp_path / "a")
    checkpoint = open_checkpoint(counting)
    assert counting.total < 20_000
    counting.counts.clear()
    read = checkpoint.read("token_embedder/embedding", (slice(500, 1500),))
    assert counting.total == read.nbytes
    counting.counts.clear()
    axis = checkpoint.block_axis(QUERY)
    box = tuple(slice(2, 5) if at == axis else slice(None) for at in range(2))
    read = checkpoint.read(QUERY, box)
    assert counting.total == read.nbytes


# -- models that are no T5 ------------------------------------------------------------------------


def test_another_model_keeps_its_own_names(tmp_path):
    disk = {
        "gpt_neox.embed_in.weight": np.ones((40, 8), np.float32),
        "gpt_neox.layers.0.attention.query_key_value.weight": np.ones((24, 8), np.float16),
        "gpt_neox.layers.0.attention.query_key_value.bias": np.ones(24, np.float16),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.ones(4, np.float32),
        "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 4, 4), np.bool_),
        "gpt_neox.layers.0.attention.masked_bias": np.ones(1, np.float16),
    }
    write_hugging_face(tmp_path / "step3", disk, model_type="gpt_neox")
    parameters = open_checkpoint(tmp_path / "step3").parameters
    assert {name: parameter.fan_in for name, parameter in parameters.items()} == {
        "gpt_neox/embed_in/weight": None,
        "gpt_neox/layers/0/attention/query_key_value/weight": 8,
        "gpt_neox/layers/0/attention/query_key_value/bias": None,
    }


# -- damaged --------------------------------------------------------------------------------------


def message(path: Path, name: str = QUERY) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        open_checkpoint(path).read(name)
    return str(caught.value)


def written(tmp_path: Path, arrays, shards: int = 1) -> Path:
    disk = hugging_face(arrays)
    return write_hugging_face(tmp_path / "a", disk, shards, tie_word_embeddings=False)


def test_truncated_file(tmp_path, arrays):
    file = written(tmp_path, arrays) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    size = file.stat().st_size
    text = message(file.parent)
    assert text.startswith(f"{file} is truncated or its index is wrong: an array of shape ")
    assert text.endswith(f"and the file has {size}.")


def test_file_cut_inside_its_header(tmp_path, arrays):
    file = written(tmp_path, arrays) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert f"{file} is truncated or no safetensors file: its header" in message(file.parent)


def test_file_that_shrinks_while_it_is_read(tmp_path, arrays):
    folder = written(tmp_path, arrays)
    checkpoint = open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors is truncated: "):
        checkpoint.read(QUERY)


def test_missing_shard(tmp_path, arrays):
    folder = written(tmp_path, arrays, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert message(folder) == (
        f"{folder}/model-00002-of-00003.safetensors is missing, and model.safetensors.index.json "
        "asks for it."
    )


def test_shard_that_lacks_an_array(tmp_path, arrays):
    folder = written(tmp_path, arrays, shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = index["weight_map"][QUERY_ON_DISK]
    save_file({"other": np.ones(3, np.float32)}, folder / file)
    assert " is missing, which model.safetensors.index.json says it holds." in message(folder)


def test_shard_outside_the_folder(tmp_path, arrays):
    folder = written(tmp_path, arrays, shards=3)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][QUERY_ON_DISK] = "../other.safetensors"
    file.write_text(json.dumps(index))
    assert "leads out of the checkpoint's folder and is refused" in message(folder)


def test_shards_without_an_index(tmp_path, arrays):
    folder = written(tmp_path, arrays, shards=2)
    (folder / "model.safetensors.index.json").unlink()
    assert "and no single '*.safetensors.index.json' that says which belong" in message(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_git_lfs_pointer(tmp_path, arrays, file):
    folder = written(tmp_path, arrays)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / file).write_text(pointer)
    assert message(folder).startswith(f"{folder}/{file} is a Git-LFS pointer and not the data")


def test_damaged_config(tmp_path, arrays):
    folder = written(tmp_path, arrays)
    (folder / "config.json").write_text("[")
    assert message(folder) == f"{folder}/config.json is damaged: it is no JSON."


def test_a_name_that_no_t5_has(tmp_path, arrays):
    disk = {**hugging_face(arrays), "encoder.block.0.layer.7.extra.weight": np.ones(3, np.float32)}
    write_hugging_face(tmp_path / "a", disk, tie_word_embeddings=False)
    assert message(tmp_path / "a") == (
        f"{tmp_path}/a: 1 arrays have names that no T5 has: encoder.block.0.layer.7.extra.weight. "
        "The model may be of a kind that is not read here."
    )


def test_wrong_shape(tmp_path, arrays):
    disk = {**hugging_face(arrays), QUERY_ON_DISK: np.ones(3, np.float32)}
    write_hugging_face(tmp_path / "a", disk, tie_word_embeddings=False)
    assert message(tmp_path / "a") == (
        f"{tmp_path}/a: '{QUERY_ON_DISK}' has shape (3,) and 2 axes were expected."
    )


def raw_file(path: Path, header: object, payload: int = 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(payload))
    return path


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"a": F32, "b": {**F32, "data_offsets": [8, 24]}}, "'b' overlaps the one before it"),
        ({"a": {**F32, "data_offsets": [0, 12]}}, "is said to have 12 bytes"),
        ({"a": {**F32, "shape": [2**37], "data_offsets": [0, 2**39]}}, "is truncated or its index"),
        ({"a": {**F32, "shape": [-4]}}, "'shape' is [-4], and a list of"),
        ({"a": {**F32, "dtype": 4}}, "has type 4"),
        ({"a": {**F32, "dtype": "F4"}}, "the type 'F4' is not read here"),
        ({"a": {**F32, "data_offsets": [16, 0]}}, "has the offsets [16, 0]"),
        ({"a": {**F32, "data_offsets": "0"}}, "has the offsets '0'"),
        ({"a": 3}, "its header is damaged: it names no arrays"),
        (b'{"a": {}, "a": {}}', "its header is damaged: a name stands twice"),
        (b"{nothing", "its header is damaged: "),
        (b'{"a":' * 5000, "its header is damaged: "),
    ],
)
def test_headers_that_lie(tmp_path, header, text):
    assert text in message(raw_file(tmp_path / "model.safetensors", header))


def test_header_longer_than_the_file(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**39) + b'{"a"' + bytes(64))
    assert "its header is said to have 549755813888 bytes and the file has 76" in message(file)
