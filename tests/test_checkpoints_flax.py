"""Files of flax.serialization, ours and Hugging Face's, and T5X's index with placeholders."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest
from checkpoint_writers import (
    CountingFolder,
    assert_same,
    hugging_face,
    nested,
    t5_parameters,
    write_zarr,
    zarr_metadata,
)

from saturation.checkpoints import open_checkpoint
from saturation.errors import CheckpointFormatError
from saturation.trajectory.trajectory import open_trajectory


def write(path: Path, tree: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


@pytest.mark.parametrize("wrap", [("params",), ("params", "params"), ()])
def test_a_tree_of_parameters_is_a_trajectory_of_files(tmp_path, wrap):
    for step in (0, 1000):
        tree = nested(t5_parameters(step))
        for key in wrap:
            tree = {key: tree}
        write(tmp_path / f"checkpoint_{step}", tree)
    (tmp_path / "checkpoint_2000_tmp").write_bytes(b"\x81\xa6params")
    trajectory = open_trajectory(tmp_path)
    assert trajectory.format == "flax"
    assert trajectory.steps == (0, 1000)
    for checkpoint in trajectory:
        assert_same(checkpoint, t5_parameters(checkpoint.step))
    assert dict(trajectory.ignored) == {
        "checkpoint_2000_tmp": "temporary: its writer did not finish"
    }


def test_of_a_train_state_only_the_parameters(tmp_path):
    arrays = t5_parameters()
    state = {"step": np.int32(5), "params": nested(arrays), "opt_state": {"mu": nested(arrays)}}
    assert_same(open_checkpoint(write(tmp_path / "checkpoint_5", state)), arrays)


@pytest.mark.parametrize("limit", [16, 100, 1000])
def test_arrays_that_flax_cut_into_chunks(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", limit)
    arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in t5_parameters().items()}
    path = write(tmp_path / "checkpoint_1", {"params": nested(arrays)})
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, arrays)
    name, index = "encoder/layers_0/mlp/wo/kernel", (slice(2, 7), slice(3, 5))
    np.testing.assert_array_equal(checkpoint.read(name, index), arrays[name][index])
    buffer = np.empty((5, 16), ml_dtypes.bfloat16)
    np.testing.assert_array_equal(checkpoint.read(name, index[:1], buffer), arrays[name][2:7])


@pytest.mark.parametrize("tied", [True, False])
def test_hugging_faces_flax_model(tmp_path, tied):
    arrays = t5_parameters(tied=tied)
    tree = {}
    for name, array in hugging_face(arrays).items():
        path = name.removesuffix(".weight").replace(".", "/")
        if "norm" in name:
            tree[f"{path}/weight"] = array
        elif name == "shared.weight" or "relative_attention_bias" in name:
            tree[f"{path}/embedding"] = array
        else:
            # Flax's kernels are (in, out) again.
            tree[f"{path}/kernel"] = np.ascontiguousarray(array.T)
    assert_same(open_checkpoint(write(tmp_path / "flax_model.msgpack", nested(tree))), arrays)
    config = {"model_type": "t5", "tie_word_embeddings": tied, "layer_norm_epsilon": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = open_checkpoint(tmp_path).settings
    assert settings == {"scale_decoder_outputs": tied, "layer_norm_epsilon": 1e-3}


def test_a_slice_reads_only_itself(tmp_path):
    values = np.arange(2_000_000, dtype=np.float32).reshape(2000, 1000)
    write(tmp_path / "model", {"params": {"w": values, "v": values}})
    folder = CountingFolder(tmp_path)
    checkpoint = open_checkpoint(folder)
    opened = folder.total
    assert opened < 400_000
    found = checkpoint.read("w", (slice(10, 12),))
    np.testing.assert_array_equal(found, values[10:12])
    assert folder.total - opened == 8000


@pytest.mark.parametrize("form", ["target", "_optimizer"])
def test_t5x_with_placeholders(tmp_path, form):
    """The layouts of 2023: small arrays in the index, the others in folders it names."""
    arrays = t5_parameters()
    place = tmp_path / ("7" if form == "_optimizer" else "checkpoint_7/state")
    before = ("_optimizer",) if form == "_optimizer" else ()
    target = {}
    for name, array in arrays.items():
        target[name] = array
        if array.ndim > 1:
            dotted = ".".join((*before, "target", *name.split("/")))
            write_zarr(place / dotted, array, zarr_metadata(array, None, "zstd"))
            target[name] = f"PLACEHOLDER://{dotted}"
    inner = {"state": {"step": np.int32(7)}, "target": nested(target)}
    tree = {"_optimizer": inner, "params_axes": None} if before else inner
    write(place / "checkpoint", tree)
    trajectory = open_trajectory(tmp_path)
    assert trajectory.format == "t5x-orbax"
    assert_same(trajectory[7], arrays)


def test_a_placeholder_that_leaves_the_folder(tmp_path):
    write(tmp_path / "checkpoint", {"target": {"w": "PLACEHOLDER://../../etc"}})
    with pytest.raises(CheckpointFormatError, match="leads out of the checkpoint's folder"):
        open_checkpoint(tmp_path)


def leaf(shape: tuple[int, ...], dtype: str, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data), use_bin_type=True))


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"w": leaf((4, 4), "float32", bytes(60))}, "shape \\(4, 4\\) and type float32 has 60"),
        ({"w": leaf((2**40,), "float32", bytes(8))}, "has 8 bytes"),
        ({"w": leaf((-1,), "float32", b"")}, "'shape' is \\[-1\\], and a list of"),
        (
            {"w": leaf((1,), "object", bytes(8))},
            "'w' is a weight and cannot be read: the type 'object'",
        ),
        ({"w": msgpack.ExtType(1, b"\x01")}, "is not \\(shape, type, bytes\\)"),
        ({"w": {"__msgpack_chunked_array__": (), "shape": {"0": 2}, "chunks": {}}}, "no chunks"),
        ({"w": 3}, "holds no parameters"),
    ],
)
def test_a_file_that_lies_is_refused(tmp_path, tree, text):
    (tmp_path / "checkpoint_1").write_bytes(msgpack.packb(tree, use_bin_type=True))
    with pytest.raises(CheckpointFormatError, match=text):
        open_checkpoint(tmp_path / "checkpoint_1")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x81\xa1w" + b"\x81\xa1w" * 100, "more than 64 levels"),
        (b"\x81\xa1w\xdd" + struct.pack(">I", 2**32 - 1), "does not fit in the file"),
        (b"\x81\xa1w\xc9" + struct.pack(">I", 2**31) + b"\x01", "does not fit in the file"),
        (b"\x82\xa1w\x01\xa1w\x01", "stands twice"),
        (b"\x81\xa1w\xc1", "which msgpack never writes"),
        (b"\x81\xa1w\x01\x01", "1 bytes follow its end"),
        (b"\x81\xa1w", "it ends"),
    ],
)
def test_damaged_msgpack_is_refused(tmp_path, data, text):
    (tmp_path / "checkpoint_1").write_bytes(data)
    with pytest.raises(CheckpointFormatError, match=text):
        open_checkpoint(tmp_path / "checkpoint_1")
