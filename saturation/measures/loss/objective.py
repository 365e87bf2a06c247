"""What a model was pretrained to predict, made of given tokens.

A decoder predicts each next token, of the tokens as they are. An encoder predicts tokens that are
hidden (BERT; Devlin et al. 2019, section 3.1), a T5 spans that are cut out (Raffel et al. 2020,
section 3.1.4): both in a forward of their own, on tokens that are drawn by a seed and the row's
number, so that neither batches nor other rows change what is hidden.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from saturation.models.base import ModelConfig
from saturation.text.sequences import TokenBatch
from saturation.text.span_corruption import (
    lengths_of_text,
    random_spans_mask,
    shift_right,
    spans_to_sentinels,
)

DENSITY = 0.15  # of the tokens are hidden
MEAN_SPAN = 3.0  # tokens, of a T5's
# The first of T5's sentinels is its last piece; its embedding has 28 rows more.
T5_ROWS, T5_PIECES = 32_128, 32_100


def objective_of(config: ModelConfig) -> str:
    """Return "next_token", "masked_tokens" or "span_corruption"."""
    if len(config.stacks) > 1:
        return "span_corruption"
    return "next_token" if config.attentions[0].causal else "masked_tokens"


def own_tokens(tokens: TokenBatch, config: ModelConfig, options: Any) -> TokenBatch | None:
    """Return the tokens, with targets, that the loss takes a forward of its own on; None if none.

    Args:
      tokens: that all measures are taken on.
      config: of the model.
      options: with a `loss_seed`.
    """
    objective = objective_of(config)
    if objective == "next_token":
        return None
    hide = _spans_cut_out if objective == "span_corruption" else _tokens_hidden
    return hide(tokens, config, options.loss_seed)


def describe(tokens: TokenBatch, config: ModelConfig, options: Any) -> dict[str, Any]:
    """Return what `run.json` says of the objective; arguments as for `own_tokens`."""
    objective = objective_of(config)
    said: dict[str, Any] = {"objective": objective}
    if objective == "next_token":
        return said
    said |= {"share": DENSITY, "seed": options.loss_seed}
    if objective == "span_corruption":
        return said | {"mean_span": MEAN_SPAN, "first_sentinel": _sentinel(tokens, config)}
    mask = _mask_token(tokens, config)
    return said | {"hidden_by": "random ids, since no mask is known" if mask is None else mask}


def _tokens_hidden(tokens: TokenBatch, config: ModelConfig, seed: int) -> TokenBatch:
    """Hide 15 % of each row's tokens, but for those that the vocabulary put around it."""
    given, mask = tokens.encoder_input_tokens, _mask_token(tokens, config)
    before, behind = map(len, tokens.special_tokens)
    hidden, targets = given.copy(), np.full_like(given, -1)
    for number, valid in enumerate(np.asarray(config.valid_tokens({"": given})[""])):
        places = np.flatnonzero(valid)
        places = places[before : len(places) - behind]
        rng = _generator(seed, number)
        chosen = rng.permutation(places)[: max(round(DENSITY * len(places)), 1)]
        targets[number, chosen] = given[number, chosen]
        by = rng.integers(config.vocab_size, size=len(chosen)) if mask is None else mask
        hidden[number, chosen] = by
    return replace(tokens, encoder_input_tokens=hidden, targets=targets)


def _spans_cut_out(tokens: TokenBatch, config: ModelConfig, seed: int) -> TokenBatch:
    """Cut spans out of 15 % of each row, which the decoder has to fill in."""
    sentinel, rows = _sentinel(tokens, config), []
    for number, given in enumerate(tokens.encoder_input_tokens):
        text = given[given > tokens.padding][None]
        if text.shape[1] < 2:
            rows.append((text[0], np.empty(0, np.int32)))
            continue
        lengths = lengths_of_text(text.shape[1], DENSITY, MEAN_SPAN)
        mask = random_spans_mask(_generator(seed, number), 1, lengths)
        both = (spans_to_sentinels(text, one, sentinel)[0] for one in (mask, ~mask))
        rows.append(tuple(both))
    inputs, targets = (_padded([row[part] for row in rows], pad) for part, pad in ((0, 0), (1, -1)))
    decoder = shift_right(np.maximum(targets, 0))
    return replace(
        tokens, encoder_input_tokens=inputs, decoder_input_tokens=decoder, targets=targets
    )


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, number]))


def _mask_token(tokens: TokenBatch, config: ModelConfig) -> int | None:
    known = getattr(config, "mask_token_id", None)
    return known if tokens.mask_token is None else tokens.mask_token


def _sentinel(tokens: TokenBatch, config: ModelConfig) -> int:
    if tokens.first_sentinel is not None:
        return tokens.first_sentinel
    return (T5_PIECES if config.vocab_size == T5_ROWS else config.vocab_size) - 1


def _padded(rows: list[np.ndarray], padding: int) -> np.ndarray:
    table = np.full((len(rows), max(1, *map(len, rows))), padding, np.int32)
    for row, found in zip(table, rows, strict=True):
        row[: len(found)] = found
    return table
