"""Orbax checkpoints of several devices and processes: Orbax says only what piece each one wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from many_processes import environment, run_code

from saturation.checkpoints import open_checkpoint
from saturation.errors import CheckpointFormatError

SHAPES = {"embedding": (64, 16), "layers_0/kernel": (16, 32)}
# (folder, whether each array lies in pieces, how Orbax writes it)
LAYOUTS = {
    f"{kind}_{writer}": (kind == "pieces", writer)
    for kind in ("pieces", "copies")
    for writer in ("zarr", "zarr3", "folders", "standard")
}
# Runs as processes of their own, since the number of devices is settled when JAX begins.
WRITE = """
import os, sys
import jax
if {processes} > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"], {processes}, int(os.environ["JAX_PROCESS_ID"])
    )
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.serialization import ocdbt_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

if {unmerged}:
    # As where a job ends before its first process has merged what the others wrote.
    async def nothing(*args, **kwargs):
        pass
    ocdbt_utils.merge_ocdbt_per_process_files = nothing

mesh = Mesh(np.array(jax.devices()), ("x",))
generator = np.random.default_rng(0)
values = {{n: generator.normal(size=s).astype(np.float32) for n, s in {shapes}.items()}}

def placed(name, in_pieces):
    axes = (PartitionSpec("x", None) if name == "embedding" else PartitionSpec(None, "x"))
    sharding = NamedSharding(mesh, axes if in_pieces else PartitionSpec())
    return jax.make_array_from_callback(values[name].shape, sharding, lambda i: values[name][i])

for folder, (in_pieces, writer) in {layouts}.items():
    tree = {{"params": {{"embedding": placed("embedding", in_pieces),
             "layers_0": {{"kernel": placed("layers_0/kernel", in_pieces)}}}}, "step": 5}}
    if writer == "standard":
        checkpointer = ocp.StandardCheckpointer()
    else:
        options = {{"use_ocdbt": writer != "folders", "use_zarr3": writer == "zarr3"}}
        checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))
    with checkpointer:
        checkpointer.save(os.path.join({root!r}, folder), tree)
"""


def write(root: Path, processes: int, devices: int, unmerged: bool = False) -> Path:
    code = WRITE.format(
        processes=processes,
        unmerged=unmerged,
        shapes=SHAPES,
        layouts={n: how for n, how in LAYOUTS.items() if not unmerged or how[1] != "folders"},
        root=str(root),
    )
    if processes > 1:
        ended = run_code(code, processes, devices)
        assert [one.code for one in ended] == [0] * processes, ended[0].err[-3000:]
    else:
        command = [sys.executable, "-c", code]
        subprocess.run(command, check=True, env=environment(devices), capture_output=True)
    return root


def expected() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {n: generator.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def assert_read(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert set(checkpoint.parameters) == set(SHAPES)
    for name, values in expected().items():
        np.testing.assert_array_equal(checkpoint.read(name), values, strict=True)


@pytest.mark.parametrize(("processes", "devices"), [(1, 2), (1, 4), (2, 1), (2, 2)])
def test_every_layout_of_several_devices(tmp_path, processes, devices):
    root = write(tmp_path, processes, devices)
    for folder in LAYOUTS:
        assert_read(root / folder)
    described = json.loads((root / "pieces_zarr" / "_METADATA").read_text())["tree_metadata"]
    written = [leaf["value_metadata"].get("write_shape") for leaf in described.values()]
    # Else the case is not the one that is meant.
    assert [64 // (processes * devices), 16] in written


def test_stores_that_were_never_merged(tmp_path):
    root = write(tmp_path, processes=2, devices=1, unmerged=True)
    stores = [folder for folder, (_, writer) in LAYOUTS.items() if writer != "folders"]
    for folder in stores:
        assert not (root / folder / "manifest.ocdbt").exists()
        assert_read(root / folder)
    # Half of each array is gone with what the other process wrote.
    shutil.rmtree(root / "pieces_zarr" / "ocdbt.process_1")
    checkpoint = open_checkpoint(root / "pieces_zarr")
    with pytest.raises(CheckpointFormatError, match="is missing: this chunk of an array"):
        checkpoint.read("embedding")


def test_a_shape_that_no_pieces_make_up(tmp_path):
    root = write(tmp_path, processes=1, devices=2)
    folder = root / "pieces_folders"
    described = json.loads((folder / "_METADATA").read_text())
    for leaf in described["tree_metadata"].values():
        if leaf["value_metadata"].get("write_shape") == [32, 16]:
            leaf["value_metadata"]["write_shape"] = [65, 16]
    (folder / "_METADATA").write_text(json.dumps(described))
    with pytest.raises(CheckpointFormatError, match="wrote pieces of"):
        open_checkpoint(folder)


@pytest.mark.parametrize("driver", ["zarr", "zarr3", "ocdbt"])
def test_chunks_of_zeros_that_tensorstore_leaves_out(tmp_path, driver):
    values = {"params.kernel": np.ones((4, 6), np.float32), "params.bias": np.zeros(6, np.float32)}
    values["params.kernel"][2:] = 0  # a chunk of its own
    for name, array in values.items():
        store = {"driver": "file", "path": f"{tmp_path}/5/{name}/"}
        if driver == "ocdbt":
            store = {"driver": "ocdbt", "base": f"file://{tmp_path}/5/", "path": f"{name}/"}
        chunks = [2, 6][-array.ndim :]
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        metadata = (
            {"shape": array.shape, "chunk_grid": grid, "data_type": "float32"}
            if driver == "zarr3"
            else {"shape": array.shape, "chunks": chunks, "dtype": "<f4", "fill_value": 0.0}
        )
        kind = "zarr3" if driver == "zarr3" else "zarr"
        spec = {"driver": kind, "kvstore": store, "metadata": metadata, "create": True}
        ts.open(spec).result().write(array).result()
    written = [p.name for p in (tmp_path / "5" / "params.bias").rglob("*") if p.is_file()]
    assert written == {"zarr": [".zarray"], "zarr3": ["zarr.json"], "ocdbt": []}[driver]
    checkpoint = open_checkpoint(tmp_path / "5")
    for name, array in values.items():
        np.testing.assert_array_equal(checkpoint.read(name[7:]), array, strict=True)


@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {"use_zarr3": True}], ids=str)
def test_a_leaf_of_a_type_not_read_leaves_the_weights_beside_it(tmp_path, options):
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    tree = {"params": {"kernel": kernel, "codes": jnp.ones((3, 4), jnp.int4)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "5", tree)
    checkpoint = open_checkpoint(tmp_path / "5")
    assert list(checkpoint.parameters) == ["kernel"]
    np.testing.assert_array_equal(checkpoint.read("kernel"), kernel, strict=True)
