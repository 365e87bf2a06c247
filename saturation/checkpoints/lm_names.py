"""The arrays of Hugging Face's decoders and encoders under one canonical scheme, both ways.

    layers_3/attention/query/kernel     layers_3/mlp/wi/kernel     layers_3/pre_mlp_layer_norm/scale

For each family one table says which stored array holds which canonical ones; each direction is read
off it. Kernels are (in, out): PyTorch's are transposed, GPT-2's (Conv1D) lie so already. A fused
array of queries, keys and values is three parameters: GPT-2's holds one behind the other, that of
GPT-NeoX each head's three. Every array of a block maps by exactly one row, or is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

from saturation.checkpoints.base import ParameterLayout
from saturation.checkpoints.disk_array import DiskArray
from saturation.checkpoints.kernels import with_fan_in
from saturation.checkpoints.torch_names import one_each
from saturation.errors import CheckpointFormatError

PROJECTIONS = ("query", "key", "value")


class _Row(NamedTuple):
    """A canonical name and the stored one; {i} is the layer, `part` which of a fused array."""

    canonical: str
    stored: str
    part: int | None = None


def _linear(canonical: str, stored: str) -> list[_Row]:
    leaves = (("kernel", "weight"), ("bias", "bias"))
    return [_Row(f"{canonical}/{ours}", f"{stored}.{theirs}") for ours, theirs in leaves]


def _norm(canonical: str, stored: str) -> list[_Row]:
    leaves = (("scale", "weight"), ("bias", "bias"))
    return [_Row(f"{canonical}/{ours}", f"{stored}.{theirs}") for ours, theirs in leaves]


def _fused(stored: str) -> list[_Row]:
    return [
        row._replace(part=part)
        for part, name in enumerate(PROJECTIONS)
        for row in _linear(f"layers_{{i}}/attention/{name}", stored)
    ]


def _block(layer: str, maps: Mapping[str, str], norms: Mapping[str, str]) -> list[_Row]:
    here = "layers_{i}"
    return [
        *(
            row
            for name, stored in maps.items()
            for row in _linear(f"{here}/{name}", layer + stored)
        ),
        *(row for name, stored in norms.items() for row in _norm(f"{here}/{name}", layer + stored)),
    ]


def _llama(norms: Mapping[str, str]) -> list[_Row]:
    attention = {name: f"self_attn.{name[0]}_proj" for name in PROJECTIONS}
    maps = {f"attention/{name}": stored for name, stored in attention.items()} | {
        "attention/out": "self_attn.o_proj",
        "mlp/wi_0": "mlp.gate_proj",
        "mlp/wi_1": "mlp.up_proj",
        "mlp/wo": "mlp.down_proj",
    }
    return [
        _Row("token_embedder/embedding", "embed_tokens.weight"),
        *_block("layers.{i}.", maps, norms),
        *_norm("final_norm", "norm"),
        *_linear("logits_dense", "lm_head"),
    ]


def _bert() -> list[_Row]:
    maps = {f"attention/{name}": f"attention.self.{name}" for name in PROJECTIONS} | {
        "attention/out": "attention.output.dense",
        "mlp/wi": "intermediate.dense",
        "mlp/wo": "output.dense",
    }
    norms = {
        "post_attention_layer_norm": "attention.output.LayerNorm",
        "post_mlp_layer_norm": "output.LayerNorm",
    }
    tables = {"token": "word", "position": "position", "segment": "token_type"}
    return [
        *(
            _Row(f"{ours}_embedder/embedding", f"embeddings.{theirs}_embeddings.weight")
            for ours, theirs in tables.items()
        ),
        *_norm("embedding_layer_norm", "embeddings.LayerNorm"),
        *_block("encoder.layer.{i}.", maps, norms),
        *_linear("pooler", "pooler.dense"),
    ]


_PRE = {"pre_attention_layer_norm": "input_layernorm"}
_LLAMA = _llama({**_PRE, "pre_mlp_layer_norm": "post_attention_layernorm"})
_TABLES: Mapping[str, list[_Row]] = {
    "gpt2": [
        _Row("token_embedder/embedding", "wte.weight"),
        _Row("position_embedder/embedding", "wpe.weight"),
        *_fused("h.{i}.attn.c_attn"),
        *_block(
            "h.{i}.",
            {"attention/out": "attn.c_proj", "mlp/wi": "mlp.c_fc", "mlp/wo": "mlp.c_proj"},
            {"pre_attention_layer_norm": "ln_1", "pre_mlp_layer_norm": "ln_2"},
        ),
        *_norm("final_norm", "ln_f"),
        *_linear("logits_dense", "lm_head"),
    ],
    "gpt_neox": [
        _Row("token_embedder/embedding", "embed_in.weight"),
        *_fused("layers.{i}.attention.query_key_value"),
        *_block(
            "layers.{i}.",
            {
                "attention/out": "attention.dense",
                "mlp/wi": "mlp.dense_h_to_4h",
                "mlp/wo": "mlp.dense_4h_to_h",
            },
            {**_PRE, "pre_mlp_layer_norm": "post_attention_layernorm"},
        ),
        *_norm("final_norm", "final_layer_norm"),
        *_linear("logits_dense", "embed_out"),
    ],
    "llama": _LLAMA,
    "olmo": _LLAMA,
    "qwen2": _LLAMA,
    "olmo2": _llama(
        {
            "post_attention_layer_norm": "post_attention_layernorm",
            "post_mlp_layer_norm": "post_feedforward_layernorm",
            "attention/query_norm": "self_attn.q_norm",
            "attention/key_norm": "self_attn.k_norm",
        }
    ),
    "bert": [
        *_bert(),
        *_linear("head_transform", "cls.predictions.transform.dense"),
        *_norm("head_layer_norm", "cls.predictions.transform.LayerNorm"),
        _Row("logits_dense/kernel", "cls.predictions.decoder.weight"),
        _Row("logits_dense/bias", "cls.predictions.bias"),
        *_linear("next_sentence", "cls.seq_relationship"),
    ],
    "roberta": [
        *_bert(),
        *_linear("head_transform", "lm_head.dense"),
        *_norm("head_layer_norm", "lm_head.layer_norm"),
        _Row("logits_dense/kernel", "lm_head.decoder.weight"),
        _Row("logits_dense/bias", "lm_head.bias"),
    ],
}

# What stands before the names of the model proper, beside its head; a bare model has none.
_PREFIX = re.compile(r"(transformer|gpt_neox|model|bert|roberta)\.")
# How the same array was called by other versions of the same library.
_OTHER_NAMES = (
    (re.compile(r"(.*LayerNorm)\.gamma"), r"\1.weight"),
    (re.compile(r"(.*LayerNorm)\.beta"), r"\1.bias"),
    (re.compile(r"(cls\.predictions)\.decoder\.bias"), r"\1.bias"),
    (re.compile(r"(lm_head)\.decoder\.bias"), r"\1.bias"),
)
_IN_BLOCK = re.compile(r"(h|layers|encoder\.layer)\.\d+\.")


@cache
def _patterns(family: str) -> tuple[tuple[re.Pattern[str], tuple[_Row, ...]], ...]:
    """Return the stored names of a family as patterns, each with the rows that it fills."""
    rows: dict[str, list[_Row]] = {}
    for row in _TABLES[family]:
        rows.setdefault(row.stored, []).append(row)
    number = re.escape("{i}")
    return tuple(
        (re.compile(re.escape(stored).replace(number, r"(?P<i>0|[1-9]\d*)")), tuple(found))
        for stored, found in rows.items()
    )


@lru_cache(2**16)  # of the same names at every checkpoint
def canonical_names(family: str, stored: str) -> tuple[str, ...]:
    """Return the parameters that a stored array holds; none where the table has no row for it.

    >>> canonical_names("gpt2", "transformer.h.3.attn.c_attn.weight")[1]
    'layers_3/attention/key/kernel'
    """
    name = _plain(family, stored)
    for pattern, rows in _patterns(family):
        if found := pattern.fullmatch(name):
            return tuple(row.canonical.format(**found.groupdict()) for row in rows)
    return ()


def stored_name(family: str, canonical: str) -> str:
    """Return the name, without the model's prefix, of the stored array that holds a parameter.

    >>> stored_name("gpt2", "layers_3/attention/key/kernel")
    'h.3.attn.c_attn.weight'

    Raises:
      CheckpointFormatError: the family has no such parameter.
    """
    for row in _TABLES[family]:
        pattern = re.escape(row.canonical).replace(re.escape("{i}"), r"(?P<i>0|[1-9]\d*)")
        if found := re.fullmatch(pattern, canonical):
            return row.stored.format(**found.groupdict())
    raise CheckpointFormatError(f"A {family} has no parameter called {canonical!r}.")


def knows(config: Mapping[str, Any]) -> bool:
    """Say whether a config.json is of a family with a table, and says what its names need."""
    family, heads = config.get("model_type"), config.get("num_attention_heads")
    return family in _TABLES and (family != "gpt_neox" or (type(heads) is int and heads > 0))


def hugging_face_lm(
    arrays: Mapping[str, DiskArray], config: Mapping[str, Any], where: str
) -> dict[str, ParameterLayout]:
    """Map the arrays of a decoder or encoder to canonical names.

    Args:
      arrays: the arrays by their names on disk, aliases removed.
      config: what the model's config.json says, which `knows`.
      where: the checkpoint, for errors.

    Raises:
      CheckpointFormatError: an array of a block that the family has not, or one of the wrong shape.
    """
    family = str(config["model_type"])
    strangers = {name for name in arrays if not canonical_names(family, name)}
    inside = sorted(name for name in strangers if _IN_BLOCK.match(_plain(family, name)))
    if inside:
        raise CheckpointFormatError(
            f"{where}: {len(inside)} arrays have names that no {family} has: "
            f"{', '.join(inside[:4])}{', …' if len(inside) > 4 else ''}. Ask for the names on disk "
            "(--names stored) to measure the weights all the same."
        )
    sources: dict[str, ParameterLayout] = {}
    for disk, array in arrays.items():
        for name, layout in _layouts(family, disk, array, config, where):
            if name in sources:
                raise CheckpointFormatError(
                    f"{where}: {sources[name].array!r} and {disk!r} are both {name!r}."
                )
            sources[name] = layout
    # The head of another task beside the model.
    heads = one_each({name: name.replace(".", "/") for name in sorted(strangers)}, where)
    sources |= {name: ParameterLayout(disk) for name, disk in heads.items()}
    return with_fan_in(sources, arrays)


def _layouts(
    family: str, disk: str, array: DiskArray, config: Mapping[str, Any], where: str
) -> Iterator[tuple[str, ParameterLayout]]:
    """Yield the parameters that one stored array holds, and how they lie in it."""
    names = canonical_names(family, disk)
    for part, name in enumerate(names):
        matrix = name.endswith(("/kernel", "/embedding"))
        if len(array.shape) != (2 if matrix else 1):
            raise CheckpointFormatError(
                f"{where}: {disk!r} has shape {array.shape} and {2 if matrix else 1} axes were "
                "expected."
            )
        conv1d = family == "gpt2" and name != "logits_dense/kernel"
        transposed = name.endswith("/kernel") and not conv1d
        if len(names) == 1:
            yield name, ParameterLayout(disk, transposed=transposed)
            continue
        # The fused axis is the last of GPT-2's, the first of those of torch's Linear.
        axis = len(array.shape) - 1 if conv1d else 0
        heads = 1 if family == "gpt2" else config["num_attention_heads"]
        split = (heads, len(names), -(-array.shape[axis] // (heads * len(names))))
        if heads * len(names) * split[2] != array.shape[axis]:
            raise CheckpointFormatError(
                f"{where}: {disk!r} has shape {array.shape}, which does not hold queries, keys and "
                f"values of {heads} heads."
            )
        yield (
            name,
            ParameterLayout(
                disk, transposed, take=((axis + 1, part),), merge=axis, split=(axis, split)
            ),
        )


def _plain(family: str, stored: str) -> str:
    """Return a stored name as the tables spell it."""
    name = _PREFIX.sub("", stored, count=1) if _PREFIX.match(stored) else stored
    if family == "gpt_neox":
        name = re.sub(r"^lm_head\.", "embed_out.", name)  # as transformers 5 calls it inside
    for pattern, new in _OTHER_NAMES:
        if pattern.fullmatch(name):
            return pattern.sub(new, name)
    return name
