"""The one-layer simulations of Scan and Snap, against closed forms and an independent NumPy."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jaxtyping import Float
from typer.testing import CliRunner

from saturation.cli.commands import app
from saturation.errors import ArgumentError, ResultsError
from saturation.plots.panels import HeatMap, Line
from saturation.runtime.sharding import spread_runs
from saturation.studies.output import write_pictures
from saturation.studies.scan_snap import model, predictions, theory
from saturation.studies.scan_snap import tables as figures
from saturation.studies.scan_snap.data import Language, draw, population
from saturation.studies.scan_snap.flow import descent, flow
from saturation.studies.scan_snap.pictures import picture_3
from saturation.studies.scan_snap.study import STUDY, reproduce
from saturation.studies.scan_snap.train import (
    Training,
    context_distribution,
    distinct_entropy,
    train,
)

SMALL = Language(2, next_per_last=2, common=3, distinct=4)


def random_parameters(size: int, seed: int = 0) -> model.Parameters:
    y, z = np.random.default_rng(seed).normal(size=(2, size, size)).astype(np.float32)
    return model.Parameters(jnp.asarray(y), jnp.asarray(z))


# --- the language -------------------------------------------------------------------------------


@pytest.mark.parametrize(("last_tokens", "size"), [(1, 33), (3, 79), (5, 125), (10, 240)])
def test_vocabularies_are_as_large_as_the_papers(last_tokens: int, size: int) -> None:
    language = Language(last_tokens)
    assert language.size == size
    ids = [np.unique(language.tokens), np.unique(language.last), language.next]
    assert np.concatenate(ids).tolist() == list(range(size))


def test_classes_share_common_tokens_and_last_tokens_but_not_their_own() -> None:
    assert SMALL.tokens[:, :3].tolist() == [[0, 1, 2]] * 4
    assert len(np.unique(SMALL.tokens[:, 3:])) == 16
    assert SMALL.last.tolist() == [19, 19, 20, 20]
    np.testing.assert_allclose(SMALL.probabilities, np.array([1, 1, 1, 0.1, 0.4, 0.7, 1]) / 5.2)


def test_drawn_counts_have_the_languages_distribution() -> None:
    drawn = draw(jax.random.key(3), SMALL, batch=4_000, length=50)
    counts = np.asarray(drawn.counts, np.float64)
    assert (counts.sum(axis=1) == 50).all()
    expected = SMALL.probabilities * counts.sum()
    assert np.sum((counts.sum(axis=0) - expected) ** 2 / expected) < 22.5  # 99.9 %, 6 degrees
    of_class = np.bincount(np.asarray(drawn.following) - SMALL.next[0], minlength=4)
    assert np.sum((of_class - 1_000) ** 2 / 1_000) < 16.3  # 99.9 %, 3 degrees
    classes = np.asarray(drawn.following) - SMALL.next[0]
    assert (np.asarray(drawn.tokens) == SMALL.tokens[classes]).all()
    assert (np.asarray(drawn.last) == SMALL.last[classes]).all()


def test_an_empty_language_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one token of each kind"):
        Language(0)


# --- the layer ----------------------------------------------------------------------------------


def written_out(sequence: model.Sequences, row: int) -> np.ndarray:
    """The tokens before the last one, one by one."""
    counts = np.asarray(sequence.counts[row]).astype(int)
    return np.repeat(np.asarray(sequence.tokens[row]), counts)


def test_counts_give_what_attention_over_positions_gives() -> None:
    parameters = random_parameters(SMALL.size)
    drawn = draw(jax.random.key(0), SMALL, batch=5, length=11)
    y, z = (np.asarray(array, np.float64) for array in parameters)
    for row, found in enumerate(np.asarray(model.logits(parameters, drawn))):
        context = written_out(drawn, row)
        weights = np.exp(z[int(drawn.last[row])][context])
        b = np.bincount(context, weights / weights.sum(), minlength=SMALL.size)
        np.testing.assert_allclose(found, y.T @ (b / np.linalg.norm(b)), rtol=2e-5, atol=2e-5)


def test_lemma_1_is_the_gradient() -> None:
    parameters = random_parameters(SMALL.size, seed=1)
    drawn = draw(jax.random.key(1), SMALL, batch=6, length=31)
    descent = jax.jit(jax.grad(model.loss))
    for row in range(6):
        one = jax.tree.map(lambda array, row=row: array[row : row + 1], drawn)
        context = jnp.asarray(written_out(drawn, row))
        expected = model.lemma_1(parameters, context, one.last[0], one.following[0])
        for gradient, direction in zip(descent(parameters, one), expected, strict=True):
            scale = float(jnp.max(jnp.abs(direction)))
            assert scale > 1e-3
            np.testing.assert_allclose(-gradient, direction, atol=1e-5 * scale)


def test_the_ordinary_transformer_is_the_same_layer() -> None:
    layer = model.OneLayer(SMALL.size, embed=8)
    drawn = draw(jax.random.key(2), SMALL, batch=3, length=9)
    rows = [np.append(written_out(drawn, row), drawn.last[row]) for row in range(3)]
    tokens = jnp.asarray(np.stack(rows))
    params = layer.init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda array: array * 2, params)
    found = layer.apply({"params": params}, tokens)
    np.testing.assert_allclose(found, model.logits(model.as_parameters(params), drawn), atol=1e-5)


# --- training -----------------------------------------------------------------------------------


def numpy_training(
    language: Language, training: Training, rates: tuple[float, float], key: jax.Array
) -> np.ndarray:
    """SGD with momentum by Lemma 1, in a loop over sequences, in float64."""
    y, z = np.zeros((2, language.size, language.size))
    y_speed, z_speed = np.zeros_like(y), np.zeros_like(z)
    for step_key in jax.random.split(jax.random.split(key)[1], training.iterations):
        drawn = draw(step_key, language, training.batch, training.length)
        y_sum, z_sum = np.zeros_like(y), np.zeros_like(z)
        for row in range(training.batch):
            context, last = written_out(drawn, row), int(drawn.last[row])
            weights = np.exp(z[last][context])
            b = np.bincount(context, weights / weights.sum(), minlength=language.size)
            f = b / np.linalg.norm(b)
            p = np.exp(y.T @ f)
            error = np.eye(language.size)[int(drawn.following[row])] - p / p.sum()
            pulled = y @ error
            y_sum += np.outer(f, error) / training.batch
            z_sum[last] += b * (pulled - f * (f @ pulled)) / np.linalg.norm(b) / training.batch
        y_speed, z_speed = 0.9 * y_speed + y_sum, 0.9 * z_speed + z_sum
        y, z = y + rates[0] * y_speed, z + rates[1] * z_speed
    c = language.probabilities * np.exp(z[language.last[:, None], language.tokens])
    return c / c.sum(axis=1, keepdims=True)


def test_training_is_gradient_descent_with_momentum() -> None:
    training = Training(iterations=12, batch=5, length=9, random=False)
    rates = [(2.0, 1.0), (1.0, 3.0)]
    found = train(SMALL, rates, seeds=2, training=training, seed=4)
    for run, key in enumerate(jax.random.split(jax.random.key(4), 2)):
        for place, pair in enumerate(rates):
            expected = numpy_training(SMALL, training, pair, key)
            assert np.abs(expected / expected[0] - 1).max() > 0.1  # it has moved
            np.testing.assert_allclose(found[run, place], expected, rtol=2e-4)


@pytest.mark.usefixtures("eight_devices")
def test_neither_neighbours_in_the_sweep_nor_devices_change_a_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = Training(iterations=5, batch=4, length=9)
    assert len(spread_runs(jax.random.split(jax.random.key(0), 12)).sharding.device_set) == 6
    together = train(SMALL, [(1.0, 1.0), (5.0, 1.0)], 2, training)
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    alone = train(SMALL, [(5.0, 1.0)], 2, training)
    np.testing.assert_allclose(together[:, 1:], alone, rtol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_seed_of_its_own_gives_the_same_training_beside_others() -> None:
    training = Training(iterations=5, batch=4, length=9)
    together, alone = (train(SMALL, [(5.0, 1.0)], seeds, training) for seeds in ([3, 8], [8]))
    np.testing.assert_allclose(together[1:], alone, rtol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_every_iteration_starts_with_the_initial_state_and_ends_with_the_final_one() -> None:
    training = Training(iterations=4, batch=4, length=9, random=False, optimizer="adam")
    history = train(SMALL, [(0.1, 0.1)], 1, training, every_iteration=True)
    assert history.shape == (1, 1, 5, 4, 7)
    np.testing.assert_allclose(history[0, 0, 0], [SMALL.probabilities] * 4, rtol=1e-5)
    assert (history[0, 0, -1] != history[0, 0, -2]).any()
    # The scores have no gradient while Y = 0, so the second step is the first that moves them: by
    # the rate times ±m/√v, with one gradient in the running means of two steps.
    moved = np.log(history[0, 0, 2, 0] / history[0, 0, 1, 0])  # but for a normalisation
    step = 0.1 * (0.1 / (1 - 0.9**2)) / np.sqrt(0.001 / (1 - 0.999**2))
    assert np.ptp(moved) == pytest.approx(2 * step, rel=0.01)


def test_random_starts_are_uniform_and_each_seed_has_its_own() -> None:
    """Scores within ±1/√M, seen as ln c − ln P but for a constant of each class."""
    language, training = Language(10), Training(iterations=1, batch=1, length=9)
    start = train(language, [(0.1, 0.1)], 2, training, every_iteration=True)[:, 0, 0]
    scores = np.log(start / language.probabilities)
    spread, bound = scores - scores.mean(axis=-1, keepdims=True), language.size**-0.5
    assert np.ptp(scores, axis=-1).max() < 2 * bound
    expected = bound**2 / 3 * 19 / 20  # the variance of U(±bound), less that of the mean of 20
    assert spread.var() == pytest.approx(expected, rel=0.15)  # 5 standard errors of 800 draws
    assert np.abs(start[0] - start[1]).max() > 1e-3


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'lion' is unknown; there are sgd, adam"):
        Training(optimizer="lion")


def test_entropy_is_of_the_distinct_tokens_alone() -> None:
    c = np.zeros((2, 4, 7))
    c[0, :, :3], c[0, :, 3:] = 0.3, 0.025
    c[1, :, 0], c[1, :, 5] = 0.9, 0.1
    np.testing.assert_allclose(distinct_entropy(SMALL, c), [np.log(4), 0.0], atol=1e-12)


# --- theory -------------------------------------------------------------------------------------


def test_the_frequency_ratio_grows_as_the_winner_does() -> None:
    times = np.linspace(0, 20, 41)
    z = theory.compete(SMALL.probabilities, lambda time: 1 / (1 + time), times)
    c = SMALL.probabilities * np.exp(z)
    growth = np.exp(2 * z[:, 6])
    assert growth[-1] > 1.5
    for other in (3, 4, 5):
        ratio = theory.frequency_ratio(c, 6, other)
        np.testing.assert_allclose(ratio, ratio[0] * growth, rtol=1e-4)
    budget = np.log1p(times)  # the integral of the speed
    share = (SMALL.probabilities[6] / np.linalg.norm(SMALL.probabilities)) ** 2
    lower, upper = theory.growth_bounds(budget, float(share))
    assert (lower <= growth * (1 + 1e-6)).all()
    assert (growth <= upper * (1 + 1e-6)).all()


@pytest.mark.parametrize("rate_y", [0.5, 5.0])
def test_the_logit_gap_solves_lemma_3_from_the_start_to_where_exponentials_overflow(
    rate_y: float,
) -> None:
    setting = theory.Setting(10, 1000, rate_y, 0.5)
    times = np.array([0.0, 1e-9, 1e-3, 1.0, 100.0, 1e4, 1e7, 1e9])
    for time, found in zip(times, setting.logit_gap(times), strict=True):
        learnt = mpmath.mpf(rate_y) * 1000 * mpmath.mpf(time) / 10
        equation = lambda u, s=learnt: mpmath.expm1(u) + 999 * u - s
        exact = mpmath.findroot(equation, found)
        assert abs(equation(exact)) <= 1e-12 * (1 + learnt)
        assert found == pytest.approx(float(exact), rel=1e-12, abs=1e-15)


def test_the_closed_forms_are_those_of_lemma_3() -> None:
    setting = theory.Setting(classes=10, size=1000, rate_y=2.0, rate_z=0.5)
    assert setting.snap_time == pytest.approx(69.0776, abs=1e-3)  # 2 · 10 · ln 1000 / 2
    assert setting.scan_time == setting.snap_time / 2
    assert setting.half_time / setting.snap_time == pytest.approx(0.572, abs=1e-3)
    gap = setting.logit_gap(np.array([setting.half_time]))[0]
    assert np.exp(gap) / (np.exp(gap) + 999) == pytest.approx(0.5, rel=1e-12)
    assert setting.budget(np.zeros(1)) == 0


def test_the_budget_is_the_integral_of_the_speed_and_has_the_theorems_limits() -> None:
    setting = theory.Setting(classes=10, size=1000, rate_y=2.0, rate_z=0.5)
    times = np.linspace(0, 300, 300_001)
    budget = setting.budget(times)
    integrand = 0.5 * setting.gradient_speed(times) * np.exp(-4 * budget)
    pieces = (integrand[1:] + integrand[:-1]) / 2 * np.diff(times)
    np.testing.assert_allclose(np.cumsum(pieces), budget[1:], rtol=1e-6, atol=1e-9)
    early, late = 1e-3, 1e8
    expected = [
        0.25 * np.log1p(2 * 0.999**2 * 2 * 0.5 * early**2 / 10),
        0.25 * np.log1p(2 * 10 * 0.999**2 * 0.5 * np.log(1000 * 2 * late / 10) ** 2 / 2),
    ]
    np.testing.assert_allclose(setting.budget(np.array([early, late])), expected, rtol=1e-3)


def test_the_flow_is_that_of_the_gradient_and_its_error_falls_with_the_step_squared() -> None:
    coarse, fine, finest = (flow(SMALL, 1.0, 1.0, 40.0, steps).z[-1] for steps in (20, 40, 320))
    errors = [np.abs(z - finest).max() for z in (coarse, fine)]
    assert 3 < errors[0] / errors[1] < 5
    short = flow(SMALL, 2.0, 1.0, 1e-2, 1)
    assert short.residual[0] == pytest.approx(1 - 1 / SMALL.size)


def by_numpy(iterations: int) -> Iterator[tuple[np.ndarray, float]]:
    """Y, Z from 0 by Lemma 1 summed over the classes in float64: Z, and class 0's pull, by step."""
    y, z = np.zeros((2, SMALL.size, SMALL.size))
    for _ in range(iterations + 1):
        y_move, z_move, pulls = np.zeros_like(y), np.zeros_like(z), []
        for of_class, (tokens, last) in enumerate(zip(SMALL.tokens, SMALL.last, strict=True)):
            b = SMALL.probabilities * np.exp(z[last, tokens])
            b /= b.sum()
            f = b / np.linalg.norm(b)
            p = np.exp(f @ y[tokens])
            error = np.eye(SMALL.size)[SMALL.next[of_class]] - p / p.sum()
            pulled = y[tokens] @ error
            pulls.append(pulled[3:] @ f[3:] / (f[3:] @ f[3:]))
            y_move[tokens] += np.outer(f, error) / 4
            z_move[last, tokens] += b * (pulled - f * (f @ pulled)) / np.linalg.norm(b) / 4
        yield z.copy(), pulls[0]
        y, z = y + 2.0 * y_move, z + 3.0 * z_move


