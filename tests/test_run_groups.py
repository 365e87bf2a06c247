"""Measures of groups of arrays: the contract, and the driver that takes them through the steps."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from activation_cases import FORMS
from made_trajectory import HEAD_DIM, HEADS, canonical, write_trajectory

import saturation
from saturation.errors import MeasureError, Stopped
from saturation.measures import MEASURES
from saturation.measures.base import GroupMeasure
from saturation.results.state import open_run
from saturation.results.table import load_results, load_vectors
from saturation.runs import plan
from saturation.runs.plan import Shard, planned_work

GROUPS = [m for m in MEASURES.values() if isinstance(m, GroupMeasure)]
measures = pytest.mark.parametrize("measure", GROUPS, ids=lambda measure: measure.name)
SHAPES = FORMS["v1_0"].parameter_shapes()


def group_arrays(measure, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    for group, roles in measure.groups(SHAPES).items():
        yield (
            group,
            {r: generator.standard_normal(SHAPES[n]).astype(dtype) for r, n in roles.items()},
        )


@measures
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_every_scope_has_every_statistic_and_nothing_is_changed(measure, dtype):
    scopes = []
    for group, arrays in group_arrays(measure, dtype):
        kept = {role: array.copy() for role, array in arrays.items()}
        found = measure.observe(group, arrays, SHAPES)
        scopes += list(found)
        for statistics in found.values():
            assert set(statistics) == {*measure.statistics, *measure.vectors}
            assert all(np.ndim(statistics[name]) == 0 for name in measure.statistics)
            for name in measure.vectors:
                assert statistics[name].dtype == np.float64
                assert statistics[name].ndim == 1
        for role, array in kept.items():
            np.testing.assert_array_equal(arrays[role], array)
    assert len(scopes) == len(set(scopes)) > 0


@measures
def test_metrics_do_not_change_their_inputs_and_cover_every_step(measure):
    for group, arrays in group_arrays(measure):
        for scope, found in measure.observe(group, arrays, SHAPES).items():
            columns = {n: np.array([found[n], np.nan, found[n]]) for n in measure.statistics}
            kept = {name: values.copy() for name, values in columns.items()}
            metrics = measure.metrics(columns)
            assert metrics, scope
            for values in metrics.values():
                assert values.shape == (3,)
                assert np.isnan(values[1])
            for name, values in kept.items():
                np.testing.assert_array_equal(columns[name], values)


STEPS = (0, 10, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_trajectory(tmp_path_factory.mktemp("trajectory") / "t", STEPS)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("run"))
    saturation.measure(saturation.open_trajectory(folder), ["spectrum"], out)
    return out


def value(table, step, metric, scope):
    [found] = table.query("step == @step and metric == @metric and scope == @scope").value
    return found


def test_the_table_holds_every_head_of_every_attention_at_every_step(folder, run):
    table = load_results(run)
    assert set(table.step) == set(STEPS)
    assert table.previous_step.isna().all()
    for step in STEPS:
        arrays = canonical(folder, step)
        for path, norm in {
            "encoder/layers_0/attention": "encoder/layers_0/pre_attention_layer_norm",
            "decoder/layers_0/self_attention": "decoder/layers_0/pre_self_attention_layer_norm",
            "decoder/layers_0/encoder_decoder_attention": "encoder/encoder_norm",
        }.items():
            scale = arrays[f"{norm}/scale"]
            assert value(table, step, "negative_scales", path) == (scale < 0).sum()
            for head in range(HEADS):
                scope, part = f"{path}/head_{head}", slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
                unscaled = (
                    arrays[f"{path}/value/kernel"][:, part] @ arrays[f"{path}/out/kernel"][part]
                )
                for matrix, suffix in ((scale[:, None] * unscaled, ""), (unscaled, "_unscaled")):
                    values = np.linalg.eigvals(matrix)
                    radius = value(table, step, f"spectral_radius{suffix}", scope)
                    np.testing.assert_allclose(radius, np.abs(values).max(), 1e-9)
                    skew = np.linalg.norm(matrix - matrix.T) / (2 * np.linalg.norm(matrix))
                    found = value(table, step, f"asymmetry{suffix}", scope)
                    np.testing.assert_allclose(found, skew, 1e-7)
                    kept = values[np.argsort(np.abs(values))[-HEAD_DIM:]]
                    negative = value(table, step, f"fraction_negative{suffix}", scope)
                    assert negative == np.mean(kept.real < 0)


def test_the_eigenvalues_themselves_are_kept(folder, run):
    found = load_vectors(run, "spectrum")
    assert len(found) == len(STEPS) * 3 * HEADS
    assert list(found.columns[:2]) == ["step", "scope"]
    row = found.query("step == 10 and scope == 'encoder/layers_0/attention/head_2'").iloc[0]
    arrays, part = canonical(folder, 10), slice(2 * HEAD_DIM, 3 * HEAD_DIM)
    path = "encoder/layers_0/attention"
    matrix = arrays[f"{path}/value/kernel"][:, part] @ arrays[f"{path}/out/kernel"][part]
    expected = np.linalg.eigvals(matrix)
    expected = expected[np.argsort(np.abs(expected))[-HEAD_DIM:]]
    kept = row.real_unscaled + 1j * row.imaginary_unscaled
    for one in kept:
        assert np.abs(one - expected).min() < 1e-9


def test_a_run_without_the_measure_has_no_vectors(folder, tmp_path):
    out = str(tmp_path)
    saturation.measure(saturation.open_trajectory(folder), ["norms"], out)
    assert load_vectors(out, "spectrum").empty
    assert load_vectors(out, "norms").empty


def test_shards_and_later_steps_add_up_to_the_same_table(folder, run, tmp_path):
    out = str(tmp_path)
    first = saturation.open_trajectory(folder, "0:10:1")
    outcomes = [saturation.measure(first, ["spectrum"], out, Shard(i, 2)) for i in range(2)]
    assert [outcome.computed for outcome in outcomes] == [2, 1]
    whole = saturation.open_trajectory(folder)
    half = saturation.measure(whole, ["spectrum"], out, Shard(0, 2))
    assert (half.computed, half.reused) == (2, 2)
    found = open_run(out).status()
    assert not found.complete
    assert found.missing["spectrum"] == ["decoder/layers_0/self_attention"]
    assert (found.present["spectrum"], found.expected["spectrum"]) == (8, 9)
    assert saturation.measure(whole, ["spectrum"], out).computed == 1
    pd.testing.assert_frame_equal(load_results(out), load_results(run))


def test_a_long_run_is_kept_in_several_parts(folder, run, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "MINIMUM_PART_STEPS", 2)
    out = str(tmp_path)
    assert saturation.measure(saturation.open_trajectory(folder), ["spectrum"], out).computed == 6
    pd.testing.assert_frame_equal(load_results(out), load_results(run))
    pd.testing.assert_frame_equal(
        load_vectors(out, "spectrum"), load_vectors(run, "spectrum"), check_exact=True
    )


def test_what_would_be_done_is_said_before(folder, run, tmp_path):
    trajectory = saturation.open_trajectory(folder)
    work = planned_work(trajectory, ["spectrum"], str(tmp_path), Shard())
    parameters = trajectory[0].parameters
    kernels = [
        p.nbytes for n, p in parameters.items() if n.endswith(("value/kernel", "out/kernel"))
    ]
    scale = parameters["encoder/encoder_norm/scale"].nbytes
    assert work["bytes"] == 3 * (sum(kernels) + 3 * scale)
    assert (work["arrays"], work["parts"], work["reused"]) == (9, 3, 0)
    assert planned_work(trajectory, ["spectrum"], run, Shard())["reused"] == 3


def test_a_stopped_run_says_so_and_a_foreign_model_is_refused_before_a_folder_is_begun(
    folder, tmp_path
):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="run the same command again"):
        saturation.measure(
            saturation.open_trajectory(folder), ["spectrum"], str(tmp_path / "r"), stop=stop
        )

    def rename(step, arrays):
        return {f"gpt.{name.replace('Self', 'My')}": a for name, a in arrays.items()}

    foreign = write_trajectory(tmp_path / "foreign", (0,), rename)
    (foreign / "step_0" / "config.json").write_text('{"model_type": "gpt_neox"}')
    with pytest.raises(MeasureError, match="`spectrum` is taken of T5's attentions"):
        saturation.measure(
            saturation.open_trajectory(foreign), ["spectrum"], str(tmp_path / "none")
        )
    assert not (tmp_path / "none").exists()
