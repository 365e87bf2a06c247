"""Tables of what self-attention was forecast to do to tokens, and of what it did.

    python benchmarks/forecasts.py RUN … [--step N]

Each RUN is a folder of `saturation measure --measures spectrum,smoothing`. Prints four tables in
Markdown, which docs/reproduction/oversmoothing.md is made of:

1. the forecast beside what came, for each stack: over all layers, and over all but the last, whose
   forecast is what it did. Shares of signs are over sequences, layers and checkpoints, of the
   decided ones; correlations and shares that fall are of the means over sequences, and the last
   column is that of `apart_over_shared`, by each head alone, with what was measured;
2. the stream at one step (the last): after the embedding, after the last layer and its norm;
3. every layer at that step: the change of ln(HFC/LFC) that was forecast and measured;
4. the spectra of the heads at that step: lowest, median and highest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from saturation import load_results
from saturation.results.table import load_vectors

OF_LAYERS = r"(?P<stack>encoder|decoder)/layers_(?P<layer>\d+)$"
OF_HEADS = r"(?P<stack>encoder|decoder)/layers_\d+/(?P<kind>\w*attention)/head_\d+$"
STATE = ("token_cosine", "token_cosine_abs", "effective_rank", "hfc_lfc")
OF_LAYER = (
    "token_cosine", "effective_rank", "hfc_lfc", "token_rms", "forecast_change", "measured_change",
    "onward_change", "attention_min", "attention_second", "neither", "joint_hfc_lfc",
    "joint_converged", "joint_sequences",
)  # fmt: skip
SPECTRUM = (
    "spectral_radius", "asymmetry", "fraction_negative", "growth_of_shared", "sharpens_below",
)  # fmt: skip


def wide(run: Path) -> pd.DataFrame:
    """Return the run's measures of heads, layers and states, a row a step and scope."""
    table = load_results(run)
    return table.pivot_table(
        index=["step", "scope"], columns="metric", values="value", dropna=False
    ).reset_index()


def layers(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of layers, with their stack and number, and which are the last."""
    found = pd.concat([table, table["scope"].str.extract(OF_LAYERS)], axis=1).dropna(subset="stack")
    found["layer"] = found["layer"].astype(int)
    last = found.groupby("stack")["layer"].transform("max")
    return found.assign(is_last=found["layer"] == last)


def agreement(rows: pd.DataFrame) -> list[object]:
    """Return what one set of layers and checkpoints says of forecast and fact."""
    decided = rows["decided"].sum()
    changes = [rows[f"{name}_change"] for name in ("forecast", "measured", "onward")]

    def share(name: str) -> float:
        return float((rows[name] * rows["decided"]).sum() / decided)

    def correlation(name: str, forecast: str = "forecast_change") -> float:
        return float(np.corrcoef(rows[forecast], rows[name])[0, 1])

    return [
        len(rows),
        f"{decided:.0f} of {rows['compared'].sum():.0f}",
        share("forecast_agrees"),
        correlation("measured_change"),
        share("onward_agrees"),
        correlation("onward_change"),
        *(float((change < 0).mean()) for change in changes),
        correlation("measured_change", "apart_over_shared"),
    ]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in Markdown, numbers to three digits."""

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(map(cell, row))} |")


def print_agreement(tables: dict[str, pd.DataFrame]) -> None:
    """Print the first table."""
    columns = (
        "run", "stack", "layers", "points", "decided", "forecast_agrees", "r measured",
        "onward_agrees", "r onward", "forecast falls", "measured falls", "onward falls",
        "r of heads alone",
    )  # fmt: skip
    rows = []
    for name, table in tables.items():
        for stack, of_stack in layers(table).groupby("stack", sort=False):
            rows.append([name, stack, "all", *agreement(of_stack)])
            rows.append([name, stack, "but the last", *agreement(of_stack[~of_stack["is_last"]])])
    print_table(columns, rows)


def print_states(tables: dict[str, pd.DataFrame]) -> None:
    """Print the second and third table, of tables that hold one step."""
    states, of_layers = [], []
    for name, table in tables.items():
        by_scope = table.set_index("scope")
        for stack, rows in layers(table).groupby("stack", sort=False):
            last = rows.loc[rows["is_last"], "scope"].item()
            for scope in (f"{stack}/embedding", last, f"{stack}/final"):
                states.append([name, scope, *by_scope.loc[scope, list(STATE)].astype(float)])
            for row in rows.sort_values("layer").itertuples():
                numbers = (float(getattr(row, metric, np.nan)) for metric in OF_LAYER)
                of_layers.append([name, row.scope, *numbers])
    print_table(("run", "scope", *STATE), states)
    print_table(("run", "scope", *OF_LAYER), of_layers)


def print_spectra(tables: dict[str, pd.DataFrame], runs: dict[str, Path]) -> None:
    """Print the fourth table, of tables that hold one step."""
    rows = []
    for name, table in tables.items():
        step = table["step"].iloc[0]
        vectors = load_vectors(runs[name], "spectrum")
        of_self = ~vectors["scope"].str.contains("/encoder_decoder_attention/")
        kernels = np.concatenate(
            vectors.loc[of_self & (vectors["step"] == step), "real_unscaled"].to_list()
        )
        negative = table["negative_scales"].sum()
        heads = pd.concat([table, table["scope"].str.extract(OF_HEADS)], axis=1)
        for kind, of_kind in heads.dropna(subset="stack").groupby(["stack", "kind"], sort=False):
            for metric in SPECTRUM:
                found = of_kind[metric].dropna()  # H = 0 has no asymmetry
                ends = found.quantile([0, 0.5, 1])
                rows.append([name, "/".join(kind), metric, len(found), *map(float, ends)])
        zero = float((kernels == 0).mean())
        print(f"{name}: {negative:.0f} negative norm scales; a real part of exactly 0 in "
              f"{zero:.3f} of the eigenvalues of self-attention's kernels")  # fmt: skip
    print_table(("run", "heads", "metric", "heads counted", "lowest", "median", "highest"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--step", type=int, help="of the tables of one step (the last)")
    arguments = parser.parse_args()
    runs = {path.name: path for path in arguments.runs}
    tables = {name: wide(path) for name, path in runs.items()}
    print_agreement(tables)
    asked = arguments.step
    at = {
        name: table[table["step"] == (table["step"].max() if asked is None else asked)]
        for name, table in tables.items()
    }
    print_states(at)
    print_spectra(at, runs)


if __name__ == "__main__":
    main()
