"""How long the command line takes to say something, beyond Python's own start.

    python benchmarks/make_trajectory.py --size tiny --steps 4 --format t5x --out /tmp/t5x-tiny
    python benchmarks/start_up.py /tmp/t5x-tiny [--runs 5]

`saturation --help` and `saturation ls FOLDER` take turns with `python -c pass`, each in a process
of its own. Prints JSON and a sentence.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from interleaved import interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trajectory", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    saturation = Path(sys.executable).with_name("saturation")
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "help": [saturation, "--help"],
        "ls": [saturation, "ls", arguments.trajectory],
    }
    timed = interleaved(
        {
            name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
            for name, command in commands.items()
        },
        arguments.runs,
    )
    medians = {name: times["median_s"] for name, times in timed.items()}
    beyond = {name: medians[name] - medians["python"] for name in ("help", "ls")}
    print(json.dumps({"timed": timed, "beyond_python_s": beyond}, indent=1))
    print(
        f"Beyond Python's own {medians['python']:.3f} s, `saturation --help` takes "
        f"{beyond['help']:.2f} s and `saturation ls` {beyond['ls']:.2f} s."
    )


if __name__ == "__main__":
    main()
