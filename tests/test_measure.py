"""Measuring a trajectory: values against float64 NumPy, shards, resuming, and bad input."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from checkpoint_writers import t5_parameters, write_t5x
from made_trajectory import canonical, t5_arrays, write_trajectory
from safetensors.numpy import save_file

import saturation
from saturation.checkpoints.base import Parameter
from saturation.errors import MeasureError, ResultsError, Stopped
from saturation.measures.base import ArrayInfo
from saturation.measures.direction.measure import DIRECTION
from saturation.results.state import open_run
from saturation.runs import blocks as stream
from saturation.runs import measure as run
from saturation.runs import plan
from saturation.runs import weights as run_weights
from saturation.runs.plan import Shard, assigned
from saturation.runs.reduce import tile
from saturation.runs.run_json import bundles
from saturation.scopes import scopes

BOTH = ["norms", "direction"]


def measured(
    folder: Path, out: Path, measures: list[str] = BOTH, **options: object
) -> pd.DataFrame:
    steps = options.pop("steps", None)
    saturation.measure(saturation.open_trajectory(folder, steps), measures, str(out), **options)
    return saturation.load_results(out)


def value(table: pd.DataFrame, step: int, metric: str, scope: str) -> float:
    chosen = table[(table.step == step) & (table.metric == metric) & (table.scope == scope)]
    assert len(chosen) == 1, (step, metric, scope, len(chosen))
    return float(chosen.value.iloc[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trajectory(tmp_path_factory.mktemp("trajectory") / "t")


@pytest.fixture(scope="module")
def table(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return measured(folder, tmp_path_factory.mktemp("run"))


def test_the_table_keeps_its_contract(table: pd.DataFrame) -> None:
    assert list(table.columns) == ["step", "measure", "metric", "scope", "value", "previous_step"]
    assert table.step.dtype == np.int64
    assert table.value.dtype == np.float64
    assert not table.duplicated(["step", "measure", "metric", "scope"]).any()
    norms, direction = table[table.measure == "norms"], table[table.measure == "direction"]
    assert norms.previous_step.isna().all()
    assert set(norms.step) == {0, 10, 30}
    assert set(direction.step) == {10, 30}, "a measure of two checkpoints is filed under the later"
    to_first = direction[direction.metric == "cosine_to_first"]
    assert (to_first.previous_step == 0).all()
    others = direction[direction.metric != "cosine_to_first"]
    assert dict(zip(others.step, others.previous_step, strict=True)) == {10: 0, 30: 10}


def test_every_value_agrees_with_float64_numpy(folder: Path, table: pd.DataFrame) -> None:
    """All metrics of all scopes from their textbook definitions, on whole float64 vectors."""
    arrays = {step: canonical(folder, step) for step in (0, 10, 30)}
    for scope, members in scopes(arrays[0]).items():
        vectors = {s: np.concatenate([a[n].ravel() for n in members]) for s, a in arrays.items()}
        for step, before in ((0, None), (10, 0), (30, 10)):
            theta = vectors[step]
            expected = {
                "l2": np.linalg.norm(theta),
                "rms": np.linalg.norm(theta) / np.sqrt(theta.size),
                "max_abs": np.abs(theta).max(),
                "nonfinite": 0.0,
            }
            matrices = [arrays[step][n] for n in members if arrays[step][n].ndim > 1]
            if matrices:
                expected["min_rms"] = min(np.sqrt(np.mean(m**2)) for m in matrices)
            kernels = [arrays[step][n] for n in members if n.endswith("/kernel")]
            if kernels:
                squares = sum((k**2).sum() / k.shape[0] for k in kernels)
                expected["l2_fan_in"] = np.sqrt(squares)
            if before is not None:
                expected |= direction_of(vectors[before], theta, vectors[0], step - before)
                if before > 0:
                    expected |= exponents_of(vectors[before], theta, step / before)
            found = table[(table.step == step) & (table.scope == scope)].set_index("metric").value
            assert set(found.index) == set(expected), scope
            for metric, wanted in expected.items():
                np.testing.assert_allclose(
                    found[metric], wanted, 1e-9, 1e-12, err_msg=f"{scope} {metric}"
                )


def direction_of(
    theta: np.ndarray, later: np.ndarray, first: np.ndarray, spacing: int
) -> dict[str, float]:
    delta, unit = later - theta, theta / np.linalg.norm(theta)
    along = delta @ unit
    budget = later @ later - theta @ theta
    tangential = np.sum((delta - along * unit) ** 2)
    values = {
        "step_norm": np.linalg.norm(delta),
        "relative_step": np.linalg.norm(delta) / np.linalg.norm(theta),
        "radial": budget - tangential,
        "tangential": tangential,
    }
    cosine = theta @ later / np.linalg.norm(theta) / np.linalg.norm(later)
    to_first = first @ later / np.linalg.norm(first) / np.linalg.norm(later)
    return {
        **values,
        **{f"{name}_per_step": number / spacing for name, number in values.items()},
        "cosine": cosine,
        "cosine_distance": 1 - cosine,
        "cosine_to_first": to_first,
        "alignment": along / np.linalg.norm(delta),
    }


def exponents_of(theta: np.ndarray, later: np.ndarray, ratio: float) -> dict[str, float]:
    before, after = theta @ theta, later @ later
    unit = theta / np.linalg.norm(theta)
    across = later - theta - ((later - theta) @ unit) * unit
    tangential = across @ across
    mean = (after - before) / np.log(after / before)
    return {
        "exponent": np.log(after / before) / 2 / np.log(ratio),
        "exponent_radial": (after - before - tangential) / (2 * mean * np.log(ratio)),
        "exponent_tangential": tangential / (2 * mean * np.log(ratio)),
    }


def test_exponent_is_the_sum_of_its_parts(table: pd.DataFrame) -> None:
    direction = table[table.measure == "direction"]
    rows = direction[direction.metric.str.startswith("exponent")]
    assert set(rows.step) == {30}, "there is none where t = 0"
    wide = rows.pivot(index="scope", columns="metric", values="value")
    assert len(wide) == direction.scope.nunique()
    parts = wide.exponent_radial + wide.exponent_tangential
    np.testing.assert_allclose(parts, wide.exponent, rtol=0, atol=1e-15)


@pytest.mark.parametrize("change", [0.0, 1e-13, -1e-10, 1e-9, 1e-3, -0.5, 30.0])
def test_exponent_keeps_its_digits_where_the_norm_hardly_changes(change: float) -> None:
    """N = 4 grows by 4·change, half of it along θ, and the exponent is ln(1 + change)/2."""
    sums = {
        "previous_squares": 4.0,
        "sum_squares": 4 * (1 + change),
        "first_squares": 4.0,
        "first_now": 4.0,
        "previous_delta": 4 * (np.sqrt(1 + change / 2) - 1),
        "delta_squares": 4 * (np.sqrt(1 + change / 2) - 1) ** 2 + 2 * change,
    }
    columns = {name: np.array([[number]]) for name, number in sums.items()}
    none = np.array([[np.nan]])
    found = DIRECTION.metrics(columns, ArrayInfo(size=none, rank=none, fan_in=none))
    whole = np.log1p(change) / 2
    np.testing.assert_allclose(found["exponent"], whole, rtol=1e-6, atol=1e-15)
    both = found["exponent_radial"] + found["exponent_tangential"]
    np.testing.assert_allclose(both, found["exponent"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_subnormal_numbers_count(tmp_path: Path, dtype: str) -> None:
    """XLA:CPU takes them as 0; alone, beside zeros, and where only they change."""
    tiny = np.finfo(np.float32).tiny if dtype != "float16" else np.float32(2**-14)
    generator = np.random.default_rng(0)
    some = (generator.integers(1, 100, size=(24, 16)) / 128 * tiny).astype(jnp.dtype(dtype))
    some[:4] = 0
    for step, factor in ((1, 1), (2, 2)):
        arrays = {"w.weight": some * jnp.dtype(dtype).type(factor)}
        arrays["v.weight"] = np.concatenate([arrays["w.weight"], np.ones_like(some)])
        (tmp_path / f"t/step_{step}").mkdir(parents=True)
        save_file(arrays, tmp_path / f"t/step_{step}/model.safetensors")
    table = measured(tmp_path / "t", tmp_path / "r")
    exact = some.astype(np.float64)
    assert 0 < np.abs(exact).max() < tiny
    for step, factor in ((1, 1), (2, 2)):
        norm = np.linalg.norm(exact / tiny) * tiny * factor
        np.testing.assert_allclose(value(table, step, "l2", "w/weight"), norm, rtol=1e-12)
        assert value(table, step, "max_abs", "w/weight") == exact.max() * factor
        norm = np.hypot(384**0.5, norm)
        np.testing.assert_allclose(value(table, step, "l2", "v/weight"), norm, rtol=1e-12)
    moved = np.linalg.norm(exact / tiny) * tiny
    np.testing.assert_allclose(value(table, 2, "step_norm", "w/weight"), moved, rtol=1e-7)
    np.testing.assert_allclose(value(table, 2, "step_norm", "v/weight"), moved, rtol=1e-7)
    np.testing.assert_allclose(value(table, 2, "alignment", "w/weight"), 1, rtol=1e-7)
    np.testing.assert_allclose(value(table, 2, "exponent", "w/weight"), 1, rtol=1e-7)


def test_one_minus_cosine_keeps_its_digits_where_steps_are_tiny(tmp_path: Path) -> None:
    fixed = t5_arrays(0)

    def nudge(step: int, _: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        moved = fixed["shared.weight"] * np.float32(1 + step * 2**-20)
        moved[0] += np.float32(step * 2**-18)
        return {**fixed, "shared.weight": moved}

    folder = write_trajectory(tmp_path / "t", (0, 1), nudge)
    found = value(measured(folder, tmp_path / "r"), 1, "cosine_distance", "embedding")
    before, after = (canonical(folder, s)["token_embedder/embedding"].ravel() for s in (0, 1))
    unit = before / np.linalg.norm(before)
    # sin² of the angle, from the component of θ′ orthogonal to θ: no cancellation.
    sine = np.linalg.norm(after - (after @ unit) * unit) / np.linalg.norm(after)
    exact = sine**2 / (1 + np.sqrt(1 - sine**2))
    assert 0 < exact < 1e-9
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_blocks_and_lanes_give_what_whole_arrays_give(
    folder: Path, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", 600)
    blocked = measured(folder, tmp_path / "r")
    pd.testing.assert_frame_equal(blocked, table, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_share_the_arrays_and_give_the_same_table(
    folder: Path,
    table: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
) -> None:
    """Eight simulated devices take an accelerator's way: buffers are sent, two are under way."""
    used = set()
    put = jax.device_put

    def noted(x: np.ndarray, device: jax.Device) -> jax.Array:
        used.add(device)
        return put(x, device)

    monkeypatch.setattr(run_weights, "_platform", lambda: platform)
    monkeypatch.setattr(run_weights.jax, "device_put", noted)
    found = measured(folder, tmp_path / "r")
    assert len(used) > 1
    close = {"gpu": 1e-12, "tpu": 1e-6}[platform]
    pd.testing.assert_frame_equal(found, table, rtol=close, atol=close)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_cover_an_array_once(axis: int) -> None:
    counted = np.zeros((37, 11), int)
    for box in stream.blocks(counted.shape, 4, axis, limit=4 * 11 * 5):
        counted[box] += 1
        assert np.prod([part.stop - part.start for part in box]) * 4 <= 4 * 11 * 5
    assert (counted == 1).all()


