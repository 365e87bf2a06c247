"""Figures: the files, and that what is drawn are the table's own values."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_tables import LOG_SPACED, UNIFORM, direction, full, norms, rows, vectors

from saturation.errors import ResultsError
from saturation.report import fit_tables, write_figures
from saturation.report.figures import build_figures, missing_figures


def drawn(figure: Figure, title: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {label: (x, y)} of the lines in the panel whose title starts with `title`."""
    panels = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    assert len(panels) == 1, [axes.get_title(loc="left") for axes in figure.axes]
    return {str(line.get_label()): line.get_data() for line in panels[0].get_lines()}


def build(tables: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    return build_figures(tables, fit_tables(tables))


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return build({"run": full()})


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_files_are_real_pictures_and_reproducible(tmp_path: Path):
    tables = {"run": full()}
    fits = fit_tables(tables)
    paths = write_figures(tables, fits, tmp_path / "new" / "figures")
    names = [path.name for path in paths]
    wanted = ("growth", "scopes", "layers", "direction", "steps")
    assert names == [f"{name}.{kind}" for name in wanted for kind in ("png", "pdf")]
    for path in paths:
        if path.suffix == ".png":
            assert png_size(path)[0] == 1650
            assert path.stat().st_size > 20_000, "a picture with something on it"
        else:
            content = path.read_bytes()
            assert content.startswith(b"%PDF-")
            assert b"CreationDate" not in content
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(names), "no temporary file"
    one_scope = {"run": rows((0, 10, 20), "norms", "l2", "total", (1, 2, 3))}
    first = write_figures(one_scope, {}, tmp_path / "1")
    again = write_figures(one_scope, {}, tmp_path / "2")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_growth_draws_the_checkpoints_and_the_fitted_curves(figures: dict[str, Figure]):
    theta = vectors(UNIFORM)["blocks"]
    lines = drawn(figures["growth"], "“blocks”")
    x, y = lines[f"{len(UNIFORM)} checkpoints"]
    np.testing.assert_array_equal(x, UNIFORM)
    np.testing.assert_allclose(y, np.linalg.norm(theta, axis=1), rtol=1e-15)
    laws = fit_tables({"run": full()})["run"]["blocks"]
    for name, law in (("free power", "power"), ("square root", "sqrt")):
        [label] = [label for label in lines if label.startswith(name)]
        x, y = lines[label]
        np.testing.assert_allclose(y, laws[law].predict(x))
        assert ("best by AIC" in label) == (law == "power")
    leftovers = figures["growth"].axes[1].get_lines()[0].get_ydata()
    norm = np.linalg.norm(theta, axis=1)
    expected = 100 * (norm - laws["power"].predict(UNIFORM)) / np.ptp(norm)
    np.testing.assert_allclose(leftovers, expected, atol=1e-9)


def test_scopes_draw_every_part_with_its_exponent(figures: dict[str, Figure]):
    for scope, theta in vectors(UNIFORM).items():
        if "/" in scope:
            continue
        x, y = drawn(figures["scopes"], scope)["run"]
        np.testing.assert_array_equal(x, UNIFORM)
        np.testing.assert_allclose(y, np.linalg.norm(theta, axis=1), rtol=1e-15)
    texts = [text.get_text() for text in figures["scopes"].axes[0].texts]
    assert len(texts) == 1
    assert re.fullmatch(r"p = 0\.\d\d \(0\.\d\d to 0\.\d\d\)", texts[0])


def test_layers_draw_each_layer_of_each_stack(figures: dict[str, Figure]):
    theta = vectors(UNIFORM)
    for stack in ("encoder", "decoder"):
        lines = drawn(figures["layers"], f"{stack}, 2 layers")
        assert set(lines) == {"layer 0", "layer 1"}
        for number in (0, 1):
            expected = np.linalg.norm(theta[f"{stack}/layers_{number}"], axis=1)
            np.testing.assert_allclose(lines[f"layer {number}"][1], expected, rtol=1e-15)


def test_layers_stand_in_order_of_depth():
    steps = [0, 10]
    table = pd.concat(
        rows(steps, "norms", "l2", f"encoder/layers_{n}", [n, n]) for n in (10, 2, 0, 1, 9)
    )
    lines = drawn(build({"run": table})["layers"], "encoder")
    assert list(lines) == [f"layer {n}" for n in (0, 1, 2, 9, 10)]


def test_layers_of_a_foreign_model():
    table = pd.concat(
        rows([0, 1], "norms", "l2", f"gpt_neox/layers/{n}", [n, n]) for n in (0, 1, 11)
    )
    assert list(drawn(build({"run": table})["layers"], "gpt_neox")) == [
        "layer 0",
        "layer 1",
        "layer 11",
    ]


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Cosine to the checkpoint before", "cosine"),
        ("The same, as distance from 1", "cosine_distance"),
        ("Cosine to the first", "cosine_to_first"),
    ],
)
def test_direction_draws_the_tables_values(figures: dict[str, Figure], title: str, metric: str):
    table = direction()
    lines = drawn(figures["direction"], title)
    assert list(lines) == ["blocks", "encoder", "decoder", "embedding", "total"]
    for scope, (x, y) in lines.items():
        wanted = table[(table.metric == metric) & (table.scope == scope)]
        np.testing.assert_array_equal(x, wanted.step)
        np.testing.assert_array_equal(y, wanted.value)


