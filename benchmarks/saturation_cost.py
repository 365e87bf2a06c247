"""What saturation costs: the forward at τ = 0, the parameter limit, the whole measure, and memory.

    python benchmarks/saturation_cost.py [--rounds 5] [--size t5-base] [--all]

Everything in forwards of the same model on the same tokens, float32 at the highest matmul
precision: the ordinary forward has its softmax put back into it, the saturated one is the package's
at τ = 0. Ratios are medians over rounds in which all of a group take turns, by the wall clock and
by the processor's time; operations are counted by XLA's cost analysis (of a `cond` it counts every
branch). The measures run as the driver runs them: x64 on, parameters float32, limits and sums
float64. Memory is that of an encoder with one layer at batch 8 × 512, in a process of its own: what
XLA plans and the peak that was measured. Of the limit in float32 it also says how far it is from
that in float64. Prints JSON, then a sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import unbox
from flax.traverse_util import flatten_dict
from interleaved import interleaved, ratio

from saturation.limit import count_ties, saturate
from saturation.measures.homogeneity.measure import HOMOGENEITY
from saturation.measures.means import cosine
from saturation.measures.saturation.measure import SATURATION
from saturation.models import T5, T5Config
from saturation.runs.activations import observe_arrays
from saturation.runs.settings import ActivationSettings
from saturation.text.sequences import TokenBatch

BOTH = ("attention", "parameter")
MEASURES = {  # name: (measure, what it compares with, terms)
    "attention": (SATURATION, ("attention",), 4),
    "both_1": (SATURATION, BOTH, 1),
    "both_4": (SATURATION, BOTH, 4),
}
COSTLIER = {
    "all_4": (SATURATION, (*BOTH, "scaled"), 4),
    "homogeneity": (HOMOGENEITY, BOTH, 4),
}
MEMORY = {  # of one encoder layer: whether it is the parameter limit, and the dtype
    "temperature_0": (False, jnp.float32),
    "saturate_4_float32": (True, jnp.float32),
    "saturate_4_float64": (True, jnp.float64),
}
Candidates = dict[str, tuple[Callable[[], Any], dict[str, float]]]


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


def widened(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)


def states(config: T5Config, tokens: np.ndarray, params: Any) -> dict[str, jax.Array]:
    return T5(config).apply({"params": params}, tokens, tokens)[1]


def compiled(function: Callable, *args: Any) -> tuple[Callable[[], Any], dict[str, float]]:
    """The function, called with these arguments; seconds to trace and compile, operations."""
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


def ordinary_softmax(scores, temperature, axis=-1, where=None):
    """What a T5 has that knows no temperature."""
    return jax.nn.softmax(jnp.where(where, scores, -jnp.inf), axis)


def forwards(config: T5Config, params: Any, tokens: np.ndarray) -> Candidates:
    """The ordinary forward, and the package's at τ = 0."""

    def forward(params, temperature):
        return T5(config).apply({"params": params}, tokens, tokens, temperature=temperature)[0]

    with mock.patch("saturation.models.layers.tempered_softmax", ordinary_softmax):
        ordinary = compiled(partial(forward, temperature=1.0), params)
    return {"ordinary": ordinary, "temperature_0": compiled(forward, params, 0.0)}


def limits(config: T5Config, params: Any, tokens: np.ndarray) -> Candidates:
    """The parameter limit of every layer, with 1 and 4 terms, in float32 and float64."""
    run = partial(states, config, tokens)
    found = {}
    with jax.enable_x64(True):
        for name, leaves in (("float32", params), ("float64", widened(params))):
            for terms in (1, 4):
                found[f"saturate_{terms}_{name}"] = compiled(saturate(run, terms), leaves)
    return found


def measures(
    config: T5Config, params: Any, tokens: np.ndarray, which: dict[str, Any] = MEASURES
) -> Candidates:
    """Whole measures of one batch, as the driver takes them."""

    arrays = flatten_dict(params, sep="/")
    found = {}
    for name, (measure, compared, terms) in which.items():
        settings = ActivationSettings(
            TokenBatch(tokens, tokens, "made"),
            batch_size=len(tokens),
            terms=terms,
            limits=compared,
        )
        observe, begun = observe_arrays(config, arrays, (measure,), settings), time.perf_counter()
        observe()
        found[f"measure_{name}"] = observe, {"first_call_s": time.perf_counter() - begun}
    return found


def costlier(config: T5Config, params: Any, tokens: np.ndarray) -> Candidates:
    """Measures that take many forwards."""
    return measures(config, params, tokens, COSTLIER)


def agreement(config: T5Config, params: Any, tokens: np.ndarray) -> dict[str, float]:
    """How far the limit in float32 is from that in float64: means, tokens, ties."""
    run = partial(states, config, tokens)

    @jax.jit
    def limit(leaves):
        return saturate(run)(leaves), count_ties(run)(leaves)

    with jax.enable_x64(True):
        soft = jax.jit(run)(params)
        (narrow, narrow_ties), (wide, wide_ties) = limit(params), limit(widened(params))
        means, apart = [], []
        for scope in soft:
            means += [(cosine(soft[scope], one[scope].value)).mean() for one in (narrow, wide)]
            apart.append(cosine(narrow[scope].value, wide[scope].value) < 0.999)
    means = np.array(means).reshape(-1, 2)
    return {
        "largest_difference_of_mean_cosines": float(np.abs(means[:, 0] - means[:, 1]).max()),
        "share_of_states_apart": float(np.mean([np.mean(each) for each in apart])),
        "share_of_states_apart_in_the_last_layer": float(np.mean(apart[-1])),
        "ties_float32": int(narrow_ties),
        "ties_float64": int(wide_ties),
    }


