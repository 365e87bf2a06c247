"""Submit a measurement to Slurm from Python, by submitit: an array of tasks, and their report.

    python scripts/slurm/submit.py TRAJECTORY OUT --tasks 8 --set slurm_partition=gpu

Needs the extra `cluster` (pip install '.[cluster]'). A task that is preempted, or reaches its time
limit, is submitted again and computes what is missing; the report starts when all have ended well.
`--cluster local` runs the same here, without Slurm.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import submitit


@dataclass(frozen=True)
class MeasureShard:
    """One task of the array, by arrays or by steps as `--shard` takes them."""

    trajectory: str
    out: str
    measures: tuple[str, ...]
    index: int
    count: int
    tokens: str = "builtin"
    vocabulary: str | None = None

    def __call__(self) -> dict[str, object]:
        """Measure what the run lacks of this shard; return what was done."""
        import saturation
        from saturation.runs.plan import Shard
        from saturation.runs.settings import read_settings

        trajectory = saturation.open_trajectory(self.trajectory)
        outcome = saturation.measure(
            trajectory,
            self.measures,
            self.out,
            Shard(self.index, self.count),
            activations=read_settings(
                self.measures,
                trajectory=trajectory,
                tokens=self.tokens,
                vocabulary=self.vocabulary,
            ),
        )
        return outcome.to_json()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit queues in place of a task that is preempted: the same task.

        Called by submitit's handler of the signal, which may come twice within milliseconds: the
        second would meet the handler at work and end the task.
        """
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        return submitit.helpers.DelayedSubmission(self)


def write_report(run: str, folder: str) -> list[str]:
    """Draw the figures and the page of a measured run; return their paths."""
    from saturation.report.write import report

    return list(map(str, report([run], figures=f"{folder}/figures", page=f"{folder}/report.html")))


def submit(
    shards: Sequence[MeasureShard], report_folder: str, cluster: str, logs: str, parameters: dict
) -> tuple[list[submitit.Job], submitit.Job]:
    """Submit the shards as one array, and their report; return the jobs.

    Args:
      shards: of one run.
      report_folder: where figures and page go.
      cluster: "slurm", or "local" for processes of this machine.
      logs: a folder that all nodes see.
      parameters: as `submitit.AutoExecutor.update_parameters` takes them.
    """
    executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=100)
    executor.update_parameters(**{"name": "saturation", "timeout_min": 24 * 60, **parameters})
    with executor.batch():
        jobs = [executor.submit(shard) for shard in shards]
    if cluster == "slurm":
        array = jobs[0].job_id.split("_")[0]
        more = {"dependency": f"afterok:{array}", "kill-on-invalid-dep": "yes"}
        executor.update_parameters(slurm_additional_parameters=more)
    else:
        for job in jobs:
            job.result()
    return jobs, executor.submit(write_report, shards[0].out, report_folder)


def main() -> None:
    """Parse, submit, print the jobs' numbers; where nothing else will, wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trajectory")
    parser.add_argument("out", help="folder or URL; the run is OUT/run")
    parser.add_argument("--measures", default="norms,direction")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--tokens", default="builtin")
    parser.add_argument("--vocabulary", default=None)
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--logs", default="logs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    given = parser.parse_args()
    out, measures = given.out.rstrip("/"), tuple(given.measures.split(","))
    shards = [
        MeasureShard(
            *(given.trajectory, f"{out}/run", measures, index, given.tasks),
            *(given.tokens, given.vocabulary),
        )
        for index in range(given.tasks)
    ]
    pairs = (setting.split("=", 1) for setting in given.settings)
    parameters = {name: int(value) if value.isdecimal() else value for name, value in pairs}
    report_folder = f"reports/{out.rsplit('/', 1)[-1]}" if "://" in out else out
    jobs, report = submit(shards, report_folder, given.cluster, given.logs, parameters)
    print(*(job.job_id for job in jobs), report.job_id)
    if given.cluster == "local":
        print(*report.result(), sep="\n")


if __name__ == "__main__":
    main()
