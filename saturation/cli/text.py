"""What the command line prints: each thing as data for --json, and as a text for people."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saturation.measures.base import ActivationMeasure, GroupMeasure, Measure
from saturation.results.state import Status
from saturation.trajectory.constants import constants
from saturation.trajectory.survey import survey

if TYPE_CHECKING:
    from saturation.growth.fit import Fit
    from saturation.runs.measure import Outcome
    from saturation.trajectory.audit import Finding
    from saturation.trajectory.trajectory import Trajectory


_MOST_REASONS = 8


def describe_trajectory(trajectory: Trajectory) -> dict[str, Any]:
    """Return path, format, steps, and of the first checkpoint the arrays, parameters and bytes.

    `wrappers_by_step` and `without_checksums` are of the steps `looked_at`, see `Survey`.
    """
    seen = survey(trajectory)
    checkpoint = trajectory[trajectory.steps[0]]
    unchanging = constants(trajectory, checkpoint.parameters)
    still = {name for name, _ in unchanging}
    parameters = {n: one for n, one in checkpoint.parameters.items() if n not in still}
    left_out = [*checkpoint.left_out, *unchanging]
    bytes_each = sum(parameter.nbytes for parameter in parameters.values())
    return {
        "path": trajectory.path,
        "format": checkpoint.format,
        "steps": list(trajectory.steps),
        "arrays": {
            name: {"shape": list(parameter.shape), "dtype": str(parameter.dtype)}
            for name, parameter in parameters.items()
        },
        "parameters": sum(parameter.size for parameter in parameters.values()),
        "bytes_each": bytes_each,
        "bytes": bytes_each * len(trajectory.steps),
        "files": list(checkpoint.files),
        "wrappers": checkpoint.wrappers,
        "looked_at": list(seen.steps),
        "wrappers_by_step": {str(step): words for step, words in seen.wrappers.items()},
        "without_checksums": {str(step): list(files) for step, files in seen.unsummed.items()},
        "left_out": [{"name": name, "reason": reason} for name, reason in left_out],
        "ignored": [{"name": name, "reason": reason} for name, reason in trajectory.ignored],
    }


def trajectory_text(described: Mapping[str, Any]) -> str:
    """Return what `ls` prints."""
    steps = described["steps"]
    dtypes = sorted({array["dtype"] for array in described["arrays"].values()})
    lines = [
        f"{described['path']}",
        f"  format      {described['format']}",
        f"  steps       {steps_text(steps)}",
        f"  arrays      {len(described['arrays']):,} ({', '.join(dtypes)})",
        f"  parameters  {described['parameters']:,}",
        f"  bytes       {_bytes(described['bytes_each'])} a checkpoint, "
        f"{_bytes(described['bytes'])} in all",
    ]
    if described["files"]:
        lines.append(f"  read from   {_few(described['files'])}")
    if wrapped := _wrapped_text(described):
        lines.append(f"  wrapped in  {wrapped}")
    if without := described["without_checksums"]:
        lines.append(f"  checksums   {unsummed_text(without, len(described['looked_at']))}")
    lines += _reasons("left out", described["left_out"])
    lines += _reasons("ignored", described["ignored"])
    return "\n".join(lines)


def _wrapped_text(described: Mapping[str, Any]) -> str:
    """Return what was taken off the names: by step where steps differ; "" where nothing was."""
    by_words: dict[str, list[str]] = {}
    for step, words in described["wrappers_by_step"].items():
        by_words.setdefault(words, []).append(step)
    if len(by_words) < 2:
        return f"{described['wrappers']}, taken off the names" if described["wrappers"] else ""
    parts = (
        f"{words or 'nothing'} at step{'s' * (len(steps) > 1)} {_few(steps)}"
        for words, steps in by_words.items()
    )
    looked = list(map(str, described["looked_at"]))
    all_seen = len(looked) == len(described["steps"])
    seen = "" if all_seen else f" (steps {', '.join(looked)} were looked at)"
    return f"{'; '.join(parts)}, taken off the names{seen}"


def unsummed_text(without: Mapping[Any, Sequence[str]], looked: int) -> str:
    """Return one sentence on the files that lack the checksums that their format has.

    Args:
      without: those files, by step.
      looked: how many checkpoints were looked at.
    """
    names = sorted({name for files in without.values() for name in files})
    return (
        f"none in {_few(names)} of {len(without)} of {looked} checkpoints: what wrote them left "
        "the checksums out, and a damaged value cannot be told from another"
    )


def _reasons(title: str, items: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a line for each reason: how many things it holds for, and a few of their names."""
    reasons: dict[str, list[str]] = {}
    for item in items:
        reasons.setdefault(item["reason"], []).append(item["name"])
    lines = [
        f"  {title:<10}  {f'{len(names):,}: ' * (len(names) > 1)}{_few(names)}: {reason}"
        for reason, names in reasons.items()
    ]
    more = len(lines) - _MOST_REASONS
    return lines if more <= 0 else [*lines[:_MOST_REASONS], f"  {'':<10}  and {more} more reasons"]


def _few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def steps_text(steps: Sequence[int]) -> str:
    """Return steps as a short text: all of few, else the span and the spacing where it is even.

    >>> steps_text([0, 100, 200, 300])
    '0, 100, 200, 300 (4 checkpoints)'
    """
    count = f"({len(steps)} checkpoint{'s' if len(steps) != 1 else ''})"
    if len(steps) <= 12:
        return f"{', '.join(map(str, steps))} {count}"
    gaps = {later - earlier for earlier, later in itertools.pairwise(steps)}
    spacing = f"every {gaps.pop()}" if len(gaps) == 1 else f"{min(gaps)} to {max(gaps)} apart"
    return f"{steps[0]} … {steps[-1]}, {spacing} {count}"


