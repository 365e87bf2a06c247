"""What is said of norms: their terms, how they grew, which laws describe it, and what is amiss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from saturation.growth.fit import COMPARED_POINTS, MINIMUM_POINTS, Fit, best_law, equation, ranked
from saturation.growth.text import caution, choose_laws, exponent, say_laws
from saturation.measures.words import SHORT, Term, Words
from saturation.plots.panels import Table
from saturation.plots.series import RunTable

TERMS = (
    Term("l2", "‖θ‖₂ = √Σθ²", "Euclidean norm: how large the parameters of a scope are.", SHORT),
    Term("rms", "‖θ‖₂/√size", "Norm per parameter, comparable between sizes.", SHORT),
    Term(
        "l2_fan_in",
        "√Σ_W ‖W‖²/fan_in(W), over kernels",
        "Norm of the kernels, each relative to the number of its inputs.",
        SHORT,
    ),
    Term(
        "min_rms",
        "min_W ‖W‖_F/√size, over matrices",
        "The smallest matrix: a network saturates once all its matrices have grown.",
        SHORT,
    ),
    Term("max_abs", "max |θ|", "The largest parameter.", "ours"),
    Term(
        "nonfinite",
        "count of NaN and ±∞",
        "Broken parameters; where there are any, the other metrics mean nothing.",
        "ours",
    ),
)


def tables(run: RunTable) -> Sequence[Table]:
    """Return the norm of every main scope, and the growth laws of each."""
    if not run.scopes("l2"):
        return []
    rows = []
    for scope, series in run.parts("l2").items():
        first, last = series.values[0], series.values[-1]
        ratio = f"{last / first:.4f}" if first else "-"
        rows.append((scope, f"{first:,.5g}", f"{last:,.5g}", ratio))
    norms = Table(("norm ‖θ‖₂ of", "first", "last", "last/first"), rows)
    laws = [row for number, scope in enumerate(run.laws) for row in _laws(run, scope, number == 0)]
    if not laws:
        return [norms]
    columns = ("scope", "equation", "p (95 %)", "φ, clock", "R²", "ΔAICc", "last ⅕")
    scope, series = run.main_series("l2")
    said = say_laws(run.laws[scope], series.steps, series.values) if scope in run.laws else []
    explained = (
        "p, its interval and AICc take errors to resemble their neighbours, with correlation φ on "
        "the clock; ΔAICc: above the scope's best; last ⅕: relative error there of the law fitted "
        "to the rest."
    )
    told = any(best_law(fits) for fits in run.laws.values())
    title = f"Growth laws{', best by AICc first' if told else ''}"
    return [norms, Table(columns, laws, title, [*said, explained])]


def guide(run: RunTable) -> Sequence[str]:
    """Return the three sentences a newcomer needs for growth.png."""
    if not run.scopes("l2"):
        return ()
    scope, series = run.main_series("l2")
    laws = run.laws.get(scope, {})
    first, last = series.values[0], series.values[-1]
    change = f"{last / first:.3g} times its start" if first else "from nothing"
    course = (
        f"went from {first:,.4g} at step {series.steps[0]:,} to {last:,.4g} at step "
        f"{series.steps[-1]:,}, {change}"
    )
    if len(series) == 1:
        course = f"is {first:,.4g} at step {series.steps[0]:,}"
    dots = (
        f"Each dot is one checkpoint: the Euclidean norm ‖θ‖₂ of {run.meaning(scope) or scope} "
        f"{course}."
    )
    return dots, _say_curve(laws), _say_leftovers(laws)


def warnings(run: RunTable) -> Sequence[str]:
    """Return what a reader of this run's norms must be warned of."""
    if "l2" in run.metrics and not run.scopes("l2"):
        return ["no norm is finite."]
    return list(_warnings(run)) if run.scopes("l2") else []


def _warnings(run: RunTable) -> Iterator[str]:
    _, series = run.main_series("l2")
    if len(series) < MINIMUM_POINTS:
        few = "1 checkpoint is" if len(series) == 1 else f"{len(series)} checkpoints are"
        yield f"{few} too few for a growth law: {MINIMUM_POINTS} are needed."
    elif warned := caution(len(series)):
        yield warned
    for scope, series in run.parts("l2").items():
        if series.left_out:
            steps = ", ".join(f"{step:,}" for step in series.left_out[:5])
            yield (
                f"the norm of {scope!r} is NaN or infinite at {len(series.left_out)} of the "
                f"checkpoints (step {steps}), which are left out."
            )
    stuck = [n for n, fits in run.laws.items() if "power" in fits and fits["power"].p_at_bound]
    if stuck:
        yield (
            f"no power of t fits {', '.join(stuck)}: the exponent stopped at the end of its range, "
            "and its interval means nothing."
        )


def _laws(run: RunTable, scope: str, whole: bool) -> Iterator[tuple[str, ...]]:
    """Yield a row a law: all of the first scope, of others those that are worth a curve."""
    fits = run.laws[scope]
    worth = fits.values() if whole else choose_laws(fits)
    ordered = ranked({fit.law: fit for fit in worth})
    for fit in ordered:
        told = fit.n >= COMPARED_POINTS
        power = exponent(fit).removeprefix("p = ").replace("95 %: ", "")
        yield (
            scope,
            equation(fit),
            power if fit.law == "power" else "",
            f"{fit.phi:.3f}, {fit.clock}" if told else "-",
            _number(fit.r2, ".4f"),
            _number(fit.aicc - ordered[0].aicc, ".1f") if told else "-",
            _number(
                100 * (math.nan if fit.holdout_error is None else fit.holdout_error), ".2f", " %"
            ),
        )


def _number(value: float, digits: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{digits}}{unit}"


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


WORDS = Words(
    terms=TERMS,
    figures={
        "growth": "norms (metric l2)",
        "scopes": "norms of more than one part of the model (scopes such as encoder and decoder)",
        "layers": "norms of layers (scopes such as encoder/layers_0)",
    },
    tables=tables,
    guide=guide,
    warnings=warnings,
)
