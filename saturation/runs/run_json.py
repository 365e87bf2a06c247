"""What `run.json` says of a run, and whether a command may add to a run that is there."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from saturation._package import __version__
from saturation.errors import ResultsError
from saturation.measures.base import Measure
from saturation.results.folder import RunFolder
from saturation.results.parts import IDENTITY, former_measures, refuse_other_versions, unrecorded
from saturation.results.seal import LAYOUT
from saturation.results.settings import comparable, flat
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
    trajectory: Trajectory, measures: Sequence[Measure], parameters: dict[str, Parameter]
) -> dict[str, Any]:
    """Return `run.json`: what is measured, of what, by which code, on which device."""
    steps = trajectory.steps
    bundled = bundles(parameters, len(steps))
    return {
        "layout": LAYOUT,
        "trajectory": trajectory.path,
        "format": trajectory[steps[0]].format,
        "steps": list(steps),
        "identity": {str(step): known for step, known in trajectory.fingerprints().items()},
        "identity_of": IDENTITY,
        "measures": [measure.name for measure in measures],
        "versions": {measure.name: measure.version for measure in measures},
        "arrays": _describe_arrays(parameters),
        "left_out": [list(one) for one in _left_out(trajectory)],
        "bundles": {key: list(names) for key, names in bundled.items()},
        "environment": _environment(),
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


def join_run(folder: RunFolder, asked: dict[str, Any], trajectory: Trajectory) -> dict[str, Any]:
    """Write `run.json`, or extend the one that is there, and return it.

    A run can be asked for more measures, and for more steps behind the ones it has.

    Raises:
      ResultsError: the folder holds the run of another trajectory, or of other steps or arrays.
    """
    found = folder.read_description()
    if found is None:
        folder.write_run_json(asked)
        return asked
    refuse_other_versions(folder, found)
    _refuse_former_identity(folder, found)
    _refuse_other_trajectory(folder, found, asked["identity"], trajectory)
    refuse_other_arrays(folder, found, asked["steps"], asked["arrays"])
    _refuse_former_measures(folder, found)
    for key, what in (
        ("activations", "tokens or settings"),
        ("corpus", "common and distinct tokens"),
    ):
        if key in found and key in asked:
            _refuse_other_settings(folder, what, found[key], asked[key])
    joined = {
        **asked,
        **found,
        "steps": max(found["steps"], asked["steps"], key=len),
        "identity": {**asked["identity"], **found["identity"]},
        "measures": list(dict.fromkeys([*found["measures"], *asked["measures"]])),
        "versions": {
            **dict.fromkeys(found["measures"], 1),
            **found.get("versions", {}),
            **asked["versions"],
        },
    }
    if joined != found:
        folder.write_run_json(joined)
    return joined


def _refuse_former_measures(folder: RunFolder, found: Mapping[str, Any]) -> None:
    former = former_measures(found)
    if former:
        raise ResultsError(
            f"{folder.path} holds what another version of a measure wrote ({former}), and numbers "
            "of two versions are not mixed. Choose another --out."
        )


def _refuse_former_identity(folder: RunFolder, found: Mapping[str, Any]) -> None:
    if lacking := unrecorded(found):
        raise ResultsError(
            f"{folder.path}: {lacking}, so that nothing can be added to it; measure into a new "
            "folder with another --out."
        )


def _refuse_other_trajectory(
    folder: RunFolder, found: dict[str, Any], known: Mapping[str, str], trajectory: Trajectory
) -> None:
    for step, expected in found["identity"].items():
        if step in known and known[step] != expected:
            raise ResultsError(
                f"{folder.path} holds the run of another trajectory, {found['trajectory']}: its "
                f"checkpoint {step} is not the one in {trajectory.path}. Choose another --out."
            )


def refuse_other_arrays(
    folder: RunFolder, found: dict[str, Any], steps: Sequence[int], arrays: Mapping[str, Any]
) -> None:
    """Raise `ResultsError` where a run is of other arrays, or of steps that these do not go on."""
    have, want = found["steps"], list(steps)
    if have[: len(want)] != want and want[: len(have)] != have:
        raise ResultsError(
            f"{folder.path} was measured at steps {_span(have)}, which the selected {_span(want)} "
            "do not continue; choose another --out, or the same --steps."
        )
    if list(found["arrays"]) != list(arrays):
        raise ResultsError(
            f"{folder.path} was measured over {len(found['arrays'])} arrays, and this command asks "
            f"for {len(arrays)}; choose another --out, or the same --common-arrays."
        )


def _refuse_other_settings(
    folder: RunFolder, what: str, found: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Raise where numbers would differ; the same ids may come from files of other names."""
    if comparable(found) != comparable(asked):
        have, want = flat(found), flat(asked)
        differ = [key for key in {**have, **want} if have.get(key) != want.get(key)]
        said = (
            f"{key} {have.get(key, 'unknown')} there, {want.get(key, 'unknown')} here"
            for key in differ
        )
        raise ResultsError(
            f"{folder.path} was measured on other {what} than this command's: {'; '.join(said)}. "
            "Choose another --out, or the same ones."
        )


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]} … {steps[-1]} ({len(steps)} of them)"


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


def _describe_arrays(parameters: dict[str, Parameter]) -> dict[str, Any]:
    return {
        name: {
            "shape": list(parameter.shape),
            "dtype": str(parameter.dtype),
            "fan_in": parameter.fan_in,
        }
        for name, parameter in parameters.items()
    }
