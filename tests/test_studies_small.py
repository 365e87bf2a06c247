"""Each study of a neighbouring paper at its smallest: a prediction, and what must miss it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad

from saturation.studies import agentic_transformer as agentic
from saturation.studies import benign_overfitting as benign
from saturation.studies import in_context_gd as in_context
from saturation.studies import looped_transformers as looped
from saturation.studies import low_rank_sparse as sparse
from saturation.studies import regression_mixtures as mixtures


def one(simulate: Callable[..., Any], setting: Any, seed: int = 0) -> dict[str, Any]:
    (part,) = simulate(setting, [seed])
    return part


# --- benign overfitting -------------------------------------------------------------------------


def test_overfitting_is_benign_where_the_signal_is_strong_and_harmful_where_it_is_weak() -> None:
    part = one(benign.simulate, benign.Cells(100, 16))
    assert part["train_loss"].max() <= benign.STOPPED
    assert part["test_loss"][-1] < benign.LOSS < 0.5 < part["test_loss"][0]
    crossing = benign.crossing(part["test_loss"], benign.LOSS)
    assert crossing == pytest.approx(0.4, rel=0.2)  # of all widths at N = 16
    unrelated = one(benign.simulate, benign.Cells(100, 16, labels="random"))
    assert unrelated["train_loss"].max() <= benign.STOPPED
    assert unrelated["test_loss"].min() > benign.LOSS


def test_its_step_is_one_of_gradient_descent() -> None:
    generator = np.random.default_rng(0)
    cells = benign.Cells(6, 4)
    patches, labels = benign.draw_data(cells, 4, 0.8, generator)
    start = benign.Model(*generator.standard_normal((2, 6, 16)), generator.standard_normal(6))
    sizes = np.cumsum([start.query.size, start.key.size])

    def unpack(packed: np.ndarray) -> benign.Model:
        query, key, value = np.split(packed.copy(), sizes)
        return benign.Model(query.reshape(6, 16), key.reshape(6, 16), value)

    def loss(packed: np.ndarray) -> float:
        return 4 * unpack(packed).judge(patches, labels)[0]  # their sum

    def gradient(packed: np.ndarray) -> np.ndarray:
        model = unpack(packed)
        model.descend(patches, labels, 1.0, True)
        return packed - np.concatenate([model.query.ravel(), model.key.ravel(), model.value])

    packed = 0.3 * np.concatenate([start.query.ravel(), start.key.ravel(), start.value])
    assert np.abs(gradient(packed)).max() > 0.01
    assert check_grad(loss, gradient, packed) < 1e-5


# --- low rank and sparse ------------------------------------------------------------------------


def test_two_patterns_change_weights_by_rank_two_and_small_neurons_can_go() -> None:
    part = one(sparse.simulate, sparse.PLAIN)
    assert part["value_rank"] == part["output_rank"] == 2
    assert part["value_span"] > 0.9
    assert part["smallest_gap"] < 0.005 < part["largest_gap"]


def test_labels_that_no_pattern_explains_make_no_neuron_grow(monkeypatch) -> None:
    monkeypatch.setattr(sparse, "STEPS", 60)
    part = one(sparse.simulate, sparse.RANDOM)
    assert part["norms"].max() < 0.5
    assert part["value_span"] < 0.9


def test_tokens_of_a_sample_are_what_its_label_says() -> None:
    patterns = np.eye(sparse.WIDTH)[: sparse.PATTERNS]
    setting = sparse.Setting(relevant=4)
    tokens, labels = sparse.draw_samples(setting, patterns, 200, np.random.default_rng(0))
    counts = np.stack([(tokens.argmax(axis=-1) == pattern).sum(axis=1) for pattern in range(4)])
    of_label = np.where(labels > 0, counts[::2].sum(axis=0), counts[1::2].sum(axis=0))
    assert set(of_label) == {sparse.RELEVANT}
    assert set(counts.sum(axis=0) - of_label) == {sparse.CONFUSING}


# --- looped transformers ------------------------------------------------------------------------


def test_the_symmetric_minimum_is_one_number_and_needs_the_covariance(monkeypatch) -> None:
    monkeypatch.setattr(looped, "JUDGED", 5000)
    part = one(looped.simulate, looped.Minimum(100, 1, True))
    assert part["error"] < 0.01
    assert part["ratio"] == pytest.approx(1, abs=0.005)
    assert part["shift"] < 1e-4
    assert part["plain_ratio"] > 1.5


def test_loops_are_steps_of_gradient_descent() -> None:
    for setting in looped.RECURSIONS:
        part = one(looped.simulate, setting)
        assert part["difference"] < 1e-10 < part["one_loop_less"]


@pytest.mark.parametrize("loops", [1, 2, 3])
def test_the_slope_of_the_loss_is_its_derivative(loops: int) -> None:
    generator = np.random.default_rng(loops)
    matrices = looped.draw_matrices(20, 30, generator)
    unpack = lambda packed: (packed[:25].reshape(5, 5), packed[25:])
    value = lambda packed: looped.loss_and_slope(matrices, *unpack(packed), loops)[0]

    def slope(packed: np.ndarray) -> np.ndarray:
        _, *parts = looped.loss_and_slope(matrices, *unpack(packed), loops)
        return np.concatenate([part.ravel() for part in parts])

    packed = 0.3 * generator.standard_normal(30)
    assert check_grad(value, slope, packed) < 1e-4 * np.linalg.norm(slope(packed))


# --- in-context gradient descent ----------------------------------------------------------------


def test_one_layer_learns_one_step(monkeypatch) -> None:
    monkeypatch.setattr(in_context, "MOMENTS", 20_000)
    monkeypatch.setattr(in_context, "JUDGED", 2048)
    part = one(in_context.simulate, in_context.PLAIN)
    assert part["ratio"] == pytest.approx(1, abs=0.01)
    assert part["cosine"] > 0.999 > part["ridge_cosine"]
    assert part["half_ratio"] > 1.2 < part["more_ratio"]


def test_the_best_rate_is_the_best_on_tasks() -> None:
    tasks = in_context.draw_tasks(20_000, np.random.default_rng(0))
    rate, loss = in_context.best_rate()
    losses = [
        in_context.loss_of(tasks, in_context.gradient_step(tasks, times * rate))
        for times in (0.9, 1.0, 1.1)
    ]
    assert losses[1] == min(losses)
    assert losses[1] == pytest.approx(loss, rel=0.03)


def test_two_layers_of_the_construction_are_two_steps_of_gradient_descent() -> None:
    tasks = in_context.draw_tasks(50, np.random.default_rng(0))
    rate = 0.3
    keys = np.diag([1.0] * in_context.WIDTH + [0.0])
    values = np.zeros((in_context.SIZE, in_context.SIZE))
    values[-1, -1] = -rate
    layer = in_context.Layer(keys, keys, values, np.eye(in_context.SIZE))
    found = in_context.apply_twice(layer, in_context.as_tokens(tasks), in_context.EXAMPLES)
    expected = in_context.descend_twice(tasks, rate, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    weights = np.zeros_like(tasks.w)
    for _ in range(2):
        errors = tasks.y - np.einsum("tnd,td->tn", tasks.x, weights)
        weights += rate * np.einsum("tn,tnd->td", errors, tasks.x)
    np.testing.assert_allclose(expected, (weights * tasks.query).sum(axis=1), rtol=1e-9, atol=1e-12)


# --- regression mixtures ------------------------------------------------------------------------


def test_the_posterior_mean_is_bayes_rule_and_ridge_is_least_squares_with_a_penalty() -> None:
    generator = np.random.default_rng(0)
    components = mixtures.draw_components(generator)
    prompts = mixtures.draw_prompts(components, 2, generator)
    means, likeliest = mixtures.bayes(prompts, components)
    penalised = mixtures.ridge(prompts, mixtures.NOISE**2)
    for prompt, at in ((0, 0), (1, 1), (0, 5), (1, 9)):
        x, y = prompts.x[prompt, :at], prompts.y[prompt, :at]
        likelihood = np.array([np.exp(-((y - x @ w) ** 2).sum() / 0.5) for w in components])
        posterior = likelihood / likelihood.sum()
        now = prompts.x[prompt, at]
        assert means[prompt, at] == pytest.approx(posterior @ (components @ now))
        assert likeliest[prompt, at] == pytest.approx(components[likelihood.argmax()] @ now)
        weights = np.linalg.solve(x.T @ x + 0.25 * np.eye(3), x.T @ y)
        assert penalised[prompt, at] == pytest.approx(weights @ now)


def test_a_decoder_comes_near_the_posterior_mean_and_an_untrained_one_does_not(monkeypatch) -> None:
    monkeypatch.setattr(mixtures, "STEPS", 300)
    monkeypatch.setattr(mixtures, "JUDGED", 512)
    part = one(mixtures.simulate, mixtures.MIXTURE)
    errors = {name: part[f"error_{name}"].mean() for name in ("model", "bayes", "untrained")}
    assert errors["bayes"] < errors["model"] < 0.5 * errors["untrained"]
    assert part["distance_bayes"] < part["distance_untrained"]


# --- agentic transformer ------------------------------------------------------------------------


def seek(tokens: np.ndarray) -> np.ndarray:
    """Move toward the cell where the context holds a reward; stay near chance without one."""
    count, length, _ = tokens.shape
    cells, rewards = tokens[..., : agentic.CELLS].argmax(-1), tokens[..., agentic.CELLS + 6]
    logits = np.zeros((count, length, 5))
    for episode, at in np.ndindex(count, length):
        hits = np.flatnonzero(rewards[episode, : at + 1]) if at else []
        if len(hits):
            goal, place = (np.array(divmod(c, 5)) for c in cells[episode, [hits[0], at]])
            apart = np.abs(goal - (place + agentic.MOVES)).sum(axis=1)
            logits[episode, at, apart.argmin()] = 50
    return logits


def test_what_earlier_trials_tell_is_what_later_ones_gain() -> None:
    """By a policy that reads rewards from its context: no training is needed to try the trials."""
    goals = np.repeat(agentic.GOALS, 6, axis=0)
    returns = agentic.play(agentic.AGENTIC, seek, goals, np.random.default_rng(0)).mean(axis=0)
    assert returns[2] > 1.7 * returns[0]
    alone = agentic.play(agentic.SINGLE, seek, goals, np.random.default_rng(0)).mean(axis=0)
    assert alone[2] < 1.7 * alone[0]
    shuffled = np.random.default_rng(1).permutation(goals)
    strangers = agentic.play(agentic.AGENTIC, seek, shuffled, np.random.default_rng(0), True)
    assert strangers[:, 2].mean() < 0.5 * returns[2]


def test_chains_ascend_and_their_last_trajectory_is_imitated() -> None:
    generator = np.random.default_rng(0)
    data = [agentic.walk(goal, agentic.OF_TASK, generator) for goal in agentic.GOALS]
    assert np.mean([one.returns.mean() for one in data]) == pytest.approx(1.09, abs=0.15)
    assert max(one.returns.max() for one in data) <= 7
    tokens, _, counted = next(agentic.chains(agentic.AGENTIC, data, generator))
    to_go = tokens[..., agentic.CELLS + 7] * agentic.STEPS
    trials = to_go.reshape(len(to_go), 3, 9)[:, :, 0]
    lasts = counted.reshape(len(counted), 3, 9)
    assert set(lasts.sum(axis=(1, 2))) == {9}
    np.testing.assert_allclose(trials[:, 0], trials[:, 1])  # one target for the whole chain
    assert agentic.Agent(conditioned=False) != agentic.AGENTIC


def test_an_agent_is_trained_and_tried(monkeypatch) -> None:
    monkeypatch.setattr(agentic, "TRAINING_STEPS", 20)
    monkeypatch.setattr(agentic, "EPISODES", 16)
    part = one(agentic.simulate, replace(agentic.SINGLE, one_goal=True))
    assert part["returns"].shape == (3,)
    assert 0 <= part["returns"].min() <= part["best"] <= 7
