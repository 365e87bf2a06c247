"""Names that training loops wrapped, heads of tasks, and arrays that are stored twice."""

from __future__ import annotations

import json
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
from checkpoint_writers import assert_same, hugging_face, t5_parameters, write_hugging_face
from safetensors.numpy import save_file

import saturation
from saturation.checkpoints import open_checkpoint
from saturation.checkpoints.torch_names import same_bits, unwrapped
from saturation.cli.text import describe_trajectory, trajectory_text
from saturation.errors import CheckpointFormatError
from saturation.runs.plan import shared_parameters
from saturation.trajectory.trajectory import open_trajectory

V, D = 24, 8


def gpt(seed: int = 0, prefix: str = "", **more: np.ndarray) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {"embed_tokens.weight": (V, D), "layers.0.mlp.up_proj.weight": (D, D)}
    arrays = {f"{prefix}{n}": generator.random(s, np.float32) for n, s in shapes.items()}
    return arrays | more


def write(folder: Path, arrays: dict[str, np.ndarray], **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def names(path: Path) -> set[str]:
    return set(open_checkpoint(path).parameters)


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "_orig_mod.", "module.", "model.", "transformer.", "_orig_mod.module.transformer."),
        *("state_dict.model.", "lit.model."),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_a_wrapped_t5_is_a_t5(tmp_path, prefix, config):
    arrays = t5_parameters(tied=True)
    disk = {f"{prefix}{name}": array for name, array in hugging_face(arrays).items()}
    folder = write_hugging_face(tmp_path / "step_1", disk)
    if not config:
        (folder / "config.json").unlink()
    assert_same(open_checkpoint(folder), arrays)
    described = describe_trajectory(open_trajectory(folder))
    said = [line for line in trajectory_text(described).splitlines() if "wrapped in" in line]
    assert len(said) == bool(prefix)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "transformer."])
def test_a_trajectory_wrapped_at_some_steps_has_one_set_of_names(tmp_path, prefix):
    for step in (0, 100, 200):
        write(tmp_path / f"step_{step}", gpt(step, prefix if step else ""))
    parameters = shared_parameters(open_trajectory(tmp_path))
    assert set(parameters) == {"embed_tokens/weight", "layers/0/mlp/up_proj/weight"}


def wrapped_line(path: Path) -> str:
    lines = trajectory_text(describe_trajectory(open_trajectory(path))).splitlines()
    return "".join(
        line.partition("wrapped in")[2].strip() for line in lines if "wrapped in" in line
    )


def test_what_each_step_is_wrapped_in_is_said(tmp_path):
    words = {0: "", 100: "module.", 200: "_orig_mod.", 300: "module."}
    for step, word in words.items():
        write(tmp_path / f"step_{step}", gpt(step, word))
    said = "nothing at step 0; module at steps 100, 300; _orig_mod at step 200, taken off the names"
    assert wrapped_line(tmp_path) == said
    found = describe_trajectory(open_trajectory(tmp_path))["wrappers_by_step"]
    assert found == {str(step): word.rstrip(".") for step, word in words.items()}


def test_of_steps_that_are_wrapped_alike_one_is_opened(tmp_path, monkeypatch):
    for step in range(5):
        write(tmp_path / f"step_{step}", gpt(step, "module."))
    trajectory = open_trajectory(tmp_path)
    assert wrapped_line(tmp_path) == "module, taken off the names"
    describe_trajectory(trajectory)
    assert set(trajectory._opened) == {0}


def test_over_a_network_three_steps_are_looked_at(tmp_path):
    for step in range(7):
        write(tmp_path / f"step_{step}", gpt(step, "module." if step == 6 else ""))
    trajectory = open_trajectory(tmp_path)
    trajectory.remote = True
    described = describe_trajectory(trajectory)
    assert described["looked_at"] == [0, 3, 6]
    said = "nothing at steps 0, 3; module at step 6, taken off the names"
    assert f"{said} (steps 0, 3, 6 were looked at)" in trajectory_text(described)


