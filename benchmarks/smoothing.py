"""What the measure `smoothing` costs beside one forward pass of a T5, in time and in products.

    python benchmarks/smoothing.py [--size t5-base] [--sequences 8] [--length 128] [--repeats 3]
    python benchmarks/smoothing.py --against TREE     # a checkout of another version

Times, in one process and taking turns, the forward pass with taps alone and the same with
`smoothing` on top, on random weights and tokens, and counts the floating-point operations of matrix
products in both programs. Prints JSON, and a sentence.

With --against it times the pass with `smoothing` as it is in TREE and as it is here (with
--joint-sequences N also with N iterated), each in a process of its own that works in its turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from interleaved import interleaved, ratio
from jax.extend.core import jaxprs_in_params

from saturation.measures.smoothing.measure import SMOOTHING
from saturation.models import T5Config
from saturation.models.forwards import ModelOutputs
from saturation.runs.reduce import enable_x64

Program = Callable[..., Any]


def random_t5(config: T5Config) -> dict[str, Any]:
    """Weights of T5's sizes: kernels by fan-in, scales 1."""
    generator = np.random.default_rng(0)
    flat = {}
    for name, shape in config.parameter_shapes().items():
        if len(shape) == 1:
            flat[name] = np.ones(shape, np.float32)
        else:
            fan_in = 1 if name.endswith("embedding") else shape[0]
            flat[name] = generator.standard_normal(shape, np.float32) / np.float32(fan_in**0.5)
    return unflatten_dict(flat, sep="/")


def programs(config: T5Config, joint: int = 0) -> dict[str, Program]:
    """The forward pass with all taps, and the same with the measure, `joint` sequences iterated."""

    def forward(params, encoder, decoder):
        return ModelOutputs(config, params, encoder, decoder).at_temperature_one

    def both(params, encoder, decoder):
        # By name and only where asked for: the versions before had no such argument.
        asked = {"iterated": np.arange(len(encoder)) < joint} if joint else {}
        forwards = ModelOutputs(config, params, encoder, decoder, **asked)
        return forwards.at_temperature_one, SMOOTHING.observe(forwards)

    return {"forward": jax.jit(forward), "with_smoothing": jax.jit(both)}


def products(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products in a program, calls and loops entered."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = float(np.prod([left[axis] for axis in contracted]))
            total += 2 * inner * float(np.prod(equation.outvars[0].aval.shape))
        for called in jaxprs_in_params(equation.params):
            total += products(called) * equation.params.get("length", 1)
    return total


def inputs(arguments: argparse.Namespace) -> tuple[T5Config, Any, np.ndarray]:
    """A model, its random weights on the device, and random tokens."""
    config = T5Config.published(arguments.size)
    shape = (arguments.sequences, arguments.length)
    tokens = np.random.default_rng(1).integers(1, config.vocab_size, shape).astype(np.int32)
    return config, jax.device_put(random_t5(config)), tokens


def serve(arguments: argparse.Namespace) -> None:
    """Run the pass once for every line on stdin, and print a line after it."""
    config, params, tokens = inputs(arguments)
    with enable_x64(True), jax.default_matmul_precision("highest"):
        program = programs(config, arguments.joint_sequences)["with_smoothing"]
        for _ in sys.stdin:
            jax.block_until_ready(program(params, tokens, tokens))
            print("done", flush=True)


def against(arguments: argparse.Namespace) -> None:
    """Time another tree's pass and this one's, in turns."""
    here = Path(__file__).resolve().parents[1]
    asked = {"before": (arguments.against, 0), "now": (here, 0)}
    if arguments.joint_sequences:
        asked["now_joint"] = (here, arguments.joint_sequences)
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("size", "sequences", "length")]
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", f"--joint-sequences={joint}", *sizes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(tree)},
        )
        for name, (tree, joint) in asked.items()
    }

    def turn(child: subprocess.Popen[str]) -> None:
        child.stdin.write("\n")
        child.stdin.flush()
        if child.stdout.readline() != "done\n":
            raise SystemExit("A pass failed; its error is above.")

    timed = interleaved({n: lambda c=c: turn(c) for n, c in children.items()}, arguments.repeats)
    for child in children.values():
        child.stdin.close()
        child.wait()
    ratios = {name: ratio(timed, name, "before") for name in asked if name != "before"}
    print(json.dumps({
        "size": arguments.size, "sequences": arguments.sequences, "length": arguments.length,
        "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "median_s": {name: each["median_s"] for name, each in timed.items()}, "ratio": ratios,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="t5-base", help="a published T5, such as t5-small")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--joint-sequences", type=int, default=0)
    parser.add_argument("--against", metavar="TREE", help="a checkout of another version")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
    elif arguments.against:
        against(arguments)
    else:
        beside_forward(arguments)


def beside_forward(arguments: argparse.Namespace) -> None:
    """Time the forward pass with and without the measure, and print both."""
    config, params, tokens = inputs(arguments)
    shape = tokens.shape
    times: dict[str, list[float]] = {}
    compiling, flops = {}, {}
    with enable_x64(True), jax.default_matmul_precision("highest"):
        jitted = programs(config, arguments.joint_sequences)
        for name, program in jitted.items():
            flops[name] = products(jax.make_jaxpr(program)(params, tokens, tokens).jaxpr)
            begun = time.perf_counter()
            jax.block_until_ready(program(params, tokens, tokens))
            compiling[name] = time.perf_counter() - begun
        for _ in range(arguments.repeats):
            for name, program in jitted.items():
                begun = time.perf_counter()
                jax.block_until_ready(program(params, tokens, tokens))
                times.setdefault(name, []).append(time.perf_counter() - begun)
    ratio = statistics.median(
        both / forward
        for forward, both in zip(times["forward"], times["with_smoothing"], strict=True)
    )
    print(json.dumps({
        "size": arguments.size, "sequences": shape[0], "length": shape[1],
        "device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "seconds": times, "first_call_seconds": compiling, "products": flops, "ratio": ratio,
    }))  # fmt: skip
    more = flops["with_smoothing"] / flops["forward"] - 1
    print(
        f"smoothing adds {ratio - 1:.2f} forwards in time and {more:.3f} in matrix products to the "
        f"one forward pass of a {arguments.size} on {shape[0]} sequences of {shape[1]} tokens."
    )


if __name__ == "__main__":
    main()
