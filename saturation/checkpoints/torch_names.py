"""What training loops and libraries do to the names of a PyTorch model's arrays, undone.

A loop that wraps a model puts a word before every name (`_orig_mod.`, `module.`, `model.`), and a
library that ties arrays may store them twice. Sources: `torch.compile`, `DistributedDataParallel`,
FSDP, Lightning, transformers' `tie_weights`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from saturation.checkpoints.disk_array import DiskArray
from saturation.errors import CheckpointFormatError
from saturation.scopes import is_embedding, is_head, layer_of, module_of

# These are wrappers wherever they stand, and these where every name begins with them.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_IN_FRONT = ("module", "model", "transformer", "network", "net", "state_dict", "model_state_dict")
_T5_MARK = re.compile(
    r"(?P<before>(.*\.)?)(encoder|decoder)\.block\.\d+\.layer\.0\.SelfAttention\.q\.weight"
)
_COMPARE_BYTES = 8 * 2**20


def unwrapped(names: Iterable[str], t5: bool) -> tuple[dict[str, str], str]:
    """Return {name on disk: name without wrappers}, and the words that were taken off, for people.

    Args:
      names: of all arrays.
      t5: take what stands before a T5's own names off those that have it, and leave others be: a
        task's head lies beside its T5. Otherwise only what stands before all names is taken off.
    """
    new = {name: _without_inside(name) for name in names}
    changed = (name for name, short in new.items() if name != short)
    inside = {part for name in changed for part in name.split(".") if part in _INSIDE}
    if t5:
        before = {found["before"] for name in new.values() if (found := _T5_MARK.fullmatch(name))}
        prefix = before.pop() if len(before) == 1 else ""
    else:
        prefix = _shared_wrappers(list(new.values()))
    said = [*sorted(inside), *([prefix.rstrip(".")] if prefix else [])]
    return {old: name.removeprefix(prefix) for old, name in new.items()}, ", ".join(said)


def one_each(renamed: Mapping[str, str], where: str) -> dict[str, str]:
    """Return {new name: old one} of {old name: new one}.

    Raises:
      CheckpointFormatError: two old names have one new name.
    """
    found: dict[str, str] = {}
    for old, new in renamed.items():
        if new in found:
            raise CheckpointFormatError(
                f"{where}: {found[new]!r} and {old!r} are two arrays, and both would be called "
                f"{new!r} here. Rename one of them."
            )
        found[new] = old
    return found


def joined(
    arrays: Mapping[tuple[str, ...], DiskArray],
    paths: Mapping[tuple[str, ...], tuple[str, ...]],
    where: str,
) -> dict[str, DiskArray]:
    """Return a tree's leaves under their paths joined by "/", which a key may have in it too.

    Raises:
      CheckpointFormatError: two of them would have one name.
    """
    found: dict[str, tuple[str, ...]] = {}
    for keys, path in paths.items():
        if (other := found.setdefault("/".join(path), keys)) != keys:
            raise CheckpointFormatError(
                f"{where}: the leaves {' > '.join(map(repr, other))} and "
                f"{' > '.join(map(repr, keys))} are two arrays, and both would be called "
                f"{'/'.join(path)!r} here. Rename one of them."
            )
    return {name: arrays[keys] for name, keys in found.items()}


def aliases(arrays: Mapping[str, DiskArray], config: Mapping[str, Any]) -> dict[str, str]:
    """Return {name: the name it is counted under} of arrays that are stored twice.

    One object under two names (PyTorch archives say so) is one parameter; so are a table of tokens
    and an output head, or another table, that hold the same bits, unless the model's `config.json`
    says that its head is not tied.
    """
    found, first = {}, {}
    # What is counted is the same whichever of them a step stores: `shared`, or the outermost table.
    ordered = sorted(
        arrays,
        key=lambda name: (
            not is_embedding(name),
            is_head(name),
            module_of(name)[0] != "shared",
            name.count("."),
        ),
    )
    for name in ordered:
        # Names of one object: the table of tokens goes first, the head last.
        if first.setdefault(id(arrays[name]), name) != name:
            found[name] = first[id(arrays[name])]
    tables = [name for name in ordered if is_embedding(name) and _is_table(name, arrays)]
    untied = config.get("tie_word_embeddings") is False
    heads = [] if untied else [n for n in ordered if is_head(n) and _is_table(n, arrays)]
    for name in (*tables[1:], *heads) if tables else ():
        if name not in found and same_bits(arrays[name], arrays[tables[0]]):
            found[name] = tables[0]
    if any(name in found for name in heads):
        # A tied head's bias may be stored beside the head and in it.
        for name in ordered:
            twin = name.replace(".decoder.bias", ".bias")
            if twin != name and twin in arrays and same_bits(arrays[name], arrays[twin]):
                found.setdefault(name, twin)
    return found


def same_bits(one: DiskArray, other: DiskArray) -> bool:
    """Say whether two arrays hold the same bits; most that differ do so in their middle row."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or not one.shape:
        return False
    rows = one.shape[0]
    step = max(_COMPARE_BYTES // max(one.nbytes // max(rows, 1), 1), 1)
    spans = [(rows // 2, min(rows // 2 + 1, rows))]
    spans += [(start, min(start + step, rows)) for start in range(0, rows, step)]
    for start, stop in spans:
        box = (slice(start, stop), *(slice(0, size) for size in one.shape[1:]))
        if one.read(box).tobytes() != other.read(box).tobytes():
            return False
    return True


def _is_table(name: str, arrays: Mapping[str, DiskArray]) -> bool:
    return layer_of(name) is None and len(arrays[name].shape) == 2 and arrays[name].is_weight


def _without_inside(name: str) -> str:
    if not any(word in name for word in _INSIDE):
        return name
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def _shared_wrappers(names: list[str]) -> str:
    """Return the wrappers that every name begins with, one behind the other."""
    prefix = ""
    while True:
        heads = {name.removeprefix(prefix).partition(".")[0] for name in names}
        deeper = all("." in name.removeprefix(prefix) for name in names)
        if len(heads) != 1 or not deeper or (word := heads.pop()) not in _IN_FRONT:
            return prefix
        prefix += f"{word}."
