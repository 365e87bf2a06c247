"""The page of every measure: each combination, the table's own numbers, and a size to rely on."""

from __future__ import annotations

import numpy as np
import pytest
from page_reader import Reader, build, charts_of, lines_of, sections_of
from report_measures import EVERY, eigenvalues, heads, table

from saturation.measures.spectrum.pictures import MOST_DOTS
from saturation.plots.series import RunTable, quartiles
from saturation.report.page import build_page

STEPS = (0, 10, 20, 40, 80)
HEADINGS = {
    "loss": ["Loss"],
    "norms": ["Growth", "Layers"],
    "direction": ["Direction", "Steps"],
    "spectrum": ["Spectrum of heads"],
    "saturation": ["Saturation"],
    "heads": ["Heads"],
    "homogeneity": ["Homogeneity"],
    "scan": ["Scan and snap", "When heads come to rest"],
    "smoothing": ["Token similarity"],
}


def drawn(chart) -> int:
    """Numbers that a chart shows."""
    return sum(
        value is not None
        for line in chart["data"]
        for row in ([line.get("y", [])] if "z" not in line else line["z"])
        for value in row
    )


def headings(page: Reader) -> list[str]:
    return list(dict.fromkeys(heading for heading, *_ in page.placed))


def sensible(page: Reader, numbers: int = 1) -> None:
    """No chart is empty, and none holds what JSON cannot."""
    for name, chart in charts_of(page).items():
        assert drawn(chart) >= numbers, name
        assert chart["layout"]["xaxis"]["title"]["text"], name
    assert "NaN" not in page.scripts[-1].rpartition("const charts")[2]


@pytest.mark.parametrize("measure", EVERY)
def test_a_run_of_one_measure_has_its_sections_and_says_what_was_not_measured(measure):
    vectors = {"run": eigenvalues(STEPS)} if measure == "spectrum" else None
    page = build({"run": table([measure], STEPS)}, {"run": {"measures": [measure]}}, vectors)
    assert headings(page) == HEADINGS[measure]
    sensible(page)
    others = page.text.split("Not measured: ")[1].split(";")[0].split(", ")
    assert sorted([*others, measure]) == sorted(EVERY)
    assert f"--measures {','.join(others)} --out RUN" in page.text


@pytest.mark.parametrize(
    "measures",
    [("heads", "scan"), ("saturation", "homogeneity", "smoothing"), ("norms", "spectrum"), EVERY],
    ids=",".join,
)
def test_any_combination(measures):
    vectors = {"run": eigenvalues(STEPS)} if "spectrum" in measures else None
    page = build({"run": table(measures, STEPS)}, eigenvalues=vectors)
    assert headings(page) == [h for name, hs in HEADINGS.items() if name in measures for h in hs]
    sensible(page)
    assert ("Not measured" in page.text) == (measures != EVERY)


@pytest.mark.parametrize("step", [0, 1000])
def test_a_single_step_needs_no_course(step):
    page = build(
        {"run": table(EVERY, (step,))},
        {"run": {"measures": list(EVERY)}},
        {"run": eigenvalues((step,))},
    )
    assert headings(page) == [h for name, hs in HEADINGS.items() if name != "direction" for h in hs]
    sensible(page)
    assert (
        "direction was measured and is not shown: it compares checkpoints, and this run has "
        in (page.text)
    )
    for chart in charts_of(page).values():
        axis = chart["layout"]["xaxis"]
        if axis["title"]["text"] == "training step":
            assert axis["ticktext"] == [f"{step:,}"]
        assert not any(line["type"] == "heatmap" for line in chart["data"])


def test_what_is_nowhere_finite_is_said_and_not_drawn():
    broken = table(["heads", "norms"], STEPS)
    broken["value"] = np.nan
    page = build({"run": broken})
    assert not page.placed
    assert "heads was measured and is not shown: the table holds no finite number of it." in (
        page.text
    )


def test_a_step_that_is_not_there_yet_leaves_a_gap():
    """As with --partial: one layer lacks the last checkpoint, one head the first."""
    everything = table(EVERY, STEPS)
    partial = everything[
        ~((everything["scope"] == "encoder/layers_0") & (everything["step"] == 80))
        & ~((everything["scope"] == heads(2, 2)[0]) & (everything["step"] == 0))
    ]
    vectors = eigenvalues(STEPS)
    vectors = vectors[~(vectors["scope"].str.startswith("encoder/layers_0") & (vectors.step == 80))]
    sections = sections_of(build({"run": partial}, eigenvalues={"run": vectors}))
    z = sections["Saturation"]["Limit: attention at τ = 0"]["data"][0]["z"]
    assert z[0][-1] is None
    assert sum(value is None for row in z for value in row) == 1


def test_runs_are_compared_where_two_have_a_measure():
    one, two = table(EVERY, STEPS), table(("norms", "heads", "scan"), STEPS, seed=1)
    page = build({"one": one, "two": two}, eigenvalues={"one": eigenvalues(STEPS)})
    together = {title: charts_of(page)[name] for heading, title, _, name in page.placed
                if heading == "Compared"}  # fmt: skip
    assert list(together) == [
        "Norm relative to the first checkpoint", "Argmax-like heads", "Attention: entropy",
        "Attention: on distinct keys",
    ]  # fmt: skip
    for name, made in (("one", one), ("two", two)):
        found = RunTable(name, made).matching("attention_entropy", r".*/head_\d+")
        expected = quartiles(list(found.values()))[1][1]
        line = lines_of(together["Attention: entropy"])[name]
        np.testing.assert_allclose(line["y"], expected, rtol=1e-7)


def test_hundreds_of_heads_and_steps_make_no_large_page():
    """216 heads at 200 checkpoints: the charts take a sixth of what plotly.js does."""
    steps, depth, each = range(0, 200_000, 1000), 6, 12
    assert len(heads(depth, each)) == 216
    many = table([m for m in EVERY if m not in ("norms", "direction")], steps, depth, each)
    page = build_page({"run": many}, {}, {}, {"run": eigenvalues(steps[-1:], depth, each, 64)})
    assert len(page.rpartition("const charts")[2]) < 800_000
    assert len(page.encode()) < 6_000_000
    assert f"4,608 eigenvalues, {MOST_DOTS:,} of them drawn" in page
