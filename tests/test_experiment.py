"""`saturation run`: what an experiment file says is what the other commands would have done."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_trajectory import write_trajectory

import saturation
from saturation.config.files import load_config
from saturation.errors import ConfigError
from saturation.experiment import ExperimentConfig, run_experiment
from saturation.models.base import LIMITS
from saturation.runs.options import activation_options
from saturation.runs.settings import ActivationSettings, read_settings
from saturation.text.sequences import read_tokens


def written(folder: Path, **keys: object) -> ExperimentConfig:
    places = {"out": str(folder / "run"), "report": str(folder / "figures")}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**places, **keys}))
    return load_config(path, None, ExperimentConfig)


def test_measures_of_activations_are_taken_on_the_tokens_the_file_names(tmp_path: Path) -> None:
    trajectory, tokens = write_trajectory(tmp_path / "t"), tmp_path / "tokens.jsonl"
    tokens.write_text("[3, 1, 4, 1, 5]\n[9, 2, 6]\n")
    config = written(
        tmp_path,
        trajectory=str(trajectory),
        measures=["norms", "saturation"],
        activations={"tokens": str(tokens), "limits": ["attention"], "length": 4},
        page=str(tmp_path / "page.html"),
    )
    said = run_experiment(config)
    assert f"Figures: {tmp_path / 'figures'}" in said
    assert "<html" in (tmp_path / "page.html").read_text()[:1000]
    described = json.loads((tmp_path / "run" / "run.json").read_text())["activations"]
    assert (described["tokens"]["source"], described["limits"]) == (str(tokens), ["attention"])
    assert described["tokens"]["encoder_length"] == 4
    saturation.measure(
        saturation.open_trajectory(trajectory),
        ["norms", "saturation"],
        str(tmp_path / "other"),
        activations=ActivationSettings(read_tokens(str(tokens), length=4), limits=("attention",)),
    )
    pd.testing.assert_frame_equal(
        saturation.load_results(tmp_path / "run"), saturation.load_results(tmp_path / "other")
    )


def test_without_the_section_they_are_taken_on_what_the_command_line_takes_them_on() -> None:
    config = ExperimentConfig(out="run", report="figures", trajectory="t")
    assert config.activations == activation_options()
    assert config.activations.limits == LIMITS
    by_file = read_settings(["heads", "scan"], options=config.activations)
    by_default = read_settings(["heads", "scan"])
    assert by_file is not None
    assert by_default is not None
    assert by_file.fingerprint() == by_default.fingerprint()
    assert by_file.describe_corpus() == by_default.describe_corpus()


def test_tokens_that_cannot_be_read_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = written(
        tmp_path,
        pretrain={"out": str(tmp_path / "made"), "steps": 1},
        measures=["heads"],
        activations={"tokens": str(tmp_path / "absent.jsonl")},
    )
    with pytest.raises(ConfigError, match=r"absent\.jsonl: the tokens cannot be read: No such"):
        run_experiment(config)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"token": "x"}, r"activations: there is no key 'token'; the nearest is 'tokens'"),
        ({"mesh": {"rows": 2}}, r"activations\.mesh"),
        ({"scale": 0}, r"activations\.scale: input should be greater than 0, got 0"),
    ],
)
def test_what_the_section_cannot_say_is_one_sentence(tmp_path: Path, section, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        written(tmp_path, trajectory="t", activations=section)


def test_a_sequence_of_padding_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text("[3, 1]\n[0, 0]\n")
    with pytest.raises(ConfigError, match=r"line 2: the encoder's ids are all 0, which is padding"):
        read_tokens(str(path))
