"""What saturation costs: the forward at τ = 0, the parameter limit, the whole measure, and memory.

    python benchmarks/saturation_cost.py [--rounds 5] [--size t5-base] [--length 128] [--batch 8]

Everything in forwards of the same model on the same tokens, float32 at the highest matmul
precision: the ordinary forward has its softmax put back into it, the saturated one is the package's
at τ = 0. Times are medians of interleaved rounds; operations are counted by XLA's cost analysis
(of a `cond` it counts every branch). The measure runs as the driver runs it, x64 on, parameters
float32, limits and sums float64. Memory is that of an encoder with one layer at batch 8 × 512, in a
process of its own: what XLA plans and the peak that was measured. Prints JSON, then a sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import unbox
from interleaved import interleaved, ratio

from saturation.limit import saturate
from saturation.measures.forwards import Forwards
from saturation.measures.reduce import enable_x64
from saturation.measures.saturation import SATURATION
from saturation.models import T5, T5Config

MEMORY = {  # of one encoder layer: what is computed, and in which dtype
    "temperature_0": ("forward", jnp.float32),
    "saturate_4_float32": ("saturate", jnp.float32),
    "saturate_4_float64": ("saturate", jnp.float64),
}


def tokens_of(config: T5Config, batch: int, length: int) -> np.ndarray:
    """Zipf tokens, so that some repeat."""
    weight = 1 / np.arange(1, config.vocab_size)
    drawn = np.random.default_rng(0).choice(
        np.arange(1, config.vocab_size), (batch, length), p=weight / weight.sum()
    )
    return drawn.astype(np.int32)


def parameters_of(config: T5Config, tokens: np.ndarray) -> Any:
    init = jax.jit(lambda: T5(config).init(jax.random.key(0), tokens[:1, :4], tokens[:1, :4]))
    return unbox(init()["params"])


def ordinary_softmax(scores, temperature, axis=-1, where=None):
    """What a T5 has that knows no temperature."""
    return jax.nn.softmax(jnp.where(where, scores, -jnp.inf), axis)


def compiled(function: Callable, *args: Any) -> tuple[Callable[[], Any], dict[str, float]]:
    """The function, called with these arguments; seconds to trace and to compile, operations."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    traced = time.perf_counter()
    ready = lowered.compile()
    facts = {
        "trace_s": traced - start,
        "compile_s": time.perf_counter() - traced,
        "gigaflops": float(ready.cost_analysis()["flops"]) / 1e9,
    }
    return lambda: jax.block_until_ready(ready(*args)), facts


def candidates(config: T5Config, params: Any, tokens: np.ndarray) -> dict[str, tuple]:
    """{name: (call, facts)} of everything that is timed."""

    def forward(params, temperature):
        return T5(config).apply({"params": params}, tokens, tokens, temperature)[0]

    def states(params):
        return T5(config).apply({"params": params}, tokens, tokens)[1]

    def measured(params, limits, terms):
        return SATURATION.observe(Forwards(config, params, tokens, tokens, 1000.0, terms, limits))

    both = ("attention", "parameter")
    with mock.patch("saturation.models.layers.tempered_softmax", ordinary_softmax):
        found = {"ordinary": compiled(partial(forward, temperature=1.0), params)}
    found["temperature_0"] = compiled(forward, params, 0.0)
    with enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        for terms in (1, 4):
            for name, leaves in (("float32", params), ("float64", wide)):
                found[f"saturate_{terms}_{name}"] = compiled(saturate(states, terms), leaves)
        del wide, leaves
        for name, limits, terms in (
            ("measure_attention", ("attention",), 4),
            ("measure_both_1", both, 1),
            ("measure_both_4", both, 4),
            ("measure_all_4", (*both, "scaled"), 4),
        ):
            found[name] = compiled(partial(measured, limits=limits, terms=terms), params)
    return found


def layer_memory(name: str) -> dict[str, float]:
    """Gigabytes of an encoder with one layer at batch 8 × 512, in this process alone."""
    kind, dtype = MEMORY[name]
    config = dataclasses.replace(T5Config.published("t5-base"), num_encoder_layers=1)
    tokens = tokens_of(config, 8, 512)

    def encode(params, temperature=0.0):
        return T5(config).apply({"params": params}, tokens, temperature, method="encode")[1]

    function = encode if kind == "forward" else saturate(partial(encode, temperature=1.0), 4)
    with enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
        shapes = jax.eval_shape(lambda: parameters_of(config, tokens))
        shapes = {key: shapes[key] for key in ("token_embedder", "encoder")}
        params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, dtype), shapes)
        ready = jax.jit(function).lower(params).compile()
        jax.block_until_ready(ready(params))
    planned = ready.memory_analysis()
    parts = (
        planned.argument_size_in_bytes,
        planned.temp_size_in_bytes,
        planned.output_size_in_bytes,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"planned_gb": sum(parts) / 1e9, "peak_gb": peak / 1e9}


def in_a_process(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="t5-base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--memory", choices=MEMORY, help="print the memory of one layer, no more")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(layer_memory(arguments.memory)))
        return

    jax.config.update("jax_default_matmul_precision", "highest")
    config = T5Config.published(arguments.size)
    tokens = tokens_of(config, arguments.batch, arguments.length)
    found = candidates(config, parameters_of(config, tokens), tokens)
    timed = interleaved({name: call for name, (call, _) in found.items()}, arguments.rounds)
    operations = {name: facts["gigaflops"] for name, (_, facts) in found.items()}
    facts = {
        "model": arguments.size,
        "batch": arguments.batch,
        "tokens": [arguments.length, arguments.length],
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "compiled": {name: facts for name, (_, facts) in found.items()},
        "timed": timed,
        "forwards": {name: ratio(timed, name, to="ordinary") for name in timed},
        "forwards_by_operations": {
            name: count / operations["ordinary"] for name, count in operations.items()
        },
        "one_encoder_layer_8_x_512": {name: in_a_process(name) for name in MEMORY},
    }
    print(json.dumps(facts, indent=1))
    print(sentence(facts))


def sentence(facts: dict[str, Any]) -> str:
    forwards, memory = facts["forwards"], facts["one_encoder_layer_8_x_512"]
    return (
        f"{facts['model']}: the forward at temperature 0 takes {forwards['temperature_0']:.2f} of "
        f"the ordinary one ({facts['forwards_by_operations']['temperature_0']:.3f} by operations); "
        f"the parameter limit {forwards['saturate_1_float32']:.1f} forwards with 1 term and "
        f"{forwards['saturate_4_float32']:.1f} with 4 in float32, "
        f"{forwards['saturate_1_float64']:.1f} and {forwards['saturate_4_float64']:.1f} in "
        f"float64; measuring to the attention limit {forwards['measure_attention']:.2f} in all, to "
        f"both {forwards['measure_both_1']:.1f} with 1 term and "
        f"{forwards['measure_both_4']:.1f} with 4; "
        f"an encoder layer at 8 x 512 peaks at {memory['temperature_0']['peak_gb']:.1f} GB at "
        f"temperature 0, {memory['saturate_4_float32']['peak_gb']:.1f} GB (float32) and "
        f"{memory['saturate_4_float64']['peak_gb']:.1f} GB (float64) in the parameter limit."
    )


if __name__ == "__main__":
    main()
