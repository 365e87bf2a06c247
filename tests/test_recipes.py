"""The recipe "add a measure of weights": a folder and a line of the registry, and it is everywhere.

Followed here with a toy that no file of the package knows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from made_trajectory import canonical, write_trajectory
from page_reader import Reader, sections_of

import saturation
import saturation.measures
from saturation.cli import commands
from saturation.errors import MeasureError
from saturation.measures import MEASURES
from saturation.report import summarize
from saturation.results.table import load_results

ROOM = {
    "__init__.py": """
from saturation.measures.smallness.measure import SMALLNESS as MEASURE
""",
    "measure.py": """
from saturation.measures.base import WeightMeasure


def terms(block):
    return {"near_zero": abs(block.now) < 0.5}


def metrics(statistics, arrays):
    return {"share_near_zero": statistics["near_zero"].sum(axis=0) / arrays.size.sum()}


SMALLNESS = WeightMeasure(
    name="smallness",
    definition="share of parameters with |θ| < ½",
    source="a test",
    statistics={"near_zero": "sum"},
    terms=terms,
    metrics=metrics,
)
""",
    "pictures.py": """
from saturation.plots.panels import Axis, Line, Panel, Picture


def pictures(run):
    parts = run.parts("share_near_zero")
    if parts:
        lines = [Line(one.steps, one.values, scope) for scope, one in parts.items()]
        panel = Panel("Share near 0", lines, Axis("share"))
        yield Picture("smallness", "Are parameters small?", "Smallness", "No unit.", [[panel]])


def compared(run):
    if run.scopes("share_near_zero"):
        _, one = run.main_series("share_near_zero")
        yield "Share near 0", Line(one.steps, one.values), Axis("share"), "Of the blocks."
""",
    "words.py": """
from saturation.measures.words import Term, Words
from saturation.plots.panels import Table


def tables(run):
    found = run.parts("share_near_zero").items()
    rows = [(scope, f"{one.values[-1]:.3f}") for scope, one in found]
    return [Table(("near 0", "last"), rows)] if rows else []


def guide(run):
    return ("A small share is a large network.",) if run.scopes("share_near_zero") else ()


def warnings(run):
    return ["smallness is a toy."] if run.scopes("share_near_zero") else []


WORDS = Words(
    terms=(Term("share_near_zero", "#{|θ| < ½}/size", "How many are small.", "a test"),),
    figures={"smallness": "shares (measure smallness)"},
    tables=tables,
    guide=guide,
    warnings=warnings,
)
""",
}
STEPS = (0, 10, 30)


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The room beside the package's, and its line in the registry."""
    room = tmp_path / "measures" / "smallness"
    room.mkdir(parents=True)
    for name, code in ROOM.items():
        (room / name).write_text(code, encoding="utf-8")
    beside = [*saturation.measures.__path__, str(room.parent)]
    monkeypatch.setattr(saturation.measures, "__path__", beside)
    measure = import_module("saturation.measures.smallness").MEASURE
    monkeypatch.setitem(MEASURES, "smallness", measure)
    yield
    for name in [name for name in sys.modules if name.startswith("saturation.measures.smallness")]:
        del sys.modules[name]
    del saturation.measures.smallness


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["saturation", *map(str, arguments)])
    code: object = 0
    try:
        commands.main()
    except SystemExit as exit_:
        code = exit_.code
    assert not code


@pytest.mark.usefixtures("registered")
def test_a_measure_is_a_folder_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trajectory = write_trajectory(tmp_path / "trajectory", STEPS)
    run, out = tmp_path / "run", tmp_path / "out"
    call(monkeypatch, "measure", trajectory, "--measures", "smallness", "--out", run)
    table = load_results(str(run))
    total = table[(table.metric == "share_near_zero") & (table.scope == "total")]
    values = {step: np.concatenate([a.ravel() for a in canonical(trajectory, step).values()])
              for step in STEPS}  # fmt: skip
    expected = [float(np.mean(np.abs(one) < 0.5)) for one in values.values()]
    assert total.step.tolist() == list(STEPS)
    np.testing.assert_allclose(total.value, expected, rtol=1e-12)

    capsys.readouterr()
    call(monkeypatch, "report", run, "--figures", out, "--out", out / "page.html")
    assert {"smallness.png", "smallness.pdf"} <= {path.name for path in out.iterdir()}
    summary = (out / "summary.txt").read_text(encoding="utf-8")
    assert f"{expected[-1]:.3f}" in summary
    for said in (
        "Measured: share_near_zero",
        "How to read smallness.png",
        "1. A small share is a large network.",
        "Warning: smallness is a toy.",
    ):
        assert said in summary
    page = Reader((out / "page.html").read_text(encoding="utf-8"))
    lines = {one["name"]: one for one in sections_of(page)["Smallness"]["Share near 0"]["data"]}
    np.testing.assert_allclose(lines["total"]["y"], expected, rtol=1e-7)
    for said in ("smallness is a toy.", "A small share is a large network.", "How many are small."):
        assert said in page.text
    assert "smallness" not in page.text.partition("Not measured: ")[2]


@pytest.mark.usefixtures("registered")
def test_it_is_compared_and_missed_and_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = saturation.open_trajectory(write_trajectory(tmp_path / "trajectory", STEPS))
    for name, measures in (("one", ["smallness"]), ("two", ["smallness"]), ("other", ["norms"])):
        saturation.measure(opened, measures, str(tmp_path / name))
    page = tmp_path / "page.html"
    call(monkeypatch, "report", *(tmp_path / n for n in ("one", "two")), "--out", page)
    placed = Reader(page.read_text(encoding="utf-8")).placed
    assert ("Compared", "Share near 0", "Of the blocks.") in [found[:3] for found in placed]
    call(monkeypatch, "report", tmp_path / "other", "--out", page)
    norms = load_results(str(tmp_path / "other"))
    assert "  smallness: other has no shares" in summarize({"other": norms}, {})
    missing = Reader(page.read_text(encoding="utf-8")).text.partition("Not measured: ")[2]
    assert "smallness" in missing

    capsys.readouterr()
    call(monkeypatch, "measures")
    shown = capsys.readouterr().out
    assert "smallness\n  share of parameters with |θ| < ½\n  needs weights; source: a test" in shown
    call(monkeypatch, "measures", "--json")
    assert "smallness" in json.loads(capsys.readouterr().out)
    with pytest.raises(MeasureError, match=r"there are: norms, .*, smallness"):
        saturation.measure(opened, ["nothing"], str(tmp_path / "none"))
