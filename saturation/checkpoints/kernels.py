"""Which axes of a kernel are contracted with its input, by its name and shape, in every library.

    PyTorch      weight (out, in, ...)                       axes 1 ...
    GPT-2        c_attn, c_proj, c_fc as (in, out)           axis 0, where the shapes say so
    Flax, Haiku  kernel, w (..., in, out)                    all but the last
    attention    query (embed, heads, head_dim)              axis 0
                 out (heads, head_dim, embed)                axes 0, 1
    Gemma        q_einsum (heads, embed, head_dim)           axis 1
                 kv_einsum, qkv_einsum (n, heads, embed, head_dim)    axis 2
                 attn_vec_einsum (heads, head_dim, embed)    axes 0, 1
                 gating_einsum (2, embed, mlp) or (2, mlp, embed)     that of `embed`
    experts      gate_up_proj, up_proj, ... (experts, mlp, embed) or (experts, embed, mlp)

Tables that are looked into (of tokens, positions, segments, distances) contract nothing; an output
head does, whatever it is called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from saturation.checkpoints.base import ParameterLayout
from saturation.checkpoints.disk_array import DiskArray
from saturation.scopes import is_embedding, is_head, is_table, module_of

_CONV1D = re.compile(r"c_attn|c_proj|c_fc|q_attn")
_INTO_HEADS = re.compile(r"(?i)(q|k|v|kv|qkv)(_proj|_fused)?|query|key|value|query_key_value")
_EXPERTS_OUT = re.compile(r"down_proj|w2|wo")
_EXPERTS = re.compile(rf"gate_up_proj|gate_proj|up_proj|w1|w3|wi(_[01])?|{_EXPERTS_OUT.pattern}")
# The contracted axes, and a letter an axis as Gemma's own equations have them.
_EINSUM = {
    "q_einsum": ((1,), "NDH"),
    "kv_einsum": ((2,), "CKDH"),
    "qkv_einsum": ((2,), "SNDH"),
    "attn_vec_einsum": ((0, 1), "NHD"),
}
Shape = tuple[int, ...]


def with_fan_in(
    sources: Mapping[str, ParameterLayout], arrays: Mapping[str, DiskArray]
) -> dict[str, ParameterLayout]:
    """Return the sources with the axes that each kernel contracts."""
    axes = _axes(tuple((n, one.parameter(arrays[one.array]).shape) for n, one in sources.items()))
    return {
        name: replace(one, fan_in_axes=axes[name]) if axes[name] else one
        for name, one in sources.items()
    }


@lru_cache(8)  # the checkpoints of a trajectory have the same names and shapes
def _axes(shapes: tuple[tuple[str, Shape], ...]) -> Mapping[str, Shape | None]:
    kernels = Kernels(dict(shapes))
    return {name: kernels.axes(name) for name, _ in shapes}


class Kernels:
    """The kernels among a model's arrays.

    Args:
      shapes: of every array under its name, "/" between the modules.
    """

    def __init__(self, shapes: Mapping[str, Shape]):
        self._shapes = shapes
        tables = [shape for name, shape in shapes.items() if is_embedding(name) and len(shape) == 2]
        self._embed = tables[0][1] if tables else None
        # What widens says how GPT-2's kernels lie: nanoGPT has the same names the other way round.
        widening = [
            shape
            for name, shape in shapes.items()
            if module_of(name)[0] in ("c_fc", "c_attn") and len(shape) == 2 and shape[0] != shape[1]
        ]
        self._conv1d = not widening or widening[0][0] < widening[0][1]

    def axes(self, name: str) -> Shape | None:
        """Return the axes of an array that are contracted, or None where it is no kernel."""
        shape, (module, leaf) = self._shapes[name], module_of(name)
        rank = len(shape)
        if rank < 2 or (is_table(name) and not is_head(name)) or leaf in ("bias", "scale", "b"):
            return None
        if rank == len(_EINSUM.get(module, ((), ""))[1]):
            return _EINSUM[module][0]
        if module == "gating_einsum" and rank == 3:
            return (2,) if shape[2] == self._embed != shape[1] else (1,)
        if rank == 3 and leaf != "kernel" and _EXPERTS.fullmatch(module):
            return self._of_experts(shape, outward=bool(_EXPERTS_OUT.fullmatch(module)))
        if rank == 2 and leaf in ("weight", "kernel") and _CONV1D.fullmatch(module):
            return (0,) if self._conv1d else (1,)
        if leaf == "weight":
            return tuple(range(1, rank))
        if leaf in ("kernel", "w") or module in ("linear", "w"):
            return (0,) if rank > 2 and _INTO_HEADS.fullmatch(module) else tuple(range(rank - 1))
        return None

    def _of_experts(self, shape: Shape, outward: bool) -> Shape:
        """Return the contracted axis of (experts, a, b): that of `embed`, or outward the other."""
        if shape[1] == shape[2] or self._embed not in shape[1:]:
            return (2,)
        of_embed = 1 if shape[1] == self._embed else 2
        return (3 - of_embed,) if outward else (of_embed,)
