"""T5X's own checkpoints: every way its leaves lie on disk, slices, and what damaged ones say."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import flax.serialization
import flax.traverse_util
import numpy as np
import pytest
import tensorstore as ts
from checkpoint_writers import (
    BFLOAT16,
    EMBED,
    CountingFolder,
    assert_same,
    nested,
    scanned,
    t5_parameters,
    write_t5x,
    write_t5x_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import saturation
from saturation.checkpoints import open_checkpoint
from saturation.checkpoints.arrays import zarr
from saturation.checkpoints.arrays.zarr import decompress
from saturation.errors import CheckpointFormatError, SaturationError

QUERY = "encoder/layers_1/attention/query/kernel"
QUERY_FOLDER = "target.encoder.layers_1.attention.query.kernel"


def halves(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks that do not divide the array: the last of each axis is partly filler."""
    return tuple(size // 2 + 1 for size in shape)


def all_files(name: str) -> bool:
    return False


@pytest.fixture(scope="module")
def arrays():
    return t5_parameters()


@pytest.fixture(scope="module")
def chunked(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("t5x") / "checkpoint_7"
    return write_t5x(folder, arrays, chunks=halves, inline=all_files)


@pytest.fixture(scope="module")
def opened(chunked):
    return open_checkpoint(chunked)


@pytest.mark.parametrize("form", ["file", "gfile", "gcs", "top"])
def test_every_form_of_spec(tmp_path, arrays, form):
    folder = write_t5x(tmp_path / "checkpoint_7", arrays, form=form)
    checkpoint = open_checkpoint(folder, 7)
    assert (checkpoint.format, checkpoint.step) == ("t5x", 7)
    assert_same(checkpoint, arrays)


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "zlib", None])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_compressor_and_order_in_several_chunks(tmp_path, arrays, compressor, order):
    folder = write_t5x(tmp_path / "a", arrays, halves, compressor, order, inline=all_files)
    assert len(list((folder / QUERY_FOLDER).glob("[0-9]*"))) == 4
    assert_same(open_checkpoint(folder), arrays)


def test_bfloat16_in_files_and_inline(tmp_path, arrays):
    rounded = {name: array.astype(BFLOAT16) for name, array in arrays.items()}
    assert_same(open_checkpoint(write_t5x(tmp_path / "a", rounded, chunks=halves)), rounded)


def test_version_2_keeps_bfloat16_as_uint16(tmp_path, arrays):
    rounded = {name: array.astype(BFLOAT16) for name, array in arrays.items()}
    bits = {name: array.view(np.uint16) for name, array in rounded.items()}
    assert_same(open_checkpoint(write_t5x(tmp_path / "a", bits, version=2)), rounded)


def test_single_file(tmp_path, arrays):
    path = write_t5x_file(tmp_path / "run" / "checkpoint_30", arrays)
    assert_same(open_checkpoint(path), arrays)
    trajectory = saturation.open_trajectory(tmp_path / "run")
    assert trajectory.steps == (30,)
    assert_same(trajectory[30], arrays)


