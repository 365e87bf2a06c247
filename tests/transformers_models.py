"""Tiny T5s that transformers itself makes, saves and runs: `python transformers_models.py FOLDER`.

For an interpreter that has torch and transformers, which the package and its tests do without.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

SIZES = {
    "vocab_size": 64,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
}
UNTIED = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
KINDS = {
    "t5-v1.0": ("T5", {}),
    "t5-v1.1": ("T5", UNTIED),
    "mt5": ("MT5", UNTIED),
    "umt5": ("UMT5", UNTIED),
    "umt5-tied": ("UMT5", {"feed_forward_proj": "gated-gelu"}),
    "byt5-like": ("T5", {**UNTIED, "vocab_size": 384, "num_layers": 6}),
    "silu-far-epsilon": (
        "T5",
        {
            "feed_forward_proj": "gated-silu",
            "relative_attention_max_distance": 24,
            "layer_norm_epsilon": 0.1,
        },
    ),
}


def main(folder: str) -> None:
    """Save each kind into FOLDER/KIND, and its tokens and logits into FOLDER/KIND.npz."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")

    for kind, (name, changed) in KINDS.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**{**SIZES, **changed})
        model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # those at the start leave attention uniform
                noise = 0.15 * torch.randn_like(parameter)
                parameter.copy_(noise + (parameter.ndim == 1))
            encoder = torch.randint(1, 64, (2, 40))
            decoder = torch.randint(1, 64, (2, 30))
            encoder[1, 33:] = 0
            logits = model(
                input_ids=encoder, attention_mask=(encoder > 0).long(), decoder_input_ids=decoder
            ).logits
        model.save_pretrained(f"{folder}/{kind}")
        np.savez(f"{folder}/{kind}.npz", encoder=encoder, decoder=decoder, logits=logits)


if __name__ == "__main__":
    main(sys.argv[1])