def layer_memory(name: str) -> dict[str, float]:
    """Gigabytes of an encoder with one layer at batch 8 × 512, in this process alone."""
    limit, dtype = MEMORY[name]
    config = dataclasses.replace(T5Config.published("t5-base"), num_encoder_layers=1)
    tokens = tokens_of(config, 8, 512)

    def encode(params, temperature=0.0):
        return T5(config).apply(
            {"params": params}, tokens, temperature=temperature, method="encode"
        )[1]

    function = saturate(partial(encode, temperature=1.0), 4) if limit else encode
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
        shapes = jax.eval_shape(lambda: parameters_of(config, tokens))
        params = {
            key: jax.tree.map(
                lambda s: jnp.asarray(rng.standard_normal(s.shape), dtype), shapes[key]
            )
            for key in ("token_embedder", "encoder")
        }
        ready = jax.jit(function).lower(params).compile()
        jax.block_until_ready(ready(params))
    planned = ready.memory_analysis()
    given, made = planned.argument_size_in_bytes, planned.output_size_in_bytes
    return {
        "planned_gb": (given + planned.temp_size_in_bytes + made) / 1e9,
        "peak_gb": peak_bytes() / 1e9,
    }


def peak_bytes() -> int:
    """The most memory that the device, or else the process, has used so far."""
    of_device = jax.local_devices()[0].memory_stats()
    if of_device is not None:
        return of_device["peak_bytes_in_use"]
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


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
    parser.add_argument("--all", action="store_true", help="f(x; cθ) and homogeneity too")
    parser.add_argument("--memory", choices=MEMORY, help="print the memory of one layer, no more")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(layer_memory(arguments.memory)))
        return

    memory = {name: in_a_process(name) for name in MEMORY}
    jax.config.update("jax_default_matmul_precision", "highest")
    config = T5Config.published(arguments.size)
    tokens = tokens_of(config, arguments.batch, arguments.length)
    params = parameters_of(config, tokens)
    first = forwards(config, params, tokens)
    seconds, in_forwards, in_cpu = {}, {}, {}
    facts_compiled = {name: each for name, (_, each) in first.items()}
    for group in (forwards, limits, measures, *([costlier] if arguments.all else [])):
        found = first | group(config, params, tokens)
        timed = interleaved({name: call for name, (call, _) in found.items()}, arguments.rounds)
        facts_compiled |= {name: each for name, (_, each) in found.items()}
        seconds[group.__name__] = timed
        in_forwards |= {name: ratio(timed, name, "ordinary") for name in timed}
        in_cpu |= {name: ratio(timed, name, "ordinary", "cpu_all_s") for name in timed}
        del found
    operations = {n: each["gigaflops"] for n, each in facts_compiled.items() if "gigaflops" in each}
    facts = {
        "model": arguments.size,
        "batch": arguments.batch,
        "tokens": [arguments.length, arguments.length],
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "compiled": facts_compiled,
        "timed": seconds,
        "forwards": in_forwards,
        "forwards_by_processor_time": in_cpu,
        "forwards_by_operations": {
            name: count / operations["ordinary"] for name, count in operations.items()
        },
        "float32_against_float64": agreement(config, params, tokens),
        "one_encoder_layer_8_x_512": memory,
    }
    print(json.dumps(facts, indent=1))
    print(sentence(facts))


def sentence(facts: dict[str, Any]) -> str:
    took, memory = facts["forwards"], facts["one_encoder_layer_8_x_512"]
    apart = facts["float32_against_float64"]
    costly = "costlier" in facts["timed"]
    return (
        f"{facts['model']}: the forward at temperature 0 takes {took['temperature_0']:.2f} of the "
        f"ordinary one ({facts['forwards_by_operations']['temperature_0']:.3f} by operations); the "
        f"parameter limit {took['saturate_1_float32']:.1f} forwards with 1 term and "
        f"{took['saturate_4_float32']:.1f} with 4 in float32, {took['saturate_1_float64']:.1f} and "
        f"{took['saturate_4_float64']:.1f} in float64, and the two dtypes' mean cosines differ by "
        f"{apart['largest_difference_of_mean_cosines']:.1e} at most; measuring saturation to the "
        f"attention limit takes {took['measure_attention']:.2f} forwards in all, to both limits "
        f"{took['measure_both_1']:.1f} with 1 term and {took['measure_both_4']:.1f} with 4"
        + "".join(f", {name} {took[f'measure_{name}']:.0f}" for name in COSTLIER if costly)
        + f"; an encoder layer at 8 x 512 peaks at "
        f"{memory['temperature_0']['peak_gb']:.1f} GB at temperature 0, and in the parameter limit "
        f"at {memory['saturate_4_float32']['peak_gb']:.1f} GB in float32 and "
        f"{memory['saturate_4_float64']['peak_gb']:.1f} GB in float64."
    )


if __name__ == "__main__":
    main()