def test_a_step_that_cannot_be_read_does_not_stop_the_listing(tmp_path):
    for step in (0, 1):
        write(tmp_path / f"step_{step}", gpt(step, "module."))
    (tmp_path / "step_1" / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    assert wrapped_line(tmp_path) == "module, taken off the names"


def test_only_what_stands_before_all_names_is_taken_off_a_model_that_is_no_t5(tmp_path):
    head = np.ones((V, D), np.float32)
    path = write(tmp_path / "a", gpt(prefix="model.") | {"lm_head.weight": head})
    assert names(path) == {
        "model/embed_tokens/weight",
        "model/layers/0/mlp/up_proj/weight",
        "lm_head/weight",
    }
    # torch.compile of one part of a model.
    assert unwrapped(["a._orig_mod.b.weight", "c.weight"], False) == (
        {"a._orig_mod.b.weight": "a.b.weight", "c.weight": "c.weight"},
        "_orig_mod",
    )


@pytest.mark.parametrize("prefix", ["", "transformer.", "module.transformer."])
def test_the_head_of_a_task_keeps_its_name_beside_its_t5(tmp_path, prefix):
    arrays = t5_parameters(tied=True)
    disk = {f"{prefix}{name}": array for name, array in hugging_face(arrays).items()}
    outer = prefix.removesuffix("transformer.")
    disk[f"{outer}classification_head.out_proj.weight"] = np.ones((2, 16), np.float32)
    folder = write_hugging_face(tmp_path / "a", disk)
    parameters = open_checkpoint(folder).parameters
    own = outer.replace(".", "/") + "classification_head/out_proj/weight"
    assert set(parameters) == {*arrays, own}
    assert parameters[own].fan_in == 16


TIES = {
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "meta": ("tok_embeddings.weight", "output.weight"),
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "bart": ("model.shared.weight", "model.decoder.embed_tokens.weight"),
}


@pytest.mark.parametrize("family", TIES)
def test_a_head_that_is_tied_and_stored_all_the_same_counts_once(tmp_path, family):
    table, head = TIES[family]
    weights = np.random.default_rng(0).random((V, D), np.float32)
    inner = {"layers.0.w.weight": np.ones((D, D), np.float32)}
    path = write(tmp_path / "a", inner | {table: weights, head: weights.copy()})
    checkpoint = open_checkpoint(path)
    assert sum(p.size for p in checkpoint.parameters.values()) == V * D + D * D
    assert [one for one in checkpoint.left_out if one.name == head] == [
        (head, f"{table} again, counted once")
    ]
    other = weights.copy()
    other[V - 1, D - 1] += 1
    path = write(tmp_path / "b", inner | {table: weights, head: other})
    assert sum(p.size for p in open_checkpoint(path).parameters.values()) == 2 * V * D + D * D


def test_a_head_that_config_says_is_not_tied_counts_whatever_it_holds(tmp_path):
    arrays = gpt(prefix="model.")
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    assert len(names(write(tmp_path / "a", arrays, tie_word_embeddings=False))) == 3
    assert len(names(write(tmp_path / "b", arrays, tie_word_embeddings=True))) == 2


@pytest.mark.parametrize("row", [0, 7, 12, V - 1])
def test_all_bits_are_compared(tmp_path, row):
    arrays = t5_parameters(tied=True)
    disk = hugging_face(arrays)
    disk["lm_head.weight"] = disk["shared.weight"].copy()
    disk["lm_head.weight"][row, 3] += 1
    folder = write_hugging_face(tmp_path / "a", disk)
    assert "decoder/logits_dense/kernel" in names(folder)


def test_large_arrays_are_compared_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("saturation.checkpoints.torch_names._COMPARE_BYTES", 100)
    weights = np.random.default_rng(0).random((V, D), np.float32)
    last = weights.copy()
    last[-1, -1] += 1
    path = write(tmp_path / "a", {"a.w": weights, "b.w": weights.copy(), "c.w": last})
    arrays = open_checkpoint(path)._arrays
    assert same_bits(arrays["a.w"], arrays["b.w"])
    assert not same_bits(arrays["a.w"], arrays["c.w"])


def test_a_trajectory_that_stores_a_tied_head_at_some_steps_has_one_set_of_parameters(tmp_path):
    for step in (0, 100, 200):
        arrays = gpt(step, prefix="model.")
        if step:
            arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
        write(tmp_path / f"step_{step}", arrays)
    assert len(shared_parameters(open_trajectory(tmp_path))) == 2


def test_a_head_that_only_begins_as_the_embedding_counts_at_every_step(tmp_path):
    for step in (0, 100, 200):
        arrays = gpt(step, prefix="model.")
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + np.float32(step)
        write(tmp_path / f"step_{step}", arrays)
    saturation.measure(open_trajectory(tmp_path), ["norms"], str(tmp_path / "run"))
    table = saturation.load_results(tmp_path / "run")
    chosen = table.query("metric == 'l2' and scope == 'lm_head/weight'")
    assert chosen["step"].tolist() == [0, 100, 200]


def test_two_names_that_become_one_are_refused_by_both(tmp_path):
    one = np.ones((2, 2), np.float32)
    path = write(tmp_path / "a", {"a.b.weight": one, "a/b.weight": one * 2})
    with pytest.raises(CheckpointFormatError, match=r"'a\.b\.weight' and 'a/b\.weight' are two"):
        open_checkpoint(path)
    tree = {"a/b": one, "a": {"b": one * 2}}
    (tmp_path / "b.msgpack").write_bytes(flax.serialization.to_bytes({"params": tree}))
    with pytest.raises(CheckpointFormatError, match=r"'a' > 'b' .*both would be called 'a/b'") as e:
        open_checkpoint(tmp_path / "b.msgpack")
    assert "'a/b'" in str(e.value)
