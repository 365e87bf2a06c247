"""Spectra and token similarity: that what is shown and said are the tables' own values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_panels import drawn, lines, panels, pictures
from report_tables import rows

from saturation.measures.smoothing.pictures import shown_steps
from saturation.measures.smoothing.words import depth, holds_from, tables
from saturation.measures.spectrum.pictures import (
    MOST_DOTS,
    REGIONS,
    effective,
    scaled_by,
    thinned,
    window,
)
from saturation.plots.panels import Dots, HeatMap, Region
from saturation.plots.series import RunTable
from saturation.report.figures import missing_figures
from saturation.report.summary import summarize

STEPS = (0, 10, 20, 40, 80)
STATES = ("layers_10", "final", "embedding", "layers_0", "layers_1", "layers_2")
ORDER = ["embedding", "layers_0", "layers_1", "layers_2", "layers_10", "final"]
NAMES = ["emb", "0", "1", "2", "10", "norm"]
STATE_METRICS = ("token_cosine", "token_cosine_abs", "token_cosine_centred", "effective_rank",
                 "hfc_lfc", "token_rms")  # fmt: skip
COSINES = {"token_cosine": "cos", "token_cosine_abs": "|cos|",
           "token_cosine_centred": "cos, mean taken off"}  # fmt: skip
FORECAST = {
    "forecast_change": "forecast",
    "measured_change": "self-attention did",
    "onward_change": "layers left did",
}
OF_HEADS = ("fraction_negative", "spectral_radius", "asymmetry", "sharpens_below")
HEADS = ("encoder/layers_0/attention/head_0", "encoder/layers_0/attention/head_1",
         "decoder/layers_0/encoder_decoder_attention/head_0")  # fmt: skip


def values(metric, stack, state):
    """Of every step, all different."""
    seed = sum(map(ord, metric + stack + state))
    return np.random.default_rng(seed).uniform(0.1, 1, len(STEPS))


def table() -> pd.DataFrame:
    parts = []
    for stack in ("encoder", "decoder"):
        for state in STATES:
            scope = f"{stack}/{state}"
            layer = state.startswith("layers")
            for metric in (*STATE_METRICS, *(FORECAST if layer else ())):
                parts.append(rows(STEPS, "smoothing", metric, scope, values(metric, stack, state)))
                error = np.full(len(STEPS), 0.01)
                parts.append(rows(STEPS, "smoothing", f"{metric}_stderr", scope, error))
        for state, share in (("layers_0", 0.9), ("layers_1", 0.2), ("layers_10", 0.8)):
            shares = np.full(len(STEPS), share)
            parts.append(rows(STEPS, "smoothing", "onward_agrees", f"{stack}/{state}", shares))
    parts += [
        rows(STEPS, "spectrum", metric, head, values(metric, head, ""))
        for metric in OF_HEADS
        for head in HEADS
    ]
    return pd.concat(parts, ignore_index=True)


def eigenvalues() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    scopes = [f"encoder/layers_{n}/attention/head_{h}" for n in range(9) for h in (0, 1)]
    scopes += ["decoder/layers_0/self_attention/head_0"]
    scopes += ["decoder/layers_0/encoder_decoder_attention/head_0"]
    return pd.DataFrame([
        {
            "step": step,
            "scope": scope,
            "real": generator.standard_normal(4),
            "imaginary": generator.standard_normal(4),
        }
        for scope in scopes
        for step in STEPS
    ])  # fmt: skip


@pytest.fixture(scope="module")
def run() -> RunTable:
    return RunTable("run", table(), eigenvalues())


def test_they_are_missed_only_beside_a_run_that_has_them():
    nothing = rows(STEPS, "norms", "l2", "total", np.ones(len(STEPS)))
    assert not {"spectrum", "smoothing"} & set(missing_figures({"run": nothing}))
    reasons = missing_figures({"run": nothing, "other": table()})
    assert reasons["smoothing"].startswith("run has no token similarity by layer (measure smooth")


def test_states_stand_by_depth(run):
    found = depth(run, "encoder", "hfc_lfc")
    assert list(found) == ORDER
    for state, at in found.items():
        assert list(at.values()) == pytest.approx(values("hfc_lfc", "encoder", state))
    assert shown_steps(run, "encoder") == [0, 10, 40, 80]


def test_curves_by_depth_and_by_step_are_the_tables_values(run):
    found = panels("smoothing", run)
    ratios = found["encoder: HFC/LFC by depth"]
    assert list(ratios.x.order) == NAMES
    for step in (0, 10, 40, 80):
        expected = [values("hfc_lfc", "encoder", state)[STEPS.index(step)] for state in ORDER]
        np.testing.assert_array_equal(drawn(ratios)[f"step {step}"], expected)
    for metric, name in COSINES.items():
        line = lines(found["decoder: cosine at step 80"])[name]
        expected = np.array([values(metric, "decoder", state)[-1] for state in ORDER])
        assert line.x == NAMES
        np.testing.assert_array_equal(line.y, expected)
        np.testing.assert_allclose([line.low, line.high], [expected - 0.01, expected + 0.01])
    by_step = lines(found["encoder: HFC/LFC by step"])
    assert list(by_step) == ORDER
    for state, line in by_step.items():
        np.testing.assert_array_equal(line.x, STEPS)
        np.testing.assert_array_equal(line.y, values("hfc_lfc", "encoder", state))


def test_forecast_and_fact_stand_side_by_side(run):
    panel = panels("smoothing", run)["encoder: change a layer, step 80"]
    assert list(panel.x.order) == NAMES
    for metric, name in FORECAST.items():
        line = lines(panel)[name]
        assert (line.x, line.dash) == (NAMES[1:-1], "none")
        expected = [values(metric, "encoder", state)[-1] for state in ORDER[1:-1]]
        np.testing.assert_array_equal(line.y, expected)


def test_from_which_layer_on_the_forecast_holds(run):
    """Layer 1 does not agree, layer 2 has no clear forecast, layer 10 agrees."""
    assert holds_from(run, "encoder", 80) == 10
    assert holds_from(run, "encoder", 81) is None
    text = summarize({"run": table()}, {})
    assert "In the encoder the forecast has the right sign from layer 10 on." in text
    assert "How to read smoothing.png" in text
    assert "How to read spectrum.png" in text
    line = next(line for line in text.splitlines() if line.startswith("encoder/layers_1 "))
    assert f"{values('token_cosine', 'encoder', 'layers_1')[-1]:.2f}" in line
    assert line.endswith("20%")
    other = table()
    other.loc[other["metric"] == "onward_agrees", "value"] = 0.1
    assert holds_from(RunTable("run", other), "decoder", 80) is None
    [said] = tables(RunTable("r", other))
    assert "does not hold up to the last layer" in said.notes[0]
    [unclear] = tables(RunTable("r", other[other["metric"] != "onward_agrees"]))
    assert unclear.notes[-1] == "In the decoder no layer has a clear forecast."


def test_eigenvalues_are_divided_by_the_root_mean_square_of_the_layers_input(run):
    found, known = effective(run, "encoder", 1, 40)
    heads = eigenvalues().query("step == 40 and scope.str.startswith('encoder/layers_1/')")
    expected = np.concatenate([*heads.real]) + 1j * np.concatenate([*heads.imaginary])
    assert known
    rms = values("token_rms", "encoder", "layers_0")[STEPS.index(40)]
    np.testing.assert_allclose(found, expected / rms)
    bare = RunTable("run", rows(STEPS, "m", "x", "s", STEPS), eigenvalues())
    found, known = effective(bare, "encoder", 1, 40)
    assert not known
    np.testing.assert_allclose(found, expected)


def test_a_plane_says_what_it_divides_by_and_what_lies_outside():
    assert scaled_by([True, True]) == "λ/rms"
    assert scaled_by([True, False]) == "λ (/rms where measured)"
    assert scaled_by([False]) == "λ (rms not measured)"
    corner = np.concatenate([np.full(99, 2.3 - 2.3j), [5 - 1j]])
    assert window(corner) == (pytest.approx(2.415), 1), "a square shows its corners"
    assert window(np.array([np.nan + 0j])) == (2.4, 0)


def test_layers_that_were_not_divided_are_said():
    partly = table()
    partly = partly[(partly["metric"] != "token_rms") | (partly["scope"] == "encoder/embedding")]
    found = panels("spectrum", RunTable("run", partly, eigenvalues()))
    label = found["encoder: eigenvalues of self-attention"].x.label
    assert label == "Re λ (/rms where measured)"
    assert found["encoder layer 0"].x.label == "Re λ/rms"
    assert found["decoder layer 0"].x.label == "Re λ (rms not measured)"


def test_every_shown_layer_has_its_plane_with_three_regions_and_every_eigenvalue(run):
    found = panels("spectrum", run)
    shown = [("encoder", n) for n in (0, 3, 5, 8)] + [("decoder", 0)]
    assert [title for title, panel in found.items() if panel.dense] == [
        f"{stack} layer {layer}" for stack, layer in shown
    ]
    for stack, layer in shown:
        panel = found[f"{stack} layer {layer}"]
        assert tuple(panel.of(Region)) == REGIONS
        [dots] = panel.of(Dots)
        expected, _ = effective(run, stack, layer, 80)
        np.testing.assert_array_equal(dots.x + 1j * dots.y, expected)
    [dots] = found["encoder: eigenvalues of self-attention"].of(Dots)
    expected = np.concatenate([effective(run, "encoder", layer, 80)[0] for layer in range(9)])
    np.testing.assert_array_equal(dots.x + 1j * dots.y, expected)
    assert dots.by.tolist() == [layer for layer in range(9) for _ in range(8)]


def test_too_many_eigenvalues_are_thinned_and_the_deciding_one_is_kept():
    generator = np.random.default_rng(0)
    many = generator.normal(size=10 * MOST_DOTS) + 1j * generator.normal(size=10 * MOST_DOTS)
    kept = thinned(many)
    assert len(np.unique(kept)) == MOST_DOTS
    assert np.argmax(np.abs(1 + many)) in kept
    np.testing.assert_array_equal(thinned(many[:50]), np.arange(50))


def test_trends_and_rows_are_medians_over_heads(run):
    found = panels("spectrum", run)
    for title, metric in (("Largest |λ|", "spectral_radius"),
                          ("Parts if min λ^A < this; −1: never", "sharpens_below")):  # fmt: skip
        expected = np.median([values(metric, head, "") for head in HEADS[:2]], axis=0)
        np.testing.assert_allclose(drawn(found[title])["encoder self-attention"], expected)
    [heat] = found["What makes a head sharpen"].of(HeatMap)
    assert list(heat.rows) == ["encoder/layers_0", "decoder/layers_0 cross"]
    np.testing.assert_allclose(heat.values[0], expected)
    np.testing.assert_array_equal(heat.values[1], values("sharpens_below", HEADS[2], ""))
    assert (heat.limits, heat.colours) == ((-1, 1), "RdBu")


def test_one_checkpoint_and_one_layer_are_enough():
    one = table()
    one = one[one["step"] == 0]
    vectors = eigenvalues().query("step == 0 and scope.str.startswith('encoder/layers_0/')")
    run = RunTable("run", one, vectors)
    assert list(pictures("spectrum", run)) == ["spectrum"]
    assert list(pictures("smoothing", run)) == ["smoothing"]
    [dots] = panels("spectrum", run)["encoder layer 0"].of(Dots)
    assert len(dots.x) == 8
