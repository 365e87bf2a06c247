"""The real checkpoints of the original tools: every folder opens, and all hold the same bits."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from saturation.errors import CheckpointFormatError
from saturation.trajectory.trajectory import open_trajectory

# Which reader claims which folder.
CLAIMED = {
    "v1_0/t5x_legacy": "t5x",
    "v1_0/t5x_legacy_bf16": "t5x",
    "v1_0/t5x_legacy_gcs": "t5x",
    "v1_0/t5x_orbax": "t5x-orbax",
    "v1_0/t5x_orbax_2024": "t5x-orbax",
    "v1_0/mtf": "mesh-tensorflow",
    "v1_0/mtf_bf16": "mesh-tensorflow",
    "v1_0/hf": "huggingface",
    "v1_0/hf_bf16": "huggingface",
    "v1_0/hf_bin": "huggingface",
    "v1_0/hf_sharded": "huggingface",
    "v1_0/orbax": "orbax",
    "v1_0/orbax_standard": "orbax",
    "v1_0/orbax_pytree_zarr": "orbax",
    "v1_0/orbax_zarr3": "orbax",
    "v1_0/msgpack": "flax",
    "umt5/hf": "huggingface",
    "umt5/t5x_legacy": "t5x",
}


@cache
def reference(model: Path, step: int) -> dict[str, np.ndarray]:
    checkpoint = open_trajectory(model / "t5x_legacy")[step]
    return {name: checkpoint.read(name) for name in checkpoint.parameters}


@pytest.mark.parametrize("folder", CLAIMED)
def test_every_folder_holds_the_same_bits(fixtures, folder):
    trajectory = open_trajectory(fixtures / folder)
    assert trajectory.format == CLAIMED[folder]
    assert trajectory.steps in ((300,), (0, 100, 200, 300))
    for checkpoint in trajectory:
        expected = reference((fixtures / folder).parent, checkpoint.step)
        assert set(checkpoint.parameters) == set(expected)
        for name, values in expected.items():
            found = checkpoint.read(name)
            rounded = values.astype(ml_dtypes.bfloat16) if "bf16" in folder else values
            assert found.dtype == rounded.dtype
            assert found.shape == rounded.shape == checkpoint.parameters[name].shape
            assert found.tobytes() == rounded.tobytes(), name
            box = tuple(slice(size // 3, size // 3 + 2) for size in values.shape)
            assert checkpoint.read(name, box).tobytes() == rounded[box].tobytes(), name


def test_no_fixture_folder_is_left_out(fixtures):
    present = {
        f"{model}/{folder.name}"
        for model in ("v1_0", "umt5")
        for folder in (fixtures / model).iterdir()
        if folder.is_dir() and folder.name != "golden"
    }
    assert present == set(CLAIMED)


@pytest.mark.parametrize(
    ("folder", "missing"),
    [
        ("tiny_t5", r"checkpoint_1/state\.param_states\.bias/\.zarray is missing"),
        ("tiny_t5/checkpoint_1", r"state\.param_states\.bias/\.zarray is missing"),
        ("tiny_orbax", r"1/_optimizer\.state\.param_states\.bias/\.zarray is missing"),
    ],
)
def test_damaged_ones_name_the_missing_file(fixtures, folder, missing):
    with pytest.raises(CheckpointFormatError, match=missing):
        open_trajectory(fixtures / "t5x_testdata" / folder)[1]


def test_the_single_file_that_t5x_published(fixtures, tmp_path):
    packed = fixtures / "t5x_testdata" / "test_t5_tiny.checkpoint_0.gz"
    (tmp_path / "checkpoint_0").write_bytes(gzip.decompress(packed.read_bytes()))
    checkpoint = open_trajectory(tmp_path)[0]
    assert checkpoint.format == "t5x"
    assert checkpoint.parameters["token_embedder/embedding"].shape == (32128, 8)
    query = checkpoint.read("encoder/layers_1/attention/query/kernel")
    assert query.shape == (8, 12)
    assert np.isfinite(query).all()
    assert query.std() > 0
