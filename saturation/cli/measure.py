"""The command `saturation measure`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saturation.cli.options import (
    JsonOption,
    NamesOption,
    StepsOption,
    TrajectoryArgument,
    activation_values,
)
from saturation.cli.output import print_result, progress_of
from saturation.config.options import comma_separated
from saturation.runtime.signals import stop_requested

if TYPE_CHECKING:
    from saturation.runs.plan import Shard
    from saturation.trajectory.trajectory import Trajectory


def measure_trajectory(
    context: typer.Context,
    trajectory: TrajectoryArgument,
    measures: Annotated[
        str, typer.Option("--measures", metavar="NAME[,NAME…]", help="See `saturation measures`.")
    ],
    out: Annotated[str, typer.Option("--out", metavar="RUN", help="Folder or URL to write to.")],
    steps: StepsOption = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="Do one part of N, from 0.")
    ] = "0/1",
    common_arrays: Annotated[
        bool,
        typer.Option("--common-arrays", help="Where checkpoints differ, take what they share."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read, and read nothing.")
    ] = False,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="Work as one of several processes, which JAX finds: srun, mpirun, a TPU pod.",
        ),
    ] = False,
    names: NamesOption = "canonical",
    as_json: JsonOption = False,
) -> None:
    """Measure a trajectory into a run folder; an interrupted run resumes where it stopped."""
    from saturation.runs.plan import Shard
    from saturation.trajectory.trajectory import open_trajectory

    part, asked = Shard.parse(shard), comma_separated(measures)
    if dry_run:
        _plan(open_trajectory(trajectory, steps, names), asked, out, part, common_arrays, as_json)
        return

    from saturation.cli.text import measured_text
    from saturation.runs.measure import measure
    from saturation.runs.settings import read_settings
    from saturation.runtime.processes import is_first, join, on_every_process
    from saturation.runtime.tuning import compute_on_calling_thread

    compute_on_calling_thread()
    options = activation_values(context.obj)
    if distributed:
        join()
    opened = on_every_process(lambda: open_trajectory(trajectory, steps, names))
    settings = on_every_process(lambda: read_settings(asked, trajectory=opened, options=options))
    quiet = as_json or not is_first()
    with stop_requested() as stop, progress_of("Measuring", "B", quiet) as progress:
        outcome = measure(opened, asked, out, part, common_arrays, settings, progress, stop)
    if is_first():
        print_result(outcome.to_json() if as_json else measured_text(outcome, out, asked))
    outcome.refuse_nonfinite(out)


def _plan(
    opened: Trajectory,
    measures: tuple[str, ...],
    out: str,
    part: Shard,
    common_arrays: bool,
    as_json: bool,
) -> None:
    """Print what would be read."""
    from saturation.cli.text import planned_text
    from saturation.runs.plan import planned_work

    work = planned_work(opened, measures, out, part, common_arrays)
    print_result(work if as_json else planned_text(work))
