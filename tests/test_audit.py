"""The audit finds each planted fault and names it, and a healthy trajectory is clean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from saturation.trajectory import audit as auditing
from saturation.trajectory.audit import Finding, audit, expected_steps
from saturation.trajectory.trajectory import open_trajectory

STEPS = tuple(range(0, 800, 100))
KINDS = ("attention/query", "attention/key", "mlp/wi", "mlp/wo")


def weights_file(run: Path, step: int) -> Path:
    return run / f"step_{step}" / "model.safetensors"


def make(run: Path, steps=STEPS, drift: float = 0.3, seed: int = 0) -> Path:
    """A made trajectory: a random walk with a drift, two layers of four kernels and a norm each."""
    generator = np.random.default_rng(seed)
    arrays = {
        f"encoder.layers.{layer}.{kind.replace('/', '.')}.weight": generator.standard_normal(
            (24, 16)
        )
        for layer in range(2)
        for kind in KINDS
    }
    arrays |= {f"encoder.layers.{layer}.norm.weight": np.ones(24) for layer in range(2)}
    ways = {name: generator.standard_normal(array.shape) for name, array in arrays.items()}
    for step in steps:
        path = weights_file(run, step)
        path.parent.mkdir(parents=True)
        save_file({name: a.astype(np.float32) for name, a in arrays.items()}, path)
        for name, array in arrays.items():
            noise = generator.standard_normal(array.shape)
            arrays[name] = array + 0.15 * (drift * ways[name] + noise)
    return run


@pytest.fixture
def run(tmp_path) -> Path:
    return make(tmp_path / "run")


def edit(run: Path, step: int, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = weights_file(run, step)
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)


def found(run: Path, **options) -> list[Finding]:
    return audit(open_trajectory(run), **options)


@pytest.mark.parametrize("drift", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_trajectory_is_clean(tmp_path, drift, seed):
    assert found(make(tmp_path / "run", drift=drift, seed=seed)) == []


@pytest.mark.parametrize("steps", [(0, 1, 2, 4, 8, 16, 32), (0, 10, 20, 25), (5,), (5, 7)])
def test_steps_without_a_regular_spacing_are_not_missing(tmp_path, steps):
    assert found(make(tmp_path / "run", steps)) == []


@pytest.mark.parametrize(
    "folder",
    ["v1_0/hf", "v1_0/t5x_legacy", "v1_0/mtf", "v1_0/orbax", "v1_0/msgpack", "umt5/t5x_legacy"],
)
def test_the_fixtures_are_clean(fixtures, folder):
    assert found(fixtures / folder) == []


def test_a_missing_step(run):
    shutil.rmtree(run / "step_300")
    (finding,) = found(run)
    assert (finding.kind, finding.steps) == ("missing", (300,))
    assert "5 of 6 spacings are 100 steps" in finding.evidence


def test_a_spacing_that_is_given(run):
    assert [f.steps for f in found(run, every=50)] == [(s,) for s in range(50, 700, 100)]


def test_the_steps_that_a_manifest_lists(run):
    manifest = run / "run.yaml"
    manifest.write_text(f"url: {run}\nsteps: 0:900:100\n")
    shutil.rmtree(run / "step_300")
    steps = {None: [300, 800, 900], "400:900:100": [800, 900], "0:200:": [], "::200": [800]}
    for asked, missing in steps.items():
        findings = audit(open_trajectory(manifest, asked))
        assert [f.steps for f in findings] == [(step,) for step in missing], asked
        assert all("the trajectory's manifest lists it" in f.evidence for f in findings)
    assert audit(open_trajectory(manifest, [0, 100])) == []


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # A gap that grows once at the end is as likely a missing step.
        ((0, 100, 200, 400), (0, 100, 200, 300, 400)),
        ((0, 100, 200, 400, 500), (0, 100, 200, 300, 400, 500)),
        ((0, 100, 300), (0, 100, 200, 300)),
        ((0, 1, 2, 3, 5, 9, 15, 26, 44), ()),
        ((10000, 20000, 30000, 50000, 60000), tuple(range(10000, 70000, 10000))),
    ],
)
def test_which_steps_are_expected(steps, expected):
    assert expected_steps(steps)[0] == expected


def test_a_duplicated_step(run):
    shutil.copy(weights_file(run, 300), weights_file(run, 400))
    findings = found(run)
    assert [(f.kind, f.steps) for f in findings] == [("duplicate", (300, 400))]
    assert "the same bytes in all arrays" in findings[0].evidence


def test_late_weights_under_an_early_step_are_a_duplicate_out_of_place(run):
    shutil.copy(weights_file(run, 700), weights_file(run, 100))
    findings = found(run)
    assert [(f.kind, f.steps) for f in findings] == [("duplicate", (100, 700)), ("order", (100,))]
    assert "belong beside those of step" in findings[1].evidence
    assert "700" in findings[1].evidence


@pytest.mark.parametrize("pair", [(200, 300), (100, 600), (0, 100), (600, 700)])
@pytest.mark.parametrize("drift", [0.0, 0.3, 3.0])
def test_a_swapped_pair(tmp_path, pair, drift):
    run = make(tmp_path / "run", drift=drift)
    one, other = (weights_file(run, step) for step in pair)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    findings = found(run)
    assert [(f.kind, f.steps) for f in findings] == [("order", pair)]
    assert "hold each other's weights" in findings[0].evidence


def reinitialise(arrays: dict[str, np.ndarray]) -> None:
    generator = np.random.default_rng(99)
    for name in arrays:
        if ".1.attention" in name or ".1.mlp" in name:
            arrays[name] = generator.standard_normal(arrays[name].shape).astype(np.float32)


@pytest.mark.parametrize("steps", [(400,), (700,), (400, 500, 600, 700)])
def test_a_reinitialised_layer(run, steps):
    if len(steps) == 1:
        edit(run, steps[0], reinitialise)
    else:
        # Training went on from the fresh layer.
        offset: dict[str, np.ndarray] = {}
        for step in steps:
            arrays = load_file(weights_file(run, step))
            if not offset:
                fresh = {name: array.copy() for name, array in arrays.items()}
                reinitialise(fresh)
                offset = {name: fresh[name] - arrays[name] for name in arrays}
            save_file({n: a + offset[n] for n, a in arrays.items()}, weights_file(run, step))
    findings = [f for f in found(run) if f.kind == "reinitialised"]
    assert {f.steps for f in findings} == {steps[:1]}
    named = " ".join(f.evidence for f in findings)
    for kind in KINDS:
        assert f"encoder/layers/1/{kind}/weight" in named
        assert f"encoder/layers/0/{kind}/weight" not in named


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite(run, value):
    def plant(arrays: dict[str, np.ndarray]) -> None:
        arrays["encoder.layers.0.mlp.wi.weight"][23, 15] = value

    edit(run, 200, plant)
    (finding,) = found(run)
    assert (finding.kind, finding.steps) == ("nonfinite", (200,))
    assert "1 of 384 in encoder/layers/0/mlp/wi/weight" in finding.evidence


def test_a_truncated_file_and_a_pointer(run):
    path = weights_file(run, 200)
    path.write_bytes(path.read_bytes()[:-100])
    weights_file(run, 500).write_text("version https://git-lfs.github.com/spec/v1\noid x\nsize 9\n")
    findings = found(run)
    assert [(f.kind, f.steps) for f in findings] == [("damaged", (200,)), ("damaged", (500,))]
    assert "is truncated" in findings[0].evidence
    assert "Git-LFS pointer" in findings[1].evidence


def test_an_array_that_vanishes_and_one_that_changes_its_type(run):
    edit(run, 300, lambda arrays: arrays.pop("encoder.layers.1.norm.weight"))

    def halve(arrays: dict[str, np.ndarray]) -> None:
        name = "encoder.layers.0.norm.weight"
        arrays[name] = arrays[name].astype(np.float16)

    edit(run, 700, halve)
    findings = found(run)
    assert [(f.kind, f.steps) for f in findings] == [
        ("arrays", (300,)),
        ("arrays", (400,)),
        ("arrays", (700,)),
    ]
    assert "encoder/layers/1/norm/weight has vanished" in findings[0].evidence
    assert "encoder/layers/1/norm/weight has appeared" in findings[1].evidence
    assert "has type float16 and had float32" in findings[2].evidence


def test_a_step_that_was_left_out_because_it_is_incomplete(run):
    weights_file(run, 700).unlink()
    (finding,) = found(run)
    assert finding.kind == "incomplete"
    assert "step_700 was left out" in finding.evidence


def test_a_large_checkpoint_is_sampled_unless_all_is_asked_for(run, monkeypatch):
    monkeypatch.setattr(auditing, "SAMPLE_BYTES", 8 * 1024)

    def plant(arrays: dict[str, np.ndarray]) -> None:
        arrays["encoder.layers.0.mlp.wi.weight"][23, 15] = np.nan

    edit(run, 200, plant)
    shutil.copy(weights_file(run, 400), weights_file(run, 500))
    sampled = found(run)
    assert [(f.kind, f.steps) for f in sampled] == [("duplicate", (400, 500))]
    assert "what was sampled of all arrays (--full reads all)" in sampled[0].evidence
    assert {f.kind for f in found(run, full=True)} == {"nonfinite", "duplicate"}


def test_one_trajectory_in_two_formats_is_clean(fixtures, tmp_path):
    for step, place in ((0, "hf/step_0"), (100, "t5x_legacy/checkpoint_100"), (200, "hf/step_200")):
        shutil.copytree(fixtures / "v1_0" / place, tmp_path / f"step_{step}")
    shutil.copytree(fixtures / "v1_0" / "t5x_legacy/checkpoint_300", tmp_path / "step_300")
    assert found(tmp_path) == []
    shutil.copytree(fixtures / "v1_0" / "hf/step_300", tmp_path / "step_400")
    assert [(f.kind, f.steps) for f in found(tmp_path)] == [("duplicate", (300, 400))]


def test_a_finding_is_one_line_and_data(run):
    shutil.rmtree(run / "step_300")
    (finding,) = found(run)
    assert str(finding).startswith("missing: step 300: there is no checkpoint, and ")
    assert "\n" not in str(finding)
    assert json.loads(json.dumps(finding.to_json()))["steps"] == [300]