def test_published_single_file(tmp_path, fixtures):
    packed = fixtures / "t5x_testdata" / "test_t5_tiny.checkpoint_0.gz"
    path = tmp_path / "test_t5_tiny.checkpoint_0"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    target = flax.serialization.msgpack_restore(path.read_bytes())["optimizer"]["target"]
    expected = flax.traverse_util.flatten_dict(target, sep="/")
    assert_same(saturation.open_trajectory(path)[0], expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("split_heads", [True, False])
def test_scanned_layers_are_presented_unscanned(tmp_path, axis, split_heads):
    arrays = t5_parameters(layers=3, umt5=True)
    stacked = scanned(arrays, axis, split_heads)
    assert_same(open_checkpoint(write_t5x(tmp_path / "a", stacked, chunks=halves)), arrays)


def test_load_is_the_tree_that_the_model_takes(chunked, arrays):
    tree = open_checkpoint(chunked).load()
    leaf = tree["encoder"]["layers_1"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(leaf, arrays[QUERY], strict=True)
    assert set(tree) == {"encoder", "decoder", "token_embedder"}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_slice_is_the_slice_of_the_whole(opened, arrays, data):
    name = data.draw(st.sampled_from(sorted(arrays)))
    box = tuple(data.draw(st.slices(size).map(unit_step)) for size in arrays[name].shape)
    box = box[: data.draw(st.integers(0, len(box)))]
    expected = arrays[name][box]
    np.testing.assert_array_equal(opened.read(name, box), expected, strict=True)
    out = np.empty(expected.shape, np.float32)
    read = opened.read(name, box, out)
    np.testing.assert_array_equal(read, expected)
    assert not read.size or np.shares_memory(read, out)


def unit_step(part: slice) -> slice:
    return slice(part.start, part.stop) if (part.step or 1) > 0 else slice(part.stop, part.start)


def test_slices_of_scanned_layers(tmp_path):
    arrays = t5_parameters(layers=3, umt5=True)
    checkpoint = open_checkpoint(write_t5x(tmp_path / "a", scanned(arrays), chunks=halves))
    for name in ("encoder/layers_2/attention/query/kernel", "decoder/layers_0/mlp/wo/kernel"):
        box = (slice(3, 9), slice(4, 11))
        np.testing.assert_array_equal(checkpoint.read(name, box), arrays[name][box], strict=True)
    out = "decoder/layers_1/encoder_decoder_attention/out/kernel"
    box = (slice(4, 5), slice(0, 16))
    np.testing.assert_array_equal(checkpoint.read(out, box), arrays[out][box], strict=True)


def test_a_slice_reads_only_its_chunks(chunked):
    folder = CountingFolder(chunked)
    checkpoint = open_checkpoint(folder)
    assert not any("/0." in file for file in folder.counts), "opening must read no chunk"
    folder.counts.clear()
    checkpoint.read(QUERY, (slice(0, 3), slice(8, 12)))
    place = chunked / QUERY_FOLDER
    assert folder.counts == {str(place / "0.1"): (place / "0.1").stat().st_size}


def test_opening_reads_no_inline_leaf_that_nobody_asks_for(tmp_path):
    big = {**t5_parameters(), "token_embedder/embedding": np.ones((50_000, EMBED), np.float32)}
    folder = CountingFolder(tmp_path)
    write_t5x_file(tmp_path / "checkpoint_1", big)
    checkpoint = open_checkpoint(folder.restricted_to("checkpoint_1"))
    checkpoint.read(QUERY)
    assert folder.total < (tmp_path / "checkpoint_1").stat().st_size / 2


# -- what is not a checkpoint, or a damaged one ---------------------------------------------------


def damaged(tmp_path: Path, arrays) -> Path:
    return write_t5x(tmp_path / "checkpoint_7", arrays, chunks=halves, inline=all_files)


def message(path: Path, name: str = QUERY) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        open_checkpoint(path).read(name)
    return str(caught.value)


def test_truncated_chunk(tmp_path, arrays):
    folder = damaged(tmp_path, arrays)
    chunk = folder / QUERY_FOLDER / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:-40])
    assert message(folder).startswith(f"{chunk} is truncated or damaged: ")


@pytest.mark.parametrize("compressor", ["gzip", "zlib"])
@pytest.mark.parametrize("installed", [True, False], ids=["deflate", "Arrow"])
def test_a_chunk_that_lost_its_checksum_is_not_taken_for_whole(compressor, installed, monkeypatch):
    """All its values may be there; whether they are the right ones nothing says any more."""
    if not installed:
        monkeypatch.setattr(zarr, "gzip_decompress", None)
    elif zarr.gzip_decompress is None:
        pytest.skip("deflate (the extra `gzip`) is not installed")
    values = np.arange(1000, dtype=np.float32).tobytes()
    packed = gzip.compress(values) if compressor == "gzip" else zlib.compress(values)
    assert bytes(decompress("chunk", compressor, packed, len(values))) == values
    damaged = bytearray(packed)
    damaged[-6 if compressor == "gzip" else -2] ^= 1
    for chunk in (*(packed[:-lost] for lost in range(1, 5)), bytes(damaged)):
        with pytest.raises(CheckpointFormatError, match="chunk is truncated or damaged: "):
            decompress("chunk", compressor, chunk, len(values))


def test_truncated_plain_chunk(tmp_path, arrays):
    folder = write_t5x(tmp_path / "a", arrays, halves, None, inline=all_files)
    chunk = folder / QUERY_FOLDER / "1.0"
    chunk.write_bytes(chunk.read_bytes()[:-40])
    assert message(folder) == (
        f"{chunk} is truncated or damaged: it holds 212 bytes and 252 were expected."
    )


