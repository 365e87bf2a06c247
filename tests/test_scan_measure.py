"""The scan measure against brute force in float64 numpy, planted heads, and its driver."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import (
    FORMS,
    KEY_KINDS,
    case,
    checkpoint_and_tokens,
    jitted,
    observe_table,
    table,
    valid_rows,
)
from made_trajectory import write_trajectory
from t5_reference import reference_t5

import saturation
from saturation.errors import MeasureError, ResultsError
from saturation.measures.scan.cooccurrence import COMMON, DISTINCT, KINDS, UNCLASSIFIED, key_kinds
from saturation.measures.scan.measure import (
    CELLS,
    DISTANCES,
    SCAN,
    STATISTICS,
    by_distance,
    distance_cells,
)
from saturation.models.base import config_of_parameters
from saturation.runs.activations import observe_checkpoint
from saturation.runs.settings import ActivationSettings, read_settings
from saturation.runs.stage_pass import StagePass
from saturation.text.sequences import TokenBatch

HEAD = "encoder/layers_0/attention/head_0"


def by_brute_force(config, flat, encoder, decoder, key_kinds=KEY_KINDS):
    """{head: {metric: value}} from the reference's weights, one query at a time."""
    _, taps = reference_t5(config, flat, encoder, decoder)
    encoder_valid, decoder_valid = valid_rows(encoder, decoder)
    found = {}
    for path in config.attention_names():
        causal = path.endswith("/self_attention")
        queries = encoder_valid if path.startswith("encoder") else decoder_valid
        for head in range(config.num_heads):
            rows = []
            for b, q in zip(*np.nonzero(queries), strict=True):
                allowed = np.arange(q + 1) if causal else np.nonzero(encoder_valid[b])[0]
                kinds = key_kinds[(decoder if causal else encoder)[b]]
                weights = taps[f"{path}/weights"][b, head, q]
                positive = weights[weights > 0]
                rows.append({
                    "attention_entropy": -(positive * np.log(positive)).sum(),
                    "uniform_entropy": np.log(len(allowed)),
                    **{f"mass_{kind}": weights[kinds == i].sum() for i, kind in enumerate(KINDS)},
                    "uniform_common": np.mean(kinds[allowed] == COMMON),
                    "uniform_distinct": np.mean(kinds[allowed] == DISTINCT),
                })  # fmt: skip
            means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
            means["distinct_excess"] = means["mass_distinct"] - means["uniform_distinct"]
            found[f"{path}/head_{head}"] = means | {"tokens": len(rows)}
    return found


@pytest.mark.parametrize("form", FORMS)
def test_heads_agree_with_brute_force(form):
    config, flat, params, tokens = case(form, dtype=np.float64)
    with jax.enable_x64(True):
        found = observe_table(SCAN, config, params, tokens)
    expected = by_brute_force(config, flat, *tokens)
    assert set(found) == set(expected)
    snap = {"speed", "snapped", "snap_ratio", "snap_p_value", "snap_step"}
    across_steps = {"distance_to_last", "distinct_excess_stderr", *snap}
    for head, metrics in expected.items():
        assert set(found[head]) == set(metrics) | across_steps
        for name, value in metrics.items():
            np.testing.assert_allclose(
                found[head][name], value, 1e-9, 1e-9, err_msg=f"{head} {name}"
            )
        assert sum(found[head][f"mass_{kind}"] for kind in KINDS) == pytest.approx(1)
    assert np.ptp([metrics["mass_distinct"] for metrics in found.values()]) > 0.01


def test_the_profile_is_the_attention_by_kind_and_distance():
    config, flat, params, tokens = case(dtype=np.float64)
    with jax.enable_x64(True):
        observed = jax.device_get(jitted(SCAN, config)(params, *tokens))
    _, taps = reference_t5(config, flat, *tokens)
    _, decoder = tokens
    expected = np.zeros((len(KINDS), DISTANCES))
    for b, q in zip(*np.nonzero(valid_rows(*tokens)[1]), strict=True):
        for k in range(q + 1):
            weight = taps["decoder/layers_0/self_attention/weights"][b, 1, q, k]
            distance = q - k  # behind
            cell = 8 - (0 if distance == 0 else 1 + int(np.ceil(np.log2(distance))))
            expected[KEY_KINDS[decoder[b, k]], cell] += weight
    found = observed["decoder/layers_0/self_attention/head_*"]
    np.testing.assert_allclose([found[cell][1] for cell in CELLS], expected.ravel(), atol=1e-9)
    assert (expected > 0).sum() > 6


