"""What the measure `smoothing` costs beside one forward pass of a T5.

    python benchmarks/smoothing.py [--size t5-base] [--sequences 8] [--length 128] [--repeats 3]

Times, in one process and taking turns, the forward pass with all taps, and the measure's own pass
through the stages, on random weights and tokens. Prints JSON, and a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from saturation.measures.smoothing.measure import SMOOTHING
from saturation.models import T5, T5Config
from saturation.runs.activations import observe_arrays
from saturation.runs.settings import ActivationSettings
from saturation.text.sequences import TokenBatch


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


def programs(config: T5Config, params: Any, tokens: np.ndarray, joint: int = 0) -> dict[str, Any]:
    """The forward pass with all taps, and the measure, `joint` sequences iterated."""
    batch = TokenBatch(tokens, tokens, "made")
    settings = ActivationSettings(batch, batch_size=len(tokens), joint_sequences=joint)

    @jax.jit
    def forward(params):
        return T5(config).apply({"params": params}, tokens, tokens, attention_weights=True)[1]

    arrays = flatten_dict(params, sep="/")
    return {
        "forward": lambda: jax.block_until_ready(forward(params)),
        "smoothing": observe_arrays(config, arrays, (SMOOTHING,), settings),
    }


def inputs(arguments: argparse.Namespace) -> tuple[T5Config, Any, np.ndarray]:
    """A model, its random weights on the device, and random tokens."""
    config = T5Config.published(arguments.size)
    shape = (arguments.sequences, arguments.length)
    tokens = np.random.default_rng(1).integers(1, config.vocab_size, shape).astype(np.int32)
    return config, jax.device_put(random_t5(config)), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="t5-base", help="a published T5, such as t5-small")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--joint-sequences", type=int, default=0)
    arguments = parser.parse_args()
    config, params, tokens = inputs(arguments)
    shape = tokens.shape
    times: dict[str, list[float]] = {}
    compiling = {}
    with jax.default_matmul_precision("highest"):
        ready = programs(config, params, tokens, arguments.joint_sequences)
        for turn in range(arguments.repeats + 1):
            for name, program in ready.items():
                begun = time.perf_counter()
                program()
                seconds = time.perf_counter() - begun
                if turn:
                    times.setdefault(name, []).append(seconds)
                else:
                    compiling[name] = seconds
    ratio = statistics.median(
        measured / forward
        for forward, measured in zip(times["forward"], times["smoothing"], strict=True)
    )
    print(json.dumps({
        "size": arguments.size, "sequences": shape[0], "length": shape[1],
        "device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "seconds": times, "first_call_seconds": compiling, "ratio": ratio,
    }))  # fmt: skip
    print(
        f"smoothing takes {ratio:.2f} forwards in all of a {arguments.size} on {shape[0]} "
        f"sequences of {shape[1]} tokens; one of them is the model as it is."
    )


if __name__ == "__main__":
    main()
