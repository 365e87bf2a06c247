"""Saturation, heads and homogeneity: that what is shown and said are the table's own values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_panels import drawn, lines, panels, pictures
from report_tables import rows

from saturation.measures.heads.words import shares
from saturation.plots.panels import HeatMap, Histogram, Rule
from saturation.plots.series import RunTable, on_steps, ordered_layers
from saturation.report.figures import missing_figures
from saturation.report.summary import summarize

STEPS = (0, 10, 20)
LAYERS = ("decoder/final", "decoder/layers_0", "encoder/final", "encoder/layers_10",
          "encoder/layers_2")  # fmt: skip
ORDERED = ["encoder/layers_2", "encoder/layers_10", "encoder/final", "decoder/layers_0",
           "decoder/final"]  # fmt: skip
HEADS = {
    "encoder/layers_0/attention/head_0": ((1.0, 1.0, 1.0), (0.1, 0.1, 0.1)),
    "encoder/layers_0/attention/head_1": ((9.0, 9.0, 1.2), (0.9, 0.9, 0.12)),
    "decoder/layers_0/self_attention/head_0": ((3.0, 1.4, 1.1), (0.3, 0.6, 0.2)),
    "decoder/layers_0/encoder_decoder_attention/head_0": ((3.0, 3.0, 3.0), (0.3, 0.3, 0.3)),
}
SCALES = (1, 10, 100)


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


def test_they_are_missed_only_beside_a_run_that_has_them():
    nothing = rows(STEPS, "norms", "l2", "total", (1, 2, 3))
    assert not {"saturation", "heads"} & set(missing_figures({"run": nothing}))
    reasons = missing_figures({"run": nothing, "other": table()})
    assert reasons["saturation"].startswith("run has no cosines to limits")
    assert reasons["heads"].startswith("run has no positions attended by heads")


def test_layers_stand_by_stack_and_depth_with_the_final_norm_last():
    run = RunTable("run", table())
    assert list(ordered_layers(run.matching("cosine_scaled", ".*"))) == ORDERED


def test_heat_map_curves_and_depth_are_the_tables_values():
    run = RunTable("run", table())
    layers = ordered_layers(run.matching("cosine_scaled", ".*"))
    found = panels("saturation", run)
    [heat] = found["Limit: attention at τ = 0"].of(HeatMap)
    np.testing.assert_array_equal(heat.values, [series.values for series in layers.values()])
    assert list(heat.rows) == ORDERED
    assert heat.limits == (0, 1)
    curves = drawn(found["Curves: f(x; cθ), finite c"])
    assert list(curves) == ORDERED
    for scope, series in layers.items():
        np.testing.assert_array_equal(curves[scope], series.values)
    depth = lines(found["Each layer at step 20"])["encoder, attention at τ = 0"]
    assert depth.x == ["2", "10", "norm"]
    np.testing.assert_array_equal(depth.y, [layers[scope].values[-1] for scope in ORDERED[:3]])


def test_every_head_is_a_line_and_the_histogram_counts_every_head():
    found = panels("heads", table())
    every = [line.y.tolist() for line in found["Positions attended by every head"].marks]
    assert sorted(every) == sorted(list(positions) for positions, _ in HEADS.values())
    first, last = found["Histogram of positions attended"].of(Histogram)
    assert sorted(first.values) == [1, 3, 3, 9]
    assert sorted(last.values) == [1, 1.1, 1.2, 3]
    assert (first.edges[0], first.edges[-1]) == (1, 9)
    assert [first.name, last.name] == ["first checkpoint, step 0", "last checkpoint, step 20"]


def test_spread_and_roles_of_heads():
    """One of four heads attends one key at first; in the end three do, and none is mean-like."""
    found = panels("heads", table())
    spread = lines(found["Positions attended"])["encoder self-attention"]
    np.testing.assert_allclose(spread.y, [5, 5, 1.1])
    np.testing.assert_allclose([spread.low, spread.high], [[3, 3, 1.05], [7, 7, 1.15]])
    argmax_like, mean_like = drawn(found["Roles of heads"]).values()
    assert (argmax_like.tolist(), mean_like.tolist()) == ([25, 50, 75], [25, 25, 0])
    n = np.array([[1.0, np.nan], [1.4, 9.0]])
    shared = shares(n, np.array([[1.0, np.nan], [0.2, 0.9]]))
    np.testing.assert_array_equal(shared, [[1.0, 0.0], [0.0, 1.0]])


def homogeneity_table() -> pd.DataFrame:
    """1 − cos = 0.5/c² of every layer, ten times less at each step, and the degree 3 − 1/c."""
    parts = []
    for c in SCALES:
        for depth, layer in enumerate(("encoder/layers_0", "encoder/final", "decoder/layers_0")):
            away = (1 + depth) * 0.1 / c**2 / np.array([1.0, 10.0, 100.0])
            parts.append(rows(STEPS, "homogeneity", f"cosine_to_limit_at_{c}", layer, 1 - away))
            degree = [(1 if layer.endswith("final") else 3) - 1 / c] * 3
            parts.append(rows(STEPS, "homogeneity", f"local_degree_at_{c}", layer, degree))
            error = f"local_degree_at_{c}_stderr"
            parts.append(rows(STEPS, "homogeneity", error, layer, [0.1, 0.1, 0.1]))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("title", "metric"),
    [("Distance to the limit", "cosine_to_limit"), ("Local degree", "local_degree")],
)
def test_the_curves_of_homogeneity_are_the_tables_values(title: str, metric: str, step: int):
    made = homogeneity_table()
    panel = panels("homogeneity", made)[f"{title}, step {step}"]
    assert list(lines(panel)) == ["encoder/layers_0", "encoder/final", "decoder/layers_0"]
    for scope, line in lines(panel).items():
        here = made[(made.step == step) & (made.scope == scope)].set_index("metric").value
        values = np.array([here[f"{metric}_at_{c}"] for c in SCALES])
        assert line.x.tolist() == list(SCALES)
        np.testing.assert_allclose(line.y, 1 - values if metric == "cosine_to_limit" else values)
    if metric == "local_degree":
        assert [rule.at for rule in panel.of(Rule)] == [1, 3], "the whole numbers they end at"
    else:
        assert panel.y.scale == "log"


def test_a_step_without_a_value_leaves_a_gap():
    made = homogeneity_table()
    hole = (made.step == 10) & (made.metric == "cosine_to_limit_at_10")
    made.loc[hole, "value"] = np.nan
    found = panels("homogeneity", made)
    assert np.isnan(drawn(found["Distance to the limit, step 10"])["encoder/final"][1])
    assert np.isfinite(drawn(found["Distance to the limit, step 0"])["encoder/final"]).all()


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
    assert list(pictures("saturation", one)) == ["saturation"]
    assert list(panels("saturation", one)) == ["Each layer at step 0"]
    assert drawn(panels("heads", one)["Positions attended"])["encoder self-attention"] == [1]


def test_the_summary_says_how_saturated_it_is():
    """Of four heads one attends one key at first, and three in the end; cosines rise by 0.8."""
    lines = summarize({"run": table()}, {}).splitlines()
    assert max(map(len, lines)) <= 100
    said = {" ".join(line.split()) for line in lines}
    assert {
        "attention at τ = 0 0.080 0.880",
        "f(x; cθ), finite c 0.080 0.880",
        "worst: encoder/layers_2 0.060 0.860",
        "encoder self-attention 1 of 2 2 of 2",
        "decoder self-attention 0 of 1 1 of 1",
        "cross-attention 0 of 1 0 of 1",
        "How to read saturation.png",
        "How to read heads.png",
    } <= said
