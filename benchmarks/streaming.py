"""How fast measures of weights stream, against the disk, NumPy, and the decoding of chunks alone.

    python benchmarks/make_trajectory.py --size base --steps 4 --out /tmp/t5-base
    python benchmarks/make_trajectory.py --size tiny --steps 4 --out /tmp/t5-tiny
    python benchmarks/streaming.py /tmp/t5-base --start-up /tmp/t5-tiny [--cold] [--runs 5]

Whole commands are timed, in turns, each in a process of its own; start-up (imports, compilation,
opening) is what the same command takes on a trajectory of next to no bytes, and is taken off. The
speed of the disk is `dd bs=4M` of the same files; of gzip chunks, that of unpacking them on all
cores and nothing else, with zlib (as TensorStore and Zarr do) and with libdeflate. Prints JSON and
a sentence.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

NUMPY = """
import sys, time
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file
begun = time.perf_counter()
previous = None
for path in sorted(Path(sys.argv[1]).glob("*/model.safetensors")):
    arrays = load_file(path)
    vector = np.concatenate([array.ravel() for array in arrays.values()])
    norms = {name: np.linalg.norm(array) for name, array in arrays.items()}
    if previous is not None:
        cosine = vector @ previous / np.linalg.norm(vector) / np.linalg.norm(previous)
    previous = vector
print(time.perf_counter() - begun)
"""


def data_files(folder: Path) -> list[Path]:
    """The files that hold arrays: all but descriptions."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 0)


def drop_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def timed_dd(folder: Path) -> float:
    begun = time.perf_counter()
    for path in data_files(folder):
        command = ["dd", f"if={path}", "of=/dev/null", "bs=4M"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def timed_command(folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of `saturation measure`."""
    saturation = Path(sys.executable).with_name("saturation")
    with tempfile.TemporaryDirectory() as out:
        command = [saturation, "measure", folder, "--measures", "norms,direction", "--out", out]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
    if status:
        raise SystemExit(f"`saturation measure {folder}` failed")
    return seconds, usage.ru_maxrss / 1024


def timed_numpy(folder: Path) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    command = [sys.executable, "-c", NUMPY, folder]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(found.stdout)


def timed_decoding(folder: Path, unpack: Callable[[bytes], bytes | bytearray]) -> float:
    """Reading and unpacking every gzip chunk on all cores, and nothing else."""
    chunks = [path for path in data_files(folder) if path.parent.name.startswith("target.")]
    chunks = [path for path in chunks if not path.name.startswith(".")]

    def decode(path: Path) -> int:
        return len(unpack(path.read_bytes()))

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sum(pool.map(decode, sorted(chunks, key=lambda path: -path.stat().st_size)))
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trajectory", type=Path)
    parser.add_argument("--start-up", type=Path, required=True, help="a tiny trajectory")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--cold", action="store_true", help="drop the page cache before each (root)"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.trajectory
    gzipped = any(folder.glob("*/target.*/.zarray"))
    total = sum(path.stat().st_size for path in data_files(folder))
    if shutil.which("dd") is None:
        raise SystemExit("this benchmark compares with `dd`, which is not installed")

    contestants = {"dd": lambda: timed_dd(folder), "saturation": lambda: timed_command(folder)}
    first = next(folder.glob("*/model.safetensors"), None)
    if first and b'"BF16"' not in first.open("rb").read(4096):  # which NumPy does not know
        contestants["numpy"] = lambda: timed_numpy(folder)
    if gzipped:
        contestants["zlib_alone"] = lambda: timed_decoding(folder, gzip.decompress)
        if find_spec("deflate"):  # the extra `gzip`
            from deflate import gzip_decompress

            contestants["libdeflate_alone"] = lambda: timed_decoding(
                folder, lambda data: gzip_decompress(data, int.from_bytes(data[-4:], "little"))
            )
    timed_dd(folder)  # into the page cache
    seconds: dict[str, list[float]] = {name: [] for name in [*contestants, "start_up"]}
    peaks = []
    for _ in range(arguments.runs):
        seconds["start_up"].append(timed_command(arguments.start_up)[0])
        for name, run in contestants.items():
            if arguments.cold:
                drop_cache()
            found = run()
            if isinstance(found, tuple):
                found, peak = found
                peaks.append(peak)
            seconds[name].append(found)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    medians["saturation_net"] = medians["saturation"] - medians["start_up"]
    ratios = {
        f"{name}_over_saturation": medians[name] / medians["saturation_net"]
        for name in contestants
        if name != "saturation"
    }
    result = {
        "bytes": total,
        "cold": arguments.cold,
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "gigabytes_per_second": {
            name: round(total / medians[name] / 1e9, 3) for name in [*contestants, "saturation_net"]
        },
        "peak_megabytes": round(statistics.median(peaks), 1),
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "all_seconds": {n: [round(t, 3) for t in times] for n, times in seconds.items()},
    }
    print(json.dumps(result, indent=1))
    speed = total / medians["saturation_net"] / 1e9
    compared = "; ".join(
        f"{value:.2f} of the speed of {name.removesuffix('_over_saturation')}"
        for name, value in ratios.items()
    )
    print(
        f"Streams {speed:.2f} GB/s beyond a start-up of {medians['start_up']:.2f} s, with "
        f"{result['peak_megabytes']:.0f} MB at most: {compared}."
    )


if __name__ == "__main__":
    main()
