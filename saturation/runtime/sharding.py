"""Where arrays lie on several devices; the only file that builds a NamedSharding.

All devices, of all processes, form one mesh with two axes: sequences are split along `data`,
parameters along `model`, by rules on the names that the models give their axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from saturation.checkpoints.disk_array import Box
from saturation.errors import MeasureError
from saturation.runtime.processes import broadcast_from_first

DATA, MODEL = "data", "model"

# The models' own names of the axes that are split along `model`; no other is ever split.
SPLIT = frozenset({"vocab", "mlp", "joined_kv", "heads"})

# Of a device's memory: beside them a pass holds their float64 copies and the activations.
_PARAMETER_SHARE = 0.2


def spread_runs(runs: Shaped[Array, "runs ..."]) -> Shaped[Array, "runs ..."]:
    """Lay independent runs, stacked along the first axis, out over the devices.

    A jitted function that is vmapped over that axis then computes each device's runs there. As many
    devices are used as share the runs out evenly.

    Args:
      runs: an array with one entry a run, for instance a random key.
    """
    devices = jax.devices()
    used = next(n for n in range(len(devices), 0, -1) if len(runs) % n == 0)
    mesh = Mesh(np.array(devices[:used]), ("runs",))
    return jax.device_put(runs, NamedSharding(mesh, PartitionSpec("runs")))


def parse_mesh(text: str) -> dict[str, int]:
    """Return the sizes that `data=N,model=M` gives; either may be left out.

    Raises:
      MeasureError: the text says something else.

    >>> parse_mesh("data=4,model=2")
    {'data': 4, 'model': 2}
    """
    pairs = [re.fullmatch(rf"({DATA}|{MODEL})=([1-9]\d*)", part) for part in text.split(",")]
    sizes = {pair[1]: int(pair[2]) for pair in pairs if pair}
    if len(sizes) != len(pairs):
        raise MeasureError(f"--mesh takes data=N,model=M, such as data=4,model=2; found {text!r}.")
    return sizes


def make_mesh(sizes: Mapping[str, int] | None = None, nbytes: int = 0) -> Mesh:
    """Return the mesh of all devices.

    Args:
      sizes: of `data` and `model`; one that is not given follows from the number of devices. Where
        neither is, `model` is as small as lets the parameters fit, so 1 where a device holds them.
      nbytes: of the parameters in float32.

    Raises:
      MeasureError: the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    sizes = sizes or {MODEL: _fitting(count, nbytes)}
    data = sizes.get(DATA) or count // sizes[MODEL]
    model = sizes.get(MODEL) or count // sizes[DATA]
    if data * model != count:
        asked = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise MeasureError(
            f"The mesh {asked} does not share out the devices, of which there are {count}: "
            f"give --mesh {DATA}=N,{MODEL}=M with N·M = {count}."
        )
    return Mesh(mesh_utils.create_device_mesh((data, model)), (DATA, MODEL))


def _fitting(count: int, nbytes: int) -> int:
    """Return the smallest divisor of the number of devices that lets the parameters fit."""
    # Devices of one kind differ by a little in what they say, and all must choose one mesh.
    memory = broadcast_from_first(
        lambda: (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    )
    if not memory:
        return 1
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    return next((n for n in divisors if nbytes / n <= _PARAMETER_SHARE * memory), count)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis, a batch of sequences, is split."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def parameter_sharding(
    mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]
) -> NamedSharding:
    """Return the sharding of one parameter: its first axis that splits evenly is split.

    Args:
      mesh: as `make_mesh` returns it.
      axes: the logical names of the parameter's axes; those in `SPLIT` may be split.
      shape: of the parameter. Where nothing splits evenly, every device holds it whole.
    """
    parts = mesh.shape[MODEL]
    for number, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        if axis in SPLIT and size % parts == 0:
            return NamedSharding(mesh, PartitionSpec(*(None,) * number, MODEL))
    return replicated(mesh)


def place(
    shape: Sequence[int], sharding: NamedSharding, read: Callable[[Box], np.ndarray]
) -> jax.Array:
    """Return an array whose slices are read where they lie, by the process that holds them.

    Args:
      shape: of the whole array.
      sharding: where its slices lie.
      read: (a slice for each axis) -> that slice. Called once for each slice that this process's
        devices hold, however many of them hold it.
    """

    @cache
    def read_once(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        return read(tuple(slice(start, stop) for start, stop in bounds))

    def read_index(index: Box) -> np.ndarray:
        ranges = (part.indices(size) for part, size in zip(index, shape, strict=True))
        return read_once(tuple((start, stop) for start, stop, _ in ranges))

    return jax.make_array_from_callback(tuple(shape), sharding, cast(Any, read_index))
