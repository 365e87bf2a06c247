"""T5's hyperparameters: the published sizes, and how to infer them from a checkpoint's arrays.

Names are those of T5X's minimal example. Nothing here needs JAX.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from saturation.errors import ArgumentError
from saturation.models.base import Attention, ModelConfig, Shape, Stack
from saturation.models.eigenvalues import SPECTRA


@dataclass(frozen=True)
class T5Config(ModelConfig):
    """Everything that fixes a T5's parameters and its forward pass.

    Attributes:
      vocab_size: rows of the embedding.
      emb_dim: width of the residual stream (Hugging Face: d_model).
      num_heads: attention heads, in every attention.
      head_dim: size of a head's query, key and value (d_kv); num_heads * head_dim may differ from
        emb_dim.
      mlp_dim: width inside the feed-forward block (d_ff).
      num_encoder_layers: blocks of the encoder.
      num_decoder_layers: blocks of the decoder.
      mlp_activations: ("relu",) in v1.0; ("gelu", "linear") is the gated block of v1.1, tanh-gelu
        on the first projection.
      logits_via_embedding: the output head is the embedding (v1.0).
      scale_decoder_outputs: what reaches the output head is scaled by emb_dim^-1/2; None, the
        default, is where the head is the embedding, as T5X and Hugging Face up to version 4 do.
      per_layer_relative_bias: a relative bias in every layer (UMT5) in place of one a stack.
      relative_attention_num_buckets: buckets of the relative bias.
      relative_attention_max_distance: distance from which all share the last bucket.
      layer_norm_epsilon: added to the mean square in every norm.
      attention_spectrum: "sharpen", "smooth" or "free": every self-attention's heads are V Λ V⁻¹
        with eigenvalues of that kind (see `models.eigenvalues`); None is T5.
    """

    family: ClassVar[str] = "t5"
    home: ClassVar[str] = "saturation.models.t5_stages"

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("relu",)
    logits_via_embedding: bool = True
    per_layer_relative_bias: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    attention_spectrum: str | None = None
    scale_decoder_outputs: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ArgumentError(f"T5Config.{field.name} must be an integer > 0, not {value!r}.")
        for name in self.mlp_activations:
            if name not in ACTIVATIONS:
                raise ArgumentError(
                    f"T5Config.mlp_activations must be of {', '.join(ACTIVATIONS)}, not {name!r}."
                )
        if self.attention_spectrum is not None:
            self._check_spectrum()
        if self.relative_attention_num_buckets < 4:
            raise ArgumentError("T5Config.relative_attention_num_buckets must be 4 or more.")
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ArgumentError(
                "T5Config.relative_attention_max_distance must exceed half of the "
                f"{self.relative_attention_num_buckets} buckets, but is "
                f"{self.relative_attention_max_distance}."
            )

    def _check_spectrum(self) -> None:
        if self.attention_spectrum not in SPECTRA:
            raise ArgumentError(
                f"T5Config.attention_spectrum must be of {', '.join(SPECTRA)}, or None, not "
                f"{self.attention_spectrum!r}."
            )
        if self.head_dim > self.emb_dim:
            raise ArgumentError(
                f"With attention_spectrum a head has head_dim orthonormal columns of emb_dim "
                f"entries, so head_dim must not exceed {self.emb_dim}, but is {self.head_dim}."
            )

    @classmethod
    def published(cls, name: str) -> T5Config:
        """The configuration of a published size, such as "t5-base", "t5-v1_1-xl", "umt5-small".

        Raises:
          ArgumentError: an unknown name; the text lists the known ones.
        """
        if name not in PUBLISHED:
            known = ", ".join(PUBLISHED)
            raise ArgumentError(f"No published T5 is called {name!r}; known are {known}.")
        family, sizes = PUBLISHED[name]
        return cls(**_FAMILIES[family], **dict(zip(_SIZE_FIELDS, sizes, strict=True)))

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        """Whether parameters of these names are a T5's: those of an encoder and a decoder."""
        return any(name.startswith("encoder/layers_0/attention/") for name in names)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> T5Config:
        """Infer the configuration from the arrays' names and shapes.

        Heads come from the relative bias, gating from wi or wi_0, tying from the absence of
        `decoder/logits_dense`, a given spectrum from `attention/sharpen/basis` and the like. Arrays
        do not tell the activation (relu where there is one input projection, tanh-gelu where there
        are two), the maximum distance (128) or the norms' epsilon (1e-6): those are what every
        published T5 has.

        Args:
          parameters: T5X's unscanned names -> shape, or anything with a `.shape`; a nested tree
            of those will do.

        Raises:
          ArgumentError: names or shapes that are not those of one T5; the text lists each.
        """
        shapes = _flat_shapes(parameters)
        config = _infer(shapes)
        differences = _differences(config.parameter_shapes(), shapes)
        if differences:
            raise ArgumentError(
                "These arrays are not those of one T5 with T5X's unscanned names:\n  "
                + "\n  ".join(differences)
            )
        return config

    @classmethod
    def from_checkpoint(cls, checkpoint: Any) -> T5Config:
        """Infer the configuration of a checkpoint: from its arrays, and from what its files say.

        Args:
          checkpoint: a `saturation.checkpoints.Checkpoint`; its `settings` are fields of this class
            that no array tells, such as `scale_decoder_outputs`.

        Raises:
          ArgumentError: as `from_parameters`; or a setting that no T5 here has, such as an unknown
            activation.
        """
        inferred, settings = cls.from_parameters(checkpoint.parameters), checkpoint.settings
        named = settings.get("mlp_activations", inferred.mlp_activations)
        try:
            if len(named) != len(inferred.mlp_activations):
                raise ArgumentError(
                    f"the arrays are of a feed-forward block with {len(inferred.mlp_activations)} "
                    f"input projections, and its activations are said to be {', '.join(named)}."
                )
            return replace(inferred, **settings)
        except ArgumentError as error:
            raise ArgumentError(f"{checkpoint.path}: {error}") from error

    @property
    def scales_logits(self) -> bool:
        """Whether logits are divided by √emb_dim: `scale_decoder_outputs` where it is given."""
        given = self.scale_decoder_outputs
        return self.logits_via_embedding if given is None else given

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block multiplies two input projections."""
        return len(self.mlp_activations) > 1

    def parameter_shapes(self) -> dict[str, Shape]:
        """Every array's T5X name and shape, in the order of the forward pass."""
        shapes = {"token_embedder/embedding": (self.vocab_size, self.emb_dim)}
        for stack in self.stacks:
            shapes |= self._stack_shapes(stack.name, len(stack.layers), ATTENTIONS[stack.name])
        if not self.logits_via_embedding:
            shapes["decoder/logits_dense/kernel"] = (self.emb_dim, self.vocab_size)
        return shapes

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The encoder and the decoder."""
        return (
            Stack.of("encoder", self.num_encoder_layers),
            Stack.of("decoder", self.num_decoder_layers),
        )

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention, in the order of the forward pass."""
        return tuple(
            self._attention(stack.name, layer, name)
            for stack in self.stacks
            for layer in stack.layers
            for name in ATTENTIONS[stack.name]
        )

    def _attention(self, stack: str, layer: str, name: str) -> Attention:
        cross = name not in SELF_ATTENTIONS
        return Attention(
            path=f"{layer}/{name}",
            stack=stack,
            kind="cross" if cross else "self",
            causal=stack == "decoder" and not cross,
            # Values of cross-attention are made of what the encoder's last norm leaves.
            norm="encoder/encoder_norm/scale" if cross else f"{layer}/{NORM_BEFORE[name]}/scale",
            num_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            head_dim=self.head_dim,
            keys_stack="encoder" if cross else stack,
            norm_kind="rms",
            epsilon=self.layer_norm_epsilon,
        )

    @property
    def longest_sum(self) -> int:
        """The longest contraction over parameters: the largest width there is."""
        return max(self.emb_dim, self.num_heads * self.head_dim, self.mlp_dim)

    def attention_names(self) -> tuple[str, ...]:
        """The path of every attention, such as `decoder/layers_0/self_attention`."""
        return tuple(attention.path for attention in self.attentions)

    def _stack_shapes(
        self, stack: str, num_layers: int, attentions: tuple[str, ...]
    ) -> dict[str, Shape]:
        bias = (self.num_heads, self.relative_attention_num_buckets)
        shapes: dict[str, Shape] = {}
        if not self.per_layer_relative_bias:
            shapes[f"{stack}/relpos_bias/rel_embedding"] = bias
        for i in range(num_layers):
            layer = f"{stack}/layers_{i}"
            if self.per_layer_relative_bias:
                shapes[f"{layer}/relpos_bias/rel_embedding"] = bias
            for name, shape in self._layer_shapes(attentions):
                shapes[f"{layer}/{name}"] = shape
        shapes[f"{stack}/{stack}_norm/scale"] = (self.emb_dim,)
        return shapes

    def _layer_shapes(self, attentions: tuple[str, ...]) -> Iterator[tuple[str, Shape]]:
        joined = self.num_heads * self.head_dim
        for attention in attentions:
            yield f"{NORM_BEFORE[attention]}/scale", (self.emb_dim,)
            spectrum = self.attention_spectrum if attention in SELF_ATTENTIONS else None
            for projection in ("query", "key", "value")[: 2 if spectrum else 3]:
                yield f"{attention}/{projection}/kernel", (self.emb_dim, joined)
            if spectrum:
                yield f"{attention}/{spectrum}/basis", (self.emb_dim, joined)
                yield f"{attention}/{spectrum}/psi", (self.num_heads, self.head_dim)
            else:
                yield f"{attention}/out/kernel", (joined, self.emb_dim)
        yield "pre_mlp_layer_norm/scale", (self.emb_dim,)
        for name in input_projections(self.mlp_activations):
            yield f"mlp/{name}/kernel", (self.emb_dim, self.mlp_dim)
        yield "mlp/wo/kernel", (self.mlp_dim, self.emb_dim)


