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
from scipy import stats

import saturation.growth.fit
from saturation.errors import SaturationError
from saturation.growth import autoregression
from saturation.growth.autoregression import CLOCKS, errors_on
from saturation.growth.fit import (
    LAWS,
    best_law,
    equation,
    fit_all,
    fit_growth,
    ranked,
)
from saturation.growth.power_law import POWER_BOUNDS, local_exponents, shape

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


@pytest.fixture(scope="module")
def published(reference: Path) -> tuple[np.ndarray, np.ndarray]:
    t, rho = np.loadtxt(reference / "t5_base_norm.csv", delimiter=",", skiprows=1).T
    return t, rho


def test_published_series_by_least_squares(published):
    fits = fit_all(*published)
    root, power = fits["sqrt"], fits["power"]
    assert root.a == pytest.approx(5.412, abs=5e-4)
    assert root.b == pytest.approx(193.55, abs=5e-3)
    assert root.r2 == pytest.approx(0.9986, abs=5e-5)
    assert root.independent == fit_growth(*published, "sqrt", "index").independent
    alone = power.independent
    assert alone.p == pytest.approx(0.559, abs=5e-4)
    assert alone.r2 == pytest.approx(0.9997, abs=5e-5)
    assert power.without_first.independent.p == pytest.approx(0.543, abs=5e-4)
    assert root.independent.aic - alone.aic == pytest.approx(155, abs=0.5)
    assert power.n == 104


def test_published_series_on_the_index_clock(published):
    power, root = (fit_growth(*published, law, clock="index") for law in ("power", "sqrt"))
    assert power.p == pytest.approx(0.68, abs=0.005)
    assert power.interval == pytest.approx((0.65, 0.71), abs=0.005)
    assert power.phi_at_bound
    assert root.aic - power.aic == pytest.approx(115, abs=3)
    without = power.without_first
    assert without.p == pytest.approx(0.487, abs=5e-4)
    assert without.interval == pytest.approx((0.480, 0.4945), abs=1e-3)
    assert root.without_first.aic - without.aic == pytest.approx(8, abs=3)
    thirds = [(third.p, *third.interval) for third in power.thirds]
    expected = [(0.450, 0.441, 0.459), (0.545, 0.534, 0.557), (0.635, 0.615, 0.656)]
    np.testing.assert_allclose(thirds, expected, atol=1.1e-3)
    assert power.power_is_constant is False


def test_published_series_is_likeliest_on_the_clock_ln_t(published):
    """On every clock the power grows through the run, and step 0 decides p of the whole."""
    power = fit_growth(*published)
    assert (power.clock, power.without_first.clock) == ("ln t", "ln t")
    assert power.interval == pytest.approx((0.587, 0.624), abs=1e-3)
    assert power.without_first.interval == pytest.approx((0.528, 0.548), abs=1e-3)
    assert power.power_is_constant is False
    assert power.aic < fit_growth(*published, clock="index").aic - 200


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
    assert fit.independent.aic == pytest.approx(40 * np.log(residual / 40) + 2 * 3)
    assert fit.r2 == pytest.approx(np.corrcoef(g, rho)[0, 1] ** 2)
    a, b = np.polyfit(g[:32], rho[:32], 1)
    error = rho[32:] - a * g[32:] - b
    expected = np.sqrt(np.mean(error**2) / np.mean(rho[32:] ** 2))
    assert fit.holdout_error == pytest.approx(expected)


def test_least_squares_power_is_that_of_a_brute_force_search():
    t, rho = noisy_root(50, noise=4.0)
    fit = fit_growth(t, rho).independent
    grid = np.arange(0.3, 0.8, 1e-4)
    sums = np.array([np.polyfit(t**p, rho, 1, full=True)[1][0] for p in grid])
    assert fit.p == pytest.approx(grid[np.argmin(sums)], abs=1e-4)
    rss = np.sum((rho - fit.predict(t)) ** 2)
    assert rss <= min(sums) * (1 + 1e-9)
    assert fit.aic == pytest.approx(50 * np.log(rss / 50) + 2 * 4)
    inside = grid[sums <= rss * (1 + stats.f.ppf(0.95, 1, 47) / 47)]
    assert fit.interval == pytest.approx((inside[0], inside[-1]), abs=1.1e-4)


def correlated(t: np.ndarray, reading: np.ndarray, phi: float, seed: int) -> np.ndarray:
    """Return 2·t^0.4 + 50 with errors of V_ij = φ^|u_i − u_j|, from the dense matrix."""
    u = reading / np.diff(reading).mean()
    factor = np.linalg.cholesky(phi ** np.abs(u[:, None] - u))
    return 2 * t**0.4 + 50 + 0.2 * factor @ np.random.default_rng(seed).normal(size=len(t))


