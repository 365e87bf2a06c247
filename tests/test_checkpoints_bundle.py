"""TensorFlow bundles: the tests write the table themselves, the fixtures come from TensorFlow."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import google_crc32c as crc32c
import ml_dtypes
import numpy as np
import pytest
from checkpoint_writers import assert_same, t5_parameters

from saturation.checkpoints import names, open_checkpoint
from saturation.checkpoints.arrays import tensor_bundle
from saturation.errors import CheckpointFormatError
from saturation.trajectory.trajectory import open_trajectory

NUMBERS = {"float32": 1, "float64": 2, "int64": 9, "bfloat16": 14}


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def masked(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """One block, each key but every fourth sharing what it can with the one before."""
    data, last, restarts = bytearray(), b"", []
    for position, (key, value) in enumerate(entries):
        shared = 0
        if position % 4 == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        data += key[shared:] + value
        last = key
    return bytes(data) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def write_table(path: Path, entries: list[tuple[bytes, bytes]], per_block: int = 5) -> None:
    data, handles = bytearray(), []

    def add(content: bytes) -> bytes:
        start = len(data)
        data.extend(content + b"\0" + struct.pack("<I", masked(crc32c.value(content + b"\0"))))
        return varint(start) + varint(len(content))

    for begin in range(0, len(entries), per_block):
        part = entries[begin : begin + per_block]
        handles.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(handles))
    data += footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    path.write_bytes(bytes(data))


def write_bundle(prefix: Path, arrays: Mapping[str, np.ndarray], shards: int = 2) -> None:
    """Write a bundle as TensorFlow's Saver does, the arrays dealt out to the shards."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    content = [bytearray() for _ in range(shards)]
    entries = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for position, name in enumerate(sorted(arrays)):
        array, shard = arrays[name], position % shards
        raw = np.ascontiguousarray(array).tobytes()
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        value = field(1, NUMBERS[str(array.dtype)]) + field(2, shape) + field(3, shard)
        value += field(4, len(content[shard])) + field(5, len(raw))
        value += varint(6 << 3 | 5) + struct.pack("<I", masked(crc32c.value(raw)))
        entries.append((name.encode(), value))
        content[shard] += raw
    for shard, data in enumerate(content):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(data)
    write_table(prefix.with_name(f"{prefix.name}.index"), entries)


def mesh_names(arrays: Mapping[str, np.ndarray], later: bool) -> dict[str, np.ndarray]:
    """The same parameters under Mesh-TensorFlow's names, with a slot each and a step."""
    found: dict[str, np.ndarray] = {"global_step": np.array(7, np.int64)}
    for name, array in arrays.items():
        per_layer = name.replace("coder/relpos_bias", "coder/layers_0/relpos_bias")
        mesh = names.translate(per_layer, 0, 2)
        assert mesh is not None
        if mesh.endswith("layer_norm/scale") and later:
            mesh = mesh.replace("layer_norm", "rms_norm")
        elif "block" not in mesh:
            mesh = mesh.replace("/layer_norm", "/final_layer_norm")
        found[mesh] = array
        found[f"{mesh}_slot_vr"] = np.ones(3, np.float32)
    return found


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("umt5", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_t5_of_mesh_tensorflow(tmp_path, later, tied, umt5, shards):
    arrays = t5_parameters(tied=tied, umt5=umt5)
    write_bundle(tmp_path / "model.ckpt-700", mesh_names(arrays, later), shards)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-700"\n')
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (700,)
    assert trajectory.format == "mesh-tensorflow"
    assert_same(trajectory[700], arrays)


def test_names_written_out_by_hand():
    assert names.translate("encoder/block_011/layer_000/SelfAttention/o", 2, 0) == (
        "encoder/layers_11/attention/out/kernel"
    )
    assert names.translate("decoder/block_002/layer_002/DenseReluDense/wi_1/kernel", 2, 0) == (
        "decoder/layers_2/mlp/wi_1/kernel"
    )


def test_steps_are_numbers_not_text(tmp_path):
    for step in (1000700, 999900, 0):
        write_bundle(tmp_path / f"model.ckpt-{step}", mesh_names(t5_parameters(step), False))
    (tmp_path / "graph.pbtxt").write_text("node {}")
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (0, 999900, 1000700)
    assert_same(trajectory[999900], t5_parameters(999900))
    # TensorFlow's own name for a checkpoint is the files' common beginning.
    assert_same(open_checkpoint(tmp_path / "model.ckpt-0"), t5_parameters(0))


def test_bfloat16_weights_with_float32_slots(tmp_path):
    arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in t5_parameters().items()}
    write_bundle(tmp_path / "model.ckpt-1", mesh_names(arrays, True))
    assert_same(open_trajectory(tmp_path)[1], arrays)


