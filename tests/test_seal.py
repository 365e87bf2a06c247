"""Parts and `run.json` that are not what they stand for: named in one sentence, never read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_trajectory import write_trajectory
from typer.testing import CliRunner

from saturation import load_results, measure, open_trajectory
from saturation.cli.commands import app
from saturation.errors import ResultsError
from saturation.results.folder import RUN_FILE
from saturation.results.seal import seal_of, values_digest
from saturation.results.state import open_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A trajectory, its run, and the run of another one of the same shapes."""
    root = tmp_path_factory.mktemp("seal")
    drifted = lambda step, arrays: {name: 3 * array for name, array in arrays.items()}
    first = write_trajectory(root / "a", vocab=12)
    second = write_trajectory(root / "b", change=drifted, vocab=12)
    for trajectory, run in ((first, "run_a"), (second, "run_b")):
        measure(open_trajectory(trajectory), ["norms", "spectrum"], str(root / run))
    return first, root / "run_a", root / "run_b"


@pytest.fixture
def copied(runs, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[1], tmp_path / "run"))


def parts(run: Path, measured: str = "norms") -> list[Path]:
    return sorted((run / "parts" / measured).glob("*.parquet"))


def of_another_run(run: Path, other: Path) -> None:
    shutil.copy(other / parts(run)[0].relative_to(run), parts(run)[0])


def one_over_another(run: Path, other: Path) -> None:
    parts(run)[1].write_bytes(parts(run)[0].read_bytes())


def half_its_rows(run: Path, other: Path) -> None:
    table = pq.read_table(parts(run)[0])
    pq.write_table(table.slice(0, table.num_rows // 2), parts(run)[0])


def a_changed_value(run: Path, other: Path) -> None:
    table = pq.read_table(parts(run)[0])
    column = table.column_names.index("sum_squares")
    values = table["sum_squares"].to_numpy().copy()
    values[0] += 1
    changed = table.set_column(column, "sum_squares", [values])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), parts(run)[0])


def no_seal(run: Path, other: Path) -> None:
    pq.write_table(pq.read_table(parts(run)[0]).replace_schema_metadata({}), parts(run)[0])


def a_vector_of_another(run: Path, other: Path) -> None:
    one, two = parts(run, "spectrum")[:2]
    two.write_bytes(one.read_bytes())


FAULTS = (
    of_another_run, one_over_another, half_its_rows, a_changed_value, no_seal, a_vector_of_another
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_part_that_is_not_what_it_stands_for_is_named(
    fault: Callable, copied: Path, runs, tmp_path: Path
) -> None:
    load_results(copied)
    fault(copied, runs[2])
    name = "spectrum" if fault is a_vector_of_another else "norms"
    said = rf"parts/{name}/.*\.parquet is not the part it stands for"
    for read in (
        lambda: load_results(copied),
        lambda: load_results(copied, partial=True),
        lambda: open_run(copied).status(verified=True),
        lambda: measure(open_trajectory(runs[0]), ["norms", "spectrum"], str(copied)),
    ):
        with pytest.raises(ResultsError, match=said):
            read()
    to_csv = ["--format", "csv", "--out", str(tmp_path / "x.csv")]
    for command in (["status", str(copied)], ["export", str(copied), *to_csv]):
        assert CliRunner().invoke(app, command).exit_code != 0
    assert not (tmp_path / "x.csv").exists()


def test_what_the_sentence_says_can_be_done(copied: Path, runs) -> None:
    of_another_run(copied, runs[2])
    parts(copied)[0].unlink()
    outcome = measure(open_trajectory(runs[0]), ["norms", "spectrum"], str(copied))
    assert outcome.computed == 1
    assert load_results(copied).equals(load_results(runs[1]))


def test_no_flipped_bit_changes_a_table(copied: Path, runs) -> None:
    """Each of some hundred bits, everywhere in a part: an error, or the very same numbers."""
    expected, part = load_results(runs[1]), parts(copied)[0]
    whole, said = part.read_bytes(), set()
    for place in np.linspace(0, 8 * len(whole) - 1, 150).astype(int):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        part.write_bytes(flipped)
        try:
            found = load_results(copied)
        except ResultsError as error:
            said.add(part.name in str(error))
        else:
            said.add(found.equals(expected))
    assert said == {True}


@pytest.mark.parametrize("key", ["steps", "arrays", "bundles", "measures", "versions", "identity"])
@pytest.mark.parametrize("value", [None, "x", 3, [], {}, [3, 2], [[1]], {"a": 3}])
@pytest.mark.parametrize("sealed", [False, True])
def test_an_edited_run_file_is_one_sentence(key: str, value, sealed: bool, copied: Path) -> None:
    """Also where whoever edited it made a new seal, for the kinds of its values."""
    described = json.loads((copied / RUN_FILE).read_text())
    if key in ("versions", "identity") and sealed and isinstance(value, dict):
        return
    edited = described | {key: value}
    if sealed:
        edited["seal"] = seal_of(edited)
    (copied / RUN_FILE).write_text(json.dumps(edited))
    with pytest.raises(ResultsError):
        load_results(copied)


def test_a_shape_that_was_edited_is_noticed(copied: Path) -> None:
    text = (copied / RUN_FILE).read_text()
    described = json.loads(text)
    next(iter(described["arrays"].values()))["fan_in"] = 77
    (copied / RUN_FILE).write_text(json.dumps(described))
    with pytest.raises(ResultsError, match="was edited or damaged"):
        open_run(copied)
    (copied / RUN_FILE).write_text(json.dumps(json.loads(text) | {"layout": 3}))
    with pytest.raises(
        ResultsError, match="is of layout '3', and this version reads layouts up to"
    ):
        open_run(copied)


def test_digests_tell_values_names_and_lengths_apart() -> None:
    columns = {"a": np.array([1.0, -0.0]), "s": ["x", "y"], "v": [np.ones(2), np.ones(3)]}
    others = (
        columns | {"a": np.array([1.0, 0.0])},
        columns | {"s": ["x", "z"]},
        columns | {"v": [np.ones(3), np.ones(2)]},
        {"b" if name == "a" else name: column for name, column in columns.items()},
    )
    digests = {values_digest(one) for one in (columns, *others)}
    assert len(digests) == 5
    assert values_digest(columns | {"s": np.array(["x", "y"], object)}) == values_digest(columns)
