"""The recipe "add a measure of weights": a folder and a line of the registry, and it is everywhere.

Followed here with a toy that no file of the package knows.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from made_trajectory import canonical, write_trajectory
from page_reader import Reader, sections_of
from pydantic import ValidationError

import saturation
import saturation.measures
from saturation import checkpoints, storage, studies
from saturation.cli import commands
from saturation.config.options import described
from saturation.errors import ConfigError, MeasureError
from saturation.experiment import ExperimentConfig
from saturation.measures import MEASURES
from saturation.report import summarize
from saturation.results.table import load_results
from saturation.runs.options import COMMON, activation_options, measure_options
from saturation.runs.settings import ActivationSettings, read_settings
from saturation.storage.open import PLACES

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
WITH_OPTIONS = {
    "__init__.py": """
from saturation.measures.reach.measure import REACH as MEASURE
""",
    "measure.py": """
from saturation.measures.base import ActivationMeasure

REACH = ActivationMeasure(
    name="reach",
    definition="nothing",
    source="a test",
    statistics={"tokens": "sum"},
    observe=lambda outputs: {},
    metrics=lambda statistics: {"tokens": statistics["tokens"]},
)
""",
    "options.py": """
from dataclasses import dataclass
from typing import Annotated

from saturation.config.options import Count, Option, Options


@dataclass(frozen=True)
class ReachOptions(Options):
    farthest: Annotated[Count, Option("The farthest key that counts.", "KEYS")] = 7


OPTIONS = ReachOptions
""",
}
FORMAT = """
import json

import numpy as np

from saturation.checkpoints import names
from saturation.checkpoints.base import Checkpoint
from saturation.checkpoints.disk_array import FileArray
from saturation.checkpoints.sift import sift
from saturation.storage.listing import Listing

NAME = "toy"
LOOKS_FOR = "a '*.toy' table and its '*.values-' file (a test)"
LISTING = Listing(
    tables=((".toy", ".values-"),),
    unfinished=(".*[.]writing",),
    interior=(".*[.]values-[0-9]+", "inner_[0-9]+"),
)


def claims(folder):
    return any(head.startswith(b"{toy") for head in folder.heads.values())


def open_checkpoint(folder, step):
    [table] = [name for name in folder.files if name.endswith(".toy")]
    [values] = [name for name in folder.files if ".values-" in name]
    entries = json.loads(folder.read(table)[4:])
    arrays = {
        name: FileArray(folder, values, offset, tuple(shape), np.dtype("<f4"))
        for name, (offset, shape) in entries.items()
    }
    weights, left_out = sift(arrays, folder.where(table))
    sources = names.t5x(weights, folder.where(table))
    return Checkpoint(folder.path, step, NAME, weights, sources, left_out=left_out)
"""
STUDY = """
import numpy as np

from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Study, claim, control


def simulate(setting, seeds):
    return ({"twice": 2.0 * seed} for seed in seeds)


def judge(results):
    yield claim("twice the seed", "all", results["all"]["twice"], (0, 4))
    yield control("nothing", "all", results["all"]["twice"], (8, 9))


def pictures(results):
    values = results["all"]["twice"]
    line = Line(np.arange(len(values)), values)
    yield Picture("toy", "Doubling", "Doubles", "No unit.", [[Panel("twice", [line], Axis("x"))]])


STUDY = Study(
    name="doubling",
    title="Doubling a seed",
    paper="Nobody, 1 + 1, arXiv 0000.00000",
    reads="A seed is doubled.",
    parts=lambda seeds, full: {"all": seeds},
    simulate=simulate,
    judge=judge,
    pictures=pictures,
    seeds=3,
)
"""
PLACE = """
import os
from functools import partial
from pathlib import Path

from saturation.storage.places import File, RemoteSource, nested


def place_at(url, shared):
    return "toy://", url.removeprefix("toy://"), Shelf


