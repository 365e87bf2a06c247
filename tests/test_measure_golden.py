"""The table that `measure` writes against exact float64 sums over real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import saturation

STEPS = (0, 100, 200, 300)
LAYOUTS = {
    "v1_0": ("t5x_legacy", "hf", "orbax"),
    "umt5": ("hf",),
}
PAIRS = [(model, layout) for model, layouts in LAYOUTS.items() for layout in layouts]


@pytest.fixture(scope="module")
def tables(
    fixtures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], pd.Series]:
    """Every layout of every model, measured: (step, metric, scope) -> value."""
    measured = {}
    for model, layout in PAIRS:
        out = tmp_path_factory.mktemp(f"{model}-{layout}")
        trajectory = saturation.open_trajectory(fixtures / model / layout)
        saturation.measure(trajectory, ["norms", "direction"], str(out))
        table = saturation.load_results(out)
        measured[model, layout] = table.set_index(["step", "metric", "scope"])["value"].sort_index()
    return measured


def golden(fixtures: Path, model: str) -> dict:
    return json.loads((fixtures / model / "golden" / "norms_and_cosines.json").read_text())


def expected_norms(fixtures: Path, model: str, step: int) -> dict[str, float]:
    """{scope: norm}, from the golden file's own names."""
    numbers = golden(fixtures, model)
    totals = numbers["totals"][str(step)]
    each = numbers.get("per_parameter_split", numbers.get("per_parameter"))[str(step)]
    layers = {
        f"{name.split('_')[0]}/layers_{name.rpartition('_')[2]}": value
        for name, value in totals.items()
        if "_layer_" in name
    }
    stacks = {"encoder": totals["encoder"], "decoder": totals["decoder"], "total": totals["all"]}
    return {**each, **layers, **stacks, "embedding": totals["shared_embedding"]}


@pytest.mark.parametrize(("model", "layout"), PAIRS)
@pytest.mark.parametrize("step", STEPS)
def test_norms_agree_with_exact_sums(
    tables: dict, fixtures: Path, model: str, layout: str, step: int
) -> None:
    found = tables[model, layout].loc[step, "l2"]
    expected = expected_norms(fixtures, model, step)
    assert set(expected) <= set(found.index)
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), 1e-9)


@pytest.mark.parametrize("layout", LAYOUTS["v1_0"])
@pytest.mark.parametrize("later", STEPS[1:])
def test_cosines_agree_with_exact_sums(
    tables: dict, fixtures: Path, layout: str, later: int
) -> None:
    numbers = golden(fixtures, "v1_0")["cosine"][f"{later - 100}->{later}"]
    groups = numbers["groups"]
    expected = {
        **numbers["per_parameter"],
        **{scope: groups[scope] for scope in ("encoder", "decoder")},
        **{
            f"{s}/layers_{i}": groups[f"{s}_layer_{i}"]
            for s in ("encoder", "decoder")
            for i in (0, 1)
        },
        "embedding": groups["shared_embedding"],
        "total": groups["all"],
    }
    table = tables["v1_0", layout]
    for metric, reference in (("cosine", expected), ("cosine_distance", None)):
        found = table.loc[later, metric]
        wanted = reference or {name: 1 - value for name, value in expected.items()}
        np.testing.assert_allclose(
            [found[name] for name in wanted], list(wanted.values()), 1e-9, err_msg=metric
        )


@pytest.mark.parametrize("layout", LAYOUTS["v1_0"][1:])
def test_every_layout_gives_the_same_table(tables: dict, layout: str) -> None:
    first, other = tables["v1_0", LAYOUTS["v1_0"][0]], tables["v1_0", layout]
    assert set(first.index) == set(other.index)
    np.testing.assert_allclose(other.loc[first.index], first, rtol=1e-12, atol=1e-13)