ACTIVATIONS = ("relu", "gelu", "silu", "linear")

NORM_BEFORE = {
    "attention": "pre_attention_layer_norm",
    "self_attention": "pre_self_attention_layer_norm",
    "encoder_decoder_attention": "pre_cross_attention_layer_norm",
}


SELF_ATTENTIONS = ("attention", "self_attention")

# Of each stack's layers, in the order of the forward pass.
ATTENTIONS = {
    "encoder": ("attention",),
    "decoder": ("self_attention", "encoder_decoder_attention"),
}


def input_projections(activations: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the feed-forward block's input kernels: wi, or wi_0, wi_1 when gated."""
    if len(activations) == 1:
        return ("wi",)
    return tuple(f"wi_{i}" for i in range(len(activations)))


# Raffel et al. 2020 (arXiv 1910.10683) section 3.7 for T5; google-research/text-to-text-transfer-
# transformer, released_checkpoints.md, for v1.1; Chung et al. 2023 (arXiv 2304.09151) and the
# config.json of google/umt5-* for UMT5; EleutherAI/pile-t5-* for Pile-T5. v1.0 stores 32,128 rows
# of embedding for a vocabulary of 32,100: padded to a multiple of 128.
_SIZE_FIELDS = ("emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers",
                "num_decoder_layers")  # fmt: skip
_GATED: dict[str, Any] = {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False}
_FAMILIES: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 32128},
    "t5-v1_1": {"vocab_size": 32128, **_GATED},
    "umt5": {"vocab_size": 256384, "per_layer_relative_bias": True, **_GATED},
    "pile-t5": {"vocab_size": 32128, "per_layer_relative_bias": True, **_GATED},
}
_V1_0_SIZES = {
    "small": (512, 8, 64, 2048, 6, 6),
    "base": (768, 12, 64, 3072, 12, 12),
    "large": (1024, 16, 64, 4096, 24, 24),
    "3b": (1024, 32, 128, 16384, 24, 24),
    "11b": (1024, 128, 128, 65536, 24, 24),
}
_V1_1_SIZES = {
    "small": (512, 6, 64, 1024, 8, 8),
    "base": (768, 12, 64, 2048, 12, 12),
    "large": (1024, 16, 64, 2816, 24, 24),
    "xl": (2048, 32, 64, 5120, 24, 24),
    "xxl": (4096, 64, 64, 10240, 24, 24),
}
_RELEASED = {
    "t5": _V1_0_SIZES,
    "t5-v1_1": _V1_1_SIZES,
    "umt5": {size: _V1_1_SIZES[size] for size in ("small", "base", "xl", "xxl")},
    "pile-t5": {size: _V1_1_SIZES[size] for size in ("base", "large", "xl", "xxl")},
}
PUBLISHED: dict[str, tuple[str, Shape]] = {
    f"{family}-{size}": (family, numbers)
    for family, sizes in _RELEASED.items()
    for size, numbers in sizes.items()
}


