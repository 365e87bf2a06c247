"""Runs that another version of the package wrote: refused in one sentence, never a KeyError."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_trajectory import write_trajectory

from saturation import open_trajectory
from saturation.cli import commands as cli
from saturation.cli.text import status_text
from saturation.errors import FormerVersionWarning, ResultsError
from saturation.measures import MEASURES
from saturation.measures.base import ActivationMeasure, GroupMeasure
from saturation.results.folder import RunFolder
from saturation.results.parts import write_part
from saturation.results.seal import LAYOUT
from saturation.results.state import IDENTITY, RunState, open_run
from saturation.results.table import load_results, load_vectors
from saturation.runs.measure import measure

STEPS = (0, 10)
ATTENTION = "encoder/layers_0/attention"
SHAPES = {
    f"{ATTENTION}/value/kernel": (4, 4),
    f"{ATTENTION}/out/kernel": (4, 4),
    "encoder/layers_0/pre_attention_layer_norm/scale": (4,),
    "encoder/relpos_bias/rel_embedding": (2, 32),
}
every = pytest.mark.parametrize("name", MEASURES)


def write_run(path: Path, name: str, without: str = "", **changes) -> str:
    """A run of one measure whose statistics are all 1; its parts lack the column `without`."""
    measure, folder = MEASURES[name], RunFolder(str(path))
    described = {
        "steps": list(STEPS),
        "measures": [name],
        "arrays": {array: {"shape": list(shape)} for array, shape in SHAPES.items()},
        "bundles": {"all": list(SHAPES)},
        "versions": {name: measure.version},
        "identity_of": IDENTITY,
        "layout": LAYOUT,
    }
    folder.write_run_json(
        {key: said for key, said in (described | changes).items() if said is not None}
    )
    spans = [(step, step) for step in STEPS] if isinstance(measure, ActivationMeasure) else [STEPS]
    for key in RunState(folder, described, described, {}).keys(measure):
        for span in spans:
            columns = part_columns(measure, span)
            columns.pop(without, None)
            write_part(folder, described, name, key, tuple(span), columns)
    return str(path)


def part_columns(measure, span) -> dict:
    steps = [step for step in STEPS if span[0] <= step <= span[1]]
    if isinstance(measure, ActivationMeasure):
        scopes, columns = [f"{ATTENTION}/head_0", "encoder/layers_0"], {}
        count = len(scopes)
    elif isinstance(measure, GroupMeasure):
        scopes, count = [f"{ATTENTION}/head_0"] * len(steps), len(steps)
        columns = {"step": np.array(steps)}
        columns |= {name: [np.ones(2)] * count for name in measure.vectors}
    else:
        count = len(steps) * len(SHAPES)
        columns = {"step": np.repeat(steps, len(SHAPES)), "array": [*SHAPES] * len(steps)}
        return columns | {name: np.ones(count) for name in measure.statistics}
    return columns | {"scope": scopes} | {name: np.ones(count) for name in measure.statistics}


@every
def test_a_run_of_this_version_is_read(name, tmp_path: Path):
    table = load_results(write_run(tmp_path / "run", name))
    assert set(table["measure"]) == {name}


@every
def test_a_part_that_lacks_a_statistic_is_refused_by_name(name, tmp_path: Path):
    lacking = list(MEASURES[name].statistics)[-1]
    run = write_run(tmp_path / "run", name, lacking)
    with pytest.raises(ResultsError) as error:
        load_results(run)
    said = str(error.value)
    assert f" lacks {lacking} of {name}: another version of saturation wrote it." in said
    assert f"Delete {run}/parts/{name} and run the same `saturation measure` again" in said


def test_a_part_without_its_vectors_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", "spectrum", "imaginary")
    with pytest.raises(ResultsError, match="lacks imaginary of spectrum"):
        load_vectors(run, "spectrum")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """What `report` says on stderr of a run it cannot read."""

    def report(run: str) -> str:
        page, figures = tmp_path / "page.html", tmp_path / "figures"
        command = ["saturation", "report", run, "--out", str(page), "--figures", str(figures)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 1
        assert not page.exists()
        return capsys.readouterr().err

    return report


def test_a_report_of_such_a_run_ends_in_one_sentence(refused, tmp_path: Path):
    lacking = next(iter(MEASURES["heads"].statistics))
    said = refused(write_run(tmp_path / "run", "heads", lacking))
    assert f"lacks {lacking} of heads" in " ".join(said.split())
    assert "Traceback" not in said


def test_a_measure_that_this_version_lacks_is_refused_by_name(refused, tmp_path: Path):
    said = refused(write_run(tmp_path / "run", "norms", measures=["norms", "loudness"]))
    assert "holds loudness, which this version of saturation does not measure" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("key", ["steps", "arrays", "bundles"])
def test_a_run_file_that_lacks_a_key_is_refused_by_name(key, tmp_path: Path):
    run = write_run(tmp_path / "run", "norms", **{key: None})
    assert key not in json.loads((tmp_path / "run" / "run.json").read_text())
    with pytest.raises(ResultsError, match=f"has no `{key}`: another version of saturation wrote"):
        open_run(run)


def test_a_former_version_of_a_measure_is_named_and_left_out(tmp_path: Path):
    run = write_run(tmp_path / "run", "norms", measures=["norms", "scan"], versions={"norms": 1})
    said = f"scan is of version 1, and this is {MEASURES['scan'].version}"
    with pytest.warns(FormerVersionWarning, match=said):
        table = load_results(run)
    assert set(table["measure"]) == {"norms"}
    found = open_run(run).status()
    assert found.complete
    assert found.former == said
    assert f"left out: {said}" in status_text(run, found)


def test_a_run_of_a_former_version_alone_is_refused(tmp_path: Path):
    run = write_run(tmp_path / "run", "scan", versions=None)
    with (
        pytest.warns(FormerVersionWarning),
        pytest.raises(ResultsError, match="holds nothing that this version of saturation can read"),
    ):
        load_results(run)


def test_vectors_of_a_former_version_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path / "run", "spectrum")
    assert len(load_vectors(run, "spectrum"))
    former = dataclasses.replace(MEASURES["spectrum"], version=MEASURES["spectrum"].version + 1)
    monkeypatch.setitem(MEASURES, "spectrum", former)
    assert len(load_vectors(run, "spectrum")) == 0


def test_a_run_of_a_former_version_is_not_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trajectory = open_trajectory(str(write_trajectory(tmp_path / "made", vocab=12)))
    out = str(tmp_path / "run")
    measure(trajectory, ["norms"], out)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded["versions"] == {"norms": MEASURES["norms"].version}
    later = dataclasses.replace(MEASURES["norms"], version=MEASURES["norms"].version + 1)
    monkeypatch.setitem(MEASURES, "norms", later)
    with pytest.raises(ResultsError, match="numbers of two versions are not mixed"):
        measure(trajectory, ["direction"], out)


def test_a_run_without_seals_is_read_with_one_line_and_not_extended(tmp_path: Path):
    trajectory = open_trajectory(str(write_trajectory(tmp_path / "made", vocab=12)))
    out = tmp_path / "run"
    measure(trajectory, ["norms"], str(out))
    described = json.loads((out / "run.json").read_text())
    del described["layout"], described["seal"]
    (out / "run.json").write_text(json.dumps(described))
    with pytest.warns(FormerVersionWarning, match="its parts are unverified"):
        assert len(load_results(out))
    with pytest.raises(ResultsError, match="so that nothing can be added to it"):
        measure(trajectory, ["direction"], str(out))
