"""The interactive page: self-contained, the table's own numbers, safe with any run's name."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import numpy as np
import pytest
from page_reader import Reader, build, charts_of
from report_panels import run_of
from report_tables import LOG_SPACED, UNIFORM, direction, full, norms, rows

from saturation.errors import ResultsError
from saturation.measures import pictures_of
from saturation.plots.plotly_renderer import chart
from saturation.report import fit_tables, write_page
from saturation.report.figures import build_figures
from saturation.report.glossary import glossary

FACTS = {
    "trajectory": "gs://bucket/t5 & more",
    "format": "t5x",
    "steps": [0, 80, 2000],
    "measures": ["norms", "direction"],
    "arrays": {"a": {"shape": [3, 4]}, "b": {"shape": [5]}},
    "environment": {"jax": "0.10.2", "device": "cpu"},
}


@pytest.fixture(scope="module")
def page() -> Reader:
    return build({"my run": full()}, {"my run": FACTS})


def test_nothing_comes_from_elsewhere(page: Reader):
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert len(page.scripts) == 3, "the style, plotly.js and the charts"
    assert "@import" not in page.scripts[0]


def test_every_chart_has_its_place_and_its_panels_numbers(page: Reader):
    charts = charts_of(page)
    places = [a["id"] for tag, a in page.tags if tag == "div" and "id" in a]
    assert places == list(charts)
    shown = [
        panel
        for measure in ("norms", "direction")
        for picture in pictures_of(measure, run_of(full()))
        for panel in picture.panels
    ]
    assert [title for _, title, _, _ in page.placed] == [panel.title for panel in shown]
    for panel, drawn in zip(shown, charts.values(), strict=True):
        assert drawn == json.loads(str(chart(panel).to_json())), panel.title


def test_facts_laws_and_glossary(page: Reader):
    text = " ".join(page.text.split())
    assert "gs://bucket/t5 & more" in text
    assert "3, from step 0 to 2,000" in text
    assert "17 in 2 arrays" in text
    assert "jax 0.10.2, device cpu" in text
    power = fit_tables({"r": norms()})["r"]["blocks"]["power"]
    assert f"{power.p:.3f} (95 %: {power.interval[0]:.3f} to {power.interval[1]:.3f})" in text
    assert "checkpoints lie 80 steps apart" in text
    for term in glossary():
        assert term.metric in text


def test_a_name_cannot_break_out():
    name = '</script><script>alert("1")</script><b>&'
    table = rows(range(30), "norms", "l2", "</script><i>", np.arange(30) + 1.0)
    page = build({name: table, "b": norms()}, {name: {"trajectory": name}})
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "i"]
    assert page.text.count(name) == 3, "navigation, title, trajectory"
    names = {line["name"] for shown in charts_of(page).values() for line in shown["data"]}
    assert escape(name, quote=True) in names, "plotly reads its names as HTML"
    assert not any("<i>" in str(line) for line in names)


@pytest.mark.parametrize("name", ["x_0^2 `y`", "Σ_W", "d_model"])
def test_a_runs_name_is_shown_as_it_is(name: str):
    table = rows(range(30), "norms", "l2", "total", np.arange(30) + 1.0)
    page = build({name: table, "b": norms()})
    assert name in [line["name"] for line in charts_of(page)["chart-0"]["data"]]
    [title] = build_figures({name: table}, {})["growth"].subfigs
    assert title.get_suptitle().endswith(f": {name}")


def test_runs_are_compared_relative_to_their_start():
    page = build({"one": full(), "two": full(LOG_SPACED, 1)})
    assert page.placed[0][:2] == ("Compared", "Norm relative to the first checkpoint")
    lines = charts_of(page)["chart-0"]["data"]
    assert [line["name"] for line in lines] == ["one", "two"]
    assert lines[0]["y"][0] == lines[1]["y"][0] == 1
    ids = [a.get("id") for _, a in page.tags]
    assert {"run-0", "run-1"} <= set(ids)


def test_missing_measures_and_few_points_are_said():
    assert "Not measured: loss, direction, spectrum, saturation," in build({"run": norms()}).text
    assert "Not measured: loss, norms, spectrum, saturation," in build({"run": direction()}).text
    few = build({"run": norms((0, 1, 2))})
    assert "3 checkpoints are too few for a growth law" in few.text
    assert "Growth laws" not in few.text
    assert "no law fitted: 3 checkpoints, 4 are needed" in few.scripts[-1]
    seven = build({"run": norms(UNIFORM[:7])})
    assert "7 checkpoints are too few to tell growth laws apart" in seven.text
    assert "best by AICc" not in json.dumps(charts_of(seven))
    eight = json.dumps(charts_of(build({"run": norms(UNIFORM[:8])})))
    assert "best by AICc" in eight
    assert "constant" not in build({"r": rows(range(30), "norms", "l2", "total", [3.0] * 30)}).text


def test_page_is_written_whole_and_not_too_large(tmp_path: Path):
    tables = {"run": full()}
    path = write_page(tables, fit_tables(tables), tmp_path / "new" / "page.html")
    assert 3_000_000 < path.stat().st_size < 5_300_000
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]
    with pytest.raises(ResultsError, match="choose another place for the page"):
        write_page(tables, {}, path / "page.html")
