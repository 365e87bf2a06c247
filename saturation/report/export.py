"""The results table in the files of other tools: CSV, Parquet, TensorBoard."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from saturation.errors import ResultsError, SaturationError
from saturation.storage.local_files import refuse_impossible
from saturation.storage.write import refuse_url, write_whole

# A spreadsheet takes a text that begins so for a formula, and names come from files of others.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export(table: pd.DataFrame, file_format: str, path: str | Path, raw: bool = False) -> None:
    """Write a results table for another tool, whole or not at all.

    Args:
        table: columns as `saturation.load_results` gives them.
        file_format: "csv" (floats to the last bit), "parquet", or "tensorboard", a folder of
            scalars tagged `measure/metric/scope`.
        path: the file, replaced where it exists; for tensorboard the folder, which must be absent
            or empty, since event files of two exports would be drawn over each other.
        raw: leave texts of a CSV as they are; else one that begins with = + - @, a tab or a
            carriage return, which a spreadsheet would take for a formula, gets a ' before it.

    Raises:
        SaturationError: an unknown format, or tensorboardX is not installed.
        ResultsError: the path cannot be written, or the folder already holds something.
    """
    if file_format not in WRITERS:
        raise SaturationError(
            f"There is no export format {file_format!r}; the formats are {', '.join(WRITERS)}."
        )
    refuse_url(path, "export")
    try:
        refuse_impossible(path)
        guarded = file_format == "csv" and not raw
        WRITERS[file_format](_without_formulas(table) if guarded else table, Path(path))
    except OSError as error:
        raise ResultsError(
            f"Cannot write {path}: {error.strerror or error}. "
            "Make room or choose another place for the export."
        ) from error


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    texts = table.select_dtypes(exclude="number")
    return table.assign(
        **{
            str(name): [f"'{x}" if str(x).startswith(_FORMULA) else x for x in texts[name]]
            for name in texts
        }
    )


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, lambda file: table.to_csv(file, index=False, mode="wb"))


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, lambda file: table.to_parquet(file, index=False))


def _write_tensorboard(table: pd.DataFrame, path: Path) -> None:
    """Write event files into a neighbour of the folder, then give it the folder's name."""
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SaturationError(
            "Writing TensorBoard files needs tensorboardX, which is not installed; "
            'run `pip install "saturation-jax[tensorboard]"`, or export csv or parquet.'
        ) from error
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ResultsError(
            f"{path} already holds something; TensorBoard would draw both exports over each "
            "other. Remove it or choose another folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with SummaryWriter(str(temporary)) as writer:
            columns = (table[name] for name in ("measure", "metric", "scope", "value", "step"))
            for measure, metric, scope, value, step in zip(*columns, strict=True):
                writer.add_scalar(f"{measure}/{metric}/{scope}", value, step)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "tensorboard": _write_tensorboard,
}
