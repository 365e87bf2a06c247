"""What the config.json of a T5, mT5 or UMT5 says of the computation and no array tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saturation.errors import CheckpointFormatError

# ACT2FN of transformers: its "gelu" is the exact one with erf, which no published T5 has.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "silu": "silu",
    "swish": "silu",
    "linear": "linear",
}


def t5_settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `T5Config` that a config.json of transformers decides.

    Args:
      config: its contents, of `model_type` "t5", "mt5" or "umt5".
      where: the file, for errors.

    Returns:
      `scale_decoder_outputs`, `mlp_activations`, `layer_norm_epsilon` and
      `relative_attention_max_distance`, each where the file says it. An activation that no T5 here
      has keeps its own name, which `T5Config` refuses: its weights can be measured all the same.

    Raises:
      CheckpointFormatError: a value is not of the kind that its key has.

    Source: configuration_*.py and modeling_*.py of t5, mt5, umt5 in transformers 4.57 and 5.24.
    """
    settings: dict[str, Any] = {}
    scale = _scale(config, where)
    if scale is not None:
        settings["scale_decoder_outputs"] = scale
    if "feed_forward_proj" in config or "dense_act_fn" in config:
        settings["mlp_activations"] = _activations(config, where)
    for key, kind in (("layer_norm_epsilon", float), ("relative_attention_max_distance", int)):
        if key in config:
            settings[key] = kind(_number(config, key, where))
    return settings


def _scale(config: Mapping[str, Any], where: str) -> bool | None:
    """Say whether the decoder's output is divided by √d_model; None where nothing says it."""
    tied, scaled = config.get("tie_word_embeddings"), config.get("scale_decoder_outputs")
    for key, value in (("tie_word_embeddings", tied), ("scale_decoder_outputs", scaled)):
        if value not in (None, True, False):
            raise _unlike(where, key, "true or false", value)
    if config["model_type"] == "mt5":
        # Version 5 ties every head and scales none; version 4 scales where the head is tied.
        return False if _major_version(config) >= 5 else tied
    # Version 5 writes tie_word_embeddings: true for every model, and what was meant by it here.
    return scaled if scaled is not None else tied is not False


def _major_version(config: Mapping[str, Any]) -> int:
    major = str(config.get("transformers_version", "")).partition(".")[0]
    return int(major) if major.isdecimal() else 0


def _activations(config: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the names of a feed-forward block's activations, "linear" last where it is gated."""
    projection = config.get("feed_forward_proj", "relu")
    function = config.get("dense_act_fn", str(projection).rpartition("-")[2])
    for key, value in (("feed_forward_proj", projection), ("dense_act_fn", function)):
        if not isinstance(value, str):
            raise _unlike(where, key, "the name of an activation", value)
    if projection == "gated-gelu" and "dense_act_fn" not in config:
        function = "gelu_new"
    # Under its own name the exact gelu would pass for the one of tanh, which T5Config calls so.
    known = _ACTIVATIONS.get(function, "gelu with erf" if function == "gelu" else function)
    return (known, "linear") if projection.startswith("gated-") else (known,)


def _number(config: Mapping[str, Any], key: str, where: str) -> float:
    value = config[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise _unlike(where, key, "a number > 0", value)
    return value


def _unlike(where: str, key: str, expected: str, found: object) -> CheckpointFormatError:
    return CheckpointFormatError(f"{where}: {key} must be {expected}, but is {found!r}.")
