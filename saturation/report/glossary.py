"""What each metric is: its formula, what it says, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

MERRILL = (
    "Merrill, Ramanujan, Goldberg, Schwartz and Smith, Effects of Parameter Norm Growth During "
    "Transformer Training, EMNLP 2021, arXiv:2010.09697"
)
SHORT = "Merrill et al. 2021"
DOVONON = "Dovonon et al. 2025"


@dataclass(frozen=True)
class Term:
    """One metric of the results table.

    Attributes:
        metric: its name in the table.
        formula: as MEASURES and the docs write it; θ_t and θ_t′ are neighbouring checkpoints.
        meaning: one sentence for somebody who sees it for the first time.
        source: the paper, or "ours".
    """

    metric: str
    formula: str
    meaning: str
    source: str


GLOSSARY = (
    Term("l2", "‖θ‖₂ = √Σθ²", "Euclidean norm: how large the parameters of a scope are.", SHORT),
    Term("rms", "‖θ‖₂/√size", "Norm per parameter, comparable between sizes.", SHORT),
    Term(
        "l2_fan_in",
        "√Σ_W ‖W‖²/fan_in(W), over kernels",
        "Norm of the kernels, each relative to the number of its inputs.",
        SHORT,
    ),
    Term(
        "min_rms",
        "min_W ‖W‖_F/√size, over matrices",
        "The smallest matrix: a network saturates once all its matrices have grown.",
        SHORT,
    ),
    Term("max_abs", "max |θ|", "The largest parameter.", "ours"),
    Term(
        "nonfinite",
        "count of NaN and ±∞",
        "Broken parameters; where there are any, the other metrics mean nothing.",
        "ours",
    ),
    Term(
        "cosine",
        "⟨θ_t, θ_t′⟩/(‖θ_t‖‖θ_t′‖)",
        "1 where the direction of the parameters did not change between two checkpoints.",
        SHORT,
    ),
    Term(
        "cosine_distance",
        "1 − cosine = (‖δ‖² − (‖θ_t′‖ − ‖θ_t‖)²)/(2‖θ_t‖‖θ_t′‖)",
        "The same from the difference δ, so that it keeps its digits near 0.",
        f"{SHORT}; this form ours",
    ),
    Term(
        "cosine_to_first",
        "⟨θ_first, θ_t⟩/(‖θ_first‖‖θ_t‖)",
        "How much of the first checkpoint's direction is left.",
        SHORT,
    ),
    Term("step_norm", "‖δ‖, δ = θ_t′ − θ_t", "How far the parameters moved.", SHORT),
    Term("relative_step", "‖δ‖/‖θ_t‖", "How far they moved, relative to their size.", SHORT),
    Term(
        "alignment",
        "⟨δ, θ_t⟩/(‖δ‖‖θ_t‖)",
        "1: straight outwards, the direction stays; 0: across; below 0: inwards.",
        f"{SHORT}, whose code divides its per-layer value by another quantity",
    ),
    Term(
        "radial",
        "2⟨θ_t, δ⟩ + ⟨θ_t, δ⟩²/‖θ_t‖²",
        "The part of the growth of ‖θ‖² that steps along θ made.",
        "ours",
    ),
    Term(
        "tangential",
        "‖δ‖² − ⟨θ_t, δ⟩²/‖θ_t‖²",
        "The part that steps across θ made; radial + tangential = ‖θ_t′‖² − ‖θ_t‖² exactly.",
        "ours",
    ),
    Term(
        "exponent",
        "ln(‖θ_t′‖/‖θ_t‖)/ln(t′/t)",
        "The power of t by which ‖θ‖ grew between two checkpoints; none where t = 0.",
        "ours",
    ),
    Term(
        "exponent_radial",
        "radial/(2Λ ln(t′/t)), Λ = (N′ − N)/ln(N′/N), N = ‖θ_t‖², N′ = ‖θ_t′‖²",
        "Its part by steps along θ.",
        "ours",
    ),
    Term(
        "exponent_tangential",
        "tangential/(2Λ ln(t′/t))",
        "Its part by steps across θ; the two parts sum to the exponent exactly.",
        "ours",
    ),
    Term(
        "…_per_step",
        "metric/(t′ − t)",
        "The same for one training step, since checkpoints lie unevenly apart.",
        "ours",
    ),
    Term(
        "cosine_attention_limit",
        "mean over tokens of cos(h, h′), h′ with every attention at τ = 0",
        "1 where attention has saturated: a layer is what it is with argmax attention.",
        "ours",
    ),
    Term(
        "cosine_parameter_limit",
        "mean over tokens of cos(h, h′), h′ of lim f(x; cθ)/c^k for c → ∞",
        "1 where the network behaves as a homogeneous one.",
        f"{SHORT}; the exact limit ours",
    ),
    Term(
        "excluded_parameter_limit",
        "count of tokens",
        "Tokens that cosine_parameter_limit leaves out: the limit does not exist there.",
        "ours",
    ),
    Term(
        "cosine_to_limit_at_c",
        "mean over tokens of cos(f(x; cθ), sf(x))",
        "From which c on the limit describes the network.",
        SHORT,
    ),
    Term(
        "local_degree_at_c",
        "mean over tokens of d ln‖f(x; cθ)‖/d ln c",
        "The power of c by which a layer grows there.",
        "ours",
    ),
    Term(
        "cosine_scaled",
        "mean over tokens of cos(h, h′), h′ of f(x; cθ)",
        "1 where scaling all parameters by c no longer turns the layer's output.",
        SHORT,
    ),
    Term(
        "excluded_scaled",
        "count of tokens",
        "Tokens that cosine_scaled leaves out: f(x; cθ) left the range of its dtype.",
        "ours",
    ),
    Term(
        "total_variation",
        "mean over queries of ½ Σ|w₁ − w₀|",
        "0 where a head's weights are those at temperature 0 already.",
        "ours",
    ),
    Term(
        "…_stderr",
        "standard error over sequences of the mean before it",
        "How much the sample of text matters.",
        "ours",
    ),
    Term(
        "tokens",
        "count",
        "How many tokens, or queries of a head, a mean is taken over.",
        "ours",
    ),
    Term(
        "positions_mean",
        "mean over queries of n, the keys attended at τ = 0",
        "1 for an argmax-like (local) head, all keys for a mean-like (global) one.",
        SHORT,
    ),
    Term(
        "positions_mean_limit",
        "mean of n in the exact parameter limit",
        "The same where all parameters grow without bound; Merrill et al. count at c = 1000.",
        MERRILL,
    ),
    Term(
        "undecided",
        "mean number of keys of a query neither told from the largest score nor equal to it",
        "Above 0, n may be too small; 0 where scores are compared to the bit.",
        "ours",
    ),
    Term(
        "ties_reliable",
        "1 where scores were computed in float64, else 0",
        "0: equal tokens may have unequal scores, and n may be too small.",
        "ours",
    ),
    Term("positions_std", "standard deviation of n", "Whether a head does both.", SHORT),
    Term("split_probability", "P(n > 1)", "How often keys share the maximum.", SHORT),
    Term(
        "positions_fraction",
        "mean of n/allowed keys",
        "Positions attended, comparable between lengths.",
        "ours",
    ),
    Term(
        "distance_mean",
        "mean of key − query over attended keys",
        "Where a head of self-attention looks: behind (negative) or ahead.",
        "ours",
    ),
    Term(
        "distance_abs",
        "mean of |key − query| over attended keys",
        "How far a head of self-attention looks.",
        "ours",
    ),
    Term(
        "entropy",
        "mean of −Σ w ln w at τ = 1, in nats",
        "How soft a head is as it runs.",
        "ours",
    ),
    Term(
        "fraction_negative",
        "share of the d_kv non-zero eigenvalues λ of H = diag(g) W_V W_O with Re λ < 0",
        "What a head adds is turned against the stream in so many directions.",
        DOVONON,
    ),
    Term(
        "fraction_sharpening",
        "share with Re λ in [−1, 0)",
        "1: what tokens share does not outgrow the null space, if λ are real and the stream's root "
        "mean square were 1; whether they part takes an eigenvalue of attention below 0.",
        DOVONON,
    ),
    Term("spectral_radius", "max |λ|", "How strongly a head can act.", "ours"),
    Term(
        "asymmetry",
        "‖H − Hᵀ‖_F/(2‖H‖_F)",
        "0 for a symmetric H, 1 for a skew one, 0.71 for a random one.",
        "ours",
    ),
    Term("real_min", "min Re λ", "The leftmost eigenvalue.", "ours"),
    Term("real_max", "max Re λ", "The rightmost eigenvalue.", "ours"),
    Term("imaginary_max", "max |Im λ|", "How far the spectrum is from real.", "ours"),
    Term(
        "growth_of_shared",
        "max(1, max |1 + λ|); max |1 + λ| where d_kv = d",
        "By how much what all tokens share grows in a layer.",
        DOVONON,
    ),
    Term(
        "sharpens_below",
        "m: max_j |1 + λ_j λ^A_min| > growth_of_shared where λ^A_min < m",
        "Under an attention of real eigenvalues the head sharpens where the smallest is below "
        "this; −1: never. It is not above 0 where d_kv < d.",
        f"ours, from {DOVONON}",
    ),
    Term("negative_scales", "count of g < 0", "Norm scales that turn signs.", "ours"),
    Term("…_unscaled", "the same with g = 1", "What the kernels alone say.", "ours"),
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
    Term(
        "attention_entropy",
        "mean of −Σ w ln w at τ = 1, in nats",
        "How soft a head is as it runs; compare with uniform_entropy.",
        "ours",
    ),
    Term(
        "uniform_entropy",
        "mean of ln(allowed keys)",
        "The entropy of a head that attends to all allowed keys alike.",
        "ours",
    ),
    Term(
        "mass_distinct",
        "mean of Σ w over distinct keys",
        "Attention on tokens that tell what follows from what else might.",
        "ours",
    ),
    Term(
        "mass_common",
        "mean of Σ w over common keys",
        "Attention on tokens that say nothing of what follows.",
        "ours",
    ),
    Term(
        "mass_unclassified",
        "mean of Σ w over the other keys",
        "Attention on tokens that the corpus has in one sequence at most.",
        "ours",
    ),
    Term(
        "uniform_distinct",
        "mean share of allowed keys that are distinct",
        "mass_distinct of a head that attends to all allowed keys alike.",
        "ours",
    ),
    Term(
        "uniform_common",
        "mean share of allowed keys that are common",
        "mass_common of a head that attends to all allowed keys alike.",
        "ours",
    ),
    Term(
        "distinct_excess",
        "mass_distinct − uniform_distinct",
        "Above 0 where a head prefers distinct tokens; a rise is scanning.",
        "ours, after Tian et al. 2023",
    ),
    Term(
        "distance_to_last",
        "½ Σ|p_t − p_last|, p the mean attention by kind and distance of the key",
        "The share of a head's attention that lies elsewhere than at the last checkpoint.",
        "ours",
    ),
    Term(
        "speed",
        "‖p_t′ − p_t‖₂/ln(t′/t), p as in distance_to_last",
        "How fast a head's attention moves per unit of ln t between neighbouring checkpoints.",
        "ours",
    ),
    Term(
        "snapped",
        "1 from snap_step on if snap_ratio ≥ 3 and snap_p_value ≤ 0.05, else 0",
        "Whether a head has moved early and come to rest; NaN below 15 intervals. A head that is "
        "not called may stand still all the same: a late stop, or noise, hides it.",
        "ours, after Tian et al. 2023",
    ),
    Term(
        "snap_ratio",
        "largest rms speed over a third of the intervals, before the last third, over the last's",
        "How much slower the head moves at the end than at its fastest; of the whole run.",
        "ours",
    ),
    Term(
        "snap_p_value",
        "(1 + orders of the speeds with as large a snap_ratio)/200, of 199 random orders",
        "How easily the same speeds in another order show as large a fall; of the whole run.",
        "ours",
    ),
    Term(
        "snap_step",
        "√(t t′) of the two checkpoints between which speed is largest",
        "When a head that has snapped moved fastest; of the whole run.",
        "ours",
    ),
)
