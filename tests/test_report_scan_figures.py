"""Scan and snap: that what is shown and said are the table's own values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_panels import drawn, lines, panels, pictures
from report_tables import norms, rows

from saturation.measures.scan.words import snap_steps, tables
from saturation.plots.panels import Line
from saturation.plots.series import RunTable
from saturation.report.figures import missing_figures
from saturation.report.page import build_page
from saturation.report.summary import summarize

STEPS = (0, 10, 20, 30)
ENCODER = "encoder/layers_{}/attention/head_{}"
CROSS = "decoder/layers_0/encoder_decoder_attention/head_0"
NAN = float("nan")
# Where each head snaps: at step 20, at 10, not at all, and at the start.
SNAP_STEPS = {
    ENCODER.format(0, 0): 20.0,
    ENCODER.format(1, 0): 10.0,
    ENCODER.format(1, 1): NAN,
    CROSS: 0.0,
}


def table() -> pd.DataFrame:
    parts = []
    for number, (head, step) in enumerate(SNAP_STEPS.items()):
        distinct = np.array([0.1, 0.2, 0.4, 0.4]) + 0.01 * number
        values = {
            "snapped": np.array(STEPS) >= step,
            "snap_step": (step,) * 4,
            "speed": (NAN, NAN, 0.2 + number, 0.1),
            "attention_entropy": (4.0, 3.0, 2.0, 2.0 + number),
            "uniform_entropy": (4.5,) * 4,
            "mass_distinct": distinct,
            "mass_common": 1 - distinct,
            "uniform_distinct": (0.15,) * 4,
            "uniform_common": (0.85,) * 4,
            "distance_to_last": (0.3, 0.2, 0.01, 0.0),
        }
        parts += [rows(STEPS, "scan", metric, head, value) for metric, value in values.items()]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def shown():
    return panels("scan", table())


def test_they_are_missed_only_beside_a_run_that_has_them():
    assert list(pictures("scan", table())) == ["scan", "snap"]
    nothing = rows(STEPS, "norms", "l2", "total", (1, 2, 3, 4))
    assert not {"scan", "snap"} & set(missing_figures({"run": nothing}))
    reasons = missing_figures({"run": nothing, "other": table()})
    assert "measure scan" in reasons["scan"]
    assert "measure scan" in reasons["snap"]


def test_a_head_that_is_not_called_has_no_step():
    expected = dict(zip(SNAP_STEPS, (20, 10, None, 0), strict=True))
    assert snap_steps(RunTable("run", table()), ".*") == expected


def test_each_kind_of_attention_has_a_row():
    headings = ["Entropy", "On distinct keys", "On common keys", "Elsewhere than at the end"]
    _, encoder, cross = pictures("scan", table())["scan"].rows
    for row, kind in ((encoder, "encoder self-attention"), (cross, "cross-attention")):
        assert [panel.title for panel in row] == headings
        assert row[0].y.label == f"{kind}\nnats"
        assert all(panel.dense for panel in row), "too many lines for the page"
    assert lines(cross[3])["layer 0"].y.tolist() == [30, 20, 1, 0]


def test_lines_are_the_tables_values_with_a_dot_where_the_head_snaps(shown):
    marks = [*shown["On distinct keys"].of(Line)]
    uniform, *heads = [line for line in marks if line.symbol == ""]
    assert (uniform.name, uniform.dash, uniform.y.tolist()) == (
        "uniform attention",
        "dash",
        [15] * 4,
    )
    np.testing.assert_allclose(
        [head.y for head in heads], [[10, 20, 40, 40], [11, 21, 41, 41], [12, 22, 42, 42]]
    )
    assert [head.name for head in heads] == ["layer 0", "layer 1", "layer 1"]
    assert len({head.colour for head in heads}) == 2, "a colour a layer"
    dots = [(*line.x, *line.y) for line in marks if line.symbol == "circle"]
    np.testing.assert_allclose(sorted(dots), [(10, 21), (20, 40)])


def test_medians_stand_beside_uniform_attention(shown):
    found = drawn(shown["Attention: on distinct keys"])
    np.testing.assert_allclose(found["encoder self-attention"], [11, 21, 41, 41])
    np.testing.assert_allclose(found["cross-attention"], [13, 23, 43, 43])
    np.testing.assert_allclose(found["cross-attention, if uniform"], [15] * 4)
    np.testing.assert_allclose(drawn(shown["Attention: entropy"])["encoder self-attention"],
                               [4, 3, 2, 3])  # fmt: skip


def test_the_speed_is_the_median_of_heads_and_steps_are_where_they_snap(shown):
    speed = drawn(shown["Speed of attention by ln t, median of heads"])
    np.testing.assert_allclose(speed["encoder self-attention: 2 of 3 snapped"], [1.2, 0.1])
    np.testing.assert_allclose(speed["cross-attention: 1 of 1 snapped"], [3.2, 0.1])
    where = shown["Where each head moved fastest (×: not called)"]
    crosses = [line.x.tolist() for line in where.of(Line) if line.symbol == "cross"]
    assert crosses == [[30]]
    dots = [line.x.tolist() for line in where.of(Line) if line.symbol == "circle"]
    assert dots == [[20, 10], [0]]
    assert where.y.scale == "whole"
    assert where.y.limits == (1.6, -0.6), "every layer, the first on top"


def test_too_few_checkpoints_are_said_to_be():
    few = table()
    few = few[~few["metric"].isin(["snapped", "snap_step"])]
    assert list(pictures("scan", few)) == ["scan"]
    assert tables(RunTable("run", few))[0].rows[0][-1] == "too few steps"


def test_the_table_in_words():
    [found] = tables(RunTable("run", table()))
    assert "entropy (uniform)" in found.columns
    encoder, cross = found.rows
    assert "4.00 to 3.00 nats (4.50)" in encoder
    assert "11.0% to 41.0% (15.0%)" in encoder
    assert (encoder[-1], cross[-1]) == ("2 of 3, median step 15", "1 of 1, median step 0")
    assert tables(RunTable("run", rows(STEPS, "norms", "l2", "total", STEPS))) == []


def test_summary_and_page_have_the_table_with_and_without_norms():
    for made in (table(), pd.concat([norms(), table()], ignore_index=True)):
        text = summarize({"run": made}, {})
        assert "2 of 3, median step 15" in text
        assert "How to read scan.png and snap.png" in text
    assert "2 of 3, median step 15" in build_page({"run": table()}, {}, {})
    assert "scan.png" not in summarize({"run": norms()}, {})
    assert "Scan and snap" not in build_page({"run": norms()}, {}, {})


def test_one_checkpoint_and_one_head_are_enough():
    one = table().query("step == 0 and scope == @CROSS")
    one = one[~one["metric"].isin(["snapped", "snap_step"])]
    assert list(pictures("scan", one)) == ["scan"], "of one none can be said to have stopped"
    assert drawn(panels("scan", one)["Entropy"])["layer 0"] == [4]
