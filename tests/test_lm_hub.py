"""Catalogued trajectories of decoders and encoders, from a server that speaks the hub's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lm_families import FAMILIES
from servers import Served, hub
from typer.testing import CliRunner

from saturation.cli.commands import app
from saturation.errors import CheckpointFormatError, TrajectoryError
from saturation.storage.hub import repositories
from saturation.trajectory.step_names import thousands
from saturation.trajectory.trajectory import open_trajectory

pytest.importorskip("aiohttp", reason="reading the hub needs aiohttp (the extra 'hub')")

NAMES = {
    "pythia-70m": ("gpt_neox", "EleutherAI/pythia-70m", ["step0", "step512", "step143000"]),
    "pythia-14m-seed3": ("gpt_neox", "EleutherAI/pythia-14m-seed3", ["step1000", "step1"]),
    "olmo-1b": ("olmo", "allenai/OLMo-1B-hf", ["step2000-tokens8B", "step1000-tokens4B"]),
    "olmo-2-7b": (
        "olmo2",
        "allenai/OLMo-2-1124-7B",
        [
            "stage1-step1000-tokens5B",
            "stage1-step150-tokens1B",
            "stage2-ingredient1-step7-tokens1B",
        ],
    ),
    "crfm-alias-gpt2-small-x21": (
        "gpt2",
        "stanford-crfm/alias-gpt2-small-x21",
        ["checkpoint-400000", "checkpoint-10", "checkpoint-2000"],
    ),
}
THOUSANDS = (20, 40, 200, 1000)
STEPS = {
    "pythia-70m": [0, 512, 143_000],
    "pythia-14m-seed3": [1, 1000],
    "olmo-1b": [1000, 2000],
    "olmo-2-7b": [150, 1000],
    "olmo-2-7b-stage2-ingredient1": [7],
    "crfm-alias-gpt2-small-x21": [10, 2000, 400_000],
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    (tmp_path / "main").mkdir()
    places: dict[str, dict[str, Path]] = {}
    for kind, repository, revisions in NAMES.values():
        family = FAMILIES[kind]
        for revision in revisions:
            path = tmp_path / repository / revision
            family.write(path, family.arrays(len(revision)))
            places.setdefault(repository, {"main": tmp_path / "main"})[revision] = path
    for k in (0, *THOUSANDS):
        family, name = FAMILIES["bert"], f"google/multiberts-seed_0-step_{k}k"
        places[name] = {"main": family.write(tmp_path / name, family.arrays(k))}
    places["google/multiberts-seed_0"] = {"main": tmp_path / "main"}
    with hub(places) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("name", STEPS)
def test_ls_lists_a_catalogued_trajectory_in_order(name):
    result = CliRunner().invoke(app, ["ls", name, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["steps"] == STEPS[name]
    names = open_trajectory(name)[STEPS[name][0]].parameters
    assert "layers_0/attention/query/kernel" in names


@pytest.mark.usefixtures("served")
def test_a_trajectory_spans_the_repositories_that_match():
    trajectory = open_trajectory("hf://google/multiberts-seed_0-step_*")
    assert trajectory.steps == tuple(1000 * k for k in (0, *THOUSANDS))
    assert trajectory[20_000].parameters.keys() == trajectory[0].parameters.keys()
    assert trajectory[20_000].path.endswith("multiberts-seed_0-step_20k@main")
    catalogued = open_trajectory("multiberts-seed_0", [20_000, 1_000_000])
    assert "layers_1/post_mlp_layer_norm/bias" in catalogued[1_000_000].parameters
    with pytest.raises(CheckpointFormatError, match="no repository of google matches 'nobert-"):
        repositories("hf://google/nobert-*")
    with pytest.raises(TrajectoryError, match="is of one organisation's, at one revision"):
        open_trajectory("hf://goo*/multiberts-seed_0-step_*")


def test_thousands_are_told_by_the_word_step_alone():
    assert thousands("multiberts-seed_0-step_20k").step == 20_000
    assert thousands("multiberts-seed_0-step_0k").step == 0
    assert thousands("multiberts-seed_0").family != thousands("multiberts-seed_0-step_0k").family
    assert thousands("model-step300").step == 300
    assert thousands("gpt-100k").step is None
