"""What is asked of any model: its stacks, its attentions, and the stages that it is computed in.

A model is a list of stages, through which activations flow: embedding, each block, the final norm,
the output head. A family of models is a config class with the members of `ModelConfig`, listed in
`FAMILIES`. Nothing here needs JAX.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

from saturation.errors import ArgumentError

# What a network is compared with: its attention at τ = 0, its parameters to infinity, f(x; cθ).
LIMITS = ("attention", "parameter", "scaled")

Shape = tuple[int, ...]
Streams = dict[str, Any]  # {stream: array, or a tree of arrays}: what flows from stage to stage
Taps = dict[str, Any]  # {"weights", "scores", …: array}: what a stage shows of its inside
Arrays = Mapping[str, Any]  # {local name of a parameter: array}, or {stack: its tokens}

STREAM = "x"  # the residual stream's name among the streams

# What the stage of an attention shows: its weights at the temperature given, its scores before that
# (-inf where a key is masked), what it adds to the stream, and what the scores are made of.
ATTENTION_TAPS = ("weights", "scores", "output", "query", "key", "bias")


@dataclass(frozen=True)
class Attention:
    """One attention of a model.

    Attributes:
      path: of its module, such as `decoder/layers_0/self_attention`.
      stack: that it belongs to; of cross-attention, that of its queries.
      kind: whether queries attend to their own sequence or to another one's.
      causal: whether queries attend to earlier keys and themselves alone.
      norm: name of the scale of the norm that its values are made of; None where there is none.
      num_heads: its query heads.
      num_key_value_heads: heads of keys and values; fewer where groups of queries share them.
      head_dim: of each head's queries, keys and values.
      keys_stack: the stack whose tokens its keys are.
      norm_kind: "rms", or "layer" where the mean is taken off too; None without a norm.
      epsilon: what that norm adds to the mean square.
      branch_norm: whether what it adds to the stream is normalised behind its output kernel.
    """

    path: str
    stack: str
    kind: Literal["self", "cross"]
    causal: bool
    norm: str | None
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    keys_stack: str
    norm_kind: Literal["rms", "layer"] | None = "rms"
    epsilon: float = 0.0
    branch_norm: bool = False

    @property
    def layer(self) -> str:
        """The scope of the layer that it is part of."""
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class Stack:
    """A residual stream from its embedding on; the scopes are those that states are filed under.

    Attributes:
      name: such as `encoder`; empty where a model has one stack.
      embedding: the scope before the first layer, such as `encoder/embedding`.
      layers: the scopes behind each layer, such as `encoder/layers_0`.
      final: the scope behind the norm that ends the stack, such as `encoder/final`; None without.
    """

    name: str
    embedding: str
    layers: tuple[str, ...]
    final: str | None

    @classmethod
    def of(cls, name: str, num_layers: int, final: bool = True) -> Stack:
        """Return the stack of so many layers under the usual scopes.

        >>> Stack.of("", 2).scopes
        ('layers_0', 'layers_1', 'final')
        """
        under = f"{name}/" if name else ""
        layers = tuple(f"{under}layers_{i}" for i in range(num_layers))
        return cls(name, f"{under}embedding", layers, f"{under}final" if final else None)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes behind each layer and behind the final norm."""
        return self.layers if self.final is None else (*self.layers, self.final)


@dataclass(frozen=True)
class Stage:
    """A step of a model's forward pass: what it reads, and a pure function.

    Attributes:
      name: such as `encoder/layers_3/attention`.
      stack: the name of the stack whose stream it moves on.
      parameters: {local name: the parameter's name in the checkpoint}. Stages of equal key have
        the same local names.
      key: stages whose keys are equal compute the same function, and share one compiled program.
      run: (parameters by local name, streams, {stack: tokens}, temperature of its attention) ->
        (streams, taps). It takes the streams in `reads` and returns those that are there instead.
        Taps have local names: those of `ATTENTION_TAPS`, or `logits`.
      reads: names of the streams that it takes; the others pass it by.
      attention: the one that it has, if any.
      scopes: {scope: the path of a state in the streams it returns}: the states that it completes,
        such as {"encoder/layers_3": ("x",)}.
      head: whether it is the output head, whose one tap is `logits`; nothing flows on behind it.
    """

    name: str
    stack: str
    parameters: Mapping[str, str]
    key: Hashable
    run: Callable[[Arrays, Streams, Arrays, Any], tuple[Streams, Taps]]
    reads: tuple[str, ...]
    attention: Attention | None
    scopes: Mapping[str, tuple[str, ...]]
    head: bool = False

    def step(
        self, parameters: Arrays, streams: Streams, tokens: Arrays, temperature: Any = 1.0
    ) -> tuple[Streams, Taps]:
        """Return all streams behind the stage, and its taps; arguments as for `run`."""
        moved = {name: streams[name] for name in self.reads}
        others = {name: each for name, each in streams.items() if name not in moved}
        found, taps = self.run(parameters, moved, tokens, temperature)
        return others | found, taps


