from __future__ import annotations

import csv
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saturation
from saturation.errors import ConfigError, ResultsError, Stopped
from saturation.runtime.progress import Progress
from saturation.training import loop, step, store
from saturation.training.config import PretrainConfig
from saturation.training.loop import pretrain

STEPS = 40
LOG_HEAD = b"step,loss,perplexity,learning_rate,norm\n"


def _config(out, **changes):
    return PretrainConfig.model_validate(
        {
            "out": str(out),
            "steps": STEPS,
            "batch_size": 2,
            "model": {
                "emb_dim": 8,
                "num_heads": 2,
                "head_dim": 4,
                "mlp_dim": 16,
                "num_encoder_layers": 1,
                "num_decoder_layers": 1,
            },
            "objective": {"input_length": 24},
            "optimizer": {"warmup_steps": 10, "learning_rate": 0.5},
            "checkpoints": [2, 5, 20],
            **changes,
        }
    )


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Keep compiled updates for the other runs of this file, those in other processes included."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The trajectory of a run that nothing interrupted."""
    return pretrain(_config(tmp_path_factory.mktemp("finished") / "run"))


def _state(folder):
    """Every array of the last checkpoint, optimizer included, by name."""
    import orbax.checkpoint as ocp

    restored = ocp.StandardCheckpointer().restore(folder.resolve() / str(STEPS) / "default")
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(restored)
    }


def _assert_same_to_the_bit(first, second):
    one, other = _state(first), _state(second)
    assert one.keys() == other.keys()
    assert any("v_row" in name for name in one)
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert array.tobytes() == other[name].tobytes(), name
    assert (first / "log.csv").read_text() == (second / "log.csv").read_text()


def _rows(folder):
    with (folder / "log.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


# --- what a run leaves behind -------------------------------------------------------------------


def test_the_trajectory_opens_at_the_chosen_steps(finished):
    trajectory = saturation.open_trajectory(finished)
    assert trajectory.steps == (0, 2, 5, 20, 40)
    names = set(trajectory[0].parameters)
    assert "encoder/layers_0/attention/query/kernel" in names
    assert not any("opt_state" in name or name == "step" for name in names)


def test_step_0_is_the_initialisation(finished):
    query = saturation.open_trajectory(finished)[0].read("encoder/layers_0/mlp/wo/kernel")
    assert abs(np.std(query) * math.sqrt(16) - 1) < 0.4  # T5X: variance 1/fan_in
    scale = saturation.open_trajectory(finished)[0].read("encoder/encoder_norm/scale")
    assert (scale == 1).all()


def test_the_log_has_a_row_an_update_and_agrees_with_the_checkpoints(finished):
    rows = _rows(finished)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]), rel=1e-6)
        rate = 0.5 / math.sqrt(max(row["step"] - 1, 10))
        assert row["learning_rate"] == pytest.approx(rate, rel=1e-6)
    assert np.mean([r["loss"] for r in rows[-5:]]) < np.mean([r["loss"] for r in rows[:5]]) - 1
    checkpoint = saturation.open_trajectory(finished)[20]
    squares = [
        np.sum(np.square(checkpoint.read(n), dtype=np.float64)) for n in checkpoint.parameters
    ]
    assert rows[19]["norm"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-6)


def test_the_record_says_what_was_trained_on_what(finished):
    record = json.loads((finished / "pretrain.json").read_text())
    assert record["config"]["optimizer"]["warmup_steps"] == 10
    assert len(record["text"]["sha256"]) == 64
    assert record["vocabulary"] == "bytes"
    assert record["sessions"][0]["from_step"] == 0
    assert record["sessions"][0]["versions"]["jax"] == jax.__version__


