"""What every array on disk is called here: T5X's unscanned names, whatever the format.

One table says how T5X, Hugging Face and Mesh-TensorFlow name the same array; each direction of each
mapping is read off it, so that no two places can disagree. The names are total: every array on
disk maps by exactly one rule to a parameter or to "not a parameter", or is an error.
Sources: T5X's own `t5x/examples/t5`, `t5x/checkpoint_importer.py`; Hugging Face's `T5` and `UMT5`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, lru_cache

from saturation.checkpoints.arrays.bounds import refuse_names
from saturation.checkpoints.base import ParameterLayout
from saturation.checkpoints.disk_array import DiskArray
from saturation.checkpoints.kernels import with_fan_in
from saturation.checkpoints.torch_names import one_each
from saturation.errors import CheckpointFormatError


def _block(tower: str, hf_layer: int, norm: str, attention: str = "", kind: str = "") -> list:
    """Rows of one sub-layer: its norm, and its attention or its feed-forward kernels."""
    here, hf = f"{tower}/layers_{{i}}", f"{tower}.block.{{i}}.layer.{hf_layer}"
    mesh = f"{tower}/block_{{i:03d}}/layer_{hf_layer:03d}"
    rows = [(f"{here}/{norm}/scale", f"{hf}.layer_norm.weight", f"{mesh}/layer_norm/scale")]
    if attention:
        rows += [
            (f"{here}/{attention}/{long}/kernel", f"{hf}.{kind}.{q}.weight", f"{mesh}/{kind}/{q}")
            for long, q in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
        ]
    else:
        rows += [
            (
                f"{here}/mlp/{w}/kernel",
                f"{hf}.DenseReluDense.{w}.weight",
                f"{mesh}/DenseReluDense/{w}/kernel",
            )
            for w in ("wi", "wi_0", "wi_1", "wo")
        ]
    return rows


def _bias(tower: str) -> tuple[str, str, str]:
    place = "SelfAttention.relative_attention_bias"
    return (
        f"{tower}/layers_{{i}}/relpos_bias/rel_embedding",
        f"{tower}.block.{{i}}.layer.0.{place}.weight",
        f"{tower}/block_{{i:03d}}/layer_000/{place.replace('.', '/')}",
    )


# (T5X, Hugging Face, Mesh-TensorFlow); {i} is the layer.
TABLE: tuple[tuple[str, str, str], ...] = (
    ("token_embedder/embedding", "shared.weight", "shared/embedding"),
    ("encoder/token_embedder/embedding", "encoder.embed_tokens.weight", "encoder/embedding"),
    ("decoder/token_embedder/embedding", "decoder.embed_tokens.weight", "decoder/embedding"),
    ("encoder/encoder_norm/scale", "encoder.final_layer_norm.weight", "encoder/layer_norm/scale"),
    ("decoder/decoder_norm/scale", "decoder.final_layer_norm.weight", "decoder/layer_norm/scale"),
    ("decoder/logits_dense/kernel", "lm_head.weight", "decoder/logits/kernel"),
    _bias("encoder"),
    _bias("decoder"),
    *_block("encoder", 0, "pre_attention_layer_norm", "attention", "SelfAttention"),
    *_block("encoder", 1, "pre_mlp_layer_norm"),
    *_block("decoder", 0, "pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
    *_block(
        *("decoder", 1, "pre_cross_attention_layer_norm"),
        *("encoder_decoder_attention", "EncDecAttention"),
    ),
    *_block("decoder", 2, "pre_mlp_layer_norm"),
)
_T5X, _HUGGING_FACE, _MESH = 0, 1, 2

# Written by old versions of Hugging Face's T5 and used by none.
_HF_UNUSED = re.compile(
    r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
_HF_BLOCK = re.compile(r"(encoder|decoder)\.block\.")
_HF_MARK = re.compile(r"(encoder|decoder)\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight")
# Adafactor's and other optimizers' variables beside the weights.
_SLOT = re.compile(r"_slot_(vr|vc|v|m)$|/(adam_[mv]|Adam(_1)?|Adafactor\w*|Momentum|RMSProp(_1)?)$")
_SPLIT_HEADS = {"query": 1, "key": 1, "value": 1, "out": 0}
_ATTENTION = re.compile(r"(?:encoder|decoder)/.*attention/(query|key|value|out)/kernel")
_MAX_LAYERS = 1000
_FUSED = {
    "qkv_fused": ("query", "key", "value"),
    "kv_fused": ("key", "value"),
    "wi_fused": ("wi_0", "wi_1"),
}


@cache
def _patterns(column: int) -> tuple[tuple[re.Pattern[str], tuple[str, str, str]], ...]:
    def compiled(template: str) -> re.Pattern[str]:
        pattern = re.escape(template)
        for hole, digits in (("{i:03d}", r"\d{3,}"), ("{i}", r"0|[1-9]\d*")):
            pattern = pattern.replace(re.escape(hole), f"(?P<i>{digits})")
        return re.compile(pattern)

    return tuple((compiled(row[column]), row) for row in TABLE)


@lru_cache(2**16)  # of the same names at every checkpoint
def translate(name: str, source: int, target: int) -> str | None:
    """Return `name` of one column of `TABLE` as the name in another, or None if no row has it."""
    for pattern, row in _patterns(source):
        if found := pattern.fullmatch(name):
            layer = found.groupdict().get("i")
            return row[target].format(i=int(layer) if layer is not None else 0)
    return None


def hugging_face_name(name: str) -> str:
    """Return the Hugging Face name of a canonical T5 name.

    Raises:
      CheckpointFormatError: T5 has no such parameter.
    """
    # The bias that a stack shares lies in Hugging Face's first block.
    per_layer = re.sub(r"^(encoder|decoder)/relpos_bias/", r"\1/layers_0/relpos_bias/", name)
    found = translate(per_layer, _T5X, _HUGGING_FACE)
    if found is None:
        raise CheckpointFormatError(f"T5 has no parameter called {name!r}.")
    return found


def is_hugging_face_t5(names: Iterable[str]) -> bool:
    """Say whether these are the names of a Hugging Face T5 (or mT5, UMT5), all in its blocks."""
    names = list(names)
    strangers = any(map(_HF_BLOCK.match, _unknown(names)))
    return any(_HF_MARK.fullmatch(name) for name in names) and not strangers


def hugging_face_t5(
    arrays: Mapping[str, DiskArray], where: str, per_layer_bias: bool = False
) -> dict[str, ParameterLayout]:
    """Map the arrays of a Hugging Face T5 to canonical names.

    Hugging Face keeps every matrix but the embeddings as the transpose of T5X's.

    Args:
      arrays: the arrays by their names on disk, aliases removed.
      where: the file, for errors.
      per_layer_bias: the model is a UMT5, whose layers have a relative bias each; otherwise that
        is decided by whether a layer behind the first has one.

    Raises:
      CheckpointFormatError: a name that no T5 has, or an array of the wrong rank.
    """
    strangers = _unknown(arrays)
    if unknown := [name for name in strangers if _HF_BLOCK.match(name)]:
        raise CheckpointFormatError(
            f"{where}: {len(unknown)} arrays have names that no T5 has: {_some(unknown)}. "
            "The model may be of a kind that is not read here."
        )
    named = {
        str(translate(name, _HUGGING_FACE, _T5X)): name
        for name in arrays
        if not _HF_UNUSED.fullmatch(name) and name not in strangers
    }
    sources = {}
    for name, disk in _shared_bias(named, per_layer_bias).items():
        matrix = not name.endswith("/scale")
        if len(arrays[disk].shape) != (2 if matrix else 1):
            raise CheckpointFormatError(
                f"{where}: {disk!r} has shape {arrays[disk].shape} and "
                f"{2 if matrix else 1} axes were expected."
            )
        transposed = matrix and not name.endswith("/embedding")
        sources[name] = ParameterLayout(disk, transposed=transposed)
    # The head of a task beside its T5.
    heads = own({name: arrays[name] for name in strangers}, where)
    return with_fan_in(sources | heads, arrays)


def own(arrays: Mapping[str, DiskArray], where: str) -> dict[str, ParameterLayout]:
    """Map arrays to their own names, "/" between the modules.

    Raises:
      CheckpointFormatError: two of them would have one name.
    """
    disk = one_each({name: name.replace(".", "/") for name in arrays}, where)
    return with_fan_in({name: ParameterLayout(old) for name, old in disk.items()}, arrays)


def is_hugging_face_flax_t5(names: Iterable[str]) -> bool:
    """Say whether these are the names of a Hugging Face T5 in Flax, "/" between the modules."""
    return is_hugging_face_t5(_from_flax(name) for name in names)


def hugging_face_flax_t5(arrays: Mapping[str, DiskArray], where: str) -> dict[str, ParameterLayout]:
    """Map the arrays of a Hugging Face T5 in Flax: the same names, kernels as T5X's (in, out).

    Raises:
      CheckpointFormatError: a name that no T5 has, or an array of the wrong rank.
    """
    renamed = one_each({name: _from_flax(name) for name in arrays}, where)
    sources = hugging_face_t5({name: arrays[renamed[name]] for name in renamed}, where)
    # The relative bias alone is an embedding there, (buckets, heads).
    return {
        name: replace(
            source, array=renamed[source.array], transposed=name.endswith("/rel_embedding")
        )
        for name, source in sources.items()
    }


def mesh_tensorflow(arrays: Mapping[str, DiskArray], where: str) -> dict[str, ParameterLayout]:
    """Map the variables of a Mesh-TensorFlow T5, or of another TensorFlow model to themselves.

    Raises:
      CheckpointFormatError: some names are T5's and others are not.
    """
    refuse_names(arrays, where)
    weights = [name for name, a in arrays.items() if a.is_weight and not _SLOT.search(name)]
    named = _mesh_names(tuple(weights))
    unknown = [name for name, canonical in named.items() if canonical is None]
    if len(unknown) == len(weights):
        return with_fan_in({name: ParameterLayout(name) for name in weights}, arrays)
    if unknown:
        raise CheckpointFormatError(
            f"{where}: {len(unknown)} variables have names that no T5 has: {_some(unknown)}."
        )
    canonical = {str(name): disk for disk, name in named.items()}
    if len(canonical) != len(weights):
        raise CheckpointFormatError(f"{where}: two variables are the same parameter.")
    shared = _shared_bias(canonical, per_layer=False)
    return with_fan_in({name: ParameterLayout(disk) for name, disk in shared.items()}, arrays)


@lru_cache(8)  # the checkpoints of a trajectory have the same names
def _mesh_names(names: tuple[str, ...]) -> Mapping[str, str | None]:
    """Return each variable's name in T5X, or None where no T5 has it."""
    return {n: translate(new, _MESH, _T5X) for n, new in _mesh_spelling(names).items()}


