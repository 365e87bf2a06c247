"""Print the table of index.md from what `saturation study NAME --out FOLDER` wrote.

python docs/studies/table.py FOLDER…
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from saturation.studies import find_study
from saturation.studies.base import Row
from saturation.studies.output import verdict


def markdown(folders: Iterable[str]) -> str:
    """Return a row a study."""
    lines = ["| study | paper | seeds | verdict |", "|---|---|---|---|"]
    for folder in folders:
        table = pd.read_parquet(Path(folder) / "table.parquet")
        study = find_study(table["study"].iloc[0])
        rows = [Row(**row) for row in table.drop(columns="study").to_dict("records")]
        seeds = max(row.seeds for row in rows)
        lines.append(f"| `{study.name}` | {study.paper} | {seeds} | {verdict(rows)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(sys.argv[1:]))
