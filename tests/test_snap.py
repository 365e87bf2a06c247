"""When a head has snapped: planted drifts are not called, planted stops are."""

from __future__ import annotations

import numpy as np
import pytest

from saturation.measures.scan.snap import snap

RUNS = 100
DRIFTS = {
    "ln t": np.log,
    "√ln t": lambda t: np.sqrt(np.log(t)),
    "ln ln t": lambda t: np.log(np.log(t)),
    "ln(1 + t/t_s)": lambda t: np.log1p(t / 500),
}


def share_called(make, end: float = 8000.0, seed: int = 0) -> float:
    """Of heads seen at 20 to 29 log-spaced checkpoints from step 10 on, those that are called."""
    rng = np.random.default_rng(seed)
    called = 0
    for _ in range(RUNS):
        steps = np.geomspace(10, end, rng.integers(20, 30))
        called += snap(steps, make(steps, rng)).called
    return called / RUNS


def along(path, noise: float):
    """A pattern of five parts that moves along `path` by 1 in all, with noise in each part."""

    def make(steps, rng):
        x = path(steps)
        x = (x - x[0]) / (x[-1] - x[0])
        direction = rng.normal(size=(5, 1))
        moved = direction / np.linalg.norm(direction) * x
        return moved + noise / np.sqrt(5) * rng.normal(size=(5, len(steps)))

    return make


def walk(clock):
    def make(steps, rng):
        spread = np.sqrt(np.diff(clock(steps), prepend=0.0))
        return np.cumsum(rng.normal(size=(5, len(steps))) * spread, axis=1)

    return make


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03])
@pytest.mark.parametrize("name", DRIFTS)
def test_a_head_that_drifts_for_ever_has_not_snapped(name: str, noise: float) -> None:
    assert share_called(along(DRIFTS[name], noise)) <= 0.06


@pytest.mark.parametrize("clock", [lambda t: t, np.log])
def test_a_random_walk_has_not_snapped(clock) -> None:
    assert share_called(walk(clock)) <= 0.06


def test_a_head_that_only_fluctuates_has_not_snapped() -> None:
    assert share_called(lambda steps, rng: rng.normal(size=(5, len(steps)))) <= 0.06


@pytest.mark.parametrize("noise", [0.0, 0.003])
@pytest.mark.parametrize(
    "path", [lambda t: np.exp(-t / 400), lambda t: (1 + t / 100) ** -2.0], ids=["exp", "power"]
)
def test_a_head_that_stops_early_has_snapped(path, noise: float) -> None:
    assert share_called(along(path, noise)) >= 0.95


def test_the_step_is_where_motion_by_ln_t_peaks_and_stays_when_the_run_is_cut() -> None:
    for path in (lambda t: np.exp(-t / 100), lambda t: (1 + t / 50) ** -2.0):
        steps = np.geomspace(10, 8000, 30)
        x = path(steps)[None]
        whole, cut = snap(steps, x), snap(steps[steps <= 4000], x[:, steps <= 4000])
        assert whole.called
        assert cut.called
        assert whole.step == cut.step
    # d e^{-t/t_s}/d ln t peaks at t_s
    steps = np.geomspace(10, 8000, 30)
    ratio = steps[1] / steps[0]
    assert 100 / ratio < snap(steps, np.exp(-steps / 100)[None]).step < 100 * ratio


def test_too_few_checkpoints_say_nothing_and_step_0_is_none() -> None:
    steps = np.concatenate([[0.0], np.geomspace(10, 8000, 15)])
    found = snap(steps, np.exp(-steps / 100)[None])
    assert np.isnan([found.ratio, found.p_value, found.step]).all()
    assert not found.called
    assert np.isnan(found.speed[:2]).all()
    assert np.isfinite(found.speed[2:]).all()


def test_speed_and_ratio_are_their_formulas() -> None:
    steps = np.exp(np.arange(17.0))
    speeds = np.array([4.0, 4, 4, 4, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    pattern = np.stack([np.cumsum([0, *speeds]) * 0.6, np.cumsum([0, *speeds]) * -0.8])
    found = snap(steps, pattern)
    np.testing.assert_allclose(found.speed[1:], speeds)
    assert found.ratio == pytest.approx(np.sqrt((4 * 16 + 4) / 5))  # five intervals are a third
    assert found.p_value == pytest.approx(round(found.p_value * 200) / 200)
    still = snap(steps, np.zeros((2, 17)))
    assert still.ratio == 1
    assert not still.called


def test_unknown_checkpoints_are_left_out() -> None:
    steps = np.geomspace(10, 8000, 30)
    x = np.exp(-steps / 100)[None].repeat(2, axis=0)
    kept = np.arange(30) != 20
    x[1, 20] = np.nan
    assert snap(steps, x).ratio == snap(steps[kept], x[:, kept]).ratio
