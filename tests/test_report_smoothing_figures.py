"""Figures of spectra and of token similarity: that what is drawn are the tables' own values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_tables import rows

from saturation.report.figures import build_figures, missing_figures
from saturation.report.series import RunTable
from saturation.report.smoothing_figures import shown_steps
from saturation.report.smoothing_text import depth, holds_from, smoothing_table
from saturation.report.spectrum_figures import effective, scaled_by, shown_layers, window
from saturation.report.summary import summarize

STEPS = (0, 10, 20, 40, 80)
STATES = ("layers_10", "final", "embedding", "layers_0", "layers_1", "layers_2")
ORDER = ["embedding", "layers_0", "layers_1", "layers_2", "layers_10", "final"]
PANEL = ("token_cosine", "token_cosine_abs", "token_cosine_centred", "effective_rank", "hfc_lfc")
FORECAST = {
    "forecast_change": "forecast",
    "measured_change": "self-attention did",
    "onward_change": "layers left did",
}


def values(metric, stack, state):
    """Of every step, all different."""
    seed = sum(map(ord, metric + stack + state))
    return np.random.default_rng(seed).uniform(0.1, 1, len(STEPS))


def table() -> pd.DataFrame:
    parts = []
    for stack in ("encoder", "decoder"):
        for state in STATES:
            scope = f"{stack}/{state}"
            for metric in PANEL:
                parts.append(rows(STEPS, "smoothing", metric, scope, values(metric, stack, state)))
                error = np.full(len(STEPS), 0.01)
                parts.append(rows(STEPS, "smoothing", f"{metric}_stderr", scope, error))
            rms = values("token_rms", stack, state)
            parts.append(rows(STEPS, "smoothing", "token_rms", scope, rms))
            if state.startswith("layers"):
                for metric in FORECAST:
                    found = values(metric, stack, state)
                    parts.append(rows(STEPS, "smoothing", metric, scope, found))
        for state, share in (("layers_0", 0.9), ("layers_1", 0.2), ("layers_10", 0.8)):
            shares = np.full(len(STEPS), share)
            parts.append(rows(STEPS, "smoothing", "onward_agrees", f"{stack}/{state}", shares))
    for metric in ("fraction_negative", "spectral_radius", "asymmetry", "sharpens_below"):
        for head in ("encoder/layers_0/attention", "decoder/layers_0/encoder_decoder_attention"):
            scope = f"{head}/head_0"
            parts.append(rows(STEPS, "spectrum", metric, scope, values(metric, head, "")))
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
def figures():
    return build_figures({"run": table()}, {}, {"run": eigenvalues()})


def panels(figure, title):
    return [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]


def test_they_are_missed_only_beside_a_run_that_has_them(figures):
    assert set(figures) == {"spectrum", "smoothing"}
    nothing = rows(STEPS, "norms", "l2", "total", np.ones(len(STEPS)))
    assert not {"spectrum", "smoothing"} & set(missing_figures({"run": nothing}))
    reasons = missing_figures({"run": nothing, "other": table()})
    assert reasons["smoothing"].startswith("run has no token similarity by layer (measure smooth")


def test_states_stand_by_depth():
    run = RunTable("run", table())
    found = depth(run, "encoder", "hfc_lfc")
    assert list(found) == ORDER
    for state, at in found.items():
        assert list(at.values()) == pytest.approx(values("hfc_lfc", "encoder", state))
    assert shown_steps(run, "encoder") == [0, 10, 40, 80]


def test_the_curves_by_depth_are_the_tables_values(figures):
    [axes] = panels(figures["smoothing"], "HFC/LFC")[:1]
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    for step in (0, 10, 40, 80):
        expected = [values("hfc_lfc", "encoder", state)[STEPS.index(step)] for state in ORDER]
        np.testing.assert_allclose(lines[f"step {step}"], expected)
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "emb", "0", "1", "2", "10", "norm",
    ]  # fmt: skip


def test_forecast_and_fact_stand_side_by_side(figures):
    [axes] = panels(figures["smoothing"], "Change a layer")
    drawn = {c.get_label(): c.lines[0].get_xydata() for c in axes.containers}
    for metric, label in FORECAST.items():
        places, found = drawn[label].T
        np.testing.assert_array_equal(places, [1, 2, 3, 4])
        expected = [values(metric, "encoder", state)[-1] for state in ORDER[1:-1]]
        np.testing.assert_allclose(found, expected)


def test_from_which_layer_on_the_forecast_holds():
    """Layer 1 does not agree, layer 2 has no clear forecast, layer 10 agrees."""
    run = RunTable("run", table())
    assert holds_from(run, "encoder", 80) == 10
    assert holds_from(run, "encoder", 81) is None
    text = summarize({"run": table()}, {})
    assert "In the encoder the forecast has the right sign from layer 10 on." in text
    assert "How to read smoothing.png and spectrum.png" in text
    line = next(line for line in text.splitlines() if line.startswith("encoder/layers_1 "))
    assert f"{values('token_cosine', 'encoder', 'layers_1')[-1]:.2f}" in line
    assert line.endswith("20%")
    other = table()
    other.loc[other["metric"] == "onward_agrees", "value"] = 0.1
    assert holds_from(RunTable("run", other), "decoder", 80) is None
    assert "does not hold up to the last layer" in "\n".join(smoothing_table(RunTable("r", other)))
    unclear = RunTable("r", other[other["metric"] != "onward_agrees"])
    assert smoothing_table(unclear)[-1] == "In the decoder no layer has a clear forecast."


def test_eigenvalues_are_divided_by_the_root_mean_square_of_the_layers_input():
    run = RunTable("run", table(), eigenvalues())
    found, known = effective(run, "encoder", 1, 40)
    heads = eigenvalues().query("step == 40 and scope.str.startswith('encoder/layers_1/')")
    expected = np.concatenate([*heads.real]) + 1j * np.concatenate([*heads.imaginary])
    assert known
    rms = values("token_rms", "encoder", "layers_0")[STEPS.index(40)]
    np.testing.assert_allclose(found, expected / rms)
    bare, known = effective(RunTable("run", rows(STEPS, "m", "x", "s", STEPS), eigenvalues()),
                            "encoder", 1, 40)  # fmt: skip
    assert not known
    np.testing.assert_allclose(bare, expected)


def test_a_plane_says_what_it_divides_by_and_what_lies_outside():
    assert scaled_by([True, True]) == "λ/rms"
    assert scaled_by([True, False]) == "λ (/rms where measured)"
    assert scaled_by([False]) == "λ (rms not measured)"
    corner = np.concatenate([np.full(99, 2.3 - 2.3j), [5 - 1j]])
    assert window(corner) == (pytest.approx(2.415), 1), "a square shows its corners"
    assert window(np.array([np.nan + 0j])) == (2.4, 0)


def test_steps_at_which_some_were_not_divided_are_said_and_zeros_can_be_drawn():
    partly = table()
    partly = partly[(partly["metric"] != "token_rms") | (partly["step"] == 80)]
    partly.loc[partly["metric"].isin(["spectral_radius", "hfc_lfc"]), "value"] = 0.0
    drawn = build_figures({"run": partly}, {}, {"run": eigenvalues()})
    [axes] = panels(drawn["spectrum"], "encoder layer 0")
    assert axes.get_xlabel() == "Re λ (/rms where measured)"
    assert [axes.get_yscale() for axes in panels(drawn["spectrum"], "max |λ|")] == ["linear"]
    for figure in drawn.values():
        figure.draw_without_rendering()


def test_every_shown_layer_has_its_plane_with_three_regions_and_every_eigenvalue(figures):
    run = RunTable("run", table(), eigenvalues())
    chosen = shown_layers(run)
    assert chosen == [("encoder", n) for n in (0, 2, 3, 5, 6, 8)] + [("decoder", 0)]
    for stack, layer in chosen:
        [axes] = panels(figures["spectrum"], f"{stack} layer {layer}")
        assert len(axes.patches) == 2, "the disk and its left; the right is the background"
        assert len(axes.collections) == 3
        last = np.asarray(axes.collections[-1].get_offsets())
        expected, _ = effective(run, stack, layer, 80)
        np.testing.assert_allclose(last[:, 0] + 1j * last[:, 1], expected)
    [legend] = [t for part in figures["spectrum"].subfigs[0].subfigs for t in part.legends][:1]
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[:3] == ["step 0", "step 20", "step 80"]
    assert len(shown) == 6


def test_trends_are_medians_over_heads(figures):
    [axes] = panels(figures["spectrum"], "max |λ|")
    lines = [line.get_ydata() for line in axes.get_lines()]
    np.testing.assert_allclose(
        lines[0], values("spectral_radius", "encoder/layers_0/attention", "")
    )


def test_of_many_states_some_are_named():
    many = table()
    deep = [
        many[many["scope"] == "encoder/layers_1"].assign(scope=f"encoder/layers_{layer}")
        for layer in range(20, 30)
    ]
    drawn = build_figures({"run": pd.concat([many, *deep], ignore_index=True)}, {})["smoothing"]
    encoder, decoder = (
        [text.get_text() for text in axes.get_legend().get_texts()]
        for axes in (drawn.axes[3], drawn.axes[7])
    )
    assert decoder == ORDER
    assert len(encoder) == 8
    assert (encoder[0], encoder[-1]) == ("embedding", "final")
    assert drawn.axes[1].get_legend() is None, "steps are alike in both rows"


def test_a_run_with_one_checkpoint_and_one_layer_is_enough():
    one = table()
    one = one[one["step"] == 0]
    vectors = eigenvalues().query("step == 0 and scope.str.startswith('encoder/layers_0/')")
    assert set(build_figures({"run": one}, {}, {"run": vectors})) == {"spectrum", "smoothing"}
