"""One update of the parameters: cross-entropy, its gradient, the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax
from flax.core import meta
from jaxtyping import Array, ArrayLike, Float, Int, Int32

from saturation.models import T5, T5Config
from saturation.text.vocabulary import PAD
from saturation.training.config import PretrainConfig
from saturation.training.data import Batch


class TrainState(TypedDict):
    """What an update changes and a checkpoint holds.

    Keys:
        params: nested dict of float32 arrays, T5X's names.
        opt_state: the optimizer's, optax's tree.
        step: updates so far.
    """

    params: Any
    opt_state: Any
    step: Int32[Array, ""]


Metrics = dict[str, Float[Array, ""]]
Update = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def cross_entropy(
    logits: Float[Array, "batch length vocab"], targets: Int[ArrayLike, "batch length"]
) -> Float[Array, ""]:
    """Mean of −ln p(target) in nats over the targets that are no padding."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    counted = jnp.not_equal(targets, PAD).astype(losses.dtype)
    return jnp.sum(losses * counted) / jnp.sum(counted)


def parameter_norm(params: Any) -> Float[Array, ""]:
    """‖θ‖₂ of all parameters together."""
    return optax.tree_utils.tree_norm(params)


def model_config(config: PretrainConfig, vocab_size: int) -> T5Config:
    """The T5 that a pretraining configuration describes."""
    return T5Config(vocab_size=vocab_size, **config.model.model_dump())


def initial_state(
    model: T5, optimizer: optax.GradientTransformation, batch: Batch, seed: int
) -> TrainState:
    """T5X's random initialisation, and the optimizer's state for it.

    Args:
        model: the network.
        optimizer: what will train it.
        batch: any, for its shapes.
        seed: of the random draws.
    """

    def create(key: Array) -> TrainState:
        variables = model.init(key, batch.encoder_input_tokens, batch.decoder_input_tokens)
        params = meta.unbox(variables["params"])
        return TrainState(
            params=params, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32)
        )

    return jax.jit(create)(jax.random.key(seed))


def make_update(
    model: T5, optimizer: optax.GradientTransformation, schedule: optax.Schedule, dtype: str
) -> Update:
    """The jitted update; the state that goes in is given up for the one that comes out.

    Args:
        model: the network.
        optimizer: moves its parameters.
        schedule: the optimizer's, for the metrics.
        dtype: of the forward and backward pass.

    Returns:
        A function of (state, batch) that returns the next state and the metrics `loss` (in nats,
        on `batch`, before the update), `learning_rate` (of the update) and `norm` (of the
        parameters after it).
    """

    def loss_of(params: Any, batch: Batch) -> Float[Array, ""]:
        cast = jax.tree.map(lambda array: array.astype(dtype), params)
        logits, _ = model.apply(
            {"params": cast}, batch.encoder_input_tokens, batch.decoder_input_tokens
        )
        return cross_entropy(logits, batch.decoder_target_tokens)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, gradient = jax.value_and_grad(loss_of)(state["params"], batch)
        changes, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], changes)
        after = TrainState(params=params, opt_state=opt_state, step=state["step"] + 1)
        rate = jnp.asarray(schedule(state["step"]))
        return after, {"loss": loss, "learning_rate": rate, "norm": parameter_norm(params)}

    return jax.jit(update, donate_argnums=0, compiler_options=_reproducible())


def _reproducible() -> dict[str, bool]:
    """Options with which the compiled update gives the same bits every time.

    A GPU otherwise adds up the gradient of the embedding in the order in which its threads come,
    and chooses its kernels by how long each took. CPUs and TPUs do neither.
    """
    return {"xla_gpu_deterministic_ops": True} if jax.default_backend() == "gpu" else {}
