"""Write a T5 of a published size as T5X initialises it, as a trajectory of one checkpoint.

    python benchmarks/random_t5.py --size t5-base --out /tmp/random_t5_base [--seed 0]

For measuring what a network is before training: `saturation measure /tmp/random_t5_base …`. A
T5-base takes 0.9 GB of disk.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.linen import unbox
from flax.serialization import to_bytes

from saturation.models import T5, T5Config
from saturation.storage.write import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="t5-base", help="a published T5, such as t5-small")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = T5Config.published(arguments.size)
    tokens = jnp.ones((1, 2), jnp.int32)
    params = jax.jit(T5(config).init)(jax.random.key(arguments.seed), tokens, tokens)["params"]
    content = to_bytes({"params": unbox(jax.device_get(params))})
    path = arguments.out / "checkpoint_0"
    write_whole(path, lambda file: file.write(content))
    print(json.dumps({"size": arguments.size, "seed": arguments.seed, "bytes": len(content)}))


if __name__ == "__main__":
    main()