def test_missing_chunk_is_never_filled(tmp_path, arrays):
    folder = damaged(tmp_path, arrays)
    chunk = folder / QUERY_FOLDER / "0.1"
    chunk.unlink()
    assert message(folder) == (
        f"{chunk} is missing: this chunk of an array of shape (16, 12) was not copied or never "
        "written."
    )


def test_missing_zarray(tmp_path, arrays):
    folder = damaged(tmp_path, arrays)
    (folder / QUERY_FOLDER / ".zarray").unlink()
    assert message(folder) == (
        f"{folder / QUERY_FOLDER}/.zarray is missing, which describes the array."
    )


def test_missing_array(tmp_path, arrays):
    folder = damaged(tmp_path, arrays)
    for file in (folder / QUERY_FOLDER).iterdir():
        file.unlink()
    (folder / QUERY_FOLDER).rmdir()
    assert f"{folder / QUERY_FOLDER}/.zarray is missing" in message(folder)


def test_shape_that_differs_from_the_index(tmp_path, arrays):
    folder = damaged(tmp_path, arrays)
    file = folder / QUERY_FOLDER / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shape": [16, 13]}))
    assert message(folder) == (
        f"{file} says shape (16, 13) and the checkpoint's index says (16, 12)."
    )


@pytest.mark.parametrize("which", ["checkpoint", f"{QUERY_FOLDER}/.zarray", f"{QUERY_FOLDER}/0.0"])
def test_git_lfs_pointer(tmp_path, arrays, which):
    folder = damaged(tmp_path, arrays)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / which).write_text(pointer)
    assert f"{folder / which} is a Git-LFS pointer" in message(folder)


def test_index_cut_short(tmp_path, arrays):
    path = write_t5x_file(tmp_path / "checkpoint_1", arrays)
    path.write_bytes(path.read_bytes()[:-5])
    text = message(path)
    assert text.startswith(f"{path} is truncated or no msgpack file of flax: ")


def test_version_too_old(tmp_path, arrays):
    folder = write_t5x(tmp_path / "a", arrays, version=1)
    assert "a T5X checkpoint of version 2 or later" in message(folder)
    assert "this one says version 1." in message(folder)


def test_no_parameters(tmp_path):
    tree = {"version": 3, "optimizer": {"target": {}, "state": {}}}
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert message(tmp_path) == f"{tmp_path}/checkpoint: its 'target' holds no parameters."


@pytest.mark.parametrize("path", ["../secret", "/etc", "a/../../b"])
def test_a_path_that_leaves_the_folder(tmp_path, arrays, path):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": path}, "metadata": {}}
    target = nested({**arrays, QUERY: spec})
    tree = {"version": 3, "optimizer": {"target": target, "state": {}}}
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert "leads out of the checkpoint's folder and is refused" in message(tmp_path)


def test_a_chunk_that_decompresses_to_more_than_declared(tmp_path, arrays):
    folder = damaged(tmp_path, arrays)
    chunk = folder / QUERY_FOLDER / "0.0"
    chunk.write_bytes(gzip.compress(bytes(50_000_000)))
    assert message(folder) == (
        f"{chunk} is truncated or damaged: it holds more than 252 bytes and 252 were expected."
    )


def test_a_name_or_index_that_does_not_fit(chunked):
    checkpoint = open_checkpoint(chunked)
    with pytest.raises(SaturationError, match="there is no parameter 'encoder/nothing'"):
        checkpoint.read("encoder/nothing")
    with pytest.raises(SaturationError, match="a slice of step 1 for each axis"):
        checkpoint.read(QUERY, (slice(0, 9, 2),))
    with pytest.raises(SaturationError, match="a C-contiguous buffer of shape"):
        checkpoint.read(QUERY, None, np.empty((1, 2), np.float32))


def test_fixture_agrees_with_flax_and_tensorstore(fixtures):
    folder = fixtures / "v1_0" / "t5x_legacy" / "checkpoint_300"
    checkpoint = open_checkpoint(folder)
    targets = [place.name for place in folder.iterdir() if place.name.startswith("target.")]
    assert sorted(f"target.{name.replace('/', '.')}" for name in checkpoint.parameters) == sorted(
        targets
    )
    for name in checkpoint.parameters:
        place = folder / f"target.{name.replace('/', '.')}"
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(place)}}
        array = ts.open(spec, read=True).result().read().result()
        assert checkpoint.read(name).tobytes() == array.tobytes()
