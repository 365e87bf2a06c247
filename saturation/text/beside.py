"""Which vocabulary a model's token ids are of: the one beside its checkpoints, or bytes."""

from __future__ import annotations

import os

from saturation.errors import CheckpointFormatError, MeasureError
from saturation.storage.open import open_folder
from saturation.text.vocabulary import TOKENIZER

# ByT5 has 384 rows for 259 ids. Published vocabularies of pieces have thousands.
MOST_BYTE_IDS = 400
BESIDE = (TOKENIZER, "spiece.model", "sentencepiece.model", "tokenizer.model")


def vocabulary_beside(checkpoint: str, trajectory: str) -> str | None:
    """Return the path or URL of the vocabulary that lies with a trajectory's checkpoints.

    Looked for are the names of `BESIDE`, in that order, in the folder of the first step, and then
    in the trajectory's own.

    Args:
      checkpoint: path or URL of the first step.
      trajectory: path or URL of the trajectory.
    """
    places = dict.fromkeys([checkpoint, trajectory])
    if "://" not in checkpoint:  # of a single checkpoint, the folder that it lies in
        places |= dict.fromkeys([os.path.dirname(os.path.abspath(checkpoint))])
    for place in places:
        names = _files(place)
        for name in BESIDE:
            if name in names:
                return f"{place.rstrip('/')}/{name}"
    return None


def _files(place: str) -> tuple[str, ...]:
    try:
        return open_folder(place).files
    except CheckpointFormatError:  # a manifest, or a pattern of revisions: not a place with files
        return ()


def refuse_bytes(source: str, vocab_size: int, path: str) -> None:
    """Raise `MeasureError` where bytes of `source` would be pieces to the model at `path`."""
    if vocab_size > MOST_BYTE_IDS:
        raise MeasureError(
            f"{source} was read as bytes, and the model in {path} has a vocabulary of "
            f"{vocab_size:,} pieces, to which a byte's number means nothing. "
            + say_how_to_get_one("the checkpoint's folder")
        )


def say_how_to_get_one(where: str) -> str:
    """Return the end of an error: what to give where no vocabulary was found."""
    return (
        f"Give the model's own with --vocabulary FILE (from Python: vocabulary=…), a {TOKENIZER} "
        f"or a sentencepiece model such as spiece.model, or put it into {where}; or give token ids "
        "in a .jsonl. docs/tokens.md says where to get one."
    )
