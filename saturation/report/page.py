"""One self-contained, interactive HTML page for one run or several; it needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from saturation._package import __version__
from saturation.measures import (
    MEASURES,
    pictures_of,
    pictures_together,
    words_of,
)
from saturation.measures.words import MERRILL
from saturation.plots.notation import as_html
from saturation.plots.panels import Panel, Picture, Table
from saturation.plots.plotly_renderer import chart
from saturation.plots.series import Fits, RunTable, run_tables
from saturation.plots.tokens_text import say_tokens
from saturation.report.comparison import compared_panels
from saturation.report.glossary import glossary
from saturation.report.summary import warnings
from saturation.storage.write import write_text

Facts = Mapping[str, Mapping[str, Any]]  # {run: its run.json}
Eigenvalues = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Section:
    """What the page shows under one heading; panels with the names of their places."""

    heading: str
    reads: str
    panels: Sequence[tuple[str, Panel]]
    guide: Sequence[str] = ()
    tables: Sequence[Table] = ()
    note: str = ""


@dataclass(frozen=True)
class RunPart:
    """What the page shows of one run."""

    id: str
    name: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    sections: Sequence[Section]
    missing: str


class Charts(dict[str, go.Figure]):
    """The charts of a page by the names of their places, while it is put together."""

    def place(self, panels: Sequence[Panel]) -> list[tuple[str, Panel]]:
        """Keep the charts of panels that a page can hold, and name their places."""
        placed = []
        for panel in panels:
            if not panel.dense:
                name = f"chart-{len(self)}"
                self[name] = chart(panel)
                placed.append((name, panel))
        return placed

    def as_script(self) -> str:
        """Return them as JSON that no run's name can break out of a script element with."""
        read = {name: json.loads(figure.to_json() or "{}") for name, figure in self.items()}
        text = json.dumps(read, ensure_ascii=False, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e")


def write_page(
    tables: Mapping[str, pd.DataFrame],
    fits: Fits,
    path: str | Path,
    facts: Facts | None = None,
    eigenvalues: Eigenvalues | None = None,
) -> Path:
    """Write the interactive page of one run or several: facts, charts, laws and glossary.

    Args:
        tables: {run name: results table}.
        fits: {run: {scope: {law: fit}}}, as `fit_tables` gives them.
        path: the HTML file, about 5 MB, most of it plotly.js; replaced where it exists.
        facts: {run: what its run.json says}; a run without is shown without.
        eigenvalues: {run: those of `spectrum`}, as `results.load_vectors` gives them.

    Returns:
        The path.

    Raises:
        ResultsError: a table is not a results table, or the file cannot be written.
    """
    return write_text(path, build_page(tables, fits, facts or {}, eigenvalues), "page")


def build_page(
    tables: Mapping[str, pd.DataFrame],
    fits: Fits,
    facts: Facts,
    eigenvalues: Eigenvalues | None = None,
) -> str:
    """Return the page's HTML; arguments and errors as `write_page`."""
    runs = run_tables(tables, eigenvalues, fits)
    charts = Charts()
    together = list(_together(runs, charts))
    parts = [_run_part(n, run, facts.get(run.name, {}), charts) for n, run in enumerate(runs)]
    folder = resources.files("saturation.report")
    return page_template().render(
        title="What pretraining did",
        lead=f"{len(runs)} measured run{'s' if len(runs) > 1 else ''} of checkpoints. Point at a "
        "line for its numbers, click a name in a legend to hide it, drag to zoom, double-click to "
        "zoom out.",
        version=__version__,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        together=together,
        runs=parts,
        glossary=glossary(),
        merrill=MERRILL,
        charts_json=charts.as_script(),
    )


def page_template() -> jinja2.Template:
    """Return the page's template, which escapes whatever is put into it."""
    text = (resources.files("saturation.report") / "page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["notation"] = lambda said: markupsafe.Markup(as_html(said))
    return environment.from_string(text)


def _together(runs: Sequence[RunTable], charts: Charts) -> Iterator[Section]:
    """Yield what is shown of several runs over each other."""
    if len(runs) < 2:
        return
    panels = charts.place([*compared_panels(runs)])
    if panels:
        yield Section("Compared", "One number of each measure, a line a run.", panels)
    for name in MEASURES:
        for picture in pictures_together(name, runs):
            yield _section(picture, charts)


def _section(picture: Picture, charts: Charts, taken_on: str = "") -> Section:
    note = f"{picture.note} {taken_on * picture.on_tokens}".strip()
    return Section(picture.heading, picture.reads, charts.place(picture.panels), (),
                   picture.tables, note)  # fmt: skip


def _run_part(number: int, run: RunTable, facts: Mapping[str, Any], charts: Charts) -> RunPart:
    """Return everything about one run."""
    sections, shown = [], []
    for name in MEASURES:
        found = list(pictures_of(name, run))
        shown += [name] if found else []
        placed = [_section(picture, charts, run.taken_on) for picture in found]
        if placed:
            words = words_of(name)
            tables = (*words.tables(run), *placed[0].tables)
            placed[0] = replace(placed[0], guide=words.guide(run), tables=tables)
        sections += placed
    missing = _not_shown(run, shown, facts)
    return RunPart(f"run-{number}", run.name, list(_facts(facts)), warnings(run), sections, missing)


def _facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was measured, as far as run.json says it."""
    steps, arrays = facts.get("steps"), facts.get("arrays")
    environment = facts.get("environment")
    shown = {"Trajectory": facts.get("trajectory"), "Format": facts.get("format")}
    if isinstance(steps, Sequence) and steps:
        span = f"from step {steps[0]:,} to {steps[-1]:,}"
        shown["Checkpoints"] = (
            f"{len(steps)}, {span}" if len(steps) > 1 else f"1, step {steps[0]:,}"
        )
    if isinstance(arrays, Mapping) and arrays:
        size = sum(math.prod(array.get("shape", ())) for array in arrays.values())
        shown["Parameters"] = f"{size:,} in {len(arrays)} arrays"
    if isinstance(facts.get("measures"), Sequence):
        shown["Measures"] = ", ".join(map(str, facts["measures"]))
    shown["Activations"] = say_tokens(facts.get("activations"))
    if isinstance(environment, Mapping):
        shown["Measured with"] = ", ".join(f"{name} {said}" for name, said in environment.items())
    return ((name, str(said)) for name, said in shown.items() if said)


def _not_shown(run: RunTable, shown: Sequence[str], facts: Mapping[str, Any]) -> str:
    """Return which measures the page lacks, and why: not measured, or no number to draw."""
    measured = {*run.measures, *facts.get("measures", ())}
    absent = [name for name in MEASURES if name not in shown]
    said = [
        f"{name} was measured and is not shown: "
        + (
            "it compares checkpoints, and this run has one."
            if getattr(MEASURES[name], "compares_steps", False) and len(run.steps) < 2
            else "the table holds no finite number of it."
        )
        for name in absent
        if name in measured
    ]
    others = ",".join(name for name in absent if name not in measured)
    if others:
        said.append(
            f"Not measured: {others.replace(',', ', ')}; `saturation measure TRAJECTORY --measures "
            f"{others} --out RUN` adds what you need to the same run."
        )
    return " ".join(said)
