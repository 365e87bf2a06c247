"""What headers may claim: each of `bounds`, through files that break it."""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import flax.serialization
import google_crc32c
import msgpack
import numpy as np
import pytest
from test_checkpoints_fuzz import write_orbax
from test_checkpoints_hostile import attack

from saturation.checkpoints.arrays import bounds, checksum
from saturation.errors import CheckpointFormatError, ConfigError, ResultsError, TrajectoryError
from saturation.results.folder import RunFolder
from saturation.runs.blocks import blocks
from saturation.storage.local_folder import LocalFolder
from saturation.training.config import CheckpointConfig
from saturation.training.folder import Log, read_record
from saturation.trajectory.audit import expected_steps

ZARR2 = {"zarr_format": 2, "shape": [2, 2], "chunks": [2, 2], "dtype": "<f4", "compressor": None}
ZARR3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [2, 2],
    "data_type": "float32",
    "fill_value": 0.0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2]}},
    "chunk_key_encoding": {"name": "default"},
    "codecs": [{"name": "bytes"}],
}


def write_safetensors(folder: Path, header: dict, body: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return folder


def entry(shape: list[int], end: int = 0) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}


def write_zarr(
    folder: Path, version: int, meta: dict, chunks: Mapping[str, bytes] = MappingProxyType({})
) -> Path:
    place = folder / "params.w"
    place.mkdir()
    (folder / "_METADATA").write_text("{}")
    base = ZARR2 if version == 2 else ZARR3
    name = ".zarray" if version == 2 else "zarr.json"
    (place / name).write_text(json.dumps({**base, **meta}))
    for key, data in chunks.items():
        (place / key).parent.mkdir(exist_ok=True, parents=True)
        (place / key).write_bytes(data)
    return folder


def write_flax_shape(folder: Path, shape: tuple[int, ...], dtype: str = "float32") -> Path:
    leaf = msgpack.ExtType(1, msgpack.packb((shape, dtype, b""), use_bin_type=True))
    (folder / "checkpoint_1").write_bytes(bytes(msgpack.packb({"params": {"w": leaf}}) or b""))
    return folder


SHAPES = [[0, 2**70], [0, 2**61], [2**40, 0], [2**61, 2**61], [0] * 65, [-1, 0], [0, 2**62, 2**62]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_whose_product_lies(tmp_path, shape):
    for form in ("safetensors", "zarr2", "zarr3", "flax"):
        folder = tmp_path / form
        folder.mkdir()
        if form == "safetensors":
            write_safetensors(folder, {"a.weight": entry(shape)})
        elif form == "flax":
            if max(shape) >= 2**64:  # which msgpack cannot write
                continue
            write_flax_shape(folder, tuple(shape))
        else:
            grid = {"name": "regular", "configuration": {"chunk_shape": [1] * len(shape)}}
            meta = {"chunks": [1] * len(shape)} if form == "zarr2" else {"chunk_grid": grid}
            write_zarr(folder, int(form[-1]), {"shape": shape, **meta})
        text = attack(folder)
        assert text.startswith("refused: "), (form, text)


@pytest.mark.parametrize("shape", [[0], [0, 768], [3, 0, 5]], ids=str)
def test_an_empty_array_is_no_parameter(tmp_path, shape):
    assert "no elements" in attack(write_safetensors(tmp_path, {"a.weight": entry(shape)}))


def bomb(compressor: str, mebibytes: int) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compressor) as stream:
        for _ in range(mebibytes):
            stream.write(bytes(2**20))
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compressor", ["gzip", "zstd"])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shape", [[2, 2], [2**14, 2**13]], ids=["beyond", "the array's own"])
def test_a_chunk_that_unpacks_to_far_more_than_its_array_or_bytes(
    tmp_path, compressor, version, shape
):
    chunks, data = [2**14, 2**13], bomb(compressor, 512)
    if version == 2:
        meta = {"chunks": chunks, "compressor": {"id": compressor, "level": 1}}
        write_zarr(tmp_path, 2, {**meta, "shape": shape}, {"0.0": data})
    else:
        meta = {
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "codecs": [{"name": "bytes"}, {"name": compressor}],
        }
        write_zarr(tmp_path, 3, {**meta, "shape": shape}, {"c/0/0": data})
    assert "damaged or hostile" in attack(tmp_path)


