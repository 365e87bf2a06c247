"""What is no parameter: left out with its reason, or refused where there would be no answer."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_writers import assert_same, hugging_face, nested, t5_parameters
from flax.serialization import to_bytes
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

import saturation
from saturation.checkpoints import open_checkpoint
from saturation.cli.text import describe_trajectory, trajectory_text
from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.runs.plan import shared_parameters

generator = np.random.default_rng(0)


def matrix(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return generator.normal(size=shape).astype(dtype)


def codes(*shape: int, dtype: Any = np.int8) -> np.ndarray:
    return generator.integers(0, 100, shape).astype(dtype)


FLOATS = {"model.embed_tokens.weight": matrix(6, 4), "model.norm.weight": np.ones(4, np.float32)}
QUERY = "model.layers.0.self_attn.q_proj"


def saved(folder: Path, arrays: Mapping[str, np.ndarray], config: object = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(arrays), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def raw(folder: Path, arrays: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    """Write types that NumPy has not."""
    header, body = {}, b""
    for name, (dtype, shape, data) in arrays.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


QUANTISED = {
    "bitsandbytes, 4 bits": {
        f"{QUERY}.weight": codes(8, 1, dtype=np.uint8),
        f"{QUERY}.weight.absmax": matrix(2),
        f"{QUERY}.weight.quant_map": matrix(16),
        f"{QUERY}.weight.quant_state.bitsandbytes__nf4": codes(20, dtype=np.uint8),
    },
    "bitsandbytes, 8 bits": {f"{QUERY}.weight": codes(4, 4), f"{QUERY}.SCB": matrix(4)},
    "GPTQ": {
        f"{QUERY}.qweight": codes(2, 4, dtype=np.int32),
        f"{QUERY}.qzeros": codes(1, 1, dtype=np.int32),
        f"{QUERY}.scales": matrix(1, 4, dtype=np.float16),
        f"{QUERY}.g_idx": codes(4, dtype=np.int32),
    },
    "FP8 in blocks": {
        f"{QUERY}.weight": matrix(4, 4, dtype=ml_dtypes.float8_e4m3fn),
        f"{QUERY}.weight_scale_inv": matrix(1, 1),
    },
    "FP8 with a scale": {
        f"{QUERY}.weight": matrix(4, 4, dtype=ml_dtypes.float8_e4m3fn),
        f"{QUERY}.weight_scale": matrix(1),
    },
    "compressed-tensors": {
        f"{QUERY}.weight_packed": codes(4, 1, dtype=np.int32),
        f"{QUERY}.weight_scale": matrix(4, 1),
        f"{QUERY}.weight_shape": np.array([4, 8]),
    },
    "MXFP4": {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": codes(2, 4, 1, 16, dtype=np.uint8),
        "model.layers.0.mlp.experts.gate_up_proj_scales": codes(2, 4, 1, dtype=np.uint8),
    },
    "integers alone": {f"{QUERY}.weight": codes(4, 4)},
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_refused(tmp_path, kind):
    text = refused(saved(tmp_path, FLOATS | QUANTISED[kind]))
    assert "quantised" in text
    assert QUERY in text or "experts" in text


def test_a_quantised_checkpoint_says_by_what(tmp_path):
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    assert "is quantised (gptq): " in refused(saved(tmp_path, FLOATS | QUANTISED["GPTQ"], config))


def test_quantised_leaves_of_orbax_are_refused(tmp_path):
    layer = {"kernel": jnp.ones((4, 4), jnp.int8), "scale": jnp.ones((1, 4))}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "5", {"params": {"layer": layer}})
    assert "is quantised: " in refused(tmp_path / "5")


def test_norms_beside_kernels_and_plain_float8_are_not_quantised(tmp_path):
    arrays = {**FLOATS, f"{QUERY}.weight": matrix(4, 4, dtype=ml_dtypes.float8_e5m2)}
    assert len(open_checkpoint(saved(tmp_path / "f8", arrays)).parameters) == 3
    params = t5_parameters()
    path = tmp_path / "msgpack"
    path.mkdir()
    (path / "checkpoint_1").write_bytes(to_bytes({"params": nested(params)}))
    assert_same(open_checkpoint(path), params)


@pytest.mark.parametrize("beside", ["nothing", "config"])
def test_an_adapter_alone_is_refused(tmp_path, beside):
    name = "base_model.model.layers.{}.q_proj.lora_{}.weight"
    arrays = {
        name.format(i, ab): matrix(*((2, 8) if ab == "A" else (8, 2)))
        for i in range(2)
        for ab in "AB"
    }
    save_file(arrays, tmp_path / "adapter_model.safetensors")
    if beside == "config":
        settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    text = refused(tmp_path)
    assert "adapter" in text
    assert "merge" in text
    assert ("org/base" in text and "LORA" in text) == (beside == "config")
    shutil.move(tmp_path / "adapter_model.safetensors", tmp_path / "model.safetensors")
    assert "adapter" in refused(tmp_path)


def test_an_adapter_beside_the_merged_model_is_left_out(tmp_path):
    saved(tmp_path, FLOATS)
    save_file({"x.lora_A.weight": matrix(2, 8)}, tmp_path / "adapter_model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.parameters) == {
        name.removeprefix("model.").replace(".", "/") for name in FLOATS
    }
    assert dict(checkpoint.left_out) == {
        "adapter_model.safetensors": "an adapter, no part of the model: model.safetensors was read"
    }


CONSTANTS = (
    *(
        "rope.freqs",
        "model.freqs_cis",
        "model.rotary_emb.inv_freq",
        "model.layers.0.attn.masked_bias",
    ),
    *("layers.0.attention.rotary_emb.cos_cached", "layers.0.attention.rotary_emb.sin_cached"),
    *("layers.0.attention.causal_mask", "h.0.attn.bias", "gpt_neox.layers.0.attention.bias"),
    *("final_logits_bias", "model.encoder.embed_positions.weights", "bn.running_mean"),
    *("bn.running_var", "decoder.layers.0.self_attn.k_cache", "alibi_slopes"),
)


def test_constants_are_left_out_by_name(tmp_path):
    arrays = {name: matrix(3, 3) for name in CONSTANTS}
    trained = {"h.0.attn.c_attn.bias": matrix(9), "mask_token.weight": matrix(1, 3)}
    vector = {"h.1.attn.bias": matrix(9)}  # a mask is no vector
    checkpoint = open_checkpoint(saved(tmp_path, FLOATS | arrays | trained | vector))
    assert {name for name, _ in checkpoint.left_out} == set(CONSTANTS)
    counted = FLOATS | trained | vector
    assert set(checkpoint.parameters) == {name.replace(".", "/") for name in counted}


def test_a_companion_of_a_type_not_read_is_left_out_and_a_weight_refused(tmp_path):
    weight = ("F32", (2, 3), bytes(24))
    beside = {
        "a.weight": weight,
        "a.codes": ("F8_E8M0", (2,), b"\x80\x80"),
        "freqs_cis": ("C64", (1,), bytes(8)),
    }
    checkpoint = open_checkpoint(raw(tmp_path / "beside", beside))
    assert list(checkpoint.parameters) == ["a/weight"]
    assert dict(checkpoint.left_out) == {
        "a.codes": "the type 'F8_E8M0' is not read here",
        "freqs_cis": "a constant or a running value by its name",
    }
    itself = {"a.weight": weight, "b.weight": ("F4", (2, 4), bytes(4))}
    assert refused(raw(tmp_path / "itself", itself)) == (
        f"{tmp_path}/itself: 'b.weight' is a weight and cannot be read: the type 'F4' is not read "
        "here."
    )


def test_a_msgpack_leaf_of_a_type_not_read_is_left_out(tmp_path):
    def leaf(array: np.ndarray, dtype: str) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((array.shape, dtype, array.tobytes())))

    kernel = matrix(2, 3)
    tree = {"kernel": leaf(kernel, "float32"), "codes": leaf(codes(5), "int4")}
    (tmp_path / "checkpoint_1").write_bytes(msgpack.packb(tree, use_bin_type=True))
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("kernel"), kernel)
    assert dict(checkpoint.left_out) == {"codes": "the type 'int4' is not read here"}


def test_an_array_without_elements_is_left_out(tmp_path):
    """Its mean square would be 0/0, and with it the smallest of all matrices."""
    empty = np.zeros((0, 4), np.float32)
    for step in (0, 1):
        saved(tmp_path / f"step_{step}", FLOATS | {"model.extra.weight": empty})
    checkpoint = open_checkpoint(tmp_path / "step_0")
    assert checkpoint.left_out == (("model.extra.weight", "no elements"),)
    saturation.measure(saturation.open_trajectory(tmp_path), ["norms"], str(tmp_path / "run"))
    table = saturation.load_results(str(tmp_path / "run"))
    assert np.isfinite(table["value"]).all()
    found = table[(table["metric"] == "min_rms") & (table["scope"] == "total")]["value"]
    matrix = FLOATS["model.embed_tokens.weight"].astype(np.float64)
    np.testing.assert_allclose(found, np.sqrt((matrix**2).mean()), rtol=1e-6)


def test_weights_that_a_process_keeps_in_pieces_are_refused(tmp_path):
    """DeepSpeed's ZeRO stage 3 leaves `torch.empty(0)` in their places."""
    gone = np.zeros(0, np.float32)
    one = saved(tmp_path / "one", FLOATS | {f"{QUERY}.weight": gone})
    with pytest.raises(CheckpointFormatError, match=r"q_proj.weight' .* has no elements, as Deep"):
        open_checkpoint(one)
    two = saved(tmp_path / "two", FLOATS | {f"{QUERY}.weight": gone, "lm_head.weight": gone})
    with pytest.raises(CheckpointFormatError, match=r"no elements \(nor have 1 more\), as"):
        open_checkpoint(two)


