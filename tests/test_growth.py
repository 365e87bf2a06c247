"""Growth laws: published numbers, closed forms, the theory of MEASURES §4, and what is refused."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import saturation.growth
from saturation.errors import SaturationError
from saturation.growth import (
    BLOCK,
    LAWS,
    POWER_BOUNDS,
    best_law,
    describe,
    fit_all,
    fit_growth,
)

STEPS = np.arange(0, 5200, 50)
EXACT = {
    "linear": lambda t: t,
    "sqrt": np.sqrt,
    "fourth_root": lambda t: t**0.25,
    "log": np.log1p,
    "power": lambda t: t**0.7,
}


def noisy_root(n: int, seed: int = 3, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(0, 10_000, n)
    return t, 2 * np.sqrt(t) + 50 + np.random.default_rng(seed).normal(0, noise, n)


def test_published_series_of_t5_base(reference: Path):
    t, rho = np.loadtxt(reference / "t5_base_norm.csv", delimiter=",", skiprows=1).T
    fits = fit_all(t, rho)
    root, power = fits["sqrt"], fits["power"]
    assert root.a == pytest.approx(5.412, abs=5e-4)
    assert root.b == pytest.approx(193.55, abs=5e-3)
    assert root.r2 == pytest.approx(0.9986, abs=5e-5)
    assert power.p == pytest.approx(0.559, abs=5e-4)
    assert power.r2 == pytest.approx(0.9997, abs=5e-5)
    assert power.p_without_first == pytest.approx(0.543, abs=5e-4)
    assert power.interval == pytest.approx((0.53, 0.60), abs=5e-3)
    assert best_law(fits) is power, "√t is close and not the best law of the published series"
    assert power.n == 104


@pytest.mark.parametrize("law", LAWS)
def test_each_law_recovers_its_own_series(law: str):
    rho = 3 * EXACT[law](STEPS.astype(float)) + 7
    fit = fit_growth(STEPS, rho, law)
    assert fit.a == pytest.approx(3, rel=1e-6)
    assert fit.b == pytest.approx(7, rel=1e-6)
    assert fit.r2 == pytest.approx(1)
    assert fit.holdout_error == pytest.approx(0, abs=1e-8)
    np.testing.assert_allclose(fit.predict(STEPS), rho, rtol=1e-7)
    assert best_law(fit_all(STEPS, rho)).law == law


@pytest.mark.parametrize(
    ("law", "p"), [("linear", 1), ("sqrt", 0.5), ("fourth_root", 0.25), ("log", None)]
)
def test_fixed_laws_agree_with_polyfit(law: str, p: float | None):
    t, rho = noisy_root(40)
    g = EXACT[law](t)
    a, b = np.polyfit(g, rho, 1)
    fit = fit_growth(t, rho, law)
    residual = np.sum((rho - a * g - b) ** 2)
    assert (fit.a, fit.b) == pytest.approx((a, b))
    assert fit.p == p
    assert fit.interval is None
    assert fit.p_without_first is None
    assert fit.aic == pytest.approx(40 * np.log(residual / 40) + 2 * 3)
    assert fit.r2 == pytest.approx(np.corrcoef(g, rho)[0, 1] ** 2)
    a, b = np.polyfit(g[:32], rho[:32], 1)
    error = rho[32:] - a * g[32:] - b
    expected = np.sqrt(np.mean(error**2) / np.mean(rho[32:] ** 2))
    assert fit.holdout_error == pytest.approx(expected)


def test_power_is_the_least_of_a_brute_force_search():
    t, rho = noisy_root(50, noise=4.0)
    fit = fit_growth(t, rho)
    grid = np.arange(0.3, 0.8, 1e-4)
    sums = [np.polyfit(t**p, rho, 1, full=True)[1][0] for p in grid]
    assert fit.p == pytest.approx(grid[np.argmin(sums)], abs=1e-4)
    rss = np.sum((rho - fit.predict(t)) ** 2)
    assert rss <= min(sums) * (1 + 1e-9)
    assert fit.aic == pytest.approx(50 * np.log(rss / 50) + 2 * 4)


def test_interval_agrees_with_a_bootstrap_written_out():
    t, rho = noisy_root(40, noise=2.0)
    generator = np.random.default_rng(0)
    starts = generator.integers(0, 31, size=(1000, 4))
    powers = []
    grid = np.arange(0.002, 1.5, 2e-3)
    for row in starts[:30]:
        drawn = np.concatenate([np.arange(s, s + BLOCK) for s in row])
        sums = [np.polyfit(t[drawn] ** p, rho[drawn], 1, full=True)[1][0] for p in grid]
        powers.append(grid[np.argmin(sums)])
    drawn = (starts[:30, :, None] + np.arange(BLOCK)).reshape(30, -1)
    ours = saturation.growth._refit(t, rho, drawn)
    np.testing.assert_allclose(ours, powers, atol=1.1e-3)
    fit = fit_growth(t, rho)
    assert fit.interval is not None
    assert fit.interval[0] < fit.p < fit.interval[1]
    assert fit.interval[0] < 0.5 < fit.interval[1]


@pytest.mark.parametrize(("k", "p"), [(0.5, 0.125), (1.0, 0.5), (1.5, 1.125)])
def test_simulated_theory_of_orthogonal_steps(k: float, p: float):
    generator = np.random.default_rng(0)
    theta = generator.normal(size=256)
    norms = {}
    for t in range(1, 20_001):
        if t % 200 == 0:
            norms[t] = np.linalg.norm(theta)
        direction = generator.normal(size=256)
        direction -= direction @ theta / (theta @ theta) * theta
        size = k * t**-0.5 * np.linalg.norm(theta)
        theta = theta + size * direction / np.linalg.norm(direction)
    fit = fit_growth(list(norms), list(norms.values()))
    assert fit.p == pytest.approx(p, abs=0.01)


def test_logarithm_is_the_power_at_its_lower_bound():
    t = np.arange(1.0, 101)
    fit = fit_growth(t, 5 * np.log(t) + 1)
    assert fit.p == pytest.approx(POWER_BOUNDS[0], abs=1e-5)
    assert fit.p_at_bound
    np.testing.assert_allclose(fit.predict(t), 5 * np.log(t) + 1, rtol=0, atol=0.02)
    assert not fit_growth(t, 5 * np.sqrt(t) + 1).p_at_bound


def test_constant_series_has_no_exponent():
    fits = fit_all(STEPS, np.full(len(STEPS), 3.0))
    power = fits["power"]
    assert np.isnan(power.p)
    assert power.interval is None
    assert np.isfinite(power.aic)
    np.testing.assert_array_equal(power.predict([0, 10**6]), 3.0)
    assert best_law(fits).law != "power", "a law with a parameter less fits as well"
    assert power.to_json()["p"] is None
    assert power.to_json()["r2"] is None


@pytest.mark.parametrize("sign", [-1, 1])
def test_decreasing_and_huge_steps(sign: int):
    t = np.linspace(0, 1e15, 40)
    fit = fit_growth(t, sign * 1e-8 * t**0.6 + 1000)
    assert fit.p == pytest.approx(0.6, abs=1e-6)
    assert fit.a == pytest.approx(sign * 1e-8, rel=1e-4)
    assert fit.interval == pytest.approx((0.6, 0.6), abs=1e-6)


def test_series_constant_but_for_its_end():
    values = np.zeros(40)
    values[-1] = 1
    fit = fit_growth(np.arange(40), values)
    assert fit.p_at_bound
    assert fit.interval is not None


def test_few_points_give_a_fit_and_no_interval():
    four = fit_growth([0, 100, 200, 300], [5, 6, 6.5, 7])
    assert (four.interval, four.p_without_first, four.holdout_error) == (None, None, None)
    five = fit_growth([0, 1, 2, 3, 4], [5, 6, 6.5, 7, 7.2])
    assert five.p_without_first is not None
    assert five.holdout_error is not None
    t, rho = noisy_root(2 * BLOCK)
    assert fit_growth(t, rho).interval is not None
    assert fit_growth(t[1:], rho[1:]).interval is None


@settings(max_examples=25, deadline=None)
@given(
    p=st.floats(0.1, 2.5),
    a=st.floats(0.1, 1e3),
    b=st.floats(-1e3, 1e3),
    last=st.sampled_from([1e2, 1e4, 5e5]),
    zero=st.booleans(),
)
def test_any_power_is_recovered(p: float, a: float, b: float, last: float, zero: bool):
    t = np.linspace(0 if zero else last / 60, last, 60)
    fit = fit_growth(t, a * t**p + b)
    assert fit.p == pytest.approx(p, abs=1e-4)
    assert fit.r2 > 1 - 1e-9


@pytest.mark.parametrize(
    ("steps", "values", "text"),
    [
        ([0, 1, 2], [1, 2, 3], "needs at least 4 points and found 3; measure more checkpoints"),
        ([0, 1, 2, 3], [1, 2, 3], "found steps of shape (4,) and values of shape (3,)"),
        ([[0, 1], [2, 3]], [[1, 2], [3, 4]], "as two vectors of one length"),
        ([0, 1, 2, 7], [1, 2, np.nan, 4], "1 of 4 are NaN or infinite, the first at step 2"),
        ([0, 1, 2, 7], [1, 2, 3, np.inf], "1 of 4 are NaN or infinite, the first at step 7"),
        ([0, 5, 5, 7], [1, 2, 3, 4], "Step 5 occurs more than once"),
        ([0, 5, 3, 7], [1, 2, 3, 4], "Steps must increase; step 3 comes after a larger one"),
        ([-1, 5, 6, 7], [1, 2, 3, 4], "steps of at least 0; found step -1"),
        ([0, 5, np.nan, 7], [1, 2, 3, 4], "finite steps; found NaN or infinity"),
        (["a", "b", "c", "d"], [1, 2, 3, 4], "Steps and values must be numbers"),
    ],
)
def test_refused_series(steps: list, values: list, text: str):
    with pytest.raises(SaturationError) as error:
        fit_growth(steps, values)
    assert text in str(error.value)


def test_unknown_law_lists_the_laws():
    with pytest.raises(SaturationError, match="'cubic'; the laws are linear, sqrt, fourth_root"):
        fit_growth(STEPS, STEPS, "cubic")


def test_predict_refuses_negative_steps():
    with pytest.raises(SaturationError, match="finite and at least 0"):
        fit_growth(STEPS, STEPS, "linear").predict([-1])


def test_json_holds_every_field():
    t, rho = noisy_root(30)
    for law, fit in fit_all(t, rho).items():
        read = json.loads(json.dumps(fit.to_json(), allow_nan=False))
        assert read["law"] == law
        assert read["a"] == fit.a
        assert set(read) == set(fit.__dataclass_fields__)


def test_describe_is_an_equation():
    assert describe(fit_growth(STEPS, 2 * np.sqrt(STEPS) - 3, "sqrt")) == "ρ = 2·√t - 3"
    assert describe(fit_growth(STEPS, 2 * STEPS**0.7 + 3)) == "ρ = 2·t^0.700 + 3"


def test_examples_in_docstrings():
    assert doctest.testmod(saturation.growth).failed == 0


def test_needs_no_jax():
    code = (
        "import sys, saturation.growth as growth\n"
        "growth.fit_all(range(30), [x ** .5 for x in range(30)])\n"
        "print([name for name in ('jax', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
