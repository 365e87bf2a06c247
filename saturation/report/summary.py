"""What a run found, in words: for a terminal, a log, and who sees the figure for the first time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saturation.growth import MINIMUM_POINTS, Fit, best_law, describe, ranked
from saturation.growth_text import caution, exponent, say_laws
from saturation.report.saturation_text import GUIDE as SATURATION_GUIDE
from saturation.report.saturation_text import saturation_table
from saturation.report.scan_text import GUIDE as SCAN_GUIDE
from saturation.report.scan_text import scan_table
from saturation.report.series import (
    SCOPE_MEANING,
    Fits,
    RunTable,
    Series,
    describe_spacing,
    run_tables,
)
from saturation.report.smoothing_text import GUIDE as SMOOTHING_GUIDE
from saturation.report.smoothing_text import smoothing_table
from saturation.runfolder import write_text


def write_summary(tables: Mapping[str, pd.DataFrame], fits: Fits, path: str | Path) -> Path:
    """Write `summarize`'s text to a file, whole or not at all, and return its path.

    Raises:
        ResultsError: a table is not a results table, or the file cannot be written.
    """
    return write_text(path, summarize(tables, fits), "summary")


def summarize(tables: Mapping[str, pd.DataFrame], fits: Fits) -> str:
    """Return what was measured, the fitted laws, how to read the figures, and what is amiss.

    Args:
        tables: {run name: results table}.
        fits: {run: {scope: {law: fit}}}, as `fit_tables` gives them.

    Raises:
        ResultsError: a table is not a results table.
    """
    from saturation.report.figures import missing_figures

    runs = run_tables(tables)
    parts = [_describe_run(run, fits.get(run.name, {})) for run in runs]
    missing = [_wrap(f"{why}.", f"  {name}: ") for name, why in missing_figures(tables).items()]
    if missing:
        parts.append("\n".join(["Figures not drawn", *missing]))
    return "\n\n".join(parts) + "\n"


def reading_guide(run: RunTable, laws: Mapping[str, Fit]) -> tuple[str, str, str] | None:
    """Return the three sentences a newcomer needs for the growth figure, or None without norms."""
    if not run.scopes("l2"):
        return None
    scope, series = run.main_series("l2")
    first, last = series.values[0], series.values[-1]
    change = f"{last / first:.3g} times its start" if first else "from nothing"
    course = (
        f"went from {first:,.4g} at step {series.steps[0]:,} to {last:,.4g} at step "
        f"{series.steps[-1]:,}, {change}"
    )
    if len(series) == 1:
        course = f"is {first:,.4g} at step {series.steps[0]:,}"
    dots = (
        f"Each dot is one checkpoint: the Euclidean norm ‖θ‖₂ of {SCOPE_MEANING.get(scope, scope)} "
        f"{course}."
    )
    return dots, _say_curve(laws), _say_leftovers(laws)


def warnings(run: RunTable, laws: Mapping[str, Mapping[str, Fit]]) -> list[str]:
    """Return what a reader of this run's figures must be warned of."""
    if not run.scopes("l2"):
        return []
    _, series = run.main_series("l2")
    found = []
    if len(series) < MINIMUM_POINTS:
        few = "1 checkpoint is" if len(series) == 1 else f"{len(series)} checkpoints are"
        found.append(f"{few} too few for a growth law: {MINIMUM_POINTS} are needed.")
    elif caution(len(series)):
        found.append(f"{caution(len(series))}")
    for scope in run.scopes("l2"):
        series = run.series("l2", scope)
        if series is not None and series.left_out:
            steps = ", ".join(f"{step:,}" for step in series.left_out[:5])
            found.append(
                f"the norm of {scope!r} is NaN or infinite at {len(series.left_out)} of the "
                f"checkpoints (step {steps}), which are left out."
            )
    stuck = [name for name, fits in laws.items() if "power" in fits and fits["power"].p_at_bound]
    if stuck:
        found.append(
            f"no power of t fits {', '.join(stuck)}: the exponent stopped at the end of its range, "
            "and its interval means nothing."
        )
    return found


def _describe_run(run: RunTable, laws: Mapping[str, Mapping[str, Fit]]) -> str:
    """Return one run's paragraph."""
    title = f"Run {run.name}"
    lines = [title, "=" * len(title)]
    if not run.scopes("l2"):
        measured = _say_metrics(run) or "nothing"
        norms = "; no finite norm" if "l2" in run.metrics else ""
        lines.append(_wrap(f"Measured: {measured}, {_say_steps(np.array(run.steps))}{norms}."))
        return "\n".join([*lines, *_activation_lines(run)])
    scope, series = run.main_series("l2")
    lines += [_wrap(_say_measured(run, series)), "", *_norm_table(run), ""]
    if scope in laws:
        lines += [*_law_table(scope, laws[scope], series), ""]
    lines += _exponent_lines(run)
    guide = reading_guide(run, laws.get(scope, {}))
    if guide:
        lines += ["How to read growth.png", *(_wrap(s, f"  {n}. ") for n, s in enumerate(guide, 1))]
    lines += _activation_lines(run)
    warned = warnings(run, laws)
    if warned:
        lines += ["", *(_wrap(text, "Warning: ") for text in warned)]
    return "\n".join(lines)


def _activation_lines(run: RunTable) -> list[str]:
    """Return what is said of measures of activations, and on which tokens they were taken."""
    said = ["", _wrap(f"Activations. {run.taken_on}")] if run.taken_on else []
    return [*said, *_saturation_lines(run), *_scan_lines(run), *_smoothing_lines(run)]