def _mesh_spelling(names: Iterable[str]) -> dict[str, str]:
    """Return each variable's name as `TABLE` spells it.

    The norms were called `layer_norm` first and `rms_norm` later, the decoder of a model without
    an encoder is `transformer`, and has its feed-forward where others have cross attention.
    """
    names = list(names)
    cross = any("/EncDecAttention/" in name for name in names)
    spelled = {}
    for name in names:
        new = re.sub(r"^transformer/", "decoder/", name)
        new = re.sub(r"/(rms_norm|final_layer_norm)/scale$", "/layer_norm/scale", new)
        if not cross:
            new = re.sub(r"^(decoder/block_\d+)/layer_001/", r"\1/layer_002/", new)
        spelled[name] = new
    return spelled


def _from_flax(name: str) -> str:
    path, _, leaf = name.rpartition("/")
    leaf = "weight" if leaf in ("kernel", "embedding") else leaf
    return f"{path}/{leaf}".strip("/").replace("/", ".")


def t5x(arrays: Mapping[str, DiskArray], where: str) -> dict[str, ParameterLayout]:
    """Map arrays under T5X's names (axes of a `target` or `params` tree joined by "/").

    Scanned layers (`encoder/encoder/...`, the layers stacked on one axis) are taken apart, separate
    heads are merged, fused kernels are split. Any other floating-point array keeps its own name;
    scalars and integers are no parameters.

    Raises:
      CheckpointFormatError: two arrays are one parameter, or stacked layers do not agree.
    """
    refuse_names(arrays, where)
    sources: dict[str, ParameterLayout] = {}
    weights = {name: array for name, array in arrays.items() if array.is_weight}
    axes = {tower: _layer_axis(weights, tower, where) for tower in ("encoder", "decoder")}
    for disk, array in weights.items():
        for name, source in _unscanned(disk, array, axes):
            if name in sources:
                raise CheckpointFormatError(
                    f"{where}: {sources[name].array!r} and {disk!r} are both {name!r}."
                )
            sources[name] = source
    return with_fan_in(sources, arrays)


