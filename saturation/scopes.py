"""Scopes: the sets of arrays over which a measure of weights is reported (MEASURES §1).

Every array is a scope under its own name, and so are each layer (`encoder/layers_3`), each kind of
array within a stack (`encoder/attention/query`), each stack, `embedding`, `blocks` and `total`.
Names are '/'-joined paths: T5X's canonical ones, or a foreign model's own (`gpt_neox/layers/3/…`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

STACKS = ("encoder", "decoder")
LEAVES = ("kernel", "scale", "bias", "weight", "embedding", "rel_embedding")

# A layer is `layers_3` or `block_3`; in foreign models `layers/3` or `h/3`; `wi_0` is none.
_LAYER = re.compile(
    r"^(?P<layer>(?:(?P<stack>.+?)/)?(?:h|\w*?(?:layer|block)s?)[_/]\d+)/(?P<rest>.+)$"
)
_EMBEDDING = re.compile(r"(^|/)(\w*embed\w*|wte|wpe)(/|$)")


def layer_of(name: str) -> str | None:
    """Return the layer that holds the array `name`, or None when it lies in no layer.

    >>> layer_of("encoder/layers_3/mlp/wi/kernel")
    'encoder/layers_3'
    >>> layer_of("encoder/relpos_bias/rel_embedding") is None
    True
    """
    found = _LAYER.match(name)
    return found["layer"] if found else None


def kind_of(name: str) -> str | None:
    """Return the kind of an array, the same in every layer of its stack, or None outside layers.

    >>> kind_of("encoder/layers_3/attention/query/kernel")
    'encoder/attention/query'
    """
    found = _LAYER.match(name)
    if not found:
        return None
    path = [part for part in (found["stack"], *found["rest"].split("/")) if part]
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
        stack = name.partition("/")[0]
        memberships = (
            name,
            layer,
            kind,
            stack if stack in STACKS else None,
            "embedding" if layer is None and is_embedding(name) else None,
            "blocks" if layer else None,
            "total",
        )
        for scope in dict.fromkeys(memberships):
            if scope is not None:
                groups.setdefault(scope, []).append(name)
    return {scope: tuple(members) for scope, members in groups.items()}


def is_embedding(name: str) -> bool:
    """Return whether an array is a token embedding; a relative position bias is not one."""
    return bool(_EMBEDDING.search(name)) and "relpos" not in name


def is_kernel(name: str) -> bool:
    """Return whether an array is a kernel in T5X's sense, (in, out)."""
    return name.endswith("/kernel") or name == "kernel"
