"""A decoder or encoder as a list of stages: embedding, each branch of each block, norm, head.

Each is a part of `LM` itself, applied to no more parameters than it reads, so that the stages of
all layers are one function. Its tokens stand under the one stack's name, "".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

from flax.traverse_util import unflatten_dict
from jaxtyping import Array, ArrayLike

from saturation.models.base import STREAM, Arrays, Stage, Streams, Taps
from saturation.models.lm import LM, Block, valid_tokens
from saturation.models.lm_config import LMConfig

_AXES = {
    "token_embedder/embedding": ("vocab", "embed"),
    "logits_dense/kernel": ("embed", "vocab"),
    "logits_dense/bias": ("vocab",),
    "attention/query/kernel": ("embed", "joined_kv"),
    "attention/key/kernel": ("embed", "joined_kv"),
    "attention/value/kernel": ("embed", "joined_kv"),
    "attention/out/kernel": ("joined_kv", "embed"),
    "mlp/wi/kernel": ("embed", "mlp"),
    "mlp/wi_0/kernel": ("embed", "mlp"),
    "mlp/wi_1/kernel": ("embed", "mlp"),
    "mlp/wo/kernel": ("mlp", "embed"),
}


def parameter_axes(config: LMConfig) -> dict[str, tuple[str | None, ...]]:
    """Return {name of a parameter: logical names of its axes}; None where none is ever split."""
    return {
        name: _AXES.get(_within(name), (None,) * len(shape))
        for name, shape in config.parameter_shapes().items()
    }


def stages(config: LMConfig) -> tuple[Stage, ...]:
    """Return the stages, in order."""
    return tuple(_stages(config))


def _stages(config: LMConfig) -> Iterator[Stage]:
    (stack,) = config.stacks
    yield _of_model(config, "embed", config.embedding_shapes(), {stack.embedding: (STREAM,)}, ())
    for number, attention in enumerate(config.attentions):
        first, second = (_of_block(config, number, part) for part in ("attention", "mlp"))
        yield Stage(
            *(f"{attention.layer}/attention", stack.name, *first),
            reads=(STREAM,),
            attention=attention,
            scopes={},
        )
        reads = (STREAM, "branch") if config.parallel_residual else (STREAM,)
        yield Stage(
            *(f"{attention.layer}/mlp", stack.name, *second),
            reads=reads,
            attention=None,
            scopes={attention.layer: (STREAM,)},
        )
    if stack.final is not None:
        yield _of_model(config, "end", config.final_shapes(), {stack.final: (STREAM,)}, (STREAM,))
    head = config.head_shapes()
    if config.logits_via_embedding:
        head = {"token_embedder/embedding": (), **head}
    yield _of_model(config, "logits", head, {}, (STREAM,))


def _of_model(
    config: LMConfig,
    method: str,
    names: Mapping[str, Any],
    scopes: Mapping[str, tuple[str, ...]],
    reads: tuple[str, ...],
) -> Stage:
    """Return the stage that one of the model's own methods is."""
    return Stage(
        name={"embed": "embedding", "end": "final", "logits": "head"}[method],
        stack="",
        parameters={name: name for name in names},
        key=(config, method),
        run=partial(_run_model, config, method),
        reads=reads,
        attention=None,
        scopes=scopes,
        head=method == "logits",
    )


def _of_block(config: LMConfig, number: int, part: str) -> tuple[dict[str, str], Any, Any]:
    """Return the parameters, the key and the function of one branch of a block."""
    own = f"{part}/", f"{config.norm_names()[part == 'mlp']}/"
    names = [name for name in config.layer_shapes() if name.startswith(own)]
    # Where layers divide their scores differently, each attention is a function of its own.
    scale = config.score_scale(number) if part == "attention" else 1.0
    return (
        {name: f"layers_{number}/{name}" for name in names},
        (config, part, scale),
        partial(_run_block, config, part, scale),
    )


def _run_model(
    config: LMConfig,
    method: str,
    parameters: Arrays,
    streams: Streams,
    tokens: Arrays,
    temperature: ArrayLike,
) -> tuple[Streams, Taps]:
    del temperature  # no attention is in these
    variables = {"params": unflatten_dict(dict(parameters), sep="/")}
    if method == "embed":
        ids = tokens[""]
        given: tuple[Any, ...] = (ids, valid_tokens(config, ids))
    else:
        given = (streams,)
    found: Any = LM(config).apply(variables, *given, method=method)
    return ({}, {"logits": found}) if method == "logits" else (found, {})


def _run_block(
    config: LMConfig,
    part: str,
    scale: float,
    parameters: Arrays,
    streams: Streams,
    tokens: Arrays,
    temperature: ArrayLike,
) -> tuple[Streams, Taps]:
    variables = {"params": unflatten_dict(dict(parameters), sep="/")}
    valid: Array = valid_tokens(config, tokens[""])
    found = Block(config, scale).apply(variables, part, streams, valid, temperature)
    return cast(tuple[Streams, Taps], found)


def _within(name: str) -> str:
    """Return a parameter's name in its block, or its name."""
    return name.partition("/")[2] if name.startswith("layers_") else name
