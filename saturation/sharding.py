"""Where arrays lie on several devices; the only file that builds a NamedSharding."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped


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
