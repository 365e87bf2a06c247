"""Time a growth fit, or simulate how often its interval holds the exponent.

    python benchmarks/growth.py [--points 1000] [--repeats 5]
    python benchmarks/growth.py --coverage [--runs 200]

Without `--coverage`: the seconds of each repeat, after one that warms up, as JSON, and a sentence.
The target is 2 s.

With it: a·t^p plus errors of known covariance, 1 % of the growth in size, on even and log-spaced
steps, with step 0 and without. A row says how often the 95 % interval of `fit_growth` holds p, and
how wide it is beside that of the fit that knows the covariance (generalised least squares by its
Cholesky factor, F profile). Exit 1 unless every row covers 0.80, the mean of rows 0.90, and every
median width is at most 1.3 times that of the fit that knows. 200 runs take 5 minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import NamedTuple

import numpy as np
from interleaved import interleaved
from scipy.stats import f as f_distribution

from saturation.growth.autoregression import errors_on
from saturation.growth.fit import fit_growth

TARGET = 2.0  # seconds
GRIDS = {
    "104 even": 5100.0 * np.arange(1, 105),
    "104 even, from 0": 5100.0 * np.arange(104),
    "24 log": np.geomspace(10, 100_000, 24),
    "24 log, from 0": np.concatenate([[0.0], np.geomspace(10, 100_000, 23)]),
}
ERRORS = {  # {name: (clock, φ)}
    "index, φ = 0": ("index", 0.0),
    "index, φ = 0.9": ("index", 0.9),
    "index, φ = 0.97": ("index", 0.97),
    "t, φ = 0.9": ("t", 0.9),
    "ln t, φ = 0.9": ("ln t", 0.9),
}
POWERS = (0.25, 0.56)
NOISE = 0.01  # of the growth
SEARCHED = np.concatenate(
    [np.arange(0.001, 1.2, 2e-4), np.arange(1.2, 5, 0.01)]
)  # where V is known
LEAST_COVERAGE, LEAST_MEAN, MOST_WIDTH = 0.80, 0.90, 1.3


class Row(NamedTuple):
    """What simulation found on one grid, with one kind of errors and one exponent."""

    grid: str
    errors: str
    p: float
    coverage: float
    width: float
    known_coverage: float
    known_width: float
    clocks: dict[str, int]

    @property
    def ratio(self) -> float:
        return self.width / self.known_width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.coverage:
        sys.exit(show_coverage(arguments.runs))
    t = np.linspace(0, 10_000, arguments.points)
    rho = 2 * np.sqrt(t) + 50 + np.random.default_rng(0).normal(0, 0.5, arguments.points)
    timed = interleaved({"fit": lambda: fit_growth(t, rho)}, arguments.repeats)["fit"]
    print(json.dumps({"points": arguments.points, "seconds": timed["all_s"]}))
    print(
        f"A power law, its interval and its parts over {arguments.points} points take "
        f"{timed['median_s']:.2f} s (target {TARGET:.0f})."
    )


def show_coverage(runs: int) -> int:
    """Print the table of every row, and return 1 if a limit is missed."""
    print("| steps | errors | p | coverage | median width | that of known V | ratio | clocks |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for number, (grid, errors, p) in enumerate(
        (grid, errors, p) for grid in GRIDS for errors in ERRORS for p in POWERS
    ):
        row = simulate(grid, errors, p, runs, np.random.default_rng(number))
        rows.append(row)
        chosen = ", ".join(f"{name} {count}" for name, count in row.clocks.items())
        print(
            f"| {grid} | {errors} | {p} | {row.coverage:.3f} | {row.width:.4f} "
            f"| {row.known_width:.4f} | {row.ratio:.2f} | {chosen} |",
            flush=True,
        )
    least, mean = min(row.coverage for row in rows), np.mean([row.coverage for row in rows])
    known = np.mean([row.known_coverage for row in rows])
    widest = max(row.ratio for row in rows)
    print(
        f"{runs} runs a row: coverage {least:.3f} at least (limit {LEAST_COVERAGE:.2f}), "
        f"{mean:.3f} in the mean (limit {LEAST_MEAN:.2f}; {known:.3f} where V is known); "
        f"widths at most {widest:.2f} times those of the fit that knows V (limit {MOST_WIDTH})."
    )
    return int(least < LEAST_COVERAGE or mean < LEAST_MEAN or widest > MOST_WIDTH)


def simulate(grid: str, errors: str, p: float, runs: int, generator: np.random.Generator) -> Row:
    """Fit `runs` simulated series by `fit_growth` and by the fit that knows V."""
    t, (clock, phi) = GRIDS[grid], ERRORS[errors]
    reading = np.concatenate([[0.0], np.cumsum(errors_on(clock, t).gaps)])
    factor = np.linalg.cholesky(phi ** np.abs(reading[:, None] - reading))
    growth = (t / t[-1]) ** p
    scale = NOISE * np.ptp(growth)
    series = growth + 1 + scale * (generator.normal(size=(runs, len(t))) @ factor.T)
    fits = [fit_growth(t, values, parts=False) for values in series]
    found = np.array([fit.interval for fit in fits])
    known = known_intervals(t, series, factor)
    return Row(
        grid,
        errors,
        p,
        float(np.mean((found[:, 0] <= p) & (p <= found[:, 1]))),
        float(np.median(np.diff(found))),
        float(np.mean((known[:, 0] <= p) & (p <= known[:, 1]))),
        float(np.median(np.diff(known))),
        {name: sum(fit.clock == name for fit in fits) for name in ("index", "t", "ln t")},
    )


def known_intervals(t: np.ndarray, series: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return the 95 % intervals of p, (runs, 2), by generalised least squares with the true V."""
    n = len(t)
    ones = np.linalg.solve(factor, np.ones(n))
    ones /= np.linalg.norm(ones)
    white = np.linalg.solve(factor, series.T).T
    white -= np.outer(white @ ones, ones)
    curves = np.linalg.solve(factor, (t[:, None] / t[-1]) ** SEARCHED).T
    curves -= np.outer(curves @ ones, ones)
    curves /= np.linalg.norm(curves, axis=1, keepdims=True)
    residual = np.sum(white**2, axis=1, keepdims=True) - (white @ curves.T) ** 2
    limit = 1 + f_distribution.ppf(0.95, 1, n - 3) / (n - 3)
    inside = residual <= limit * residual.min(axis=1, keepdims=True)
    last = inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
    return SEARCHED[np.stack([inside.argmax(axis=1), last], axis=1)]


if __name__ == "__main__":
    main()