class Shelf(RemoteSource):
    root = "toy://"

    def listing(self, path, deep):
        found = sorted(one for one in Path(f"/{path}").rglob("*") if one.is_file())
        return nested(
            (one.relative_to(f"/{path}").as_posix(), File(one.stat().st_size)) for one in found
        )

    def file(self, path):
        return File(os.stat(f"/{path}").st_size)

    def fetch(self, path, file, start, stop):
        return Path(f"/{path}").read_bytes()[start:stop]

    def url(self, path):
        return f"toy://{path}"
"""
STEPS = (0, 10, 30)


@pytest.fixture
def registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """A room beside the package's, {file: its code}, and its line in the registry."""
    name, files = getattr(request, "param", ("smallness", ROOM))
    room = tmp_path / "measures" / name
    room.mkdir(parents=True)
    for file, code in files.items():
        (room / file).write_text(code, encoding="utf-8")
    beside = [*saturation.measures.__path__, str(room.parent)]
    monkeypatch.setattr(saturation.measures, "__path__", beside)
    measure = import_module(f"saturation.measures.{name}").MEASURE
    monkeypatch.setitem(MEASURES, name, measure)
    yield
    for module in [one for one in sys.modules if one.startswith(f"saturation.measures.{name}")]:
        del sys.modules[module]
    delattr(saturation.measures, name)


@pytest.fixture
def toy_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file beside the package's formats, and its place in the registry."""
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "toy.py").write_text(FORMAT, encoding="utf-8")
    beside = [*checkpoints.__path__, str(tmp_path / "formats")]
    monkeypatch.setattr(checkpoints, "__path__", beside)
    form = import_module("saturation.checkpoints.toy")
    monkeypatch.setattr(checkpoints, "FORMATS", (*checkpoints.FORMATS, form))
    yield
    del sys.modules["saturation.checkpoints.toy"], checkpoints.toy


@pytest.fixture
def toy_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file beside the package's studies, and its line in the registry."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "doubling.py").write_text(STUDY, encoding="utf-8")
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path / "studies")])
    monkeypatch.setitem(studies.STUDIES, "doubling", "saturation.studies.doubling")
    yield
    del sys.modules["saturation.studies.doubling"], studies.doubling


@pytest.fixture
def toy_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file beside the package's places, and its line in the registry."""
    (tmp_path / "places").mkdir()
    (tmp_path / "places" / "shelf.py").write_text(PLACE, encoding="utf-8")
    monkeypatch.setattr(storage, "__path__", [*storage.__path__, str(tmp_path / "places")])
    monkeypatch.setitem(PLACES, "toy", "saturation.storage.shelf")
    yield
    del sys.modules["saturation.storage.shelf"], storage.shelf


def has_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)


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
    assert json.loads(capsys.readouterr().out)["smallness"]["metrics"] == ["share_near_zero"]
    assert "metrics: share_near_zero\n" in shown + "\n"
    with pytest.raises(MeasureError, match=r"there are: loss, norms, .*, smallness"):
        saturation.measure(opened, ["nothing"], str(tmp_path / "none"))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("registered", [("reach", WITH_OPTIONS)], indirect=True)
def test_the_options_of_a_measure_are_a_file_of_its_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    call(monkeypatch, "measure", "--help")
    shown = capsys.readouterr().out.partition("Options of reach")[2]
    for said in ("--farthest", "KEYS", "The farthest key that counts.", "[default: 7]"):
        assert said in shown

    places = {"out": "run", "report": "figures", "trajectory": "t"}
    config = ExperimentConfig.model_validate({**places, "activations": {"farthest": 3}})
    assert config.activations == activation_options(farthest=3)
    with pytest.raises(
        ValidationError, match=r"activations\.farthest\n.*greater than or equal to 1"
    ):
        ExperimentConfig.model_validate({**places, "activations": {"farthest": 0}})
    with pytest.raises(ConfigError, match="farthest: at least 1 was expected, found 0"):
        ActivationSettings(farthest=0)
    for settings in (ActivationSettings(farthest=3), read_settings(["reach"], farthest=3)):
        assert settings is not None
        assert settings.farthest == settings.fingerprint()["farthest"] == 3


