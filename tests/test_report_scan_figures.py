"""Figures and text of scan and snap: that what is drawn and said are the table's own values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_tables import norms, rows

from saturation.report.figures import build_figures, missing_figures
from saturation.report.page import build_page
from saturation.report.scan_text import scan_table, snap_steps
from saturation.report.series import RunTable
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
def figures():
    return build_figures({"run": table()}, {})


def panel(figure, title, below=0):
    [axes] = [a for a in figure.axes if a.get_title(loc="left").startswith(title)]
    return figure.axes[figure.axes.index(axes) + below]


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_they_are_missed_only_beside_a_run_that_has_them(figures):
    assert set(figures) == {"scan", "snap"}
    nothing = rows(STEPS, "norms", "l2", "total", (1, 2, 3, 4))
    assert not {"scan", "snap"} & set(missing_figures({"run": nothing}))
    reasons = missing_figures({"run": nothing, "other": table()})
    assert "measure scan" in reasons["scan"]
    assert "measure scan" in reasons["snap"]


def test_a_head_that_is_not_called_has_no_step():
    run = RunTable("run", table())
    expected = dict(zip(SNAP_STEPS, (20, 10, None, 0), strict=True))
    assert snap_steps(run, ".*") == expected


def test_lines_are_the_tables_values_with_a_dot_where_the_head_snaps(figures):
    axes = panel(figures["scan"], "On distinct keys")
    drawn = lines(axes)
    head = ENCODER.format(1, 0)
    np.testing.assert_allclose(drawn[head], [11, 21, 41, 41])
    assert ENCODER.format(0, 0) in drawn
    assert CROSS not in drawn, "cross-attention has a row of its own"
    dots = [(*line.get_xdata(), *line.get_ydata()) for line in axes.get_lines() if is_dot(line)]
    np.testing.assert_allclose(sorted(dot for dot in dots if dot), [(10, 21), (20, 40)])
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_ydata().tolist() for line in dashed] == [[15.0] * 4]


def is_dot(line):
    return line.get_marker() == "o" and len(line.get_xdata())


def test_each_kind_of_attention_has_a_row(figures):
    labels = [axes.get_ylabel() for axes in figures["scan"].axes]
    assert sum("encoder self-attention" in label for label in labels) == 1
    assert sum("cross-attention" in label for label in labels) == 1
    assert len(labels) == 8
    assert [a.get_title(loc="left") for a in figures["scan"].axes[:4]] == [
        "Entropy", "On distinct keys", "On common keys", "Elsewhere than at the end",
    ]  # fmt: skip
    below = panel(figures["scan"], "Elsewhere", below=4)
    np.testing.assert_allclose(lines(below)[CROSS], [30, 20, 1, 0])
    assert below.get_xlabel() == "training step"


def test_the_speed_is_the_median_of_heads_and_steps_are_where_they_snap(figures):
    drawn = lines(panel(figures["snap"], "Speed of attention"))
    speeds = [line for line in drawn.values() if len(line)]
    np.testing.assert_allclose(speeds, [[1.2, 0.1], [3.2, 0.1]])
    assert {"encoder self-attention: 2 of 3 snapped", "cross-attention: 1 of 1 snapped"} <= set(
        drawn
    )
    where = panel(figures["snap"], "Where each head moved fastest")
    crosses = [line for line in where.get_lines() if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [30]
    dots = sorted(line.get_xdata()[0] for line in where.get_lines() if line.get_marker() == "o")
    assert dots == [0, 10, 20]


def test_too_few_checkpoints_are_said_to_be():
    few = table()
    few = few[~few["metric"].isin(["snapped", "snap_step"])]
    assert "snap" not in build_figures({"run": few}, {})
    assert scan_table(RunTable("run", few))[1].endswith("too few steps")


def test_the_table_in_words():
    head, encoder, cross = scan_table(RunTable("run", table()))
    assert "entropy (uniform)" in head
    assert "4.00 to 3.00 nats (4.50)" in encoder
    assert "11.0% to 41.0% (15.0%)" in encoder
    assert encoder.endswith("2 of 3, median step 15")
    assert cross.endswith("1 of 1, median step 0")
    assert scan_table(RunTable("run", rows(STEPS, "norms", "l2", "total", STEPS))) == []


def test_the_summary_has_it_with_and_without_norms():
    for tables in (table(), pd.concat([norms(), table()], ignore_index=True)):
        text = summarize({"run": tables}, {})
        assert "2 of 3, median step 15" in text
        assert "How to read scan.png and snap.png" in text
    assert "scan.png" not in summarize({"run": norms()}, {})


def test_the_page_has_the_table():
    page = build_page({"run": table()}, {}, {})
    assert "2 of 3, median step 15" in page
    assert "Scan and snap" not in build_page({"run": norms()}, {}, {})


def test_one_checkpoint_and_one_head_are_enough():
    one = table().query("step == 0 and scope == @CROSS")
    one = one[~one["metric"].isin(["snapped", "snap_step"])]
    drawn = build_figures({"run": one}, {})
    assert set(drawn) == {"scan"}, "of one checkpoint none can be said to have stopped"
    axes = panel(drawn["scan"], "Entropy")
    assert axes.get_xticks().tolist() == [0]
    assert [line.get_marker() for line in axes.get_lines() if line.get_label() == CROSS] == ["."]


def test_layers_are_whole_numbers_however_few(figures):
    one_layer = build_figures({"run": table().query("scope == @CROSS")}, {})["snap"]
    for figure in (one_layer, figures["snap"]):
        where = panel(figure, "Where each head moved")
        low, high = sorted(where.get_ylim())
        shown = [tick for tick in where.get_yticks() if low <= tick <= high]
        assert shown
        assert all(tick == round(tick) for tick in shown)
