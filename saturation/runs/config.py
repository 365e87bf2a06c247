"""What an experiment file says of measures of activations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from saturation.config import Count, Section


class ActivationsConfig(Section):
    """What measures of activations are taken on: the options of `saturation measure`.

    Attributes:
        tokens: a text file or a glob, a .jsonl of token ids, or builtin.
        vocabulary: for text, a tokenizer.json, a sentencepiece model or bytes; by default that of
            `pretrain`, or the one beside the checkpoints.
        sequences: how many windows of the text.
        length: tokens of a window.
        decoder_input: the text behind a 0 (shifted), or unshifted (same), as published.
        corpus: what `scan` tells common from distinct tokens by; by default all of the tokens.
        limits: what `saturation` compares with.
        batch_size: sequences in one forward pass.
        scale: the finite c of f(x; cθ).
        terms: terms of the series of the parameter limit.
        joint_sequences: of how many `smoothing` iterates each layer's own operator; by default
            as many as cost little, none of a T5-small or larger.
        fast: allow the device's default precision of matrix products.
        mesh: devices that share the sequences of a batch (data) and the parameters (model).
    """

    tokens: str = "builtin"
    vocabulary: str | None = None
    sequences: Count = 32
    length: Annotated[int, Field(ge=2)] = 128
    decoder_input: Literal["shifted", "same"] = "shifted"
    corpus: str | None = None
    limits: tuple[str, ...] = ("attention", "parameter", "scaled")
    batch_size: Count = 8
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1000.0
    terms: Count = 4
    joint_sequences: Annotated[int, Field(ge=0)] | None = None
    fast: bool = False
    mesh: dict[Literal["data", "model"], Count] | None = None
