"""Compare the parameter limit of T5s by another version of `saturate` with this one's.

    python benchmarks/limit_against.py --against TREE FOLDER …

TREE is a checkout of the other version. Each FOLDER holds a model's checkpoints under `hf/` and
golden tokens under `golden/forward_*.npz`, as the fixtures do. Its every checkpoint runs on those
tokens and on rows of repeated ones; so do random T5s of three forms. In float64 and under the
default XLA flags every state, the logits and the attention weights of both versions are compared:
values to 1e-12 of the largest of their row where both call them valid. Prints a line of JSON for
each model; `rows` names the rows that differ, of the first few outputs where they do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from saturation import open_trajectory, saturate
from saturation.models import T5, T5Config

TOLERANCE = 1e-12
SHOWN = 6
GATED = {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False}
FORMS: dict[str, dict[str, Any]] = {
    "random v1.0": {"mlp_activations": ("relu",), "num_encoder_layers": 2, "num_decoder_layers": 2},
    "random v1.1": {**GATED, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "random UMT5": {
        **GATED,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "per_layer_relative_bias": True,
    },
}
SIZES = {"vocab_size": 30, "emb_dim": 16, "num_heads": 4, "head_dim": 3, "mlp_dim": 24}
# Repeated tokens tie exactly; the 0s at the end are padding.
ENCODER = np.array([[3, 4, 4, 4, 5, 3, 3, 9, 4, 1, 0, 0], [5] * 11 + [1]], np.int32)
DECODER = np.array([[0, 4, 4, 7, 7, 4, 2], [0, 5, 5, 5, 5, 5, 1]], np.int32)
Model = tuple[str, T5Config, dict[str, Any], list[tuple[np.ndarray, np.ndarray]]]


def models(folders: list[Path]) -> Iterator[Model]:
    """Yield name, configuration, float64 parameters and token batches of every model."""
    repeated = [(ENCODER, DECODER)]
    for name, form in FORMS.items():
        config, random = T5Config(**SIZES, **form), np.random.default_rng(0)
        flat = {key: random.normal(size=shape) for key, shape in config.parameter_shapes().items()}
        yield name, config, unflatten_dict(flat, sep="/"), repeated
    for folder in folders:
        golden = [np.load(path) for path in sorted((folder / "golden").glob("forward_*.npz"))]
        # Another golden file may hold outputs alone.
        golden = [one for one in golden if "encoder_input_tokens" in one]
        both = [(one["encoder_input_tokens"], one["decoder_input_tokens"]) for one in golden]
        pairs = {encoder.tobytes(): (encoder, decoder) for encoder, decoder in both}
        trajectory = open_trajectory(folder / "hf")
        for step in trajectory.steps:
            loaded = flatten_dict(trajectory[step].load(), sep="/")
            flat = {name: np.asarray(array, np.float64) for name, array in loaded.items()}
            config = T5Config.from_parameters(flat)
            yield (
                f"{folder.name} step {step}",
                config,
                unflatten_dict(flat, sep="/"),
                [*pairs.values(), *repeated],
            )


def outputs(config: T5Config, params: Any, encoder: Any, decoder: Any) -> dict[str, Any]:
    """Return logits, states and attention weights."""
    logits, taps = T5(config).apply({"params": params}, encoder, decoder, attention_weights=True)
    return {**taps, "logits": logits}


def serve(folders: list[Path], out: Path) -> None:
    """Write the limits by the version that is imported, {model/batch/output: value and valid}."""
    found = {}
    with jax.enable_x64(True):
        compiled: dict[T5Config, Any] = {}
        for name, config, params, batches in models(folders):
            run = compiled.setdefault(config, jax.jit(saturate(partial(outputs, config))))
            for index, tokens in enumerate(batches):
                for tap, limit in run(params, *tokens).items():
                    key = f"{name}|{index}|{tap}"
                    found[f"{key}|value"] = np.asarray(limit.value)
                    found[f"{key}|valid"] = np.asarray(limit.valid)
    np.savez(out, **found)


def compare(before: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> None:
    """Print what differs between two versions, model by model."""
    before = {key: value for key, value in before.items() if key in now}  # taps come and go
    names = [key.removesuffix("|value") for key in before if key.endswith("|value")]
    for model in dict.fromkeys(name.split("|")[0] for name in names):
        largest, count, rows = 0.0, 0, {}
        for name in (name for name in names if name.split("|")[0] == model):
            old, new = before[f"{name}|value"], now[f"{name}|value"]
            valid = before[f"{name}|valid"] & now[f"{name}|valid"]
            scale = np.maximum(np.abs(new).max(axis=-1, keepdims=True), 1e-300)
            gap = np.where(valid & (old != new), np.abs(old - new) / scale, 0).max(axis=-1)
            marks = (before[f"{name}|valid"] != now[f"{name}|valid"]).any(axis=-1)
            differs = (gap > TOLERANCE) | marks
            count += gap.size
            largest = max(largest, float(np.where(differs, 0, gap).max()))
            if differs.any():
                rows[name.split("|", 1)[1]] = np.argwhere(differs).tolist()
        differing = sum(map(len, rows.values()))
        print(json.dumps({
            "model": model, "rows compared": count, "rows that differ": differing,
            "largest difference of the others": largest, "outputs that differ": len(rows),
            "rows": dict(list(rows.items())[:SHOWN]),
        }), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--against", type=Path, required=True, help="a checkout of another version")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.folders, arguments.serve)
        return
    here = Path(__file__).resolve().parents[1]
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, tree in (("before", arguments.against), ("now", here)):
            out = Path(scratch) / f"{name}.npz"
            command = [sys.executable, __file__, "--against", arguments.against, "--serve", out]
            environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
            subprocess.run([*command, *arguments.folders], check=True, env=environment)
            with np.load(out) as file:
                found.append(dict(file))
    compare(*found)


if __name__ == "__main__":
    main()