def test_nothing_but_constants_is_no_checkpoint(tmp_path):
    assert "holds no parameters: 1 arrays are none, such as 'rope.freqs'" in refused(
        saved(tmp_path, {"rope.freqs": matrix(3)})
    )


def test_tables_that_never_change_are_left_out_of_a_trajectory(tmp_path):
    table = matrix(8, 4)
    for step in (0, 10, 20, 30):
        arrays = {
            "pos_encoder.pe": table,
            "moving.window": matrix(3),
            "norm.weight": np.ones(4, np.float32),
            "head.weight": matrix(4, 4),
        }
        saved(tmp_path / f"step_{step}", arrays)
    trajectory = saturation.open_trajectory(tmp_path)
    # The norm has never moved either, and is a weight by its name.
    assert set(shared_parameters(trajectory)) == {"moving/window", "norm/weight", "head/weight"}
    described = describe_trajectory(trajectory)
    assert described["left_out"] == [
        {"name": "pos_encoder/pe", "reason": "its bits are the same at steps 0, 20, 30"}
    ]
    assert described["parameters"] == 3 + 4 + 16
    text = trajectory_text(described)
    assert "  left out    pos_encoder/pe: its bits are the same at steps 0, 20, 30" in text
    assert "  read from   model.safetensors" in text
    # Of one step alone nothing can be said.
    assert "pos_encoder/pe" in shared_parameters(trajectory.select([10]))