@dataclass(frozen=True)
class Needs:
    """The forward passes that a measure takes, beside that of the model as it is.

    Attributes:
      attention: with every attention at τ = 0.
      parameter: in the exact limit of growing parameters.
      scales: f(x; cθ) for each of these c, in the widest float there is; c = 1 is the model as it
        is, but computed in that.
      slopes: and those of them of which the derivative in ln c is taken too.
      logits: what the output head makes of the model as it is.
    """

    attention: bool = False
    parameter: bool = False
    scales: frozenset[float] = frozenset()
    slopes: frozenset[float] = frozenset()
    logits: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", self.scales | self.slopes)

    def __or__(self, other: Needs) -> Needs:
        """Return what both need."""
        return Needs(
            self.attention or other.attention,
            self.parameter or other.parameter,
            self.scales | other.scales,
            self.slopes | other.slopes,
            self.logits or other.logits,
        )


class ModelConfig(ABC):
    """What the config of any family has; each is a frozen dataclass.

    Attributes:
      family: the family's name, such as "t5".
      home: the module with the functions `stages(config)`, `parameter_axes(config)` and
        `valid_tokens(tokens)`, which may need JAX. It imports the config's, not the other way.
      vocab_size: rows of the embedding.
      emb_dim: width of the residual streams.
    """

    family: ClassVar[str]
    home: ClassVar[str]
    vocab_size: int
    emb_dim: int

    @property
    @abstractmethod
    def stacks(self) -> tuple[Stack, ...]:
        """The model's stacks, in the order of the forward pass."""

    @property
    @abstractmethod
    def attentions(self) -> tuple[Attention, ...]:
        """The model's attentions, in the order of the forward pass."""

    @property
    @abstractmethod
    def longest_sum(self) -> int:
        """The longest contraction over parameters: the largest width there is."""

    @abstractmethod
    def parameter_shapes(self) -> dict[str, Shape]:
        """Every parameter's name in a checkpoint, and its shape, in the order of the forward."""

    @classmethod
    @abstractmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        """Whether a checkpoint of parameters with these names is one of the family."""

    @classmethod
    @abstractmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> ModelConfig:
        """Infer the config from names and shapes; `ArgumentError` where they are of none."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Any) -> ModelConfig:
        """Infer the config of a checkpoint, with what its files say of it."""

    @property
    def num_parameters(self) -> int:
        """The number of scalars in all arrays together."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order; the first is given no streams."""
        return importlib.import_module(self.home).stages(self)

    def parameter_axes(self) -> dict[str, tuple[str | None, ...]]:
        """The logical names of every parameter's axes, by which devices share it."""
        return importlib.import_module(self.home).parameter_axes(self)

    def valid_tokens(self, tokens: Arrays) -> dict[str, Any]:
        """Which positions hold a token, {stack: bool (batch, length)}, of {stack: tokens}."""
        return importlib.import_module(self.home).valid_tokens(tokens)


# Where the config class of each family is. The first is asked where no other knows the names.
FAMILIES = {
    "t5": "saturation.models.config:T5Config",
    "lm": "saturation.models.lm_config:LMConfig",
}


def model_config(checkpoint: Any) -> ModelConfig:
    """Return the config of a checkpoint's model, by the family that knows its parameters' names.

    Raises:
      ArgumentError: it is of no family.
    """
    return _family_of(checkpoint.parameters).from_checkpoint(checkpoint)


def config_of_parameters(parameters: Mapping[str, Any]) -> ModelConfig:
    """Return the config that names and shapes tell; arguments as for `from_parameters`.

    Raises:
      ArgumentError: they are of no family.
    """
    return _family_of(parameters).from_parameters(parameters)


def _family_of(parameters: Mapping[str, Any]) -> type[ModelConfig]:
    families = [_loaded(place) for place in FAMILIES.values()]
    return next((each for each in families if each.recognises(parameters)), families[0])


def _loaded(place: str) -> type[ModelConfig]:
    module, _, name = place.partition(":")
    return cast(type[ModelConfig], getattr(importlib.import_module(module), name))


def describe_model(config: ModelConfig) -> dict[str, Any]:
    """Return what `run.json` records of a model: its family, its stacks and its attentions."""
    return {
        "family": config.family,
        "stacks": [asdict(stack) for stack in config.stacks],
        "attentions": [asdict(attention) for attention in config.attentions],
    }


def described_if_known(checkpoint: Any) -> dict[str, Any]:
    """Return {"model": what `run.json` records of it}; nothing of a model of no known family."""
    try:
        return {"model": describe_model(model_config(checkpoint))}
    except ArgumentError:
        return {}


def recorded_model(described: Mapping[str, Any]) -> tuple[list[Stack], list[Attention]]:
    """Return the stacks and attentions that `describe_model` wrote.

    Raises:
      ArgumentError: it was written by a version with other fields.
    """
    try:
        stacks = [
            Stack(**{**each, "layers": tuple(each["layers"])}) for each in described["stacks"]
        ]
        return stacks, [Attention(**each) for each in described["attentions"]]
    except (KeyError, TypeError) as error:
        raise ArgumentError(f"The model in run.json cannot be read: {error}.") from error
