"""One planted fault after another in trainings of several kinds, each to be found and named.

The kinds are what the order of checkpoints has to be told from: weights that go straight on, wander
at random, slow down towards a goal, or only jump about a point.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_writers import BFLOAT16, hugging_face, t5_parameters, write_hugging_face

from saturation.trajectory.audit import Finding, audit
from saturation.trajectory.trajectory import open_trajectory

STEPS = tuple(range(0, 800, 100))
LAYER = "encoder.block.1."
KEY = "encoder.block.0.layer.0.SelfAttention.k.weight"

Weights = list[dict[str, np.ndarray]]


def training(kind: str, count: int = len(STEPS)) -> Weights:
    """Weights of a training, checkpoint by checkpoint, under Hugging Face's names."""
    start, goal = hugging_face(t5_parameters(0)), hugging_face(t5_parameters(1))
    made, here = [], start
    for at in range(count):
        noise = hugging_face(t5_parameters(100 + at))
        scale = np.float32({"wandering": 0.3 * (at > 0), "slowing": 0.03}.get(kind, 0.3))
        if kind == "straight":
            here = {name: start[name] + np.float32(0.1 * at) * goal[name] for name in start}
        elif kind == "slowing":
            pull = np.float32(1 - 0.6**at)
            here = {n: start[n] + pull * goal[n] + scale * noise[n] for n in start}
        elif kind == "about a point":
            here = {name: start[name] + scale * noise[name] for name in start}
        else:
            here = {name: here[name] + scale * noise[name] for name in start}
        made.append(here)
    return made


def write(folder: Path, weights: Weights, shards: int = 1) -> Path:
    for step, arrays in zip(STEPS, weights, strict=False):
        write_hugging_face(folder / f"step_{step}", arrays, shards, tie_word_embeddings=False)
    return folder


def found_in(folder: Path, **options) -> list[Finding]:
    return audit(open_trajectory(folder), **options)


def kinds(findings: list[Finding]) -> set[tuple[str, tuple[int, ...]]]:
    return {(finding.kind, finding.steps) for finding in findings}


@pytest.fixture(params=["straight", "wandering", "slowing"])
def weights(request) -> Weights:
    return training(request.param)


@pytest.fixture
def wandering() -> Weights:
    return training("wandering")


@pytest.mark.parametrize("kind", ["straight", "wandering", "slowing", "about a point"])
def test_a_healthy_training_has_no_findings(tmp_path, kind):
    assert found_in(write(tmp_path, training(kind))) == []


def test_the_fixtures_have_no_findings(fixtures):
    for place in ("v1_0/hf", "v1_0/mtf", "v1_0/msgpack", "v1_0/hf_bf16", "umt5/hf"):
        assert found_in(fixtures / place) == [], place


@pytest.mark.parametrize("at", [0, 3, 6])
def test_swapped_pair(tmp_path, weights, at):
    weights[at], weights[at + 1] = weights[at + 1], weights[at]
    assert kinds(found_in(write(tmp_path, weights))) == {("order", (STEPS[at], STEPS[at + 1]))}


def test_duplicated_step(tmp_path, weights):
    weights[3] = weights[2]
    assert kinds(found_in(write(tmp_path, weights))) == {("duplicate", (200, 300))}


@pytest.mark.parametrize("at", [1, 4])
def test_late_weights_under_an_early_step(tmp_path, weights, at):
    weights[at] = weights[-1]
    assert kinds(found_in(write(tmp_path, weights))) == {
        ("duplicate", (STEPS[at], 700)),
        ("order", (STEPS[at],)),
    }


@pytest.mark.parametrize("kind", ["straight", "wandering"])
@pytest.mark.parametrize("at", [1, 3])
def test_late_weights_that_are_nowhere_else(tmp_path, kind, at):
    weights = training(kind, 12)
    weights[at] = weights[11]
    findings = found_in(write(tmp_path, weights[: len(STEPS)]))
    assert ("order", (STEPS[at],)) in kinds(findings)
    assert {finding.steps for finding in findings} == {(STEPS[at],)}


@pytest.mark.parametrize("at", [2, 7])
def test_reinitialised_layer(tmp_path, weights, at):
    fresh = hugging_face(t5_parameters(99))
    weights[at] = {n: fresh[n] if n.startswith(LAYER) else a for n, a in weights[at].items()}
    findings = found_in(write(tmp_path, weights))
    assert kinds(findings) == {("reinitialised", (STEPS[at],))}
    assert all(finding.evidence.startswith("encoder/layers_1/") for finding in findings)