def test_descent_takes_steps_along_the_populations_gradient() -> None:
    found, steps = descent(SMALL, 2.0, 3.0, 6), list(by_numpy(6))
    for step, (z, pull) in enumerate(steps):
        expected = z[SMALL.last[0], SMALL.tokens[0]]
        np.testing.assert_allclose(found.z[step], expected, rtol=1e-4, atol=1e-6)
        assert found.pull[step] == pytest.approx(pull, rel=1e-4, abs=1e-7)
    assert np.ptp(found.z[-1]) > 0.01
    assert found.pull[3] > 0.1
    assert found.times.tolist() == list(range(7))


def test_theory_holds_where_the_values_learn_faster_than_attention() -> None:
    """The study at its smallest: a control for each claim that has one."""
    result = replace(STUDY, parts=lambda seeds, full: {"frequency bias": 1}).run()
    assert not result.failed
    own, *flows, rarest, nearest, gain, loss = result.rows
    assert own.measured < 1e-4
    assert [row.kind for row in flows] == ["claim", "claim", "control", "control"]
    assert flows[1].measured < 1e-4 < flows[2].measured < flows[3].measured
    assert (rarest.kind, nearest.kind) == ("control", "control")
    assert rarest.measured == pytest.approx(8.6e-3, rel=0.01)  # found elsewhere, at a ratio of 1
    assert nearest.measured > 0.1
    assert (gain.measured, loss.measured) == (1, 1)