def test_a_shard_whose_inner_chunks_are_all_the_same_bytes(tmp_path):
    inner, outer = [2**10, 2**10], [2**15, 2**14]
    data = bomb("zstd", 4)
    index = struct.pack("<QQ", 0, len(data)) * (2**5 * 2**4)
    codecs = [{"name": "bytes"}, {"name": "zstd"}]
    settings = {"chunk_shape": inner, "codecs": codecs, "index_codecs": [{"name": "bytes"}]}
    meta = {
        "shape": outer,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
        "codecs": [{"name": "sharding_indexed", "configuration": settings}],
    }
    write_zarr(tmp_path, 3, meta, {"c/0/0": data + index})
    assert "damaged or hostile" in attack(tmp_path)


@pytest.mark.parametrize("fill", [None, 0.0])
@pytest.mark.parametrize("version", [2, 3])
def test_very_many_chunks(tmp_path, version, fill):
    grid = {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}
    meta = {"chunks": [1, 1]} if version == 2 else {"chunk_grid": grid}
    write_zarr(tmp_path, version, {**meta, "shape": [2**31, 1], "fill_value": fill})
    assert " is missing: " in attack(tmp_path)


def test_a_grid_is_walked_and_never_listed():
    places = bounds.grid([range(3, 2**50), range(2, 4)])
    assert list(itertools.islice(places, 3)) == [(3, 2), (3, 3), (4, 2)]
    assert list(bounds.grid([])) == [()]
    both = [range(2), range(3), range(2)]
    assert list(bounds.grid(both)) == list(itertools.product(*both))


@pytest.mark.parametrize(
    ("version", "meta"),
    [
        (3, {"chunk_key_encoding": {"name": "default", "configuration": {"separator": [1]}}}),
        (3, {"chunk_key_encoding": {"name": "default", "configuration": {"separator": 7}}}),
        (3, {"fill_value": 10**299, "data_type": "int8"}),
        (2, {"fill_value": 300, "dtype": "|i1"}),
        (2, {"fill_value": "NaN", "dtype": "<i4"}),
        (2, {"fill_value": 0.5, "dtype": "<i4"}),
        (2, {"dimension_separator": ["."]}),
        (3, {"data_type": {"name": ["float32"]}}),
    ],
)
def test_zarr_descriptions_of_odd_values(tmp_path, version, meta):
    assert attack(write_zarr(tmp_path, version, meta)).startswith("refused: ")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":{"dtype":"F32","shape":['
        + b",".join([b"9" * 4000] * 3000)
        + b'],"data_offsets":[0,4]}}',
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":"\xff"}',
    ],
    ids=["digits", "shape of digits", "deep", "deeper", "no UTF-8"],
)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "_METADATA"])
def test_json_of_absurd_numbers_and_depths(tmp_path, text, file):
    write_safetensors(tmp_path, {"w.weight": entry([4], 16)}, bytes(16))
    if file == "model.safetensors":
        (tmp_path / file).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    else:
        (tmp_path / file).write_bytes(text)
    if file == "_METADATA":
        (tmp_path / "model.safetensors").unlink()
    assert attack(tmp_path).startswith("refused: ")


@pytest.mark.parametrize("name", ["a\0b.weight", "a\ud800b.weight", "", "...", "n" * 1001])
def test_names_that_no_file_can_have(tmp_path, name):
    for form in ("safetensors", "flax"):
        folder = tmp_path / form
        folder.mkdir()
        if form == "safetensors":
            write_safetensors(folder, {name: entry([4], 16)}, bytes(16))
        elif "\ud800" in name:  # which msgpack cannot write
            continue
        else:
            tree = {name: np.ones(4, np.float32)}
            (folder / "checkpoint_1").write_bytes(flax.serialization.msgpack_serialize(tree))
        assert attack(folder).startswith("refused: "), form


