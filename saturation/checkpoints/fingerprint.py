"""What a checkpoint is known by again: its files, as cheaply as the place that holds them tells.

A place that keeps hashes of its files (a hub, a bucket) is believed. On a disk the sizes of all
files and some of their bytes count, spread evenly, since training changes every weight; small
checkpoints are read in full. Times do not count, so that a copy is the same checkpoint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from saturation.checkpoints.base import Checkpoint
from saturation.errors import CheckpointFormatError
from saturation.storage.folder import Folder
from saturation.storage.stamps import Mark

# So much of a checkpoint is read, in blocks this large, unless it has no more than that; and so
# many blocks where each is a request over a network.
_BLOCKS, _BLOCK_BYTES = 32, 8 * 1024
_BLOCKS_REMOTE = 4
# What lies beside the weights: texts, and what only a resumed training run needs.
_BESIDE = re.compile(
    r"(?i)(.*/)?(\.git.*|[^/]*\.(json|md|txt|gin|py|ya?ml|pbtxt|csv|model|png|log)"
    r"|(optimizer|scheduler|rng_state|training_args)[^/]*|commit_success.*)"
    r"|(state|opt_state|optimizer)\..*|(.*/)?(train|eval)_ds-.*"
)


def fingerprint(folder: Folder, checkpoint: Checkpoint) -> str:
    """Return a hash by which a checkpoint is known again, wherever it is moved within a place.

    Args:
      folder: where it lies.
      checkpoint: what was opened there.

    Returns:
      32 hexadecimal digits of names, shapes and types of the arrays, and names, sizes and hashes or
      bytes of the files.

    Raises:
      CheckpointFormatError: a file changed since it was opened, or cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in checkpoint.parameters.items():
        digest.update(f"{name} {parameter.shape} {parameter.dtype}\n".encode())
    try:
        found = list(folder.marks())
    except OSError as error:
        raise CheckpointFormatError(f"{folder.path} cannot be listed: {error}.") from error
    files = [(name, mark) for name, mark in found if not _BESIDE.fullmatch(name)] or found
    for name, mark in files:
        digest.update(f"{name} {mark.size} {mark.digest}\n".encode())
    if not all(mark.digest for _, mark in files):
        for part in _spread(folder, files, _BLOCKS_REMOTE if folder.remote else _BLOCKS):
            digest.update(part)
    return digest.hexdigest()


def _spread(folder: Folder, files: Sequence[tuple[str, Mark]], blocks: int) -> list[bytes]:
    """Return blocks spread evenly over the files, put one behind the other, to the last byte."""
    whole = sum(mark.size for _, mark in files)
    if whole <= blocks * _BLOCK_BYTES:
        return [folder.read(name) for name, _ in files]
    places = [at * (whole - _BLOCK_BYTES) // (blocks - 1) for at in range(blocks)]
    parts, begin = [], 0
    for name, mark in files:
        starts = [place - begin for place in places if begin <= place < begin + mark.size]
        spans = [(start, min(start + _BLOCK_BYTES, mark.size)) for start in starts]
        if spans:
            parts += folder.read_blocks(name, spans)
        begin += mark.size
    return parts
