"""Layouts of weights that are not read here, named so that the error can say which one it is."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saturation.storage.folder import Folder


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
