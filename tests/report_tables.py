"""Small results tables with known answers, computed from vectors that grow as a chosen power."""

from __future__ import annotations

import numpy as np
import pandas as pd

UNIFORM = tuple(range(0, 2001, 80))
LOG_SPACED = (0, 1, 2, 3, 5, 8, 12, 19, 30, 46, 71, 110, 170, 264, 409, 634, 983, 1524, 2000)


def rows(steps, measure, metric, scope, values, previous=None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "step": np.asarray(steps, np.int64),
            "measure": measure,
            "metric": metric,
            "scope": scope,
            "value": np.asarray(values, np.float64),
            "previous_step": pd.array(
                [None] * len(steps) if previous is None else list(previous), dtype="Int64"
            ),
        }
    )


def vectors(steps, seed: int = 0, power: float = 0.6) -> dict[str, np.ndarray]:
    """Return {scope: (step, size)}: 2 + 2 layers and an embedding whose norms grow as t^power."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for depth, name in enumerate(
        (
            "encoder/layers_0",
            "encoder/layers_1",
            "decoder/layers_0",
            "decoder/layers_1",
            "embedding",
        )
    ):
        start, across = generator.normal(size=(2, 60))
        growth = (np.asarray(steps, float) ** power)[:, None]
        arrays[name] = start * (1 + 0.02 * (1 + depth) * growth) + 0.001 * across * growth
    encoder = np.concatenate([arrays["encoder/layers_0"], arrays["encoder/layers_1"]], axis=1)
    decoder = np.concatenate([arrays["decoder/layers_0"], arrays["decoder/layers_1"]], axis=1)
    blocks = np.concatenate([encoder, decoder], axis=1)
    total = np.concatenate([blocks, arrays["embedding"]], axis=1)
    return arrays | {"encoder": encoder, "decoder": decoder, "blocks": blocks, "total": total}


def norms(steps=UNIFORM, seed: int = 0, power: float = 0.6) -> pd.DataFrame:
    return pd.concat(
        [
            rows(steps, "norms", "l2", scope, np.linalg.norm(theta, axis=1))
            for scope, theta in vectors(steps, seed, power).items()
        ],
        ignore_index=True,
    )


def direction(steps=UNIFORM, seed: int = 0, power: float = 0.6) -> pd.DataFrame:
    tables = []
    for scope, theta in vectors(steps, seed, power).items():
        before, delta = theta[:-1], np.diff(theta, axis=0)
        length, step = np.linalg.norm(before, axis=1), np.linalg.norm(delta, axis=1)
        after, dot = np.linalg.norm(theta[1:], axis=1), np.sum(before * delta, axis=1)
        cosine = np.sum(before * theta[1:], axis=1) / (length * after)
        radial = 2 * dot + (dot / length) ** 2
        values = {
            "cosine": cosine,
            "cosine_distance": 1 - cosine,
            "step_norm": step,
            "relative_step": step / length,
            "alignment": dot / (step * length),
            "radial": radial,
            "tangential": after**2 - length**2 - radial,
        }
        for metric, value in values.items():
            tables.append(rows(steps[1:], "direction", metric, scope, value, steps[:-1]))
        t = np.asarray(steps, float)
        later = t[:-1] > 0
        log_t = np.log(t[1:][later] / t[:-1][later])
        exponent = np.log(after / length)[later] / log_t
        part = radial[later] / (after**2 - length**2)[later]
        for metric, value in {
            "exponent": exponent,
            "exponent_radial": exponent * part,
            "exponent_tangential": exponent * (1 - part),
        }.items():
            then, now = (np.asarray(steps)[cut][later] for cut in (slice(-1), slice(1, None)))
            tables.append(rows(now, "direction", metric, scope, value, then))
        to_first = theta[1:] @ theta[0] / (after * length[0])
        first = [steps[0]] * (len(steps) - 1)
        tables.append(rows(steps[1:], "direction", "cosine_to_first", scope, to_first, first))
    return pd.concat(tables, ignore_index=True)


def full(steps=UNIFORM, seed: int = 0, power: float = 0.6) -> pd.DataFrame:
    return pd.concat([norms(steps, seed, power), direction(steps, seed, power)], ignore_index=True)
