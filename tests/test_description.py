"""What may be added to a run that is there, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_trajectory import write_trajectory

import saturation
from saturation.errors import ConfigError, ResultsError
from saturation.results.folder import RunFolder
from saturation.runs.plan import Shard, planned_work
from saturation.runs.settings import ActivationSettings
from saturation.runtime.progress import Progress
from saturation.text.sequences import read_tokens


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> saturation.Trajectory:
    return saturation.open_trajectory(write_trajectory(tmp_path_factory.mktemp("t") / "t"))


def change(run: Path, **changes: object) -> None:
    """Write `run.json` as another version might have; None takes a key away."""
    described = json.loads((run / "run.json").read_text()) | changes
    RunFolder(run).write_run_json(
        {key: said for key, said in described.items() if said is not None}
    )


@pytest.mark.parametrize("key", ["steps", "arrays", "bundles"])
def test_a_run_of_another_version_is_not_added_to(key, trajectory, tmp_path: Path) -> None:
    saturation.measure(trajectory, ["norms"], str(tmp_path))
    change(tmp_path, **{key: None})
    refusal = rf"run.json has no `{key}`: another version of saturation wrote it. Measure into"
    with pytest.raises(ResultsError, match=refusal):
        saturation.measure(trajectory, ["direction"], str(tmp_path))
    with pytest.raises(ResultsError, match=refusal):
        planned_work(trajectory, ["direction"], str(tmp_path), Shard())


def test_measures_of_another_version_are_named(trajectory, tmp_path: Path) -> None:
    saturation.measure(trajectory, ["norms"], str(tmp_path))
    change(tmp_path, measures=["norms", "loudness"])
    with pytest.raises(ResultsError, match="holds loudness, which this version of saturation"):
        saturation.measure(trajectory, ["norms"], str(tmp_path))


def test_a_dry_run_refuses_what_the_run_would(trajectory, tmp_path: Path) -> None:
    saturation.measure(trajectory, ["norms"], str(tmp_path / "run"))
    arrays = json.loads((tmp_path / "run" / "run.json").read_text())["arrays"]
    fewer = dict(list(arrays.items())[1:])
    change(tmp_path / "run", arrays=fewer, bundles={name: [name] for name in fewer})
    with pytest.raises(ResultsError, match=f"measured over {len(fewer)} arrays, and this command"):
        planned_work(trajectory, ["norms"], str(tmp_path / "run"), Shard())
    later = trajectory.select(trajectory.steps[1:])
    with pytest.raises(ResultsError, match="do not continue; choose another --out"):
        planned_work(later, ["norms"], str(tmp_path / "run"), Shard())


def settings(path: Path, ids: list[int], **more) -> ActivationSettings:
    path.write_text(json.dumps(ids))
    return ActivationSettings(read_tokens(str(path)), **more)


def test_other_settings_are_named_and_another_file_of_the_same_tokens_is_not_one(
    trajectory, tmp_path: Path
) -> None:
    run, first = str(tmp_path / "run"), settings(tmp_path / "a.jsonl", [3, 1, 4])
    saturation.measure(trajectory, ["heads"], run, activations=first)
    moved = settings(tmp_path / "b.jsonl", [3, 1, 4])
    assert saturation.measure(trajectory, ["heads"], run, activations=moved).computed == 0
    other = settings(tmp_path / "c.jsonl", [3, 1], scale=10.0)
    with pytest.raises(ResultsError) as refused:
        saturation.measure(trajectory, ["heads"], run, activations=other)
    said = str(refused.value)
    assert "was measured on other tokens or settings than this command's: source " in said
    assert "; encoder_length 3 there, 2 here; " in said
    assert said.endswith("; scale 1000.0 there, 10.0 here. Choose another --out, or the same ones.")
    assert "terms" not in said, "what is alike is not listed"


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_by_which_no_limit_is_approached_is_refused(scale, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"scale: (more than 0|less than inf) was expected, found"
    ):
        settings(tmp_path / "a.jsonl", [1], scale=scale)


def test_a_run_in_the_place_of_a_checkpoint_is_refused(trajectory, tmp_path: Path) -> None:
    step = trajectory.steps[-1]
    for out in (f"{trajectory.path}/step_{step}", f"{trajectory.path}/step_{step + 1}/run"):
        with pytest.raises(ResultsError, match="the name of a checkpoint; choose another --out"):
            saturation.measure(trajectory, ["norms"], out)
        assert not (Path(out) / "run.json").exists()
    inside = f"{trajectory.path}/measured"
    assert saturation.measure(trajectory, ["norms"], inside).computed > 0
    assert saturation.open_trajectory(trajectory.path).steps == trajectory.steps


def test_a_command_that_another_one_overwrote_is_in_the_run_all_the_same(
    trajectory, tmp_path: Path
) -> None:
    """Two commands that begin one run at the same moment: the last to write knows nothing of it."""

    class Other(Progress):
        def say(self, text: str) -> None:
            change(tmp_path, measures=["direction"])

    progress = Other("", "B", quiet=True)
    saturation.measure(trajectory, ["norms"], str(tmp_path), progress=progress)
    assert json.loads((tmp_path / "run.json").read_text())["measures"] == ["direction", "norms"]
