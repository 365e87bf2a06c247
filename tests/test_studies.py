"""What every study has in common, seen at a study that is one file and one line of the registry."""

from __future__ import annotations

import csv
import math
import os
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from saturation.cli import commands as cli
from saturation.errors import ArgumentError, ResultsError
from saturation.studies import STUDIES, base, find_study
from saturation.studies.base import Settings, claim, control
from saturation.studies.output import COLUMNS, study_text, verdict, write_study

DOCS = Path(__file__).resolve().parents[1] / "docs" / "studies"
TOY = """
import numpy as np
from saturation.plots.panels import Axis, Line, Panel, Picture
from saturation.studies.base import Study, claim, control

SIMULATED, MEANWHILE = [], []


def simulate(size, seeds):
    for seed in seeds:
        SIMULATED.append((size, seed))
        for act in MEANWHILE:
            act()
        yield {"draws": np.random.default_rng(seed).normal(size=size), "name": f"seed {seed}"}


def judge(results):
    for size, part in results.items():
        means = part["draws"].mean(axis=1)
        yield claim("mean; nats", f"{size} <draws>", means, (-0.3, 0.3), "0")
        yield control("mean; nats", f"{size} draws and 1", means + 1, (-0.3, 0.3), "0")
        yield claim("median", f"{size} draws", means + 1, (-0.3, 0.3), claimed="conditional")
        yield claim("skew", f"{size} draws", means, None, claimed="no")


def pictures(results):
    for size, part in results.items():
        line = Line(np.arange(size), part["draws"][0], "draws </script>")
        panel = Panel("Draws", [line], Axis("draw"), Axis("number"))
        yield Picture(f"draws{size}", "Draws", "Draws", "In order.", [[panel]])


STUDY = Study(
    "toy", "Draws <b>", "Nobody, Nowhere", "As they come.", lambda seeds, full: (
        {100: seeds, 400: 1} if full else {100: seeds}),
    simulate, judge, pictures, seeds=3,
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module of a study that nobody else knows."""
    (tmp_path / "toy_study.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_study", raising=False)
    monkeypatch.setitem(STUDIES, "toy", "toy_study")
    find_study("toy")
    yield sys.modules["toy_study"]
    del sys.modules["toy_study"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["saturation", "study", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


def test_one_file_and_one_line_give_every_output(toy, tmp_path, monkeypatch, capsys) -> None:
    assert call(monkeypatch) == 0
    assert "toy" in capsys.readouterr().out
    out = tmp_path / "out"
    assert call(monkeypatch, "toy", "--seeds", 2, "--seed", 5, "--full", "--out", out) == 0
    printed = capsys.readouterr()
    assert toy.SIMULATED == [(100, 5), (100, 6), (400, 5)]
    assert "Simulating toy: 3 of 3 parts" in printed.err
    pictures = [f"draws{size}.{kind}" for size in (100, 400) for kind in ("png", "pdf")]
    wanted = ["claims.csv", "table.parquet", *pictures, "summary.txt", "page.html"]
    assert printed.out.splitlines()[-len(wanted) :] == [str(out / name) for name in wanted]
    assert {path.name for path in out.iterdir()} == {*wanted, "parts"}
    table = pd.read_parquet(out / "table.parquet")
    assert [*table.columns] == ["study", *COLUMNS]
    means = [np.random.default_rng(seed).normal(size=100).mean() for seed in (5, 6)]
    first = table.iloc[0].to_dict()
    assert first["measured"] == pytest.approx(np.mean(means), rel=1e-12)
    assert first["spread"] == pytest.approx(np.std(means, ddof=1), rel=1e-12)
    assert (first["study"], first["seeds"], first["agrees_if"]) == ("toy", 2, "-0.3 to 0.3")
    assert table["kind"].to_list() == ["claim", "control", "claim", "claim"] * 2
    assert table["agrees"].to_list() == ["yes", "yes", "no", ""] * 2
    assert table["claimed"].to_list() == ["yes", "no", "conditional", "no"] * 2
    with (out / "claims.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == table["setting"].to_list()
    assert float(rows[0]["measured"]) == pytest.approx(first["measured"], rel=1e-5)
    text = (out / "summary.txt").read_text(encoding="utf-8")
    assert text in printed.out
    assert "2 of 2 claims agree, 2 of 2 controls miss as they must, 4 rows" in text
    index = runpy.run_path(str(DOCS / "table.py"))["markdown"]([str(out)])
    assert "| `toy` | Nobody, Nowhere | 2 | 2 of 2 claims agree" in index
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "Draws &lt;b&gt;" in page
    assert "&lt;draws&gt;" in page
    assert "draws </script>" not in page
    assert "http" not in page.replace(page[page.index("<script>") : page.index("</script>")], "")


def parts(out: Path) -> list[Path]:
    return sorted((out / "parts").iterdir())


def test_only_what_is_missing_is_computed(toy, tmp_path) -> None:
    study, settings = toy.STUDY, Settings(out=str(tmp_path / "out"))
    whole = study.run(settings)
    assert len(parts(tmp_path / "out")) == len(toy.SIMULATED) == 3

    def again(changed: base.Study = study, **other: object) -> list[tuple[int, int]]:
        toy.SIMULATED.clear()
        found = changed.run(replace(settings, **other))
        if not other:
            assert found.rows == whole.rows
        return toy.SIMULATED

    assert again() == []
    one = next(path for path in parts(tmp_path / "out") if path.name.endswith("-1.npz"))
    one.unlink()
    assert again() == [(100, 1)]
    content = one.read_bytes()
    for damaged in (b"", content[:-9], b"x" * len(content)):
        one.write_bytes(damaged)
        assert again() == [(100, 1)]
    assert again(seeds=5) == [(100, 3), (100, 4)]
    assert again(seed=2, seeds=1) == []
    assert again(seeds=1, full=True) == [(400, 0)]
    assert again(replace(study, version=2)) == [(100, 0), (100, 1), (100, 2)]
    assert again(out=None) == [(100, 0), (100, 1), (100, 2)]


def test_a_study_that_was_stopped_goes_on(toy, tmp_path, monkeypatch, capsys) -> None:
    toy.MEANWHILE.append(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert call(monkeypatch, "toy", "--out", tmp_path / "out") == cli.EXIT_RESUMABLE
    assert "stopped with 1 of 3 parts" in capsys.readouterr().err
    toy.MEANWHILE.clear()
    assert call(monkeypatch, "toy", "--out", tmp_path / "out") == 0
    assert toy.SIMULATED == [(100, 0), (100, 1), (100, 2)]


@pytest.mark.parametrize(
    ("wrong", "code"), [({}, 0), ({"claimed": 9.0}, 1), ({"control": 0.0}, 1), ({"other": 9.0}, 0)]
)
def test_a_claimed_claim_or_a_control_that_does_not_agree_is_a_failure(
    toy, tmp_path, monkeypatch, capsys, wrong: dict[str, float], code: int
) -> None:
    measured = {"claimed": 0.0, "control": 9.0, "other": 0.0, **wrong}

    def judge(results):
        yield claim("c", "here", measured["claimed"], (-1, 1))
        yield control("c", "there", measured["control"], (-1, 1))
        yield claim("o", "here", measured["other"], (-1, 1), claimed="conditional")

    changed = replace(toy.STUDY, judge=judge, pictures=lambda results: [])
    monkeypatch.setattr(toy, "STUDY", changed)
    assert call(monkeypatch, "toy", "--out", tmp_path / "out") == code
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert (page.count('class="warning"') == 1) == bool(code)
    printed = capsys.readouterr().out
    assert ("DISAGREES" in printed or "MUST MISS" in printed) == bool(code)


@pytest.mark.parametrize(
    ("measured", "bounds", "agrees", "misses", "said"),
    [
        (1.0, (0.0, 1.0), "yes", "no", "0 to 1"),
        ([0.5, 2.5], (0.0, 1.0), "no", "yes", "0 to 1"),
        ([0.5, 2.5], (0.0, 1.5), "yes", "no", "0 to 1.5"),
        (-9.0, (-math.inf, 0.25), "yes", "no", "≤ 0.25"),
        (math.inf, (0.95, 1.05), "no", "yes", "0.95 to 1.05"),
        (0.0, (0.1, math.inf), "no", "yes", "≥ 0.1"),
        (math.nan, (0.0, 1.0), "no", "no", "0 to 1"),
    ],
)
def test_a_claim_agrees_within_its_bounds_and_a_control_beyond_them(
    measured, bounds, agrees, misses, said
) -> None:
    """What is no number is neither: a control that was not measured proves nothing."""
    found = claim("p", "s", measured, bounds), control("p", "s", measured, bounds)
    assert [row.agrees for row in found] == [agrees, misses]
    assert [row.agrees_if for row in found] == [said, f"not {said}"]
    assert [row.fails for row in found] == [agrees == "no", misses == "no"]
    assert not claim("p", "s", measured, bounds, claimed="no").fails
    assert math.isnan(found[0].spread) == (np.size(measured) == 1)


def test_a_simulation_that_gives_too_few_parts_is_found(toy) -> None:
    with pytest.raises(ValueError, match="zip"):
        replace(toy.STUDY, simulate=lambda size, seeds: iter(())).run()


def test_all_studies_are_run_or_every_nth_of_them(toy, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("saturation.studies.STUDIES", {"toy": "toy_study", "other": "toy_study"})
    assert call(monkeypatch, "--all", "--seeds", 1, "--out", tmp_path / "all") == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"toy", "other"}
    shard = ("--all", "--seeds", 1, "--shard", "1/2", "--out", tmp_path / "half")
    assert call(monkeypatch, *shard) == 0
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["other"]
    assert call(monkeypatch, "toy", "--all", "--out", tmp_path) == 2
    assert "give either a NAME or --all" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_in_one_sentence(toy, tmp_path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "x", "--out", tmp_path) == 1
    assert "There is no study 'x'; there are: scan-snap, " in capsys.readouterr().err
    assert call(monkeypatch, "toy") == 2
    for wrong in ({"seeds": 0}, {"seeds": 10**9}):
        with pytest.raises(ArgumentError, match="takes 1 to 10,000 seeds"):
            Settings(**wrong)
    for seed in (-1, 2**31):
        with pytest.raises(ArgumentError, match="first seed is 0 to"):
            Settings(seed=seed)
    with pytest.raises(ResultsError, match="local disk"):
        Settings(out="gs://bucket/study")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="Cannot"):
        toy.STUDY.run(Settings(out=str(tmp_path / "file")))
    result = toy.STUDY.run()
    with pytest.raises(ResultsError, match="Cannot write"):
        write_study(result, tmp_path / "file")


def test_every_study_is_registered_under_its_name_and_documented() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for name in STUDIES:
        assert find_study(name).name == name
        assert f"| `{name}` |" in index


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("seed", [0, 100, 2000])
def test_every_claim_agrees_and_every_control_misses(name: str, seed: int, tmp_path: Path) -> None:
    result = find_study(name).run(Settings(seed=seed))
    assert not result.failed, study_text(result)
    assert {row.kind for row in result.rows} == {"claim", "control"}
    assert verdict(result.rows) in study_text(result)
