"""Blocks of large arrays: where to cut them so that no byte is read twice."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_writers import (
    CountingFolder,
    hugging_face,
    scanned,
    t5_parameters,
    write_hugging_face,
    write_t5x,
)

from saturation.checkpoints import open_checkpoint
from saturation.runs.blocks import blocks


def read_in_blocks(folder, limit: int) -> tuple[int, dict[str, np.ndarray]]:
    """Read every array in blocks; return the bytes that this took, and the arrays."""
    counting = CountingFolder(folder)
    checkpoint = open_checkpoint(counting)
    opened, found = counting.total, {}
    for name, parameter in checkpoint.parameters.items():
        axis, multiple = checkpoint.block_axis(name), checkpoint.block_multiple(name)
        cut = blocks(parameter.shape, parameter.dtype.itemsize, axis, multiple, limit)
        whole = found[name] = np.empty(parameter.shape, parameter.dtype)
        for box in cut:
            whole[box] = checkpoint.read(name, box)
    return counting.total - opened, found


@pytest.mark.parametrize("limit", [1, 200, 10**6])
@pytest.mark.parametrize("chunk", [(5, 1000), (1000, 5), (7, 3), (1000, 1000)])
def test_each_chunk_is_read_once(tmp_path, limit, chunk):
    arrays = t5_parameters()
    folder = write_t5x(
        tmp_path / "checkpoint_1",
        arrays,
        chunks=lambda shape: [min(size, most) for size, most in zip(shape, chunk, strict=False)],
    )
    counts = CountingFolder(folder)
    checkpoint = open_checkpoint(counts)
    name = "encoder/layers_0/mlp/wo/kernel"
    axis, multiple = checkpoint.block_axis(name), checkpoint.block_multiple(name)
    counts.counts.clear()
    for box in blocks((24, 16), 4, axis, multiple, limit):
        np.testing.assert_array_equal(checkpoint.read(name, box), arrays[name][box])
    place = folder / f"target.{name.replace('/', '.')}"
    for path in place.iterdir():
        if path.name != ".zarray":
            # Where both axes are cut, the chunks beside each other are read for one block.
            assert counts.counts[str(path)] == path.stat().st_size, path.name


@pytest.mark.parametrize("limit", [1, 300, 10**6])
def test_what_is_not_compressed_may_be_cut_anywhere(tmp_path, limit):
    arrays = t5_parameters()
    write_hugging_face(tmp_path / "hf", hugging_face(arrays), tie_word_embeddings=False)
    read, found = read_in_blocks(tmp_path / "hf", limit)
    assert read == sum(array.nbytes for array in arrays.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("axis", [0, 1])
def test_stacked_layers_with_split_heads_in_blocks(tmp_path, axis):
    arrays = t5_parameters()
    stacked = scanned(arrays, axis)
    write_t5x(tmp_path / "checkpoint_1", stacked, chunks=lambda shape: [-(-n // 2) for n in shape])
    _, found = read_in_blocks(tmp_path / "checkpoint_1", 100)
    for name in found:
        if "relpos" not in name:
            np.testing.assert_array_equal(found[name], arrays[name])


def test_blocks_are_alike():
    cut = blocks((768, 768), 4, 0, limit=2 * 2**20)  # 683 rows fit
    assert [box[0] for box in cut] == [slice(0, 384), slice(384, 768)]


def test_blocks_are_multiples_within_the_limit():
    cut = blocks((100, 10), 4, 0, 16, limit=40 * 40)
    assert [box[0] for box in cut] == [slice(0, 32), slice(32, 64), slice(64, 96), slice(96, 100)]
    assert blocks((100, 10), 4, 0, 64, limit=1) == [
        (slice(0, 64), slice(0, 10)),
        (slice(64, 100), slice(0, 10)),
    ]