def dense_deviance(
    t: np.ndarray, rho: np.ndarray, reading: np.ndarray, p: float, phi: float, restricted: bool
) -> float:
    """Return the deviance with V, its inverse and its determinant written out."""
    u = reading / np.diff(reading).mean()
    v = phi ** np.abs(u[:, None] - u)
    h = (t**p - t[0] ** p) / (t[-1] ** p - t[0] ** p)
    x = np.stack([np.ones_like(h), h], axis=1)
    information = x.T @ np.linalg.solve(v, x)
    residual = rho - x @ np.linalg.solve(information, x.T @ np.linalg.solve(v, rho))
    square, log_v = residual @ np.linalg.solve(v, residual), np.linalg.slogdet(v)[1]
    n = len(t)
    if not restricted:
        return n * np.log(square / n) + log_v
    return (n - 2) * np.log(square / (n - 2)) + log_v + np.linalg.slogdet(information)[1]


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.9, 0.999])
def test_deviances_agree_with_dense_matrices(clock: str, phi: float):
    t = np.concatenate([[0.0], np.geomspace(5, 4000, 19)])
    reading = {"index": np.arange(20.0), "t": t, "ln t": np.log(t + 5)}[clock]
    rho = correlated(t, reading, 0.8, 1)
    errors = errors_on(clock, t)
    np.testing.assert_allclose(errors.gaps, np.diff(reading) / np.diff(reading).mean())
    weights = autoregression._weights(errors.gaps, np.array([phi]))
    for p in (0.001, 0.4, 3.0):
        for restricted in (True, False):
            [[found]] = autoregression._deviances(weights, rho, shape(t, p)[None], restricted)
            # In the dense form t^0.001 and 1 cancel, and V of φ = 0.999 is near singular.
            expected = dense_deviance(t, rho, reading, p, phi, restricted)
            assert found == pytest.approx(expected, abs=1e-6)


def test_fit_is_the_least_of_a_brute_force_search_over_p_and_phi():
    t = np.linspace(100, 6000, 60)
    rho = correlated(t, np.log(t), 0.9, 4)
    fit = fit_growth(t, rho)
    assert fit.clock == "ln t"
    powers = np.arange(0.2, 0.7, 0.004)
    phis = 1 - np.geomspace(1, 0.001, 60)
    table = np.array(
        [[dense_deviance(t, rho, np.log(t), p, phi, True) for phi in phis] for p in powers]
    )
    at, of = np.unravel_index(np.argmin(table), table.shape)
    assert fit.p == pytest.approx(powers[at], abs=0.004)
    assert np.log(1 - fit.phi) == pytest.approx(np.log(1 - phis[of]), abs=0.12)
    inside = powers[table.min(axis=1) <= table.min() + stats.f.ppf(0.95, 1, 56)]
    assert fit.interval == pytest.approx((inside[0], inside[-1]), abs=0.005)
    root = fit_growth(t, rho, "sqrt")
    ordinary = min(dense_deviance(t, rho, np.log(t), 0.5, phi, False) for phi in phis)
    assert root.aic == pytest.approx(ordinary + 8, abs=0.01)
    assert root.aicc == pytest.approx(root.aic + 2 * 4 * 5 / (60 - 5))
    assert root.clock == fit.clock, "one clock for all laws"


@pytest.mark.parametrize("clock", CLOCKS)
def test_clock_of_the_errors_is_found(clock: str):
    t = np.geomspace(10, 1e5, 40) if clock == "t" else np.linspace(100, 20_000, 60)
    reading = {"index": np.arange(float(len(t))), "t": t, "ln t": np.log(t)}[clock]
    fits = [fit_growth(t, correlated(t, reading, 0.9, seed)) for seed in range(4)]
    assert [fit.clock for fit in fits].count(clock) >= 3


def test_interval_covers_where_errors_are_a_random_walk_nearly():
    """25 runs with φ = 0.97: independent errors would cover less than half."""
    t = np.linspace(100, 20_000, 60)
    fits = [fit_growth(t, correlated(t, np.arange(60.0), 0.97, seed)) for seed in range(25)]
    covered = sum(fit.interval[0] <= 0.4 <= fit.interval[1] for fit in fits)
    naive = sum(f.independent.interval[0] <= 0.4 <= f.independent.interval[1] for f in fits)
    assert covered >= 21
    assert naive <= 17


