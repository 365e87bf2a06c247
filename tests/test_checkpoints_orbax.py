"""Orbax checkpoints as Orbax itself writes them: managers, layouts, items, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_writers import BFLOAT16, assert_same, nested, scanned, t5_parameters

import saturation
from saturation.checkpoints import open_checkpoint
from saturation.errors import CheckpointFormatError

QUERY = "encoder/layers_1/attention/query/kernel"


@pytest.fixture(scope="module")
def arrays():
    return t5_parameters()


def save_standard(path: Path, tree) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def save_tree(path: Path, tree, **options: bool) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, tree)
    return path


@pytest.fixture(scope="module")
def standard(tmp_path_factory, arrays):
    return save_standard(tmp_path_factory.mktemp("orbax") / "5", {"params": nested(arrays)})


@pytest.fixture(scope="module")
def folders(tmp_path_factory, arrays):
    """A checkpoint with a folder for each array, as Orbax wrote them until 2024."""
    path = tmp_path_factory.mktemp("orbax") / "5"
    return save_tree(path, {"params": nested(arrays)}, use_ocdbt=False)


def test_standard_checkpointer(standard, arrays):
    checkpoint = open_checkpoint(standard)
    assert checkpoint.format == "orbax"
    assert_same(checkpoint, arrays)


@pytest.mark.parametrize(
    "options",
    [
        {"use_ocdbt": True, "use_zarr3": False},
        {"use_ocdbt": False, "use_zarr3": False},
        {"use_ocdbt": True, "use_zarr3": True},
    ],
    ids=str,
)
def test_every_layout(tmp_path, arrays, options):
    state = {"params": nested(arrays), "step": np.int32(5), "opt_state": {"mu": np.ones((3, 4))}}
    assert_same(open_checkpoint(save_tree(tmp_path / "5", state, **options)), arrays)


@pytest.mark.parametrize("zarr3", [False, True])
def test_bfloat16(tmp_path, arrays, zarr3):
    rounded = {name: array.astype(BFLOAT16) for name, array in arrays.items()}
    path = save_tree(tmp_path / "5", {"params": nested(rounded)}, use_zarr3=zarr3)
    assert_same(open_checkpoint(path), rounded)


@pytest.mark.parametrize(
    "naming",
    [
        {},
        {"step_prefix": "checkpoint"},
        {"step_format_fixed_length": 8},
        {"step_prefix": "run", "step_format_fixed_length": 6},
    ],
    ids=str,
)
def test_checkpoint_manager_whatever_its_steps_are_called(tmp_path, arrays, naming):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **naming)
    later = {name: 2 * array for name, array in arrays.items()}
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step, written in ((5, arrays), (20, later)):
            manager.save(step, args=ocp.args.StandardSave({"params": nested(written)}))
    trajectory = saturation.open_trajectory(tmp_path)
    assert trajectory.steps == (5, 20)
    assert_same(trajectory[5], arrays)
    assert_same(trajectory[20], later)


@pytest.mark.parametrize("item", ["state", "params", "weights"])
def test_named_items(tmp_path, arrays, item):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        saved = {
            item: ocp.args.StandardSave(nested(arrays)),
            "info": ocp.args.JsonSave({"loss": 1.0}),
        }
        manager.save(5, args=ocp.args.Composite(**saved))
    assert_same(saturation.open_trajectory(tmp_path)[5], arrays)


def test_a_train_state_keeps_its_parameters_apart_from_its_optimizer(tmp_path, arrays):
    state = {
        "params": {"params": nested(arrays)},
        "opt_state": [{"mu": nested(arrays)}, {"count": np.int32(3)}],
        "step": 5,
    }
    assert_same(open_checkpoint(save_standard(tmp_path / "5", state)), arrays)


def test_scanned_layers(tmp_path):
    arrays = t5_parameters(umt5=True)
    path = save_standard(tmp_path / "5", {"params": nested(scanned(arrays))})
    assert_same(open_checkpoint(path), arrays)


@pytest.mark.parametrize("layout", ["standard", "folders"])
def test_slices(layout, arrays, request):
    checkpoint = open_checkpoint(request.getfixturevalue(layout))
    generator = np.random.default_rng(0)
    for _ in range(40):
        name = sorted(arrays)[generator.integers(len(arrays))]
        ends = [np.sort(generator.integers(0, size + 1, 2)) for size in arrays[name].shape]
        box = tuple(slice(int(start), int(stop)) for start, stop in ends)
        np.testing.assert_array_equal(checkpoint.read(name, box), arrays[name][box], strict=True)


# -- damaged or unfinished ------------------------------------------------------------------------


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "5"))


def message(path: Path, name: str = QUERY) -> str:
    with pytest.raises(CheckpointFormatError) as caught:
        open_checkpoint(path).read(name)
    return str(caught.value)


def test_array_folder_that_was_lost(tmp_path, folders):
    folder = copied(folders, tmp_path)
    place = folder / f"params.{QUERY.replace('/', '.')}"
    shutil.rmtree(place)
    assert message(folder) == f"{place}/.zarray is missing, which describes the array."


def test_chunk_that_was_lost(tmp_path, folders):
    folder = copied(folders, tmp_path)
    chunk = folder / f"params.{QUERY.replace('/', '.')}" / "0.0"
    chunk.unlink()
    assert message(folder).startswith(f"{chunk} is missing: this chunk of an array of shape")


def test_truncated_store(tmp_path, standard):
    folder = copied(standard, tmp_path)
    for data in [*folder.glob("d/*"), *folder.glob("ocdbt.process_*/d/*")]:
        data.write_bytes(data.read_bytes()[:-100])
    text = message(folder)
    assert text.startswith(f"{folder}: Orbax's store (OCDBT) is damaged or incomplete: ")
    assert "\n" not in text


def test_lost_store(tmp_path, standard):
    folder = copied(standard, tmp_path)
    for data in [*folder.glob("d/*"), *folder.glob("ocdbt.process_*/d/*")]:
        data.unlink()
    assert "Orbax's store (OCDBT) is damaged or incomplete" in message(folder)


def test_array_that_metadata_lists_and_the_store_lacks(tmp_path, standard):
    folder = copied(standard, tmp_path)
    described = json.loads((folder / "_METADATA").read_text())
    entry = next(iter(described["tree_metadata"].values()))
    keys = [{"key": key, "key_type": 2} for key in ("params", "encoder", "lost")]
    described["tree_metadata"]["lost"] = {**entry, "key_metadata": keys}
    (folder / "_METADATA").write_text(json.dumps(described))
    assert f"{folder}/params.encoder.lost/.zarray is missing" in message(folder)


def test_damaged_metadata(tmp_path, standard):
    folder = copied(standard, tmp_path)
    (folder / "_METADATA").write_text("{")
    assert message(folder) == (
        f"{folder}/_METADATA is damaged: it is not the description of a tree that Orbax writes."
    )


def test_no_parameters(tmp_path):
    path = save_standard(tmp_path / "5", {"opt_state": {"mu": np.ones(3)}, "step": np.int32(1)})
    assert message(path) == f"{path} holds no parameters: its tree has opt_state, step."


def test_items_that_could_both_be_meant(tmp_path, arrays):
    save_standard(tmp_path / "5" / "generator", nested(arrays))
    save_standard(tmp_path / "5" / "teacher", nested(arrays))
    assert message(tmp_path / "5") == (
        f"{tmp_path}/5 holds several Orbax items, generator, teacher, and which of them has the "
        "parameters is not clear: open that one."
    )


def test_unfinished_steps_are_ignored(tmp_path, standard):
    shutil.copytree(standard, tmp_path / "5")
    shutil.copytree(standard, tmp_path / "6.orbax-checkpoint-tmp-17")
    shutil.copytree(standard, tmp_path / "7.orbax-checkpoint-tmp")
    trajectory = saturation.open_trajectory(tmp_path)
    assert trajectory.steps == (5,)
    assert trajectory.ignored == (
        ("6.orbax-checkpoint-tmp-17", "temporary: its writer did not finish"),
        ("7.orbax-checkpoint-tmp", "temporary: its writer did not finish"),
    )
