"""The page of every measure: each combination, the table's own numbers, and a size to rely on."""

from __future__ import annotations

import numpy as np
import pytest
from page_reader import Reader, build, charts_of, lines_of, sections_of
from report_measures import EVERY, eigenvalues, heads, table

from saturation.report.page import build_page
from saturation.report.series import RunTable, quartiles
from saturation.report.spectrum_charts import MOST_DOTS, thinned
from saturation.report.spectrum_figures import effective

STEPS = (0, 10, 20, 40, 80)
HEADINGS = {
    "norms": ["Growth", "Layers"],
    "direction": ["Direction", "Steps"],
    "saturation": ["Saturation"],
    "heads": ["Heads"],
    "homogeneity": ["Homogeneity"],
    "spectrum": ["Spectrum of heads"],
    "smoothing": ["Token similarity"],
    "scan": ["Scan and snap"],
}


@pytest.fixture(scope="module")
def everything():
    return table(EVERY, STEPS)


@pytest.fixture(scope="module")
def sections(everything):
    return sections_of(build({"run": everything}, eigenvalues={"run": eigenvalues(STEPS)}))


def values(everything, metric, scope, step=None):
    rows = everything[(everything["metric"] == metric) & (everything["scope"] == scope)]
    found = rows.set_index("step")["value"].sort_index()
    return found.to_numpy() if step is None else found[step]


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


def test_a_step_that_is_not_there_yet_leaves_a_gap(everything):
    """As with --partial: one layer lacks the last checkpoint, one head the first."""
    partial = everything[
        ~((everything["scope"] == "encoder/layers_0") & (everything["step"] == 80))
        & ~((everything["scope"] == heads(2, 2)[0]) & (everything["step"] == 0))
    ]
    vectors = eigenvalues(STEPS)
    vectors = vectors[~(vectors["scope"].str.startswith("encoder/layers_0") & (vectors.step == 80))]
    sections = sections_of(build({"run": partial}, eigenvalues={"run": vectors}))
    z = sections["Saturation"]["Through training: attention at τ = 0"]["data"][0]["z"]
    assert z[0][-1] is None
    assert sum(value is None for row in z for value in row) == 1


def test_saturation_by_layer_and_step(everything, sections):
    found = sections["Saturation"]
    chart = found["Through training: parameter limit, c → ∞"]["data"][0]
    assert chart["x"] == ["0", "10", "20", "40", "80"]
    assert chart["y"] == [
        "encoder/layers_0", "encoder/layers_1", "encoder/final", "decoder/layers_0",
        "decoder/layers_1", "decoder/final",
    ]  # fmt: skip
    for scope, row in zip(chart["y"], chart["z"], strict=True):
        expected = values(everything, "cosine_parameter_limit", scope)
        np.testing.assert_allclose(row, expected, rtol=1e-4)
    lines = lines_of(found["Each layer at step 80"])
    assert len(lines) == 6
    line = lines["decoder, attention at τ = 0"]
    assert line["x"] == ["0", "1", "norm"]
    scopes = ("decoder/layers_0", "decoder/layers_1", "decoder/final")
    for part, metric in ((line["y"], ""), (line["error_y"]["array"], "_stderr")):
        expected = [values(everything, f"cosine_attention_limit{metric}", s, 80) for s in scopes]
        np.testing.assert_allclose(part, expected, rtol=1e-7)


def test_heads_are_counted_and_their_spread_is_shown(everything, sections):
    chart = sections["Heads"]["Positions attended"]
    encoder = [scope for scope in heads(2, 2) if scope.startswith("encoder")]
    every = np.array([values(everything, "positions_mean", scope) for scope in encoder])
    line = lines_of(chart)["encoder self-attention"]
    assert line["x"] == list(STEPS)
    np.testing.assert_allclose(line["y"], np.median(every, axis=0), rtol=1e-7)
    low, high = (edge["y"] for edge in chart["data"][:2])
    np.testing.assert_allclose([low, high], np.quantile(every, (0.25, 0.75), axis=0), rtol=1e-7)
    every = np.array([values(everything, "positions_mean", scope) for scope in heads(2, 2)])
    shown = lines_of(sections["Heads"]["Roles"])["argmax-like: n < 1.5"]["y"]
    np.testing.assert_allclose(shown, 100 * (every < 1.5).mean(axis=0))


def test_scan_is_beside_uniform_attention(everything, sections):
    lines = lines_of(sections["Scan and snap"]["Attention on distinct keys"])
    cross = [scope for scope in heads(2, 2) if "encoder_decoder" in scope]
    for name, metric in (("", "mass_distinct"), (", if uniform", "uniform_distinct")):
        expected = np.median([values(everything, metric, scope) for scope in cross], axis=0)
        shown = lines[f"cross-attention{name}"]["y"]
        np.testing.assert_allclose(shown, 100 * expected, rtol=1e-7)


