"""Which step a name is of, which digits are none, and what a folder of such names gives."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import saturation
from saturation.errors import TrajectoryError
from saturation.trajectory.audit import audit
from saturation.trajectory.step_names import says_step, step_name
from saturation.trajectory.trajectory import open_trajectory

HASH = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, value: float = 1.0) -> None:
    folder.mkdir(parents=True)
    save_file({"layer.0.weight": np.full((2, 2), value, np.float32)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("stage1-step150-tokens1B", 150),
        ("step100-unsharded", 100),
        ("global_step100_hf", 100),
        ("globalstep100", 100),
        ("iter_100_fp16", 100),
        ("iteration-0000100", 100),
        ("100-unsharded", 100),
        ("ckpt_100.safetensors", 100),
        ("100.pt", 100),
        ("epoch=0-step=100.ckpt", 100),
        ("model.ckpt-100", 100),
        ("Step100", 100),
        ("v1.1-100", 100),
        ("step100-tokens4", 100),
        ("seed1-step100", 100),
        ("1e3", None),
        ("step_1e3", None),
        ("0.1", None),
        ("step_0.5", None),
        ("step_1,000", None),
        ("step_1_000", None),
        ("step100k", None),
        ("lr_1e-3", None),
        ("2024-01-05", None),
        ("step3-step4", None),
        ("t5-v1_1", None),
        ("model_100.safetensors", None),
        ("consolidated.00.pth", None),
        ("model-00001-of-00002.safetensors", None),
        (HASH, None),
        ("1234567890" * 4, None),
        ("final", None),
    ],
)
def test_the_step_of_a_name(name, step):
    assert step_name(name).step == step


def test_numbers_behind_the_step_and_epochs_go_with_it_and_others_tell_series_apart():
    assert step_name("step1-tokens4B").family == step_name("step2-tokens8B").family
    assert step_name("epoch=0-step=10").family == step_name("epoch=1-step=20").family
    assert step_name("seed1-step1").family != step_name("seed2-step1").family
    assert step_name("stage1-step1-tokens1B").family != step_name("stage2-step1-tokens1B").family
    assert step_name("step1").family != step_name("step1-hf").family


def test_a_number_that_is_a_models_name_is_no_step_of_it(tmp_path):
    assert not says_step("gpt2")
    assert says_step("step2")
    for name, step in (("gpt2", 0), ("step_7", 7), (HASH, 0)):
        write(tmp_path / name)
        assert open_trajectory(tmp_path / name).steps == (step,)


@pytest.mark.parametrize(
    "naming",
    [
        "step{}-unsharded",
        "stage1-step{}-tokens{}B",
        "global_step{}_hf",
        "step{}-tokens{}",
        "{}-hf",
        "iter_{}_fp16",
    ],
)
def test_what_stands_behind_the_step_does_not_hide_it(tmp_path, naming):
    for step in (0, 100, 2000):
        write(tmp_path / naming.format(step, step // 25), step)
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (0, 100, 2000)
    assert [c.read("layer/0/weight")[0, 0] for c in trajectory] == [0, 100, 2000]
    assert trajectory.ignored == ()


@pytest.mark.parametrize("naming", ["ckpt_{}.safetensors", "epoch=0-step={}.safetensors"])
def test_files_of_one_folder_are_a_trajectory(tmp_path, naming):
    for step in (100, 0, 20):
        file = tmp_path / naming.format(step)
        save_file({"layer.0.weight": np.full((2, 2), step, np.float32)}, file)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (0, 20, 100)
    assert [c.read("layer/0/weight")[0, 0] for c in trajectory] == [0, 20, 100]


def test_checkpoints_that_are_not_used_are_named_by_ls_and_audit(tmp_path):
    for step in range(0, 400, 100):
        write(tmp_path / f"step_{step}", step)
    unused = ("final", "best", "step_300-merged", "step_200 (copy)", "1e3", HASH)
    for name in unused:
        write(tmp_path / name)
    (tmp_path / "logs").mkdir()
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (0, 100, 200, 300)
    ignored = dict(trajectory.ignored)
    assert set(ignored) == set(unused)
    assert ignored["final"] == "no step in its name: lies beside the numbered checkpoints"
    assert ignored["step_300-merged"] == "a checkpoint, but not named like the others (step_*)"
    findings = [finding for finding in audit(trajectory) if finding.kind == "unused"]
    assert {name for name in unused if any(name in f.evidence for f in findings)} == set(unused)


def test_a_broken_link_is_named(tmp_path):
    for step in (0, 100, 200):
        write(tmp_path / f"step_{step}")
    file = tmp_path / "step_200" / "model.safetensors"
    file.unlink()
    file.symlink_to("../../blobs/0123abcd")
    os.symlink("nowhere", tmp_path / "step_300")
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == (0, 100)
    assert dict(trajectory.ignored) == {
        "step_200": "incomplete: model.safetensors is a broken link, ../../blobs/0123abcd is not "
        "there",
        "step_300": "broken link: nowhere is not there",
    }
    assert [f.kind for f in audit(trajectory)] == ["incomplete", "incomplete", "duplicate"]


def test_where_names_do_not_say_the_error_shows_a_manifest_that_works(tmp_path):
    for name in ("1e3", "2e3"):
        write(tmp_path / "a" / name)
    with pytest.raises(TrajectoryError, match="names give no step: 1e3, 2e3") as caught:
        open_trajectory(tmp_path / "a")
    text = str(caught.value)
    manifest = text[text.index("checkpoints:") :]
    (tmp_path / "a" / "steps.yaml").write_text(
        manifest.replace("STEP", "1000", 1).replace("STEP", "2000", 1)
    )
    assert open_trajectory(tmp_path / "a" / "steps.yaml").steps == (1000, 2000)
    for step in (100, 200):
        write(tmp_path / "b" / "x")
        (tmp_path / "b" / "x" / "model.safetensors").rename(
            tmp_path / "b" / f"model_{step}.safetensors"
        )
        shutil.rmtree(tmp_path / "b" / "x")
    with pytest.raises(TrajectoryError, match=r"whether their numbers are steps[^:]*names do not"):
        open_trajectory(tmp_path / "b")


def cache(root: Path, references: dict[str, str]) -> Path:
    """A repository in the hub's cache, each reference at a commit of its own, files as links."""
    path = root / "models--org--name"
    for number, (name, commit) in enumerate(references.items()):
        write(root / "made", number)
        (path / "blobs").mkdir(parents=True, exist_ok=True)
        shutil.move(root / "made" / "model.safetensors", path / "blobs" / str(number))
        shutil.rmtree(root / "made")
        snapshot = path / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{number}")
        if not name.startswith("("):
            (path / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
            (path / "refs" / name).write_text(commit)
    return path


def test_a_cache_of_the_hub_is_read_by_its_references(tmp_path):
    commits = [f"{number:x}" * 40 for number in range(1, 6)]
    path = cache(tmp_path, dict(zip(["step0", "step100", "main", "(none)"], commits, strict=False)))
    (path / "refs" / "step200").write_text(commits[4])
    trajectory = saturation.open_trajectory(path)
    assert trajectory.steps == (0, 100)
    assert [c.read("layer/0/weight")[0, 0] for c in trajectory] == [0, 1]
    assert dict(trajectory.ignored) == {
        "step200": f"incomplete: the snapshot {commits[4]} was not downloaded",
        f"snapshots/{commits[3]}": "no step in its name: no reference has it",
        "main": "no step in its name: a revision beside the numbered ones",
    }


def test_a_cache_of_one_revision_is_one_checkpoint_and_of_nameless_ones_asks_for_steps(tmp_path):
    commits = [f"{number:x}" * 40 for number in range(1, 6)]
    path = cache(tmp_path / "a", {"main": commits[0]})
    assert open_trajectory(path).steps == (0,)
    path = cache(tmp_path / "b", {"(one)": commits[0], "(two)": commits[1]})
    with pytest.raises(TrajectoryError, match="several revisions and no name that tells"):
        open_trajectory(path)
