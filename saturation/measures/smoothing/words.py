"""What is said of smoothing: its terms, a table of the layers, whether the forecast holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from saturation.measures.words import DOVONON, Term, Words
from saturation.plots.panels import Table
from saturation.plots.series import STACKS, RunTable, in_stack

_COLUMNS = {  # {heading: (metric, format)}
    "cos": ("token_cosine", ".2f"),
    "|cos|": ("token_cosine_abs", ".2f"),
    "effective rank": ("effective_rank", ".1f"),
    "HFC/LFC": ("hfc_lfc", ".3g"),
    "forecast": ("forecast_change", "+.3f"),
    "attention did": ("measured_change", "+.3f"),
    "layers left did": ("onward_change", "+.3f"),
    "agree": ("onward_agrees", ".0%"),
}

TERMS = (
    Term(
        "token_cosine",
        "mean over pairs of tokens of cos(x_i, x_j)",
        "1 where all tokens of a sequence point the same way.",
        DOVONON,
    ),
    Term(
        "token_cosine_abs",
        "mean over pairs of |cos(x_i, x_j)|",
        "1 where all tokens lie on one line, whichever way they point.",
        "ours",
    ),
    Term(
        "token_cosine_centred",
        "mean over pairs of cos(x_i − x̄, x_j − x̄)",
        "The same once what all tokens share is taken off.",
        "ours",
    ),
    Term("effective_rank", "exp(H(σ/Σσ))", "How many directions the tokens fill.", DOVONON),
    Term("stable_rank", "‖X‖_F²/σ₁²", "The same, by the largest direction.", "ours"),
    Term(
        "hfc_lfc",
        "‖X − 1x̄ᵀ‖_F/‖1x̄ᵀ‖_F",
        "What sets tokens apart over what they share: 0 where they are equal.",
        DOVONON,
    ),
    Term("rank_one_distance", "√(1 − σ₁²/‖X‖_F²)", "0 where all tokens lie on one line.", "ours"),
    Term(
        "token_rms",
        "mean over tokens of √(mean of x²)",
        "How large tokens are.",
        "ours",
    ),
    Term(
        "attention_min",
        "min Re λ^A of a head's attention",
        "The attention's eigenvalue that sets tokens apart the most where H is negative.",
        DOVONON,
    ),
    Term("attention_second", "the largest |λ^A| but 1", "1: attention mixes nothing.", DOVONON),
    Term(
        "hfc_lfc_stationary",
        "‖X − 1x_f‖_F/(√n‖x_f‖), x_f the first token",
        "What sets tokens apart from the first, which causal self-attention makes them like.",
        "ours",
    ),
    Term(
        "growth_shared",
        "s: max(1, max |1 + λ^H/r|)",
        "Growth in a layer of what tokens share, by one head alone.",
        DOVONON,
    ),
    Term(
        "growth_apart",
        "p: max(1, max |1 + λ^H λ^A/r| over all λ^A but the simple 1)",
        "Growth of what sets them apart.",
        DOVONON,
    ),
    Term(
        "apart_over_shared",
        "ln(growth_apart/growth_shared)",
        "By how much one head alone would move ln(HFC/LFC) in a layer, in the end.",
        "ours",
    ),
    Term("dominance_rate", "|apart_over_shared|", "How clear a head's regime is.", "ours"),
    Term(
        "layers_to_dominate",
        "1/dominance_rate",
        "Layers until the dominating pair has outgrown the other kind by a factor e; ∞: never.",
        "ours",
    ),
    Term("smooths", "share with apart_over_shared < −0.001", "1: it smooths.", DOVONON),
    Term("sharpens", "share with apart_over_shared > 0.001", "1: it sharpens.", DOVONON),
    Term("neither", "the other share", "1: nothing outgrows what the head leaves alone.", "ours"),
    Term(
        "dominating_h_real",
        "Re λ^H/r of the pair that grows most; …_imaginary: |Im|",
        "Which of the head's eigenvalues decides.",
        DOVONON,
    ),
    Term(
        "dominating_a_real",
        "Re λ^A of that pair; …_imaginary: |Im|",
        "1: what tokens share; the smallest: what sets them apart.",
        DOVONON,
    ),
    Term(
        "forecast_change",
        "(ln HFC/LFC(L^m X) − ln HFC/LFC(X))/m, L the layer's self-attention frozen",
        "By how much the layer, acting again in each of the m layers left, would move ln(HFC/LFC).",
        "ours",
    ),
    Term(
        "measured_change",
        "ln(HFC/LFC) after the self-attention − before",
        "What the layer's self-attention did to its tokens; of the last layer it is the forecast.",
        "ours",
    ),
    Term(
        "onward_change",
        "(ln(HFC/LFC) after the stack's last layer − before this one)/m",
        "What this layer and those behind it did, all of their parts.",
        "ours",
    ),
    Term(
        "forecast_agrees",
        "share of sequences where forecast_change and measured_change have one sign",
        "How often the layer would go on as it began; 1 of the last one, always.",
        "ours",
    ),
    Term(
        "onward_agrees",
        "share of sequences where forecast_change and onward_change have one sign",
        "½ is what a coin would do.",
        "ours",
    ),
    Term(
        "joint_growth",
        "exp of the mean of ln ‖L(X_k)‖, X_k of norm 1, over k = 200 … 399",
        "By how much the layer's own map makes the stream grow, in the end.",
        "ours",
    ),
    Term(
        "joint_token_cosine",
        "mean of token_cosine(X_k)",
        "How alike the layer's own map makes tokens.",
        "ours",
    ),
    Term(
        "joint_hfc_lfc",
        "geometric mean of HFC/LFC(X_k)",
        "What sets them apart then, over what they share.",
        "ours",
    ),
    Term(
        "joint_converged",
        "share where the means over both halves of those k agree to 0.01",
        "1: these numbers are the end's.",
        "ours",
    ),
    Term("joint_sequences", "count", "Sequences whose layers were iterated.", "ours"),
    Term("sequences", "count", "Sequences of two tokens or more, which have pairs.", "ours"),
    Term("skipped", "count", "Sequences of one token, which have none.", "ours"),
    Term("compared", "count", "Sequences that the changes are means over.", "ours"),
    Term("decided", "count", "Those of them with a clear forecast.", "ours"),
)


def depth(run: RunTable, stack: str, metric: str) -> dict[str, Mapping[int, float]]:
    """Return {state: {step: value}} of one stack, from the embedding to after the last norm.

    States are named `embedding`, `layers_0`, …, `final`; those without the metric are left out.
    """
    found = run.matching(metric, in_stack(stack, r"(embedding|layers_\d+|final)"))

    def place(scope: str) -> float:
        name = scope.rpartition("/")[2]
        return {"embedding": -1.0, "final": np.inf}.get(name) or float(name.rpartition("_")[2])

    return {
        scope.rpartition("/")[2]: dict(
            zip(found[scope].steps.tolist(), found[scope].values.tolist(), strict=True)
        )
        for scope in sorted(found, key=place)
    }


def holds_from(run: RunTable, stack: str, step: int) -> int | None:
    """Return the layer from which on the forecast has the sign of what the layers left did.

    A layer's forecast holds where it agrees in more than half of the sequences; layers without a
    clear forecast are passed over. None where the last that has one does not agree, or none has.
    """
    first = None
    for layer, agreed in reversed(_agreements(run, stack, step)):
        if not agreed:
            break
        first = layer
    return first


def tables(run: RunTable) -> Sequence[Table]:
    """Return the states of the last checkpoint, and from where on the forecast holds."""
    similar = run.matching("token_cosine", r"((encoder|decoder)/)?embedding")
    if not similar:
        return []
    step = max(int(series.steps[-1]) for series in similar.values())
    rows, said = [], []
    for stack in STACKS:
        columns = [(depth(run, stack, metric), shown) for metric, shown in _COLUMNS.values()]
        for state in columns[0][0]:
            cells = [
                format(values[state][step], shown) if step in values.get(state, {}) else "-"
                for values, shown in columns
            ]
            rows.append((in_stack(stack, state), *cells))
        if depth(run, stack, "hfc_lfc"):
            said.append(say_holds(run, stack, step))
    return [Table((f"tokens at step {step:,}", *_COLUMNS), rows, notes=said)]


def say_holds(run: RunTable, stack: str, step: int) -> str:
    """Return the sentence on from which layer on the forecast holds."""
    if not _agreements(run, stack, step):
        return f"In the {stack or 'model'} no layer has a clear forecast."
    first = holds_from(run, stack, step)
    if first is None:
        return f"In the {stack or 'model'} the forecast does not hold up to the last layer."
    return f"In the {stack or 'model'} the forecast has the right sign from layer {first} on."


def guide(run: RunTable) -> Sequence[str]:
    """Return how to read smoothing.png."""
    if not run.matching("hfc_lfc", ".*"):
        return ()
    return (
        "HFC/LFC is what sets tokens apart over what they share: falling with depth, tokens become "
        "alike (they smooth); rising, they part (they sharpen). Read cosine and |cosine| together: "
        "tokens that part along one line have a cosine near 0 and a |cosine| near 1.",
        "The forecast is by how much ln(HFC/LFC) would move a layer if this layer's "
        "self-attention, its weights kept, acted in all layers left and nothing else did: below 0 "
        "smoothing, above 0 sharpening. Beside it what the self-attention did, once (for the last "
        "layer that is the forecast itself), and what all parts of all layers left did, a layer; "
        "`agree` is with that.",
    )


def _agreements(run: RunTable, stack: str, step: int) -> list[tuple[int, bool]]:
    """Return the layers with a clear forecast, by depth, and whether it agrees."""
    by_layer = depth(run, stack, "onward_agrees")
    return [
        (int(layer.rpartition("_")[2]), at[step] > 0.5)
        for layer, at in by_layer.items()
        if step in at
    ]


WORDS = Words(
    terms=TERMS,
    figures={"smoothing": "token similarity by layer (measure smoothing: metrics such as hfc_lfc)"},
    tables=tables,
    guide=guide,
)