def test_homogeneity_of_the_last_checkpoint(everything, sections):
    charts = sections["Homogeneity"]
    for title, metric in (
        ("Distance to the limit c → ∞", "cosine_to_limit"), ("Local degree", "local_degree")
    ):  # fmt: skip
        line = lines_of(charts[title])["decoder/layers_1"]
        assert line["x"] == [1, 10, 100]
        found = [
            values(everything, f"{metric}_at_{c:g}", "decoder/layers_1", 80) for c in line["x"]
        ]
        expected = 1 - np.array(found) if metric == "cosine_to_limit" else found
        np.testing.assert_allclose(line["y"], expected, rtol=1e-7)


def test_spectra_by_layer_and_in_the_plane(everything, sections):
    found = sections["Spectrum of heads"]
    chart = found["Which attention makes a head sharpen"]["data"][0]
    assert chart["y"][-1] == "decoder/layers_1 cross"
    assert len(chart["y"]) == 6
    scopes = [scope for scope in heads(2, 2) if "layers_1/encoder_decoder" in scope]
    expected = np.median([values(everything, "sharpens_below", s) for s in scopes], axis=0)
    np.testing.assert_allclose(chart["z"][-1], expected, rtol=1e-4)
    dots = found["decoder: eigenvalues of self-attention"]["data"][-1]
    run = RunTable("run", everything, eigenvalues(STEPS))
    expected = np.concatenate([effective(run, "decoder", layer, 80)[0] for layer in (0, 1)])
    np.testing.assert_allclose(dots["x"] + 1j * np.array(dots["y"]), expected, rtol=1e-7)
    assert dots["customdata"] == [0] * 8 + [1] * 8


def test_too_many_eigenvalues_are_thinned_and_the_deciding_one_is_kept():
    generator = np.random.default_rng(0)
    many = generator.normal(size=10 * MOST_DOTS) + 1j * generator.normal(size=10 * MOST_DOTS)
    kept = thinned(many)
    assert len(np.unique(kept)) == MOST_DOTS
    assert np.argmax(np.abs(1 + many)) in kept
    np.testing.assert_array_equal(thinned(many[:50]), np.arange(50))


def test_forecast_stands_beside_fact(everything, sections):
    charts = sections["Token similarity"]
    lines = lines_of(charts["encoder: forecast and fact in each layer at step 80"])
    for metric, name in (
        ("forecast_change", "forecast"),
        ("measured_change", "self-attention did"),
        ("onward_change", "layers left did"),
    ):
        assert lines[name]["x"] == ["0", "1"]
        expected = [values(everything, metric, f"encoder/layers_{n}", 80) for n in (0, 1)]
        np.testing.assert_allclose(lines[name]["y"], expected, rtol=1e-7)
    lines = lines_of(charts["decoder: are tokens alike?"])
    assert set(lines) == {f"{c}, step {step}" for c in ("cos", "|cos|") for step in (0, 80)}
    assert lines["cos, step 0"]["x"] == ["emb", "0", "1", "norm"]
    assert lines["cos, step 0"]["y"][-1] == pytest.approx(
        values(everything, "token_cosine", "decoder/final", 0)
    )


def test_step_0_has_a_place_on_a_logarithmic_axis():
    steps = (0, 1, 2, 4, 8, 16, 64, 256, 1024)
    chart = sections_of(build({"run": table(["heads"], steps)}))["Heads"]["Roles"]
    assert chart["layout"]["xaxis"]["type"] == "log"
    assert chart["layout"]["xaxis"]["ticktext"] == ["0", "1", "10", "100", "1,000"]
    assert chart["layout"]["xaxis"]["tickvals"] == [0.5, 1, 10, 100, 1000]
    for line in chart["data"]:
        assert line["x"] == [0.5, *steps[1:]]
        assert line["customdata"] == list(steps)
        assert "customdata" in line["hovertemplate"]


def test_runs_are_compared_where_two_have_a_measure(everything):
    other = table(("norms", "heads", "scan"), STEPS, seed=1)
    page = build({"one": everything, "two": other}, eigenvalues={"one": eigenvalues(STEPS)})
    together = {title: charts_of(page)[name] for heading, title, _, name in page.placed
                if heading == "All runs"}  # fmt: skip
    assert list(together) == [
        "Norm relative to the first checkpoint", "Argmax-like heads", "Entropy of attention",
        "Attention on distinct keys",
    ]  # fmt: skip
    for name, run in (("one", everything), ("two", other)):
        found = RunTable(name, run).matching("attention_entropy", r".*/head_\d+")
        expected = quartiles(list(found.values()))[1][1]
        line = lines_of(together["Entropy of attention"])[name]
        np.testing.assert_allclose(line["y"], expected, rtol=1e-7)


def test_hundreds_of_heads_and_steps_make_no_large_page():
    """216 heads at 200 checkpoints: the charts take a tenth of what plotly.js does."""
    steps, depth, each = range(0, 200_000, 1000), 6, 12
    assert len(heads(depth, each)) == 216
    many = table([m for m in EVERY if m not in ("norms", "direction")], steps, depth, each)
    page = build_page({"run": many}, {}, {}, {"run": eigenvalues(steps[-1:], depth, each, 64)})
    assert len(page.rpartition("const charts")[2]) < 700_000
    assert len(page.encode()) < 6_000_000
    assert f"4,608 eigenvalues, {MOST_DOTS:,} of them drawn" in page