def test_a_finished_run_is_left_as_it_is(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert pretrain(_config(finished)) == finished
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_fewer_rows_are_logged_when_asked(tmp_path):
    folder = pretrain(_config(tmp_path, steps=11, checkpoints=[], log_every=4))
    assert [row["step"] for row in _rows(folder)] == [4, 8, 11]


def test_bfloat16_is_arithmetic_only(tmp_path, finished):
    folder = pretrain(_config(tmp_path, dtype="bfloat16"))
    parameters = saturation.open_trajectory(folder)[STEPS].parameters
    assert {parameter.dtype for parameter in parameters.values()} == {np.dtype("float32")}
    losses = np.array([[row["loss"] for row in _rows(f)] for f in (folder, finished)])
    assert (losses[0] != losses[1]).any()
    np.testing.assert_allclose(losses[0, :5], losses[1, :5], rtol=0.05)


def test_progress_is_told_of_every_step(tmp_path, capsys):
    with Progress("Pretraining", "steps") as progress:
        pretrain(_config(tmp_path, steps=3, checkpoints=[]), progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("Pretraining: 3 of 3 steps")


# --- loss ---------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_targets_that_are_no_padding():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    targets = np.array([[1, 4, 0], [2, 0, 0]])
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    expected = -(log_p[0, 0, 1] + log_p[0, 1, 4] + log_p[1, 0, 2]) / 3
    assert float(step.cross_entropy(jnp.asarray(logits), targets)) == pytest.approx(
        expected, rel=1e-6
    )


# --- interruption -------------------------------------------------------------------------------


# A pretraining that waits after 30 steps, for the signal that ends it, however late it comes.
_TO_BE_KILLED = """
import json, sys, time
from saturation.training.config import PretrainConfig
from saturation.runtime.progress import Progress
from saturation.training import loop

class Held(Progress):
    def advance(self, amount, note=""):
        super().advance(amount, note)
        if self._done >= 30:
            time.sleep(600)

loop.SECONDS_BETWEEN_REPORTS = 0.0
config = PretrainConfig.model_validate(json.loads(sys.argv[1]))
loop.pretrain(config, Held("", "steps", quiet=True))
"""


def _start(out, variables):
    config = json.dumps(_config(out).model_dump(mode="json"))
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": os.pathsep.join([str(Path(saturation.__file__).parents[1]), *sys.path]),
    }
    return subprocess.Popen([sys.executable, "-c", _TO_BE_KILLED, config], env=environment)


def _wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended before the checkpoint appeared"
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, finished, compile_once):
    out = tmp_path / "run"
    for awaited in ("5", "20"):
        process = _start(out, compile_once)
        _wait_for(out / awaited, process)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (out / str(STEPS)).exists()
    pretrain(_config(out))
    assert saturation.open_trajectory(out).steps == (0, 2, 5, 20, 40)
    _assert_same_to_the_bit(out, finished)
    sessions = json.loads((out / "pretrain.json").read_text())["sessions"]
    assert sessions[0]["from_step"] == 0
    assert sessions[-1]["from_step"] == 20


class _StopAt(Progress):
    """Sends the process a signal once a number of steps was reported."""

    def __init__(self, steps, number):
        super().__init__("", "steps", quiet=True)
        self._left, self._number = steps, number

    def advance(self, amount, note=""):
        self._left -= amount
        if self._left <= 0:
            signal.raise_signal(self._number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, finished, monkeypatch, number):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_REPORTS", 0.0)
    handler = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped at step 13 of 40; the same command goes on"):
        pretrain(_config(tmp_path), _StopAt(13, number))
    assert signal.getsignal(number) is handler
    assert saturation.open_trajectory(tmp_path).steps == (0, 2, 5)
    pretrain(_config(tmp_path))
    record = json.loads((tmp_path / "pretrain.json").read_text())
    assert [session["from_step"] for session in record["sessions"]] == [0, 13]
    assert not (tmp_path / "resume").exists()
    _assert_same_to_the_bit(tmp_path, finished)


def test_a_run_outside_the_main_thread_needs_no_signals(tmp_path):
    config = _config(tmp_path, steps=1, checkpoints=[])
    thread = threading.Thread(target=pretrain, args=(config,))
    thread.start()
    thread.join()
    assert saturation.open_trajectory(tmp_path).steps == (0, 1)


def test_a_torn_row_of_the_log_is_dropped(tmp_path, finished):
    from saturation.training.folder import Log

    text = (finished / "log.csv").read_text()
    (tmp_path / "log.csv").write_text(text[:-3])
    Log(tmp_path, STEPS)
    assert (tmp_path / "log.csv").read_text() == text[: text.rindex("\n40,") + 1]