def test_layer_that_stays_as_initialised_anew(tmp_path, wandering):
    fresh = hugging_face(t5_parameters(99))
    for at in range(4, len(STEPS)):
        drift = {n: fresh[n] + wandering[at][n] - wandering[4][n] for n in fresh}
        wandering[at] = {n: drift[n] if LAYER in n else a for n, a in wandering[at].items()}
    assert kinds(found_in(write(tmp_path, wandering))) == {("reinitialised", (400,))}


def test_values_that_are_not_finite(tmp_path, wandering):
    spoilt = wandering[5][KEY].copy()
    spoilt[3, 4] = np.inf
    wandering[5] = {**wandering[5], KEY: spoilt}
    (finding,) = found_in(write(tmp_path, wandering))
    assert (finding.kind, finding.steps) == ("nonfinite", (500,))
    assert "1 of 192 in encoder/layers_0/attention/key/kernel" in finding.evidence


def test_missing_step(tmp_path, wandering):
    folder = write(tmp_path, wandering)
    shutil.rmtree(folder / "step_300")
    assert kinds(found_in(folder)) == {("missing", (300,))}


def test_missing_steps_of_a_spacing_that_was_given(tmp_path, wandering):
    folder = write(tmp_path, wandering[:3])
    assert found_in(folder) == []
    assert kinds(found_in(folder, every=50)) == {("missing", (50,)), ("missing", (150,))}


def test_truncated_shard(tmp_path, wandering):
    folder = write(tmp_path, wandering, shards=2)
    shard = folder / "step_400" / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    (finding,) = found_in(folder)
    assert (finding.kind, finding.steps) == ("damaged", (400,))
    assert f"{shard} is truncated" in finding.evidence


def test_git_lfs_pointer(tmp_path, wandering):
    folder = write(tmp_path, wandering)
    file = folder / "step_400" / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (finding,) = found_in(folder)
    assert (finding.kind, finding.steps) == ("damaged", (400,))
    assert f"{file} is a Git-LFS pointer" in finding.evidence


def test_checkpoint_without_its_weights(tmp_path, wandering):
    folder = write(tmp_path, wandering)
    (folder / "step_700" / "model.safetensors").unlink()
    (finding,) = found_in(folder)
    assert finding.kind == "incomplete"
    assert finding.evidence.startswith("step_700 was left out: incomplete or unknown: ")


def test_array_that_vanishes(tmp_path, wandering):
    wandering[7] = {name: array for name, array in wandering[7].items() if name != KEY}
    (finding,) = found_in(write(tmp_path, wandering))
    assert (finding.kind, finding.steps) == ("arrays", (700,))
    assert "encoder/layers_0/attention/key/kernel has vanished" in finding.evidence


def test_array_that_changes_its_type(tmp_path, wandering):
    wandering[7] = {**wandering[7], KEY: wandering[7][KEY].astype(BFLOAT16)}
    (finding,) = found_in(write(tmp_path, wandering))
    assert (finding.kind, finding.steps) == ("arrays", (700,))
    assert "key/kernel has type bfloat16 and had float32" in finding.evidence


@pytest.mark.parametrize("fault", ["swap", "late"])
def test_faults_planted_in_a_real_trajectory(fixtures, tmp_path, fault):
    for step in (0, 100, 200, 300):
        place = tmp_path / f"step_{step}"
        place.mkdir()
        for file in (fixtures / "v1_0" / "hf" / place.name).iterdir():
            shutil.copyfile(file, place / file.name)
    one, other, last = (tmp_path / f"step_{s}" / "model.safetensors" for s in (100, 200, 300))
    kept = one.read_bytes()
    one.write_bytes((other if fault == "swap" else last).read_bytes())
    if fault == "swap":
        other.write_bytes(kept)
    expected = ("order", (100, 200)) if fault == "swap" else ("duplicate", (100, 300))
    assert expected in kinds(found_in(tmp_path))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from saturation.cli.commands import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "audit", *arguments], capture_output=True, text=True
    )


def test_the_command_exits_0_where_nothing_is_wrong(tmp_path, wandering):
    done = command(str(write(tmp_path, wandering)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}: 8 checkpoints, nothing found wrong.\n"


def test_the_command_exits_1_and_names_what_is_wrong(tmp_path, wandering):
    wandering[3] = wandering[2]
    done = command(str(write(tmp_path, wandering)))
    assert (done.returncode, done.stderr) == (1, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("duplicate: step 200, 300: the same bytes in all arrays")
    assert last == f"{tmp_path}: 8 checkpoints, 1 finding."


def test_the_command_prints_json_and_nothing_else(tmp_path, wandering):
    wandering[3] = wandering[2]
    done = command(str(write(tmp_path, wandering)), "--json", "--every", "100")
    assert (done.returncode, done.stderr) == (1, "")
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["kind"], finding["steps"]) == ("duplicate", [200, 300])
