"""What every format owes: a name, what it looks for, and to be told by content and not by name."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoint_writers import (
    assert_same,
    hugging_face,
    t5_parameters,
    write_hugging_face,
    write_t5x,
    write_t5x_file,
)

from saturation.checkpoints import FORMATS, open_checkpoint
from saturation.errors import CheckpointFormatError
from saturation.storage.local_folder import LocalFolder


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return t5_parameters()


@pytest.fixture
def both(tmp_path, arrays) -> Path:
    """A folder that two formats claim."""
    folder = write_t5x(tmp_path / "checkpoint_5", arrays)
    hf = write_hugging_face(tmp_path / "hf", hugging_face(arrays), tie_word_embeddings=False)
    shutil.copy(hf / "model.safetensors", folder)
    return folder


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.NAME)
def test_a_format_says_what_it_is_and_leaves_strangers_alone(form, tmp_path):
    assert re.fullmatch(r"[a-z0-9-]+", form.NAME)
    assert form.LOOKS_FOR
    assert "\n" not in form.LOOKS_FOR
    assert form.__doc__
    assert not form.claims(LocalFolder(tmp_path))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-5"\n')
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "table.index").write_bytes(b"x" * 100)
    assert not form.claims(LocalFolder(tmp_path))


def test_names_of_formats_differ():
    assert len({form.NAME for form in FORMATS}) == len(FORMATS)


def test_no_claimant_is_an_error_that_lists_what_each_looked_for(tmp_path):
    (tmp_path / "weights.dat").write_bytes(bytes(100))
    with pytest.raises(CheckpointFormatError, match="is no checkpoint of a known format") as caught:
        open_checkpoint(tmp_path)
    for form in FORMATS:
        assert f"{form.NAME} looks for {form.LOOKS_FOR}" in str(caught.value)


def test_two_claimants_are_an_error_that_lists_both(both):
    with pytest.raises(CheckpointFormatError, match="could be a checkpoint of several") as caught:
        open_checkpoint(both)
    assert "t5x found a msgpack file with the keys 'version' and 'optimizer'" in str(caught.value)
    assert "huggingface found safetensors files" in str(caught.value)


def test_a_pointer_in_place_of_the_only_file_is_what_is_reported(tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "flax_model.msgpack").write_text(text)
    with pytest.raises(CheckpointFormatError, match=r"flax_model\.msgpack is a Git-LFS pointer"):
        open_checkpoint(tmp_path)


def test_a_file_is_known_by_its_content_whatever_it_is_called(tmp_path, arrays):
    hf = write_hugging_face(tmp_path / "hf", hugging_face(arrays), tie_word_embeddings=False)
    (hf / "model.safetensors").rename(hf / "weights.dat")
    assert_same(open_checkpoint(hf), arrays)
    write_t5x_file(tmp_path / "t5x" / "model.safetensors", arrays)
    checkpoint = open_checkpoint(tmp_path / "t5x")
    assert checkpoint.format == "t5x"
    assert_same(checkpoint, arrays)


def test_threads_may_read_one_checkpoint(tmp_path, arrays):
    checkpoint = open_checkpoint(write_t5x(tmp_path / "checkpoint_5", arrays))
    names = list(arrays) * 20
    with ThreadPoolExecutor(8) as pool:
        for name, found in zip(names, pool.map(checkpoint.read, names), strict=True):
            np.testing.assert_array_equal(found, arrays[name])
