"""Made tables of every measure, as large as asked for, with the eigenvalues of `spectrum`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from report_tables import direction, norms

ATTENTIONS = {"encoder": ("attention",), "decoder": ("self_attention", "encoder_decoder_attention")}
OF_LAYERS = {
    "saturation": ("cosine_attention_limit", "cosine_parameter_limit", "cosine_scaled",
                   "cosine_attention_limit_stderr"),
    "homogeneity": tuple(f"{name}_at_{c}" for c in (1, 10, 100)
                         for name in ("cosine_to_limit", "local_degree")),
    "smoothing": ("token_cosine", "token_cosine_abs", "token_cosine_stderr", "hfc_lfc", "token_rms",
                  "forecast_change", "measured_change", "onward_change", "onward_agrees"),
}  # fmt: skip
OF_HEADS = {
    "heads": ("positions_mean", "positions_fraction", "entropy"),
    "spectrum": ("fraction_negative", "fraction_sharpening", "spectral_radius", "asymmetry",
                 "sharpens_below"),
    "scan": ("attention_entropy", "uniform_entropy", "mass_distinct", "uniform_distinct",
             "mass_common", "uniform_common", "distance_to_last", "speed", "snapped", "snap_step"),
}  # fmt: skip
OF_MODEL = {"loss": ("loss", "loss_stderr", "perplexity", "tokens")}
EVERY = (*OF_MODEL, "norms", "direction", *OF_LAYERS, *OF_HEADS)


def layers(depth: int) -> list[str]:
    return [
        name
        for stack in ATTENTIONS
        for name in (f"{stack}/embedding", *(f"{stack}/layers_{n}" for n in range(depth)),
                     f"{stack}/final")
    ]  # fmt: skip


def heads(depth: int, each: int) -> list[str]:
    return [
        f"{stack}/layers_{layer}/{attention}/head_{head}"
        for stack, attentions in ATTENTIONS.items()
        for layer in range(depth)
        for attention in attentions
        for head in range(each)
    ]


def table(measures, steps, depth: int = 2, each: int = 2, seed: int = 0) -> pd.DataFrame:
    """The results table of a run of these measures: every value its own random number in (0, 1).

    But for `positions_mean`, from 1 to 3, `snapped`, 1 at the last checkpoint alone, and
    `snap_step`, the last step.
    """
    generator = np.random.default_rng(seed)
    made = []
    for measure in measures:
        if measure == "norms":
            made.append(norms(steps, seed))
        elif measure == "direction":
            made += [direction(steps, seed)] if len(steps) > 1 else []
        else:
            metrics = (OF_MODEL | OF_LAYERS | OF_HEADS)[measure]
            scopes = layers(depth) if measure in OF_LAYERS else heads(depth, each)
            scopes = ["total"] if measure in OF_MODEL else scopes
            made.append(_random(generator, measure, metrics, scopes, steps))
    return pd.concat(made, ignore_index=True)


def _random(generator, measure, metrics, scopes, steps) -> pd.DataFrame:
    values = generator.uniform(0.01, 0.99, (len(metrics), len(scopes), len(steps)))
    for metric, block in zip(metrics, values, strict=True):
        if metric == "positions_mean":
            block *= 2
            block += 1
        elif metric == "snapped":
            block[:] = np.arange(len(steps)) == len(steps) - 1
        elif metric == "snap_step":
            block[:] = steps[-1]
    found = pd.DataFrame({
        "step": np.tile(np.asarray(steps, np.int64), len(metrics) * len(scopes)),
        "measure": measure,
        "metric": np.repeat(metrics, len(scopes) * len(steps)),
        "scope": np.tile(np.repeat(scopes, len(steps)), len(metrics)),
        "value": values.ravel(),
        "previous_step": pd.array([pd.NA] * values.size, dtype="Int64"),
    })  # fmt: skip
    change = found["metric"].str.match("forecast|measured|onward")
    return found[~change | found["scope"].str.contains("/layers_")]


def eigenvalues(steps, depth: int = 2, each: int = 2, head_dim: int = 4) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    return pd.DataFrame([
        {
            "step": step,
            "scope": scope,
            "real": generator.normal(size=head_dim),
            "imaginary": generator.normal(size=head_dim),
        }
        for scope in heads(depth, each)
        for step in steps
    ])  # fmt: skip