def test_the_theorems_own_setting_meets_it_and_the_ordinary_one_lags() -> None:
    flow = theory.Setting(10, 1000, 2.0, 0.5)
    own, ordinary = (figures.columns(figures.figure_3([flow], [common])) for common in (1, 10))
    half, speed, bounds, *open_ = predictions.snap(own)
    assert half.measured == pytest.approx(1, abs=0.05)
    assert speed.measured < 0.05
    assert bounds.measured == 0
    assert [one.row["agrees"] for one in (half, speed, bounds)] == ["yes"] * 3
    assert [one.row["agrees"] for one in open_] == ["not claimed"] * 2
    half, speed, bounds, *_ = predictions.snap(ordinary)
    assert half.measured > 1.2
    assert speed.measured > 0.5
    found = [one.row["agrees"] for one in (half, speed, bounds)]
    assert found == ["not claimed"] * 2 + ["yes"]
    assert not half.claimed
    assert half.bounds is not None, "which a control must miss"


# --- the figures --------------------------------------------------------------------------------


def deviations(rows: figures.Rows, reference: Path) -> Iterator[float]:
    """Distance of each mean from the published one, in standard errors of their difference."""
    keys = ("last_tokens", "eta_z", "eta_y_over_eta_z")
    ours = {tuple(float(row[key]) for key in keys): row for row in rows}
    with (reference / "scan_snap_figure6.csv").open() as file:
        for row in csv.DictReader(file):
            found = ours.get(tuple(float(row[key]) for key in keys))
            if found:
                spread = np.hypot(float(row["entropy_std"]), float(found["entropy_std"]))
                difference = float(found["entropy_mean"]) - float(row["entropy_mean"])
                yield abs(difference) / (spread / np.sqrt(10))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_study_judges_and_draws_figures_4_and_6(sign: int) -> None:
    """Of made numbers, in which entropy falls with η_Z and dips at ratio 2, and the reverse."""
    fall, dip = np.linspace(1, 0, 4)[:, None], np.array([0.5, 0.2, 0.6, 0.7])
    entropy = np.stack([2 + sign * (fall + dip), 2 + sign * (fall + 2 * dip)]).reshape(2, 16)
    rows = [
        {"eta_y": 1.0, "class": 0, "iteration": iteration, "token": token, "kind": kind, "c": c}
        for iteration, share in ((0, 0.5), (100, 0.5 - 0.3 * sign))
        for token, kind, c in ((0, "common", share), (1, "distinct", 1 - share))
    ]
    figure_4 = {name: column[None] for name, column in figures.columns(rows).items()}
    sweeps = {("figure 6", number): {"entropy": entropy} for number in (1, 3)}
    results = {"figure 4": figure_4, **sweeps}
    leaves, falls, control, *of_3 = STUDY.judge(results)
    assert leaves.measured == pytest.approx(-0.3 * sign)
    assert (falls.measured, control.measured) == (pytest.approx(-sign), pytest.approx(-0.45 * sign))
    assert control.kind == "control"
    assert [row.kind for row in of_3] == ["claim", "claim"]
    assert {row.fails for row in (leaves, falls, *of_3)} == {sign < 0}
    assert control.fails == (sign > 0), "one last token has no dip"
    drawn, entropies = STUDY.pictures(results)
    (heat,) = drawn.panels[0].of(HeatMap)
    assert heat.rows == ["distinct 1", "common 0"]
    np.testing.assert_allclose(heat.values[1], [0.5, 0.5 - 0.3 * sign])
    line = next(entropies.panels[1].of(Line))
    np.testing.assert_allclose(line.y, entropy.mean(axis=0)[:4])
    np.testing.assert_allclose(line.high - line.y, entropy.std(axis=0, ddof=1)[:4])


