"""Timing for the benchmarks: candidates take turns, so that a busy machine slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict]:
    """Return {name: median, lowest and all wall-clock seconds} of `rounds` turns each.

    One turn more goes before, uncounted: whatever compiles or fills caches does so in it. The order
    turns round with every round, so that nobody always runs behind the same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        names = list(candidates) if turn % 2 else list(reversed(candidates))
        for name in names:
            start = time.perf_counter()
            candidates[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median_s": statistics.median(times), "min_s": min(times), "all_s": times}
        for name, times in seconds.items()
    }


def ratio(timed: Mapping[str, dict], name: str, to: str) -> float:
    """Return the median over rounds of name's time over that of `to` in the same round."""
    pairs = zip(timed[name]["all_s"], timed[to]["all_s"], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)
