"""Mesh-TensorFlow's T5: a TensorFlow bundle `model.ckpt-N.index` with its data shards.

Adafactor's slots and `global_step` lie beside the weights and are no parameters.
Source: `t5x/checkpoint_importer.py`; variable names from `mesh_tensorflow/transformer`.
"""

from __future__ import annotations

from saturation.checkpoints import names
from saturation.checkpoints.arrays import tensor_bundle
from saturation.checkpoints.base import Checkpoint, LeftOut
from saturation.checkpoints.sift import sift
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.listing import Listing

NAME = "mesh-tensorflow"
LOOKS_FOR = (
    "one '*.index' table of a TensorFlow bundle, with its '*.data-*' shards (Mesh-TensorFlow)"
)
LISTING = Listing(tables=((".index", ".data-"),))


def claims(folder: Folder) -> bool:
    """Say whether `folder` holds one TensorFlow bundle."""
    return len(_indices(folder)) == 1


def open_checkpoint(folder: Folder, step: int | None) -> Checkpoint:
    """Open a Mesh-TensorFlow checkpoint.

    Raises:
      CheckpointFormatError: the table or a shard is missing or damaged, or a name is not T5's.
    """
    (index,) = _indices(folder)
    arrays, left_out = sift(tensor_bundle.read_index(folder, index), folder.where(index))
    sources = names.mesh_tensorflow(arrays, folder.where(index))
    if not sources:
        raise CheckpointFormatError(f"{folder.where(index)} holds no parameters.")
    used = {source.array for source in sources.values()}
    left_out += [LeftOut(name, "an optimizer's variable") for name in arrays if name not in used]
    return Checkpoint(folder.path, step, NAME, arrays, sources, left_out=left_out)


def _indices(folder: Folder) -> list[str]:
    return [
        name
        for name in folder.files
        if name.endswith(".index") and tensor_bundle.is_index(folder, name)
    ]