def test_distances_share_cells_by_powers_of_two():
    cells = distance_cells(np.arange(200))
    bounds = [0, 1, 2, 3, 5, 9, 17, 33, 65]
    assert [int(np.flatnonzero(cells == 8 + i)[0]) for i in range(9)] == bounds
    assert cells[-1] == DISTANCES - 1
    np.testing.assert_array_equal(distance_cells(-np.arange(200)), 16 - cells)


@pytest.mark.parametrize(("queries", "keys"), [(5, 9), (9, 5), (1, 1), (80, 70)])
def test_sums_by_distance(queries, keys):
    weights = np.random.default_rng(0).random((2, queries, keys)).astype(np.float32)
    cells = distance_cells(np.arange(keys) - np.arange(queries)[:, None])
    expected = [[head[cells == cell].sum() for cell in range(DISTANCES)] for head in weights]
    np.testing.assert_allclose(by_distance(jnp.asarray(weights)), expected, rtol=1e-5)


# --- through training ---------------------------------------------------------------------------


def statistics(profiles, entropies):
    """Statistics of one head and one query at each step, from {cell: weight} and entropies."""
    found = {name: np.zeros(len(entropies)) for name in STATISTICS}
    found |= {"tokens": np.ones(len(entropies)), "entropy": np.array(entropies)}
    found["uniform_entropy"] = np.full(len(entropies), 2.0)
    for step, profile in enumerate(profiles):
        for cell, weight in profile.items():
            found[cell][step] = weight
    return found


def test_a_head_snaps_where_its_profile_comes_to_rest():
    """It moves from the common key before to the distinct one by e^{-t/100}."""
    steps = np.geomspace(10, 8000, 24)
    on_distinct = 1 - np.exp(-steps / 100)
    profiles = [{"common_at_7": 1 - share, "distinct_at_7": share} for share in on_distinct]
    found = SCAN.metrics(statistics(profiles, [1.0] * 24) | {"step": steps})
    np.testing.assert_allclose(found["distance_to_last"], on_distinct[-1] - on_distinct, atol=1e-12)
    np.testing.assert_array_equal(found["mass_distinct"], on_distinct)
    moved = np.sqrt(2) * np.diff(on_distinct) / np.diff(np.log(steps))
    np.testing.assert_allclose(found["speed"][1:], moved)
    step = found["snap_step"][0]
    assert 70 < step < 140
    np.testing.assert_array_equal(found["snap_step"], step)
    np.testing.assert_array_equal(found["snapped"], steps >= step)
    assert (found["snap_ratio"] > 3).all()
    assert (found["snap_p_value"] <= 0.05).all()


def test_a_head_that_never_moves_or_drifts_has_not_snapped():
    steps = np.geomspace(10, 8000, 24)
    still = [{"common_at_7": 1.0}] * 24
    drifting = [{"common_at_7": 1 - x, "distinct_at_7": x} for x in np.log(steps) / 10]
    for profiles in (still, drifting):
        found = SCAN.metrics(statistics(profiles, [1.0] * 24) | {"step": steps})
        np.testing.assert_array_equal(found["snapped"], 0)
        assert np.isnan(found["snap_step"]).all()


def test_below_fifteen_intervals_nothing_is_said():
    found = SCAN.metrics(
        statistics([{"common_at_7": 1.0}] * 5, [1.0] * 5) | {"step": np.arange(5.0)}
    )
    assert np.isnan(found["snapped"]).all()


