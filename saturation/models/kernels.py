"""The kernels of attention by head, from a checkpoint's arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from saturation.errors import MeasureError
from saturation.models.base import Attention
from saturation.models.config import NORM_BEFORE
from saturation.models.eigenvalues import SPECTRA, spectral_kernels

_ATTENTION = re.compile(
    rf"(?P<layer>.+)/(?P<attention>{'|'.join(NORM_BEFORE)})/"
    rf"(value/kernel|(?P<kind>{'|'.join(SPECTRA)})/basis)"
)


def attention_arrays(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, str]]:
    """Return {path of an attention: {"value", "out", "scale": array}}, of every attention.

    What a model's attentions are is told by `shapes.attentions` (`measures.base.ModelShapes`), or
    else by a T5's names. Without a scale, the values pass a norm that has none, or no norm. The
    scale is that of the norm whose output the values are made of: in cross-attention the one
    that ends the encoder. An attention that is given its eigenvalues (`models.eigenvalues`) has
    "basis" and, for ψ, the name of their kind in the place of "value" and "out".

    Raises:
      MeasureError: there is no attention that is known, or one lacks an array.
    """
    found = {
        each.path: {"value": f"{each.path}/value/kernel", "out": f"{each.path}/out/kernel"}
        | ({} if each.norm is None else {"scale": each.norm})
        for each in of_one_stack(shapes)
    }
    if found:
        return found
    for match in filter(None, map(_ATTENTION.fullmatch, shapes)):
        path = f"{match['layer']}/{match['attention']}"
        scale = f"{match['layer']}/{NORM_BEFORE[match['attention']]}/scale"
        if match["attention"] == "encoder_decoder_attention":
            scale = "encoder/encoder_norm/scale"
        kind = match["kind"]
        if kind is None:
            arrays = {"value": match.string, "out": f"{path}/out/kernel", "scale": scale}
        else:
            arrays = {"basis": match.string, kind: f"{path}/{kind}/psi", "scale": scale}
        for name in arrays.values():
            if name not in shapes:
                raise MeasureError(
                    f"The spectrum of {path} needs the array {name}, which these checkpoints lack; "
                    "without it there is no telling what the attention adds to the stream."
                )
        found[path] = arrays
    if not found:
        raise MeasureError(
            "`spectrum` is taken of T5's attentions, and none of these arrays is one's, such as "
            "encoder/layers_0/attention/value/kernel, or of those of the families of "
            f"docs/families.md by their config.json; there are {', '.join(list(shapes)[:3])}, …"
        )
    _count_heads(shapes)
    return found


def of_one_stack(shapes: Mapping[str, tuple[int, ...]]) -> list[Attention]:
    """Return the attentions that `shapes.attentions` tells of; those of a T5 its names tell."""
    told: Sequence[Attention] = getattr(shapes, "attentions", ())
    return [each for each in told if not each.stack and f"{each.path}/value/kernel" in shapes]


def _count_heads(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of heads, which joined kernels do not tell and a relative bias does."""
    for name, shape in shapes.items():
        if name.endswith("relpos_bias/rel_embedding"):
            return shape[0]
    raise MeasureError(
        "`spectrum` takes the number of heads from the relative position bias (heads, buckets), "
        "and these checkpoints have no array relpos_bias/rel_embedding."
    )


def attention_kernels(
    arrays: Mapping[str, Any], orthonormal: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Return the value and the output kernel from the arrays that `attention_arrays` names.

    Args:
      arrays: {role: array}, NumPy's or JAX's.
      orthonormal: as `models.eigenvalues.spectral_kernels` takes it.
    """
    if "basis" not in arrays:
        return arrays["value"], arrays["out"]
    [kind] = set(SPECTRA) & set(arrays)
    return spectral_kernels(kind, arrays["basis"], arrays[kind], orthonormal)


def split_heads(value: Any, out: Any, scale: Any, num_heads: int) -> tuple[Any, Any]:
    """Return diag(g) W_V^h and W_O^h of every head, whose product is H_h.

    Args:
      value, out: kernels joined over heads, (embed, joined) and (joined, embed), NumPy's or JAX's.
      scale: g, (embed,), of the same dtype.
      num_heads: heads, heads major in the joined axis.

    Returns:
      (heads, embed, head_dim) and (heads, head_dim, embed).
    """
    embed, joined = value.shape
    left = (scale[:, None] * value).reshape(embed, num_heads, -1).transpose(1, 0, 2)
    return left, out.reshape(num_heads, joined // num_heads, embed)


def shared_heads(value: Any, num_heads: int, num_key_value_heads: int) -> Any:
    """Return a value kernel joined over all heads, of which groups share one (grouped queries)."""
    embed, joined = value.shape
    each = value.reshape(embed, num_key_value_heads, joined // num_key_value_heads)
    return each.repeat(num_heads // num_key_value_heads, axis=1).reshape(embed, -1)
