"""Pieces of the page that are text: what was measured, a table of growth laws, the glossary."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from saturation.growth import COMPARED_POINTS, Curve, Fit, describe, ranked
from saturation.growth_text import exponent
from saturation.report.glossary import GLOSSARY, MERRILL
from saturation.report.growth_figure import choose_laws
from saturation.report.tokens_text import say_tokens


def facts_list(facts: Mapping[str, Any]) -> str:
    """Return what was measured, as far as run.json says it."""
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
    rows = "".join(
        f"<dt>{name}</dt><dd>{escape(str(said))}</dd>" for name, said in shown.items() if said
    )
    return f"<dl>{rows}</dl>" if rows else ""


def law_tables(laws: Mapping[str, Mapping[str, Fit]]) -> str:
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
            ("p by least squares", False),
            ("p without step 0", False),
            ("φ, clock", False),
            ("R²", True),
            ("AICc − best", True),
            ("Last fifth", True),
        )
    )
    rows = []
    for number, (scope, fits) in enumerate(laws.items()):
        worth = choose_laws(fits) if number else fits.values()
        ordered = ranked({fit.law: fit for fit in worth})
        rows += [_law_row(scope, fit, ordered[0].aicc) for fit in ordered]
    return (
        f'<h3>Growth laws</h3><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">p, its interval and AICc take errors to resemble their neighbours: '
        "correlation φ at mean distance on the clock; φ = 0.999 is its bound. "
        f"Below {COMPARED_POINTS} checkpoints laws are not ranked. "
        "Last fifth: relative error there of the law fitted to the rest.</p>"
    )


def _law_row(scope: str, fit: Fit, best: float) -> str:
    said = [""] * 3
    if fit.law == "power":
        said = [_exponent(each) for each in (fit, fit.independent, fit.without_first)]
    told = fit.n >= COMPARED_POINTS
    said.append(f"{fit.phi:.3f}, {fit.clock}" if told else "–")
    error = None if fit.holdout_error is None else 100 * fit.holdout_error
    numbers = (
        _number(fit.r2, ".4f"),
        _number(fit.aicc - best if told else None, ".1f"),
        _number(error, ".2f", " %"),
    )
    cells = "".join(f"<td class=whole>{text}</td>" for text in said)
    cells += "".join(f"<td class=number>{number}</td>" for number in numbers)
    return (
        f"<tr><td><code>{escape(scope)}</code></td><td class=whole>{fit.law.replace('_', ' ')}</td>"
        f"<td class=whole>{markup(describe(fit))}</td>{cells}</tr>"
    )


def _exponent(fit: Curve | None) -> str:
    if fit is None or fit.p is None or math.isnan(fit.p):
        return "–"
    return exponent(fit).removeprefix("p = ")


def _number(value: float | None, digits: str, unit: str = "") -> str:
    return "–" if value is None or math.isnan(value) else f"{value:{digits}}{unit}"


def glossary() -> str:
    """Return what every metric is, in a table."""
    rows = "".join(
        f"<tr><td><code>{term.metric}</code></td><td>{markup(term.formula)}</td>"
        f"<td>{markup(term.meaning)}</td><td>{escape(term.source)}</td></tr>"
        for term in GLOSSARY
    )
    return (
        '<h2 id="glossary">Glossary</h2><div class="scroll"><table><thead><tr><th>Metric</th>'
        "<th>Formula</th><th>What it says</th><th>Source</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="note">{escape(MERRILL)}. “Ours”: defined by this project.</p>'
    )


def markup(text: str) -> str:
    """Return escaped text with `code`, t^0.56 and θ_t set as code, superscript and subscript."""
    text = escape(text).replace("^A_min", "<sup>A</sup><sub>min</sub>")
    text = re.sub(r"\^([\w.]+)", r"<sup>\1</sup>", text)
    text = re.sub(r"(\b[A-Zdxλθ]|[Σ‖]|\bmin|\bmax)_(\w+′?)", r"\1<sub>\2</sub>", text)
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
