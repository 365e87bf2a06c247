"""Tiny decoders and encoders that transformers makes and runs: `python transformers_lms.py FOLDER`.

For an interpreter that has torch and transformers, which the package and its tests do without.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

DECODER = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "factor": 2.0,
}
UNUSUAL = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
# kind: (class, its config, what of it is a rotary scaling)
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("GPT2LMHead", {**GPT2, "scale_attn_by_inverse_layer_idx": True}, {}),
    "gpt_neox": ("GPTNeoX", {**DECODER, "rotary_pct": 0.5}, {}),
    "gpt_neox-sequential": ("GPTNeoX", {**DECODER, "use_parallel_residual": False}, {}),
    "llama": ("Llama", {**DECODER, "num_key_value_heads": 2}, {}),
    "llama-tied": ("Llama", {**DECODER, "tie_word_embeddings": True, "attention_bias": True}, {}),
    "llama-wide-heads": ("Llama", {**DECODER, "head_dim": 6, "mlp_bias": True}, {}),
    "llama3": ("Llama", DECODER, LLAMA3),
    "llama-linear": ("Llama", DECODER, {"rope_type": "linear", "factor": 3.0}),
    "llama-dynamic": (
        "Llama",
        {**DECODER, "max_position_embeddings": 12},
        {"rope_type": "dynamic", "factor": 2.0},
    ),
    "llama-yarn": ("Llama", DECODER, YARN),
    "llama-longrope": ("Llama", {**DECODER, "original_max_position_embeddings": 16}, LONG),
    "olmo": ("Olmo", {**DECODER, **UNUSUAL, "clip_qkv": 1.0}, {}),
    "olmo2": ("Olmo2", {**DECODER, **UNUSUAL, "num_key_value_heads": 2}, {}),
    "qwen2": ("Qwen2", {**DECODER, "num_key_value_heads": 2, "tie_word_embeddings": True}, {}),
    "bert": ("BertForMaskedLM", {**DECODER, "hidden_act": "gelu_new"}, {}),
    "roberta": ("RobertaForMaskedLM", {**DECODER, "pad_token_id": 1}, {}),
}


def lift(torch: Any, model: Any) -> None:
    """Let what is computed in float32 whatever the parameters are be computed in theirs."""
    softmax, layer_norm = torch.nn.functional.softmax, torch.nn.functional.layer_norm
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None, **_: softmax(x, dim=dim)
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.forward = lambda x, m=module: (
                m.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon))
            )
        elif name == "OlmoLayerNorm":
            module.forward = lambda x, m=module: layer_norm(x, m.normalized_shape, eps=1e-5)
        elif name.endswith("RotaryEmbedding"):
            module.forward = rotary_in_float64(torch, module)


def rotary_in_float64(torch: Any, module: Any) -> Any:
    """The module's own code on float64 positions and frequencies, with `.float()` left out."""
    wide = torch.float64

    def forward(x: Any, position_ids: Any) -> Any:
        with _Wide(torch):
            if module.rope_type == "default":
                dims = 2 * len(module.inv_freq)
                base = rope_of(module.config)["rope_theta"]
                steps = torch.arange(0, dims, 2, dtype=wide) / dims
                module.inv_freq = 1.0 / base**steps
            else:
                longest = int(position_ids.max()) + 1
                scalings = importlib.import_module("transformers.modeling_rope_utils")
                init = scalings.ROPE_INIT_FUNCTIONS[module.rope_type]
                module.inv_freq, module.attention_scaling = init(
                    module.config, "cpu", seq_len=longest
                )
            freqs = position_ids[..., None].to(wide) * module.inv_freq.to(wide)
        both = torch.cat((freqs, freqs), dim=-1)
        return both.cos() * module.attention_scaling, both.sin() * module.attention_scaling

    return forward


def rope_of(config: Any) -> dict[str, Any]:
    """What a config says of rotary positions, in transformers 4 and 5."""
    found = getattr(config, "rope_parameters", None)
    return found if found else {"rope_theta": config.rope_theta}


class _Wide:
    """Where `torch.float` is asked for, float64 is given."""

    def __init__(self, torch: Any) -> None:
        self._torch, self._narrow = torch, torch.float

    def __enter__(self) -> None:
        self._torch.float = self._torch.float32 = self._torch.float64

    def __exit__(self, *error: object) -> None:
        self._torch.float = self._torch.float32 = self._narrow


def main(folder: str) -> None:
    """Save each kind into FOLDER/KIND, and tokens, logits and more into FOLDER/KIND.npz."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    softmax = torch.nn.functional.softmax

    for kind, (name, fields, scaling) in KINDS.items():
        torch.manual_seed(0)
        stem = name.removesuffix("LMHead").removesuffix("ForMaskedLM")
        rope = {}
        if scaling and transformers.__version__ >= "5":
            rope = {"rope_parameters": {"rope_theta": 10_000.0, **scaling}}
        elif scaling:
            rope = {"rope_scaling": scaling}
        config = getattr(transformers, f"{stem}Config")(**fields, **rope)
        config._attn_implementation = "eager"
        suffix = "Model" if name.endswith("LMHead") else "ForCausalLM"
        full = name if name.endswith("ForMaskedLM") else f"{name}{suffix}"
        model = getattr(transformers, full)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # those at the start leave attention uniform
                noise = 0.3 * torch.randn_like(parameter)
                parameter.copy_(noise + (parameter.ndim == 1))
        model.save_pretrained(f"{folder}/{kind}")
        ids = torch.randint(4, 61, (3, 20))
        mask = torch.arange(20) < torch.tensor([20, 13, 7])[:, None]
        ids = torch.where(mask, ids, 1)
        model = model.double()
        lift(torch, model)
        with torch.no_grad():
            found = model(
                input_ids=ids,
                attention_mask=mask.long(),
                output_hidden_states=True,
                output_attentions=True,
            )
        np.savez(
            f"{folder}/{kind}.npz",
            tokens=ids.numpy().astype(np.int32),
            mask=mask.numpy(),
            logits=found.logits.numpy(),
            **{f"hidden_{i}": each.numpy() for i, each in enumerate(found.hidden_states)},
            **{f"attention_{i}": each.numpy() for i, each in enumerate(found.attentions)},
        )
        torch.nn.functional.softmax = softmax


if __name__ == "__main__":
    main(sys.argv[1])