def describe_measures() -> dict[str, Any]:
    """Return {measure: its definition, source, what it needs and its metrics' names}."""
    from saturation.measures import MEASURES, words_of

    return {
        name: {
            "definition": measure.definition,
            "source": measure.source,
            "needs": _needs(measure),
            "metrics": [term.metric for term in words_of(name).terms],
        }
        for name, measure in MEASURES.items()
    }


def _needs(measure: Measure) -> str:
    if isinstance(measure, ActivationMeasure):
        return "a T5 and tokens to run it on"
    if isinstance(measure, GroupMeasure):
        return "weights of a T5"
    return "weights of neighbouring checkpoints" if measure.compares_steps else "weights"


def measures_text(described: Mapping[str, Any]) -> str:
    """Return what `measures` prints: a measure a paragraph."""
    return "\n".join(
        f"{name}\n  {measure['definition']}\n"
        f"  needs {measure['needs']}; source: {measure['source']}\n"
        f"{textwrap.indent(textwrap.fill('metrics: ' + ', '.join(measure['metrics']), 98), '  ')}"
        for name, measure in described.items()
    )


def measured_text(outcome: Outcome, out: str, measures: Sequence[str]) -> str:
    """Return what `measure` prints at its end; laws are fitted to norms alone."""
    fit = f"`saturation fit {out}`, " if "norms" in measures else ""
    return (
        f"{outcome.computed} parts computed, {outcome.reused} reused, in {out}. "
        f"Next: {fit}`saturation report {out} --figures DIR`."
    )


def audit_text(
    trajectory: Trajectory,
    findings: Sequence[Finding],
    without: Mapping[int, Sequence[str]] | None = None,
) -> str:
    """Return what `audit` prints: a line a finding, what has no checksums, and how many findings.

    Args:
      trajectory: what was looked at.
      findings: what was found.
      without: by step, the files that lack the checksums that their format has.
    """
    plural = "" if len(findings) == 1 else "s"
    found = f"{len(findings)} finding{plural}." if findings else "nothing found wrong."
    unsummed = [f"checksums: {unsummed_text(without, len(trajectory))}."] if without else []
    last = f"{trajectory.path}: {len(trajectory)} checkpoints, {found}"
    return "\n".join([*map(str, findings), *unsummed, last])


def planned_text(work: Mapping[str, Any]) -> str:
    """Return what `measure --dry-run` prints."""
    return (
        f"{work['arrays']} arrays at {work['steps']} steps: {_bytes(work['bytes'])} would be read, "
        f"{work['parts']} parts written and {work['reused']} reused."
    )


def status_text(run: str, found: Status) -> str:
    """Return what `status` prints: a measure a line, and what is missing."""
    lines = [run]
    for measure, expected in found.expected.items():
        lines.append(f"  {measure:<12}{found.present[measure]} of {expected} parts of the table")
        missing = found.missing[measure]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            lines.append(f"  {'':<12}missing: {', '.join(missing[:5])}{more}")
    if found.former:
        lines.append(f"  left out: {found.former}; measure it again into a new folder")
    if found.unrecorded:
        lines.append(f"  {found.unrecorded}; it is read, and nothing is added to it")
    lines.append("  complete" if found.complete else "  incomplete: run the same `measure` again")
    return "\n".join(lines)


def fits_text(fits: Mapping[str, Fit], steps: Sequence[float], values: Sequence[float]) -> str:
    """Return what `fit` prints: a law a line, the best by AICc marked, and what they say."""
    import numpy as np

    from saturation.growth.fit import best_law, equation
    from saturation.growth.text import say_laws

    best = best_law(fits)
    width = max(len(equation(fit)) for fit in fits.values())
    lines = [f"  {'law':<12} {'fit':<{width}}   {'R²':<8} {'AICc':>9}  error on the last fifth"]
    for law, fit in fits.items():
        mark = "*" if fit is best else " "
        holdout = "—" if fit.holdout_error is None else f"{fit.holdout_error:.2%}"
        aicc = "—" if best is None else f"{fit.aicc:.1f}"
        lines.append(
            f"{mark} {law:<12} {equation(fit):<{width}}   {fit.r2:<8.5f} {aicc:>9}  {holdout}"
        )
    if best is not None:
        lines.append(f"* lowest AICc of {best.n} points, errors AR(1) in {best.clock}")
    said = say_laws(fits, np.asarray(steps), np.asarray(values))
    return "\n".join([*lines, *(textwrap.fill(text, 100) for text in said)])


def fits_json(
    fits: Mapping[str, Fit], steps: Sequence[float], values: Sequence[float]
) -> dict[str, dict[str, object]]:
    """Return what `fit --json` prints: every field of every law, and with the power's the local
    exponents at √(t·t′), measured and of the fitted law.
    """
    from saturation.growth.power_law import local_exponents

    at, local = local_exponents(steps, values)
    found = {law: fit.to_json() for law, fit in fits.items()}
    found["power"]["local_exponent"] = {
        "step": at.tolist(),
        "measured": local.tolist(),
        "fitted": fits["power"].local_exponent(at).tolist(),
    }
    return found


def _bytes(count: float) -> str:
    exponent = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**exponent:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[exponent]}"
