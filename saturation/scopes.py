"""Scopes: the sets of arrays over which a measure of weights is reported (MEASURES §1).

Every array is a scope under its own name, and so are each layer (`encoder/layers_3`), each kind of
array within a stack (`encoder/attention/query`), each stack, `embedding`, `blocks` and `total`; in
models of one stack `position_embedding` and `final`, the norm that ends it, too.
Names are '/'-joined paths: T5X's canonical ones, or a foreign model's own (`gpt_neox/layers/3/…`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

STACKS = ("encoder", "decoder")
# Modules that the canonical names of a model of one stack have, which no other name is.
_OF_ONE_STACK = {"position_embedder": "position_embedding", "final_norm": "final"}
LEAVES = ("kernel", "scale", "bias", "weight", "embedding", "rel_embedding", "w", "b")
_VALUE = ("value", "raw_value")  # what flax.nnx calls the array inside a variable

# A layer is `layers_3` or `block_3`; in foreign models `layers/3` or `h/3`; `wi_0` is none.
_LAYER = re.compile(
    r"^(?P<layer>(?:(?P<stack>.+?)/)?(?:h|\w*?(?:layer|block)s?)[_/]\d+)/(?P<rest>.+)$"
)
# The module or array that holds the embedding of tokens, or the output head, in every library.
_EMBEDDING = re.compile(
    r"shared|wte|W_E|Embed_0|embed|embedder|embeddings?|embed_(tokens?|in)"
    r"|(tok(en)?s?|word|input)_?emb(ed(s|ding|dings|der)?)?(_table)?"
)
_HEAD = re.compile(
    r"lm_head|embed_out|logits(_dense)?|output(_layer|_projection|_head)?|head|unembed(ding|der)?"
    r"|W_U|ff_out|decoder|proj_out|generator"
)
# Whatever is looked into and not multiplied: tokens, positions, segments, relative positions.
_TABLE = re.compile(
    r"\w*emb(ed|eds|edding|eddings|edder)?(_\w+|\d+)?|wte|wpe|W_E|W_pos|shared|\w*relative_attention_bias"
    r"|relpos_bias|Embed_\d+|pos_table|type_table"
)
# A product with what was looked up: ALBERT's and ELECTRA's.
_PROJECTION = re.compile(r"\w*(proj|project|projection|mapping_in|out|norm)")
_MODULE_LEAVES = ("kernel", "weight", "w", "embedding", "embeddings", "bias", "scale", "b", "table")


def layer_of(name: str) -> str | None:
    """Return the layer that holds the array `name`, or None when it lies in no layer.

    >>> layer_of("encoder/layers_3/mlp/wi/kernel")
    'encoder/layers_3'
    >>> layer_of("encoder/relpos_bias/rel_embedding") is None
    True
    """
    found = _LAYER.match(_path(name))
    return found["layer"] if found else None


def kind_of(name: str) -> str | None:
    """Return the kind of an array, the same in every layer of its stack, or None outside layers.

    >>> kind_of("encoder/layers_3/attention/query/kernel")
    'encoder/attention/query'
    """
    found = _LAYER.match(_path(name))
    if not found:
        return None
    path = [part for part in (found["stack"], *found["rest"].split("/")) if part]
    if path[-1] in _VALUE and len(path) > 1:
        path.pop()
    return "/".join(path[:-1] if path[-1] in LEAVES and len(path) > 2 else path)


def scopes(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return every scope of a set of arrays with the arrays it holds, in the order given.

    Args:
      names: canonical array names of one checkpoint.

    Returns:
      {scope: array names}. An empty scope is left out. A bias shared by a stack belongs to the
      stack alone, not to a layer, and so not to `blocks`; `decoder` holds `logits_dense`.
    """
    names = tuple(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        layer, kind = layer_of(name), kind_of(name)
        stack = _path(name).partition("/")[0]
        memberships = (
            name,
            layer,
            kind,
            stack if stack in STACKS else None,
            "embedding" if layer is None and is_embedding(name) else None,
            _OF_ONE_STACK.get(name.rpartition("/")[0]),
            "blocks" if layer else None,
            "total",
        )
        for scope in dict.fromkeys(memberships):
            if scope is not None:
                groups.setdefault(scope, []).append(name)
    return {scope: tuple(members) for scope, members in groups.items()}


@lru_cache(2**16)  # asked of the same names at every checkpoint
def is_embedding(name: str) -> bool:
    """Return whether an array is the embedding of tokens, of which a layer has none.

    >>> is_embedding("gpt_neox/embed_in/weight"), is_embedding("embed_out/weight")
    (True, False)
    """
    module, leaf = module_of(name)
    return bool(_EMBEDDING.fullmatch(module)) and leaf not in ("bias", "scale", "b")


@lru_cache(2**16)
def is_head(name: str) -> bool:
    """Return whether an array is a language model's output head, its bias too."""
    return layer_of(name) is None and bool(_HEAD.fullmatch(module_of(name)[0]))


@lru_cache(2**16)
def is_table(name: str) -> bool:
    """Return whether an array is looked into: of tokens, positions, segments or distances."""
    module, _ = module_of(name)
    return bool(_TABLE.fullmatch(module)) and not _PROJECTION.fullmatch(module)


def module_of(name: str) -> tuple[str, str]:
    """Return the last module of a name and what its array is called in it, "" if not by a use.

    >>> module_of("decoder/embed/embedding/value")
    ('embed', 'embedding')
    >>> module_of("transformer/layer_0/mlp/gating_einsum")
    ('gating_einsum', '')
    """
    parts = _path(name).split("/")
    if parts[-1] in _VALUE and len(parts) > 1:
        parts.pop()
    if len(parts) > 1 and parts[-1] in _MODULE_LEAVES:
        return parts[-2], parts[-1]
    return parts[-1], ""


def _path(name: str) -> str:
    """Return a name with "/" between its modules, also where the disk has a tree of dots."""
    return name if "/" in name else name.replace(".", "/")


def is_kernel(name: str) -> bool:
    """Return whether an array is a kernel in T5X's sense, (in, out)."""
    return name.endswith("/kernel") or name == "kernel"
