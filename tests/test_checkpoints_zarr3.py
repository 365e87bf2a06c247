"""Zarr version 3 arrays written by TensorStore: shards, their index, codecs, what was elided."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from saturation.checkpoints.arrays.zarr3 import Zarr3Array
from saturation.checkpoints.t5x import folder_fetch
from saturation.errors import CheckpointFormatError
from saturation.storage.local_folder import LocalFolder

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
CHECKED = {"name": "crc32c"}


def sharded(chunk: list[int], codecs: list, **settings: object) -> dict:
    configuration = {"chunk_shape": chunk, "codecs": codecs, "index_codecs": [BYTES, CHECKED]}
    return {"name": "sharding_indexed", "configuration": configuration | settings}


def write(folder: Path, values: np.ndarray, chunk: list[int], codecs: list, **more: object) -> None:
    metadata = {
        "shape": list(values.shape),
        "data_type": str(values.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "codecs": codecs,
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": metadata | more,
        "create": True,
    }
    ts.open(spec).result().write(values).result()


def read(folder: Path, elided: bool = False) -> Zarr3Array:
    return Zarr3Array(str(folder), folder_fetch(LocalFolder(folder)), elided)


def full(values: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in values.shape)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((12, 20)).astype(np.float32)


@pytest.mark.parametrize(
    "codecs",
    [
        [BYTES],
        [BYTES, ZSTD],
        [BYTES, {"name": "gzip", "configuration": {"level": 1}}],
        [BYTES, CHECKED],
        [BYTES, ZSTD, CHECKED],
    ],
    ids=lambda codecs: "+".join(codec["name"] for codec in codecs),
)
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codecs_and_shards(tmp_path, values, codecs, shards, dtype):
    values = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    write(tmp_path, values, [6, 10], [sharded([3, 5], codecs)] if shards else codecs)
    array = read(tmp_path)
    assert array.read(full(values)).tobytes() == values.tobytes()
    box = (slice(2, 8), slice(4, 11))
    buffer = np.empty((6, 7), values.dtype)
    np.testing.assert_array_equal(array.read(box, buffer), values[box])


@pytest.mark.parametrize("location", ["start", "end"])
def test_the_index_may_stand_at_either_end(tmp_path, values, location):
    write(tmp_path, values, [12, 20], [sharded([4, 5], [BYTES, ZSTD], index_location=location)])
    np.testing.assert_array_equal(read(tmp_path).read(full(values)), values)


def test_edges_and_other_keys(tmp_path, values):
    encoding = {"name": "v2", "configuration": {"separator": "."}}
    write(tmp_path, values, [7, 9], [BYTES], chunk_key_encoding=encoding)
    assert (tmp_path / "0.0").exists()
    np.testing.assert_array_equal(read(tmp_path).read(full(values)), values)


@pytest.mark.parametrize("codecs", [[BYTES], [sharded([3, 5], [BYTES])]])
def test_what_was_elided_is_its_fill_only_where_that_is_known(tmp_path, values, codecs):
    values[:6] = 0.5
    write(tmp_path, values, [6, 10], codecs, fill_value=0.5)
    np.testing.assert_array_equal(read(tmp_path, elided=True).read(full(values)), values)
    with pytest.raises(CheckpointFormatError, match=r"c/0/0 is missing: this chunk of an array"):
        read(tmp_path).read(full(values))


def test_an_inner_chunk_that_is_missing(tmp_path, values):
    values[:3, :5] = 0
    write(tmp_path, values, [6, 10], [sharded([3, 5], [BYTES])])
    with pytest.raises(CheckpointFormatError, match=r"c/0/0 \(inner chunk \(0, 0\)\) is missing"):
        read(tmp_path).read(full(values))
    np.testing.assert_array_equal(read(tmp_path, elided=True).read(full(values)), values)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[:-1], "checksum is wrong"),
        (lambda data: data[:10], "is truncated: its index alone has 68 bytes"),
        (lambda data: b"\0" + data, "checksum is wrong"),
        (lambda data: data[:-10] + b"\xff" + data[-9:], "checksum is wrong"),
    ],
)
def test_damaged_shards(tmp_path, values, damage, text):
    write(tmp_path, values, [6, 10], [sharded([3, 5], [BYTES, ZSTD, CHECKED])])
    path = tmp_path / "c" / "0" / "0"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointFormatError, match=text):
        read(tmp_path).read(full(values))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"zarr_format": 2}, "does not describe a zarr array of version 3"),
        ({"data_type": "string"}, "data type 'string' is not read here"),
        ({"chunk_grid": {"name": "rectilinear"}}, "chunk grid 'rectilinear'"),
        ({"codecs": []}, "codecs"),
        ({"shape": [12, -1]}, "'shape' is"),
        ({"shape": [12]}, "do not go together"),
    ],
)
def test_descriptions_that_are_not_read(tmp_path, values, change, text):
    write(tmp_path, values, [6, 10], [BYTES])
    path = tmp_path / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointFormatError, match=text):
        read(tmp_path)


def test_a_transposed_chunk_is_refused_not_guessed(tmp_path, values):
    order = {"name": "transpose", "configuration": {"order": [1, 0]}}
    write(tmp_path, values, [6, 10], [order, BYTES])
    with pytest.raises(CheckpointFormatError, match=r"codecs \['transpose', 'bytes'\] are damaged"):
        read(tmp_path).read(full(values))