def test_two_leaves_at_one_place(tmp_path):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "target.w"}}
    tree = {"version": 3, "optimizer": {"target": {"a": spec, "b": spec}, "state": {}}}
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    (tmp_path / "target.w").mkdir()
    (tmp_path / "target.w" / ".zarray").write_text(json.dumps(ZARR2))
    (tmp_path / "target.w" / "0.0").write_bytes(bytes(16))
    assert "two leaves" in attack(tmp_path)


# -- special files --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a device", "link to a pipe"])
def test_a_special_file_in_a_store_is_never_opened(tmp_path, kind, monkeypatch):
    store = tmp_path / "store"
    write_orbax(store, use_ocdbt=True)
    victim = next(path for path in sorted(store.glob("d/*")) if path.is_file())
    victim.unlink()
    if kind == "pipe":
        os.mkfifo(victim)
    elif kind == "socket":
        monkeypatch.chdir(victim.parent)  # since a socket's path may have 100 characters
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(victim.name)
    elif kind == "link to a device":
        victim.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        victim.symlink_to(tmp_path / "pipe")
    text = attack(store)
    assert f"{victim} is a pipe, a socket or a device" in text


def test_a_link_in_a_store_that_leads_to_itself(tmp_path):
    write_orbax(tmp_path / "store", use_ocdbt=True)
    victim = next(path for path in sorted(tmp_path.glob("store/d/*")) if path.is_file())
    victim.unlink()
    victim.symlink_to(victim.name)
    assert "cannot be listed" in attack(tmp_path / "store")


def test_a_special_file_elsewhere_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    folder = LocalFolder(tmp_path)
    for read in (
        lambda: folder.read("pipe", 0, 0),
        lambda: folder.read_into("pipe", 0, memoryview(bytearray(1))),
        lambda: folder.read_blocks("pipe", [(0, 1)]),
    ):
        with pytest.raises(CheckpointFormatError, match="it is no regular file"):
            read()


@pytest.mark.parametrize("name", ["run.json", "parts/norms/w.1-1.parquet"])
def test_a_special_file_in_a_run_folder_is_never_opened(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ResultsError, match=f"Cannot read .*{name}: it is no regular file"):
        RunFolder(tmp_path).read(name)


def test_a_special_file_in_a_pretraining_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pretrain.json")
    with pytest.raises(ResultsError, match="it cannot be read"):
        read_record(tmp_path)
    os.mkfifo(tmp_path / "log.csv")
    with pytest.raises(ResultsError, match="it is no regular file"):
        Log(tmp_path, 0)


# -- steps and blocks -----------------------------------------------------------------------------


def test_steps_that_are_expected_are_counted_before_they_are_listed():
    steps = [0, 100, 200, 300, 10**17]
    assert expected_steps(steps) == ((), "")
    with pytest.raises(TrajectoryError, match="give a spacing"):
        expected_steps(steps, every=100)
    assert expected_steps(steps[:-1], every=150)[0] == (0, 150, 300)


def test_checkpoints_that_are_asked_for_are_counted_before_they_are_listed():
    for way in (CheckpointConfig(every=1), CheckpointConfig(log_spaced=10**12)):
        with pytest.raises(ConfigError, match="the most that are kept"):
            way.chosen(10**15)


def test_an_empty_array_is_one_block():
    assert blocks((2**24, 0), 4, 0) == [(slice(0, 2**24), slice(0, 0))]


# -- checksums ------------------------------------------------------------------------------------


def test_checksums_agree_with_and_without_awscrt(monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, 10_001).astype(np.uint8)
    whole = google_crc32c.value(data.tobytes())
    for absent in (False, True):
        checksum._function.cache_clear()
        if absent:
            monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
        assert checksum.crc32c(data) == checksum.crc32c(data.tobytes()) == whole
        assert checksum.crc32c(data[4000:], checksum.crc32c(data[:4000])) == whole
    checksum._function.cache_clear()


def test_awscrt_is_imported_only_where_a_checksum_is_verified():
    code = (
        "import sys; from saturation.checkpoints.arrays import tensor_bundle, zarr3;"
        "sys.exit('awscrt' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
