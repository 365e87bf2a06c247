"""The kernels of attention by head, from a checkpoint's arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from saturation.errors import MeasureError
from saturation.models.config import NORM_BEFORE
from saturation.models.eigenvalues import SPECTRA, spectral_kernels

_ATTENTION = re.compile(
    rf"(?P<layer>.+)/(?P<attention>{'|'.join(NORM_BEFORE)})/"
    rf"(value/kernel|(?P<kind>{'|'.join(SPECTRA)})/basis)"
)


def attention_arrays(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, str]]:
    """Return {path of an attention: {"value", "out", "scale": array}}, of every attention of a T5.

    The scale is that of the norm whose output the values are made of: in cross-attention the one
    that ends the encoder. An attention that is given its eigenvalues (`models.eigenvalues`) has
    "basis" and, for ψ, the name of their kind in the place of "value" and "out".

    Raises:
      MeasureError: there is no attention under T5's names, or one lacks an array.
    """
    found = {}
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
            f"encoder/layers_0/attention/value/kernel; there are {', '.join(list(shapes)[:3])}, …"
        )
    _count_heads(shapes)
    return found


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
