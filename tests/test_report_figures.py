"""Figures of norms and direction: the files, and that what is drawn are the table's own values."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_panels import drawn, lines, panels, pictures, run_of
from report_tables import LOG_SPACED, UNIFORM, direction, full, norms, rows, vectors

from saturation.errors import ResultsError
from saturation.measures import pictures_together
from saturation.plots.panels import HeatMap, Note, Panel
from saturation.report import fit_tables, write_figures
from saturation.report.figures import build_figures, missing_figures


@pytest.fixture(scope="module")
def growth() -> dict[str, Panel]:
    return panels("norms", full())


@pytest.fixture(scope="module")
def motion() -> dict[str, Panel]:
    return panels("direction", full())


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def notes(panel: Panel) -> list[str]:
    return [note.text for note in panel.of(Note)]


def test_files_are_real_pictures_and_reproducible(tmp_path: Path):
    tables = {"run": full()}
    fits = fit_tables(tables)
    paths = write_figures(tables, fits, tmp_path / "new" / "figures")
    names = [path.name for path in paths]
    wanted = ("growth", "layers", "scopes", "direction", "steps")
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


def test_growth_has_the_checkpoints_and_the_fitted_curves(growth):
    norm = np.linalg.norm(vectors(UNIFORM)["blocks"], axis=1)
    [panel] = [panel for title, panel in growth.items() if title.startswith("“blocks”")]
    found = lines(panel)
    points = found[f"{len(UNIFORM)} checkpoints"]
    np.testing.assert_array_equal(points.x, UNIFORM)
    np.testing.assert_allclose(points.y, norm, rtol=1e-15)
    laws = fit_tables({"run": full()})["run"]["blocks"]
    for name, law in (("free power", "power"), ("square root", "sqrt")):
        [label] = [label for label in found if label.startswith(name)]
        np.testing.assert_allclose(found[label].y, laws[law].predict(found[label].x))
        assert ("best by AIC" in label) == (law == "power")
    leftovers = drawn(growth["What the laws leave over"])["free power"]
    expected = 100 * (norm - laws["power"].predict(UNIFORM)) / np.ptp(norm)
    np.testing.assert_allclose(leftovers, expected, atol=1e-9)


def test_every_part_is_shown_with_its_exponent():
    run = run_of(full())
    [scopes] = [*pictures_together("norms", [run])]
    by_scope = {panel.title: panel for panel in scopes.panels}
    for scope, theta in vectors(UNIFORM).items():
        if "/" in scope:
            continue
        line = lines(by_scope[scope])["checkpoints"]
        np.testing.assert_array_equal(line.x, UNIFORM)
        np.testing.assert_allclose(line.y, np.linalg.norm(theta, axis=1), rtol=1e-15)
        [note] = notes(by_scope[scope])
        assert re.fullmatch(r"p = 0\.\d\d \(0\.\d\d to 0\.\d\d\)", note)


def test_layers_are_those_of_each_stack(growth):
    for stack in ("encoder", "decoder"):
        found = drawn(growth[f"{stack}, 2 layers"])
        assert list(found) == ["layer 0", "layer 1"]
        for number in (0, 1):
            theta = vectors(UNIFORM)[f"{stack}/layers_{number}"]
            expected = np.linalg.norm(theta, axis=1)
            np.testing.assert_allclose(found[f"layer {number}"], expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("scope", "stack"),
    [("encoder/layers_{}", "encoder"), ("gpt_neox/layers/{}", "gpt_neox/layers")],
)
def test_layers_stand_in_order_of_depth_whatever_the_model(scope: str, stack: str):
    table = pd.concat(
        rows([0, 10], "norms", "l2", scope.format(n), [n, n]) for n in (10, 2, 0, 1, 9)
    )
    found = panels("norms", table)[f"{stack}, 5 layers"]
    assert list(lines(found)) == [f"layer {n}" for n in (0, 1, 2, 9, 10)]
    [heat] = panels("norms", table[table.step == 0])[f"{stack}, 5 layers"].of(HeatMap)
    assert heat.values[:, 0].tolist() == [0, 1, 2, 9, 10], "of one checkpoint: a dot a layer"


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Cosine to the checkpoint before", "cosine"),
        ("The same, as distance from 1", "cosine_distance"),
        ("Cosine to the first checkpoint", "cosine_to_first"),
        ("How far the parameters moved", "step_norm"),
        ("Did they move outwards?", "alignment"),
        ("Local exponent of the norm", "exponent"),
    ],
)
def test_directions_are_the_tables_values(motion, title: str, metric: str):
    table = direction()
    assert list(lines(motion[title])) == ["blocks", "encoder", "decoder", "embedding", "total"]
    for scope, line in lines(motion[title]).items():
        wanted = table[(table.metric == metric) & (table.scope == scope)]
        between = np.sqrt(wanted.step * wanted.previous_step.astype(float))
        np.testing.assert_allclose(line.x, between if metric == "exponent" else wanted.step)
        np.testing.assert_array_equal(line.y, wanted.value)


def test_steps_have_rates_and_the_cumulated_budget(motion):
    theta = vectors(UNIFORM)["blocks"]
    length = np.linalg.norm(theta, axis=1)
    step = np.linalg.norm(np.diff(theta, axis=0), axis=1)
    rate = drawn(motion["Relative step per training step"])["blocks"]
    np.testing.assert_allclose(rate, step / length[:-1] / 80)
    budget = drawn(motion["What made ‖θ‖² grow? “blocks”"])
    both = budget["both: ‖θ_t′‖² − ‖θ_first‖²"]
    np.testing.assert_allclose(both, length[1:] ** 2 - length[0] ** 2)
    parts = budget["radial (along θ)"] + budget["tangential (across θ)"]
    np.testing.assert_allclose(parts, both)
    parts = drawn(motion["Its parts by the norm budget: “blocks”"])
    whole = parts["radial (along θ)"] + parts["tangential (across θ)"]
    np.testing.assert_allclose(whole, parts["both"])


@pytest.mark.parametrize(("steps", "apart"), [(UNIFORM, "80"), (LOG_SPACED, "1 to 541")])
def test_titles_state_the_spacing(steps, apart: str):
    for picture in pictures("direction", full(steps)).values():
        assert f"(checkpoints {apart} steps apart)" in picture.title


def test_runs_stand_below_each_other_and_share_the_scopes():
    one, two = full(), full(LOG_SPACED, seed=1, power=0.4)
    figures = build_figures({"one": one, "two": two}, {})
    assert [part.get_suptitle() for part in figures["layers"].subfigs] == [
        "Norm of each layer: one",
        "Norm of each layer: two",
    ]
    assert [part.get_suptitle() for part in figures["scopes"].subfigs] == [
        "Norm of each part of the model, with its fitted power a·t$^{p}$ + b: 2 runs"
    ]
    runs = [run_of(one), run_of(two)]
    runs[0].name, runs[1].name = "one", "two"
    [scopes] = [*pictures_together("norms", runs)]
    blocks = scopes.panels[0]
    assert blocks.title == "blocks"
    np.testing.assert_array_equal(lines(blocks)["one"].x, UNIFORM)
    np.testing.assert_array_equal(lines(blocks)["two"].x, LOG_SPACED)


def test_only_what_was_measured_is_drawn_and_the_rest_is_named():
    assert list(build_figures({"run": norms()}, {})) == ["growth", "layers", "scopes"]
    assert list(build_figures({"run": direction()}, {})) == ["direction", "steps"]
    assert missing_figures({"run": full()}) == {}
    assert missing_figures({"a": norms(), "b": full()}) == {
        "direction": "a has no cosines between checkpoints (measure direction)",
        "steps": "a has no steps between checkpoints (measure direction)",
    }


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (norms((0, 100, 200)), "no law fitted: 3 checkpoints, 4 are needed"),
        (norms((1000,)), "no law fitted: 1 checkpoints, 4 are needed"),
        (norms(UNIFORM[:7]), "7 checkpoints are too few to tell growth laws apart"),
    ],
)
def test_too_few_checkpoints_are_said_to_be(table: pd.DataFrame, said: str):
    first = next(iter(panels("norms", table).values()))
    assert any(note.startswith(said) for note in notes(first))
    assert not any("best by" in name for name in lines(first))


def test_a_constant_norm_is_shown():
    table = rows(range(30), "norms", "l2", "total", [3.0] * 30)
    assert list(pictures("norms", table)) == ["growth"]
    assert set(drawn(next(iter(panels("norms", table).values())))["30 checkpoints"]) == {3.0}


def test_nan_is_left_out_of_the_lines():
    table = norms()
    table.loc[(table.scope == "blocks") & (table.step == 80), "value"] = np.nan
    first = next(iter(panels("norms", table).values()))
    assert 80 not in lines(first)[f"{len(UNIFORM) - 1} checkpoints"].x


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