# -- files ----------------------------------------------------------------------------------------


def sharded(folder: Path, arrays: Mapping[str, np.ndarray], of: int = 2) -> dict[str, str]:
    placed = {}
    for number in range(of):
        file = f"model-{number + 1:05d}-of-{of:05d}.safetensors"
        part = {name: arrays[name] for name in sorted(arrays)[number::of]}
        save_file(part, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return placed


@pytest.mark.parametrize("shards", ["there", "gone"])
def test_the_single_file_goes_before_a_stale_index(tmp_path, shards):
    arrays = t5_parameters(tied=True)
    folder = saved(tmp_path, hugging_face(arrays), {"model_type": "t5"})
    placed = sharded(folder, {n: a * 0 + 7 for n, a in hugging_face(arrays).items()})
    if shards == "gone":
        for file in set(placed.values()):
            (folder / file).unlink()
    checkpoint = open_checkpoint(folder)
    assert_same(checkpoint, arrays)
    assert checkpoint.files == ("model.safetensors",)
    reason = "another version of the weights: model.safetensors was read"
    assert dict(checkpoint.left_out)["model.safetensors.index.json"] == reason


def test_an_index_of_other_shards_says_what_it_asks_for(tmp_path):
    placed = sharded(tmp_path, hugging_face(t5_parameters(tied=True)))
    for file in set(placed.values()):
        shutil.move(tmp_path / file, tmp_path / file.replace("of-00002", "of-00003"))
    assert refused(tmp_path) == (
        f"{tmp_path}/model-00001-of-00002.safetensors is missing, and model.safetensors.index.json "
        "asks for it (2 of its shards are missing); model-00001-of-00003.safetensors, "
        "model-00002-of-00003.safetensors, which it does not list, lie there."
    )


def flax_tree(arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, ...], np.ndarray]:
    flat = {}
    for name, array in hugging_face(arrays).items():
        *path, _ = name.split(".")
        if "layer_norm" in path[-1]:
            flat[(*path, "weight")] = array
        elif path[-1] in ("shared", "relative_attention_bias"):
            flat[(*path, "embedding")] = array
        else:
            flat[(*path, "kernel")] = np.ascontiguousarray(array.T)
    return flat


