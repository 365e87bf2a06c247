"""Time a growth fit with its interval: 1,000 bootstrap draws of a long trajectory.

    python benchmarks/growth.py [--points 1000] [--repeats 5]

Prints the seconds of each repeat, after one that warms up, as JSON, and a sentence. The target is
2 s.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from interleaved import interleaved

from saturation.growth import fit_growth

TARGET = 2.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    t = np.linspace(0, 10_000, arguments.points)
    rho = 2 * np.sqrt(t) + 50 + np.random.default_rng(0).normal(0, 0.5, arguments.points)
    timed = interleaved({"fit": lambda: fit_growth(t, rho)}, arguments.repeats)["fit"]
    print(json.dumps({"points": arguments.points, "seconds": timed["all_s"]}))
    print(
        f"A power law and its interval over {arguments.points} points take "
        f"{timed['median_s']:.2f} s (target {TARGET:.0f})."
    )


if __name__ == "__main__":
    main()