# --- the driver ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("eight_devices")
def test_the_driver_adds_batches_and_takes_what_is_distinct_from_the_corpus():
    checkpoint, tokens = checkpoint_and_tokens()
    corpus = TokenBatch(*(np.array([[1, 2], [1, 2], [3, 4], [3, 4]], np.int32),) * 2, "corpus")
    settings = ActivationSettings(tokens, batch_size=2, mesh={"model": 8}, corpus=corpus)
    kinds = settings.key_kinds(12)
    assert kinds[:5].tolist() == [UNCLASSIFIED, DISTINCT, UNCLASSIFIED, DISTINCT, UNCLASSIFIED]
    found = table(SCAN, observe_checkpoint(checkpoint, (SCAN,), settings)["scan"])
    both = tokens.encoder_input_tokens, tokens.decoder_input_tokens
    for head, metrics in by_brute_force(FORMS["v1_0"], checkpoint.flat, *both, kinds).items():
        for name, value in metrics.items():
            assert found[head][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (head, name)
    by_itself = ActivationSettings(tokens).key_kinds(12)
    np.testing.assert_array_equal(by_itself, key_kinds(tokens.texts(), 12))


def test_by_default_all_of_the_built_in_text_is_the_corpus():
    settings = read_settings(["norms", "scan"])
    assert settings is not None
    assert (
        settings.describe_corpus()["sequences"] > 10 * settings.fingerprint()["tokens"]["sequences"]
    )
    distinct = settings.key_kinds(259) == DISTINCT
    assert distinct[[ord(c) + 3 for c in "=-{"]].all()
    assert not distinct[[ord(c) + 3 for c in "aeiou "]].any()
    of_heads = read_settings(["heads"])
    assert of_heads is not None
    assert of_heads.corpus is None
    assert read_settings(["norms"]) is None


def test_without_a_corpus_or_with_one_of_another_vocabulary_it_says_so():
    checkpoint, tokens = checkpoint_and_tokens()
    config, _, params, made = case()
    with pytest.raises(MeasureError, match="was given no key_kinds"):
        observe_table(SCAN, config, params, made, key_kinds=None)
    corpus = TokenBatch(*(np.array([[1, 40]], np.int32),) * 2, "corpus.txt")
    with pytest.raises(MeasureError, match=r"corpus.txt has token 40, and the model in made has"):
        ActivationSettings(tokens, corpus=corpus).refuse_model(
            config_of_parameters(checkpoint.parameters), "made"
        )


def test_a_run_is_resumed_joined_by_other_measures_and_refused_with_another_corpus(
    tmp_path, monkeypatch
):
    steps = iter((0, 10, 0, 10))

    def observe_made(one_pass, parameters, *_):
        step = next(steps)
        list(parameters)
        profile = {"common_at_7": 1 - step / 10, "distinct_at_7": step / 10}
        made = {name: values[0] for name, values in statistics([profile], [1.0]).items()}
        return {
            m.name: {HEAD: {n: np.asarray(made.get(n, 1.0)) for n in m.statistics}}
            for m in one_pass.measures
        }

    monkeypatch.setattr(StagePass, "observe", observe_made)
    trajectory = saturation.open_trajectory(write_trajectory(tmp_path / "t", (0, 10), vocab=12))
    _, tokens = checkpoint_and_tokens()
    other = TokenBatch(*(np.array([[1, 2], [1, 2]], np.int32),) * 2, "other")
    run = str(tmp_path / "run")

    def measured(names, corpus=None, steps=trajectory):
        settings = ActivationSettings(tokens, batch_size=3, corpus=corpus)
        return saturation.measure(steps, names, run, activations=settings)

    first = saturation.open_trajectory(trajectory.path, "0:0")
    assert measured(["scan"], steps=first).computed == 1
    again = measured(["scan"])
    assert (again.computed, again.reused) == (1, 1)
    assert measured(["heads"], other).computed == 2, "heads needs no corpus"
    with pytest.raises(ResultsError, match="on other common and distinct tokens"):
        measured(["scan"], other)
    values = saturation.load_results(run).query("measure == 'scan' and scope == @HEAD")
    values = values.pivot_table("value", "metric", "step")
    assert values.loc["mass_distinct"].tolist() == [0, 1]
    assert values.loc["distance_to_last"].tolist() == [1, 0]
    assert "snapped" not in values.index, "two checkpoints are too few"
