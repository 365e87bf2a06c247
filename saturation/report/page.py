"""One self-contained, interactive HTML page for one run or several; it needs no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import saturation
from saturation.measures import MEASURES, needs_tokens
from saturation.report.chart_style import Panel, Section
from saturation.report.head_charts import heads_section
from saturation.report.homogeneity_charts import homogeneity_section
from saturation.report.motion_charts import direction_section, steps_section
from saturation.report.norm_charts import growth_panels, layer_panels
from saturation.report.page_parts import facts_list, glossary, law_tables, markup
from saturation.report.page_template import PAGE, STYLE
from saturation.report.runs_charts import runs_panels
from saturation.report.saturation_charts import saturation_section
from saturation.report.scan_charts import scan_section
from saturation.report.series import Fits, RunTable, run_tables
from saturation.report.smoothing_charts import smoothing_section
from saturation.report.spectrum_charts import spectrum_section
from saturation.report.summary import reading_guide, warnings
from saturation.runfolder import write_text

Facts = Mapping[str, Mapping[str, Any]]  # {run: its run.json}
Eigenvalues = Mapping[str, pd.DataFrame]

SECTIONS: dict[str, tuple[Callable[[RunTable], Section | None], ...]] = {  # by measure
    "direction": (direction_section, steps_section),
    "saturation": (saturation_section,),
    "heads": (heads_section,),
    "homogeneity": (homogeneity_section,),
    "spectrum": (spectrum_section,),
    "smoothing": (smoothing_section,),
    "scan": (scan_section,),
}


@dataclass
class Page:
    """The page while it is put together: pieces of HTML, and the charts they have room for."""

    sections: list[str] = field(default_factory=list)
    charts: dict[str, go.Figure] = field(default_factory=dict)

    def place(self, panels: Sequence[Panel]) -> str:
        """Keep the charts and return the HTML that holds their places; nothing for none."""
        places = "".join(map(self._place, panels))
        return f'<div class="charts">{places}</div>' if places else ""

    def _place(self, panel: Panel) -> str:
        name = f"chart-{len(self.charts)}"
        self.charts[name] = panel.chart
        return (
            f"<figure{' class=wide' if panel.wide else ''}><figcaption><b>{markup(panel.title)}</b>"
            f'{markup(panel.says)}</figcaption><div id="{name}"></div></figure>'
        )

    def section(self, section: Section) -> str:
        """Return the HTML of one measure of a run."""
        table = escape("\n".join(section.table))
        pieces = (
            f"<h3>{escape(section.heading)}</h3>",
            _note(section.reads),
            f'<div class="scroll"><pre>{table}</pre></div>' if table else "",
            self.place(section.panels),
            _note(section.note),
        )
        return "\n".join(filter(None, pieces))


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
    runs = run_tables(tables, eigenvalues)
    page = Page()
    together = page.place([*runs_panels(runs)])
    page.sections.append(f"<h2>All runs</h2>{together}" if together else "")
    for number, run in enumerate(runs):
        page.sections.append(_run_section(page, run, number, fits, facts.get(run.name, {})))
    page.sections.append(glossary())
    links = [(f"run-{number}", run.name) for number, run in enumerate(runs)]
    return PAGE.format(
        title="What pretraining did",
        lead=f"{len(runs)} measured run{'s' if len(runs) > 1 else ''} of checkpoints. Point at a "
        "line for its numbers, click a name in a legend to hide it, drag to zoom, double-click to "
        "zoom out.",
        version=escape(saturation.__version__),
        style=STYLE,
        plotly=get_plotlyjs(),
        navigation="".join(
            f'<a href="#{target}">{escape(name)}</a>'
            for target, name in [*links, ("glossary", "Glossary")]
        ),
        sections="\n".join(page.sections),
        charts=_as_script(page.charts),
    )


def _as_script(figures: Mapping[str, go.Figure]) -> str:
    """Return the charts as JSON that no run's name can break out of a script element with."""
    read = {name: json.loads(figure.to_json() or "{}") for name, figure in figures.items()}
    text = json.dumps(read, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def _run_section(
    page: Page, run: RunTable, number: int, fits: Fits, facts: Mapping[str, Any]
) -> str:
    """Return everything about one run."""
    laws = fits.get(run.name, {})
    parts = [f'<h2 id="run-{number}">{escape(run.name)}</h2>', facts_list(facts)]
    parts += [f'<p class="warning">{escape(text)}</p>' for text in warnings(run, laws)]
    shown = []
    if run.scopes("l2"):
        shown.append("norms")
        guide = reading_guide(run, laws.get(run.scopes("l2")[0], {}))
        items = "".join(f"<li>{markup(sentence)}</li>" for sentence in guide or ())
        parts += ["<h3>Growth</h3>", f'<ol class="guide">{items}</ol>']
        parts += [page.place([*growth_panels(run, fits)]), law_tables(laws)]
        layers = page.place([*layer_panels(run)])
        parts.append(f"<h3>Layers</h3>{layers}" if layers else "")
    for measure, sections in SECTIONS.items():
        found = [section for build in sections if (section := build(run)) is not None]
        shown += [measure] if found else []
        foot = [_note(run.taken_on)] if found and needs_tokens([measure]) else []
        parts += [page.section(section) for section in found] + foot
    parts.append(_not_shown(run, shown, facts))
    return "\n".join(parts)


def _not_shown(run: RunTable, shown: Sequence[str], facts: Mapping[str, Any]) -> str:
    """Return which measures the page lacks, and why: not measured, or no number to draw."""
    measured = {*run.measures, *facts.get("measures", ())}
    absent = [measure for measure in MEASURES if measure not in shown]
    said = [
        f"{measure} was measured and is not shown: "
        + (
            "it compares checkpoints, and this run has one."
            if measure == "direction" and len(run.steps) < 2
            else "the table holds no finite number of it."
        )
        for measure in absent
        if measure in measured
    ]
    others = ",".join(measure for measure in absent if measure not in measured)
    if others:
        said.append(
            f"Not measured: {others.replace(',', ', ')}; `saturation measure TRAJECTORY --measures "
            f"{others} --out RUN` adds what you need to the same run."
        )
    return _note(" ".join(said))


def _note(text: str) -> str:
    return f'<p class="note">{markup(text)}</p>' if text else ""
