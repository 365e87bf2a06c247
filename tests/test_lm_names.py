"""Canonical names of decoders and encoders: total, both ways, and what is read under them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from lm_families import FAMILIES, D, F, H, L, V
from safetensors.numpy import save_file

from saturation.checkpoints import open_checkpoint
from saturation.checkpoints.lm_names import canonical_names, stored_name
from saturation.errors import CheckpointFormatError
from saturation.models.lm_config import LMConfig
from saturation.scopes import scopes
from saturation.trajectory.trajectory import open_trajectory

HEAD = D // H


@pytest.fixture(params=FAMILIES)
def made(request, tmp_path):
    family = FAMILIES[request.param]
    arrays = family.arrays()
    return family, arrays, family.write(tmp_path / "step_7", arrays)


def expected(family, arrays):
    """Every parameter as NumPy parts, transposes and renames it."""
    kind, found = family.config["model_type"], {}
    for disk, array in arrays.items():
        names = canonical_names(kind, disk)
        if kind == "gpt2" and "c_attn" in disk:
            parts = np.split(array, 3, axis=-1)
        elif "query_key_value" in disk:
            heads = array.reshape(H, 3, HEAD, *array.shape[1:])
            parts = [heads[:, part].reshape(D, *array.shape[1:]) for part in range(3)]
        else:
            parts = [array]
        for name, part in zip(names, parts, strict=True):
            conv1d = kind == "gpt2" and not name.startswith("logits")
            found[name] = part.T if name.endswith("/kernel") and not conv1d else part
    return found


def test_every_array_is_read_under_its_name_whole_and_in_pieces(made):
    family, arrays, path = made
    checkpoint, wanted = open_checkpoint(path), expected(family, arrays)
    config = LMConfig.from_checkpoint(checkpoint)
    assert {n: p.shape for n, p in checkpoint.parameters.items()} == config.parameter_shapes()
    assert checkpoint.parameters.keys() == wanted.keys()
    assert not checkpoint.left_out
    generator = np.random.default_rng(0)
    for name, array in wanted.items():
        np.testing.assert_array_equal(checkpoint.read(name), array, err_msg=name)
        for _ in range(4):
            cuts = (sorted(generator.integers(0, n + 1, 2)) for n in array.shape)
            box = tuple(slice(start, stop) for start, stop in cuts)
            out = np.empty(array[box].shape, np.float32)
            np.testing.assert_array_equal(checkpoint.read(name, box, out), array[box])
        axis, multiple = checkpoint.block_axis(name), checkpoint.block_multiple(name)
        assert 0 <= axis < array.ndim
        assert 1 <= multiple <= array.shape[axis]
        fan_in = array.shape[0] if name.endswith("/kernel") else None
        assert checkpoint.parameters[name].fan_in == fan_in, name


def test_the_names_go_both_ways(made):
    family, arrays, path = made
    kind = family.config["model_type"]
    for name in open_checkpoint(path).parameters:
        disk = stored_name(kind, name)
        assert name in canonical_names(kind, disk)
        assert any(each.endswith(disk) for each in arrays)
    with pytest.raises(CheckpointFormatError, match=f"A {kind} has no parameter called 'layers_x'"):
        stored_name(kind, "layers_x")


def test_the_scopes_follow_the_names(made):
    family, _, path = made
    parameters = open_checkpoint(path).parameters
    sizes = {
        scope: sum(parameters[name].size for name in names)
        for scope, names in scopes(parameters).items()
    }
    assert sizes["embedding"] == V * D
    assert sum(bool(re.fullmatch(r"layers_\d+", scope)) for scope in sizes) == L
    assert sizes["mlp/wo"] == L * D * (F + ("layers_0/mlp/wo/bias" in parameters))
    learned = family.config["model_type"] in ("gpt2", "bert", "roberta")
    assert ("position_embedding" in sizes) == learned
    assert ("final" in sizes) == ("final_norm/scale" in parameters)
    assert sizes["total"] == sum(p.size for p in parameters.values())
    assert not {"encoder", "decoder"} & sizes.keys()


def test_the_names_on_disk_stay_available(made):
    _, arrays, path = made
    trajectory = open_trajectory(path.parent, names="stored")
    found = {name.replace("/", ".") for name in trajectory[7].parameters}
    wrapped = {name.removeprefix("transformer.").removeprefix("model.") for name in arrays}
    assert found in ({*arrays}, wrapped)
    assert trajectory.select([7])[7].parameters.keys() == trajectory[7].parameters.keys()
    assert open_trajectory(path.parent)[7].parameters.keys() != trajectory[7].parameters.keys()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("gpt2", "h.1.ln_2.weight"),
        ("gpt_neox", "layers.1.mlp.dense_h_to_4h.bias"),
        ("llama", "layers.0.self_attn.q_proj.weight"),
        ("bert", "encoder.layer.1.output.dense.bias"),
    ],
)
def test_a_model_without_its_head_has_no_prefix(tmp_path, name, plain):
    family = FAMILIES[name]
    arrays = {
        re.sub(r"^(transformer|gpt_neox|model|bert)\.", "", each): array
        for each, array in family.arrays().items()
        if not each.startswith(("lm_head", "embed_out", "cls."))
    }
    assert plain in arrays
    parameters = open_checkpoint(family.write(tmp_path / "a", arrays)).parameters
    with_head = open_checkpoint(family.write(tmp_path / "b", family.arrays())).parameters
    missing = with_head.keys() - parameters.keys()
    assert not parameters.keys() - with_head.keys()
    assert all(name.startswith(("logits_dense", "head_")) for name in missing)


def test_a_tied_head_buffers_and_another_tasks_head(tmp_path):
    family = FAMILIES["gpt2"]
    arrays = family.arrays()
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"].copy()
    arrays["transformer.h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
    arrays["transformer.h.0.attn.masked_bias"] = np.ones((), np.float32)
    arrays["score.weight"] = np.ones((2, D), np.float32)
    checkpoint = open_checkpoint(family.write(tmp_path / "a", arrays))
    assert len(checkpoint.left_out) == 3
    assert checkpoint.parameters.keys() - {
        *LMConfig.from_checkpoint(checkpoint).parameter_shapes()
    } == {"score/weight"}


def test_old_names_of_bert_are_its_names_too(tmp_path):
    family = FAMILIES["bert"]
    arrays = family.arrays()
    leaves = {"weight": "gamma", "bias": "beta"}
    old = {
        re.sub(r"(?<=LayerNorm\.)\w+$", lambda leaf: leaves[leaf[0]], name): array
        for name, array in arrays.items()
    }
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["bert.pooler.dense.weight"] = np.ones((D, D), np.float32)
    old["cls.seq_relationship.bias"] = np.ones(2, np.float32)
    checkpoint = open_checkpoint(family.write(tmp_path / "a", old))
    config = LMConfig.from_checkpoint(checkpoint)
    beside = checkpoint.parameters.keys() - config.parameter_shapes().keys()
    assert beside == {"pooler/kernel", "next_sentence/bias"}
    np.testing.assert_array_equal(
        checkpoint.read("layers_0/post_mlp_layer_norm/bias"),
        arrays["bert.encoder.layer.0.output.LayerNorm.bias"],
    )


def test_an_array_that_the_family_has_not_is_refused_unless_names_are_stored(tmp_path):
    family = FAMILIES["llama"]
    arrays = family.arrays() | {"model.layers.0.self_attn.q_scale": np.ones(D, np.float32)}
    path = family.write(tmp_path / "step_1", arrays)
    with pytest.raises(CheckpointFormatError, match=r"no llama has: .*q_scale.*--names stored"):
        open_checkpoint(path)
    stored = open_trajectory(tmp_path, names="stored")[1]
    assert any(name.endswith("q_scale") for name in stored.parameters)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("gpt_neox.layers.0.attention.query_key_value.weight", (35, D), "queries, keys and values"),
        ("gpt_neox.layers.0.attention.dense.weight", (D,), "2 axes were expected"),
    ],
)
def test_arrays_of_other_shapes_are_refused(tmp_path, name, shape, says):
    family = FAMILIES["gpt_neox"]
    arrays = family.arrays() | {name: np.ones(shape, np.float32)}
    with pytest.raises(CheckpointFormatError, match=says):
        open_checkpoint(family.write(tmp_path / "a", arrays))


def test_shards_and_bfloat16_are_read_alike(tmp_path):
    import ml_dtypes

    family = FAMILIES["gpt_neox"]
    arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in family.arrays().items()}
    names = sorted(arrays)
    parts = (names[:9], names[9:])
    files = {f"model-0000{i}-of-00002.safetensors": some for i, some in enumerate(parts, 1)}
    path = tmp_path / "a"
    path.mkdir()
    for file, some in files.items():
        save_file({name: arrays[name] for name in some}, path / file)
    placed = {name: file for file, some in files.items() for name in some}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (path / "config.json").write_text(json.dumps(family.config))
    checkpoint = open_checkpoint(path)
    for name, array in expected(family, arrays).items():
        np.testing.assert_array_equal(checkpoint.read(name), array)
