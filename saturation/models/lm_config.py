"""Hyperparameters of the language models with one stack: decoders and encoders.

One set of fields describes GPT-2, GPT-NeoX, Llama, OLMo, OLMo 2, Qwen 2, BERT and RoBERTa: each
way in which their papers differ is one field. Nothing here needs JAX.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from saturation.errors import ArgumentError
from saturation.models.base import Attention, ModelConfig, Shape, Stack
from saturation.models.lm_settings import lm_fields
from saturation.models.rotary import Rotary

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
NORMS = ("layer_norm", "rms_norm")
PLACEMENTS = ("before", "after", "branch")
OBJECTIVES = ("next_token", "masked_tokens")


# Of the first block's arrays: canonical names, and those that files without a config.json keep.
_MARKS = re.compile(
    r"layers_0/attention/|((transformer|gpt_neox|model|bert|roberta)/)?"
    r"(h/0/attn|layers/0/(self_attn|attention)|encoder/layer/0/attention)/"
)


@dataclass(frozen=True)
class LMConfig(ModelConfig):
    """Everything that fixes such a model's parameters and its forward pass.

    Attributes:
      vocab_size: rows of the embedding of tokens.
      emb_dim: width of the residual stream.
      num_layers: blocks.
      num_heads: heads of queries.
      num_key_value_heads: heads of keys and values, a divisor of `num_heads`: so many queries'
        heads share one (grouped queries, Ainslie et al. 2023).
      head_dim: size of a head's query, key and value.
      mlp_dim: width inside the feed-forward block.
      causal: whether a token sees those before it alone.
      max_positions: rows of learned positions; 0 where there are none.
      position_offset: the row of the first token's position (RoBERTa: 2).
      segments: rows of the embedding of segments (BERT: 2); 0 where there is none.
      embedding_norm: whether the sum of the embeddings is normalised (BERT).
      rotary: how queries and keys are turned by their positions; None is not at all.
      norm: "layer_norm" takes the mean off and divides by the deviation, "rms_norm" divides by the
        root mean square.
      norm_epsilon: added to the mean square.
      norm_scale: whether norms have a scale (OLMo: none).
      norm_bias: whether they have a bias.
      norm_placement: "before" each branch (pre-norm), "after" the sum of stream and branch
        (post-norm: BERT), or around the "branch" alone, behind it (OLMo 2).
      parallel_residual: whether attention and feed-forward read the same stream (GPT-NeoX).
      query_key_norm: whether queries and keys, all heads together, are normalised (OLMo 2).
      query_key_value_bias: whether their maps have a bias (Qwen 2 has no other).
      attention_out_bias: whether the attention's output has one.
      query_key_value_clip: their largest absolute value (OLMo); None is no bound.
      attention_scale: what scores are multiplied by; None is 1/√head_dim.
      scale_by_layer: whether layer i divides its scores by i + 1 too (GPT-2 of Mistral/CRFM).
      activation: of the feed-forward block: "gelu" is the exact one, "gelu_tanh" its approximation.
      gated: whether the activated projection multiplies a second one (SwiGLU).
      mlp_bias: whether the feed-forward maps have a bias.
      logits_via_embedding: whether the output head is the embedding.
      logits_bias: whether the output head has a bias (BERT).
      head_transform: whether a map, the activation and a norm stand before the head (BERT).
      pad_token_id: the id that is no token; None where there is none.
      mask_token_id: the id that hides a token from an encoder; None where nothing says it.
      model_type: what Hugging Face calls the family, for people.
    """

    family: ClassVar[str] = "lm"
    home: ClassVar[str] = "saturation.models.lm_stages"

    vocab_size: int
    emb_dim: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    mlp_dim: int
    causal: bool = True
    max_positions: int = 0
    position_offset: int = 0
    segments: int = 0
    embedding_norm: bool = False
    rotary: Rotary | None = None
    norm: str = "layer_norm"
    norm_epsilon: float = 1e-5
    norm_scale: bool = True
    norm_bias: bool = True
    norm_placement: str = "before"
    parallel_residual: bool = False
    query_key_norm: bool = False
    query_key_value_bias: bool = True
    attention_out_bias: bool = True
    query_key_value_clip: float | None = None
    attention_scale: float | None = None
    scale_by_layer: bool = False
    activation: str = "gelu"
    gated: bool = False
    mlp_bias: bool = True
    logits_via_embedding: bool = False
    logits_bias: bool = False
    head_transform: bool = False
    pad_token_id: int | None = None
    mask_token_id: int | None = None
    model_type: str = ""

    def __post_init__(self) -> None:
        for field in fields(self)[:7]:
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"LMConfig.{field.name} must be an integer > 0, not {value!r}.")
        for name, known in (
            ("activation", ACTIVATIONS),
            ("norm", NORMS),
            ("norm_placement", PLACEMENTS),
        ):
            if getattr(self, name) not in known:
                raise ArgumentError(
                    f"LMConfig.{name} must be of {', '.join(known)}, not {getattr(self, name)!r}."
                )
        if self.num_heads % self.num_key_value_heads:
            raise ArgumentError(
                f"LMConfig.num_key_value_heads must divide the {self.num_heads} heads of queries, "
                f"but is {self.num_key_value_heads}."
            )
        if self.rotary and self.rotary.dims > self.head_dim:
            raise ArgumentError(
                f"Rotary.dims must not exceed head_dim, {self.head_dim}, but is {self.rotary.dims}."
            )
        if self.parallel_residual and self.norm_placement != "before":
            raise ArgumentError("Parallel residual branches need norms before them.")

    @classmethod
    def from_settings(cls, config: Mapping[str, Any], where: str) -> LMConfig:
        """Return the configuration that the contents of a config.json describe.

        Raises:
          ArgumentError: as `lm_settings.lm_fields`, or the values do not go together.
        """
        try:
            return cls(**lm_fields(config, where))
        except ArgumentError as error:
            said = str(error)
            raise ArgumentError(said if where in said else f"{where}: {said}") from error

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        """Whether parameters of these names are such a model's, canonical or as they are stored."""
        return any(map(_MARKS.match, names))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> LMConfig:
        """Refuse: names and shapes do not tell what such a model computes.

        Raises:
          ArgumentError: always.
        """
        raise ArgumentError(
            f"What these {len(parameters)} arrays compute is in no array: a config.json is needed."
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Any) -> LMConfig:
        """Return the configuration that the config.json of a checkpoint describes.

        Args:
          checkpoint: a `saturation.checkpoints.Checkpoint`, whose `settings` that file's contents
            are.

        Raises:
          ArgumentError: there is no such file, it describes what is not computed here, or the
            arrays are not those of the model that it describes.
        """
        where = f"{checkpoint.path.rstrip('/')}/config.json"
        if not checkpoint.settings:
            raise ArgumentError(
                f"{where} is missing: what a model of this kind computes (the base of its rotary "
                "positions, its activation, its norms' epsilon) is in no array. Put the model's "
                "own config.json beside the weights; measures of weights do without."
            )
        config = cls.from_settings(checkpoint.settings, where)
        config.refuse_differences(checkpoint.parameters, checkpoint.path)
        return config

    @property
    def objective(self) -> str:
        """What the model was pretrained to predict: an `OBJECTIVES`."""
        return OBJECTIVES[0] if self.causal else OBJECTIVES[1]

    @property
    def has_head(self) -> bool:
        """Whether the output head has arrays that are not the embedding's."""
        return self.logits_bias or not self.logits_via_embedding

    @property
    def input_projections(self) -> tuple[str, ...]:
        """The names of the feed-forward block's input kernels."""
        return ("wi_0", "wi_1") if self.gated else ("wi",)

    def norm_names(self) -> tuple[str, str]:
        """The names of a block's two norms, the attention's and the feed-forward's."""
        where = "pre" if self.norm_placement == "before" else "post"
        return f"{where}_attention_layer_norm", f"{where}_mlp_layer_norm"

    def score_scale(self, layer: int) -> float:
        """What the scores of a layer are multiplied by."""
        scale = self.attention_scale
        scale = self.head_dim**-0.5 if scale is None else scale
        return scale / (layer + 1) if self.scale_by_layer else scale

    def parameter_shapes(self) -> dict[str, Shape]:
        """Every array's canonical name and shape, in the order of the forward pass."""
        stages = (
            self.embedding_shapes(),
            *(
                {f"layers_{i}/{name}": shape for name, shape in self.layer_shapes().items()}
                for i in range(self.num_layers)
            ),
            self.final_shapes(),
            self.head_shapes(),
        )
        return {name: shape for stage in stages for name, shape in stage.items()}

    def embedding_shapes(self) -> dict[str, Shape]:
        """The arrays that make the stream of tokens."""
        embed = self.emb_dim
        shapes: dict[str, Shape] = {"token_embedder/embedding": (self.vocab_size, embed)}
        if self.max_positions:
            shapes["position_embedder/embedding"] = (self.max_positions, embed)
        if self.segments:
            shapes["segment_embedder/embedding"] = (self.segments, embed)
        if self.embedding_norm:
            shapes |= self._norm("embedding_layer_norm")
        return shapes

    def layer_shapes(self) -> dict[str, Shape]:
        """The arrays of one block, by their names in it."""
        attention, mlp = self.norm_names()
        queries, keys = (n * self.head_dim for n in (self.num_heads, self.num_key_value_heads))
        shapes = self._norm(attention)
        for name, width in (("query", queries), ("key", keys), ("value", keys)):
            bias = self.query_key_value_bias
            shapes |= _linear(f"attention/{name}", self.emb_dim, width, bias)
        if self.query_key_norm:
            shapes |= self._norm("attention/query_norm", queries)
            shapes |= self._norm("attention/key_norm", keys)
        shapes |= _linear("attention/out", queries, self.emb_dim, self.attention_out_bias)
        shapes |= self._norm(mlp)
        for name in self.input_projections:
            shapes |= _linear(f"mlp/{name}", self.emb_dim, self.mlp_dim, self.mlp_bias)
        return shapes | _linear("mlp/wo", self.mlp_dim, self.emb_dim, self.mlp_bias)

    def final_shapes(self) -> dict[str, Shape]:
        """The arrays of the last norm, of which a post-norm model has none."""
        return self._norm("final_norm") if self.norm_placement != "after" else {}

    def head_shapes(self) -> dict[str, Shape]:
        """The arrays of the output head alone."""
        shapes: dict[str, Shape] = {}
        if self.head_transform:
            shapes |= _linear("head_transform", self.emb_dim, self.emb_dim, True)
            shapes |= self._norm("head_layer_norm")
        if not self.logits_via_embedding:
            shapes["logits_dense/kernel"] = (self.emb_dim, self.vocab_size)
        if self.logits_bias:
            shapes["logits_dense/bias"] = (self.vocab_size,)
        return shapes

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The one stack, which needs no name."""
        return (Stack.of("", self.num_layers, final=self.norm_placement != "after"),)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention, in the order of the layers."""
        before = self.norm_placement == "before"
        kind: Literal["layer", "rms"] = "layer" if self.norm == "layer_norm" else "rms"
        return tuple(
            Attention(
                path=f"{layer}/attention",
                stack="",
                kind="self",
                causal=self.causal,
                norm=f"{layer}/{self.norm_names()[0]}/scale"
                if before and self.norm_scale
                else None,
                num_heads=self.num_heads,
                num_key_value_heads=self.num_key_value_heads,
                head_dim=self.head_dim,
                keys_stack="",
                norm_kind=kind if before else None,
                epsilon=self.norm_epsilon,
                branch_norm=self.norm_placement == "branch",
            )
            for layer in self.stacks[0].layers
        )

    @property
    def longest_sum(self) -> int:
        """The longest contraction over parameters: the largest width there is."""
        return max(self.emb_dim, self.num_heads * self.head_dim, self.mlp_dim)

    def valid_tokens(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        """Which positions hold a token: no padding, which is -1 and the model's own pad token."""
        ids = tokens[""]
        pad = self.pad_token_id
        return {"": ids >= 0 if pad is None else (ids >= 0) & (ids != pad)}

    def attention_names(self) -> tuple[str, ...]:
        """The path of every attention, such as `layers_0/attention`."""
        return tuple(attention.path for attention in self.attentions)

    def refuse_differences(self, found: Mapping[str, Any], where: str) -> None:
        """Raise where arrays are not those of this model; others beside them are let be.

        Args:
          found: {canonical name: anything with a `.shape`}.
          where: the checkpoint, for the error.

        Raises:
          ArgumentError: an array is missing, is of another shape, or stands in a block that has no
            place for it.
        """
        expected = self.parameter_shapes()
        lines = list(_differences(expected, {name: tuple(a.shape) for name, a in found.items()}))
        if lines:
            more = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
            raise ArgumentError(
                f"{where}: these arrays are not those of the {self.model_type or 'model'} that its "
                "config.json describes:\n  " + "\n  ".join([*lines[:20], *more])
            )

    def _norm(self, name: str, width: int | None = None) -> dict[str, Shape]:
        shape = (self.emb_dim if width is None else width,)
        has = (("scale", self.norm_scale), ("bias", self.norm_bias))
        return {f"{name}/{leaf}": shape for leaf, there in has if there}


def _linear(name: str, into: int, out: int, bias: bool) -> dict[str, Shape]:
    kernel: dict[str, Shape] = {f"{name}/kernel": (into, out)}
    return kernel | ({f"{name}/bias": (out,)} if bias else {})


def _differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> Iterator[str]:
    for name, shape in expected.items():
        if name not in found:
            yield f"missing: {name} {shape}"
        elif found[name] != shape:
            yield f"{name}: expected shape {shape}, found {found[name]}"
    for name in found:
        # What lies outside the blocks can be another task's head, which this one leaves alone.
        if name not in expected and name.startswith("layers_"):
            yield f"unknown: {name} {found[name]}"
