"""Plain Orbax: what `CheckpointManager`, `StandardCheckpointer` and `PyTreeCheckpointer` write.

Of a train state `{'params': ..., 'opt_state': ..., 'step': ...}` only `params` is read.
"""

from __future__ import annotations

import re

from saturation.checkpoints import names
from saturation.checkpoints.base import Checkpoint, LeftOut
from saturation.checkpoints.orbax_tree import Keys, Tree
from saturation.checkpoints.sift import sift
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.listing import Listing

NAME = "orbax"
LOOKS_FOR = (
    "'manifest.ocdbt', '_METADATA' or a folder per array, here or in an item such as 'default' "
    "(Orbax)"
)
_TEMPORARY = ".orbax-checkpoint-tmp"
LISTING = Listing(
    interior=(r"(ocdbt\.)?process_\d+",),
    unfinished=(rf".*{re.escape(_TEMPORARY)}(-\d+)?",),
    small=(r"\.z.*|zarr.*",),
)

# Where a manager writes several items, the weights are in the first of these that is there.
_ITEMS = ("default", "params", "state", "train_state", "model", "target")
# Top-level keys that never hold parameters, where a tree has none called `params`.
_NO_PARAMETERS = frozenset(
    {"opt_state", "optimizer", "optimizer_state", "state", "step", "params_axes", "rng", "metrics"}
)


def item(folder: Folder) -> Folder | None:
    """Return the folder that holds the tree with the weights: `folder` or an item in it."""
    if Tree.lies_in(folder):
        return folder
    names = [name for name in folder.folders if _TEMPORARY not in name]
    found = [name for name in names if Tree.lies_in(folder.child(name))]
    chosen = [name for name in _ITEMS if name in found] or found
    if not chosen:
        return None
    if len(chosen) > 1 and chosen[0] not in _ITEMS:
        raise CheckpointFormatError(
            f"{folder.path} holds several Orbax items, {', '.join(found)}, and which of them has "
            "the parameters is not clear: open that one."
        )
    return folder.child(chosen[0])


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds an Orbax tree other than T5X's."""
    place = item(folder)
    return place is not None and not Tree(place).top & {"target", "_optimizer"}


def parameter_path(keys: Keys, inside: bool) -> Keys | None:
    """Return the path of a leaf among the parameters, or None where it is no parameter.

    Args:
      keys: the path of the leaf in a train state.
      inside: the state has a key `params`, which holds all parameters.
    """
    if keys[0] in _NO_PARAMETERS or (inside and keys[0] != "params"):
        return None
    # A Flax train state may hold {'params': {'params': ...}}.
    while len(keys) > 1 and keys[0] == "params":
        keys = keys[1:]
    return keys


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open an Orbax checkpoint.

    Raises:
      CheckpointFormatError: an array is missing or damaged, or there are no parameters.
    """
    tree = Tree(item(folder) or folder)
    inside = "params" in tree.top
    arrays = tree.arrays(lambda keys: parameter_path(keys, inside))
    if not arrays:
        raise CheckpointFormatError(
            f"{tree.folder.path} holds no parameters: its tree has {', '.join(sorted(tree.top))}."
        )
    weights, left_out = sift(arrays, tree.folder.path)
    if inside:
        left_out += [LeftOut(key, "outside 'params'") for key in sorted(tree.top - {"params"})]
    sources = names.t5x(weights, tree.folder.path)
    return Checkpoint(folder.path, step, NAME, weights, sources, left_out=left_out)
