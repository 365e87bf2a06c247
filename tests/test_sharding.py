"""Where arrays lie: the mesh, the rules for parameters, and who reads what."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from saturation.errors import MeasureError
from saturation.models import T5Config
from saturation.runtime import sharding
from saturation.runtime.sharding import (
    SPLIT,
    make_mesh,
    over_data,
    parameter_sharding,
    parse_mesh,
    place,
    replicated,
)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data=4,model=2", {"data": 4, "model": 2}),
        ("model=8", {"model": 8}),
        ("data=1", {"data": 1}),
    ],
)
def test_a_mesh_is_read_from_the_command_line(text, sizes):
    assert parse_mesh(text) == sizes


@pytest.mark.parametrize("text", ["", "8", "data=0", "batch=2", "data=2,data=4", "data=2,,model=4"])
def test_a_mesh_that_says_something_else_is_refused(text):
    with pytest.raises(MeasureError, match="--mesh takes data=N,model=M, such as data=4,model=2"):
        parse_mesh(text)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (None, (8, 1)),
        ({"data": 2}, (2, 4)),
        ({"model": 2}, (4, 2)),
        ({"data": 1, "model": 8}, (1, 8)),
    ],
)
def test_the_mesh_has_every_device_once(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.axis_names == ("data", "model")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("sizes", [{"data": 3}, {"model": 16}, {"data": 2, "model": 2}])
def test_a_mesh_that_leaves_devices_out_is_refused(sizes):
    with pytest.raises(MeasureError, match=r"of which there are 8: give .* with N·M = 8"):
        make_mesh(sizes)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(("nbytes", "model"), [(20, 1), (21, 2), (80, 4), (161, 8)])
def test_a_model_too_large_for_a_device_is_split(monkeypatch, nbytes, model):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 100}

    monkeypatch.setattr(sharding.jax, "local_devices", lambda: [Device()])
    assert make_mesh(nbytes=nbytes).shape["model"] == model


@pytest.mark.parametrize("name", ["t5-base", "t5-v1_1-small", "umt5-small"])
def test_every_axis_of_every_parameter_has_a_name(name):
    config = T5Config.published(name)
    axes, shapes = config.parameter_axes(), config.parameter_shapes()
    assert {name: len(names) for name, names in axes.items()} == {
        name: len(shape) for name, shape in shapes.items()
    }
    assert {axis for names in axes.values() for axis in names} == SPLIT | {
        "embed",
        "relpos_buckets",
    }


@pytest.mark.usefixtures("eight_devices")
def test_a_parameter_is_split_along_one_axis_that_divides_evenly():
    mesh = make_mesh({"data": 2, "model": 4})
    cases = {
        (("embed", "joined_kv"), (6, 8)): (None, "model"),
        (("joined_kv", "embed"), (8, 6)): ("model",),
        (("vocab", "embed"), (32, 4)): ("model",),
        (("vocab", "embed"), (33, 4)): (),
        (("heads", "relpos_buckets"), (4, 32)): ("model",),
        (("heads", "relpos_buckets"), (6, 32)): (),
        (("embed",), (8,)): (),
    }
    for (axes, shape), spec in cases.items():
        assert parameter_sharding(mesh, axes, shape).spec == PartitionSpec(*spec), (axes, shape)


@pytest.mark.usefixtures("eight_devices")
def test_each_slice_is_read_once_and_lies_where_it_belongs():
    mesh = make_mesh({"data": 2, "model": 4})
    whole = np.arange(48, dtype=np.float32).reshape(8, 6)
    for where, slices in (
        (parameter_sharding(mesh, ("mlp", "embed"), whole.shape), 4),
        (over_data(mesh), 2),
        (replicated(mesh), 1),
    ):
        read = []

        def slice_of(box, read=read):
            read.append(box)
            return whole[box]

        array = place(whole.shape, where, slice_of)
        assert len(read) == slices
        np.testing.assert_array_equal(array, whole)
        for shard in array.addressable_shards:
            assert shard.data.size == whole.size // slices
            np.testing.assert_array_equal(shard.data, whole[shard.index])
