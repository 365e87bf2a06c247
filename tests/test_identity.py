"""A run knows its checkpoints again: all of them, by their files, and notices when they change."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import servers
from safetensors.numpy import save_file

import saturation
from saturation.cli.text import status_text
from saturation.errors import CheckpointFormatError, FormerVersionWarning, ResultsError
from saturation.results.state import open_run

FORMER = Path(__file__).parent / "data" / "run_of_20ae0b7"


def write(folder: Path, seed: int, size: int = 8, empty: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    arrays = {"bias.weight": np.zeros((empty, 2), np.float32), "w.weight": weights}
    save_file(arrays, folder / "model.safetensors")
    return folder


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    for step in range(4):
        write(tmp_path / "t" / f"step_{step}", step)
    return tmp_path / "t"


def measured(path: Path, out: Path, *measures: str) -> None:
    saturation.measure(saturation.open_trajectory(path), measures or ("norms",), str(out))


@pytest.mark.parametrize("empty", [2, 0])
def test_another_trajectory_with_the_same_smallest_matrix_is_refused(tmp_path, empty):
    for seed in (1, 2):
        for step in range(3):
            write(tmp_path / f"t{seed}" / f"step_{step}", 10 * seed + step, empty=empty)
    measured(tmp_path / "t1", tmp_path / "r")
    with pytest.raises(ResultsError, match=r"another trajectory, .*: its checkpoint 0 is not"):
        measured(tmp_path / "t2", tmp_path / "r")


def test_a_replaced_middle_checkpoint_is_refused_by_its_step(trajectory, tmp_path):
    measured(trajectory, tmp_path / "r")
    write(trajectory / "step_2", 99)
    with pytest.raises(ResultsError, match="its checkpoint 2 is not the one in"):
        measured(trajectory, tmp_path / "r", "direction")


def test_a_large_checkpoint_is_known_by_blocks_of_it_to_the_last_byte(tmp_path):
    for step in (0, 1, 2):
        write(tmp_path / "t" / f"step_{step}", step, size=600)
    known = saturation.open_trajectory(tmp_path / "t").fingerprints()
    assert len(set(known.values())) == 3
    file = tmp_path / "t" / "step_1" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = saturation.open_trajectory(tmp_path / "t").fingerprints()
    assert {step for step in known if known[step] != found[step]} == {1}


def test_a_copy_and_what_lies_beside_the_weights_are_the_same_checkpoint(trajectory, tmp_path):
    measured(trajectory, tmp_path / "r")
    shutil.copytree(trajectory, tmp_path / "copy")
    (tmp_path / "copy" / "step_1" / "README.md").write_text("new")
    (tmp_path / "copy" / "step_1" / "optimizer.pt").write_bytes(b"x" * 100)
    measured(tmp_path / "copy", tmp_path / "r", "direction")
    assert set(saturation.load_results(tmp_path / "r")["measure"]) == {"norms", "direction"}


@pytest.mark.parametrize("times_back", [False, True])
def test_a_file_that_changes_while_it_is_measured_is_named(trajectory, times_back):
    opened = saturation.open_trajectory(trajectory)
    opened.open_all()
    file = trajectory / "step_1" / "model.safetensors"
    before = file.stat()
    write(trajectory / "step_1", 99)
    if times_back:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointFormatError, match=r"step_1/model\.safetensors has changed since"):
        opened[1].read("w/weight")
    with pytest.raises(CheckpointFormatError, match="the checkpoint of step 1 changed while it"):
        opened.refuse_changed()
    opened[0].read("w/weight")


def test_a_checkpoint_that_changes_under_a_run_stops_it(trajectory, tmp_path, monkeypatch):
    from saturation.runs.weights import WeightStream

    begin = WeightStream.run

    def replaced(self, todo):
        write(trajectory / "step_2", 99)
        begin(self, todo)

    monkeypatch.setattr(WeightStream, "run", replaced)
    with pytest.raises(CheckpointFormatError, match=r"step_2/model\.safetensors has changed"):
        measured(trajectory, tmp_path / "r")
    monkeypatch.undo()
    with pytest.raises(ResultsError, match="its checkpoint 2 is not the one in"):
        measured(trajectory, tmp_path / "r")


@pytest.mark.parametrize("lost", [".", "parts"])
def test_a_run_that_is_deleted_while_it_is_written_is_no_success(
    trajectory, tmp_path, monkeypatch, lost
):
    from saturation.runs.weights import WeightStream

    begin = WeightStream.run

    def deleted(self, todo):
        begin(self, todo)
        shutil.rmtree(tmp_path / "r" / lost)

    monkeypatch.setattr(WeightStream, "run", deleted)
    with pytest.raises(ResultsError, match="was deleted, in whole or in part, while it was"):
        measured(trajectory, tmp_path / "r")


def test_fingerprints_of_a_hub_take_no_request_but_those_of_opening(trajectory, monkeypatch):
    repository = {f"step{step}": trajectory / f"step_{step}" for step in range(4)}
    with servers.hub({"org/model": repository}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        opened = saturation.open_trajectory("hf://org/model@step*")
        opened.open_all()
        asked = len(served.requests)
        assert len(set(opened.fingerprints().values())) == 4
        assert len(served.requests) == asked


def test_the_run_records_every_step(trajectory, tmp_path):
    measured(trajectory, tmp_path / "r")
    described = json.loads((tmp_path / "r" / "run.json").read_text())
    assert list(described["identity"]) == ["0", "1", "2", "3"]
    assert len(set(described["identity"].values())) == 4


def test_a_run_of_the_former_version_is_read_and_not_extended(tmp_path):
    """`tests/data/run_of_20ae0b7` was written by that commit, from the arrays made here."""
    for step in (0, 10, 20):
        generator = np.random.default_rng(step)
        arrays = {
            name: generator.standard_normal(shape).astype(np.float32)
            for name, shape in (("embed_tokens.weight", (8, 4)), ("layers.0.mlp.weight", (4, 4)))
        }
        (tmp_path / "t" / f"step_{step}").mkdir(parents=True)
        save_file(arrays, tmp_path / "t" / f"step_{step}" / "model.safetensors")
        whole = np.concatenate([array.ravel() for array in arrays.values()]).astype(np.float64)
    shutil.copytree(FORMER, tmp_path / "r")
    with pytest.warns(FormerVersionWarning, match="has no fingerprint of every checkpoint"):
        table = saturation.load_results(tmp_path / "r")
    last = table.query("metric == 'l2' and scope == 'total' and step == 20")["value"].item()
    assert last == pytest.approx(np.linalg.norm(whole), rel=1e-12)
    assert "no fingerprint of every checkpoint" in status_text(
        "r", open_run(tmp_path / "r").status()
    )
    with pytest.raises(ResultsError, match="nothing can be added to it; measure into a new folder"):
        measured(tmp_path / "t", tmp_path / "r")
