"""PyTorch archives, which the tests write with pickle and zipfile under torch's own names."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoint_writers import assert_same, hugging_face, t5_parameters

from saturation.checkpoints import open_checkpoint
from saturation.errors import CheckpointFormatError

STORAGES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}


class Tensor:
    """What the writer turns into a call of torch's function: a view of a storage."""

    def __init__(self, array: np.ndarray, base: np.ndarray | None = None, offset: int = 0):
        self.base = array if base is None else base
        self.offset, self.shape = offset, array.shape
        self.strides = tuple(step // array.itemsize for step in array.strides)


@pytest.fixture
def torch(monkeypatch) -> types.ModuleType:
    """Stand-ins for the names that torch's pickles refer to."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_):
        raise AssertionError("only named, never called")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    for kind in STORAGES.values():
        setattr(torch, f"{kind}Storage", type(f"{kind}Storage", (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def save(path: Path, state: object, torch: types.ModuleType, protocol: int = 2) -> Path:
    """Write what `torch.save` writes."""
    storages: dict[int, tuple[str, np.ndarray]] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, np.ndarray):
                return None
            key, _ = storages.setdefault(id(obj), (str(len(storages)), obj))
            kind = getattr(torch, f"{STORAGES[str(obj.dtype)]}Storage")
            return ("storage", kind, key, "cpu", obj.size)

        def reducer_override(self, obj):
            if not isinstance(obj, Tensor):
                return NotImplemented
            function = sys.modules["torch._utils"]._rebuild_tensor_v2
            arguments = (obj.base, obj.offset, obj.shape, obj.strides, False, OrderedDict())
            return function, arguments

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.values():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def tensors(arrays: Mapping[str, np.ndarray]) -> OrderedDict:
    return OrderedDict((name, Tensor(array)) for name, array in arrays.items())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_t5(tmp_path, torch, protocol, dtype):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays = {name: array.astype(kind) for name, array in t5_parameters().items()}
    save(tmp_path / "pytorch_model.bin", tensors(hugging_face(arrays)), torch, protocol)
    (tmp_path / "config.json").write_text('{"model_type": "t5", "tie_word_embeddings": false}')
    assert_same(open_checkpoint(tmp_path), arrays)


def test_shards(tmp_path, torch):
    arrays = t5_parameters(tied=True)
    disk = hugging_face(arrays)
    placed = {}
    for number in range(2):
        shard = f"pytorch_model-{number + 1:05d}-of-00002.bin"
        part = {name: disk[name] for name in list(disk)[number::2]}
        save(tmp_path / shard, tensors(part), torch)
        placed |= dict.fromkeys(part, shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    assert_same(open_checkpoint(tmp_path), arrays)


@pytest.mark.parametrize("tied", [True, False])
def test_names_of_one_storage_are_counted_once(tmp_path, torch, tied):
    arrays = t5_parameters(tied=True)
    state = tensors(hugging_face(arrays))
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        state[name] = state["shared.weight"]
    save(tmp_path / "pytorch_model.bin", state, torch)
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    assert_same(open_checkpoint(tmp_path), arrays)


def test_views_of_a_storage(tmp_path, torch):
    base = np.arange(60, dtype=np.float32)
    matrix = base[12:42].reshape(5, 6)
    state = {
        "part.weight": Tensor(matrix, base, 12),
        "turned.weight": Tensor(matrix.T, base, 12),
        "columns.weight": Tensor(matrix[:, 2:4], base, 14),
    }
    checkpoint = open_checkpoint(save(tmp_path / "model.pt", state, torch))
    np.testing.assert_array_equal(checkpoint.read("part/weight"), matrix)
    np.testing.assert_array_equal(checkpoint.read("turned/weight"), matrix.T)
    index = (slice(1, 4), slice(2, 5))
    np.testing.assert_array_equal(checkpoint.read("turned/weight", index), matrix.T[index])
    buffer = np.empty((5, 2), np.float32)
    np.testing.assert_array_equal(checkpoint.read("columns/weight", None, buffer), matrix[:, 2:4])


def test_a_state_dict_inside_a_training_checkpoint(tmp_path, torch):
    state = {"state_dict": tensors({"a.weight": np.ones((2, 3), np.float32)}), "epoch": 3}
    checkpoint = open_checkpoint(save(tmp_path / "last.ckpt", state, torch))
    assert set(checkpoint.parameters) == {"a/weight"}
    assert checkpoint.parameters["a/weight"].fan_in == 3


class Attack:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_executed(tmp_path, torch, protocol):
    proof = tmp_path / "executed"
    state = {"a.weight": Tensor(np.ones((2, 3), np.float32)), "b": Attack(f"touch {proof}")}
    path = save(tmp_path / "pytorch_model.bin", state, torch, protocol)
    with pytest.raises(
        CheckpointFormatError, match=r"asks for \w+\.system, .*nothing was executed"
    ):
        open_checkpoint(path)
    assert not proof.exists()


def test_an_instruction_that_tensors_never_need_is_refused(tmp_path, torch):
    path = save(tmp_path / "pytorch_model.bin", {"a": {1, 2}}, torch, protocol=4)
    with pytest.raises(CheckpointFormatError, match="its pickle has the instruction"):
        open_checkpoint(path)


def test_a_memo_index_costs_no_memory(tmp_path):
    # CPython's own unpickler would allocate a table of 2**32 entries here.
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}r\xff\xff\xff\xff.")
    with pytest.raises(CheckpointFormatError, match="holds no arrays"):
        open_checkpoint(path)


def test_a_tensor_that_reaches_out_of_its_storage(tmp_path, torch):
    wide = Tensor(np.ones((100, 100), np.float32), np.ones(60, np.float32))
    path = save(tmp_path / "pytorch_model.bin", {"a.weight": wide}, torch)
    with pytest.raises(
        CheckpointFormatError, match=r"shape \(100, 100\) reaches out of its storage"
    ):
        open_checkpoint(path)


def test_compressed_members_are_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." * 30)
    with pytest.raises(CheckpointFormatError, match=r"'archive/data\.pkl' is compressed"):
        open_checkpoint(path)


def test_a_cut_archive(tmp_path, torch):
    path = save(tmp_path / "pytorch_model.bin", {"a.weight": Tensor(np.ones((9, 9), "f4"))}, torch)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(CheckpointFormatError, match="truncated or no zip archive"):
        open_checkpoint(path)


def test_the_format_before_zip_says_what_to_do(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    with pytest.raises(CheckpointFormatError, match=r"before 2020, .*save it again"):
        open_checkpoint(path)


def test_safetensors_go_before_archives_of_the_same_weights(tmp_path, torch, fixtures):
    source = fixtures / "v1_0" / "hf" / "step_300"
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    save(tmp_path / "pytorch_model.bin", {"a.weight": Tensor(np.ones((2, 3), "f4"))}, torch)
    assert "token_embedder/embedding" in open_checkpoint(tmp_path).parameters
