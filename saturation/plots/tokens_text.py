"""What measures of activations were taken on, in one sentence for whatever shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

_DECODER_INPUTS = {
    "shifted": "the encoder's tokens shifted right behind a 0",
    "same": "the encoder's tokens unshifted",
    "given": "given with the tokens",
}


def say_tokens(settings: Mapping[str, Any] | None) -> str:
    """Return the sentence on tokens, vocabulary, decoder input and masks; "" for no activations.

    Args:
        settings: `activations` of a run.json. Former versions did not record all of it, and the
            sentence says so.
    """
    tokens = (settings or {}).get("tokens")
    if not settings or not isinstance(tokens, Mapping):
        return ""
    if "length" in tokens:
        return _say_one_stack(settings, tokens)
    length = f"{tokens.get('encoder_length')}"
    if tokens.get("decoder_length") != tokens.get("encoder_length"):
        length += f" (decoder: {tokens.get('decoder_length')})"
    said = f"Taken on {tokens.get('sequences')} sequences of {length} tokens of "
    said += f"{tokens.get('source')}; "
    if "vocabulary" not in tokens or "masks" not in settings:
        return f"{said}the version that measured recorded no vocabulary, decoder input or masks."
    decoder = " or ".join(
        _DECODER_INPUTS.get(kind, kind) for kind in str(tokens.get("decoder_input")).split("+")
    )
    return (
        f"{said}vocabulary: {_say_vocabulary(tokens)}; decoder's input: {decoder}; "
        f"masked: {settings['masks']}."
    )


def _say_one_stack(settings: Mapping[str, Any], tokens: Mapping[str, Any]) -> str:
    before, behind = tokens.get("special_tokens") or ([], [])
    said = f"Taken on {tokens.get('sequences')} sequences of {tokens['length']} tokens of "
    said += f"{tokens.get('source')}; vocabulary: {_say_vocabulary(tokens)}"
    for ids, where in ((before, "before"), (behind, "behind")):
        said += f"; the ids {', '.join(map(str, ids))} {where} each" if ids else ""
    return f"{said}; masked: {settings.get('masks')}."


def _say_vocabulary(tokens: Mapping[str, Any]) -> str:
    name, _, digest = str(tokens["vocabulary"]).partition(":")
    if name == "ids":
        return "as the ids were given"
    said = f"{name}, {tokens.get('vocabulary_size'):,} ids"
    if tokens.get("vocabulary_file"):
        said += f", {tokens['vocabulary_file']}"
    return f"{said} (sha256 {digest[:12]})" if digest else said


def footnote(text: str, width: int = 150) -> str:
    """Return the sentence in lines for the foot of a figure."""
    return textwrap.fill(text, width, break_long_words=True)
