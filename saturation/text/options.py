"""Which tokens measures of activations are taken on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from saturation.config.options import Count, Option, Options


@dataclass(frozen=True)
class TextOptions(Options):
    """What `saturation.text.sequences.read_tokens` reads."""

    tokens: Annotated[
        str,
        Option(
            "For measures of activations: a text file or glob, a .jsonl of token ids, or builtin.",
            "FILE",
        ),
    ] = "builtin"
    vocabulary: Annotated[
        str | None,
        Option(
            "For text: a tokenizer.json or a sentencepiece model, a path or URL, or bytes; by "
            "default the one beside the checkpoints, or bytes where the model has at most 400 ids.",
            "FILE",
        ),
    ] = None
    sequences: Annotated[Count, Option("How many sequences to run.")] = 32
    length: Annotated[Count, Ge(2), Option("Tokens of a sequence.")] = 128
    decoder_input: Annotated[
        Literal["shifted", "same"],
        Option("shifted: the text behind a 0; same: unshifted, as published."),
    ] = "shifted"