@pytest.mark.slow
def test_figure_6_meets_the_published_numbers(reference: Path) -> None:
    found = np.array(list(deviations(figures.figure_6((1, 3)), reference)))
    assert len(found) == 32
    assert (found <= 2).mean() >= 0.9
    assert found.max() <= 3.5


def entropies(last_tokens: int, seeds: int) -> Float[np.ndarray, "eta_z ratio"]:
    rates = [(rate * ratio, rate) for rate in (0.5, 2.0) for ratio in (1, 2, 10)]
    language = Language(last_tokens)
    return distinct_entropy(language, train(language, rates, seeds)).mean(axis=0).reshape(2, 3)


def test_figure_6_has_the_published_shape() -> None:
    one, three, five = entropies(1, 4), entropies(3, 2), entropies(5, 1)
    for found in (one, three, five):
        assert (found[1] < found[0]).all()  # entropy falls with η_Z
    for found in (three, five):
        assert (found[:, 1] < found[:, 0]).all()  # the dip at ratio 2, for more than one
        assert (found[:, 1] < found[:, 2]).all()


def test_figure_4_is_written_with_its_table(tmp_path: Path) -> None:
    paths = reproduce(4, str(tmp_path))
    assert [path.name for path in paths] == ["figure4.csv", "figure4.png", "figure4.pdf"]
    with paths[0].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 101 * 20
    final = [r for r in rows if (r["eta_y"], r["class"], r["iteration"]) == ("1", "0", "100")]
    assert sum(float(row["c"]) for row in final) == pytest.approx(1, abs=1e-4)
    assert max(final, key=lambda row: float(row["c"]))["kind"] == "distinct"


