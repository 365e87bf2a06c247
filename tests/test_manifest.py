"""Manifests: templates, lists, names; relative places; and every way to get one wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from made_trajectory import write_trajectory

from saturation.errors import ConfigError, TrajectoryError
from saturation.trajectory.manifest import known_trajectories
from saturation.trajectory.trajectory import open_trajectory

STEPS = (0, 10, 30)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trajectory(tmp_path_factory.mktemp("manifest") / "run", STEPS)


def opened(local: Path, tmp_path: Path, text: str):
    shutil.copytree(local, tmp_path / "run", dirs_exist_ok=True)
    (tmp_path / "list.yaml").write_text(text)
    return open_trajectory(tmp_path / "list.yaml")


def assert_same(found, expected) -> None:
    assert found.steps == expected.steps
    for one, other in zip(found, expected, strict=True):
        for name in other.parameters:
            np.testing.assert_array_equal(one.read(name), other.read(name))


@pytest.mark.parametrize(
    "text",
    [
        "{url: 'run/step_{step}', steps: [30, 0, 10]}",
        "{url: run, steps: '0:30:10'}",
        "checkpoints: [{step: 0, url: run/step_0}, {step: 10, url: run/step_10}, "
        "{step: 30, url: ./run/step_30/model.safetensors}]",
    ],
)
def test_checkpoints_lie_where_the_manifest_says(local: Path, tmp_path: Path, text: str) -> None:
    found = opened(local, tmp_path, text)
    assert_same(found, open_trajectory(local))


def test_steps_of_a_whole_trajectory_are_what_is_expected(local: Path, tmp_path: Path) -> None:
    found = opened(local, tmp_path, "{url: run, steps: '0:30:10'}")
    assert found.expected == (0, 10, 20, 30)
    assert found.select("10:30:10").expected == (10, 20, 30)
    assert open_trajectory(local).expected == ()


def test_a_manifest_on_a_bucket_is_relative_to_it(local: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(local), "/manifests/run", recursive=True)
    files.pipe_file("/manifests/list.yaml", b"{url: 'run/step_{step}', steps: [0, 10, 30]}")
    assert_same(open_trajectory("memory://manifests/list.yaml"), open_trajectory(local))
    files.pipe_file("/manifests/bad.yaml", b"{url: '/etc/{step}', steps: [0]}")
    with pytest.raises(TrajectoryError, match="is a path of this machine, which a manifest from"):
        open_trajectory("memory://manifests/bad.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "give either 'url' or 'checkpoints', and not both"),
        ("{url: run, checkpoints: [{step: 1, url: b}]}", "and not both"),
        ("url: 'run/{step}'", r"'url' has \{step\} in it: say with 'steps' which there are"),
        ("{url: run, steps: '1:2'}", "steps '1:2' is not START:STOP:EVERY nor a list"),
        ("{url: run, steps: '0:9:0'}", "is not START:STOP:EVERY"),
        ("{url: run, steps: '0:999999999999999999:1'}", "is not START:STOP:EVERY"),
        ("{url: run, step: 3}", "there is no key 'step'; the nearest is 'steps'"),
        ("checkpoints: [{step: 1, url: a}, {step: 1, url: b}]", "the step 1 stands twice"),
        ("checkpoints: [{step: -1, url: a}]", "checkpoints.0.step"),
        ("{url: [", "a manifest of checkpoints was expected"),
        ("url: list.yaml", "its 'url' is a manifest again, .*list.yaml: open that one"),
        ("just text", "list.yaml: "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_trajectory(tmp_path / "list.yaml")


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="no such folder or file"):
        open_trajectory(tmp_path / "none.yaml")


def test_names_of_the_known_trajectories_open_without_a_request() -> None:
    assert "pile-t5-base" in known_trajectories()
    pytest.importorskip("gcsfs", reason="reading buckets needs gcsfs (the extra 'gcs')")
    trajectory = open_trajectory("t5-1.1-base")
    assert len(trajectory) == len(trajectory.expected) == 2


def test_a_name_that_is_not_known_is_said_with_the_nearest(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrajectoryError, match=r"no such folder.*; the nearest .* is pile-t5-base"):
        open_trajectory("pile-t5-bse")
    with pytest.raises(TrajectoryError, match=r"nor the name of a known trajectory\.$"):
        open_trajectory("zzz")


def test_a_folder_goes_before_a_known_name(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(local, tmp_path / "pile-t5-base")
    monkeypatch.chdir(tmp_path)
    assert open_trajectory("pile-t5-base").steps == STEPS