def _saturation_lines(run: RunTable) -> list[str]:
    """Return how saturated the network is, and how to read the figures; nothing if not measured."""
    figures = "saturation.png, heads.png and homogeneity.png"
    return _with_guide(saturation_table(run), figures, SATURATION_GUIDE)


def _scan_lines(run: RunTable) -> list[str]:
    """Return whether heads scan and snap, and how to read the figures; nothing if not measured."""
    return _with_guide(scan_table(run), "scan.png and snap.png", SCAN_GUIDE)


def _smoothing_lines(run: RunTable) -> list[str]:
    """Return whether tokens grow alike, and how to read the figures; nothing if not measured."""
    return _with_guide(smoothing_table(run), "smoothing.png and spectrum.png", SMOOTHING_GUIDE)


def _with_guide(table: Sequence[str], figures: str, guide: Sequence[str]) -> list[str]:
    if not table:
        return []
    numbered = (_wrap(sentence, f"  {number}. ") for number, sentence in enumerate(guide, 1))
    return ["", *table, "", f"How to read {figures}", *numbered]


def _say_measured(run: RunTable, series: Series) -> str:
    depends = " Cosines, steps and the norm budget depend on that."
    return f"Measured: {_say_metrics(run)}, {_say_steps(series.steps)}." + (
        depends if "cosine" in run.metrics else ""
    )


def _say_steps(steps: np.ndarray) -> str:
    """Return at how many checkpoints from where to where, and how far apart."""
    if len(steps) < 2:
        return f"at 1 checkpoint, step {steps[0]:,}" if len(steps) else "at no checkpoint"
    gaps = describe_spacing(np.diff(steps).astype(np.float64))
    return f"at {len(steps)} checkpoints from step {steps[0]:,} to {steps[-1]:,}, {gaps}"


def _say_metrics(run: RunTable) -> str:
    """Return the metrics by name, without those that are another's rate, error or variant."""
    variants = ("_per_step", "_stderr", "_unscaled")
    return ", ".join(sorted(name for name in run.metrics if not name.endswith(variants)))


def _wrap(text: str, first: str = "") -> str:
    """Return a paragraph in lines of 100 characters, the first one beginning with `first`."""
    return textwrap.fill(
        text,
        100,
        initial_indent=first,
        subsequent_indent="     " if first else "",
        break_long_words=False,
    )


def _exponent_lines(run: RunTable) -> list[str]:
    """Return how much of the local exponent steps along and across θ made; nothing without."""
    if not run.scopes("exponent"):
        return []
    scope = run.scopes("exponent")[0]
    medians = []
    for metric in ("exponent", "exponent_radial", "exponent_tangential"):
        series = run.series(metric, scope)
        if series is None:
            return []
        medians.append(float(np.median(series.values)))
    whole, along, across = medians
    return [
        _wrap(
            f"Between checkpoints ‖θ‖ of {scope!r} grew as t to the power {whole:.3f} (median); "
            f"steps along θ account for {along:.3f} of it, across θ for {across:.3f} (medians)."
        ),
        "",
    ]


def _norm_table(run: RunTable) -> list[str]:
    lines = [f"{'norm ‖θ‖₂ of':<14}{'first':>12}{'last':>12}{'last/first':>12}"]
    for scope in run.scopes("l2"):
        series = run.series("l2", scope)
        if series is not None and len(series):
            first, last = series.values[0], series.values[-1]
            ratio = f"{last / first:.4f}" if first else "-"
            lines.append(f"{scope:<14}{first:>12,.5g}{last:>12,.5g}{ratio:>12}")
    return lines


def _law_table(scope: str, laws: Mapping[str, Fit], series: Series) -> list[str]:
    best = best_law(laws)
    order = "" if best is None else ", best by AICc first"
    lines = [
        f"Growth laws of {scope!r}{order}",
        f"{'law':<13}{'equation':<34}{'R²':>8}{'AICc':>10}  error on the last fifth",
    ]
    for fit in ranked(laws):
        holdout = (
            "-"
            if fit.holdout_error is None or math.isnan(fit.holdout_error)
            else f"{100 * fit.holdout_error:.2f} %"
        )
        r2 = "-" if math.isnan(fit.r2) else f"{fit.r2:.4f}"
        aicc = "-" if best is None else f"{fit.aicc:.1f}"
        lines.append(f"{fit.law:<13}{describe(fit):<34}{r2:>8}{aicc:>10}  {holdout}")
    return [*lines, *(_wrap(text) for text in say_laws(laws, series.steps, series.values))]


def _say_curve(laws: Mapping[str, Fit]) -> str:
    power = laws.get("power")
    if power is None or power.p is None or math.isnan(power.p):
        return "No curve is drawn, because no power of the step could be fitted to these points."
    without = ""
    if power.without_first is not None:
        without = f", without step 0 {exponent(power.without_first)}"
    return (
        f"The solid line is a power of the training step t, ρ = a·t^p + b with {exponent(power)}"
        f"{without}; the dashed one is √t (p = ½), the growth that Merrill et al. (2021) report "
        "for T5-base, and p = 1 would be a straight line."
    )


def _say_leftovers(laws: Mapping[str, Fit]) -> str:
    if not laws:
        return "With more checkpoints a strip below shows what each fitted curve misses."
    text = (
        "The strip below shows what each curve misses, in percent of the whole growth: scatter "
        "around 0 is a law that holds, a bend is a law that does not"
    )
    best = best_law(laws)
    if best is not None:
        text += (
            "; by AICc, which charges for parameters and takes errors to resemble their "
            f"neighbours, the best of these laws is {best.law.replace('_', ' ')}"
        )
    return (
        f"{text}. The lowest strip shows the local exponent ln(ρ′/ρ)/ln(t′/t) between checkpoints, "
        "beside that of each law, which varies wherever b ≠ 0."
    )
