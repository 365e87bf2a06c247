"""Figures of saturation and heads: that what is drawn are the table's own values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_tables import rows

from saturation.report.figures import build_figures, missing_figures
from saturation.report.saturation_figures import ordered_layers, shares
from saturation.report.series import RunTable, on_steps
from saturation.report.summary import summarize

STEPS = (0, 10, 20)
LAYERS = ("decoder/final", "decoder/layers_0", "encoder/final", "encoder/layers_10",
          "encoder/layers_2")  # fmt: skip
HEADS = {
    "encoder/layers_0/attention/head_0": ((1.0, 1.0, 1.0), (0.1, 0.1, 0.1)),
    "encoder/layers_0/attention/head_1": ((9.0, 9.0, 1.2), (0.9, 0.9, 0.12)),
    "decoder/layers_0/self_attention/head_0": ((3.0, 1.4, 1.1), (0.3, 0.6, 0.2)),
    "decoder/layers_0/encoder_decoder_attention/head_0": ((3.0, 3.0, 3.0), (0.3, 0.3, 0.3)),
}


def table() -> pd.DataFrame:
    parts = [
        rows(STEPS, "saturation", metric, layer, np.linspace(0.1, 0.9, 3) - 0.01 * depth)
        for metric in ("cosine_attention_limit", "cosine_scaled")
        for depth, layer in enumerate(LAYERS)
    ]
    for head, (positions, fraction) in HEADS.items():
        parts.append(rows(STEPS, "heads", "positions_mean", head, positions))
        parts.append(rows(STEPS, "heads", "positions_fraction", head, fraction))
        parts.append(rows(STEPS, "heads", "entropy", head, (2.0, 1.0, 0.5)))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def figures():
    return build_figures({"run": table()}, {})


def panel(figure, title):
    [axes] = [a for a in figure.axes if a.get_title(loc="left").startswith(title)]
    return axes


def test_they_are_missed_only_beside_a_run_that_has_them(figures):
    assert set(figures) == {"saturation", "heads"}
    nothing = rows(STEPS, "norms", "l2", "total", (1, 2, 3))
    assert not {"saturation", "heads"} & set(missing_figures({"run": nothing}))
    reasons = missing_figures({"run": nothing, "other": table()})
    assert reasons["saturation"].startswith("run has no saturation of layers")
    assert reasons["heads"].startswith("run has no positions attended by heads")


def test_layers_stand_by_stack_and_depth_with_the_final_norm_last():
    run = RunTable("run", table())
    assert list(ordered_layers(run.matching("cosine_scaled", ".*"))) == [
        "encoder/layers_2", "encoder/layers_10", "encoder/final", "decoder/layers_0",
        "decoder/final",
    ]  # fmt: skip


def test_the_heat_map_and_the_curves_are_the_tables_values(figures):
    run = RunTable("run", table())
    layers = ordered_layers(run.matching("cosine_scaled", ".*"))
    heat = panel(figures["saturation"], "Limit: attention at τ = 0")
    drawn = np.asarray(heat.collections[0].get_array())
    np.testing.assert_array_equal(drawn, [series.values for series in layers.values()])
    assert [label.get_text() for label in heat.get_yticklabels()] == list(layers)
    assert heat.yaxis_inverted()
    curves = panel(figures["saturation"], "Curves: f(x; cθ), finite c")
    lines = {line.get_label(): line.get_ydata() for line in curves.get_lines()}
    for scope, series in layers.items():
        np.testing.assert_array_equal(lines[scope], series.values)


def test_every_head_is_a_line(figures):
    lines = {
        line.get_label(): line.get_ydata()
        for line in panel(figures["heads"], "Positions attended by every head").get_lines()
    }
    assert set(lines) == set(HEADS)
    for head, (positions, _) in HEADS.items():
        np.testing.assert_array_equal(lines[head], positions)


def test_shares_of_roles(figures):
    """One of four heads attends one key at first; in the end three do, and none is mean-like."""
    argmax_like, mean_like = panel(figures["heads"], "Roles of heads").get_lines()
    np.testing.assert_array_equal(argmax_like.get_ydata(), [25, 50, 75])
    np.testing.assert_array_equal(mean_like.get_ydata(), [25, 25, 0])
    n = np.array([[1.0, np.nan], [1.4, 9.0]])
    found = shares(n, np.array([[1.0, np.nan], [0.2, 0.9]]))
    np.testing.assert_array_equal(found, [[1.0, 0.0], [0.0, 1.0]])


def test_the_histogram_counts_every_head(figures):
    axes = panel(figures["heads"], "Histogram of positions attended")
    filled = [patch for patch in axes.patches if patch.get_fill()]
    heights = np.diff(filled[0].get_xy()[:, 1])
    assert np.abs(heights).sum() > 0
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["first checkpoint, step 0", "last checkpoint, step 20"]


def test_every_panel_says_what_its_axes_are(figures):
    for figure in figures.values():
        for axes in figure.axes:
            if axes.get_title(loc="left"):
                assert axes.get_xlabel(), axes.get_title(loc="left")
                assert axes.get_ylabel(), axes.get_title(loc="left")


def homogeneity_table() -> pd.DataFrame:
    """1 − cos = 0.5/c² of every layer, ten times less at each step, and the degree 3 − 1/c."""
    parts = []
    for c in (1, 10, 100):
        for depth, layer in enumerate(("encoder/layers_0", "encoder/final", "decoder/layers_0")):
            away = (1 + depth) * 0.1 / c**2 / np.array([1.0, 10.0, 100.0])
            parts.append(rows(STEPS, "homogeneity", f"cosine_to_limit_at_{c}", layer, 1 - away))
            end = 1 if layer.endswith("final") else 3
            degree = [end - 1 / c] * 3
            parts.append(rows(STEPS, "homogeneity", f"local_degree_at_{c}", layer, degree))
            error = f"local_degree_at_{c}_stderr"
            parts.append(rows(STEPS, "homogeneity", error, layer, [0.1, 0.1, 0.1]))
    return pd.concat(parts, ignore_index=True)


def test_the_curves_of_homogeneity_are_the_tables_values():
    table = homogeneity_table()
    figures = build_figures({"run": table}, {})
    assert set(figures) == {"homogeneity"}
    panels = figures["homogeneity"].axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        f"step {step}" for _ in range(2) for step in STEPS
    ]
    for row, prefix in enumerate(("cosine_to_limit_at", "local_degree_at")):
        for column, step in enumerate(STEPS):
            lines = panels[3 * row + column].get_lines()[:3]
            for scope, line in zip(
                ("encoder/layers_0", "encoder/final", "decoder/layers_0"), lines, strict=True
            ):
                here = (
                    table[(table.step == step) & (table.scope == scope)].set_index("metric").value
                )
                values = np.array([here[f"{prefix}_{c}"] for c in (1, 10, 100)])
                np.testing.assert_array_equal(line.get_xdata(), [1, 10, 100])
                np.testing.assert_allclose(line.get_ydata(), 1 - values if row == 0 else values)
    assert panels[0].get_yscale() == "log"
    assert [line.get_ydata()[0] for line in panels[3].get_lines()[3:]] == [1, 3]


def test_a_step_without_a_value_leaves_a_gap():
    table = homogeneity_table()
    hole = (table.step == 10) & (table.metric == "cosine_to_limit_at_10")
    table.loc[hole, "value"] = np.nan
    figure = build_figures({"run": table}, {})["homogeneity"]
    assert np.isnan(figure.axes[1].get_lines()[0].get_ydata()[1])
    assert np.isfinite(figure.axes[0].get_lines()[0].get_ydata()).all()


def test_series_of_different_steps_share_an_axis():
    run = RunTable(
        "run",
        pd.concat([
            rows((0, 10), "heads", "entropy", "a", (1.0, 2.0)),
            rows((10, 20), "heads", "entropy", "b", (3.0, 4.0)),
        ]),
    )  # fmt: skip
    steps, values = on_steps(list(run.matching("entropy", "[ab]").values()))
    np.testing.assert_array_equal(steps, [0, 10, 20])
    np.testing.assert_array_equal(values, [[1, 2, np.nan], [np.nan, 3, 4]])


def test_one_checkpoint_and_one_head_are_enough():
    one = table()
    one = one[(one["step"] == 0) & one["scope"].isin(["encoder/layers_2", next(iter(HEADS))])]
    assert set(build_figures({"run": one}, {})) == {"saturation", "heads"}


def test_the_summary_says_how_saturated_it_is():
    """Of four heads one attends one key at first, and three in the end; cosines rise by 0.8."""
    lines = summarize({"run": table()}, {}).splitlines()
    assert max(map(len, lines)) <= 100
    by_name = {line[:36].strip(): line[36:].split() for line in lines if len(line) > 36}
    assert by_name["attention at τ = 0"] == ["0.080", "0.880"]
    assert by_name["f(x; cθ), finite c"] == ["0.080", "0.880"]
    assert by_name["encoder self-attention"] == ["1", "of", "2", "2", "of", "2"]
    assert by_name["decoder self-attention"] == ["0", "of", "1", "1", "of", "1"]
    assert by_name["cross-attention"] == ["0", "of", "1", "0", "of", "1"]
    assert "How to read saturation.png, heads.png and homogeneity.png" in lines