# --- bad input ----------------------------------------------------------------------------------


def test_a_folder_of_another_configuration_is_refused(finished):
    changed = _config(finished, optimizer={"warmup_steps": 11, "learning_rate": 0.5})
    message = r"holds another pretraining, with config\.optimizer\.warmup_steps = 10 where now it"
    with pytest.raises(ResultsError, match=message):
        pretrain(changed)


def test_a_folder_of_another_text_is_refused(finished, tmp_path):
    (tmp_path / "text.txt").write_text("something else " * 100)
    changed = _config(finished, text={"files": [str(tmp_path / "text.txt")]})
    with pytest.raises(ResultsError, match=r"config\.text\.files = \[\] where now"):
        pretrain(changed)


def test_checkpoints_of_unknown_origin_are_refused(tmp_path):
    (tmp_path / "100").mkdir()
    with pytest.raises(ResultsError, match=r"holds checkpoints but no pretrain\.json"):
        pretrain(_config(tmp_path))


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "pretrain.json").write_text("{")
    with pytest.raises(ResultsError, match="expected the record of a pretraining"):
        pretrain(_config(tmp_path))


@pytest.mark.parametrize("lost", [0, 20])
def test_a_finished_run_that_lost_a_checkpoint_says_so(tmp_path, finished, lost):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / str(lost))
    with pytest.raises(ResultsError, match=rf"of its checkpoints {lost} can no longer be found"):
        pretrain(_config(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("log.csv", b"step,loss\n", r"log.csv: .* \(line 1 is 'step,loss"),
        ("log.csv", LOG_HEAD + b"x,1,1,1,1\n", r"log.csv: .* \(line 2 is 'x,1"),
        ("log.csv", LOG_HEAD + b"1,1\n", r"log.csv: .* \(line 2 is '1,1"),
        ("log.csv", b"\xff\0", r"log.csv: .* is damaged"),
        ("pretrain.json", b"[]", r"pretrain.json: .* is damaged"),
        ("pretrain.json", b"{}", r"pretrain.json: .* is damaged"),
        ("pretrain.json", b"[" * 100_000, r"pretrain.json: .* is damaged"),
        ("pretrain.json", b"\xff", r"pretrain.json: .* is damaged"),
    ],
)
def test_a_damaged_log_or_record_is_one_sentence(tmp_path, finished, name, content, text):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultsError, match=text):
        pretrain(_config(tmp_path))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ResultsError, match=rf"{name}: expected the"):
        pretrain(_config(tmp_path))


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot be written \(Not a directory\)"):
        pretrain(_config(tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("UNKNOWN: write failed: OS error 28: No space left on device"),
    ],
)
def test_a_disk_that_fills_keeps_what_was_saved(tmp_path, finished, monkeypatch, error):
    save = store.ocp.CheckpointManager.save

    def failing(self, step, **settings):
        if step == 20:
            raise error
        return save(self, step, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(store.ocp.CheckpointManager, "save", failing)
        with pytest.raises(ResultsError, match=r"cannot be written \(No space left on device\)"):
            pretrain(_config(tmp_path))
    assert saturation.open_trajectory(tmp_path).steps == (0, 2, 5)
    pretrain(_config(tmp_path))
    _assert_same_to_the_bit(tmp_path, finished)


def test_a_damaged_checkpoint_says_which(tmp_path):
    pretrain(_config(tmp_path, steps=3, checkpoints=[]))
    for path in (tmp_path / "3" / "default").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    record = json.loads((tmp_path / "pretrain.json").read_text())
    record["config"]["steps"] = 4
    (tmp_path / "pretrain.json").write_text(json.dumps(record))
    with pytest.raises(ResultsError, match="the checkpoint of step 3 cannot be resumed from"):
        pretrain(_config(tmp_path, steps=4, checkpoints=[]))


def test_a_bucket_that_orbax_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="out: s3://bucket/run: a pretraining writes to a local"):
        pretrain(_config("s3://bucket/run"))