def test_unshared_embeddings_and_a_decoder_alone(tmp_path):
    kernel, scale = np.ones((4, 6), np.float32), np.ones(4, np.float32)
    write_bundle(
        tmp_path / "a" / "model.ckpt-1",
        {"encoder/embedding": kernel, "decoder/embedding": kernel, "decoder/rms_norm/scale": scale},
    )
    assert set(open_trajectory(tmp_path / "a")[1].parameters) == {
        "encoder/token_embedder/embedding",
        "decoder/token_embedder/embedding",
        "decoder/decoder_norm/scale",
    }
    write_bundle(
        tmp_path / "b" / "model.ckpt-1",
        {
            "transformer/block_000/layer_000/SelfAttention/q": kernel,
            "transformer/block_000/layer_001/layer_norm/scale": scale,
            "transformer/block_000/layer_001/DenseReluDense/wi/kernel": kernel,
        },
    )
    assert set(open_trajectory(tmp_path / "b")[1].parameters) == {
        "decoder/layers_0/self_attention/query/kernel",
        "decoder/layers_0/pre_mlp_layer_norm/scale",
        "decoder/layers_0/mlp/wi/kernel",
    }


def test_another_model_keeps_its_names_without_its_optimizer(tmp_path):
    arrays = {
        "bert/encoder/layer_0/output/dense/kernel": np.ones((4, 4), np.float32),
        "bert/encoder/layer_0/output/dense/kernel/adam_m": np.ones((4, 4), np.float32),
    }
    write_bundle(tmp_path / "model.ckpt-1", arrays)
    parameters = open_trajectory(tmp_path)[1].parameters
    assert set(parameters) == {"bert/encoder/layer_0/output/dense/kernel"}


def test_a_variable_that_no_t5_has(tmp_path):
    arrays = mesh_names(t5_parameters(), False) | {"encoder/surprise": np.ones(3, np.float32)}
    write_bundle(tmp_path / "model.ckpt-1", arrays)
    with pytest.raises(CheckpointFormatError, match="1 variables have names that no T5 has: encod"):
        open_trajectory(tmp_path)[1]


@pytest.fixture
def written(tmp_path) -> Path:
    write_bundle(tmp_path / "model.ckpt-5", mesh_names(t5_parameters(), False))
    return tmp_path


def test_a_changed_byte_is_found_when_the_array_is_read(written):
    shard = written / "model.ckpt-5.data-00001-of-00002"
    data = bytearray(shard.read_bytes())
    for position in range(0, len(data), 16):
        data[position] ^= 1
    shard.write_bytes(bytes(data))
    checkpoint = open_trajectory(written)[5]
    with pytest.raises(CheckpointFormatError, match=r"is damaged: its bytes have the checksum 0x"):
        checkpoint.load()


def test_a_changed_byte_is_found_when_the_array_is_read_in_blocks(written):
    name, array = (
        "encoder/layers_0/mlp/wo/kernel",
        t5_parameters()["encoder/layers_0/mlp/wo/kernel"],
    )
    blocks = [slice(0, 5), slice(5, 6), slice(6, len(array))]
    whole = open_trajectory(written)[5]
    for rows in (*blocks, *reversed(blocks), *blocks):  # out of order there is nothing to verify
        np.testing.assert_array_equal(whole.read(name, (rows,)), array[rows])
    for shard in written.glob("*.data-*"):
        shard.write_bytes(shard.read_bytes().replace(array[3].tobytes(), array[2].tobytes()))
    damaged = open_trajectory(written)[5]
    for rows in blocks[:-1]:
        damaged.read(name, (rows,))
    with pytest.raises(CheckpointFormatError, match=r"is damaged: its bytes have the checksum 0x"):
        damaged.read(name, (blocks[-1],))


def test_the_checksum_is_crc_32c_in_pieces_too():
    """The known value of its check string, RFC 3720; and of nothing."""
    data = np.frombuffer(b"123456789", np.uint8)
    extend = tensor_bundle.crc32c
    assert extend(data) == extend(data[4:], extend(data[:4])) == 0xE3069283
    assert extend(data[:0], 7) == 7


def test_a_slice_reads_only_itself(written):
    checkpoint = open_trajectory(written)[5]
    name = "encoder/layers_0/mlp/wo/kernel"
    expected = t5_parameters()[name][3:5, 2:9]
    np.testing.assert_array_equal(checkpoint.read(name, (slice(3, 5), slice(2, 9))), expected)


def test_lost_cut_and_pointed_files(written):
    index, shard = written / "model.ckpt-5.index", written / "model.ckpt-5.data-00001-of-00002"
    whole, data = index.read_bytes(), shard.read_bytes()
    shard.write_bytes(data[:-4])
    with pytest.raises(CheckpointFormatError, match=r"data-00001-of-00002 is truncated"):
        open_trajectory(written)[5]
    shard.unlink()
    with pytest.raises(CheckpointFormatError, match=r"data-00001-of-00002 is missing"):
        open_trajectory(written)[5]
    shard.write_bytes(data)
    index.write_bytes(whole[:10] + b"\xff" + whole[11:])
    with pytest.raises(CheckpointFormatError, match=r"index is truncated or damaged: .*checksum"):
        open_trajectory(written)[5]


def test_shards_of_another_name_are_found_by_the_table(fixtures, tmp_path):
    shutil.copytree(fixtures / "v1_0" / "mtf", tmp_path / "mtf")
    shards = sorted((tmp_path / "mtf").glob("model.ckpt-300.data*"))
    assert shards[0].stat().st_size == 8
    with pytest.raises(CheckpointFormatError, match="data-00001-of-00002 is missing"):
        shards[1].unlink() or open_trajectory(tmp_path / "mtf")[300]
