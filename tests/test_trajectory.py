"""Finding the steps: namings, what is left out and why, and what is asked for and absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from saturation.errors import TrajectoryError
from saturation.trajectory.trajectory import open_trajectory


def write(folder: Path, value: float = 1.0) -> None:
    folder.mkdir(parents=True)
    save_file({"layer.0.weight": np.full((2, 2), value, np.float32)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "naming",
    [
        "checkpoint_{}",
        "{}",
        "step_{}",
        "step{}",
        "{:08d}",
        "run_{:06d}",
        "checkpoint-{}",
        "v1.1-{}",
    ],
)
def test_steps_are_found_whatever_the_naming_and_sorted_by_number(tmp_path, naming):
    for step in (1000, 0, 200):
        write(tmp_path / naming.format(step), step)
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (0, 200, 1000)
    assert [c.step for c in trajectory] == [0, 200, 1000]
    assert [c.read("layer/0/weight")[0, 0] for c in trajectory] == [0, 200, 1000]
    assert trajectory.ignored == ()


def test_what_is_unfinished_or_incomplete_is_left_out_with_the_reason(tmp_path):
    write(tmp_path / "checkpoint_100")
    write(tmp_path / "checkpoint_200")
    for name in (
        "checkpoint_300.tmp-1700000000",
        "400.orbax-checkpoint-tmp-3",
        "500.orbax-checkpoint-tmp",
        "checkpoint_600_tmp",
    ):
        write(tmp_path / name)
    (tmp_path / "checkpoint_700" / "target.encoder.w").mkdir(parents=True)
    (tmp_path / "logs").mkdir()
    (tmp_path / "seed_42").write_text("42")
    (tmp_path / "notes.txt").write_text("nothing")
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (100, 200)
    ignored = dict(trajectory.ignored)
    assert set(ignored) == {
        "checkpoint_300.tmp-1700000000",
        "400.orbax-checkpoint-tmp-3",
        "500.orbax-checkpoint-tmp",
        "checkpoint_600_tmp",
        "checkpoint_700",
        "seed_42",
    }
    assert ignored["seed_42"] == "no checkpoint, nor named like the others"
    assert ignored["400.orbax-checkpoint-tmp-3"] == "temporary: its writer did not finish"
    assert ignored["checkpoint_700"].startswith("incomplete or unknown: ")


def test_a_single_checkpoint_is_a_trajectory_of_one_step(tmp_path):
    write(tmp_path / "step_40")
    write(tmp_path / "model")
    assert open_trajectory(tmp_path / "step_40").steps == (40,)
    assert open_trajectory(tmp_path / "step_40" / "model.safetensors").steps == (40,)
    assert open_trajectory(tmp_path / "model").steps == (0,)


def test_numbered_checkpoints_win_over_final_weights_beside_them(tmp_path):
    write(tmp_path / "run" / "checkpoint-10")
    shutil.copy(tmp_path / "run" / "checkpoint-10" / "model.safetensors", tmp_path / "run")
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.steps == (10,)
    assert dict(trajectory.ignored)["model.safetensors"] == (
        "no step in its name: lies beside the numbered checkpoints"
    )


@pytest.fixture
def ten(tmp_path) -> Path:
    for step in range(0, 1000, 100):
        write(tmp_path / f"step_{step}")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        (None, tuple(range(0, 1000, 100))),
        ("200:400", (200, 300, 400)),
        ("::300", (0, 300, 600, 900)),
        ("100:900:400", (100, 500, 900)),
        (":250", (0, 100, 200)),
        ("800:", (800, 900)),
        ("700", (700,)),
        ([300, 100], (100, 300)),
    ],
)
def test_steps_are_selected(ten, asked, steps):
    assert open_trajectory(ten, steps=asked).steps == steps


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ([250, 300], "has no checkpoint for step 250; the nearest it has is 200"),
        ("555", "no checkpoint for step 555; the nearest it has is 600"),
        ("2000:3000", "no step is in '2000:3000'; there are 0, 100, 200, 300, 400, … 900"),
        ("a:b", "START:STOP:EVERY was expected"),
        ("1:2:3:4", "START:STOP:EVERY was expected"),
        ("", "START:STOP:EVERY was expected"),
        ("0:10:0", "EVERY must be at least 1"),
    ],
)
def test_steps_that_are_not_there(ten, asked, text):
    with pytest.raises(TrajectoryError, match=text):
        open_trajectory(ten, steps=asked)


def test_a_step_that_is_absent_names_the_nearest(ten):
    with pytest.raises(
        TrajectoryError, match="no checkpoint for step 149; the nearest it has is 100"
    ):
        open_trajectory(ten)[149]


def test_no_such_folder(tmp_path):
    with pytest.raises(TrajectoryError, match="nowhere: no such folder or file"):
        open_trajectory(tmp_path / "nowhere")


def test_a_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(TrajectoryError, match="holds no checkpoint") as caught:
        open_trajectory(tmp_path)
    for name in ("t5x looks for", "orbax looks for", "huggingface looks for"):
        assert name in str(caught.value)


def test_two_checkpoints_of_one_step_and_two_series_are_refused(tmp_path):
    write(tmp_path / "a" / "step_10")
    write(tmp_path / "a" / "step_010")
    with pytest.raises(TrajectoryError, match="two checkpoints for step 10: step_010 and step_10"):
        open_trajectory(tmp_path / "a")
    write(tmp_path / "b" / "step_10")
    write(tmp_path / "b" / "epoch_2")
    with pytest.raises(TrajectoryError, match=r"several names: epoch_\*, step_\*"):
        open_trajectory(tmp_path / "b")


def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path / "step_10")
    os.mkfifo(tmp_path / "step_20")
    os.mkfifo(tmp_path / "step_10" / "checkpoint")
    assert open_trajectory(tmp_path).steps == (10,)
