"""T5X through Orbax: the tree `{'target': ..., 'state': ...}` in `checkpoint_N/state/`.

The earliest form lies in the step's folder itself and calls them `_optimizer.target` and
`_optimizer.state`. Layouts: see `orbax_tree`. Source: `t5x/checkpoints.py`.
"""

from __future__ import annotations

from saturation.checkpoints import names, orbax
from saturation.checkpoints.base import Checkpoint, LeftOut
from saturation.checkpoints.orbax_tree import Keys, Tree
from saturation.checkpoints.sift import sift
from saturation.checkpoints.t5x import as_bfloat16
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder

NAME = "t5x-orbax"
_TARGET = frozenset({"target", "_optimizer"})
LOOKS_FOR = "an Orbax tree with the keys 'target' and 'state', in the folder 'state' (T5X)"
LISTING = orbax.LISTING


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds a T5X checkpoint written through Orbax."""
    place = orbax.item(folder)
    return place is not None and bool(Tree(place).top & _TARGET)


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a T5X checkpoint that Orbax wrote.

    Raises:
      CheckpointFormatError: an array is missing or damaged, or there are no parameters.
    """
    tree = Tree(orbax.item(folder) or folder)
    arrays = {name: as_bfloat16(array) for name, array in tree.arrays(_parameter).items()}
    if not arrays:
        # Where files are missing too, that is the error to report.
        tree.arrays(lambda keys: keys)
        raise CheckpointFormatError(f"{tree.folder.path}: its 'target' holds no parameters.")
    weights, left_out = sift(arrays, tree.folder.path)
    left_out += [LeftOut(key, "outside 'target'") for key in sorted(tree.top - _TARGET)]
    sources = names.t5x(weights, tree.folder.path)
    return Checkpoint(folder.path, step, NAME, weights, sources, left_out=left_out)


def _parameter(keys: Keys) -> Keys | None:
    keys = keys[1:] if keys[0] == "_optimizer" else keys
    return keys[1:] if len(keys) > 1 and keys[0] == "target" else None
