"""One self-contained, interactive HTML page for one run or several; it needs no network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import saturation
from saturation.growth import Fit, describe
from saturation.report import charts
from saturation.report.figures import missing_figures
from saturation.report.glossary import GLOSSARY, MERRILL
from saturation.report.growth_figure import choose_laws
from saturation.report.page_template import PAGE, STYLE
from saturation.report.scan_text import scan_table
from saturation.report.series import SCOPE_MEANING, Fits, RunTable, describe_spacing, run_tables
from saturation.report.summary import reading_guide, warnings
from saturation.runfolder import write_text

Facts = Mapping[str, Mapping[str, Any]]  # {run: its run.json}


@dataclass
class Page:
    """The page while it is put together: pieces of HTML, and the charts they have room for."""

    sections: list[str] = field(default_factory=list)
    charts: dict[str, go.Figure] = field(default_factory=dict)

    def chart(self, chart: go.Figure | None, title: str, says: str, wide: bool = False) -> str:
        """Keep a chart and return the HTML that holds its place."""
        if chart is None:
            return ""
        name = f"chart-{len(self.charts)}"
        self.charts[name] = chart
        return (
            f"<figure{' class=wide' if wide else ''}><figcaption><b>{title}</b>{says}</figcaption>"
            f'<div id="{name}"></div></figure>'
        )


def write_page(
    tables: Mapping[str, pd.DataFrame],
    fits: Fits,
    path: str | Path,
    facts: Facts | None = None,
) -> Path:
    """Write the interactive page of one run or several: facts, charts, laws and glossary.

    Args:
        tables: {run name: results table}.
        fits: {run: {scope: {law: fit}}}, as `fit_tables` gives them.
        path: the HTML file, about 5 MB, most of it plotly.js; replaced where it exists.
        facts: {run: what its run.json says}; a run without is shown without.

    Returns:
        The path.

    Raises:
        ResultsError: a table is not a results table, or the file cannot be written.
    """
    return write_text(path, build_page(tables, fits, facts or {}), "page")


def build_page(tables: Mapping[str, pd.DataFrame], fits: Fits, facts: Facts) -> str:
    """Return the page's HTML; arguments and errors as `write_page`."""
    runs = run_tables(tables)
    page = Page()
    with_norms = [run for run in runs if run.scopes("l2")]
    if len(with_norms) > 1:
        page.sections.append(_compare(page, with_norms))
    for number, run in enumerate(runs):
        page.sections.append(_run_section(page, run, number, fits, facts.get(run.name, {})))
    page.sections.append(_not_drawn(missing_figures(tables)))
    page.sections.append(_glossary())
    links = [(f"run-{number}", run.name) for number, run in enumerate(runs)]
    return PAGE.format(
        title="Parameter norm through pretraining",
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
    return json.dumps(read, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")


def _compare(page: Page, runs: Sequence[RunTable]) -> str:
    chart = page.chart(
        charts.runs_chart(runs), "Norm relative to the first checkpoint", "", wide=True
    )
    return f'<h2>All runs</h2><div class="charts">{chart}</div>'


def _run_section(
    page: Page, run: RunTable, number: int, fits: Fits, facts: Mapping[str, Any]
) -> str:
    """Return everything about one run."""
    laws = fits.get(run.name, {})
    parts = [f'<h2 id="run-{number}">{escape(run.name)}</h2>', _facts(facts)]
    parts += [f'<p class="warning">{escape(text)}</p>' for text in warnings(run, laws)]
    if run.scopes("l2"):
        guide = reading_guide(run, laws.get(run.scopes("l2")[0], {}))
        items = "".join(f"<li>{_markup(sentence)}</li>" for sentence in guide or ())
        parts += ["<h3>Growth</h3>", f'<ol class="guide">{items}</ol>']
        parts += [_growth_charts(page, run, fits), _law_tables(laws), _layer_charts(page, run)]
    if run.scopes("cosine"):
        parts.append(_direction_charts(page, run))
    if run.scopes("step_norm"):
        parts.append(_step_charts(page, run))
    parts.append(_scan(run))
    return "\n".join(parts)


def _scan(run: RunTable) -> str:
    """Return whether heads scan and snap, in a table; nothing where that was not measured."""
    lines = scan_table(run)
    if not lines:
        return ""
    draws = "<code>saturation report RUN --figures DIR</code>"
    return (
        f'<h3>Scan and snap</h3><div class="scroll"><pre>{escape(chr(10).join(lines))}</pre></div>'
        f'<p class="note">Every head is a line in scan.png, which {draws} draws.</p>'
    )


def _growth_charts(page: Page, run: RunTable, fits: Fits) -> str:
    scope = run.scopes("l2")[0]
    meaning = escape(SCOPE_MEANING.get(scope, scope))
    places = [
        page.chart(
            charts.growth_chart(run, fits),
            "How the norm grew",
            f"Scope <code>{escape(scope)}</code>: {meaning}.",
            wide=True,
        ),
        page.chart(
            charts.leftover_chart(run, fits),
            "What the laws leave over",
            "Measured − fit. Scatter around 0 is a law that holds, a bend is a law that does not.",
            wide=True,
        ),
    ]
    if len(run.scopes("l2")) > 1:
        chart = charts.scope_chart(run, "l2", "‖θ‖₂", logarithmic=True)
        places.append(page.chart(chart, "Norm of each part", "Logarithmic axis.", wide=True))
    return f'<div class="charts">{"".join(places)}</div>'


def _layer_charts(page: Page, run: RunTable) -> str:
    places = [
        page.chart(chart, f"{escape(stack)}: norm of each layer", "Dark: next to the input.")
        for stack, chart in charts.layer_charts(run).items()
    ]
    return f'<h3>Layers</h3><div class="charts">{"".join(places)}</div>' if places else ""


def _direction_charts(page: Page, run: RunTable) -> str:
    places = [
        page.chart(
            charts.scope_chart(run, metric, label, logarithmic),
            title,
            "",
            wide=metric == "cosine_to_first",
        )
        for metric, label, title, logarithmic in (
            ("cosine", "cosine", "Cosine to the checkpoint before", False),
            ("cosine_distance", "1 − cosine", "The same, as distance from 1", True),
            ("cosine_to_first", "cosine", "Cosine to the first checkpoint", False),
        )
        if run.scopes(metric)
    ]
    note = _spacing_note(run, "cosine")
    return f'<h3>Direction</h3>{note}<div class="charts">{"".join(places)}</div>'


def _step_charts(page: Page, run: RunTable) -> str:
    places = [
        page.chart(charts.scope_chart(run, metric, label, logarithmic), title, says)
        for metric, label, title, says, logarithmic in (
            ("step_norm", "‖δ‖", "How far the parameters moved", "", True),
            ("relative_step", "‖δ‖/(‖θ‖(t′ − t))", "Relative step per training step", "", True),
            ("alignment", "cos(δ, θ)", "Did they move outwards?", "1 outwards, 0 across.", False),
        )
        if run.scopes(metric)
    ]
    if run.scopes("radial"):
        says = f"Norm budget of <code>{escape(run.scopes('radial')[0])}</code>."
        places.append(page.chart(charts.budget_chart(run), "What made ‖θ‖² grow?", says))
    note = _spacing_note(run, "step_norm")
    return f'<h3>Steps</h3>{note}<div class="charts">{"".join(places)}</div>'


def _spacing_note(run: RunTable, metric: str) -> str:
    _, series = run.main_series(metric)
    spacing = describe_spacing(series.spacing)
    return f'<p class="note">These depend on the spacing: checkpoints lie {spacing}.</p>'


def _facts(facts: Mapping[str, Any]) -> str:
    """Return what was measured, as far as run.json says it."""
    steps, arrays = facts.get("steps"), facts.get("arrays")
    environment = facts.get("environment")
    shown = {"Trajectory": facts.get("trajectory"), "Format": facts.get("format")}
    if isinstance(steps, Sequence) and steps:
        shown["Checkpoints"] = f"{len(steps)}, from step {steps[0]:,} to {steps[-1]:,}"
    if isinstance(arrays, Mapping) and arrays:
        size = sum(math.prod(array.get("shape", ())) for array in arrays.values())
        shown["Parameters"] = f"{size:,} in {len(arrays)} arrays"
    if isinstance(facts.get("measures"), Sequence):
        shown["Measures"] = ", ".join(map(str, facts["measures"]))
    if isinstance(environment, Mapping):
        shown["Measured with"] = ", ".join(f"{name} {said}" for name, said in environment.items())
    rows = "".join(
        f"<dt>{name}</dt><dd>{escape(str(said))}</dd>" for name, said in shown.items() if said
    )
    return f"<dl>{rows}</dl>" if rows else ""


def _law_tables(laws: Mapping[str, Mapping[str, Fit]]) -> str:
    """Return a table of every law of the first scope, and of those worth a curve in the others."""
    if not laws:
        return ""
    heads = "".join(
        f"<th{' class=number' if number else ''}>{name}</th>"
        for name, number in (
            ("Scope", False),
            ("Law", False),
            ("Equation", False),
            ("p (95 % interval)", False),
            ("p without first", True),
            ("R²", True),
            ("AIC − best", True),
            ("Last fifth", True),
        )
    )
    rows = []
    for number, (scope, fits) in enumerate(laws.items()):
        worth = choose_laws(fits) if number else fits.values()
        ordered = sorted(worth, key=lambda fit: fit.aic)
        rows += [_law_row(scope, fit, ordered[0].aic) for fit in ordered]
    return (
        f'<h3>Growth laws</h3><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Last fifth: relative error there of the law fitted to the rest.</p>'
    )


def _law_row(scope: str, fit: Fit, best: float) -> str:
    exponent = ""
    if fit.law == "power":
        exponent = _number(fit.p, ".3f")
        if fit.interval is not None:
            exponent += f" ({fit.interval[0]:.3f} to {fit.interval[1]:.3f})"
    error = None if fit.holdout_error is None else 100 * fit.holdout_error
    numbers = (
        _number(fit.p_without_first, ".3f"),
        _number(fit.r2, ".4f"),
        f"{fit.aic - best:.1f}",
        _number(error, ".2f", " %"),
    )
    cells = "".join(f"<td class=number>{number}</td>" for number in numbers)
    return (
        f"<tr><td><code>{escape(scope)}</code></td><td class=whole>{fit.law.replace('_', ' ')}</td>"
        f"<td class=whole>{_markup(describe(fit))}</td><td class=whole>{exponent}</td>{cells}</tr>"
    )


def _number(value: float | None, digits: str, unit: str = "") -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{digits}}{unit}"


def _not_drawn(missing: Mapping[str, str]) -> str:
    if not missing:
        return ""
    items = "".join(f"<li>{name}: {escape(reason)}</li>" for name, reason in missing.items())
    return f"<h2>Not shown</h2><ul>{items}</ul>"


def _glossary() -> str:
    rows = "".join(
        f"<tr><td><code>{term.metric}</code></td><td>{_markup(term.formula)}</td>"
        f"<td>{_markup(term.meaning)}</td><td>{escape(term.source)}</td></tr>"
        for term in GLOSSARY
    )
    return (
        '<h2 id="glossary">Glossary</h2><div class="scroll"><table><thead><tr><th>Metric</th>'
        "<th>Formula</th><th>What it says</th><th>Source</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="note">{escape(MERRILL)}. “Ours”: defined by this project.</p>'
    )


def _markup(text: str) -> str:
    """Return escaped text with t^0.56 and θ_t set as superscript and subscript."""
    text = re.sub(r"\^([\w.]+)", r"<sup>\1</sup>", escape(text))
    return re.sub(r"([θΣ‖]|min)_(\w+′?)", r"\1<sub>\2</sub>", text)
