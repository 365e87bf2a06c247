"""What a study writes: tables, pictures, a text and a page."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
from plotly.offline import get_plotlyjs

from saturation._package import __version__
from saturation.measures.words import Term
from saturation.plots.matplotlib_renderer import draw, height
from saturation.plots.matplotlib_style import RC, new_figure, save_figure
from saturation.plots.panels import Picture, Table
from saturation.report.export import export
from saturation.report.page import Charts, RunPart, Section, page_template
from saturation.storage.write import write_text
from saturation.studies.base import Row, StudyResult

COLUMNS = {  # of claims.csv and table.parquet, beside the study's name
    "kind": "a claim of the paper, or a control, in which what the claim needs is absent",
    "prediction": "what is predicted, with its unit",
    "setting": "where it is measured",
    "predicted": "the number, where one is predicted",
    "measured": "the mean over the seeds",
    "spread": "the standard deviation over the seeds (n − 1); nan of one seed",
    "seeds": "how many",
    "agrees_if": "the bounds, ends included, fixed before the measurement",
    "agrees": "whether the mean lies within them; of a control, whether it misses them, as it must",
    "claimed": "by the paper; no or conditional where it is not, or was found false here",
}


def write_study(result: StudyResult, out: str | Path) -> list[Path]:
    """Write claims.csv, table.parquet, each picture as PNG and PDF, summary.txt and page.html.

    Returns:
        The paths written.

    Raises:
        ResultsError: the folder cannot be written.
    """
    folder = Path(out)
    rows = result.table.to_dict("records")
    export(result.table, "parquet", folder / "table.parquet")
    return [
        write_csv(folder / "claims.csv", rows),
        folder / "table.parquet",
        *write_pictures(result.pictures, folder, result.study.name),
        write_text(folder / "summary.txt", study_text(result), "summary"),
        write_text(folder / "page.html", _page(result), "page"),
    ]


def write_csv(path: Path, rows: Iterable[Mapping[Any, Any]]) -> Path:
    """Write rows under the names of their columns, numbers with six digits; return the path.

    Raises:
        ResultsError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(row)
        writer.writerow(map(_shown, row.values()))
    return write_text(path, text.getvalue(), "table")


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | complex) else str(value)


def write_pictures(pictures: Sequence[Picture], folder: Path, name: str) -> list[Path]:
    """Draw each picture as PNG and PDF, `name` in its title; return the paths.

    Raises:
        ResultsError: the folder cannot be written.
    """
    paths = []
    with matplotlib.rc_context(RC):
        for picture in pictures:
            figure = new_figure(height(picture))
            draw(figure, picture, name)
            paths += save_figure(figure, folder, picture.name)
    return paths


def study_text(result: StudyResult) -> str:
    """Return what was found as text: the verdict, two lines a row, and how to read them."""
    study = result.study
    lines = [study.title, study.paper, verdict(result.rows), ""]
    for row in result.rows:
        lines += [f"{_status(row):12}{row.prediction}", f"{'':12}{row.setting}: {_found(row)}"]
    return "\n".join([*lines, "", textwrap.fill(study.reads, 100)]) + "\n"


def verdict(rows: Sequence[Row]) -> str:
    """Return in a sentence how many claims agree and how many controls miss them."""
    claimed = [row for row in rows if row.claimed == "yes"]
    controls = [row for row in rows if row.kind == "control"]
    agreeing = [sum(row.agrees == "yes" for row in part) for part in (claimed, controls)]
    others = len(rows) - len(claimed) - len(controls)
    return (
        f"{agreeing[0]} of {len(claimed)} claims agree, {agreeing[1]} of {len(controls)} controls "
        f"miss as they must, {others} rows are not claimed or conditional."
    )


def _status(row: Row) -> str:
    if row.kind == "control":
        return "misses" if row.agrees == "yes" else "MUST MISS"
    if row.claimed == "yes":
        return "agrees" if row.agrees == "yes" else "DISAGREES"
    return "conditional" if row.claimed == "conditional" else "not claimed"


def _measured(row: Row) -> str:
    spread = f" ± {row.spread:.2g} ({row.seeds} seeds)" if row.seeds > 1 else ""
    return f"{row.measured:.4g}{spread}"


def _found(row: Row) -> str:
    bounds = f"; agrees if {row.agrees_if}" if row.agrees_if else ""
    predicted = f"predicted {row.predicted}, " if row.predicted else ""
    return f"{predicted}measured {_measured(row)}{bounds}"


def _page(result: StudyResult) -> str:
    study, first, charts = result.study, result.settings.seed, Charts()
    table = Table(
        ("verdict", "prediction", "setting", "predicted", "measured", "agrees if"),
        [(_status(r), r.prediction, r.setting, r.predicted, _measured(r), r.agrees_if)
         for r in result.rows],
    )  # fmt: skip
    sections = [Section("Claims and controls", study.reads, (), tables=[table])]
    sections += [
        Section(one.heading, one.reads, charts.place(one.panels), (), one.tables, one.note)
        for one in result.pictures
    ]
    seeds = f"{result.settings.seeds or study.seeds}, from {first} on"
    facts = [("Paper", study.paper), ("Seeds", seeds), ("Verdict", verdict(result.rows))]
    warnings = [f"{_status(r)}: {r.prediction}; {r.setting}; {_found(r)}" for r in result.failed]
    return page_template().render(
        title=study.title,
        lead="The claims of a paper beside a small simulation, and controls that must miss them.",
        version=__version__,
        style=(resources.files("saturation.report") / "page.css").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        together=(),
        runs=[RunPart("study", study.name, facts, warnings, sections, "")],
        glossary=[Term(name, "", meaning, "ours") for name, meaning in COLUMNS.items()],
        merrill=study.paper,
        charts_json=charts.as_script(),
    )
