"""Growth laws in plain words, the same in `fit`, on the page and in the summary."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from saturation.growth.fit import COMPARED_POINTS, Curve, Fit, best_law
from saturation.growth.power_law import local_exponents

CLOCK_MEANING = {"index": "the number of the checkpoint", "t": "the step t", "ln t": "ln t"}


def caution(points: int) -> str | None:
    """Return why no law is called the best of so few checkpoints, None where there are enough."""
    if points >= COMPARED_POINTS:
        return None
    return (
        f"{points} checkpoints are too few to tell growth laws apart or to give p an interval: "
        f"{COMPARED_POINTS} are needed. No law is called the best."
    )


def exponent(curve: Curve) -> str:
    """Return p with its interval, as "p = 0.559 (95 %: 0.552 to 0.565)"."""
    if curve.p is None or math.isnan(curve.p):
        return "no p"
    text = f"p = {curve.p:.3f}"
    if curve.interval is not None:
        text += " (95 %: {:.3f} to {:.3f})".format(*curve.interval)
    return text


def say_laws(fits: Mapping[str, Fit], steps: np.ndarray, values: np.ndarray) -> list[str]:
    """Return what the fits of one series say, a sentence or two for each matter."""
    power, said = fits["power"], []
    warned = caution(power.n)
    if warned:
        said.append(warned)
    if power.p is None or math.isnan(power.p):
        return [*said, "The series is the same at every step: it has no exponent."]
    if not math.isnan(fits["sqrt"].r2):
        said.append(
            f"√t leaves {100 * (1 - fits['sqrt'].r2):.2g} % of the variance of the series "
            f"unexplained, the free power {100 * (1 - power.independent.r2):.2g} % at the p of "
            "least squares."
        )
    said += [_say_errors(power), *_say_parts(power)]
    return [*said, *_say_local(steps, values)]


def _say_errors(power: Fit) -> str:
    """Return p by both methods, and what the errors are taken to be."""
    text = f"{exponent(power.independent)} by least squares, as if errors were independent."
    if power.n < COMPARED_POINTS:
        return text
    bound = ", at its bound: they are nearly a random walk" if power.phi_at_bound else ""
    stuck = " p is at the end of its range: no power of t fits." if power.p_at_bound else ""
    return (
        f"{exponent(power)} with errors that resemble their neighbours "
        f"(AR(1) in {CLOCK_MEANING[power.clock]}, φ = {power.phi:.3f}{bound}).{stuck} {text}"
    )


def _say_parts(power: Fit) -> list[str]:
    said = []
    if power.without_first is not None:
        text = f"Without step 0: {exponent(power.without_first)}"
        if power.without_first.n >= COMPARED_POINTS:
            text += f"; least squares {exponent(power.without_first.independent)}"
        text += "."
        if _apart(power, power.without_first):
            text += " The two intervals do not overlap: step 0 decides p."
        said.append(text)
    if power.thirds:
        parts = ", ".join(exponent(third) for third in power.thirds)
        if power.power_is_constant:
            verdict = "They do not contradict one power."
        else:
            powers = [third.p or 0.0 for third in power.thirds]
            course = "changes"
            if powers == sorted(powers):
                course = "grows"
            elif powers == sorted(powers, reverse=True):
                course = "falls"
            verdict = f"The power is not constant: it {course} through the run."
        said.append(f"Thirds of the run without step 0: {parts}. {verdict}")
    return said


def _apart(one: Fit, other: Fit) -> bool:
    if one.interval is None or other.interval is None:
        return False
    return one.interval[1] < other.interval[0] or other.interval[1] < one.interval[0]


def _say_local(steps: np.ndarray, values: np.ndarray) -> list[str]:
    at, local = local_exponents(steps, values)
    if not len(at):
        return []
    if len(at) == 1:
        return [f"Local exponent ln(ρ′/ρ)/ln(t′/t): {local[0]:.3f} at step {at[0]:,.0f}."]
    return [
        f"Local exponent ln(ρ′/ρ)/ln(t′/t): {local[0]:.3f} at step {at[0]:,.0f}, "
        f"{local[-1]:.3f} at step {at[-1]:,.0f}."
    ]


def choose_laws(laws: Mapping[str, Fit]) -> list[Fit]:
    """Return the fits worth a curve: the free power, √t (the published claim), and the best law."""
    if not laws:
        return []
    best = best_law(laws)
    names = ["power", "sqrt"]
    if best is not None and best.law not in names:
        names.append(best.law)
    return [laws[name] for name in names if name in laws and not math.isnan(laws[name].r2)]
