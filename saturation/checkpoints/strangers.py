"""Files beside checkpoints that hold no weights, and layouts of weights that are not read here.

What file managers, network disks, notebooks and downloads leave is never looked at; the layouts
that training frameworks write in pieces are known by name, so that the error can say which it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saturation.checkpoints.storage import Folder

_LEFTOVER = re.compile(
    r"\._.*|\.DS_Store|\.AppleDouble|\.Spotlight-V100|\.fseventsd|\.Trash(es|-\d+)?|__MACOSX|Icon\r"
    r"|Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|@eaDir|#recycle|#snapshot|\.snapshots?|lost\+found"
    r"|\.nfs.+|\.fuse_hidden.+|\.cache|\.git|\.ipynb_checkpoints|\.sync\w*|\.stfolder|\.~lock.*|\.#.+"
    r"|.+\.(aria2|aria2__temp|crdownload|part|partial|filepart|download|incomplete|lock|swp)|.+~"
    r"|__pycache__"
)
_NO_WEIGHTS = re.compile(
    r"(optimizer|optim|optimizer_state|scheduler|lr_scheduler|scaler|rng_state|random_states?)"
    r"([_-]?\d+)*(_\w+)?\.(pt|pth|bin|pkl|safetensors)"
    r"|(training_args|trainer_state|sampler|dataloader|dl_state_dict|custom_checkpoint_\d+)\.\w+"
    r"|.*_(optim|model)_states\.pt|model_optim_rng\.pt|.*\.distcp"
)
# (pattern of a path of at most three parts, what writes it, how to make of it what is read)
_LAYOUTS = (
    ("*.distcp", "pieces of PyTorch's distributed checkpoints (FSDP, DCP)", "dcp_to_torch_save"),
    ("*_model_states.pt", "DeepSpeed's pieces", "zero_to_fp32.py, which lies beside them,"),
    ("*_optim_states.pt", "DeepSpeed's pieces", "zero_to_fp32.py, which lies beside them,"),
    ("*model_optim_rng.pt", "Megatron-LM's pieces", "Megatron's tools/checkpoint/convert.py"),
    ("*.gguf", "GGUF (llama.cpp)", "save_pretrained"),
    ("*.onnx", "ONNX", "save_pretrained"),
    ("*saved_model.pb", "TensorFlow's SavedModel", "tf.train.Checkpoint"),
    ("*.h5", "Keras's HDF5", "save_pretrained"),
    ("*.nemo", "NeMo's archive", "unpacking it"),
    ("*.ot", "Rust's archive", "save_pretrained"),
)


def is_leftover(name: str) -> bool:
    """Say whether a name is that of something that no training wrote.

    >>> is_leftover("._model.safetensors"), is_leftover(".zarray")
    (True, False)
    """
    return bool(_LEFTOVER.fullmatch(name))


def holds_no_weights(name: str) -> bool:
    """Say whether a file of this name holds an optimizer's or a trainer's state.

    >>> holds_no_weights("rng_state_0.pth"), holds_no_weights("pytorch_model.bin")
    (True, False)
    """
    return bool(_NO_WEIGHTS.fullmatch(name))


def unread_layout(folder: Folder) -> str | None:
    """Return the sentence that names a layout which is not read here, or None if it is none."""
    found = [
        (path, writer, way)
        for path in _paths(folder, depth=2)
        for pattern, writer, way in _LAYOUTS
        if fnmatch(path, pattern)
    ]
    if not found:
        return None
    # Of a model's pieces and its optimizer's, the model's are the example.
    path, writer, way = min(found, key=lambda one: "optim" in one[0])
    return (
        f"{folder.path} holds {path}, a form that is not read here: {writer}. Measure what {way} "
        "gives."
    )


def _paths(folder: Folder, depth: int, before: str = "") -> Iterator[str]:
    for name in folder.files:
        yield f"{before}{name}"
    # Each costs a request over a network.
    if depth and not folder.remote:
        for name in folder.folders:
            yield from _paths(folder.child(name), depth - 1, f"{before}{name}/")
