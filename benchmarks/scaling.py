"""How time and memory of measures of weights grow with steps, with the model, and with cores.

    python benchmarks/scaling.py --data /tmp/scaling --out docs/images/memory.png [--runs 3]

Makes trajectories of T5-small, -base and -large sizes where --data lacks them (17 GB; steps
beyond four are hard links), measures each with `saturation measure` in a process of its own, and
draws peak memory against the number of steps and the size of the model. Also: the time from the
command to the first part on disk, and one core against all. Prints JSON and a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
STEPS, SIZES = (4, 12, 40), ("small", "base", "large")


class Run(NamedTuple):
    seconds: float
    first_part: float
    megabytes: float


def make(data: Path, size: str, steps: int) -> Path:
    folder = data / f"{size}-{steps}"
    if not folder.exists():
        command = [sys.executable, HERE / "make_trajectory.py", "--size", size, "--steps"]
        command += [str(steps), "--distinct", "4", "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(folder: Path, cores: set[int] | None = None) -> Run:
    saturation = Path(sys.executable).with_name("saturation")
    with tempfile.TemporaryDirectory() as out:
        command = [saturation, "measure", folder, "--measures", "norms,direction", "--out", out]
        begun, first = time.perf_counter(), None
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
        )
        while True:
            if first is None and any(Path(out).glob("parts/*/*.parquet")):
                first = time.perf_counter() - begun
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.005)
        seconds = time.perf_counter() - begun
    if status:
        raise SystemExit(f"`saturation measure {folder}` failed")
    return Run(seconds, first or seconds, usage.ru_maxrss / 1024)


def median(runs: list[Run]) -> Run:
    return Run(*(round(statistics.median(column), 2) for column in zip(*runs, strict=True)))


def draw(by_steps: dict[int, Run], by_size: dict[str, Run], gigabytes: dict, out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    left.plot(list(by_steps), [run.megabytes for run in by_steps.values()], marker="o")
    left.set(xlabel="checkpoints measured (T5-base)", ylabel="peak memory of the process, MB")
    sizes = [gigabytes[size] for size in by_size]
    right.plot(sizes, [run.megabytes for run in by_size.values()], marker="o")
    right.plot(sizes, [1000 * size for size in sizes], ls="--", color="0.5")
    right.annotate(
        "as large as one checkpoint",
        (0.9, 900),
        xytext=(10, 0),
        color="0.4",
        textcoords="offset points",
        va="center",
    )
    for size, run in by_size.items():
        right.annotate(
            size,
            (gigabytes[size], run.megabytes),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
        )
    right.set(xlabel="size of one T5, GB (4 checkpoints)", xlim=(0, 3.3), ylim=(0, 1000))
    figure.suptitle("Memory of `saturation measure --measures norms,direction`")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="PNG of the figure")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()

    def repeated(folder: Path, cores: set[int] | None = None) -> Run:
        return median([measure(folder, cores) for _ in range(arguments.runs)])

    folders = {size: make(arguments.data, size, STEPS[0]) for size in SIZES}
    by_size = {size: repeated(folder) for size, folder in folders.items()}
    by_steps = {steps: repeated(make(arguments.data, "base", steps)) for steps in STEPS}
    available = sorted(os.sched_getaffinity(0))
    by_cores = {
        count: repeated(folders["base"], set(available[:count])) for count in (1, len(available))
    }
    gigabytes = {
        size: max(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e9
        for size, folder in folders.items()
    }
    draw(by_steps, by_size, gigabytes, arguments.out)
    result = {
        "gigabytes_of_a_checkpoint": gigabytes,
        "by_size": {size: run._asdict() for size, run in by_size.items()},
        "by_steps": {steps: run._asdict() for steps, run in by_steps.items()},
        "by_cores": {cores: run._asdict() for cores, run in by_cores.items()},
    }
    print(json.dumps(result, indent=1))
    few, many = by_steps[STEPS[0]].megabytes, by_steps[STEPS[-1]].megabytes
    print(
        f"{STEPS[0]} steps of T5-base take {few:.0f} MB and {STEPS[-1]} take {many:.0f} MB; "
        f"T5-small takes {by_size['small'].megabytes:.0f} MB and T5-large "
        f"{by_size['large'].megabytes:.0f} MB; the first part is there after "
        f"{by_size['base'].first_part:.1f} s."
    )


if __name__ == "__main__":
    main()