def test_steps_draw_rates_and_the_cumulated_budget(figures: dict[str, Figure]):
    theta = vectors(UNIFORM)["blocks"]
    length = np.linalg.norm(theta, axis=1)
    step = np.linalg.norm(np.diff(theta, axis=0), axis=1)
    rate = drawn(figures["steps"], "Relative step per training step")["blocks"][1]
    np.testing.assert_allclose(rate, step / length[:-1] / 80)
    np.testing.assert_allclose(drawn(figures["steps"], "How far")["blocks"][1], step)
    budget = drawn(figures["steps"], "What made")
    [both] = [line for label, line in budget.items() if label.startswith("both")]
    np.testing.assert_allclose(both[1], length[1:] ** 2 - length[0] ** 2)
    parts = budget["radial (along θ)"][1] + budget["tangential (across θ)"][1]
    np.testing.assert_allclose(parts, both[1])


def title_of(figure: Figure) -> str:
    return figure.subfigs[0].get_suptitle()


def test_titles_state_the_spacing(figures: dict[str, Figure]):
    assert "checkpoints 80 steps apart" in title_of(figures["direction"])
    uneven = build({"run": full(LOG_SPACED)})
    assert "checkpoints 1 to 541 steps apart" in title_of(uneven["steps"])
    axes = uneven["direction"].axes[0]
    assert axes.get_xscale() == "symlog"
    assert figures["direction"].axes[0].get_xscale() == "linear"


def test_every_panel_says_what_its_axes_are(figures: dict[str, Figure]):
    for name, figure in figures.items():
        panels = [a for a in figure.axes if a.get_lines() and a.axison]
        assert panels
        for axes in panels:
            bottom = axes.get_subplotspec().is_last_row()
            assert axes.get_xlabel() == "training step" or not bottom, name
            left = axes.get_subplotspec().is_first_col()
            assert axes.get_ylabel() or not left, name


def test_runs_stand_below_each_other_and_share_the_scopes():
    tables = {"one": full(), "two": full(LOG_SPACED, seed=1, power=0.4)}
    figures = build(tables)
    assert [part.get_suptitle() for part in figures["layers"].subfigs] == [
        "Norm of each layer: one",
        "Norm of each layer: two",
    ]
    lines = drawn(figures["scopes"], "blocks")
    np.testing.assert_array_equal(lines["one"][0], UNIFORM)
    np.testing.assert_array_equal(lines["two"][0], LOG_SPACED)


def test_only_what_was_measured_is_drawn_and_the_rest_is_named():
    assert list(build({"run": norms()})) == ["growth", "scopes", "layers"]
    assert list(build({"run": direction()})) == ["direction", "steps"]
    assert missing_figures({"run": full()}) == {}
    assert missing_figures({"a": norms(), "b": full()}) == {
        "direction": "a has no direction (metrics cosine, cosine_distance, cosine_to_first)",
        "steps": "a has no direction (metrics step_norm, relative_step, alignment, radial, "
        "tangential)",
    }


def test_too_few_checkpoints_are_drawn_without_a_law():
    figure = build({"run": norms((0, 100, 200))})["growth"]
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "no law fitted: 3 checkpoints, 4 are needed"
    ]


def test_a_constant_norm_draws():
    table = rows(range(30), "norms", "l2", "total", [3.0] * 30)
    assert list(build({"run": table})) == ["growth"]


def test_nan_is_left_out_of_the_lines():
    table = norms()
    table.loc[(table.scope == "blocks") & (table.step == 80), "value"] = np.nan
    x, _ = drawn(build({"run": table})["growth"], "“blocks”")[f"{len(UNIFORM) - 1} checkpoints"]
    assert 80 not in x


def test_refused_tables(tmp_path: Path):
    with pytest.raises(ResultsError, match="at least one run and was given none"):
        write_figures({}, {}, tmp_path)
    with pytest.raises(ResultsError, match="run 'r' lacks the columns previous_step"):
        write_figures({"r": norms().drop(columns="previous_step")}, {}, tmp_path)
    twice = pd.concat([norms(), norms().head(1)])
    with pytest.raises(ResultsError, match="norms l2 of encoder/layers_0 at step 0 more than once"):
        write_figures({"r": twice}, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultsError, match=r"Cannot write .*growth.png.*choose another directory"):
        write_figures({"r": norms()}, {}, tmp_path / "file")
