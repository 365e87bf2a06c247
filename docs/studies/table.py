"""Print the tables of these pages from what `saturation study NAME --out FOLDER` wrote.

python docs/studies/table.py FOLDER…         the index: a row a study
python docs/studies/table.py --rows FOLDER   a page: a row a claim or control
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from saturation.studies import find_study
from saturation.studies.base import Row
from saturation.studies.output import verdict


def read(folder: str) -> tuple[str, list[Row]]:
    """Return the name of the study in a folder, and its rows."""
    table = pd.read_parquet(Path(folder) / "table.parquet")
    rows = table.drop(columns="study").to_dict("records")
    return str(table["study"].iloc[0]), [Row(**row) for row in rows]


def markdown(folders: Iterable[str]) -> str:
    """Return a row a study."""
    lines = ["| study | paper | seeds | verdict |", "|---|---|---|---|"]
    for name, rows in map(read, folders):
        seeds = max(row.seeds for row in rows)
        lines.append(f"| `{name}` | {find_study(name).paper} | {seeds} | {verdict(rows)} |")
    return "\n".join(lines)


def rows_markdown(folder: str) -> str:
    """Return a row a claim or control."""
    lines = ["| what, where | predicted | measured | agrees if | agrees |", "|---|---|---|---|---|"]
    for row in read(folder)[1]:
        spread = "" if math.isnan(row.spread) else f" ± {row.spread:.2g}"
        kind = {"control": "control: "}.get(row.kind, "")
        claimed = {"no": " (not claimed)", "conditional": " (conditional)"}.get(row.claimed, "")
        verdict_of = row.agrees or "–"
        if row.kind == "control":
            verdict_of, claimed = ("misses, as it must" if row.agrees == "yes" else "**no**"), ""
        cells = (
            f"{kind}{row.prediction}; {row.setting}",
            row.predicted or "–",
            f"{row.measured:.4g}{spread}",
            row.agrees_if or "–",
            f"{verdict_of}{claimed}",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    asked = sys.argv[1:]
    print(rows_markdown(asked[1]) if asked[0] == "--rows" else markdown(asked))
