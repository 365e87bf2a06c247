"""Blosc containers written by TensorStore, which compresses so unless told otherwise."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from saturation.checkpoints.arrays.zarr import ZarrArray, decompress
from saturation.checkpoints.t5x import folder_fetch
from saturation.errors import CheckpointFormatError
from saturation.storage.local_folder import LocalFolder


def write(folder: Path, values: np.ndarray, chunks: list[int], **compressor: object) -> ZarrArray:
    metadata = {
        "shape": list(values.shape),
        "chunks": chunks,
        "dtype": "bfloat16" if values.dtype == ml_dtypes.bfloat16 else values.dtype.str,
    }
    if compressor:
        metadata["compressor"] = {"id": "blosc", **compressor}
    store = {"driver": "file", "path": f"{folder}/"}
    spec = {"driver": "zarr", "kvstore": store, "metadata": metadata, "create": True}
    ts.open(spec).result().write(values).result()
    return ZarrArray(str(folder), folder_fetch(LocalFolder(folder)))


def full(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("codec", [None, "blosclz", "lz4", "lz4hc", "zlib", "zstd"])
@pytest.mark.parametrize("kind", ["random", "regular"])
def test_what_tensorstore_writes(tmp_path, dtype, codec, kind):
    values = np.random.default_rng(0).standard_normal((300, 101))
    values = values if kind == "random" else np.round(values)
    values = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    options = {"cname": codec, "clevel": 5, "shuffle": 1} if codec else {}
    array = write(tmp_path, values, [300, 70], **options)
    assert array.read(full(values.shape)).tobytes() == values.tobytes()


@pytest.mark.parametrize("blocksize", [256, 4096, 50_000])
@pytest.mark.parametrize("shuffle", [0, 1, 2])
def test_blocks_of_any_size(tmp_path, blocksize, shuffle):
    values = np.arange(9973, dtype=np.float32)
    options = {"cname": "zstd", "clevel": 1, "shuffle": shuffle, "blocksize": blocksize}
    array = write(tmp_path, values, [9973], **options)
    np.testing.assert_array_equal(array.read(full(values.shape)), values)


@pytest.mark.parametrize("codec", ["lz4", "zlib", "zstd"])
def test_damage_is_an_error_or_an_answer(tmp_path, codec):
    values = np.round(np.random.default_rng(0).standard_normal(2000)).astype(np.float32)
    write(tmp_path, values, [2000], cname=codec, clevel=5, shuffle=1)
    whole, chance, refused = (tmp_path / "0").read_bytes(), random.Random(0), 0
    assert bytes(decompress("chunk", "blosc", whole, 8000)) == values.tobytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[min(chance.randrange(len(data)), chance.randrange(len(data)))] = chance.randrange(
                256
            )
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        try:
            assert len(decompress("chunk", "blosc", bytes(data), 8000)) == 8000
        except CheckpointFormatError:
            refused += 1
    assert refused > 50


def test_a_header_that_claims_more_than_the_chunk_is_not_believed():
    bomb = struct.pack("<4B3I", 2, 1, 0x33, 4, 2**31 - 1, 2**20, 20) + bytes(4)
    with pytest.raises(CheckpointFormatError, match="does not say that 20 bytes unpack to 8000"):
        decompress("chunk", "blosc", bomb, 8000)
