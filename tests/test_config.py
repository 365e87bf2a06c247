from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturation.config.files import load_config
from saturation.errors import ConfigError
from saturation.experiment import ExperimentConfig
from saturation.training.config import CheckpointConfig, PretrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("*.yaml"))  # configs/trajectories has a form and tests of its own


def _write(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_file_in_configs_is_an_experiment_with_a_header(path):
    config = load_config(path, None, ExperimentConfig)
    if config.pretrain is not None:
        assert config.pretrain.checkpoints.chosen(config.pretrain.steps)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Cost:" in line for line in header)
    assert any("Expected:" in line for line in header)
    assert any(f"configs/{path.name}" in line for line in header)


def test_an_override_is_read_as_yaml_and_reaches_its_section(tmp_path):
    path = _write(tmp_path, "out: r\nsteps: 10\noptimizer: {learning_rate: 0.1}\n")
    overrides = {"optimizer.learning_rate": "1e-3", "checkpoints": "[2, 4]", "model.emb_dim": "8"}
    config = load_config(path, overrides, PretrainConfig, "pretrain")
    assert config.optimizer.learning_rate == 1e-3
    assert config.checkpoints.chosen(10) == (0, 2, 4, 10)
    assert config.model.emb_dim == 8


def test_a_pretraining_is_taken_from_an_experiment(tmp_path):
    path = _write(tmp_path, "out: r\nreport: f\npretrain: {out: t, steps: 10}\n")
    assert load_config(path, {"steps": "20"}, PretrainConfig, "pretrain").steps == 20
    assert load_config(path, {"pretrain.steps": "20"}, ExperimentConfig).pretrain.steps == 20


BAD = {
    "out: r\nstepps: 10\n": "there is no key 'stepps'; the nearest is 'steps'",
    "out: r\nsteps: 10\noptimizer: {lerning_rate: 1}\n": (
        "optimizer: there is no key 'lerning_rate'; the nearest is 'learning_rate'"
    ),
    "out: r\n": "the key 'steps' is missing",
    "out: r\nsteps: many\n": "steps: input should be a valid integer",
    "out: r\nsteps: 0\n": "steps: input should be greater than or equal to 1, got 0",
    "out: r\nsteps: 10\nobjective: {noise_density: 15}\n": (
        "objective.noise_density: input should be less than 1, got 15"
    ),
    "out: r\nsteps: 10\ncheckpoints: {every: 2, log_spaced: 3}\n": (
        "checkpoints: give exactly one of 'every', 'log_spaced', 'at'"
    ),
    "out: r\nsteps: 10\ndtype: float16\n": "dtype: input should be 'float32' or 'bfloat16'",
    "- out\n": "a configuration is a mapping of keys to values",
    "out: r\nsteps: [1\n": "(line 3): the configuration is not valid YAML",
    "out: !!python/object/apply:os.getcwd []\n": "the configuration is not valid YAML",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=list(BAD.values()))
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, text, message):
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path, None, PretrainConfig, "pretrain")
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"absent\.yaml: the configuration cannot be read: No such"
    ):
        load_config(tmp_path / "absent.yaml", None, ExperimentConfig)


@pytest.mark.parametrize("extra", ["", "trajectory: t\npretrain: {out: t, steps: 1}\n"])
def test_an_experiment_has_exactly_one_source(tmp_path, extra):
    path = _write(tmp_path, f"out: r\nreport: f\n{extra}")
    with pytest.raises(ConfigError, match="give either 'pretrain' or 'trajectory', and not both"):
        load_config(path, None, ExperimentConfig)


def test_an_override_of_something_inside_a_value_is_refused(tmp_path):
    path = _write(tmp_path, "out: r\nsteps: 10\n")
    with pytest.raises(ConfigError, match=r"--set steps\.x: 'steps' holds a value"):
        load_config(path, {"steps.x": "1"}, PretrainConfig, "pretrain")
    with pytest.raises(ConfigError, match=r"--set steps=\[1: the value is not valid YAML"):
        load_config(path, {"steps": "[1"}, PretrainConfig, "pretrain")


@given(st.integers(2, 60), st.data())
def test_log_spaced_checkpoints_are_as_many_as_asked_and_spread_out(steps, data):
    count = data.draw(st.integers(2, steps + 1))
    chosen = CheckpointConfig(log_spaced=count).chosen(steps)
    assert len(set(chosen)) == count
    assert (chosen[0], chosen[-1]) == (0, steps)
    gaps = [b - a for a, b in pairwise(chosen)]
    assert all(b >= a - 1 for a, b in pairwise(gaps))


def test_checkpoints_every_so_many_steps_end_with_the_last():
    assert CheckpointConfig(every=4).chosen(10) == (0, 4, 8, 10)


def test_checkpoints_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"checkpoints\.log_spaced: 12 are asked for, of 11"):
        CheckpointConfig(log_spaced=12).chosen(10)
    with pytest.raises(ConfigError, match=r"checkpoints\.at: 11 is beyond steps = 10"):
        CheckpointConfig(at=(1, 11)).chosen(10)