def test_flax_shards_are_read(tmp_path):
    arrays = t5_parameters(tied=True)
    flat, placed = flax_tree(arrays), {}
    for number in range(2):
        file = f"flax_model-{number + 1:05d}-of-00002.msgpack"
        part = {keys: flat[keys] for keys in sorted(flat)[number::2]}
        (tmp_path / file).write_bytes(to_bytes(unflatten_dict(part)))
        placed |= {"/".join(keys): file for keys in part}
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    assert_same(open_checkpoint(tmp_path), arrays)
    (tmp_path / "flax_model-00002-of-00002.msgpack").unlink()
    assert "is missing, and flax_model.msgpack.index.json asks for it" in refused(tmp_path)
    # Saved anew in one file, whose index is left from before.
    (tmp_path / "flax_model.msgpack").write_bytes(to_bytes(unflatten_dict(flat)))
    assert_same(open_checkpoint(tmp_path), arrays)


@pytest.mark.parametrize(
    ("file", "writer"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", "PyTorch's distributed checkpoints"),
        ("global_step100/mp_rank_00_model_states.pt", "DeepSpeed"),
        ("global_step100/zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed"),
        ("mp_rank_00/model_optim_rng.pt", "Megatron"),
    ],
)
def test_layouts_that_are_not_read_are_named(tmp_path, file, writer):
    for step in (100, 200):
        path = tmp_path / f"checkpoint-{step}" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"PK\x03\x04" + b"\0" * 30 + b"archive/data.pkl" + bytes(100))
        (path.parent / ".metadata").write_bytes(b"\x80\x04")
        for name in ("rng_state_0.pth", "scheduler.pt", "optimizer.pt", "training_args.bin"):
            (tmp_path / f"checkpoint-{step}" / name).write_bytes(path.read_bytes())
    with pytest.raises(TrajectoryError) as caught:
        saturation.open_trajectory(tmp_path)
    assert writer in str(caught.value)
    assert file in str(caught.value)
    assert "2 were left out, such as checkpoint-100" in str(caught.value)
    with pytest.raises(TrajectoryError, match=writer):
        saturation.open_trajectory(tmp_path / "checkpoint-100")


def test_many_unreadable_folders_are_one_sentence(tmp_path):
    for step in range(200):
        (tmp_path / f"step_{step}").mkdir()
        (tmp_path / f"step_{step}" / "weights.dat").write_bytes(bytes(50))
    with pytest.raises(TrajectoryError, match="200 were left out, such as step_0") as caught:
        saturation.open_trajectory(tmp_path)
    assert len(str(caught.value)) < 1500


def test_what_desktops_and_downloads_leave_is_never_looked_at(tmp_path):
    arrays = t5_parameters(tied=True)
    for step in (0, 100):
        folder = saved(tmp_path / f"step_{step}", hugging_face(arrays), {"model_type": "t5"})
        weights = (folder / "model.safetensors").read_bytes()
        for name in ("._model.safetensors", "._config.json", ".DS_Store", "Thumbs.db"):
            (folder / name).write_bytes(b"\0\5\x16\7" + bytes(60))
        for name in (".nfs0001", "model.safetensors.part", "other.safetensors.crdownload"):
            (folder / name).write_bytes(weights[:-40])
        (folder / "model.safetensors.aria2").write_bytes(bytes(20))
        for name in (".ipynb_checkpoints", "@eaDir"):
            (folder / name).mkdir()
        (tmp_path / f"._step_{step}").write_bytes(bytes(60))
        (tmp_path / "@eaDir" / f"step_{step}").mkdir(parents=True)
    trajectory = saturation.open_trajectory(tmp_path)
    assert (trajectory.steps, trajectory.ignored) == ((0, 100), ())
    for checkpoint in trajectory:
        assert_same(checkpoint, arrays)
        assert checkpoint.left_out == ()
