"""The second six studies at their smallest: a prediction, and what must miss it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from scipy.optimize import check_grad

from saturation.studies import adversarial_bias as adversarial
from saturation.studies import energy_view as energy
from saturation.studies import frequency_principle as frequency
from saturation.studies import leader_gd as leader
from saturation.studies import learned_initialisation as learned
from saturation.studies.tracin import effects as tracin
from saturation.studies.tracin.small_t5 import SmallT5, train_t5
from saturation.training.leader import follow_centre, follow_leader


def one(simulate: Callable[..., Any], setting: Any, seed: int = 0) -> dict[str, Any]:
    (part,) = simulate(setting, [seed])
    return part


# --- adversarial bias ---------------------------------------------------------------------------


def test_an_attack_tuned_to_the_steps_turns_faster_than_a_fixed_one(monkeypatch) -> None:
    monkeypatch.setattr(adversarial, "TIMES", np.array([100, 1000, 10_000]))
    part = one(adversarial.simulate, adversarial.L2)
    slopes = {name: adversarial.slopes(part[name][None], 100)[0] for name in ("best", "half")}
    assert slopes["best"] < -0.3 < slopes["half"]
    assert part["best_ratio"] == pytest.approx(1, abs=0.2)
    assert part["above"][-1] == pytest.approx(part["above"][-2], rel=1e-3)  # a finite minimum


def test_the_worst_attack_is_the_closed_form() -> None:
    """max over |δ|_q ≤ c of exp(−(z + δ)ᵀθ) is exp(−zᵀθ + c|θ|_p)."""
    generator = np.random.default_rng(0)
    weights, point, size = generator.standard_normal(3), generator.standard_normal(3), 0.3
    for q in ("inf", "1"):
        norm, slope = adversarial.dual_norm(q)
        drawn = generator.uniform(-1, 1, (20_000, 3))
        if q == "1":
            drawn /= np.abs(drawn).sum(axis=1, keepdims=True)
        worst = (-(point + size * drawn) @ weights).max()
        exact = -point @ weights + size * norm(weights)
        assert exact - 0.05 < worst <= exact + 1e-12
        assert slope(weights) @ weights == pytest.approx(norm(weights))


def test_planted_points_have_the_margin_they_are_planted_with() -> None:
    for seed in range(5):
        problem = adversarial.plant(np.random.default_rng(seed))
        margins = problem.points @ problem.direction
        assert margins.min() == pytest.approx(adversarial.MARGIN)
        assert (margins[: adversarial.SUPPORT] < adversarial.MARGIN + 1e-9).all()
        found, _ = adversarial.widest_margin(problem.points, "1", 0.0)
        np.testing.assert_allclose(found, problem.direction, atol=1e-5)


# --- energy -------------------------------------------------------------------------------------


def test_attention_is_a_step_that_lowers_its_energy_and_the_usual_residual_is_not() -> None:
    part = energy.try_attention(1.0, np.random.default_rng(0))
    assert part["deviation"] < 1e-12
    assert {part[f"step_{residual:g}"] for residual in energy.RESIDUALS} == {1.0}
    assert part["falls_residual"] < 0.5
    assert part["cosine_own"] > 0.3 > abs(part["cosine_permuted"])


def test_the_slope_of_both_energies_is_their_derivative() -> None:
    generator = np.random.default_rng(0)
    root, state = generator.standard_normal((2, 4, 4)) / 2
    matrix = np.diag([0.9, 0.5, 0.2, 0.1])
    both = lambda packed: (
        energy.attention_energy(packed.reshape(4, 4), root)
        + energy.feed_energy(packed.reshape(4, 4), matrix, 0.3)
    )
    slope = lambda packed: energy._slope(packed.reshape(4, 4), root, matrix, 0.3)
    assert check_grad(both, slope, state.ravel()) < 1e-5


# --- frequency principle ------------------------------------------------------------------------


def test_low_frequencies_come_first_with_tanh_and_not_with_sines(monkeypatch) -> None:
    monkeypatch.setitem(frequency.BUDGET, "L-BFGS-B", 600)
    first, second, third = one(frequency.simulate, frequency.Setting("L-BFGS-B"))["times"][1]
    assert first < second < third
    sines = [one(frequency.simulate, frequency.SINES[0], seed)["times"] for seed in range(4)]
    assert frequency.strict(np.stack(sines), 0.2).mean() < 0.7


@pytest.mark.parametrize("optimizer", ["CG", "Adam", "GD", "Powell", "PSO"])
def test_every_optimiser_is_followed_within_its_budget(optimizer, monkeypatch) -> None:
    monkeypatch.setitem(frequency.BUDGET, optimizer, 130)
    setting = frequency.Setting(optimizer)
    losses, distances = frequency.minimise(setting, np.random.default_rng(0))
    assert len(losses) == len(distances) <= 130
    assert losses.min() < losses[0]


def test_the_gradient_of_the_network_is_its_derivative() -> None:
    for activation in ("tanh", "sin"):
        weights = frequency.draw_weights(activation, np.random.default_rng(0))
        network = frequency.Recorder(activation, 10**6)
        slope = lambda packed, n=network: n.loss_and_slope(packed)[1]
        assert check_grad(network.loss, slope, weights) < 1e-4


# --- learned initialisation ---------------------------------------------------------------------


def test_learned_starts_are_nearer_and_shuffled_labels_are_not(monkeypatch) -> None:
    for name, value in {
        "TRAINED": 300, "TESTED": 50, "LABEL_STARTS": 2, "REFERENCE_STARTS": 4, "CAP": 150,
        "NETWORK_STEPS": 100, "CANDIDATES": 2,
    }.items():  # fmt: skip
        monkeypatch.setattr(learned, name, value)
    part = one(learned.simulate, learned.POWER)
    assert part["ridge_steps"] < 0.8 * part["random_steps"] < 1.2 * part["shuffled_steps"]
    assert part["ridge_way"] < part["mean_way"] < part["random_way"]


def test_power_is_the_sum_rate() -> None:
    logs = np.random.default_rng(0).standard_normal((1, 36))
    power, gains = np.random.default_rng(1).random(6), np.exp(logs[0]).reshape(6, 6)
    rates = [
        np.log1p(gains[k, k] * power[k] / (0.1 + gains[k] @ power - gains[k, k] * power[k]))
        for k in range(6)
    ]  # fmt: skip
    found = learned.value_of(
        learned.POWER, jnp.asarray(power[None], jnp.float32), jnp.asarray(logs, jnp.float32)
    )
    assert float(found[0]) == pytest.approx(sum(rates), rel=1e-5)


# --- leaders ------------------------------------------------------------------------------------


def test_the_double_well_stops_where_the_closed_forms_say(monkeypatch) -> None:
    monkeypatch.setattr(leader, "PULLS", (0.2, 0.4))
    monkeypatch.setattr(leader, "WELL_STEPS", 3000)
    for setting in (leader.LEADER, leader.CENTRE):
        places = one(leader.simulate, setting)["places"][:, 1]
        expected = [leader.expected_place(setting.method, strength) for strength in (0.2, 0.4)]
        np.testing.assert_allclose(places, expected, atol=1e-6)


def test_workers_that_follow_a_leader_arrive_and_their_mean_is_usable(monkeypatch) -> None:
    monkeypatch.setattr(leader, "FEW_STEPS", 800)
    follow = one(leader.simulate, leader.Run("completion", "leader", 0.4, 16), 3)
    alone = one(leader.simulate, leader.Run("completion", "none"), 3)
    assert follow["mean"] < 0.01 < 0.5 < alone["mean"]


@pytest.mark.parametrize("every", [1, 3])
def test_the_pull_is_toward_the_worker_with_the_least_loss_since_the_last_pull(every: int) -> None:
    params = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.asarray([1.0, 2.0, 4.0])}
    updates = jax.tree.map(jnp.ones_like, params)
    transformation = follow_leader(0.25, every)
    state = transformation.init(params)
    losses = np.array([[1.0, 2.0, 3.0], [9.0, 1.0, 2.0], [1.0, 1.0, 1.5]], np.float32)
    for count, value in enumerate(losses, start=1):
        found, state = transformation.update(updates, state, params, value=jnp.asarray(value))
        best = losses[:count].sum(axis=0).argmin() if every == 3 else value.argmin()
        for name, leaf in params.items():
            pulled = 1 + 0.25 * (leaf[best] - leaf) if count % every == 0 else jnp.ones_like(leaf)
            np.testing.assert_allclose(found[name], pulled)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_workers_over_devices_follow_the_same_leader() -> None:
    generator = np.random.default_rng(0)
    params = {"w": jnp.asarray(generator.standard_normal((8, 3)), jnp.float32)}
    losses = jnp.asarray(generator.random((5, 8)), jnp.float32)
    mesh = jax.make_mesh((4,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(params: Any, losses: Any, axis_name: str | None) -> Any:
        optimizer = optax.chain(optax.sgd(0.1), follow_leader(0.3, 2, axis_name))
        state = optimizer.init(params)
        for value in losses:
            update, state = optimizer.update(params, state, params, value=value)
            params = optax.apply_updates(params, update)
        return params

    rows = PartitionSpec("workers")
    spread = jax.shard_map(
        lambda p, v: run(p, v, "workers"),
        mesh=mesh,
        in_specs=(rows, PartitionSpec(None, "workers")),
        out_specs=rows,
        check_vma=False,
    )
    np.testing.assert_allclose(jax.jit(spread)(params, losses)["w"], run(params, losses, None)["w"])


def test_the_centre_follows_the_workers_mean_and_pulls_each_by_its_share() -> None:
    params = jnp.asarray([0.0, 4.0])
    transformation = follow_centre(0.5)
    state = transformation.init(params)
    assert float(state.centre) == 2.0
    moved = jnp.asarray([0.0, 8.0])
    update, state = transformation.update(jnp.zeros(2), state, moved)
    np.testing.assert_allclose(update, 0.25 * (2.0 - np.array([0.0, 8.0])))
    assert float(state.centre) == 3.0  # halfway from 2 to the mean, 4


# --- tracin -------------------------------------------------------------------------------------


def test_effects_sum_to_the_fall_of_the_loss_and_to_first_order_nearly(monkeypatch) -> None:
    monkeypatch.setattr(tracin, "TIME", 8.0)
    coarse, fine = (tracin.telescope(tracin.Telescope(rate), 0) for rate in (0.1, 0.025))
    order = np.log(coarse["first"] / fine["first"]) / np.log(4)
    assert order == pytest.approx(1, abs=0.25)
    assert fine["trapezoid"] < 0.1 * fine["first"]


def test_shares_predict_preconditioned_steps_and_raw_products_do_not(monkeypatch) -> None:
    monkeypatch.setattr(tracin, "STEPS", 200)
    part = tracin.take_steps(tracin.OneStep("adam without momentum"), 0)
    assert part["shares r2"] > 0.98 > part["raw r2"]
    assert not 0.5 < part["raw slope"] < 2


def test_self_influence_finds_flipped_labels_after_training_alone(monkeypatch) -> None:
    monkeypatch.setattr(tracin, "STEPS", 400)
    part = tracin.find_flipped(0)
    assert part["auc self-influence"] > 0.93 > 0.65 > part["auc initialisation"]
    assert part["auc last layer"] == pytest.approx(part["auc self-influence"], abs=0.02)
    assert part["projection 256"] > part["projection 16"]


def test_the_last_layer_has_its_gradient_in_closed_form() -> None:
    data = tracin.draw_data(np.random.default_rng(0))
    begin, loss, unravel = tracin.network()
    weights = begin(1)
    found = tracin._last_layer(unravel(weights), data)
    for row in (0, 7):
        slope = unravel(jax.grad(loss)(weights, data["x"][row], data["y"][row]))
        last = slope["params"]["layers_2"]
        exact = (last["kernel"] ** 2).sum() + (last["bias"] ** 2).sum()
        assert found[row] == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.slow
def test_a_hundredth_of_a_t5s_update_is_first_order_at_any_rate(monkeypatch) -> None:
    monkeypatch.setattr("saturation.studies.tracin.small_t5.STEPS", 24)
    part = train_t5(SmallT5(0.1), 0)
    assert part["first 0.01"] > 0.99 > part["first 1"]