def test_the_command_writes_figure_6_in_the_published_columns(tmp_path: Path) -> None:
    arguments = ["scan-snap", "--figure", "6", "--last-tokens", "1,1", "--seeds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "new" / "figure6.csv").read_text().splitlines()
    assert lines[0] == "last_tokens,eta_z,eta_y_over_eta_z,entropy_mean,entropy_std,seeds"
    assert len(lines) == 17, "a number of last tokens that is named twice is done once"
    assert lines[1].startswith("1,0.5,1,")
    assert lines[1].endswith(",nan,1")  # one seed has no standard deviation


def test_figure_3_is_drawn_from_its_table(tmp_path: Path) -> None:
    rows = figures.figure_3([theory.Setting(2, 60, 1.0, 0.5)])
    assert len(rows) == 2 * (figures.FLOW_STEPS + 1)
    picture = picture_3(figures.columns(rows))
    drawn = [next(row[0].of(Line)) for row in picture.rows]
    for line, name in zip(drawn, ("chi", "gamma_simulated", "residual"), strict=True):
        expected = [row[name] for row in rows if row["common"] == 1]
        np.testing.assert_array_equal(line.y, expected)
    paths = write_pictures([picture], tmp_path, "Scan and Snap")
    assert [path.name for path in paths] == ["figure3.png", "figure3.pdf"]


def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="There is no figure 5 here; there are 3, 4 and 6"):
        reproduce(5, str(tmp_path))
    with pytest.raises(ArgumentError, match="at least one seed and positive numbers"):
        reproduce(6, str(tmp_path), last_tokens=(0,))
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="Cannot write"):
        reproduce(4, str(tmp_path / "file"))
    result = CliRunner().invoke(
        app, ["scan-snap", "--figure", "6", "--out", "x", "--last-tokens", "a"]
    )
    assert result.exit_code == 2


def test_context_distribution_is_that_of_the_scores() -> None:
    z = np.zeros((SMALL.size, SMALL.size), np.float32)
    z[19, 3] = np.log(4)
    found = np.asarray(context_distribution(SMALL, jnp.asarray(z)))
    expected = SMALL.probabilities * np.array([1, 1, 1, 4, 1, 1, 1])
    np.testing.assert_allclose(found[0], expected / expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(found[1], SMALL.probabilities, rtol=1e-5)
    assert (np.asarray(population(SMALL).following) == SMALL.next).all()
