"""What `run.json` says of a run that a command begins."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from saturation._package import __version__
from saturation.measures.base import Measure
from saturation.models.base import described_if_known
from saturation.results.seal import LAYOUT
from saturation.results.state import IDENTITY
from saturation.trajectory.constants import constants

if TYPE_CHECKING:
    from saturation.checkpoints.base import LeftOut, Parameter
    from saturation.trajectory.trajectory import Trajectory

# What is read for a part, where it can be: writing one takes as long as reading some 10 MB.
READ_FOR_PART = 512 * 2**20
BUNDLE_BYTES = 32 * 2**20
# Of all that is not large itself, so that shards are alike and a kill loses little.
FEWEST_BUNDLES, MOST_BUNDLES = 8, 32


def describe_run(
    trajectory: Trajectory, measures: Sequence[Measure], parameters: Mapping[str, Parameter]
) -> dict[str, Any]:
    """Return `run.json`: what is measured, of what, by which code, on which device."""
    steps = trajectory.steps
    return {
        "layout": LAYOUT,
        "trajectory": trajectory.path,
        "format": trajectory[steps[0]].format,
        **what_is_measured(trajectory, measures, parameters),
        "identity": {str(step): known for step, known in trajectory.fingerprints().items()},
        "identity_of": IDENTITY,
        "left_out": [list(one) for one in _left_out(trajectory)],
        "environment": _environment(),
    }


def what_is_measured(
    trajectory: Trajectory, measures: Sequence[Measure], parameters: Mapping[str, Parameter]
) -> dict[str, Any]:
    """Return what of `run.json` says what there is to do; for it no array needs to be read."""
    steps = trajectory.steps
    return {
        "steps": list(steps),
        "identity": {},
        "measures": [measure.name for measure in measures],
        "versions": {measure.name: measure.version for measure in measures},
        "arrays": _describe_arrays(parameters),
        "bundles": {key: list(names) for key, names in bundles(parameters, len(steps)).items()},
        **described_if_known(trajectory[steps[0]]),
    }


def _left_out(trajectory: Trajectory) -> list[LeftOut]:
    """Return what of the first checkpoint is no parameter, and why."""
    first = trajectory[trajectory.steps[0]]
    return [*first.left_out, *constants(trajectory, first.parameters)]


def _environment() -> dict[str, str | int]:
    import jax
    import numpy as np

    from saturation.runs.reduce import accumulation

    device = jax.local_devices()[0]
    return {
        "saturation": __version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "device": f"{device.device_kind} ({device.platform})",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "accumulation": accumulation(device.platform),
    }


def version_text() -> str:
    """Return what `saturation --version` prints: versions, platform, and the devices JAX sees."""
    import jax
    import numpy as np

    try:
        found = [f"{device.device_kind} ({device.platform})" for device in jax.devices()]
        devices = ", ".join(f"{found.count(one)} × {one}" for one in dict.fromkeys(found))
    except RuntimeError as error:  # a driver that is there and does not start
        devices = f"none that JAX can use ({error})"
    return (
        f"saturation {__version__}\n"
        f"jax {jax.__version__}, jaxlib {version('jaxlib')}, numpy {np.__version__}\n"
        f"python {platform.python_version()}, {platform.platform()}\n"
        f"devices: {devices}"
    )


def bundles(arrays: Mapping[str, Parameter], steps: int) -> dict[str, tuple[str, ...]]:
    """Return the arrays that share a part on disk, {the first one's name: their names}.

    A part costs a millisecond to write and many to fetch from a bucket, so that neighbours share
    one up to 32 MB, or what makes 512 MB at that many steps; but no more than an 8th of what arrays
    that are smaller than that have together, or a 32nd where there is much to read: what one shard,
    or a kill, can have less of.
    """
    sizes = [parameter.nbytes for parameter in arrays.values()]
    whole = sum(sizes)
    number = min(max(whole * steps // READ_FOR_PART, FEWEST_BUNDLES), MOST_BUNDLES)
    shared = sum(size for size in sizes if size <= whole // number)
    limit = min(max(BUNDLE_BYTES, READ_FOR_PART // steps), shared // number)
    found: list[list[str]] = []
    room = -1
    for name, parameter in arrays.items():
        room -= parameter.nbytes
        if room < 0:
            found.append([])
            room = limit - parameter.nbytes
        found[-1].append(name)
    return {names[0]: tuple(names) for names in found}


def _describe_arrays(parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    return {
        name: {
            "shape": list(parameter.shape),
            "dtype": str(parameter.dtype),
            "fan_in": parameter.fan_in,
        }
        for name, parameter in parameters.items()
    }
