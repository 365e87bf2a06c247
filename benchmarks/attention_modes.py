"""Do heads of a causal decoder attend to one key, to all, or to "around 41"? Under both masks.

    python benchmarks/attention_modes.py TRAJECTORY [--steps 0,1000] [--tokens FILE] [--length 83]

For the self-attention of a T5's decoder, the mean number n of keys that each head attends to is
counted in four networks: the model as it is, its exact parameter limit (MEASURES §6), and the model
of 1000·θ in float64 and in float32, which is what Merrill et al. 2021 count in. In each, the same
scores are counted under two masks: with future keys removed (a correct causal mask), and with
scores multiplied by the mask, as the code released with that paper does: a future key then has
score 0 and wins wherever all allowed scores are negative. States and weights are those under the
correct mask in both cases.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from saturation.attention import tempered_softmax
from saturation.limit import saturate, scale_parameters
from saturation.models import T5, T5Config
from saturation.text.beside import vocabulary_beside
from saturation.text.sequences import read_tokens
from saturation.trajectory.trajectory import open_trajectory

MASKS = {
    "correct": lambda scores: scores,
    "multiplied": lambda scores: jnp.where(jnp.isneginf(scores), 0.0, scores),
}


NETWORKS = ("as it is", "exact limit", "1000 θ, float64", "1000 θ, float32")


def mean_positions(config: T5Config, params, encoder, decoder) -> dict[tuple[str, str], np.ndarray]:
    """{(network, mask): mean n of every decoder self-attention head}."""
    paths = [path for path in config.attention_names() if path.endswith("/self_attention")]

    def scores_of(params):
        _, taps = T5(config).apply({"params": params}, encoder, decoder, attention_weights=True)
        return [taps[f"{path}/scores"] for path in paths]

    def means(counts) -> np.ndarray:
        return np.concatenate([np.asarray(n, np.float64).mean((0, 2)) for n in counts])

    def to_the_bit(params, mask):
        return means([
            (tempered_softmax(mask(scores), 0.0) > 0).sum(-1)
            for scores in jax.jit(scores_of)(params)
        ])  # fmt: skip

    def in_the_limit(params, mask):
        found = jax.jit(saturate(lambda p: [jax.nn.softmax(mask(s)) for s in scores_of(p)]))(params)
        if not all(np.asarray(limit.valid).all() for limit in found):
            raise SystemExit("some rows of the exact limit are not valid")
        return means([(limit.value > 0).sum(-1) for limit in found])

    found = {}
    with jax.default_matmul_precision("highest"):
        for name, mask in MASKS.items():
            with jax.enable_x64(True):
                wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
                found["as it is", name] = to_the_bit(wide, mask)
                found["exact limit", name] = in_the_limit(wide, mask)
                found["1000 θ, float64", name] = to_the_bit(scale_parameters(wide, 1e3), mask)
            found["1000 θ, float32", name] = to_the_bit(scale_parameters(params, 1e3), mask)
    return found


def describe(label: str, found: dict[tuple[str, str], np.ndarray], length: int) -> None:
    future = (length * (length - 1) / 2 + 1) / length  # of a head whose scores are all negative
    for network in NETWORKS:
        for mask in MASKS:
            n = found[network, mask]
            quantiles = " ".join(f"{x:6.2f}" for x in np.quantile(n, (0, 0.25, 0.5, 0.75, 1)))
            print(
                f"{label:12s} {network:16s} {mask:10s} {len(n):3d} heads  n: {quantiles}   "
                f"n < 1.5: {np.mean(n < 1.5):4.0%}   "
                f"|n - {future:.2f}| < 2.5: {np.mean(np.abs(n - future) < 2.5):4.0%}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trajectory", help="a folder of checkpoints, or the name of a published T5")
    parser.add_argument("--steps", help="such as 0,1000; by default the first and the last")
    parser.add_argument("--tokens", default="builtin")
    parser.add_argument("--vocabulary", help="by default the one beside the checkpoints, or bytes")
    parser.add_argument("--length", type=int, default=83)
    parser.add_argument("--sequences", type=int, default=16)
    arguments = parser.parse_args()
    random = arguments.trajectory.startswith("t5-")  # to whose weights all ids are alike
    trajectory = None if random else open_trajectory(arguments.trajectory)
    found = (
        arguments.vocabulary
        or (trajectory and vocabulary_beside(trajectory[trajectory.steps[0]].path, trajectory.path))
        or "bytes"
    )
    batch = read_tokens(
        arguments.tokens, found, arguments.sequences, arguments.length, decoder_input="same"
    )
    tokens = batch.encoder_input_tokens, batch.decoder_input_tokens
    print("n: minimum, quartiles and maximum over heads of the mean number of positions")
    if trajectory is None:
        config = T5Config.published(arguments.trajectory)
        params = jax.jit(T5(config).init)(jax.random.key(0), *(t[:1, :4] for t in tokens))["params"]
        from flax.linen import unbox

        describe("random", mean_positions(config, unbox(params), *tokens), arguments.length)
        return
    steps = trajectory.steps[:1] + trajectory.steps[-1:]
    if arguments.steps:
        steps = tuple(int(step) for step in arguments.steps.split(","))
    for step in steps:
        checkpoint = trajectory[step]
        config = T5Config.from_checkpoint(checkpoint)
        batch.refuse_unknown(config.vocab_size, checkpoint.path)
        found = mean_positions(config, checkpoint.load(), *tokens)
        describe(f"step {step:,}", found, arguments.length)


if __name__ == "__main__":
    main()
