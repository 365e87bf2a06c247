"""The driver of activation measures: one answer, in whatever pieces it is computed."""

from __future__ import annotations

import dataclasses
import threading

import jax
import numpy as np
import pytest
from activation_cases import (
    FORMS,
    QUICK,
    MadeCheckpoint,
    asked_of,
    case,
    checkpoint_and_tokens,
    completed,
    observe_stages,
)
from made_trajectory import write_trajectory
from t5_reference import nested, random_parameters

import saturation
from saturation.errors import MeasureError
from saturation.measures.heads.measure import HEADS
from saturation.measures.homogeneity.measure import HOMOGENEITY
from saturation.measures.saturation.measure import SATURATION
from saturation.measures.scan.measure import SCAN
from saturation.measures.smoothing.measure import SMOOTHING
from saturation.models.base import config_of_parameters
from saturation.runs.activations import observe_checkpoint
from saturation.runs.settings import ActivationSettings
from saturation.runs.stage_pass import StagePass
from saturation.runs.stage_programs import StagePrograms
from saturation.runtime.progress import Progress


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(StagePrograms, "compiler_options", QUICK)


@pytest.mark.usefixtures("eight_devices")
def test_neither_batch_size_nor_mesh_matter_and_sums_are_float64():
    """On 8 devices, each with a row, of which most are padding; and on 8 that split the model."""
    checkpoint, tokens = checkpoint_and_tokens()
    found = [
        observe_checkpoint(
            checkpoint, (HEADS,), ActivationSettings(tokens, batch_size=size, mesh=mesh)
        )
        for size, mesh in ((1, None), (3, {"model": 8}), (2, {"data": 2, "model": 4}))
    ]
    for scope, statistics in found[0]["heads"].items():
        for name, value in statistics.items():
            assert value.dtype == np.float64
            for other in found[1:]:
                np.testing.assert_allclose(other["heads"][scope][name], value, rtol=1e-5, atol=1e-5)
    assert found[0]["heads"]["encoder/layers_0/attention/head_0"]["tokens"] == 15


@pytest.mark.usefixtures("eight_devices")
def test_a_process_reads_each_slice_of_a_parameter_once():
    checkpoint, tokens = checkpoint_and_tokens()
    observe_checkpoint(checkpoint, (HEADS,), ActivationSettings(tokens, mesh={"model": 8}))
    assert checkpoint.elements == sum(array.size for array in checkpoint.flat.values())


def test_the_output_head_is_not_read_where_nobody_looks_at_logits():
    config, flat, *_ = case("umt5")
    one_pass = StagePass(config, (SCAN,), ActivationSettings(checkpoint_and_tokens()[1]))
    read = [name for stage in one_pass.stages for name in stage.parameters.values()]
    assert set(flat) - set(read) == {"decoder/logits_dense/kernel"}
    assert len(read) == len(set(read))


def deeper(layers):
    """A T5 of so many layers a stack, with nothing in the weights that sets its layers apart."""
    config = dataclasses.replace(
        FORMS["v1_0"], num_encoder_layers=layers, num_decoder_layers=layers
    )
    return config, random_parameters(config, 0, 0.3)


def passed(config, flat, measures=(SATURATION, HEADS), **settings):
    """The pass, and what it observes of three sequences."""
    checkpoint, tokens = MadeCheckpoint(config, flat), checkpoint_and_tokens()[1]
    one_pass = StagePass(config, measures, ActivationSettings(tokens, **settings))
    parameters = (one_pass.place(checkpoint, stage) for stage in one_pass.stages)
    return one_pass, one_pass.observe(parameters, Progress("", "B", quiet=True))


@pytest.mark.slow  # compiles dozens of programs
def test_the_number_of_programs_does_not_grow_with_depth():
    three, five = (passed(*deeper(layers))[0] for layers in (3, 5))
    assert three.programs_compiled == five.programs_compiled > 0


@pytest.mark.slow  # compiles dozens of programs
def test_stage_by_stage_gives_what_one_program_of_the_whole_model_gives():
    config, flat = deeper(2)
    measures = (SATURATION, HEADS, HOMOGENEITY, SMOOTHING)
    _, found = passed(config, flat, measures, joint_sequences=3)
    tokens = checkpoint_and_tokens()[1]
    params = nested({name: array.astype(np.float32) for name, array in flat.items()})
    tables = tokens.encoder_input_tokens, tokens.decoder_input_tokens
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        whole = jax.jit(
            lambda params: observe_stages(measures, asked_of(config, *tables), params),
            compiler_options=QUICK,
        )(params)
        expected = {m.name: completed(m, whole[m.name]) for m in measures}
    for name, scopes in expected.items():
        assert found[name].keys() == scopes.keys()
        for scope, sums in scopes.items():
            for statistic, value in sums.items():
                np.testing.assert_allclose(
                    found[name][scope][statistic], value, 1e-5, 1e-5, err_msg=f"{scope} {statistic}"
                )


def test_the_next_stage_and_the_next_checkpoint_are_read_while_one_is_computed_on(
    tmp_path, monkeypatch
):
    trajectory = saturation.open_trajectory(write_trajectory(tmp_path / "t", (0, 1), vocab=12))
    _, tokens = checkpoint_and_tokens()
    settings = ActivationSettings(tokens, batch_size=4)
    begun, place, through = [], StagePass.place, StagePass._through
    following = threading.Condition()
    waited = []

    def placed(self, checkpoint, stage, at_once):
        with following:
            begun.append((checkpoint.step, stage.name))
            following.notify_all()
        return place(self, checkpoint, stage, at_once)

    def moved(self, programs, stage, *args):
        with following:
            number = len(waited) + 1
            total = 2 * len(self.stages)
            waited.append(following.wait_for(lambda: len(begun) > min(number, total - 1), 60))
        through(self, programs, stage, *args)

    monkeypatch.setattr(StagePass, "place", placed)
    monkeypatch.setattr(StagePass, "_through", moved)
    saturation.measure(trajectory, ["scan"], str(tmp_path / "run"), activations=settings)
    assert all(waited)
    steps = [step for step, _ in begun]
    assert steps == sorted(steps)
    assert len(begun) == len(waited)


def test_a_mesh_that_does_not_fit_is_refused_before_a_run_is_begun(tmp_path):
    trajectory = saturation.open_trajectory(write_trajectory(tmp_path / "t", (0,)))
    _, tokens = checkpoint_and_tokens()
    settings = ActivationSettings(tokens, mesh={"data": 3})
    with pytest.raises(MeasureError, match="data=3 does not share out the devices"):
        saturation.measure(trajectory, ["heads"], str(tmp_path / "run"), activations=settings)
    assert not (tmp_path / "run").exists()


def test_tokens_outside_the_vocabulary_are_refused():
    checkpoint, tokens = checkpoint_and_tokens()
    tokens.encoder_input_tokens[0, 0] = 12
    with pytest.raises(
        MeasureError, match=r"token 12, and the model in made has a vocabulary of 12"
    ):
        ActivationSettings(tokens).refuse_model(
            config_of_parameters(checkpoint.parameters), checkpoint.path
        )
