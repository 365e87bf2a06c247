"""The driver of activation measures: whatever the batch size, one checkpoint has one answer."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pandas as pd
import pytest
from activation_cases import checkpoint_and_tokens
from made_trajectory import write_trajectory

import saturation
from saturation.errors import MeasureError
from saturation.measures.heads.measure import HEADS
from saturation.runs import activations as run_activations
from saturation.runs.activations import observe_checkpoint
from saturation.runs.settings import ActivationSettings


@pytest.mark.usefixtures("eight_devices")
def test_neither_batch_size_nor_mesh_matter_and_sums_are_float64():
    """On 8 devices, each with a row, of which most are padding; and on 8 that split the model."""
    checkpoint, tokens = checkpoint_and_tokens()
    found = [
        observe_checkpoint(checkpoint, (HEADS,), ActivationSettings(tokens, size, mesh=mesh))
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


def test_arrays_are_read_at_a_time_and_the_next_checkpoint_while_one_is_computed_on(
    tmp_path, monkeypatch
):
    trajectory = saturation.open_trajectory(write_trajectory(tmp_path / "t", (0, 1, 2), vocab=12))
    _, tokens = checkpoint_and_tokens()
    settings = ActivationSettings(tokens, batch_size=4)
    saturation.measure(trajectory, ["heads"], str(tmp_path / "alone"), activations=settings)

    read, observed = run_activations._Pass.place, run_activations.observe
    others = {step: threading.Event() for step in trajectory.steps}
    seen = []

    def place(self, checkpoint, at_once):
        others[checkpoint.step].set()
        return read(self, checkpoint, at_once)

    def observe(*args):
        following = others.get(len(seen) + 1)
        seen.append(following is None or following.wait(timeout=60))
        return observed(*args)

    two = threading.Barrier(2)
    each = run_activations.map_in_threads

    def each_in_pairs(action, items, at_once):
        assert at_once > 2
        paired = itertools.count()

        def met(item):
            if next(paired) < 2:
                two.wait(timeout=60)
            return action(item)

        return each(met, items, at_once)

    monkeypatch.setattr(run_activations._Pass, "place", place)
    monkeypatch.setattr(run_activations, "observe", observe)
    monkeypatch.setattr(run_activations, "map_in_threads", each_in_pairs)
    trajectory.remote = True
    saturation.measure(trajectory, ["heads"], str(tmp_path / "ahead"), activations=settings)
    assert seen == [True, True, True]
    tables = [saturation.load_results(str(tmp_path / run)) for run in ("alone", "ahead")]
    pd.testing.assert_frame_equal(*tables)


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
        ActivationSettings(tokens).refuse_other_models(checkpoint.parameters, checkpoint.path)
