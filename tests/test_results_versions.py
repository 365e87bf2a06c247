"""Runs that another version of the package wrote: refused in one sentence, never a KeyError."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from saturation import cli
from saturation.errors import ResultsError
from saturation.measures import MEASURES
from saturation.measures.base import ActivationMeasure, GroupMeasure
from saturation.parts import describe, part_keys, write_part
from saturation.results import load_results, load_vectors
from saturation.runfolder import RunFolder

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
    }
    folder.describe({key: said for key, said in (described | changes).items() if said is not None})
    spans = [(step, step) for step in STEPS] if isinstance(measure, ActivationMeasure) else [STEPS]
    for key in part_keys(measure, described):
        for span in spans:
            columns = part_columns(measure, span)
            columns.pop(without, None)
            write_part(folder, name, key, tuple(span), columns)
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
        describe(RunFolder(run))
