"""Whether checkpoints lie along the path of training in the order of their steps.

Weights move a little between checkpoints, so that taking the checkpoints in their order makes a
short path, and taking one from its place into another makes it longer. Where it makes it shorter
the checkpoint is out of place. Likewise for one tensor: it may move far from one checkpoint to the
next, but not away and back, nor to where it is unrelated to what it was, while its like in other
layers stay on their way. The criteria and their thresholds are this project's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

# A reordering must shorten the path by this part of the usual distance between neighbours.
_LEAST_GAIN = 0.1
# How much closer, as cosines, a tensor's neighbours must be to each other than to it, ...
_LEAST_APART = 0.3
# ... and how much its own jump must exceed those of its like, and its own at other steps.
_LEAST_JUMP = 0.4
_UNRELATED = 0.3


def misplaced(
    steps: Sequence[int],
    arrays: Mapping[str, Float[np.ndarray, "step element"]],
) -> list[tuple[tuple[int, ...], str]]:
    """Return the steps whose weights are out of place, with the evidence.

    Args:
      steps: the steps, ascending, at least four for anything to be found.
      arrays: of each array, the same elements at every step.

    Returns:
      ((step, ...), evidence) for each checkpoint that lies elsewhere, or pair that is exchanged.
    """
    if len(steps) < 4:
        return []
    apart = distances(arrays)
    order = list(range(len(steps)))
    found: list[tuple[tuple[int, ...], str]] = []
    for _ in range(len(steps) // 2):
        usual = float(np.median([apart[a, b] for a, b in itertools.pairwise(order)]))
        length = _length(apart, order)
        if not usual > 0:
            break
        # A path is as long backwards: of equal gains, what exchanges the nearest is meant.
        gain, reordered, moved = max(
            _reorderings(apart, order), key=lambda one: (round(one[0] / usual, 6), -np.ptp(one[2]))
        )
        if not gain > _LEAST_GAIN * usual:
            break
        found.append(_evidence(steps, reordered, moved, length, length - gain))
        order = reordered
    return found


def off_their_path(
    steps: Sequence[int], arrays: Mapping[str, Float[np.ndarray, "step element"]]
) -> Iterator[tuple[int, str, str]]:
    """Yield (step, name, evidence) for each array that leaves its path while its like do not."""
    cosines = {
        name: _cosines(values)
        for name, values in arrays.items()
        if values.shape[1] > 8 and np.any(values, axis=1).all()
    }
    jumps = {name: np.diagonal(cosine, 1) for name, cosine in cosines.items()}
    for name, cosine in cosines.items():
        last = len(steps) - 1
        away = [
            at
            for at in range(1, last)
            if cosine[at - 1, at + 1] - max(cosine[at - 1, at], cosine[at, at + 1]) > _LEAST_APART
        ]
        for at in away:
            yield steps[at], name, _away_and_back(steps, cosine, at)
        for at in range(1, len(steps)):
            # The ways to and from a step that was just reported are known.
            expected = None if {at, at - 1} & set(away) else _expected(name, at - 1, jumps)
            jump = cosine[at - 1, at]
            if expected is not None and jump < min(_UNRELATED, expected - _LEAST_JUMP):
                yield (
                    steps[at],
                    name,
                    f"its cosine to step {steps[at - 1]} is {jump:.3f}, where {expected:.3f} was "
                    "to be expected from its own at other steps and its like in other layers",
                )


def distances(
    arrays: Mapping[str, Float[np.ndarray, "step element"]],
) -> Float[np.ndarray, "step step"]:
    """Return the distances between checkpoints, in units of the usual one between neighbours.

    The median over the arrays, each in its own unit, so that a few arrays that were re-initialised
    do not make their checkpoint look out of place.
    """
    each = []
    for values in arrays.values():
        # About the mean, so that nearly equal checkpoints keep their digits.
        centred = values - values.mean(axis=0)
        gram = centred @ centred.T
        norms = np.diagonal(gram)
        apart = np.sqrt(np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0))
        unit = np.median(np.diagonal(apart, 1))
        if unit > 0:
            each.append(apart / unit)
    count = next(iter(arrays.values())).shape[0]
    return np.median(each, axis=0) if each else np.zeros((count, count))


def _length(apart: np.ndarray, order: list[int]) -> float:
    return float(apart[order[:-1], order[1:]].sum())


def _reorderings(
    apart: np.ndarray, order: list[int]
) -> Iterator[tuple[float, list[int], tuple[int, ...]]]:
    """Yield (gain, order, what was moved) of every exchange of two and every move of one."""
    length = _length(apart, order)
    for i, j in itertools.combinations(range(len(order)), 2):
        exchanged = list(order)
        exchanged[i], exchanged[j] = order[j], order[i]
        yield length - _length(apart, exchanged), exchanged, (order[i], order[j])
    for i in range(len(order)):
        rest = order[:i] + order[i + 1 :]
        for j in range(len(order)):
            if abs(i - j) > 1:
                moved = [*rest[:j], order[i], *rest[j:]]
                yield length - _length(apart, moved), moved, (order[i],)


def _evidence(
    steps: Sequence[int], order: Sequence[int], moved: Sequence[int], before: float, after: float
) -> tuple[tuple[int, ...], str]:
    shorter = (
        f"the path through all checkpoints is {before:.4g} long as they are and {after:.4g} "
        "when that is put right, in units of the usual step"
    )
    if len(moved) == 2:
        pair = tuple(sorted(steps[one] for one in moved))
        return pair, f"these two hold each other's weights: {shorter}"
    place = order.index(moved[0])
    near = [steps[order[at]] for at in (place - 1, place + 1) if 0 <= at < len(order)]
    beside = " and ".join(map(str, near))
    return (steps[moved[0]],), f"its weights belong beside those of step {beside}: {shorter}"


def _cosines(values: Float[np.ndarray, "step element"]) -> Float[np.ndarray, "step step"]:
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit @ unit.T


def _away_and_back(steps: Sequence[int], cosine: np.ndarray, at: int) -> str:
    return (
        f"its cosine to step {steps[at - 1]} is {cosine[at - 1, at]:.3f} and to step "
        f"{steps[at + 1]} {cosine[at, at + 1]:.3f}, and theirs to each other "
        f"{cosine[at - 1, at + 1]:.3f}"
    )


def _expected(name: str, at: int, jumps: Mapping[str, np.ndarray]) -> float | None:
    """Return the cosine to expect over an interval, from the array itself and from its like.

    Both say nothing about each other at the start, where some kinds of array change altogether: an
    array that has no like in other layers, or no other interval, is not judged.
    """
    like = [
        float(jumps[other][at])
        for other in jumps
        if other != name and re.sub(r"\d+", "", other) == re.sub(r"\d+", "", name)
    ]
    own = np.delete(jumps[name], at)
    if not like or not own.size:
        return None
    return min(float(np.median(like)), float(np.median(own)))
