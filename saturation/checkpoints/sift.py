"""Which of a checkpoint's arrays are parameters, and why the others are not.

Constants that a model keeps beside its weights are known by their names; arrays that are no real
floating point are left out, each with its reason. What would be no answer at all is refused in one
sentence: codes of quantised weights, and adapters without the model that they change.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from saturation.checkpoints.base import LeftOut
from saturation.checkpoints.disk_array import FLOAT8, DiskArray, UnreadArray
from saturation.errors import CheckpointFormatError

# The last part of a constant's name, in the spelling of the libraries that write them.
_CONSTANT = re.compile(
    r"(original_)?inv_freqs?|freqs(_(cis|cos|sin|complex))?|rope_(freqs|cache)"
    r"|(cos|sin)(_?(cache|cached|emb|table))?|(cos|sin)_(sin|cos)_cache|emb_(cos|sin)"
    r"|(\w+_)?mask|masked_bias|tril|triu|(position|pos|token_type)_ids|relative_position_index"
    r"|final_logits_bias|alibi(_slopes|_bias)?|slopes"
    r"|running_(mean|var)|num_batches_tracked|cached_(key|value|bias)|cache_index"
    r"|(k|v|kv|key|value)_caches?|cache_(k|v)",
    re.IGNORECASE,
)
# Modules and collections that hold nothing but constants and running values.
_CONSTANT_PARTS = frozenset({"rope", "rotary_emb", "rotary_pos_emb", "rotary_embedding", "rotary"})
_COLLECTIONS = frozenset({"batch_stats", "cache", "intermediates"})
# `attn.bias` is the causal mask of GPT-2 and GPT-NeoX, never a vector as a bias is.
_MASKS = ("attn", "attention")
_SINUSOIDS = re.compile(r"(.*\.)?embed_positions\.weights")
_WEIGHT = frozenset({"weight", "kernel", "embedding", "weights", "w"})

# Names that only quantised checkpoints have, by the last part.
_QUANTISED = re.compile(
    r"(nested_)?absmax|(nested_)?quant_map|bitsandbytes__\w+|SCB|qweight|qzeros|W_q"
    r"|weight_(packed|scale_inv)|codebooks|trellis|qscales|quant_state"
)
# A scale is of the array whose name it goes on from: `x.weight_scale` and `x.scale` of `x.weight`.
_SCALE = re.compile(
    r"(?P<array>(?P<module>.+?)([._/]weight)?)[._/](scales?(_inv|_2)?|zero_points?)", re.DOTALL
)
_ADAPTER = re.compile(
    r"lora_([ABab]|down|up|embedding_[ABab]|magnitude_vector)|lo[hk]r_\w+|hada_w\d_[ab]|ia3_l"
    r"|prompt_embeddings|vera_lambda_[bd]|oft_[rs]"
)

# The checkpoints of a trajectory have the same names: what was found out of so many is kept.
_NAMES = 4096


def sift(
    arrays: Mapping[str, DiskArray], where: str, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, DiskArray], list[LeftOut]]:
    """Return the arrays that can be parameters, and the others with the reason of each.

    Args:
      arrays: the arrays by their names on disk.
      where: the checkpoint, for errors.
      config: what the model's `config.json` says, where there is one.

    Raises:
      CheckpointFormatError: the weights are quantised or lie elsewhere, all arrays are an
        adapter's, or a weight has a type that is not read here.
    """
    _refuse_adapter(arrays, where)
    _refuse_placeholders(arrays, where)
    _refuse_quantised(arrays, where, config or {})
    kept: dict[str, DiskArray] = {}
    left_out: list[LeftOut] = []
    for name, array in arrays.items():
        reason = why_no_parameter(name, array)
        if reason is None:
            kept[name] = array
        elif _is_weight_name(name) and _is_unread(array):
            raise CheckpointFormatError(
                f"{where}: {name!r} is a weight and cannot be read: {reason}."
            )
        else:
            left_out.append(LeftOut(name, reason))
    return kept, left_out


def why_no_parameter(name: str, array: DiskArray) -> str | None:
    """Return why an array is no parameter, or None where it can be one."""
    if is_constant(name, array.shape):
        return "a constant or a running value by its name"
    if isinstance(array, UnreadArray):
        return array.reason
    if array.is_weight:
        return None
    if not array.shape:
        return f"a scalar ({array.dtype})"
    if 0 in array.shape:
        return "no elements"
    return f"not real floating point ({array.dtype})"


@lru_cache(_NAMES)
def is_constant(name: str, shape: tuple[int, ...]) -> bool:
    """Say whether a name is that of a rotary table, a mask, a cache or a running value."""
    parts = _parts(name)
    return bool(
        _CONSTANT.fullmatch(parts[-1])
        or (parts[-1] not in _WEIGHT and _CONSTANT_PARTS.intersection(parts[:-1]))
        or parts[0] in _COLLECTIONS
        or _SINUSOIDS.fullmatch(name)
        or (len(shape) > 1 and parts[-1] == "bias" and parts[-2:-1] and parts[-2] in _MASKS)
    )


def refuse_adapter_file(where: str, config: Mapping[str, Any]) -> CheckpointFormatError:
    """Return the error for a checkpoint that is an adapter, as its `adapter_config.json` says."""
    kind = config.get("peft_type")
    base = config.get("base_model_name_or_path")
    return CheckpointFormatError(
        f"{where} holds an adapter{f' ({kind})' if isinstance(kind, str) else ''} and not the "
        f"model that it changes ({base if isinstance(base, str) and base else 'not named there'}): "
        "merge the two (PEFT's merge_and_unload), save that and measure it."
    )


def _refuse_adapter(arrays: Mapping[str, DiskArray], where: str) -> None:
    weights = [name for name, array in arrays.items() if array.is_weight]
    if weights and all(map(_is_of_adapter, weights)):
        raise refuse_adapter_file(where, {})


def _refuse_placeholders(arrays: Mapping[str, DiskArray], where: str) -> None:
    """Raise where weights have the shape (0,), which no layer has: they are kept in pieces."""
    empty = [name for name, a in arrays.items() if a.shape == (0,) and _is_weight_name(name)]
    if empty:
        raise CheckpointFormatError(
            f"{where}: {empty[0]!r} is a weight and has no elements"
            + (f" (nor have {len(empty) - 1} more)" if len(empty) > 1 else "")
            + ", as DeepSpeed (ZeRO stage 3) leaves weights that its processes keep in pieces: "
            "gather them (zero_to_fp32.py beside such a checkpoint does) and measure what that "
            "writes."
        )


def _refuse_quantised(
    arrays: Mapping[str, DiskArray], where: str, config: Mapping[str, Any]
) -> None:
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    named = [name for name in arrays if _is_of_quantised(name)]
    scaled = {stem for name in arrays for stem in _scaled_by(name)}
    codes = [name for name, a in arrays.items() if _is_code(name, a, scaled, bool(settings))]
    if not named and not codes:
        return
    if not named and not scaled:
        raise CheckpointFormatError(
            f"{where}: {codes[0]!r} is called a weight and holds integers "
            f"({arrays[codes[0]].dtype}), as quantised checkpoints have them: measure the "
            "checkpoint that it was made from, or one that is dequantised."
        )
    examples = ", ".join(map(repr, (codes[:1] + named[:1])))
    raise CheckpointFormatError(
        f"{where} is quantised{f' ({method})' if isinstance(method, str) else ''}: it has codes "
        f"and their scales ({examples}; {len(codes) + len(named)} such arrays), which are no "
        "weights. Measure the checkpoint that it was made from, or one that is dequantised."
    )


def _is_code(name: str, array: DiskArray, scaled: Container[str], configured: bool) -> bool:
    """Say whether an array holds codes of weights: matrices of integers, FP8 with a scale."""
    if is_constant(name, array.shape) or len(array.shape) < 2:
        return False
    # `experts_blocks` goes with `experts_scales`.
    module = re.split(r"[./](?=[^./]*$)", name)[0]
    has_scale = any(stem in scaled for stem in (name, name.removesuffix("_blocks"), module))
    if array.dtype in FLOAT8:
        return has_scale or configured
    if isinstance(array, UnreadArray):
        return has_scale
    integers = np.issubdtype(array.dtype, np.integer)
    return integers and (_is_weight_name(name) or has_scale)


@lru_cache(_NAMES)
def _is_of_adapter(name: str) -> bool:
    return any(map(_ADAPTER.fullmatch, _parts(name)))


@lru_cache(_NAMES)
def _is_of_quantised(name: str) -> bool:
    return any(map(_QUANTISED.fullmatch, _parts(name)[-2:]))


@lru_cache(_NAMES)
def _scaled_by(name: str) -> tuple[str, ...]:
    """Return the array, and its module, whose scale a name can be."""
    found = _SCALE.fullmatch(name)
    return (found["array"], found["module"]) if found else ()


def _is_unread(array: DiskArray) -> bool:
    return isinstance(array, UnreadArray) or (
        bool(array.shape) and np.issubdtype(array.dtype, np.complexfloating)
    )


def _is_weight_name(name: str) -> bool:
    return _parts(name)[-1] in _WEIGHT


@lru_cache(_NAMES)
def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(re.split(r"[./]", name))
    # What flax.nnx calls the array inside a variable.
    return parts[:-1] if len(parts) > 1 and parts[-1] in ("value", "raw_value") else parts
