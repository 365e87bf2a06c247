"""How far sums and forward passes on this machine's device are from float64.

    python benchmarks/accelerator.py [--size t5-small]

Sums: norms and 1 − cos of weights of 50 million elements and of a neighbour that is 1e-4 of them
away, carried as this platform carries them and as TPUs do (`two-float`), against float64 NumPy.
Forward passes: logits of a random T5 at the highest precision and at the device's default, against
the same in float64 on the CPU. Prints JSON, then a sentence.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import unbox

from saturation.measures.direction.measure import DIRECTION, one_minus_cosine
from saturation.measures.norms.measure import NORMS
from saturation.models import T5, T5Config
from saturation.runs.reduce import block_statistics, combine, statistic_rules
from saturation.runs.shortcuts import accumulation, previous_delta

BLOCKS, BLOCK = 50, 2**20
MEASURES = (NORMS, DIRECTION)
PLATFORM = {"float64": "gpu", "two-float": "tpu"}


def sums(carried: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Relative errors of the norm and of 1 − cos, with sums carried so."""
    platform = PLATFORM[carried]
    rules = statistic_rules(MEASURES, platform)
    kernel, found = block_statistics(MEASURES, platform), []
    with jax.enable_x64(carried == "float64"):
        for before, now in pairs:
            buffers = (jax.device_put(array) for array in (now, before, before))
            found.append(np.asarray(kernel(np.int32(BLOCK), *buffers), np.float64))
    total = {
        name: combine(rule, np.stack(parts))
        for (name, rule), parts in zip(rules.items(), zip(*found, strict=True), strict=True)
    }
    exact = {"before": 0.0, "now": 0.0, "delta": 0.0, "dot": 0.0}
    for before, now in (tuple(array.astype(np.float64) for array in pair) for pair in pairs):
        exact["before"] += before @ before
        exact["now"] += now @ now
        exact["delta"] += (now - before) @ (now - before)
        exact["dot"] += before @ (now - before)
    if "previous_delta" not in total:
        carried_over = {"previous_squares": exact["before"]}
        total["previous_delta"] = previous_delta(total | carried_over)
    distances = [
        one_minus_cosine(*map(np.float64, terms))
        for terms in (
            (exact["before"], total["delta_squares"], total["previous_delta"]),
            (exact["before"], exact["delta"], exact["dot"]),
        )
    ]
    return {
        "norm": abs(float(np.sqrt(total["sum_squares"] / exact["now"])) - 1),
        "one_minus_cosine": abs(float(distances[0] / distances[1]) - 1),
    }


def logits(size: str) -> dict[str, float]:
    """Largest errors of logits, over the largest logit."""
    config = T5Config.published(size)
    tokens = np.random.default_rng(0).integers(1, 32_000, (4, 64)).astype(np.int32)
    host = jax.local_devices(backend="cpu")[0]

    def forward(params: Any) -> jax.Array:
        return T5(config).apply({"params": params}, tokens, tokens)[0]

    with jax.default_device(host):
        init = jax.jit(T5(config).init)(jax.random.key(0), tokens[:1], tokens[:1])
        params = jax.device_get(unbox(init["params"]))
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
            expected = np.asarray(jax.jit(forward)(wide))
    errors = {}
    for name in ("highest", "default"):
        with jax.default_matmul_precision(name):
            found = np.asarray(jax.jit(forward)(jax.device_put(params)), np.float64)
        errors[name] = float(np.abs(found - expected).max() / np.abs(expected).max())
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="t5-small", help="a published T5")
    arguments = parser.parse_args()
    rng, pairs = np.random.default_rng(0), []
    for _ in range(BLOCKS):
        before = rng.standard_normal(BLOCK, np.float32)
        now = before + np.float32(1e-4) * rng.standard_normal(BLOCK, np.float32)
        pairs.append((before, now))
    device = jax.devices()[0]
    facts = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "carried_here": accumulation(device.platform),
        "errors_of_sums": {carried: sums(carried, pairs) for carried in PLATFORM},
        "errors_of_logits": logits(arguments.size),
    }
    print(json.dumps(facts, indent=1))
    sums_, of_logits = facts["errors_of_sums"], facts["errors_of_logits"]
    print(
        f"{facts['device']}: norms and 1 − cos are off by {sums_['float64']['norm']:.0e} and "
        f"{sums_['float64']['one_minus_cosine']:.0e} with float64 sums, by "
        f"{sums_['two-float']['norm']:.0e} and {sums_['two-float']['one_minus_cosine']:.0e} with "
        f"two floats; {arguments.size}'s logits by {of_logits['highest']:.0e} of the largest at "
        f"the highest precision and {of_logits['default']:.0e} at the default."
    )


if __name__ == "__main__":
    main()
