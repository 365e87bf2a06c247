"""The interactive page: self-contained, the table's own numbers, safe with any run's name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from page_reader import Reader, build, charts_of
from report_tables import LOG_SPACED, UNIFORM, direction, full, norms, rows, vectors

from saturation.errors import ResultsError
from saturation.measures import MEASURES
from saturation.measures.base import STEP, WeightMeasure
from saturation.report import fit_tables, write_page
from saturation.report.glossary import GLOSSARY
from saturation.results import array_info

FACTS = {
    "trajectory": "gs://bucket/t5 & more",
    "format": "t5x",
    "steps": [0, 80, 2000],
    "measures": ["norms", "direction"],
    "arrays": {"a": {"shape": [3, 4]}, "b": {"shape": [5]}},
    "environment": {"jax": "0.10.2", "device": "cpu"},
}


def captions(page: Reader) -> list[str]:
    return [chart["layout"]["yaxis"]["title"]["text"] for chart in charts_of(page).values()]


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


def test_every_chart_has_its_place_and_the_tables_numbers(page: Reader):
    charts = charts_of(page)
    places = [a["id"] for tag, a in page.tags if tag == "div" and "id" in a]
    assert places == list(charts)
    growth = charts["chart-0"]["data"]
    assert [line["name"].split(",")[0] for line in growth] == [
        "checkpoints",
        "free power",
        "square root",
    ]
    assert growth[0]["x"] == list(UNIFORM)
    norm = np.linalg.norm(vectors(UNIFORM)["blocks"], axis=1)
    np.testing.assert_allclose(growth[0]["y"], norm, rtol=1e-7)
    power = fit_tables({"r": norms()})["r"]["blocks"]["power"]
    np.testing.assert_allclose(growth[1]["y"], power.predict(growth[1]["x"]), rtol=1e-7)
    assert captions(page) == [
        "‖θ‖₂",
        "% of growth",
        "d ln ‖θ‖/d ln t",
        "‖θ‖₂",
        "‖θ‖₂ of the layer",
        "‖θ‖₂ of the layer",
        "cosine",
        "1 − cosine",
        "cosine",
        "‖δ‖",
        "‖δ‖/(‖θ‖(t′ − t))",
        "cos(δ, θ)",
        "cumulated change of ‖θ‖²",
        "local exponent",
    ]


def test_facts_laws_and_glossary(page: Reader):
    text = " ".join(page.text.split())
    assert "gs://bucket/t5 & more" in text
    assert "3, from step 0 to 2,000" in text
    assert "17 in 2 arrays" in text
    assert "jax 0.10.2, device cpu" in text
    power = fit_tables({"r": norms()})["r"]["blocks"]["power"]
    assert f"{power.p:.3f} (95 %: {power.interval[0]:.3f} to {power.interval[1]:.3f})" in text
    assert "checkpoints lie 80 steps apart" in text
    for term in GLOSSARY:
        assert term.metric in text


def test_a_name_cannot_break_out():
    name = '</script><script>alert("1")</script><b>&'
    table = rows(range(30), "norms", "l2", "</script><i>", np.arange(30) + 1.0)
    page = build({name: table, "b": norms()}, {name: {"trajectory": name}})
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "i"]
    assert page.text.count(name) == 3, "navigation, title, trajectory"
    assert "&lt;b&gt;" in charts_of(page)["chart-0"]["data"][0]["name"]


def test_runs_are_compared_relative_to_their_start():
    page = build({"one": full(), "two": full(LOG_SPACED, 1)})
    lines = charts_of(page)["chart-0"]["data"]
    assert [line["name"] for line in lines] == ["one (blocks)", "two (blocks)"]
    assert lines[0]["y"][0] == lines[1]["y"][0] == 1
    ids = [a.get("id") for _, a in page.tags]
    assert "run-0" in ids
    assert "run-1" in ids


def test_missing_measures_and_few_points_are_said():
    assert "Not measured: direction, spectrum, saturation," in build({"run": norms()}).text
    assert "Not measured: norms, spectrum, saturation," in build({"run": direction()}).text
    few = build({"run": norms((0, 1, 2))})
    assert "3 checkpoints are too few for a growth law" in few.text
    assert "Growth laws" not in few.text
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


def term_of(metric: str) -> str:
    """The row of the glossary that a metric belongs to."""
    metric = re.sub("_(stderr|unscaled|per_step)$", "", metric)
    return re.sub("_at_[0-9.e+]+$", "_at_c", metric).replace("_imaginary", "_real")


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda measure: measure.name)
def test_glossary_has_every_metric(measure):
    """Of a layer, of a head and of an attention, whatever has a meaning there."""
    named = {term.metric for term in GLOSSARY}
    statistics = {name: np.ones((1, 2)) for name in measure.statistics}
    if isinstance(measure, WeightMeasure):
        info = array_info({"encoder/layers_0/mlp/wi/kernel": {"shape": [2, 2]}})
        found = measure.metrics(statistics, info)
        assert "…_per_step" in named or not measure.rates
    else:
        column = {name: values[0] for name, values in statistics.items()}
        found = measure.metrics(column | {STEP: np.arange(2.0)})
    assert {term_of(metric) for metric in found} <= named
