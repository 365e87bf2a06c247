"""A T5 as a list of stages: the embeddings, each attention, each feed-forward block, norms, head.

All of them are stages of `T5` itself (`T5.run_stage`), applied to no more parameters than they read
and to the first layer's place, so that the stages of all layers are one function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, ArrayLike

from saturation.models.base import Arrays, Stage, Streams, Taps
from saturation.models.config import NORM_BEFORE, SELF_ATTENTIONS, T5Config
from saturation.models.t5 import T5, Place, places, valid_decoder_tokens, valid_encoder_tokens

EMBEDDING = "token_embedder/embedding"


def stages(config: T5Config) -> tuple[Stage, ...]:
    """Return the stages; the first makes the streams of both stacks, the decoder's wait inside."""
    return (_embeddings(config), *_of_stack(config, "encoder"), *_of_stack(config, "decoder"),
            _head(config))  # fmt: skip


def parameter_axes(config: T5Config) -> dict[str, tuple[str | None, ...]]:
    """Return {name of a parameter: logical names of its axes}, such as `("embed", "joined_kv")`.

    Nothing is computed: the model's initialisation is traced on shapes alone.
    """
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    variables = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)
    specs: dict[str, Any] = flatten_dict(nn.get_partition_spec(variables)["params"], sep="/")
    return {name: tuple(spec) for name, spec in specs.items()}


def valid_tokens(tokens: Arrays) -> dict[str, Array]:
    """Return which positions hold a token; none of a row whose encoder tokens are all padding.

    Such a row is no sequence, so that a batch can be filled up to a shape.
    """
    encoder = valid_encoder_tokens(tokens["encoder"])
    decoder = valid_decoder_tokens(tokens["decoder"])
    return {"encoder": encoder, "decoder": decoder & encoder.any(axis=-1, keepdims=True)}


def _embeddings(config: T5Config) -> Stage:
    """The one stage of both stacks, so that the embedding is read once."""
    names = [EMBEDDING, *(n for n in config.parameter_shapes() if n.count("/") == 2 and
                          n.endswith("/relpos_bias/rel_embedding"))]  # fmt: skip
    return Stage(
        name="embedding",
        stack="encoder",
        parameters={name: name for name in names},
        key=(config, "embedding"),
        run=partial(_run_embeddings, config),
        reads=(),
        attention=None,
        scopes={"encoder/embedding": ("x",), "decoder/embedding": ("decoder", "x")},
    )


def _run_embeddings(
    config: T5Config, parameters: Arrays, streams: Streams, tokens: Arrays, temperature: ArrayLike
) -> tuple[Streams, Taps]:
    found, waiting = (
        _run(config, Place(stack, None, "embedding"), parameters, streams, tokens, temperature)[0]
        for stack in ("encoder", "decoder")
    )
    return {**found, "decoder": waiting}, {}


def _of_stack(config: T5Config, stack: str) -> Iterator[Stage]:
    attentions = {attention.path: attention for attention in config.attentions}
    for place in list(places(config, stack))[1:]:
        reads = ["x"]
        if place.part in SELF_ATTENTIONS and not config.per_layer_relative_bias:
            reads.append("bias")
        if place.part == "encoder_decoder_attention":
            reads.append("encoded")
        if place == Place("encoder", None, "final"):
            reads.append("decoder")
            if not config.per_layer_relative_bias:
                reads.append("bias")  # which the decoder's takes the place of
        yield _stage(config, place, reads, attentions.get(place.path))


def _stage(config: T5Config, place: Place, reads: Sequence[str], attention: Any) -> Stage:
    # The feed-forward blocks of both stacks are one function, and each part of all layers is.
    first = Place("encoder" if place.part == "mlp" else place.stack,
                  None if place.layer is None else 0, place.part)  # fmt: skip
    names = [name for name in config.parameter_shapes() if _belongs(name, place)]
    ours, theirs = (_prefix(each) for each in (place, first))
    scopes = {} if place.scope is None else {place.scope: (place.state,)}
    return Stage(
        name=place.path,
        stack=place.stack,
        parameters={theirs + name.removeprefix(ours): name for name in names},
        key=(config, first),
        run=partial(_run, config, first),
        reads=tuple(reads),
        attention=attention,
        scopes=scopes,
    )


def _head(config: T5Config) -> Stage:
    place = Place("decoder", None, "head")
    name = EMBEDDING if config.logits_via_embedding else "decoder/logits_dense/kernel"
    return Stage(
        name=place.path,
        stack="decoder",
        parameters={name: name},
        key=(config, place),
        run=partial(_run, config, place),
        reads=("x",),
        attention=None,
        scopes={},
        head=True,
    )


def _run(
    config: T5Config,
    place: Place,
    parameters: Arrays,
    streams: Streams,
    tokens: Arrays,
    temperature: ArrayLike,
) -> tuple[Streams, Taps]:
    found = T5(config).apply(
        {"params": unflatten_dict(dict(parameters), sep="/")},
        place,
        streams,
        tokens,
        temperature,
        method="run_stage",
    )
    return cast(tuple[Streams, Taps], found)


def _prefix(place: Place) -> str:
    return f"{place.stack}/" if place.layer is None else f"{place.stack}/layers_{place.layer}/"


def _belongs(name: str, place: Place) -> bool:
    """Whether a stage reads the parameter of this name."""
    if not name.startswith(_prefix(place)):
        return False
    within = name.removeprefix(_prefix(place)).split("/")[0]
    if place.part == "final":
        return within == f"{place.stack}_norm"
    if place.part == "mlp":
        return within in ("mlp", "pre_mlp_layer_norm")
    own_bias = within == "relpos_bias" and place.part in SELF_ATTENTIONS
    return within in (place.part, NORM_BEFORE[place.part]) or own_bias