def _unscanned(
    disk: str, array: DiskArray, axes: Mapping[str, int | None]
) -> Iterable[tuple[str, ParameterLayout]]:
    """Yield the canonical parameters that one array under a T5X name holds."""
    tower, _, rest = disk.partition("/")
    axis = axes.get(tower) if rest.startswith(f"{tower}/") else None
    if axis is None:
        yield from _split(disk, ParameterLayout(disk), array.shape)
        return
    shape = array.shape[:axis] + array.shape[axis + 1 :]
    for layer in range(array.shape[axis]):
        name = f"{tower}/layers_{layer}/{rest.removeprefix(f'{tower}/')}"
        yield from _split(name, ParameterLayout(disk, take=((axis, layer),)), shape)


def _split(
    name: str, source: ParameterLayout, shape: tuple[int, ...]
) -> Iterable[tuple[str, ParameterLayout]]:
    """Yield the matrices of a fused kernel, or the one array itself, with heads merged."""
    parent, _, leaf = name.rpartition("/")
    grand, _, fused = parent.rpartition("/")
    parts = _FUSED.get(fused, ())
    if leaf == "kernel" and parts and len(shape) in (3, 4) and shape[1] == len(parts):
        # On disk the fused axis is one further back where the layer axis stands before it.
        axis = 1 + sum(taken <= 1 for taken, _ in source.take)
        for position, part in enumerate(parts):
            one = replace(source, take=(*source.take, (axis, position)))
            yield from _split(f"{grand}/{part}/kernel", one, shape[:1] + shape[2:])
        return
    if (found := _ATTENTION.fullmatch(name)) and len(shape) == 3:
        source = replace(source, merge=_SPLIT_HEADS[found[1]])
    yield name, source