def _infer(shapes: Mapping[str, Shape]) -> T5Config:
    """The configuration that the telling arrays give; whether the others agree is not asked."""
    vocab_size, emb_dim = _matrix(shapes, "token_embedder/embedding")
    per_layer = "encoder/relpos_bias/rel_embedding" not in shapes and any(
        re.fullmatch(r"encoder/layers_\d+/relpos_bias/rel_embedding", name) for name in shapes
    )
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    bias = f"encoder/{'layers_0/' if per_layer else ''}relpos_bias/rel_embedding"
    num_heads, num_buckets = _matrix(shapes, bias)
    query = "encoder/layers_0/attention/query/kernel"
    _, joined = _matrix(shapes, query)
    if joined % num_heads:
        raise ArgumentError(
            f"{query} has {joined} columns, which the {num_heads} heads of {bias} do not divide."
        )
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=joined // num_heads,
        mlp_dim=_matrix(shapes, f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        num_encoder_layers=_count_layers("encoder", shapes),
        num_decoder_layers=_count_layers("decoder", shapes),
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
        per_layer_relative_bias=per_layer,
        relative_attention_num_buckets=num_buckets,
        attention_spectrum=next(
            (k for k in SPECTRA if f"encoder/layers_0/attention/{k}/basis" in shapes), None
        ),
    )