def test_shards_write_one_run_together(folder: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    trajectory, out = saturation.open_trajectory(folder), str(tmp_path / "r")
    for index in (2, 0):
        saturation.measure(trajectory, BOTH, out, Shard(index, 3))
    with pytest.raises(ResultsError, match=r"is incomplete: norms has .* missing are .*--partial"):
        saturation.load_results(out)
    assert 0 < len(saturation.load_results(out, partial=True)) < len(table)
    saturation.measure(trajectory, BOTH, out, Shard(1, 3))
    pd.testing.assert_frame_equal(saturation.load_results(out), table)


def test_shards_split_the_work_and_balance_it() -> None:
    nbytes = {f"a{i}": 120 * i for i in range(1, 40)}
    parts = [assigned(nbytes, Shard(index, 4)) for index in range(4)]
    assert sorted(itertools.chain(*parts)) == sorted(nbytes)
    loads = [sum(nbytes[key] for key in part) for part in parts]
    assert max(loads) - min(loads) <= 120 * 39
    assert assigned(nbytes, Shard(50, 60)) == []


@pytest.mark.parametrize(("steps", "most"), [(4, 8), (10**6, 32)])
def test_bundles_hold_each_array_once_and_none_more_than_its_share(steps: int, most: int) -> None:
    arrays = {f"a{i}": Parameter((1 + i % 7, 3), np.dtype("float32")) for i in range(300)}
    arrays["large"] = Parameter((1000, 3), np.dtype("float32"))
    bundled = bundles(arrays, steps)
    assert list(itertools.chain(*bundled.values())) == list(arrays)
    assert all(key == names[0] for key, names in bundled.items())
    shared = sum(arrays[name].nbytes for name in arrays if name != "large")
    for names in bundled.values():
        assert len(names) == 1 or sum(arrays[n].nbytes for n in names) <= shared // most
    assert most < len(bundled) < 1.25 * most + 2, "neighbours share"


def test_parts_of_short_trajectories_hold_more_arrays() -> None:
    arrays = {f"a{i}": Parameter((2**20,), np.dtype("float32")) for i in range(1000)}
    for steps, expected in ((1, 125), (4, 32), (100, 8)):  # an 8th, 512 MB over the steps, 32 MB
        first = next(iter(bundles(arrays, steps).values()))
        assert len(first) == expected


@pytest.mark.parametrize("seed", range(5))
def test_ranges_of_steps_cover_what_is_missing_once(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positions = sorted(generator.choice(300, 200, replace=False).tolist())
    for nbytes in (1, plan.PART_BYTES // 20, plan.PART_BYTES):
        ranges = plan.part_ranges(positions, nbytes)
        assert list(itertools.chain(*(range(*bounds) for bounds in ranges))) == positions
        longest = max(plan.PART_BYTES // nbytes, plan.MINIMUM_PART_STEPS)
        assert max(stop - start for start, stop in ranges) <= longest


def test_short_parts_give_the_same_table(
    folder: Path, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "MINIMUM_PART_STEPS", 1)
    pd.testing.assert_frame_equal(measured(folder, tmp_path / "r"), table)
    described = json.loads((tmp_path / "r" / "run.json").read_text())
    parts = list((tmp_path / "r").glob("parts/norms/*.parquet"))
    assert len(parts) == 3 * len(described["bundles"])


def test_a_stopped_run_resumes_and_reuses(
    folder: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    trajectory, out = saturation.open_trajectory(folder), str(tmp_path / "r")
    stop = threading.Event()

    class StopSoon(run.Progress):
        def advance(self, amount: float, note: str = "") -> None:
            stop.set()

    with pytest.raises(Stopped, match="run the same command again"):
        saturation.measure(trajectory, BOTH, out, progress=StopSoon("", "B", quiet=True), stop=stop)
    present = open_run(out).status().present["norms"]
    assert present > 0, "the arrays at hand are finished and written"
    outcome = saturation.measure(trajectory, BOTH, out)
    bundled = json.loads((tmp_path / "r" / "run.json").read_text())["bundles"]
    assert 0 < outcome.reused < 2 * len(bundled)
    assert outcome.computed + outcome.reused == 2 * len(bundled)
    pd.testing.assert_frame_equal(saturation.load_results(out), table)
    assert saturation.measure(trajectory, BOTH, out).computed == 0


def test_measures_and_steps_can_be_added_to_a_run(
    folder: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    measured(folder, tmp_path / "r", ["norms"], steps=[0, 10])
    measured(folder, tmp_path / "r", ["direction"], steps=[0, 10])
    measured(folder, tmp_path / "r", BOTH)
    grown = saturation.load_results(tmp_path / "r")
    pd.testing.assert_frame_equal(grown, table)
    with pytest.raises(ResultsError, match=r"measured at steps 0 … 30 .* do not continue"):
        measured(folder, tmp_path / "r", steps=[10, 30])


def test_a_run_of_another_trajectory_is_refused(folder: Path, tmp_path: Path) -> None:
    measured(folder, tmp_path / "r")
    other = write_trajectory(
        tmp_path / "other", change=lambda _, arrays: {n: 2 * a for n, a in arrays.items()}
    )
    with pytest.raises(
        ResultsError, match=r"holds the run of another trajectory, .* Choose another --out"
    ):
        measured(other, tmp_path / "r")
    assert not saturation.load_results(tmp_path / "r").empty


def test_checkpoints_with_different_arrays_are_refused_or_reduced(tmp_path: Path) -> None:
    def differ(step: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if step == 10:
            del arrays["lm_head.weight"]
            arrays["shared.weight"] = arrays["shared.weight"][:-1]
        return arrays

    folder = write_trajectory(tmp_path / "t", change=differ)
    with pytest.raises(
        MeasureError,
        match=r"Checkpoints 0 and 10 differ: only in 0: decoder/logits_dense/kernel; "
        r"only in 10: none; "
        r"of another shape: token_embedder/embedding .*--common-arrays",
    ):
        measured(folder, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    table = measured(folder, tmp_path / "r", common_arrays=True)
    assert "decoder/logits_dense/kernel" not in set(table.scope)
    assert "token_embedder/embedding" not in set(table.scope)
    assert value(table, 10, "l2", "encoder/layers_0") > 0


def test_a_nan_is_counted_named_and_not_averaged_away(tmp_path: Path) -> None:
    def poison(step: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if step == 10:
            arrays["shared.weight"] = arrays["shared.weight"].copy()
            arrays["shared.weight"][3, :2] = [np.nan, -np.inf]
        return arrays

    folder = write_trajectory(tmp_path / "t", change=poison)
    outcome = saturation.measure(saturation.open_trajectory(folder), BOTH, str(tmp_path / "r"))
    assert outcome.nonfinite == ((10, "token_embedder/embedding", 2),)
    with pytest.raises(
        MeasureError, match=r"Checkpoint 10 has 2 NaN or infinite values in token_embedder"
    ):
        outcome.refuse_nonfinite("r")
    table = saturation.load_results(tmp_path / "r")
    assert value(table, 10, "nonfinite", "total") == 2
    assert not np.isfinite(value(table, 10, "l2", "total"))
    assert np.isfinite(value(table, 10, "l2", "blocks"))
    assert np.isfinite(value(table, 30, "l2", "total"))


def test_unknown_measures_and_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="no measure 'norm'; there are: loss, norms, direction"):
        measured(folder, tmp_path / "r", ["norm"])
    for text in ("8/8", "-1/2", "1", "a/b"):
        with pytest.raises(MeasureError, match="--shard takes I/N"):
            Shard.parse(text)


def test_an_unwritable_place_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match=r"Cannot (read|write) .*run.json: Not a directory"):
        measured(folder, tmp_path / "file")


def test_a_full_disk_leaves_earlier_parts_and_nothing_half_written(
    folder: Path, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def fsync(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 5:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fsync)
        with pytest.raises(
            ResultsError, match=r"No space left on device. What was written before is intact"
        ):
            measured(folder, tmp_path / "r")
    files = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".tmp"]
    assert len(files) >= 5
    pd.testing.assert_frame_equal(measured(folder, tmp_path / "r"), table)


def test_a_damaged_part_is_named_and_can_be_recomputed(
    folder: Path, table: pd.DataFrame, tmp_path: Path
) -> None:
    measured(folder, tmp_path / "r")
    part = next((tmp_path / "r" / "parts" / "norms").glob("token_embedder*"))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(ResultsError, match=r"embedding\.0-30\.parquet is not the part it"):
        saturation.load_results(tmp_path / "r")
    part.unlink()
    pd.testing.assert_frame_equal(measured(folder, tmp_path / "r"), table)


def test_no_run_and_no_description_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"holds no run: there is no run\.json"):
        saturation.load_results(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ResultsError, match=r"run\.json is not the JSON that"):
        saturation.load_results(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ResultsError, match="it has no `measures`"):
        saturation.load_results(tmp_path)


def test_a_run_may_be_a_url(folder: Path, table: pd.DataFrame) -> None:
    url = "memory://runs/one"
    saturation.measure(saturation.open_trajectory(folder), BOTH, url)
    pd.testing.assert_frame_equal(saturation.load_results(url), table)
    assert saturation.measure(saturation.open_trajectory(folder), BOTH, url).computed == 0


def test_the_run_records_what_made_it(folder: Path, tmp_path: Path) -> None:
    measured(folder, tmp_path / "r")
    described = json.loads((tmp_path / "r" / "run.json").read_text())
    assert described["format"] == "huggingface"
    assert described["steps"] == [0, 10, 30]
    assert described["measures"] == BOTH
    assert described["environment"]["saturation"] == saturation.__version__
    assert described["environment"]["accumulation"] == "float64"
    assert set(described["identity"]) == {"0", "10", "30"}


def test_bfloat16_is_measured_at_its_own_values(tmp_path: Path) -> None:
    import ml_dtypes

    folder = write_trajectory(
        tmp_path / "t",
        change=lambda _, arrays: {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()},
    )
    table = measured(folder, tmp_path / "r")
    whole = np.concatenate([array.ravel() for array in canonical(folder, 30).values()])
    np.testing.assert_allclose(value(table, 30, "l2", "total"), np.linalg.norm(whole), 1e-12)


def test_a_chunk_larger_than_a_tile_is_summed_over_its_tiles(tmp_path: Path) -> None:
    """Three tiles and a half of one: what is there once, in the last, is not lost either."""
    length = 3 * tile(np.dtype(np.float32)) + 500_001
    name, wide = "token_embedder/embedding", {}
    array = np.zeros((1, length), np.float32)
    for step in (0, 1, 2):
        array = array + np.random.default_rng(step).standard_normal((1, length)).astype(np.float32)
        if step == 1:
            array[0, -1] = 40
        write_t5x(tmp_path / "t" / f"checkpoint_{step}", t5_parameters(layers=1) | {name: array})
        wide[step] = array.astype(np.float64)
    table = measured(tmp_path / "t", tmp_path / "run")
    for step, expected in wide.items():
        found = {metric: value(table, step, metric, name) for metric in ("l2", "max_abs")}
        assert found["l2"] == pytest.approx(np.linalg.norm(expected), rel=1e-12)
        assert found["max_abs"] == np.abs(expected).max()
    for step, before in ((1, 0), (2, 1)):
        moved = value(table, step, "step_norm", name)
        assert moved == pytest.approx(np.linalg.norm(wide[step] - wide[before]), rel=1e-12)
    cosine = np.vdot(wide[0], wide[2]) / np.linalg.norm(wide[0]) / np.linalg.norm(wide[2])
    found = value(table, 2, "cosine_to_first", name)
    assert found == pytest.approx(cosine, rel=1e-12)
