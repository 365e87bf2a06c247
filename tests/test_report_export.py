"""Export: what comes back is what went in, whatever the format, and failures say what to do."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_tables import full, norms

from saturation.errors import ResultsError, SaturationError
from saturation.report.export import export

STEPS = (0, 10, 30)


@pytest.mark.parametrize(
    ("file_format", "read"),
    [("csv", partial(pd.read_csv, converters={"value": float})), ("parquet", pd.read_parquet)],
)
def test_tables_come_back_to_the_bit(tmp_path: Path, file_format: str, read):
    table = full(STEPS)
    path = tmp_path / "new" / f"table.{file_format}"
    export(table, file_format, path)
    export(table, file_format, path)
    back = read(path)
    assert list(back.columns) == list(table.columns)
    np.testing.assert_array_equal(back.value.to_numpy(), table.value.to_numpy())
    for column in ("step", "measure", "metric", "scope"):
        assert back[column].tolist() == table[column].tolist()
    assert back.previous_step.astype("Int64").equals(table.previous_step)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_tensorboard_scalars_come_back(tmp_path: Path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    from tensorboardX.proto.event_pb2 import Event

    table = norms(STEPS)
    folder = tmp_path / "logs"
    export(table, "tensorboard", folder)
    [file] = folder.iterdir()
    content, scalars = file.read_bytes(), {}
    while content:  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            scalars[value.tag, event.step] = value.simple_value
    assert len(scalars) == len(table)
    for row in table.itertuples():
        tag = f"{row.measure}/{row.metric}/{row.scope}"
        assert scalars[tag, row.step] == pytest.approx(row.value, rel=1e-6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"]
    with pytest.raises(ResultsError, match="logs already holds something"):
        export(table, "tensorboard", folder)


def test_tensorboard_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(SaturationError, match=r"pip install \"saturation-jax\[tensorboard\]\""):
        export(norms(STEPS), "tensorboard", tmp_path / "logs")
    assert not list(tmp_path.iterdir())


def test_unknown_format_lists_the_formats(tmp_path: Path):
    with pytest.raises(SaturationError, match="'xlsx'; the formats are csv, parquet, tensorboard"):
        export(norms(STEPS), "xlsx", tmp_path / "table.xlsx")


def test_a_place_that_cannot_be_written_keeps_what_was_there(tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ResultsError, match="choose another place for the export"):
        export(norms(STEPS), "csv", tmp_path / "file" / "table.csv")
    assert (tmp_path / "file").read_text() == "kept"


def test_names_that_a_spreadsheet_would_compute_are_guarded(tmp_path: Path):
    table = norms(STEPS)
    names = ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "encoder"]
    table = table.head(len(names)).assign(scope=names, value=-1.0)
    export(table, "csv", tmp_path / "guarded.csv")
    guarded = pd.read_csv(tmp_path / "guarded.csv")
    assert guarded.scope.tolist() == [f"'{name}" for name in names[:-1]] + ["encoder"]
    assert guarded.value.tolist() == [-1.0] * len(names), "numbers are numbers"
    export(table, "csv", tmp_path / "raw.csv", raw=True)
    assert pd.read_csv(tmp_path / "raw.csv").scope.tolist() == names