def test_no_two_rooms_have_an_option_of_one_name() -> None:
    names = [one.name for kind in (*COMMON, *measure_options().values()) for one in described(kind)]
    assert len(names) == len(set(names))


@pytest.mark.usefixtures("toy_format")
def test_a_format_is_a_file_and_a_word_in_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    values = {step: np.full((3, 2), step, "<f4") for step in STEPS}
    for step, array in values.items():
        table = {"dense/kernel": (4, array.shape), "step": (0, ())}
        (folder / f"run-{step}.toy").write_text("{toy" + json.dumps(table), encoding="utf-8")
        (folder / f"run-{step}.values-0").write_bytes(bytes(4) + array.tobytes())
    (folder / "run-40.toy.writing").write_bytes(b"{toy")
    (folder / "inner_7").mkdir()
    opened = saturation.open_trajectory(str(folder))
    assert (opened.steps, opened.format) == (STEPS, "toy")
    assert opened.ignored == (("run-40.toy.writing", "temporary: its writer did not finish"),)
    for step, array in values.items():
        np.testing.assert_array_equal(opened[step].read("dense/kernel"), array)
    assert checkpoints.open_checkpoint(str(folder / "run-10")).format == "toy"
    call(monkeypatch, "ls", folder)
    assert "toy" in capsys.readouterr().out
    saturation.measure(opened, ["norms"], str(tmp_path / "run"))
    table = load_results(str(tmp_path / "run"))
    total = table[(table.metric == "l2") & (table.scope == "total")]
    np.testing.assert_allclose(total.value, [np.sqrt(6) * step for step in STEPS])


def test_no_place_and_no_trajectory_knows_a_format() -> None:
    package = Path(saturation.__file__).parent
    words = r"safetensors|zarr|ocdbt|orbax|msgpack|pytorch|[.]ckpt|\.index|\.bin\b|t5x|process_"
    found = []
    for path in (*(package / "storage").glob("*.py"), *(package / "trajectory").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if hasattr(node, "body")]
        documented = {ast.get_docstring(node, clean=False) for node in nodes if has_docstring(node)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and text not in documented and re.search(words, text):
                found.append(f"{path.name}:{node.lineno}: {text!r}")
    assert found == []


@pytest.mark.usefixtures("toy_study")
def test_a_study_is_a_file_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "study")
    shown = capsys.readouterr().out
    assert "doubling                Doubling a seed\n" in shown
    assert "Nobody, 1 + 1, arXiv 0000.00000\n" in shown
    out = tmp_path / "out"
    call(monkeypatch, "study", "doubling", "--out", out)
    claims = (out / "claims.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[1] for line in claims[1:]] == ["claim", "control"]
    assert {"toy.png", "toy.pdf", "summary.txt", "page.html"} <= {one.name for one in out.iterdir()}


def test_studies_are_listed_without_being_imported() -> None:
    code = (
        "import sys\nfrom saturation.studies import STUDIES, about\n"
        "assert all(all(about(name)) for name in STUDIES)\n"
        "print({'jax', 'numpy', *STUDIES.values()} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("name", studies.STUDIES)
def test_what_is_listed_is_what_the_study_says(name: str) -> None:
    study = studies.find_study(name)
    assert (study.name, study.title, study.paper) == (name, *studies.about(name))


@pytest.mark.usefixtures("toy_place")
def test_a_place_is_a_file_and_a_line(tmp_path: Path) -> None:
    trajectory = write_trajectory(tmp_path / "trajectory", STEPS)
    opened = saturation.open_trajectory(f"toy:/{trajectory}")
    assert (opened.steps, opened.remote) == (STEPS, True)
    for name, values in canonical(trajectory, 10).items():
        np.testing.assert_array_equal(opened[10].read(name), values)