def _layer_axis(arrays: Mapping[str, DiskArray], tower: str, where: str) -> int | None:
    """Return the axis on which a tower's layers are stacked, or None where they are not.

    T5X stacks on axis 1 (`param_scan_axis`, which runs may set to 0): the axis whose size is the
    same in every array of the tower, since all have as many layers.
    """
    shapes = [a.shape for name, a in arrays.items() if name.startswith(f"{tower}/{tower}/")]
    if not shapes:
        return None
    for axis in (1, 0):
        if all(len(shape) > axis for shape in shapes) and len({s[axis] for s in shapes}) == 1:
            if shapes[0][axis] > _MAX_LAYERS:
                raise CheckpointFormatError(
                    f"{where}: the arrays under {tower}/{tower}/ are said to be "
                    f"{shapes[0][axis]} layers; {_MAX_LAYERS} are the most that is read here."
                )
            return axis
    raise CheckpointFormatError(
        f"{where}: the arrays under {tower}/{tower}/ look like stacked layers but no axis has "
        f"the same size in all of them: {_some(str(shape) for shape in shapes)}."
    )


def _shared_bias(named: dict[str, str], per_layer: bool) -> dict[str, str]:
    """Rename the first layer's relative bias to the stack's, where only that layer has one."""
    renamed = dict(named)
    for tower in ("encoder", "decoder"):
        pattern = re.compile(rf"{tower}/layers_(\d+)/relpos_bias/rel_embedding")
        layers = [name for name in named if pattern.fullmatch(name)]
        if layers == [f"{tower}/layers_0/relpos_bias/rel_embedding"] and not per_layer:
            renamed[f"{tower}/relpos_bias/rel_embedding"] = renamed.pop(layers[0])
    return renamed


def _unknown(names: Iterable[str]) -> list[str]:
    return [
        name
        for name in names
        if translate(name, _HUGGING_FACE, _T5X) is None and not _HF_UNUSED.fullmatch(name)
    ]


def _some(names: Iterable[str], count: int = 4) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
