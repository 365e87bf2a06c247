"""A model's `config.json`, as transformers 4 and 5 write it, read into fields of `LMConfig`.

Every key is either read, known to change nothing of the computation, or refused by its name.
Source: configuration_*.py and modeling_*.py of each family in transformers 4.57 and 5.24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saturation.errors import ArgumentError
from saturation.models.rotary import SCALINGS, Rotary

# ACT2FN of transformers.
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
# What says how a model was trained, saved, or is sampled from, and nothing of what it computes.
_INERT = frozenset(
    """
    _attn_implementation attn_implementation _attn_implementation_autoset _commit_hash
    _flash_attn_2_enabled _name_or_path architectures auto_map bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward classifier_dropout cls_token_id crfm custom_pipelines
    decoder_start_token_id directionality diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id generation gradient_checkpointing id2label
    initializer_range keys_to_ignore_at_inference label2id length_penalty max_length
    max_window_layers min_length model_type n_ctx no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_scores pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head pooler_type predict_special_tokens prefix pretraining_tp problem_type
    remove_invalid_values reorder_and_upcast_attn repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version transformers.js_config typical_p unk_token_id use_bfloat16 use_cache
    """.split()  # noqa: SIM905 (a line each would be four times as long)
)
_PADS = {"bert": 0, "roberta": 1}  # where config.json does not say it
_INERT_ENDS = ("dropout", "dropout_prob", "pdrop")
_INERT_STARTS = ("summary_",)


class _Keys:
    """The keys of a config.json, of which it is remembered which were read."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self.where, self._read = config, where, {"model_type"}

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value; `default` where it is absent or null."""
        self._read.add(key)
        found = self._config.get(key)
        return default if found is None else found

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number > 0."""
        found = self.get(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise self.unlike(key, "a whole number > 0", found)
        return found

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """Return an id, or None."""
        found = self.get(key, default)
        if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
            raise self.unlike(key, "a token's id", found)
        return found

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number > 0."""
        found = self.get(key, default)
        if not isinstance(found, int | float) or isinstance(found, bool) or not found > 0:
            raise self.unlike(key, "a number > 0", found)
        return float(found)

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        found = self.get(key, default)
        if not isinstance(found, bool):
            raise self.unlike(key, "true or false", found)
        return found

    def activation(self, key: str, default: str) -> str:
        """Return one of `ACTIVATIONS`."""
        found = self.get(key, default)
        if found not in _ACTIVATIONS:
            raise self.unlike(key, f"an activation of {', '.join(_ACTIVATIONS)}", found)
        return _ACTIVATIONS[found]

    def must_be(self, key: str, *allowed: Any) -> None:
        """Refuse a key whose other values are computed in ways that no model here has."""
        if (found := self.get(key, allowed[0])) not in allowed:
            raise self.unlike(key, " or ".join(map(repr, allowed)) + " to be run here", found)

    def refuse_others(self) -> None:
        """Refuse what was not read and is not known to change nothing."""
        for key, value in self._config.items():
            inert = key in _INERT or key.endswith(_INERT_ENDS) or key.startswith(_INERT_STARTS)
            if key not in self._read and not inert and value is not None:
                raise ArgumentError(
                    f"{self.where}: the key {key!r} ({value!r}) is not known here, and may change "
                    f"what a {self._config.get('model_type')} computes. If it does not, take it "
                    "out; measures of weights do without."
                )

    def unlike(self, key: str, expected: str, found: Any) -> ArgumentError:
        """Return the error for a value."""
        return ArgumentError(f"{self.where}: {key} must be {expected}, but is {found!r}.")


def lm_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `LMConfig` that a config.json decides.

    Args:
      config: its contents.
      where: the file, for errors.

    Raises:
      ArgumentError: its `model_type` is none of `MODEL_TYPES`, or a key has a value that is not
        computed here, or is not known.
    """
    kind = str(config.get("model_type"))
    if kind not in MODEL_TYPES:
        raise ArgumentError(
            f"{where}: models of the type {kind!r} are not run here; those that are: "
            f"{', '.join(MODEL_TYPES)}, and T5 (t5, mt5, umt5). Measures of weights do without."
        )
    keys = _Keys(config, where)
    fields = MODEL_TYPES[kind](keys) | {"vocab_size": keys.integer("vocab_size")}
    pad = keys.token_id("pad_token_id", _PADS.get(kind))
    ends = _flat((config.get("bos_token_id"), config.get("eos_token_id")))
    keys.must_be("is_decoder", False, *([True] if fields.get("causal", True) else []))
    keys.must_be("is_encoder_decoder", False)
    keys.must_be("add_cross_attention", False)
    keys.must_be("cross_attention_hidden_size", None)
    keys.must_be("tie_encoder_decoder", False)
    keys.must_be("pruned_heads", {}, [])
    mask = keys.token_id("mask_token_id")
    keys.refuse_others()
    # A model that fills up with its end token has text with that token in it too.
    pad = None if pad is None or pad < 0 or pad in ends else pad
    return fields | {"pad_token_id": pad, "mask_token_id": mask, "model_type": kind}


def _flat(ids: Sequence[Any]) -> list[Any]:
    return [each for one in ids for each in (one if isinstance(one, list) else [one])]


def _gpt2(keys: _Keys) -> dict[str, Any]:
    """Radford et al. 2019."""
    embed, heads = keys.integer("n_embd"), keys.integer("n_head")
    return {
        **_sizes(embed, keys.integer("n_layer"), heads),
        "mlp_dim": keys.integer("n_inner", 4 * embed),
        "max_positions": keys.integer("n_positions"),
        "activation": keys.activation("activation_function", "gelu_new"),
        "norm_epsilon": keys.number("layer_norm_epsilon", 1e-5),
        "attention_scale": None if keys.boolean("scale_attn_weights", True) else 1.0,
        "scale_by_layer": keys.boolean("scale_attn_by_inverse_layer_idx", False),
        "logits_via_embedding": keys.boolean("tie_word_embeddings", True),
    }


def _gpt_neox(keys: _Keys) -> dict[str, Any]:
    """Black et al. 2022 (arXiv 2204.06745): Pythia."""
    fields = _decoder(keys, keys.number("rotary_pct", 0.25), keys.get("rotary_emb_base"))
    bias = keys.boolean("attention_bias", True)
    return {
        **fields,
        "activation": keys.activation("hidden_act", "gelu"),
        "norm_epsilon": keys.number("layer_norm_eps", 1e-5),
        "parallel_residual": keys.boolean("use_parallel_residual", True),
        "query_key_value_bias": bias,
        "attention_out_bias": bias,
    }


def _llama(keys: _Keys) -> dict[str, Any]:
    """Touvron et al. 2023 (arXiv 2302.13971)."""
    bias = keys.boolean("attention_bias", False)
    return {
        **_gated(keys),
        "norm": "rms_norm",
        "norm_bias": False,
        "norm_epsilon": keys.number("rms_norm_eps", 1e-6),
        "query_key_value_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": keys.boolean("mlp_bias", False),
    }


def _olmo(keys: _Keys) -> dict[str, Any]:
    """Groeneveld et al. 2024 (arXiv 2402.00838): norms without parameters, clipped projections."""
    bias, clip = keys.boolean("attention_bias", False), keys.get("clip_qkv")
    return {
        **_gated(keys),
        "norm": "layer_norm",
        "norm_scale": False,
        "norm_bias": False,
        "norm_epsilon": 1e-5,
        "query_key_value_bias": bias,
        "attention_out_bias": bias,
        "query_key_value_clip": None if clip is None else keys.number("clip_qkv"),
    }


def _olmo2(keys: _Keys) -> dict[str, Any]:
    """OLMo team 2024 (arXiv 2501.00656): norms behind the branches, and of queries and keys."""
    bias = keys.boolean("attention_bias", False)
    return {
        **_gated(keys),
        "norm": "rms_norm",
        "norm_bias": False,
        "norm_epsilon": keys.number("rms_norm_eps", 1e-5),
        "norm_placement": "branch",
        "query_key_norm": True,
        "query_key_value_bias": bias,
        "attention_out_bias": bias,
    }


def _qwen2(keys: _Keys) -> dict[str, Any]:
    """Yang et al. 2024 (arXiv 2407.10671): Llama with biases on queries, keys and values."""
    keys.must_be("use_sliding_window", False)
    keys.get("sliding_window")  # which is of those layers alone
    if set(keys.get("layer_types", [])) - {"full_attention"}:
        raise keys.unlike("layer_types", "'full_attention' in each layer", keys.get("layer_types"))
    return {
        **_gated(keys),
        "norm": "rms_norm",
        "norm_bias": False,
        "norm_epsilon": keys.number("rms_norm_eps", 1e-6),
        "query_key_value_bias": True,
        "attention_out_bias": False,
    }


def _bert(keys: _Keys) -> dict[str, Any]:
    """Devlin et al. 2019 (arXiv 1810.04805)."""
    keys.must_be("position_embedding_type", "absolute")
    embed, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    return {
        **_sizes(embed, keys.integer("num_hidden_layers"), heads),
        "mlp_dim": keys.integer("intermediate_size"),
        "causal": False,
        "max_positions": keys.integer("max_position_embeddings"),
        "segments": keys.integer("type_vocab_size", 2),
        "embedding_norm": True,
        "activation": keys.activation("hidden_act", "gelu"),
        "norm_epsilon": keys.number("layer_norm_eps", 1e-12),
        "norm_placement": "after",
        "logits_via_embedding": keys.boolean("tie_word_embeddings", True),
        "logits_bias": True,
        "head_transform": True,
    }


def _roberta(keys: _Keys) -> dict[str, Any]:
    """Liu et al. 2019 (arXiv 1907.11692): positions are counted from behind the padding's id."""
    pad = keys.token_id("pad_token_id")
    return {**_bert(keys), "position_offset": (1 if pad is None else pad) + 1}


MODEL_TYPES: Mapping[str, Callable[[_Keys], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "qwen2": _qwen2,
    "bert": _bert,
    "roberta": _roberta,
}


def _sizes(embed: int, layers: int, heads: int) -> dict[str, Any]:
    """Return the sizes of a model whose heads share its width out."""
    if embed % heads:
        raise ArgumentError(f"{heads} heads cannot share a width of {embed} equally.")
    return {
        "emb_dim": embed,
        "num_layers": layers,
        "num_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": embed // heads,
    }


def _decoder(keys: _Keys, partial: float, base: Any) -> dict[str, Any]:
    """Return the sizes and the rotary positions of GPT-NeoX and of what came after it."""
    embed, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if keys.get("head_dim") is None and embed % heads:
        raise keys.unlike("hidden_size", f"a multiple of the {heads} heads", embed)
    head_dim = keys.integer("head_dim", embed // heads)
    return {
        "emb_dim": embed,
        "num_layers": keys.integer("num_hidden_layers"),
        "num_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "mlp_dim": keys.integer("intermediate_size"),
        "logits_via_embedding": keys.boolean("tie_word_embeddings", False),
        "rotary": _rotary(keys, head_dim, partial, base),
    }


def _gated(keys: _Keys) -> dict[str, Any]:
    fields = _decoder(keys, 1.0, None)
    return {
        **fields,
        "num_key_value_heads": keys.integer("num_key_value_heads", fields["num_heads"]),
        "activation": keys.activation("hidden_act", "silu"),
        "gated": True,
        "mlp_bias": False,
    }


def _rotary(keys: _Keys, head_dim: int, partial: float, base: Any) -> Rotary:
    """Return what `rope_parameters` (5) or `rope_theta` and `rope_scaling` (4) say."""
    old, new = keys.get("rope_scaling", {}), keys.get("rope_parameters", {})
    said = {**(old if isinstance(old, dict) else {}), **(new if isinstance(new, dict) else {})}
    if not all(isinstance(each, dict) for each in (old, new)):
        raise keys.unlike("rope_scaling or rope_parameters", "an object", old or new)
    outside = {"rope_theta": keys.get("rope_theta", base)}
    outside["partial_rotary_factor"] = keys.get("partial_rotary_factor", partial)
    said = {k: v for k, v in outside.items() if v is not None} | said
    longest = keys.integer("max_position_embeddings", 2048)
    scaling = said.pop("rope_type", said.pop("type", "default"))
    said.pop("type", None)
    if scaling not in SCALINGS:
        raise keys.unlike("the rotary scaling rope_type", f"of {', '.join(SCALINGS)}", scaling)
    share = said.pop("partial_rotary_factor")
    if partial == 1.0 != share:
        raise keys.unlike("partial_rotary_factor", "1 in this family", share)
    dims = int(head_dim * share)
    original = said.pop("original_max_position_embeddings", longest)
    original = keys.integer("original_max_position_embeddings", original)  # where it is outside
    original = longest if scaling == "dynamic" else original
    if scaling in ("yarn", "longrope"):
        said.setdefault("factor", longest / original)
    fields = {_ROPE_FIELDS.get(key, key): value for key, value in said.items() if value is not None}
    for key in ("short_factors", "long_factors"):
        if key in fields:
            fields[key] = tuple(fields[key])
    unknown = set(fields) - set(Rotary.__dataclass_fields__)
    if unknown:
        raise ArgumentError(
            f"{keys.where}: the rotary parameter {min(unknown)!r} is not known here."
        )
    return Rotary(dims, scaling=scaling, original_max_positions=original, **fields)


_ROPE_FIELDS = {
    "rope_theta": "base",
    "short_factor": "short_factors",
    "long_factor": "long_factors",
}
