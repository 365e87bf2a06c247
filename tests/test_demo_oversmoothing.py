"""Planted spectra give their regimes, and the panel tells them apart where the cosine does not."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest

from saturation.cli import commands as cli
from saturation.errors import ArgumentError
from saturation.measures.spectrum.measure import regime
from saturation.studies import demo, oversmoothing
from saturation.studies.base import Settings
from saturation.studies.oversmoothing import (
    CASES,
    TOKENS,
    iterate,
    measure,
    plant_a,
    plant_h,
)

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def panels():
    return {case.name: measure(iterate(case)) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_planted_is_there(case):
    of_heads = np.linalg.eigvals(plant_h(case, np.random.default_rng(0)))
    np.testing.assert_allclose(np.sort_complex(of_heads), np.sort_complex(case.of_heads), atol=1e-9)
    weights = plant_a(case)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    of_attention = np.linalg.eigvals(weights)
    np.testing.assert_allclose(
        np.sort(of_attention.real), np.sort(case.of_attention.real), atol=1e-9
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_every_prediction_comes_true(seed):
    """As a study, whose controls leave out what decides."""
    result = oversmoothing.STUDY.run(Settings(seeds=1, seed=seed))
    assert not result.failed
    kinds = [row.kind for row in result.rows]
    assert (kinds.count("claim"), kinds.count("control")) == (4 * len(CASES), len(CASES) + 2)
    wrong = [row for row in result.rows if "predicted" in row.setting]
    assert [row.measured > 0 for row in wrong] == [True, False]
    assert [row.predicted[0] == "-" for row in wrong] == [True, False], "of the other sign"


def test_the_regimes_are_those_of_the_paper():
    """Written down by hand, not by the function that predicts."""
    expected = {
        "H ⪰ 0": ("smooths", 1, 1.0),
        "H in [−1, 0)": ("sharpens", -1, -0.6),
        "H below −2": ("smooths", -3, 1.0),
        "H below −2, other A": ("sharpens", -3, -0.6),
        "no residual": ("smooths", -1, 1.0),
        "H complex": ("sharpens", -0.8, -0.6),
    }
    for name, (wanted, of_heads, of_attention) in expected.items():
        found = oversmoothing.predict(BY_NAME[name])
        assert found["regime"] == wanted, name
        assert found["dominating_h"].real == pytest.approx(of_heads)
        assert found["dominating_a"] == pytest.approx(of_attention)
        case = BY_NAME[name]
        if case.residual:
            assert regime(case.of_heads, case.attention_min, null_space=False) == wanted


def test_cosine_alone_does_not_tell_collapse_from_noise_and_the_others_do(panels):
    equal, parted = (panels[name] for name in ("H ⪰ 0", "H in [−1, 0)"))
    for panel in (equal, parted):
        assert panel["effective_rank"][-1] == pytest.approx(1, abs=1e-2)
        assert panel["rank_one_distance"][-1] < 1e-2
        assert panel["token_cosine_abs"][-1] == pytest.approx(1, abs=1e-3)
    assert equal["token_cosine"][-1] == pytest.approx(1, abs=1e-3)
    assert equal["hfc_lfc"][-1] < 1e-8
    assert parted["token_cosine"][-1] == pytest.approx(-1 / (TOKENS - 1), abs=1e-3)
    assert abs(parted["token_cosine"][-1]) <= abs(parted["token_cosine"][0]) + 0.01
    assert parted["hfc_lfc"][-1] > 1e8


def test_a_prediction_that_fails_is_said(panels, monkeypatch, capsys):
    wrong = {**oversmoothing.TOLERANCE, "cosine": -1.0}
    monkeypatch.setattr(oversmoothing, "TOLERANCE", wrong)
    monkeypatch.setattr(sys, "argv", ["saturation", "demo", "oversmoothing"])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 1
    assert capsys.readouterr().out.count("NO") == len(CASES)


def test_the_command_prints_the_table_and_writes_it_with_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["saturation", "demo", "oversmoothing", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code
    printed = capsys.readouterr().out
    for case in CASES:
        assert case.name in printed
    assert "NO" not in printed
    with (tmp_path / "oversmoothing.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["regime"] for row in rows].count("sharpens") == 3
    assert {row["agrees"] for row in rows} == {"True"}
    for kind in ("png", "pdf"):
        assert (tmp_path / f"oversmoothing.{kind}").stat().st_size > 10_000


def test_an_unknown_demo_is_refused():
    with pytest.raises(ArgumentError, match="no demo 'x'; there are: oversmoothing"):
        demo("x")