def _matrix(shapes: Mapping[str, Shape], name: str) -> tuple[int, int]:
    if name not in shapes:
        some = ", ".join(sorted(shapes)[:3])
        raise ArgumentError(
            f"A T5 has an array {name}, but it is not among these {len(shapes)} ({some}, …)."
        )
    shape = shapes[name]
    if len(shape) != 2:
        raise ArgumentError(f"{name} must have two axes, but its shape is {shape}.")
    return shape[0], shape[1]


def _count_layers(stack: str, names: Iterable[str]) -> int:
    found = {int(m[1]) for name in names if (m := re.match(rf"{stack}/layers_(\d+)/", name))}
    if not found:
        raise ArgumentError(f"A T5 has arrays under {stack}/layers_0, but here are none.")
    if max(found) >= len(found):
        absent = min(set(range(len(found))) - found)
        raise ArgumentError(
            f"{stack} has arrays under layers_{max(found)} but none under layers_{absent}."
        )
    return len(found)


def _flat_shapes(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Shape]:
    flat: dict[str, Shape] = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            flat |= _flat_shapes(leaf, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = tuple(int(n) for n in getattr(leaf, "shape", leaf))
    return flat


def _differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """One line for every array that is missing, unknown, or of another shape."""
    lines = [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    lines += [f"unknown: {name} {found[name]}" for name in found if name not in expected]
    lines += [
        f"{name}: expected shape {shape}, found {found[name]}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return lines
