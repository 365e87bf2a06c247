"""Timing for the benchmarks: candidates take turns, so that a busy machine slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict]:
    """Return {name: median, lowest and all wall-clock seconds} of `rounds` turns each.

    `cpu_all_s` is the processor's time, which others' load hardly touches.

    One turn more goes before, uncounted: whatever compiles or fills caches does so in it. The order
    turns round with every round, so that nobody always runs behind the same neighbour.
    """
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        names = list(candidates) if turn % 2 else list(reversed(candidates))
        for name in names:
            start, used = time.perf_counter(), time.process_time()
            candidates[name]()
            if turn:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
    return {
        name: {
            "median_s": statistics.median(wall[name]),
            "min_s": min(wall[name]),
            "all_s": wall[name],
            "cpu_all_s": cpu[name],
        }
        for name in candidates
    }


def ratio(timed: Mapping[str, dict], name: str, to: str, which: str = "all_s") -> float:
    """Return the median over rounds of name's time over that of `to` in the same round."""
    pairs = zip(timed[name][which], timed[to][which], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)
