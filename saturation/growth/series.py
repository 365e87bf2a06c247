"""Norms through steps from a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping

from saturation.errors import ResultsError
from saturation.storage.local_files import read_regular


def read_csv_series(path: str, x: str, y: str) -> tuple[list[float], list[float]]:
    """Return two columns of a CSV file as numbers.

    Raises:
      ResultsError: no such file, no such column, or a cell that is no number.
    """
    try:
        text = io.StringIO(read_regular(path).decode("utf-8-sig"), newline="")
        rows = list(csv.DictReader(text))
    except csv.Error as error:
        raise ResultsError(f"{path} is no CSV file: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ResultsError(f"{path} cannot be read: {reason}.") from error
    columns = list(rows[0]) if rows else []
    for column in (x, y):
        if column not in columns:
            raise ResultsError(
                f"{path} has no column {column!r}; it has: "
                f"{', '.join(map(str, columns)) or 'none'}."
            )
    return _numbers(path, rows, x), _numbers(path, rows, y)


def _numbers(path: str, rows: Iterable[Mapping[str, str]], column: str) -> list[float]:
    values = []
    for line, row in enumerate(rows, start=2):
        try:
            values.append(float(row[column]))
        except (TypeError, ValueError) as error:
            raise ResultsError(
                f"{path}, line {line}: {column} is {_shortened(row[column])}, and a number is "
                "needed."
            ) from error
    return values


def _shortened(cell: str | None) -> str:
    return repr(cell) if cell is None or len(cell) <= 80 else f"{cell[:60]!r}…"