def test_power_that_grows_through_the_run_is_told():
    t = np.arange(0, 6000, 50.0)
    rho = 40 * np.exp(np.cumsum(np.concatenate([[0], 0.005 + 0.01 * t[1:] / t[-1]])))
    noise = np.random.default_rng(0).normal(0, 0.01, len(t))
    fit = fit_growth(t, rho + noise)
    assert fit.power_is_constant is False
    assert [third.n for third in fit.thirds] == [39, 40, 40]
    assert fit_growth(t, 2 * t**0.6 + 40 + noise).power_is_constant is True
    assert fit_growth(t[1:24], rho[1:24]).power_is_constant is None, "thirds below eight points"
    assert fit_growth(t, rho, "sqrt").power_is_constant is None


def test_without_first_is_given_where_the_run_starts_at_step_0():
    t, rho = noisy_root(40)
    whole = fit_growth(t, rho)
    alone = fit_growth(t[1:], rho[1:])
    assert whole.without_first.p == alone.p
    assert whole.without_first.interval == alone.interval
    assert alone.without_first is None
    assert fit_growth(t, rho, "log").without_first.aic == fit_growth(t[1:], rho[1:], "log").aic


def test_local_exponents():
    t = [0, 1, 2, 8]
    at, local = local_exponents(t, [5, 3, 6, 6])
    np.testing.assert_allclose(at, [2**0.5, 4])
    np.testing.assert_allclose(local, [1, 0], atol=1e-15)
    steps = np.arange(1.0, 40)
    for law, rho in (("power", 2 * steps**0.7 + 3), ("log", 2 * np.log1p(steps) + 3)):
        fit = fit_growth(steps, rho, law)
        numeric = np.gradient(np.log(fit.predict(np.exp([0.999, 1, 1.001]))), 0.001)[1]
        assert fit.local_exponent([np.e])[0] == pytest.approx(numeric, rel=1e-5)


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
    assert power.thirds == ()
    assert np.isfinite(power.aic)
    np.testing.assert_array_equal(power.predict([0, 10**6]), 3.0)
    assert best_law(fits) is None, "every law describes it"
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


def test_few_points_give_a_fit_and_no_best_law():
    four = fit_growth([0, 100, 200, 300], [5, 6, 6.5, 7])
    assert (four.interval, four.without_first, four.holdout_error) == (None, None, None)
    five = fit_growth([0, 1, 2, 3, 4], [5, 6, 6.5, 7, 7.2])
    assert (five.phi, five.clock, five.interval) == (0, "index", None)
    assert five.without_first is not None
    assert five.holdout_error is not None
    t, rho = noisy_root(8)
    seven, eight = fit_all(t[:7], rho[:7]), fit_all(t, rho)
    assert best_law(seven) is None
    assert [fit.law for fit in ranked(seven)] == list(LAWS)
    assert best_law(eight) is ranked(eight)[0]
    assert best_law(eight).aicc == min(fit.aicc for fit in eight.values())
    assert eight["power"].interval is not None
    assert eight["power"].aicc - eight["power"].aic == pytest.approx(2 * 5 * 6 / 2)


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


def test_unknown_clock_lists_the_clocks():
    with pytest.raises(SaturationError, match="'wall'; the clocks are index, t, ln t"):
        fit_growth(STEPS, STEPS, clock="wall")


def test_predict_refuses_negative_steps():
    with pytest.raises(SaturationError, match="finite and at least 0"):
        fit_growth(STEPS, STEPS, "linear").predict([-1])


def test_json_holds_every_field():
    t, rho = noisy_root(30)
    for law, fit in fit_all(t, rho).items():
        read = json.loads(json.dumps(fit.to_json(), allow_nan=False))
        assert read["law"] == law
        assert read["a"] == fit.a
        fields = set(fit.__dataclass_fields__) | {"phi_at_bound", "power_is_constant"}
        assert set(read) == fields
        assert read["without_first"]["independent"]["law"] == law
    assert len(fit_growth(t, rho).to_json()["thirds"]) == 3


def test_describe_is_an_equation():
    assert equation(fit_growth(STEPS, 2 * np.sqrt(STEPS) - 3, "sqrt")) == "ρ = 2·√t - 3"
    assert equation(fit_growth(STEPS, 2 * STEPS**0.7 + 3)) == "ρ = 2·t^0.700 + 3"


def test_examples_in_docstrings():
    assert doctest.testmod(saturation.growth.fit).failed == 0


def test_needs_no_jax():
    code = (
        "import sys, saturation.growth.fit as growth\n"
        "growth.fit_all(range(30), [x ** .5 for x in range(30)])\n"
        "print([name for name in ('jax', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
