"""Do heads of a causal decoder attend to one key, to all, or to "around 41"? Under both masks.

    python benchmarks/attention_modes.py TRAJECTORY [--steps 0,1000] [--tokens FILE] [--length 83]

For the self-attention of a T5's decoder, the mean number n of keys that each head attends to at
τ = 0 is counted twice from the same scores: with future keys removed (a correct causal mask), and
with scores multiplied by the mask, as the code released with Merrill et al. 2021 does: a future key
then has score 0 and wins wherever all allowed scores are negative. States and weights are those of
the model under its correct mask in both cases.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from saturation.attention import tempered_softmax
from saturation.batches import read_tokens
from saturation.measures.forwards import Forwards
from saturation.models import T5, T5Config
from saturation.trajectory import open_trajectory

MASKS = {
    "correct": lambda scores: scores,
    "multiplied": lambda scores: jnp.where(jnp.isneginf(scores), 0.0, scores),
}


def mean_positions(config: T5Config, params, encoder, decoder) -> dict[str, np.ndarray]:
    """{mask: mean n of every decoder self-attention head}, and the share of rows all negative."""

    @jax.jit
    def count(params, encoder, decoder):
        taps = Forwards(config, params, encoder, decoder).soft
        found = {name: [] for name in (*MASKS, "negative")}
        for path in config.attention_names():
            if path.endswith("/self_attention"):
                scores = taps[f"{path}/scores"]
                for name, mask in MASKS.items():
                    n = (tempered_softmax(mask(scores), 0.0) > 0).sum(-1)
                    found[name].append(n.mean((0, 2), dtype=jnp.float32))
                found["negative"].append((scores.max(-1) < 0).mean((0, 2), dtype=jnp.float32))
        return {name: jnp.concatenate(parts) for name, parts in found.items()}

    with jax.default_matmul_precision("highest"):
        return jax.device_get(count(params, encoder, decoder))


def describe(label: str, found: dict[str, np.ndarray], length: int) -> None:
    future = (length * (length - 1) / 2 + 1) / length  # of a head whose scores are all negative
    for mask in MASKS:
        n = found[mask]
        quantiles = " ".join(f"{x:6.2f}" for x in np.quantile(n, (0, 0.25, 0.5, 0.75, 1)))
        near_one = np.mean(n < 1.5)
        near_all_negative = np.mean(np.abs(n - future) < 2.5)
        print(
            f"{label:14s} {mask:10s} {len(n):3d} heads  n: {quantiles}   "
            f"n < 1.5: {near_one:4.0%}   |n - {future:.2f}| < 2.5: {near_all_negative:4.0%}"
        )
    negative = found["negative"]
    print(
        f"{label:14s} rows whose scores are all negative: median head {np.median(negative):.0%}, "
        f"most {negative.max():.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trajectory", help="a folder of checkpoints, or the name of a published T5")
    parser.add_argument("--steps", help="such as 0,1000; by default the first and the last")
    parser.add_argument("--tokens", default="builtin")
    parser.add_argument("--length", type=int, default=83)
    parser.add_argument("--sequences", type=int, default=16)
    arguments = parser.parse_args()
    batch = read_tokens(
        arguments.tokens, "bytes", arguments.sequences, arguments.length, decoder_input="same"
    )
    tokens = batch.encoder_input_tokens, batch.decoder_input_tokens
    print("n: minimum, quartiles and maximum over heads of the mean number of positions")
    if arguments.trajectory.startswith("t5-"):
        config = T5Config.published(arguments.trajectory)
        params = jax.jit(T5(config).init)(jax.random.key(0), *(t[:1, :4] for t in tokens))["params"]
        from flax.linen import unbox

        describe("random", mean_positions(config, unbox(params), *tokens), arguments.length)
        return
    trajectory = open_trajectory(arguments.trajectory)
    steps = trajectory.steps[:1] + trajectory.steps[-1:]
    if arguments.steps:
        steps = tuple(int(step) for step in arguments.steps.split(","))
    for step in steps:
        checkpoint = trajectory[step]
        config = T5Config.from_parameters(checkpoint.parameters)
        found = mean_positions(config, checkpoint.load(), *tokens)
        describe(f"step {step:,}", found, arguments.length)


if __name__ == "__main__":
    main()
